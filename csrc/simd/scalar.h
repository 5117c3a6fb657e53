// Register operations in plain C++: the specification of simd/avx2.h and simd/avx512.h, and the baseline target.
// A register is a small array; the compiler vectorizes the loops for whatever the baseline offers.
#pragma once

#include "kernels/memory.h"

namespace asx::ASX_TARGET {
namespace {

struct Simd {
    static constexpr int lanes = 4;             // floats in a register
    static constexpr int tile_rows = 4;         // rows of a register tile
    static constexpr bool has_bfloat16_dot = false;

    static constexpr bool fetches = false;             // whether `prefetch` does anything
    // Asks for what a sequential read will need soon, where the hardware does not see it coming.
    static ASX_INLINE void prefetch(const uint8_t*, int64_t) {}

    // --- float32 -----------------------------------------------------------------------------------------------------
    struct F {
        float v[lanes];
    };
    static ASX_INLINE F zero() { return set(0.0f); }
    static ASX_INLINE F set(float x) { return {{x, x, x, x}}; }
    static ASX_INLINE F load(const void* p) { return read<F>(p); }
    static ASX_INLINE F load_part(const void* p, int64_t n) {               // lanes from n on are zero, and not read
        F a = zero();
        for (int64_t i = 0; i < n; ++i) a.v[i] = read<float>(static_cast<const uint8_t*>(p) + 4 * i);
        return a;
    }
    static ASX_INLINE void store(void* p, F a) { write(p, a); }
    static ASX_INLINE F add(F a, F b) {
        return zip(a, b, [](float x, float y) { return x + y; });
    }
    static ASX_INLINE F sub(F a, F b) {
        return zip(a, b, [](float x, float y) { return x - y; });
    }
    static ASX_INLINE F mul(F a, F b) {
        return zip(a, b, [](float x, float y) { return x * y; });
    }
    static ASX_INLINE F div(F a, F b) {
        return zip(a, b, [](float x, float y) { return x / y; });
    }
    static ASX_INLINE F sqrt(F a) {
        return zip(a, a, [](float x, float) { return __builtin_sqrtf(x); });
    }
    // b where either is NaN
    static ASX_INLINE F max(F a, F b) {
        return zip(a, b, [](float x, float y) { return x > y ? x : y; });
    }
    static ASX_INLINE F min(F a, F b) {                                         // of an unordered pair: b
        return zip(a, b, [](float x, float y) { return x < y ? x : y; });
    }
    static ASX_INLINE float largest(F a) {                                      // none is NaN
        float most = a.v[0];
        for (int i = 1; i < lanes; ++i) most = a.v[i] > most ? a.v[i] : most;
        return most;
    }
    static ASX_INLINE F fma(F a, F b, F c) { return add(mul(a, b), c); }    // fused or not: scans only
    static ASX_INLINE uint32_t not_less(F a, F b) {
        return test(a, b, [](float x, float y) { return !(x < y); });
    }
    static ASX_INLINE F choose(F a, F b, F x, F y, F otherwise) {           // per lane: a <= x <= b ? y : otherwise
        F out;
        for (int i = 0; i < lanes; ++i) out.v[i] = a.v[i] <= x.v[i] && x.v[i] <= b.v[i] ? y.v[i] : otherwise.v[i];
        return out;
    }
    // Sums of neighbouring lanes: those of a, then those of b.
    static ASX_INLINE F add_adjacent(F a, F b) {
        F out;
        for (int i = 0; i < lanes / 2; ++i) out.v[i] = a.v[2 * i] + a.v[2 * i + 1], out.v[i + lanes / 2] = b.v[2 * i] + b.v[2 * i + 1];
        return out;
    }
    // The even-numbered lanes of a, then those of b; the odd-numbered ones.
    static ASX_INLINE F even_lanes_of(F a, F b) { return every_second(a, b, 0); }
    static ASX_INLINE F odd_lanes_of(F a, F b) { return every_second(a, b, 1); }
    // n floats, each in lanes / n neighbouring lanes.
    template <int n> static ASX_INLINE F spread(const float* p) {
        F out;
        for (int i = 0; i < lanes; ++i) out.v[i] = p[i * n / lanes];
        return out;
    }
    static ASX_INLINE F tag(F a, F bits) {                                      // the low 8 bits of each element replaced, bits < 256
        return zip(a, bits, [](float x, float y) { return bits_to_float((read<uint32_t>(&x) & ~255u) | read<uint32_t>(&y)); });
    }
    // Lanes where `a` is less than `best` take it, and its index.
    static ASX_INLINE void keep_least(F a, F index, F& best, F& best_index) {
        for (int i = 0; i < lanes; ++i) {
            best_index.v[i] = a.v[i] < best.v[i] ? index.v[i] : best_index.v[i];
            best.v[i] = a.v[i] < best.v[i] ? a.v[i] : best.v[i];
        }
    }
    // Sums of `lanes` rows of `lanes` floats: lane r is the sum of row r.
    static ASX_INLINE F reduce_rows(const float* rows) {
        F out = zero();
        for (int r = 0; r < lanes; ++r)
            for (int i = 0; i < lanes; ++i) out.v[r] += rows[lanes * r + i];
        return out;
    }
    // Elements of any kind as float32; every one of them is exact.
    template <class K> static ASX_INLINE F widen(const uint8_t* p) { return widen_part<K>(p, 0, lanes); }
    // Lanes first <= i < last hold the elements of p, p + 1, ...; the others are zero. Nothing else is read.
    template <class K> static ASX_INLINE F widen_part(const uint8_t* p, int64_t first, int64_t last) {
        F a = zero();
        for (int64_t i = first; i < last; ++i) a.v[i] = widen_one<K>(p + (i - first) * K::bytes);
        return a;
    }

