// Register operations on AVX2 with FMA and F16C. simd/scalar.h says what each one means.
#pragma once

#include <immintrin.h>

#include "kernels/memory.h"

namespace asx::ASX_TARGET {
namespace {

struct Simd {
    static constexpr int lanes = 8;
    static constexpr int tile_rows = 6;         // 6 x 2 accumulators, 2 of the query panel, 1 broadcast: 15 of 16 registers
    static constexpr bool has_bfloat16_dot = false;

    static constexpr bool fetches = true;
    static ASX_INLINE void prefetch(const uint8_t* p, int64_t ahead) { __builtin_prefetch(p + ahead); }

    // --- float32 -----------------------------------------------------------------------------------------------------
    using F = __m256;
    static ASX_INLINE F zero() { return _mm256_setzero_ps(); }
    static ASX_INLINE F set(float x) { return _mm256_set1_ps(x); }
    static ASX_INLINE F load(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
    static ASX_INLINE F load_part(const void* p, int64_t n) { return _mm256_maskload_ps(static_cast<const float*>(p), below(n)); }
    static ASX_INLINE void store(void* p, F a) { _mm256_storeu_ps(static_cast<float*>(p), a); }
    static ASX_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
    static ASX_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static ASX_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static ASX_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
    static ASX_INLINE F sqrt(F a) { return _mm256_sqrt_ps(a); }
    static ASX_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
    static ASX_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
    static ASX_INLINE float largest(F a) {
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
    static ASX_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static ASX_INLINE uint32_t not_less(F a, F b) { return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLT_UQ))); }
    static ASX_INLINE F choose(F a, F b, F x, F y, F otherwise) {
        return _mm256_blendv_ps(otherwise, y, _mm256_and_ps(_mm256_cmp_ps(x, a, _CMP_GE_OQ), _mm256_cmp_ps(x, b, _CMP_LE_OQ)));
    }

