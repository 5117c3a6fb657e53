// Reads that accept any alignment.
#pragma once

#include <cstdint>

#include "kernels/table.h"

namespace asx::ASX_TARGET {
namespace {

#define ASX_INLINE inline __attribute__((always_inline))

template <class T> ASX_INLINE T read(const void* p) {
    T value;
    __builtin_memcpy(&value, p, sizeof(T));
    return value;
}

template <class T> ASX_INLINE void write(void* p, T value) { __builtin_memcpy(p, &value, sizeof(T)); }

ASX_INLINE float bits_to_float(uint32_t bits) { return read<float>(&bits); }

// A number that a generic lambda can take as a template argument.
template <int n> struct Number {
    static constexpr int value = n;
};

// What a target turns codes into for batches, if anything; see hamming_turned.h.
enum class Columns { none, halves, nibbles };

// How far ahead to fetch rows of so many bytes that are read in order: block->ahead bytes, or whole rows where they do not lie together.
ASX_INLINE int64_t fetch_distance(const Block* block, const Piece& piece, int64_t bytes) {
    if (block->ahead == 0 || (piece.stride > 0 && piece.stride < bytes + 64)) return block->ahead;
    const int64_t step = piece.stride < 0 ? -piece.stride : piece.stride;
    return step == 0 ? 0 : (block->ahead + step - 1) / step * piece.stride;
}

// Element kinds of dense rows.
struct Float32 {
    static constexpr Kind kind = kFloat32;
    static constexpr int bytes = 4;
};
struct Float16 {
    static constexpr Kind kind = kFloat16;
    static constexpr int bytes = 2;
};
struct BFloat16 {
    static constexpr Kind kind = kBFloat16;
    static constexpr int bytes = 2;
};
struct Int8 {
    static constexpr Kind kind = kInt8;
    static constexpr int bytes = 1;
};

// binary16 to binary32 by integer arithmetic; exact, subnormals, infinities and NaN included.
ASX_INLINE float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x0400u) {
        const float value = static_cast<float>(magnitude) * 0x1p-24f;
        return sign ? -value : value;
    }
    return bits_to_float(sign | ((magnitude << 13) + 0x38000000u));
}

template <class K> ASX_INLINE float widen_one(const uint8_t* p) {
    if constexpr (K::kind == kFloat32) return read<float>(p);
    if constexpr (K::kind == kFloat16) return half_to_float(read<uint16_t>(p));
    if constexpr (K::kind == kBFloat16) return bits_to_float(static_cast<uint32_t>(read<uint16_t>(p)) << 16);
    if constexpr (K::kind == kInt8) return static_cast<float>(static_cast<int8_t>(*p));
}

}  // namespace
}  // namespace asx::ASX_TARGET
