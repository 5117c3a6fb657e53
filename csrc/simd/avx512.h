// Register operations on AVX-512 (F BW DQ VL CD, VNNI, VBMI, VPOPCNTDQ). simd/scalar.h says what each one means.
#pragma once

#include <immintrin.h>

#include "kernels/memory.h"

namespace asx::ASX_TARGET {
namespace {

struct Simd {
    static constexpr int lanes = 16;
    static constexpr int tile_rows = 12;        // 12 x 2 accumulators, 2 of the query panel, 1 broadcast: 27 of 32 registers
    static constexpr bool has_bfloat16_dot =
#ifdef __AVX512BF16__
        true;
#else
        false;
#endif

    static constexpr bool fetches = true;
    static ASX_INLINE void prefetch(const uint8_t* p, int64_t ahead) {
        if (ahead) __builtin_prefetch(p + ahead);
    }

    // --- float32 -----------------------------------------------------------------------------------------------------
    using F = __m512;
    static ASX_INLINE F zero() { return _mm512_setzero_ps(); }
    static ASX_INLINE F set(float x) { return _mm512_set1_ps(x); }
    static ASX_INLINE F load(const void* p) { return _mm512_loadu_ps(p); }
    static ASX_INLINE F load_part(const void* p, int64_t n) { return _mm512_maskz_loadu_ps(below(n), p); }
    static ASX_INLINE void store(void* p, F a) { _mm512_storeu_ps(p, a); }
    static ASX_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
    static ASX_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static ASX_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static ASX_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
    static ASX_INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
    static ASX_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
    static ASX_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
    static ASX_INLINE float largest(F a) {
        const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
    static ASX_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static ASX_INLINE uint32_t not_less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
    static ASX_INLINE F choose(F a, F b, F x, F y, F otherwise) {       // per lane: a <= x <= b ? y : otherwise
        return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, a, _CMP_GE_OQ) & _mm512_cmp_ps_mask(x, b, _CMP_LE_OQ), y);
    }

    static ASX_INLINE F even_lanes_of(F a, F b) { return _mm512_permutex2var_ps(a, even_lanes(), b); }
    static ASX_INLINE F odd_lanes_of(F a, F b) { return _mm512_permutex2var_ps(a, odd_lanes(), b); }
    static ASX_INLINE F add_adjacent(F a, F b) { return add(even_lanes_of(a, b), odd_lanes_of(a, b)); }
    template <int n> static ASX_INLINE F spread(const float* p) {
        static_assert(n <= 2, "other numbers are not needed");
        if constexpr (n == 1) return set(*p);
        return _mm512_insertf32x8(set(p[0]), _mm256_set1_ps(p[1]), 1);
    }
    static ASX_INLINE F tag(F a, F bits) {
        return _mm512_castsi512_ps(
            _mm512_ternarylogic_epi32(_mm512_castps_si512(a), _mm512_castps_si512(bits), _mm512_set1_epi32(255), 0xd8));
    }
    // Lanes where `a` is less than `best` take it, and its index.
    static ASX_INLINE void keep_least(F a, F index, F& best, F& best_index) {
        const __mmask16 less = _mm512_cmp_ps_mask(a, best, _CMP_LT_OQ);
        best = _mm512_mask_mov_ps(best, less, a);
        best_index = _mm512_mask_mov_ps(best_index, less, index);
    }
    // Sums of 16 rows of 16 floats: lane r is the sum of row r. A tree of shuffles halves the vectors four times.
    static ASX_INLINE F reduce_rows(const float* rows) {
        F t[8], u[4], s[2];
        for (int i = 0; i < 8; ++i) {
            const F a = load(rows + 16 * i), b = load(rows + 16 * (i + 8));
            t[i] = add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        }
        for (int i = 0; i < 4; ++i) u[i] = add(_mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd));
        for (int i = 0; i < 2; ++i) s[i] = add(_mm512_unpacklo_ps(u[i], u[i + 2]), _mm512_unpackhi_ps(u[i], u[i + 2]));
        const F r = add(_mm512_unpacklo_ps(s[0], s[1]), _mm512_unpackhi_ps(s[0], s[1]));
        return _mm512_shuffle_f32x4(r, r, 0xd8);
    }