    // --- the sixteen virtual lanes of canonical sums ---------------------------------------------------------------------
    struct Lanes {
        float v[16];
    };
    static ASX_INLINE Lanes lanes_zero() { return {}; }
    static ASX_INLINE Lanes lanes_load(const float* p) { return read<Lanes>(p); }
    template <class K> static ASX_INLINE Lanes lanes_widen(const uint8_t* p) { return lanes_widen_part<K>(p, 0, 16); }
    template <class K> static ASX_INLINE Lanes lanes_widen_part(const uint8_t* p, int64_t first, int64_t last) {
        Lanes a = {};
        for (int64_t i = first; i < last; ++i) a.v[i] = widen_one<K>(p + (i - first) * K::bytes);
        return a;
    }
    static ASX_INLINE Lanes lanes_sub(Lanes a, Lanes b) {
        for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i];
        return a;
    }
    static ASX_INLINE Lanes lanes_add_product(Lanes sum, Lanes a, Lanes b) {        // a multiplication, then an addition
        for (int i = 0; i < 16; ++i) sum.v[i] += a.v[i] * b.v[i];
        return sum;
    }
    static ASX_INLINE float lanes_reduce(Lanes a) {
        for (int half = 8; half; half /= 2)
            for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
        return a.v[0];
    }
    // Of four times sixteen lanes, the same sums.
    static ASX_INLINE void lanes_reduce_four(const float* lanes, float* out) {
        for (int i = 0; i < 4; ++i, lanes += 16) {
            const F four = add(add(load(lanes), load(lanes + 8)), add(load(lanes + 4), load(lanes + 12)));
            out[i] = (four.v[0] + four.v[2]) + (four.v[1] + four.v[3]);
        }
    }
    struct WideLanes {
        double v[16];
    };
    static ASX_INLINE WideLanes wide_zero() { return {}; }
    static ASX_INLINE WideLanes wide_add_square(WideLanes sum, Lanes a) {           // the square of a float32 is exact in float64
        for (int i = 0; i < 16; ++i) sum.v[i] += static_cast<double>(a.v[i]) * a.v[i];
        return sum;
    }
    static ASX_INLINE double wide_reduce(WideLanes a) {
        for (int half = 8; half; half /= 2)
            for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
        return a.v[0];
    }

