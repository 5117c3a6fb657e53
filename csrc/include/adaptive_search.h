/* adaptive_search: SIMD kernels for embedding search, as plain C functions.
 *
 * Python hands out addresses of these functions, `adaptive_search.kernel_address("dot_f32")`, for the target in use;
 * `kernel_address("kernels")` is the address of the whole table below. The functions live as long as the process has the
 * package loaded, are thread-safe, allocate nothing, cannot fail, and accept unaligned pointers and any `dims`, 0 included.
 *
 * Scores are canonical: the same bits on every target. float32 results sum in 16 lanes (lane i % 16), one multiply and one add per
 * element, then a fixed tree. 16-bit types are passed as their bits: IEEE binary16, or bfloat16 (the upper half of a float32).
 * int8 sums are exact for dims <= 131,071. cosine_f32 divides the canonical dot_f32 by norms taken in float64 (0 for a zero vector): the
 * same bits on every target, but not the cosine of the Python functions, which normalise the query first.
 */
#ifndef ADAPTIVE_SEARCH_H
#define ADAPTIVE_SEARCH_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ASX_ABI_VERSION 1u

/* sum of a*b, of (a-b)^2, and a.b / (|a| |b|) (0 for a zero vector) */
typedef float (*asx_pair_f32)(const float* a, const float* b, uint64_t dims);
/* a float32 query against a row of binary16 or bfloat16 bits */
typedef float (*asx_pair_16)(const float* query, const uint16_t* row, uint64_t dims);
/* exact integer sum of a*b */
typedef int32_t (*asx_pair_i8)(const int8_t* a, const int8_t* b, uint64_t dims);
/* number of differing bits */
typedef uint32_t (*asx_pair_bits)(const uint8_t* a, const uint8_t* b, uint64_t bytes);

/* Fields are only ever appended: read `struct_bytes` before using one that a newer version added. */
typedef struct asx_kernels {
    uint32_t abi_version;
    uint32_t struct_bytes;
    const char* target;
    asx_pair_f32 dot_f32;
    asx_pair_f32 l2_f32;
    asx_pair_f32 cosine_f32;
    asx_pair_16 dot_f16;
    asx_pair_16 l2_f16;
    asx_pair_16 dot_bf16;
    asx_pair_16 l2_bf16;
    asx_pair_i8 dot_i8;
    asx_pair_bits hamming_u8;
} asx_kernels;

#ifdef __cplusplus
}
#endif
#endif