    template <class K> static ASX_INLINE F widen(const uint8_t* p) {
        if constexpr (K::kind == kFloat32) return _mm512_loadu_ps(p);
        if constexpr (K::kind == kFloat16) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        if constexpr (K::kind == kBFloat16) return from_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        if constexpr (K::kind == kInt8)
            return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    // Lanes first <= i < last hold the elements of p, p + 1, ...; the others are zero. Nothing else is read.
    template <class K> static ASX_INLINE F widen_part(const uint8_t* p, int64_t first, int64_t last) {
        const __mmask16 mask = below(last) & static_cast<__mmask16>(~below(first));
        p -= first * K::bytes;
        if constexpr (K::kind == kFloat32) return _mm512_maskz_loadu_ps(mask, p);
        if constexpr (K::kind == kFloat16) return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
        if constexpr (K::kind == kBFloat16) return from_bfloat16(_mm256_maskz_loadu_epi16(mask, p));
        if constexpr (K::kind == kInt8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, p)));
    }

    // --- the sixteen virtual lanes of canonical sums ---------------------------------------------------------------------
    struct Lanes {
        __m512 v;
    };
    static ASX_INLINE Lanes lanes_zero() { return {zero()}; }
    static ASX_INLINE Lanes lanes_load(const float* p) { return {load(p)}; }
    template <class K> static ASX_INLINE Lanes lanes_widen(const uint8_t* p) { return {widen<K>(p)}; }
    template <class K> static ASX_INLINE Lanes lanes_widen_part(const uint8_t* p, int64_t first, int64_t last) {
        return {widen_part<K>(p, first, last)};
    }
    static ASX_INLINE Lanes lanes_sub(Lanes a, Lanes b) { return {sub(a.v, b.v)}; }
    static ASX_INLINE Lanes lanes_add_product(Lanes sum, Lanes a, Lanes b) { return {add(sum.v, mul(a.v, b.v))}; }
    static ASX_INLINE float lanes_reduce(Lanes a) {
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
    static ASX_INLINE void lanes_reduce_four(const float* lanes, float* out) {
        __m256 eight[4];
        for (int i = 0; i < 4; ++i) eight[i] = _mm256_add_ps(_mm256_loadu_ps(lanes + 16 * i), _mm256_loadu_ps(lanes + 16 * i + 8));
        const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(eight[0], eight[1], 0x20), _mm256_permute2f128_ps(eight[0], eight[1], 0x31));
        const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(eight[2], eight[3], 0x20), _mm256_permute2f128_ps(eight[2], eight[3], 0x31));
        const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));    // of a, c | b, d
        const __m256 one = _mm256_hadd_ps(two, two);
        _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1)));
    }
    struct WideLanes {
        __m512d low, high;
    };
    static ASX_INLINE WideLanes wide_zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
    static ASX_INLINE WideLanes wide_add_square(WideLanes sum, Lanes a) {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a.v)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1));
        return {_mm512_fmadd_pd(low, low, sum.low), _mm512_fmadd_pd(high, high, sum.high)};
    }
    static ASX_INLINE double wide_reduce(WideLanes a) {
        const __m512d eight = _mm512_add_pd(a.low, a.high);
        const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
        const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
        return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
    }

    // --- int32 and dot products of packed words ---------------------------------------------------------------------------
    // Vectors of int rather than __m512i (of long long): with those, GCC copies and spills the accumulators of a tile (int8 at 44 % of the peak
    // instead of 91 %).
    typedef int I __attribute__((vector_size(64)));
    static ASX_INLINE I int_zero() { return I{}; }
    static ASX_INLINE I int_set(int32_t x) { return (I)_mm512_set1_epi32(x); }
    static ASX_INLINE I truncate(F a) { return (I)_mm512_cvttps_epi32(a); }
    static ASX_INLINE F to_float(I a) { return _mm512_cvtepi32_ps((__m512i)a); }
    static ASX_INLINE void int_store_bytes(void* p, I a) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)a)); }
    static ASX_INLINE I int_add_adjacent(I a, I b) {
        return (I)_mm512_permutex2var_epi32((__m512i)a, even_lanes(), (__m512i)b) +
               (I)_mm512_permutex2var_epi32((__m512i)a, odd_lanes(), (__m512i)b);
    }
    template <int n> static ASX_INLINE I int_every(I a) {
        static_assert(n == 1 || n == 2 || n == 4, "other numbers are not needed");
        constexpr uint32_t every = n == 1 ? 0xffff : n == 2 ? 0x5555 : 0x1111;
        return (I)_mm512_maskz_mov_epi32(static_cast<__mmask16>(every), (__m512i)a);
    }
    static ASX_INLINE int32_t int_reduce(I a) { return _mm512_reduce_add_epi32((__m512i)a); }

    using Bytes = __m512i;
    static constexpr int bytes = 64;
    static ASX_INLINE Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
    static ASX_INLINE Bytes load_bytes_part(const void* p, int64_t n) {
        return _mm512_maskz_loadu_epi8(n >= 64 ? ~0ull : (1ull << n) - 1, p);
    }
    static ASX_INLINE Bytes set_bytes(int8_t x) { return _mm512_set1_epi8(x); }
    template <int n> static ASX_INLINE Bytes repeat_words(const void* p) {
        static_assert(n == 1 || n == 2 || n == 4, "other numbers are not needed");
        if constexpr (n == 1) return _mm512_set1_epi32(read<int32_t>(p));
        if constexpr (n == 2) return _mm512_set1_epi64(read<int64_t>(p));
        return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    }
    static ASX_INLINE F as_floats(Bytes a) { return _mm512_castsi512_ps(a); }

    // Queries of the int8 families are stored with an offset that makes them unsigned; rows stay signed.
    static constexpr int offset7 = 64, offset8 = 128;
    static constexpr bool faster_7_bits = false;
    static ASX_INLINE I dot_words7(I sum, Bytes unsigned_query, Bytes row) { return dot_words8(sum, unsigned_query, row); }
    static ASX_INLINE I dot_words8(I sum, Bytes query, Bytes row) { return (I)_mm512_dpbusd_epi32((__m512i)sum, query, row); }
    static ASX_INLINE I sum_words(I sum, Bytes row) { return dot_words8(sum, _mm512_set1_epi8(1), row); }