    static ASX_INLINE F even_lanes_of(F a, F b) { return in_order(_mm256_shuffle_ps(a, b, 0x88)); }
    static ASX_INLINE F odd_lanes_of(F a, F b) { return in_order(_mm256_shuffle_ps(a, b, 0xdd)); }
    static ASX_INLINE F add_adjacent(F a, F b) { return in_order(_mm256_hadd_ps(a, b)); }
    template <int n> static ASX_INLINE F spread(const float* p) {
        static_assert(n == 1, "other numbers are not needed");
        return set(*p);
    }
    static ASX_INLINE F tag(F a, F bits) { return _mm256_or_ps(_mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(~255))), bits); }
    static ASX_INLINE void keep_least(F a, F index, F& best, F& best_index) {
        const F less = _mm256_cmp_ps(a, best, _CMP_LT_OQ);
        best = _mm256_blendv_ps(best, a, less);
        best_index = _mm256_blendv_ps(best_index, index, less);
    }
    static ASX_INLINE F reduce_rows(const float* rows) {
        F t[4];
        for (int i = 0; i < 4; ++i) {
            const F a = load(rows + 8 * i), b = load(rows + 8 * (i + 4));
            t[i] = add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
        }
        return _mm256_hadd_ps(_mm256_hadd_ps(t[0], t[1]), _mm256_hadd_ps(t[2], t[3]));
    }

    template <class K> static ASX_INLINE F widen(const uint8_t* p) {
        if constexpr (K::kind == kFloat32) return load(p);
        if constexpr (K::kind == kFloat16) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        if constexpr (K::kind == kBFloat16) {
            const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
            return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
        }
        if constexpr (K::kind == kInt8)
            return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    template <class K> static ASX_INLINE F widen_part(const uint8_t* p, int64_t first, int64_t last) {
        alignas(32) float lane[lanes] = {};
        for (int64_t i = first; i < last; ++i) lane[i] = widen_one<K>(p + (i - first) * K::bytes);
        return load(lane);
    }

    // --- the sixteen virtual lanes of canonical sums ---------------------------------------------------------------------
    struct Lanes {
        __m256 low, high;
    };
    static ASX_INLINE Lanes lanes_zero() { return {zero(), zero()}; }
    static ASX_INLINE Lanes lanes_load(const float* p) { return {load(p), load(p + 8)}; }
    template <class K> static ASX_INLINE Lanes lanes_widen(const uint8_t* p) { return {widen<K>(p), widen<K>(p + 8 * K::bytes)}; }
    template <class K> static ASX_INLINE Lanes lanes_widen_part(const uint8_t* p, int64_t first, int64_t last) {
        alignas(32) float lane[16] = {};
        for (int64_t i = first; i < last; ++i) lane[i] = widen_one<K>(p + (i - first) * K::bytes);
        return lanes_load(lane);
    }
    static ASX_INLINE Lanes lanes_sub(Lanes a, Lanes b) { return {sub(a.low, b.low), sub(a.high, b.high)}; }
    static ASX_INLINE Lanes lanes_add_product(Lanes sum, Lanes a, Lanes b) {
        return {add(sum.low, mul(a.low, b.low)), add(sum.high, mul(a.high, b.high))};
    }
    static ASX_INLINE float lanes_reduce(Lanes a) {
        const __m256 eight = add(a.low, a.high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
    static ASX_INLINE void lanes_reduce_four(const float* lanes, float* out) {
        __m256 eight[4];
        for (int i = 0; i < 4; ++i) eight[i] = add(load(lanes + 16 * i), load(lanes + 16 * i + 8));
        const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(eight[0], eight[1], 0x20), _mm256_permute2f128_ps(eight[0], eight[1], 0x31));
        const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(eight[2], eight[3], 0x20), _mm256_permute2f128_ps(eight[2], eight[3], 0x31));
        const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));    // of a, c | b, d
        const __m256 one = _mm256_hadd_ps(two, two);
        _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1)));
    }
    struct WideLanes {
        __m256d part[4];
    };
    static ASX_INLINE WideLanes wide_zero() {
        return {{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}};
    }
    static ASX_INLINE WideLanes wide_add_square(WideLanes sum, Lanes a) {
        const __m256d x[4] = {_mm256_cvtps_pd(_mm256_castps256_ps128(a.low)), _mm256_cvtps_pd(_mm256_extractf128_ps(a.low, 1)),
                              _mm256_cvtps_pd(_mm256_castps256_ps128(a.high)), _mm256_cvtps_pd(_mm256_extractf128_ps(a.high, 1))};
        for (int i = 0; i < 4; ++i) sum.part[i] = _mm256_fmadd_pd(x[i], x[i], sum.part[i]);
        return sum;
    }
    static ASX_INLINE double wide_reduce(WideLanes a) {
        const __m256d four = _mm256_add_pd(_mm256_add_pd(a.part[0], a.part[2]), _mm256_add_pd(a.part[1], a.part[3]));
        const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
        return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
    }

    // --- int32 and dot products of packed words ---------------------------------------------------------------------------
    using I = __m256i;
    static ASX_INLINE I int_zero() { return _mm256_setzero_si256(); }
    static ASX_INLINE I int_set(int32_t x) { return _mm256_set1_epi32(x); }
    static ASX_INLINE I truncate(F a) { return _mm256_cvttps_epi32(a); }
    static ASX_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
    static ASX_INLINE void int_store_bytes(void* p, I a) {
        const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
        _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packus_epi16(halves, halves));
    }
    static ASX_INLINE I int_add_adjacent(I a, I b) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8); }
    template <int n> static ASX_INLINE I int_every(I a) {
        static_assert(n <= 2, "other numbers are not needed");
        return n == 1 ? a : _mm256_and_si256(a, _mm256_set1_epi64x(0xffffffff));
    }
    static ASX_INLINE int32_t int_reduce(I a) {
        const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
        const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
    }

    using Bytes = __m256i;
    static constexpr int bytes = 32;
    static ASX_INLINE Bytes load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static ASX_INLINE Bytes load_bytes_part(const void* p, int64_t n) {
        alignas(32) uint8_t part[32] = {};
        for (int64_t i = 0; i < n; ++i) part[i] = static_cast<const uint8_t*>(p)[i];
        return load_bytes(part);
    }
    static ASX_INLINE Bytes set_bytes(int8_t x) { return _mm256_set1_epi8(x); }
    template <int n> static ASX_INLINE Bytes repeat_words(const void* p) {
        static_assert(n <= 2, "other numbers are not needed");
        if constexpr (n == 1) return _mm256_set1_epi32(read<int32_t>(p));
        return _mm256_set1_epi64x(read<int64_t>(p));
    }
    static ASX_INLINE F as_floats(Bytes a) { return _mm256_castsi256_ps(a); }

    // vpmaddubsw adds two products in 16 bits: 2 * 127 * 128 < 2^15, so 7-bit queries cannot saturate it. Full 8-bit queries
    // stay signed and go through 16-bit products, but for tiles that are guarded (kernels/tile.h).
    static constexpr int offset7 = 64, offset8 = 0;
    static constexpr bool faster_7_bits = true;
    static ASX_INLINE I dot_words7(I sum, Bytes unsigned_query, Bytes row) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_query, row), _mm256_set1_epi16(1)));
    }
    static ASX_INLINE I dot_words8(I sum, Bytes query, Bytes row) {
        const Bytes even = _mm256_madd_epi16(even_bytes(query), even_bytes(row));
        const Bytes odd = _mm256_madd_epi16(_mm256_srai_epi16(query, 8), _mm256_srai_epi16(row, 8));
        return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
    }
    // Unsigned queries of 8 bits.
    static ASX_INLINE I dot_unsigned(I sum, Bytes query, Bytes row) {
        const Bytes even = _mm256_madd_epi16(_mm256_and_si256(query, _mm256_set1_epi16(255)), even_bytes(row));
        const Bytes odd = _mm256_madd_epi16(_mm256_srli_epi16(query, 8), _mm256_srai_epi16(row, 8));
        return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
    }
    // The larger, per 16-bit element, of `peaks` and the magnitudes of two neighbours of the row together; the largest of all elements.
    static ASX_INLINE Bytes pair_peaks(Bytes peaks, Bytes row) {
        return _mm256_max_epi16(peaks, _mm256_maddubs_epi16(_mm256_abs_epi8(row), _mm256_set1_epi8(1)));
    }
    static ASX_INLINE int32_t largest_half(Bytes peaks) {
        const __m128i eight = _mm_max_epi16(_mm256_castsi256_si128(peaks), _mm256_extracti128_si256(peaks, 1));
        return 0xffff - _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1))), 0);
    }
    static ASX_INLINE I sum_words(I sum, Bytes row) { return dot_words7(sum, _mm256_set1_epi8(1), row); }

    // --- 64-bit words of binary codes --------------------------------------------------------------------------------------
    // Bits are counted per nibble by a shuffle into bytes, which overflow after 31 words (8 bits a byte each).
    using Words = __m256i;
    static constexpr int words = 4;
    static constexpr bool counts_along_rows = true;
    static constexpr int count_steps = 31;
    using Counts = __m256i;
    static ASX_INLINE Words set_word(uint64_t x) { return _mm256_set1_epi64x(static_cast<int64_t>(x)); }
    static ASX_INLINE Words load_words(const void* p) { return load_bytes(p); }
    static ASX_INLINE Words and_words(Words a, Words b) { return _mm256_and_si256(a, b); }
    static ASX_INLINE Words xor_words(Words a, Words b) { return _mm256_xor_si256(a, b); }
    static ASX_INLINE Counts count_zero() { return _mm256_setzero_si256(); }
    static ASX_INLINE Counts count_add(Counts sum, Words a) {
        const __m256i bits =
            _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
        return pin(
            _mm256_add_epi8(sum, _mm256_add_epi8(_mm256_shuffle_epi8(bits, low_nibbles(a)), _mm256_shuffle_epi8(bits, high_nibbles(a)))));
    }
    static ASX_INLINE Words count_widen(Words sum, Counts a) { return _mm256_add_epi64(sum, _mm256_sad_epu8(a, _mm256_setzero_si256())); }
    // The sums of four rows' counts, a row a lane.
    static ASX_INLINE Words count_rows(const Counts (&rows)[4]) {
        const __m256i zero = _mm256_setzero_si256();
        const __m256i ab = _mm256_packus_epi32(_mm256_sad_epu8(rows[0], zero), _mm256_sad_epu8(rows[1], zero));
        const __m256i cd = _mm256_packus_epi32(_mm256_sad_epu8(rows[2], zero), _mm256_sad_epu8(rows[3], zero));
        const __m256i four = _mm256_madd_epi16(_mm256_packus_epi32(ab, cd), _mm256_set1_epi16(1));
        return _mm256_cvtepu32_epi64(_mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
    }
    static ASX_INLINE Words count_half_rows(const Counts (&rows)[2]) { // two of them in each
        const __m256i zero = _mm256_setzero_si256();
        const __m256i both = _mm256_packus_epi32(_mm256_sad_epu8(rows[0], zero), _mm256_sad_epu8(rows[1], zero));
        return _mm256_permute4x64_epi64(_mm256_unpacklo_epi32(_mm256_hadd_epi32(both, both), zero), 0xd8);
    }
    static ASX_INLINE Words load_half_words(const void* p) { // zero beyond them
        return _mm256_zextsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    }
    static ASX_INLINE uint32_t words_not_above(Words a, Words limit) {
        return ~static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(a, limit)))) & 15u;
    }
    static ASX_INLINE void store_words(void* p, Words a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
    static ASX_INLINE void load_columns(const uint8_t* p, int64_t step, Words (&x)[4]) {
        const Words a = load_words(p), b = load_words(p + step), c = load_words(p + 2 * step), d = load_words(p + 3 * step);
        const Words even = _mm256_unpacklo_epi64(a, b), even2 = _mm256_unpacklo_epi64(c, d);
        const Words odd = _mm256_unpackhi_epi64(a, b), odd2 = _mm256_unpackhi_epi64(c, d);
        x[0] = _mm256_permute2x128_si256(even, even2, 0x20), x[2] = _mm256_permute2x128_si256(even, even2, 0x31);
        x[1] = _mm256_permute2x128_si256(odd, odd2, 0x20), x[3] = _mm256_permute2x128_si256(odd, odd2, 0x31);
    }
    static ASX_INLINE void load_half_columns(const uint8_t* p, int64_t step, Words (&x)[2]) {
        const Words a = load_lanes(p, 2 * step), b = load_lanes(p + step, 2 * step);
        x[0] = _mm256_unpacklo_epi64(a, b), x[1] = _mm256_unpackhi_epi64(a, b);
    }

    // --- codes turned for batches: columns of 4 bits in bytes, counted by a table ------------------------------------------------
    static constexpr Columns columns = Columns::nibbles;
    static ASX_INLINE Bytes load_lanes(const uint8_t* p, int64_t step) { // 128-bit lane i from p + i * step
        return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(p + step), reinterpret_cast<const __m128i*>(p));
    }
    static ASX_INLINE Bytes repeat_lane(const void* p) { return load_table16(static_cast<const uint8_t*>(p)); }
    static ASX_INLINE Bytes zip_low(Bytes a, Bytes b) { return _mm256_unpacklo_epi8(a, b); }
    static ASX_INLINE Bytes zip_high(Bytes a, Bytes b) { return _mm256_unpackhi_epi8(a, b); }
    static ASX_INLINE Bytes and_bytes(Bytes a, Bytes b) { return _mm256_and_si256(a, b); }
    // GCC computes all lookups of a step before it adds the first, and spills; this pins a sum where it is made.
    static ASX_INLINE Bytes pin(Bytes a) {
        __asm__("" : "+x"(a));
        return a;
    }
    // Bytes as the 32 unsigned 16-bit elements of two registers, in order.
    static ASX_INLINE void widen_bytes(Bytes a, Bytes& low, Bytes& high) {
        low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(a)), high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(a, 1));
    }
    static ASX_INLINE Bytes min_halves(Bytes a, Bytes b) { return _mm256_min_epu16(a, b); }
    static ASX_INLINE bool any_half_below(Bytes a, Bytes limit) {
        const Bytes room = _mm256_subs_epu16(limit, a);
        return !_mm256_testz_si256(room, room);
    }

    // --- byte tables of product quantization ---------------------------------------------------------------------------------
    static constexpr int pq8_cached = 1, pq8_streamed = 0;
    static constexpr int pq4_cached(int queries) { return queries == 1 ? 2 : 1; }
    static ASX_INLINE void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
    static ASX_INLINE Bytes in_register(Bytes a) {
#ifdef __GNUC__
        __asm__("" : "+x"(a));
#endif
        return a;
    }
    struct Table256 {
        const uint8_t* entries;
    };
    static ASX_INLINE Table256 load_table256(const uint8_t* p) { return {p}; }
    // Sixteen 16-entry shuffles, and blends that choose by bits 4 to 6. The shuffle yields zero where bit 7 of the index is set, so that
    // the two halves of the table need no blend.
    static ASX_INLINE Bytes look_up(const Table256& table, Bytes codes) {
        const Bytes index = _mm256_and_si256(codes, _mm256_set1_epi8(static_cast<char>(0x8f)));
        const Bytes bit4 = _mm256_slli_epi16(codes, 3), bit5 = _mm256_slli_epi16(codes, 2), bit6 = _mm256_slli_epi16(codes, 1);
        return _mm256_or_si256(
            look_up_half(table.entries, index, bit4, bit5, bit6),
            look_up_half(table.entries + 128, _mm256_xor_si256(index, _mm256_set1_epi8(static_cast<char>(0x80))), bit4, bit5, bit6));
    }
    using Table16 = Bytes;
    static ASX_INLINE Table16 load_table16(const uint8_t* p) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static ASX_INLINE Bytes look_up16(Table16 table, Bytes nibbles) { return _mm256_shuffle_epi8(table, nibbles); }
    static ASX_INLINE Bytes low_nibbles(Bytes a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
    static ASX_INLINE Bytes high_nibbles(Bytes a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
    static ASX_INLINE Bytes average_bytes(Bytes a, Bytes b) { return _mm256_avg_epu8(a, b); }
    static ASX_INLINE Bytes add_bytes(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
    static ASX_INLINE Bytes add_halves(Bytes a, Bytes b) { return _mm256_add_epi16(a, b); }
    static ASX_INLINE Bytes sub_halves(Bytes a, Bytes b) { return _mm256_sub_epi16(a, b); }
    static ASX_INLINE Bytes halves_down(Bytes a) { return _mm256_srli_epi16(a, 8); }
    static ASX_INLINE Bytes halves_up(Bytes a, int bits) { return _mm256_slli_epi16(a, bits); }
    static ASX_INLINE Bytes set_halves(uint16_t x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
    template <int part> static ASX_INLINE F widen_halves(Bytes a) {
        return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, part)));
    }
    static ASX_INLINE uint64_t halves_not_below(Bytes a, Bytes limit) {
        const __m256i at_least = _mm256_cmpeq_epi16(_mm256_max_epu16(a, limit), a);
        const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(at_least), _mm256_extracti128_si256(at_least, 1));
        return static_cast<uint32_t>(_mm_movemask_epi8(packed));
    }
    static ASX_INLINE Bytes max_halves(Bytes a, Bytes b) { return _mm256_max_epu16(a, b); }
    static ASX_INLINE Bytes sub_to_zero(Bytes a, Bytes b) { return _mm256_subs_epu16(a, b); }
    static ASX_INLINE bool any_half(Bytes a) { return !_mm256_testz_si256(a, a); }
    static ASX_INLINE void store_bytes(void* p, Bytes a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }

private:
    static ASX_INLINE F in_order(F a) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8)); } // pairs 0, 2, 1, 3
    static ASX_INLINE Bytes look_up_quarter(const uint8_t* entries, Bytes index, Bytes bit4, Bytes bit5) {
        const Bytes a = _mm256_blendv_epi8(look_up16(load_table16(entries), index), look_up16(load_table16(entries + 16), index), bit4);
        const Bytes b =
            _mm256_blendv_epi8(look_up16(load_table16(entries + 32), index), look_up16(load_table16(entries + 48), index), bit4);
        return _mm256_blendv_epi8(a, b, bit5);
    }
    static ASX_INLINE Bytes look_up_half(const uint8_t* entries, Bytes index, Bytes bit4, Bytes bit5, Bytes bit6) {
        return _mm256_blendv_epi8(look_up_quarter(entries, index, bit4, bit5), look_up_quarter(entries + 64, index, bit4, bit5), bit6);
    }
    static ASX_INLINE __m256i below(int64_t n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static ASX_INLINE Bytes even_bytes(Bytes a) { return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8); }
};

}  // namespace
}  // namespace asx::ASX_TARGET