    // --- int32 and dot products of packed words ---------------------------------------------------------------------------
    struct I {
        int32_t v[lanes];
    };
    static ASX_INLINE I int_zero() { return {}; }
    static ASX_INLINE I int_set(int32_t x) { return {{x, x, x, x}}; }
    static ASX_INLINE I truncate(F a) {     // lanes between 0 and 2^31
        I out;
        for (int i = 0; i < lanes; ++i) out.v[i] = static_cast<int32_t>(a.v[i]);
        return out;
    }
    static ASX_INLINE F to_float(I a) {
        F out;
        for (int i = 0; i < lanes; ++i) out.v[i] = static_cast<float>(a.v[i]);
        return out;
    }
    static ASX_INLINE void int_store_bytes(void* p, I a) {                      // elements 0..255
        for (int i = 0; i < lanes; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(a.v[i]);
    }
    static ASX_INLINE I int_add_adjacent(I a, I b) {
        I out;
        for (int i = 0; i < lanes / 2; ++i) out.v[i] = a.v[2 * i] + a.v[2 * i + 1], out.v[i + lanes / 2] = b.v[2 * i] + b.v[2 * i + 1];
        return out;
    }
    // Every n-th lane; zero elsewhere.
    template <int n> static ASX_INLINE I int_every(I a) {
        for (int i = 0; i < lanes; ++i) a.v[i] = i % n == 0 ? a.v[i] : 0;
        return a;
    }
    static ASX_INLINE int32_t int_reduce(I a) { return a.v[0] + a.v[1] + a.v[2] + a.v[3]; }

    static constexpr int bytes = 16;            // bytes in a register
    struct Bytes {
        uint8_t v[bytes];
    };
    static ASX_INLINE Bytes load_bytes(const void* p) { return read<Bytes>(p); }
    static ASX_INLINE Bytes load_bytes_part(const void* p, int64_t n) {
        Bytes a = {};
        for (int64_t i = 0; i < n; ++i) a.v[i] = static_cast<const uint8_t*>(p)[i];
        return a;
    }
    static ASX_INLINE Bytes set_bytes(int8_t x) {
        Bytes a;
        for (int i = 0; i < bytes; ++i) a.v[i] = static_cast<uint8_t>(x);
        return a;
    }
    // The n words (of 4 bytes) at p, over and over.
    template <int n> static ASX_INLINE Bytes repeat_words(const void* p) {
        Bytes a;
        for (int i = 0; i < lanes; ++i) __builtin_memcpy(a.v + 4 * i, static_cast<const uint8_t*>(p) + 4 * (i % n), 4);
        return a;
    }
    static ASX_INLINE F as_floats(Bytes a) { return read<F>(&a); }
    // Lane i gains the sum of the products of its four byte pairs. A target may store queries with an offset (they are
    // then unsigned bytes, 0..127 for the 7-bit family); rows are signed.
    static constexpr int offset7 = 0, offset8 = 0;
    static constexpr bool faster_7_bits = false;    // whether 7-bit queries have a quicker instruction than 8-bit ones
    static ASX_INLINE I dot_words7(I sum, Bytes query, Bytes row) { return dot_words8(sum, query, row); }
    static ASX_INLINE I dot_words8(I sum, Bytes query, Bytes row) {
        for (int i = 0; i < bytes; ++i) sum.v[i / 4] += static_cast<int8_t>(query.v[i]) * static_cast<int8_t>(row.v[i]);
        return sum;
    }
    static ASX_INLINE I sum_words(I sum, Bytes row) { return dot_words8(sum, set_bytes(1), row); }

    // Codes are not turned: with a population count per word nothing is gained.
    static constexpr Columns columns = Columns::none;

    // --- 64-bit words of binary codes --------------------------------------------------------------------------------------
    static constexpr int words = 2;
    static constexpr bool counts_along_rows =
        false;   // whether one query's bits are counted row by row, instead of word by word of several rows
    static constexpr int count_steps = 1 << 20;     // popcounts that a Counts can take before it must be widened
    struct Words {
        uint64_t v[words];
    };
    using Counts = Words;
    static ASX_INLINE Words set_word(uint64_t x) { return {{x, x}}; }
    static ASX_INLINE Words load_words(const void* p) { return read<Words>(p); }
    static ASX_INLINE Words and_words(Words a, Words b) { return {{a.v[0] & b.v[0], a.v[1] & b.v[1]}}; }
    static ASX_INLINE Words xor_words(Words a, Words b) { return {{a.v[0] ^ b.v[0], a.v[1] ^ b.v[1]}}; }
    static ASX_INLINE Counts count_zero() { return {}; }
    static ASX_INLINE Counts count_add(Counts sum, Words a) {
        for (int i = 0; i < words; ++i) sum.v[i] += static_cast<uint64_t>(__builtin_popcountll(a.v[i]));
        return sum;
    }
    static ASX_INLINE Words count_widen(Words sum, Counts a) { return {{sum.v[0] + a.v[0], sum.v[1] + a.v[1]}}; }   // sum per 64-bit lane
    static ASX_INLINE uint32_t words_not_above(Words a, Words limit) {
        return (a.v[0] <= limit.v[0] ? 1u : 0u) | (a.v[1] <= limit.v[1] ? 2u : 0u);
    }
    static ASX_INLINE void store_words(void* p, Words a) { write(p, a); }
    // From `words` rows, `step` bytes apart, of `words` (half as many) words: x[w] holds word w of all rows.
    static ASX_INLINE void load_columns(const uint8_t* p, int64_t step, Words (&x)[2]) {
        x[0] = {{read<uint64_t>(p), read<uint64_t>(p + step)}};
        x[1] = {{read<uint64_t>(p + 8), read<uint64_t>(p + step + 8)}};
    }
    static ASX_INLINE void load_half_columns(const uint8_t* p, int64_t step, Words (&x)[1]) {
        x[0] = {{read<uint64_t>(p), read<uint64_t>(p + step)}};
    }

    // --- byte tables of product quantization ---------------------------------------------------------------------------------
    static constexpr int pq8_cached = 4, pq8_streamed = 0;
    static constexpr int pq4_cached(int queries) { return queries == 1 ? 4 : 2; }
    static ASX_INLINE void fetch(const uint8_t*) {}                             // into the second-level cache
    static ASX_INLINE Bytes in_register(Bytes a) { return a; }                  // used several times, to be loaded once
    struct Table256 {
        const uint8_t* entries;
    };
    static ASX_INLINE Table256 load_table256(const uint8_t* p) { return {p}; }
    static ASX_INLINE Bytes look_up(const Table256& table, Bytes codes) {
        for (int i = 0; i < bytes; ++i) codes.v[i] = table.entries[codes.v[i]];
        return codes;
    }
    using Table16 = Table256;
    static ASX_INLINE Table16 load_table16(const uint8_t* p) { return {p}; }
    static ASX_INLINE Bytes look_up16(Table16 table, Bytes nibbles) { return look_up(table, nibbles); }
    static ASX_INLINE Bytes low_nibbles(Bytes a) {
        for (int i = 0; i < bytes; ++i) a.v[i] &= 15;
        return a;
    }
    static ASX_INLINE Bytes high_nibbles(Bytes a) {
        for (int i = 0; i < bytes; ++i) a.v[i] >>= 4;
        return a;
    }
    static ASX_INLINE Bytes average_bytes(Bytes a, Bytes b) {                   // unsigned, halves rounded up
        for (int i = 0; i < bytes; ++i) a.v[i] = static_cast<uint8_t>((a.v[i] + b.v[i] + 1) / 2);
        return a;
    }
    static ASX_INLINE Bytes add_bytes(Bytes a, Bytes b) {
        for (int i = 0; i < bytes; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] + b.v[i]);
        return a;
    }
    // The same register as 16-bit elements, little-endian.
    static ASX_INLINE Bytes add_halves(Bytes a, Bytes b) {
        return halves(a, b, [](uint32_t x, uint32_t y) { return x + y; });
    }
    static ASX_INLINE Bytes sub_halves(Bytes a, Bytes b) {
        return halves(a, b, [](uint32_t x, uint32_t y) { return x - y; });
    }
    static ASX_INLINE Bytes halves_down(Bytes a) {
        return halves(a, a, [](uint32_t x, uint32_t) { return x >> 8; });
    }
    static ASX_INLINE Bytes halves_up(Bytes a, int bits) {
        return halves(a, a, [bits](uint32_t x, uint32_t) { return x << bits; });
    }
    static ASX_INLINE Bytes set_halves(uint16_t x) {
        return halves(Bytes{}, Bytes{}, [x](uint32_t, uint32_t) { return static_cast<uint32_t>(x); });
    }
    // The lower (0) or upper (1) 16-bit elements, unsigned.
    template <int part> static ASX_INLINE F widen_halves(Bytes a) {
        F out;
        for (int i = 0; i < lanes; ++i) out.v[i] = static_cast<float>(half(a, part * lanes + i));
        return out;
    }
    static ASX_INLINE uint64_t halves_not_below(Bytes a, Bytes limit) {         // unsigned
        uint64_t mask = 0;
        for (int i = 0; i < bytes / 2; ++i) mask |= static_cast<uint64_t>(half(a, i) >= half(limit, i)) << i;
        return mask;
    }
    static ASX_INLINE Bytes max_halves(Bytes a, Bytes b) {
        return halves(a, b, [](uint32_t x, uint32_t y) { return x > y ? x : y; });
    }
    static ASX_INLINE Bytes sub_to_zero(Bytes a, Bytes b) {                     // 0 where b is larger
        return halves(a, b, [](uint32_t x, uint32_t y) { return x > y ? x - y : 0; });
    }
    static ASX_INLINE bool any_half(Bytes a) { return halves_not_below(a, set_halves(1)) != 0; }
    static ASX_INLINE void store_bytes(void* p, Bytes a) { write(p, a); }

private:
    static ASX_INLINE F every_second(F a, F b, int first) {
        F out;
        for (int i = 0; i < lanes / 2; ++i) out.v[i] = a.v[2 * i + first], out.v[i + lanes / 2] = b.v[2 * i + first];
        return out;
    }
    template <class Op> static ASX_INLINE F zip(F a, F b, Op op) {
        for (int i = 0; i < lanes; ++i) a.v[i] = op(a.v[i], b.v[i]);
        return a;
    }
    template <class Op> static ASX_INLINE uint32_t test(F a, F b, Op op) {
        uint32_t mask = 0;
        for (int i = 0; i < lanes; ++i) mask |= static_cast<uint32_t>(op(a.v[i], b.v[i])) << i;
        return mask;
    }
    static ASX_INLINE uint16_t half(const Bytes& a, int i) { return read<uint16_t>(a.v + 2 * i); }
    template <class Op> static ASX_INLINE Bytes halves(Bytes a, Bytes b, Op op) {
        Bytes out;
        for (int i = 0; i < bytes / 2; ++i) write(out.v + 2 * i, static_cast<uint16_t>(op(half(a, i), half(b, i))));
        return out;
    }
};

}  // namespace
}  // namespace asx::ASX_TARGET