#ifdef __AVX512BF16__
    static ASX_INLINE F dot_bfloat16(F sum, Bytes a, Bytes b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
#endif

    // --- 64-bit words of binary codes --------------------------------------------------------------------------------------
    using Words = __m512i;
    static constexpr int words = 8;
    static constexpr bool counts_along_rows = false;
    static constexpr int count_steps = 1 << 20;     // popcounts that a Counts can take before it must be widened
    using Counts = __m512i;
    static ASX_INLINE Words set_word(uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
    static ASX_INLINE Words load_words(const void* p) { return _mm512_loadu_si512(p); }
    static ASX_INLINE Words and_words(Words a, Words b) { return _mm512_and_si512(a, b); }
    static ASX_INLINE Words xor_words(Words a, Words b) { return _mm512_xor_si512(a, b); }
    static ASX_INLINE Counts count_zero() { return _mm512_setzero_si512(); }
    static ASX_INLINE Counts count_add(Counts sum, Words a) { return _mm512_add_epi64(sum, _mm512_popcnt_epi64(a)); }
    static ASX_INLINE Words count_widen(Words sum, Counts a) { return _mm512_add_epi64(sum, a); }
    static ASX_INLINE uint32_t words_not_above(Words a, Words limit) { return _mm512_cmple_epu64_mask(a, limit); }
    static ASX_INLINE void store_words(void* p, Words a) { _mm512_storeu_si512(p, a); }
    // 8 rows of 8 (4) words: x[w] holds word w of all rows.
    static ASX_INLINE void load_columns(const uint8_t* p, int64_t step, Words (&x)[8]) {
        Words pairs[2][4];      // of rows 2 i and 2 i + 1, even words and odd words
        for (int i = 0; i < 4; ++i) {
            const Words a = load_words(p + 2 * i * step), b = load_words(p + (2 * i + 1) * step);
            pairs[0][i] = _mm512_unpacklo_epi64(a, b), pairs[1][i] = _mm512_unpackhi_epi64(a, b);
        }
        for (int odd = 0; odd < 2; ++odd) {
            const Words* pair = pairs[odd];
            const Words a = _mm512_shuffle_i64x2(pair[0], pair[1], 0x88), b = _mm512_shuffle_i64x2(pair[2], pair[3], 0x88);
            const Words c = _mm512_shuffle_i64x2(pair[0], pair[1], 0xdd), d = _mm512_shuffle_i64x2(pair[2], pair[3], 0xdd);
            x[odd] = _mm512_shuffle_i64x2(a, b, 0x88), x[4 + odd] = _mm512_shuffle_i64x2(a, b, 0xdd);
            x[2 + odd] = _mm512_shuffle_i64x2(c, d, 0x88), x[6 + odd] = _mm512_shuffle_i64x2(c, d, 0xdd);
        }
    }
    static ASX_INLINE void load_half_columns(const uint8_t* p, int64_t step, Words (&x)[4]) {
        const auto half = [&](int row) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + row * step)); };
        const auto both = [&](int row) { return _mm512_inserti64x4(_mm512_castsi256_si512(half(row)), half(row + 2), 1); };
        const Words a = both(0), b = both(1), c = both(4), d = both(5);
        const Words even = _mm512_unpacklo_epi64(a, b), even4 = _mm512_unpacklo_epi64(c, d);
        const Words odd = _mm512_unpackhi_epi64(a, b), odd4 = _mm512_unpackhi_epi64(c, d);
        x[0] = _mm512_shuffle_i64x2(even, even4, 0x88), x[2] = _mm512_shuffle_i64x2(even, even4, 0xdd);
        x[1] = _mm512_shuffle_i64x2(odd, odd4, 0x88), x[3] = _mm512_shuffle_i64x2(odd, odd4, 0xdd);
    }

    // --- codes turned for batches: columns of 16 bits, counted by the popcount of 16-bit elements --------------------------------
    static constexpr Columns columns = Columns::halves;
    static ASX_INLINE Bytes load_lanes(const uint8_t* p, int64_t step) { // 128-bit lane i from p + i * step
        const auto lane = [&](int64_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * step)); };
        return _mm512_inserti64x2(_mm512_inserti64x2(_mm512_inserti64x2(_mm512_castsi128_si512(lane(0)), lane(1), 1), lane(2), 2), lane(3),
                                  3);
    }
    static ASX_INLINE Bytes repeat_lane(const void* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
    // Columns of the lower (upper) halves of each lane, alternating.
    static ASX_INLINE Bytes zip_low(Bytes a, Bytes b) { return _mm512_unpacklo_epi16(a, b); }
    static ASX_INLINE Bytes zip_high(Bytes a, Bytes b) { return _mm512_unpackhi_epi16(a, b); }
    static ASX_INLINE Bytes xor_bytes(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
    static ASX_INLINE Bytes and_bytes(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
    static ASX_INLINE Bytes and_xor(Bytes a, Bytes b, Bytes c) { return _mm512_ternarylogic_epi64(a, b, c, 0x60); } // a & (b ^ c)
    static ASX_INLINE Bytes xor_xor(Bytes a, Bytes b, Bytes c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
    static ASX_INLINE Bytes count_halves(Bytes sum, Bytes a) { return _mm512_add_epi16(sum, _mm512_popcnt_epi16(a)); }
    static ASX_INLINE Bytes min_halves(Bytes a, Bytes b) { return _mm512_min_epu16(a, b); }
    static ASX_INLINE bool any_half_below(Bytes a, Bytes limit) { return _mm512_cmplt_epu16_mask(a, limit) != 0; }

    // --- byte tables of product quantization ---------------------------------------------------------------------------------
    static constexpr int pq8_cached = 4, pq8_streamed = 2;
    static constexpr int pq4_cached(int queries) { return queries == 1 ? 4 : 2; }
    static ASX_INLINE void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
    // GCC would rather load a value anew for each use than copy a register, but there is one load per cycle, and copies are free.
    static ASX_INLINE Bytes in_register(Bytes a) {
#ifdef __GNUC__
        __asm__("" : "+v"(a));
#endif
        return a;
    }
    struct Table256 {
        Bytes part[4];
    };
    static ASX_INLINE Table256 load_table256(const uint8_t* p) {
        return {{in_register(load_bytes(p)), in_register(load_bytes(p + 64)), in_register(load_bytes(p + 128)),
                 in_register(load_bytes(p + 192))}};
    }
    static ASX_INLINE Bytes look_up(const Table256& table, Bytes codes) { // the permutes use 7 bits of a code; its top bit picks the half
        const Bytes low = _mm512_permutex2var_epi8(table.part[0], codes, table.part[1]);
        const Bytes high = _mm512_permutex2var_epi8(table.part[2], codes, table.part[3]);
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
    }
    using Table16 = Bytes;
    static ASX_INLINE Table16 load_table16(const uint8_t* p) {
        return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static ASX_INLINE Bytes look_up16(Table16 table, Bytes nibbles) { return _mm512_shuffle_epi8(table, nibbles); }
    static ASX_INLINE Bytes low_nibbles(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
    static ASX_INLINE Bytes high_nibbles(Bytes a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
    static ASX_INLINE Bytes average_bytes(Bytes a, Bytes b) { return _mm512_avg_epu8(a, b); } // unsigned, halves rounded up
    static ASX_INLINE Bytes add_bytes(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
    static ASX_INLINE Bytes add_halves(Bytes a, Bytes b) { return _mm512_add_epi16(a, b); } // 16-bit elements
    static ASX_INLINE Bytes sub_halves(Bytes a, Bytes b) { return _mm512_sub_epi16(a, b); }
    static ASX_INLINE Bytes halves_down(Bytes a) { return _mm512_srli_epi16(a, 8); }
    static ASX_INLINE Bytes halves_up(Bytes a, int bits) { return _mm512_slli_epi16(a, bits); }
    static ASX_INLINE Bytes set_halves(uint16_t x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
    template <int part> static ASX_INLINE F widen_halves(Bytes a) {
        return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(a, part)));
    }
    static ASX_INLINE uint64_t halves_not_below(Bytes a, Bytes limit) { return _mm512_cmpge_epu16_mask(a, limit); }
    static ASX_INLINE Bytes max_halves(Bytes a, Bytes b) { return _mm512_max_epu16(a, b); }
    static ASX_INLINE Bytes sub_to_zero(Bytes a, Bytes b) { return _mm512_subs_epu16(a, b); }
    static ASX_INLINE bool any_half(Bytes a) { return _mm512_test_epi16_mask(a, a) != 0; }
    static ASX_INLINE void store_bytes(void* p, Bytes a) { _mm512_storeu_si512(p, a); }

private:
    static ASX_INLINE __m512i even_lanes() { return _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30); }
    static ASX_INLINE __m512i odd_lanes() { return _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31); }
    static ASX_INLINE __mmask16 below(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1); }
    static ASX_INLINE F from_bfloat16(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
};

} // namespace
} // namespace asx::ASX_TARGET
