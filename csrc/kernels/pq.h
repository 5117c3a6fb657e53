// Product quantization: scans with integer tables held in registers, and the float tables and assignments they approximate.
//
// Scan. A query's table (M subspaces x K entries) is rounded to bytes with one step for all subspaces. Entries of 8 subspaces are averaged in bytes by a
// tree of three levels, rounding up, and only the averages are added in 16 bits: widening is what used to cost most. 8 times an average exceeds
// the sum of its 8 entries by 0 to 12; half of that is taken off the base and the other half joins the rounding errors, largest per subspace and
// summed, in the slack: a proven bound, because every row uses exactly one entry of each subspace. Sums fit 16 bits: an entry is at most
// min(255, 65535 / trees). Tables of whole numbers that span no more than 63 in any subspace need none of that: 4 entries add up in a byte, sums
// are exact, and keys are read off them. Sums: `low` adds whole 16-bit elements (even byte + 256 * odd byte), `high` the odd bytes; the even sums are
// low - (high << 8), exact modulo 2^16. A row that passes gets its canonical key at once, so that what leaves this file is exact.
//
// Codes come in blocks of 64 rows, subspace by subspace. 8 bits: with VBMI a 256-entry table is four registers, looked up by two permutes and a
// blend, and serves several blocks of rows; with AVX2 it is sixteen 16-entry shuffles. 4 bits: one shuffle per nibble, the nibbles split once for up to 4 queries.
// Scales. Where rows have a scale, the key is offset + weight * term + scale * (base + step * sum). A row passes if scale * (sum + b) is not
// below a + c * term - d * |term|, in float32, with a, b and d of the query such that no rounding can lose a row; its key is then made as above.
//
// One query from memory takes few blocks at a time and fetches ahead into the second-level cache, in the order of memory (block->ahead).
//
#pragma once

#include "kernels/select.h"

namespace asx::ASX_TARGET {
namespace {

constexpr int pq_queries = 4; // most in one call
constexpr int pq_tree = 8; // entries averaged in bytes
constexpr int pq_tree_excess = 12; // most that 8 * the average exceeds the sum of 8 entries by: 4 + 2 * 2 + 4 halves rounded up
constexpr int pq_exact_tree = 4; // entries of exact tables added in bytes
constexpr float pq_exact_range = 63.0f;
constexpr int registers_per_block = kPqBlock / Simd::bytes;

struct PqHeader {
    const float* tables[pq_queries]; // for the exact keys of survivors
    double base[pq_queries]; // key = base + step * sum of averages
    double step[pq_queries];
    float slack[pq_queries];
    int64_t count;
    float sign;
    bool exact; // all tables are
    bool scaled; // rows have scales, and these are the queries' terms
    double offset[pq_queries];
    double scaled_base[pq_queries];
    double scaled_step[pq_queries];
    double weight[pq_queries];
};
static_assert(sizeof(PqHeader) % 64 == 0, "packed tables stay aligned");

template <int bits> ASX_INLINE int64_t packed_table_bytes(int64_t subspaces) { return (subspaces + 1) / 2 * 2 << bits; }

template <int bits> int64_t pq_packed_bytes(const Queries* queries) {
    return static_cast<int64_t>(sizeof(PqHeader)) + pq_queries * packed_table_bytes<bits>(queries->widths[0]);
}

ASX_INLINE float largest_lane(Simd::F a) {
    float lane[Simd::lanes], most;
    Simd::store(lane, a);
    most = lane[0];
    for (int i = 1; i < Simd::lanes; ++i) most = lane[i] > most ? lane[i] : most;
    return most;
}

struct Range {
    float low, high;
};

// Of the entries of one subspace, times the sign.
template <int64_t entries> ASX_INLINE Range entry_range(const float* table, Simd::F sign) {
    using S = Simd;
    auto high = S::mul(sign, S::load(table)), negated_low = S::sub(S::zero(), high);
    for (int64_t j = S::lanes; j < entries; j += S::lanes) {
        const auto x = S::mul(sign, S::load(table + j));
        high = S::max(x, high);
        negated_low = S::max(S::sub(S::zero(), x), negated_low);
    }
    return {-largest_lane(negated_low), largest_lane(high)};
}

// Writes the rounded entries of one subspace and returns the largest rounding error. inverse is 1 / step, or 0 to round all to 0.
template <int64_t entries>
ASX_INLINE float round_entries(const float* table, Simd::F sign, float low, float step, float inverse, float most, uint8_t* to) {
    using S = Simd;
    auto worst = S::zero();
    for (int64_t j = 0; j < entries; j += S::lanes) {
        const auto exact = S::sub(S::mul(sign, S::load(table + j)), S::set(low));
        const auto clipped = S::sub(S::zero(), S::max(S::sub(S::zero(), S::mul(exact, S::set(inverse))), S::set(-most)));
        const auto entry = S::truncate(S::add(clipped, S::set(0.5f)));
        const auto miss = S::sub(exact, S::mul(S::set(step), S::to_float(entry)));
        worst = S::max(S::max(miss, S::sub(S::zero(), miss)), worst);
        S::int_store_bytes(to + j, entry);
    }
    return largest_lane(worst);
}

// Whether a table holds whole numbers whose sums bytes and 16-bit numbers can take.
template <int bits> bool is_exact(const float* table, int64_t subspaces) {
    constexpr int64_t entries = 1 << bits;
    const auto one = Simd::set(1.0f);
    if (subspaces > 65535 / static_cast<int64_t>(pq_exact_range)) return false;
    uint8_t rounded[entries];
    for (int64_t m = 0; m < subspaces; ++m) {
        const Range range = entry_range<entries>(table + m * entries, one);
        if (!(range.high - range.low <= pq_exact_range) || !(range.low >= -1e4f && range.high <= 1e4f)) return false;
        if (round_entries<entries>(table + m * entries, one, range.low, 1.0f, 1.0f, pq_exact_range, rounded) != 0.0f) return false;
        if (static_cast<float>(static_cast<int32_t>(range.low)) != range.low) return false;
    }
    return true;
}

template <int bits> void pq_pack(const Queries* queries, void* packed) {
    constexpr int64_t entries = 1 << bits;
    const int64_t subspaces = queries->widths[0];
    auto* header = static_cast<PqHeader*>(packed);
    auto* to = reinterpret_cast<uint8_t*>(header + 1);
    const auto table_of = [&](int32_t q) {
        return reinterpret_cast<const float*>(static_cast<const uint8_t*>(queries->data) + q * queries->stride);
    };
    header->count = queries->count;
    header->sign = queries->largest ? 1.0f : -1.0f;
    header->scaled = queries->scaling.offset != nullptr;
    header->exact = true;
    for (int32_t q = 0; q < queries->count && header->exact; ++q) header->exact = is_exact<bits>(table_of(q), subspaces);
    const int64_t trees = (subspaces + pq_tree - 1) / pq_tree, room = 65535 / (trees > 0 ? trees : 1);
    const auto most = header->exact ? pq_exact_range : static_cast<float>(room < 255 ? room : 255);
    const auto sign = Simd::set(header->sign);
    for (int32_t q = 0; q < queries->count; ++q, to += packed_table_bytes<bits>(subspaces)) {
        const float* table = table_of(q);
        float widest = 0.0f;
        double base = 0.0, magnitude = 0.0, error = 0.0;
        for (int64_t m = 0; m < subspaces; ++m) {
            const Range range = entry_range<entries>(table + m * entries, sign);
            widest = range.high - range.low > widest ? range.high - range.low : widest;
            base += static_cast<double>(range.low);
            magnitude += static_cast<double>(-range.low > range.high ? -range.low : range.high);
        }
        // Ranges that float32 cannot divide round to nothing, and the error says so.
        const bool usable = 1e-30f < widest && widest < 1e38f;
        const float step = usable && !header->exact ? widest / most : 1.0f, inverse = usable ? 1.0f / step : 0.0f;
        for (int64_t m = 0; m < subspaces; ++m) {
            const float low = entry_range<entries>(table + m * entries, sign).low;
            error += static_cast<double>(round_entries<entries>(table + m * entries, sign, low, step, inverse, most, to + m * entries));
        }
        for (int64_t i = subspaces * entries; i < packed_table_bytes<bits>(subspaces); ++i) to[i] = 0;
        if (header->scaled) {
            header->offset[q] = queries->scaling.offset[q];
            header->scaled_base[q] = queries->scaling.base[q];
            header->scaled_step[q] = queries->scaling.step[q];
            header->weight[q] = queries->scaling.weight[q];
        }
        header->tables[q] = table;
        header->base[q] = base;
        header->step[q] = 1.0;
        header->slack[q] = 0.0f;
        if (header->exact) continue;
        const double half_excess = 0.5 * pq_tree_excess * static_cast<double>(trees) * static_cast<double>(step);
        error += half_excess;
        header->base[q] = base - half_excess;
        header->step[q] = pq_tree * static_cast<double>(step);
        // The canonical float32 sum adds a unit of 2^-24 of the magnitude per subspace, float32 arithmetic here at most 12 in all.
        const double slack = (error + (static_cast<double>(subspaces) + 16.0) * 0x1p-23 * magnitude) * (1.0 + 1e-6);
        header->slack[q] = magnitude < 1e38 ? static_cast<float>(slack) : __builtin_inff(); // canonical partial sums may overflow
    }
}

// The least sum that can reach the threshold; one less for the rounding of this formula. Above 65,535: none can.
ASX_INLINE int64_t least_sum(const PqHeader* header, int q, float threshold) {
    const double sum = (static_cast<double>(threshold) - static_cast<double>(header->slack[q]) - header->base[q]) / header->step[q];
    if (!(sum > 1.0)) return 0; // negative, or NaN: everything passes
    return sum > 65537.0 ? 65536 : static_cast<int64_t>(sum) - 1;
}

// The canonical sum of one row, minus it where smaller is better: its codes are 64 bytes apart. Never NaN: entries are finite, so that an
// infinite sum stays as it is.
template <int bits> __attribute__((noinline)) float pq_key(const PqHeader* header, int q, const uint8_t* codes, int64_t subspaces) {
    const float* table = header->tables[q];
    float sum = 0.0f;
    for (int64_t m = 0; m < subspaces; ++m, table += 1 << bits) {
        const int code = bits == 8 ? codes[m * kPqBlock] : codes[m / 2 * kPqBlock] >> (m % 2 * 4) & 15;
        sum = m == 0 ? table[code] : sum + table[code];
    }
    return header->sign * sum;
}

// Survivors among the rows of one register: 16-bit sums of its even and odd rows.
template <int bits, bool exact>
ASX_INLINE void pq_emit(const Block* block, const PqHeader* header, int q, int64_t row, const uint8_t* codes, float threshold,
                        int64_t least, Simd::Bytes low, Simd::Bytes high, Survivors* survivors) {
    using S = Simd;
    if (least > 65535) return;
    const auto limit = S::set_halves(static_cast<uint16_t>(least));
    const auto even_sums = S::sub_halves(low, S::halves_up(high));
    const uint64_t even = S::halves_not_below(even_sums, limit), odd = S::halves_not_below(high, limit);
    if (__builtin_expect((even | odd) == 0, 1)) return;
    const uint64_t masks[2] = {even, odd};
    uint16_t sums[2][S::bytes / 2];
    if (exact) S::store_bytes(sums[0], even_sums), S::store_bytes(sums[1], high);
    for (int parity = 0; parity < 2; ++parity)
        for_bits(masks[parity], [&](int i) {
            const int64_t lane = 2 * i + parity, r = row + lane;
            if (r >= block->rows || (block->allowed && !block->allowed[r])) return;
            float key = exact ? static_cast<float>(header->base[q] + static_cast<double>(sums[parity][i])) : 0.0f;
            if (key == 0.0f) key = pq_key<bits>(header, q, codes + lane, block->pieces[0].width); // which knows the sign of 0
            if (!(key < threshold)) append(block, survivors, r, q, key);
        });
}

// Per register of rows: the scales and terms of its even and of its odd rows, in two halves each, and how large the terms are.
struct PqFactors {
    Simd::F scale[2][2], term[2][2], size[2][2];
};

ASX_INLINE void pq_even_and_odd(const float* from, int64_t rows, Simd::F (&out)[2][2]) {
    using S = Simd;
    for (int part = 0; part < 2; ++part) {
        S::F x[2];
        for (int i = 0; i < 2; ++i) {
            const int64_t first = (2 * part + i) * S::lanes, left = rows - first;
            x[i] = left >= S::lanes ? S::load(from + first) : left > 0 ? S::load_part(from + first, left) : S::zero();
        }
        out[0][part] = S::even_lanes_of(x[0], x[1]), out[1][part] = S::odd_lanes_of(x[0], x[1]);
    }
}

// What a query asks of scaled sums: scale * (sum + b) >= a + c * term - d * |term|.
struct PqLimit {
    float a, b, c, d;
};

ASX_INLINE PqLimit pq_limit(const PqHeader* header, int q, float threshold) {
    const double step = header->scaled_step[q] * header->step[q], from = header->offset[q], to = static_cast<double>(threshold);
    const double b =
        (header->scaled_base[q] / header->scaled_step[q] + header->base[q] + static_cast<double>(header->slack[q])) / header->step[q];
    const double a = (to - from) / step - 0x1p-22 * (__builtin_fabs(to) + __builtin_fabs(from)) / step;
    const double c = -header->weight[q] / step;
    const auto b_up = static_cast<float>(b + 0x1p-20 * (65536.0 + __builtin_fabs(b)));
    if (!(__builtin_fabs(c) < 1e38)) return {-__builtin_inff(), b_up, 0.0f, 0.0f}; // beyond float32: all rows pass
    return {static_cast<float>(a - 0x1p-22 * __builtin_fabs(a) - 1e-37), b_up, static_cast<float>(c),
            static_cast<float>(0x1p-22 * __builtin_fabs(c) + 1e-37)};
}

// As `pq_emit`, of rows with scales.
template <int bits, bool exact>
ASX_INLINE void pq_emit_scaled(const Block* block, const PqHeader* header, int q, int64_t row, const uint8_t* codes, float threshold,
                               const PqLimit& limit, const PqFactors& factors, Simd::Bytes low, Simd::Bytes high, Survivors* survivors) {
    using S = Simd;
    const S::Bytes halves[2] = {S::sub_halves(low, S::halves_up(high)), high};
    uint64_t masks[2] = {0, 0};
    for (int parity = 0; parity < 2; ++parity) {
        const S::F of_sums[2] = {S::widen_halves<0>(halves[parity]), S::widen_halves<1>(halves[parity])};
        for (int part = 0; part < 2; ++part) {
            auto least = S::set(limit.a);
            if (block->terms)
                least =
                    S::fma(S::set(limit.c), factors.term[parity][part], S::sub(least, S::mul(S::set(limit.d), factors.size[parity][part])));
            const auto scaled = S::mul(factors.scale[parity][part], S::add(of_sums[part], S::set(limit.b)));
            masks[parity] |= static_cast<uint64_t>(S::not_less(scaled, least)) << part * S::lanes;
        }
    }
    if (__builtin_expect((masks[0] | masks[1]) == 0, 1)) return;
    uint16_t sums[2][S::bytes / 2];
    for (int parity = 0; parity < 2; ++parity) S::store_bytes(sums[parity], halves[parity]);
    for (int parity = 0; parity < 2; ++parity)
        for_bits(masks[parity], [&](int i) {
            const int64_t lane = 2 * i + parity, r = row + lane;
            if (r >= block->rows || (block->allowed && !block->allowed[r])) return;
            float sum = exact ? static_cast<float>(header->base[q] + static_cast<double>(sums[parity][i])) : 0.0f;
            if (sum == 0.0f) sum = pq_key<bits>(header, q, codes + lane, block->pieces[0].width);
            const double term = block->terms ? static_cast<double>(block->terms[r]) : 0.0, scale = static_cast<double>(block->scales[r]);
            const auto key = static_cast<float>(header->offset[q] + header->weight[q] * term +
                                                scale * (header->scaled_base[q] + header->scaled_step[q] * static_cast<double>(sum)));
            if (!(key < threshold)) append(block, survivors, r, q, key);
        });
}

// Pointers to `B` registers of codes from register `first` on; beyond the last block they repeat it (its rows are then out of range).
template <int B> ASX_INLINE void pq_registers(const Block* block, int64_t first, int64_t bytes_per_block, const uint8_t* (&at)[B]) {
    const int64_t last = (block->rows + kPqBlock - 1) / kPqBlock - 1;
    for (int b = 0; b < B; ++b) {
        const int64_t i = (first + b) / registers_per_block, part = (first + b) % registers_per_block;
        at[b] = block->pieces[0].base + (i < last ? i : last) * bytes_per_block + part * Simd::bytes;
    }
}

template <int Q, int B> struct PqRegisters {
    Simd::Bytes v[Q][B];
};

template <int Q, int B> struct PqInput {
    const uint8_t* at[B]; // codes of B registers of rows
    const uint8_t* tables[Q];
    const uint8_t* next; // what to fetch meanwhile, in the order of memory
};

// Entries of two subspaces, or of two groups of them.
template <bool exact> ASX_INLINE Simd::Bytes pq_merge(Simd::Bytes a, Simd::Bytes b) {
    return exact ? Simd::add_bytes(a, b) : Simd::average_bytes(a, b);
}

// The codes of one row of bytes (one subspace of 8 bits, two of 4) looked up for Q queries and B registers.
template <int bits, bool exact, bool fetch, int Q, int B> ASX_INLINE void pq_look_up(const PqInput<Q, B>& in, int64_t i,
                                                                                     PqRegisters<Q, B>& out) {
    using S = Simd;
    S::Bytes codes[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
        if (fetch) S::fetch(in.next + S::bytes * (B * i + b));
        codes[b] = S::in_register(S::load_bytes(in.at[b] + kPqBlock * i));
    }
    if constexpr (bits == 8) {
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
            const auto table = S::load_table256(in.tables[q] + 256 * i);
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) out.v[q][b] = S::look_up(table, codes[b]);
        }
    } else {
        S::Bytes even[B], odd[B];
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) even[b] = S::low_nibbles(codes[b]), odd[b] = S::high_nibbles(codes[b]);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
            const auto first = S::load_table16(in.tables[q] + 32 * i), second = S::load_table16(in.tables[q] + 32 * i + 16);
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) out.v[q][b] = pq_merge<exact>(S::look_up16(first, even[b]), S::look_up16(second, odd[b]));
        }
    }
}

// Averages, or exact sums, of `n` rows of bytes from row i on; with `partial` only `left` of them are there, the others count as zero.
template <int bits, bool exact, bool fetch, int n, bool partial, int Q, int B>
ASX_INLINE void pq_tree_of(const PqInput<Q, B>& in, int64_t i, int64_t left, PqRegisters<Q, B>& out) {
    if (partial && left <= 0) {
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) out.v[q][b] = Simd::set_halves(0);
    } else if constexpr (n == 1) {
        pq_look_up<bits, exact, fetch>(in, i, out);
    } else {
        PqRegisters<Q, B> other;
        pq_tree_of<bits, exact, fetch, n / 2, partial>(in, i, left, out);
        pq_tree_of<bits, exact, fetch, n / 2, partial>(in, i + n / 2, left - n / 2, other);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) out.v[q][b] = pq_merge<exact>(out.v[q][b], other.v[q][b]);
    }
}

template <int Q, int B> ASX_INLINE void pq_widen(const PqRegisters<Q, B>& sum, PqRegisters<Q, B>& low, PqRegisters<Q, B>& high) {
    using S = Simd;
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            low.v[q][b] = S::add_halves(low.v[q][b], sum.v[q][b]);
            high.v[q][b] = S::add_halves(high.v[q][b], S::halves_down(sum.v[q][b]));
        }
}

// Sums for B registers of rows; byte_rows: subspaces of 8 bits, pairs of 4 bits.
template <int bits, bool exact, bool fetch, int Q, int B>
ASX_INLINE void pq_sums(const PqInput<Q, B>& in, int64_t byte_rows, PqRegisters<Q, B>& low_out, PqRegisters<Q, B>& high_out) {
    constexpr int n = (exact ? pq_exact_tree : pq_tree) * bits / 8;
    PqRegisters<Q, B> low, high, sum;
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) low.v[q][b] = high.v[q][b] = Simd::set_halves(0);
    int64_t i = 0;
    for (; i + n <= byte_rows; i += n) {
        pq_tree_of<bits, exact, fetch, n, false>(in, i, n, sum);
        pq_widen(sum, low, high);
    }
    if (i < byte_rows) {
        pq_tree_of<bits, exact, fetch, n, true>(in, i, byte_rows - i, sum);
        pq_widen(sum, low, high);
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) low_out.v[q][b] = low.v[q][b], high_out.v[q][b] = high.v[q][b];
}

template <int bits, bool exact, int Q, int B, bool fetch>
ASX_INLINE int64_t pq_scan_with(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    constexpr int registers = B > registers_per_block ? B : registers_per_block;
    constexpr int64_t rows_per_step = registers * Simd::bytes; // whole blocks, so that a scan can stop between them
    const auto* header = static_cast<const PqHeader*>(packed);
    const int64_t subspaces = block->pieces[0].width, byte_rows = bits == 8 ? subspaces : (subspaces + 1) / 2;
    PqInput<Q, B> in;
    int64_t least[Q];
    PqLimit limits[Q];
    for (int q = 0; q < Q; ++q) {
        const int real = q < header->count ? q : 0; // missing queries repeat the first, and emit nothing
        in.tables[q] = reinterpret_cast<const uint8_t*>(header + 1) + real * packed_table_bytes<bits>(subspaces);
        least[q] = q < header->count ? least_sum(header, q, thresholds[q]) : 65536;
        if (header->scaled && q < header->count) limits[q] = pq_limit(header, q, thresholds[q]);
    }
    for (int64_t row = 0; row < block->rows; row += rows_per_step) {
        if (!has_room(survivors, Q * rows_per_step)) return row;
        for (int part = 0; part < registers; part += B) {
            const int64_t first = row / Simd::bytes + part;
            PqRegisters<Q, B> low, high;
            pq_registers<B>(block, first, byte_rows * kPqBlock, in.at);
            in.next = in.at[0] + block->ahead;
            pq_sums<bits, exact, fetch>(in, byte_rows, low, high);
            if (bits == 4 && header->scaled) {
                for (int b = 0; b < B; ++b) {
                    const int64_t r = (first + b) * Simd::bytes;
                    if (r >= block->rows) break;
                    PqFactors factors;
                    pq_even_and_odd(block->scales + r, block->rows - r, factors.scale);
                    if (block->terms) {
                        pq_even_and_odd(block->terms + r, block->rows - r, factors.term);
                        for (int parity = 0; parity < 2; ++parity)
                            for (int part = 0; part < 2; ++part) {
                                const auto term = factors.term[parity][part];
                                factors.size[parity][part] = Simd::max(term, Simd::sub(Simd::zero(), term));
                            }
                    }
                    for (int q = 0; q < Q && q < header->count; ++q)
                        pq_emit_scaled<bits, exact>(block, header, q, r, in.at[b], thresholds[q], limits[q], factors, low.v[q][b],
                                                    high.v[q][b], survivors);
                }
                continue;
            }
            for (int q = 0; q < Q; ++q)
                for (int b = 0; b < B; ++b)
                    pq_emit<bits, exact>(block, header, q, (first + b) * Simd::bytes, in.at[b], thresholds[q], least[q], low.v[q][b],
                                         high.v[q][b], survivors);
        }
    }
    return block->rows;
}

template <int bits, bool exact, int Q>
ASX_INLINE int64_t pq_scan_as(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    constexpr int streamed = bits == 8 ? Simd::pq8_streamed : 2, cached = bits == 8 ? Simd::pq8_cached : Q == 1 ? 4 : 2;
    if constexpr (Q == 1 && streamed > 0)
        if (block->ahead) return pq_scan_with<bits, exact, Q, streamed, true>(block, packed, thresholds, survivors);
    return pq_scan_with<bits, exact, Q, cached, false>(block, packed, thresholds, survivors);
}

template <int bits, int Q> int64_t pq_scan(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    return static_cast<const PqHeader*>(packed)->exact ? pq_scan_as<bits, true, Q>(block, packed, thresholds, survivors)
                                                       : pq_scan_as<bits, false, Q>(block, packed, thresholds, survivors);
}

// --- float tables and assignment: codewords in lanes, dims in rising order, multiply then add ---------------------------------

template <bool squared> ASX_INLINE void float_table(const float* query, const float* codebook, int64_t dims, int64_t codewords,
                                                    int64_t padded, float* out) {
    using S = Simd;
    for (int64_t j = 0; j < codewords; j += S::lanes) {
        auto sum = S::zero();
        for (int64_t s = 0; s < dims; ++s) {
            const auto q = S::set(query[s]), c = S::load(codebook + s * padded + j);
            const auto d = squared ? S::sub(q, c) : q;
            sum = S::add(sum, S::mul(d, squared ? d : c));
        }
        if (j + S::lanes <= codewords) {
            S::store(out + j, sum);
        } else {
            float lane[S::lanes];
            S::store(lane, sum);
            for (int64_t i = j; i < codewords; ++i) out[i] = lane[i - j];
        }
    }
}

void pq_table(const float* query, const float* codebook, int64_t dims, int64_t codewords, int64_t padded, bool squared, float* out) {
    if (squared)
        float_table<true>(query, codebook, dims, codewords, padded, out);
    else
        float_table<false>(query, codebook, dims, codewords, padded, out);
}

// --- assignment: rows in lanes, codewords broadcast ----------------------------------------------------------------------------
//
// Half the squared distance is |x|^2/2 + |c|^2/2 - x.c, one FMA an element where the canonical sum takes three operations, on elements minus
// the codewords' mean so that little cancels. The number of a codeword replaces the low 8 bits of its distance; two minima and a maximum
// then keep the two least. The least is the canonical answer if the second is farther away than the errors of both sides allow, which
// all but some 0.1% of rows pass; the others are settled by canonical sums. The errors, in units of u = 2^-24 times (|x| + radius)^2, for
// two codewords: 2 S for the products, S + 2 for the canonical sums, 4 for norms and centering; the tags add 2^-15 of either distance.

// The canonical answer. Padding codewords are infinite, so they never come first.
__attribute__((noinline)) void assign_canonically(const PqCodebook* book, const float* row, int32_t* out) {
    using S = Simd;
    alignas(64) float iota[S::lanes];
    for (int i = 0; i < S::lanes; ++i) iota[i] = static_cast<float>(i);
    auto best = S::set(__builtin_inff()), best_index = S::load(iota);
    for (int64_t j = 0; j < book->codewords; j += S::lanes) {
        auto sum = S::zero();
        for (int64_t s = 0; s < book->dims; ++s) {
            const auto d = S::sub(S::set(row[s]), S::load(book->canonical + s * book->padded + j));
            sum = S::add(sum, S::mul(d, d));
        }
        S::keep_least(sum, S::add(S::load(iota), S::set(static_cast<float>(j))), best, best_index);
    }
    float least[S::lanes], index[S::lanes];
    S::store(least, best);
    S::store(index, best_index);
    int winner = 0;
    for (int i = 1; i < S::lanes; ++i)
        if (least[i] < least[winner] || (least[i] == least[winner] && index[i] < index[winner])) winner = i;
    *out = static_cast<int32_t>(index[winner]);
}

// Half the squared distance of V registers of rows to one tile of codewords after the other; the two least of every row, tagged.
// rows: (dims, V registers), minus the rows; half_squares: of the rows.
template <int V, int C>
ASX_INLINE void nearest_two(const PqCodebook* book, const float* rows, const Simd::F (&half_squares)[V], Simd::F (&first)[V],
                            Simd::F (&second)[V]) {
    using S = Simd;
    const float* tile = book->tiles;
    for (int64_t j = 0; j < book->codewords; j += kPqTile, tile += (book->dims + 2) * kPqTile)
        for (int part = 0; part < kPqTile; part += C) {
            const float *half_norms = tile + part, *tags = half_norms + kPqTile, *codewords = tags + kPqTile;
            S::F half[V][C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) half[v][c] = S::add(half_squares[v], S::as_floats(S::repeat_words<1>(half_norms + c)));
            for (int64_t s = 0; s < book->dims; ++s) {
                S::F x[V];
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) x[v] = S::load(rows + (s * V + v) * S::lanes);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) {
                    const auto codeword = S::as_floats(S::repeat_words<1>(codewords + s * kPqTile + c));
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) half[v][c] = S::fma(x[v], codeword, half[v][c]);
                }
            }
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const auto tag = S::as_floats(S::repeat_words<1>(tags + c));
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) {
                    const auto tagged = S::tag(half[v][c], tag);
                    second[v] = S::min(S::max(tagged, first[v]), second[v]);
                    first[v] = S::min(tagged, first[v]);
                }
            }
        }
}

void pq_assign(const PqCodebook* book, const float* rows, int64_t stride, int64_t count, float* workspace, int32_t* out,
               int64_t out_stride) {
    using S = Simd;
    constexpr int V = 2, C = S::lanes == 16 ? 8 : 4, together = V * S::lanes;
    static_assert(together <= kPqAssigned, "fits the workspace");
    if (book->codewords > 256) {
        for (int64_t i = 0; i < count; ++i) assign_canonically(book, rows + i * stride, out + i * out_stride);
        return;
    }
    for (int64_t start = 0; start < count; start += together) {
        const float* from = rows + start * stride;
        const int64_t here = count - start < together ? count - start : together;
        for (int64_t r = 0; r < together; ++r) {
            const float* row = from + (r < here ? r : 0) * stride;
            for (int64_t s = 0; s < book->dims; ++s) workspace[s * together + r] = book->center[s] - row[s];
        }
        S::F squares[V], half_squares[V], first[V], second[V];
        for (int v = 0; v < V; ++v) squares[v] = S::zero();
        for (int64_t s = 0; s < book->dims; ++s)
            for (int v = 0; v < V; ++v) {
                const auto x = S::load(workspace + s * together + v * S::lanes);
                squares[v] = S::fma(x, x, squares[v]);
            }
        for (int v = 0; v < V; ++v) {
            half_squares[v] = S::mul(squares[v], S::set(0.5f));
            first[v] = second[v] = S::set(__builtin_inff());
        }
        nearest_two<V, C>(book, workspace, half_squares, first, second);
        for (int v = 0; v < V; ++v) {
            float best[S::lanes];
            S::store(best, first[v]);
            const auto reach = S::add(S::sqrt(squares[v]), S::set(book->radius));
            const auto square = S::mul(reach, reach);
            const auto error = S::add(S::mul(square, S::set(static_cast<float>(2 * book->dims + 16) * 0x1p-23f)), S::set(1e-36f));
            const auto margin = S::add(error, S::mul(second[v], S::set(0x1.1p-14f)));
            const uint32_t doubtful = S::not_less(S::add(first[v], margin), second[v]) | S::not_less(square, S::set(1e37f));
            for (int i = 0; i < S::lanes && v * S::lanes + i < here; ++i) {
                const int64_t r = v * S::lanes + i;
                int32_t* to = out + (start + r) * out_stride;
                if (doubtful >> i & 1)
                    assign_canonically(book, from + r * stride, to);
                else
                    *to = static_cast<int32_t>(read<uint32_t>(best + i) & 255u);
            }
        }
    }
}

// --- anisotropic codes: rows in lanes, codewords broadcast; multiply, then add, as protocol.py says, so that all targets agree ------

// The codeword of least loss for V registers of rows: squared length + p * (extra * p - pull), p being the product of row and codeword.
template <int V, int C>
ASX_INLINE void least_loss(const PqLoss* loss, const float* tile, const float* rows, const Simd::F (&pull)[V], Simd::F (&index)[V]) {
    using S = Simd;
    const auto extra = S::set(loss->extra);
    S::F least[V];
    for (int v = 0; v < V; ++v) least[v] = S::set(__builtin_inff()), index[v] = S::zero();
    for (int64_t j = 0; j < loss->codewords; j += kPqTile, tile += (loss->dims + 1) * kPqTile)
        for (int part = 0; part < kPqTile; part += C) {
            const float *squares = tile + part, *codewords = squares + kPqTile;
            S::F product[V][C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) product[v][c] = S::zero();
            for (int64_t s = 0; s < loss->dims; ++s) {
                S::F x[V];
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) x[v] = S::load(rows + (s * V + v) * S::lanes);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) {
                    const auto codeword = S::as_floats(S::template repeat_words<1>(codewords + s * kPqTile + c));
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) product[v][c] = S::add(product[v][c], S::mul(x[v], codeword));
                }
            }
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const auto square = S::set(squares[c]), number = S::set(static_cast<float>(j + part + c));
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) {
                    const auto p = product[v][c];
                    S::keep_least(S::add(square, S::mul(p, S::sub(S::mul(extra, p), pull[v]))), number, least[v], index[v]);
                }
            }
        }
}

void pq_descend(const PqLoss* loss, const float* units, int64_t width, int64_t stride, const float* lengths, int64_t count,
                float* workspace, int32_t* codes) {
    using S = Simd;
    constexpr int V = 2, C = S::lanes == 16 ? 8 : 4, together = V * S::lanes;
    static_assert(together <= kPqAssigned, "fits the workspace");
    const int64_t subspaces = loss->subspaces, dims = loss->dims, all = subspaces * dims;
    const int64_t tile_floats = (loss->codewords + kPqTile - 1) / kPqTile * (dims + 1) * kPqTile;
    float *rows = workspace, *along = rows + all * together, *left = along + subspaces * together, *chosen = left + subspaces * together;
    const auto twice_extra = S::set(loss->extra + loss->extra);
    for (int64_t start = 0; start < count; start += together) {
        const int64_t here = count - start < together ? count - start : together;
        for (int64_t r = 0; r < together; ++r) {
            const float* unit = units + (start + (r < here ? r : 0)) * stride;
            for (int64_t i = 0; i < width; ++i) rows[i * together + r] = unit[i];
            for (int64_t i = width; i < all; ++i) rows[i * together + r] = 0.0f;
        }
        // What is left along the rows of a subspace: its part of the length, minus what the codewords of `chosen` take off.
        const auto leave = [&](int64_t m) {
            const float *x = rows + m * dims * together, *book = loss->codebooks + m * loss->codewords * dims;
            for (int64_t r = 0; r < together; ++r) {
                const float* codeword = book + static_cast<int64_t>(chosen[m * together + r]) * dims;
                float product = 0.0f;
                for (int64_t s = 0; s < dims; ++s) product += x[s * together + r] * codeword[s];
                left[m * together + r] = along[m * together + r] - product;
            }
        };
        alignas(64) float length_of[together], totals[together];
        for (int64_t r = 0; r < together; ++r) length_of[r] = lengths[start + (r < here ? r : 0)];
        S::F length[V], total[V];
        for (int v = 0; v < V; ++v) length[v] = S::load(length_of + v * S::lanes), total[v] = S::zero();
        for (int64_t m = 0; m < subspaces; ++m) {
            for (int v = 0; v < V; ++v) {
                auto square = S::zero();
                for (int64_t s = 0; s < dims; ++s) {
                    const auto x = S::load(rows + ((m * dims + s) * V + v) * S::lanes);
                    square = S::add(square, S::mul(x, x));
                }
                S::store(along + (m * V + v) * S::lanes, S::mul(length[v], square));
            }
            for (int64_t r = 0; r < together; ++r)
                chosen[m * together + r] = static_cast<float>(codes[(start + (r < here ? r : 0)) * subspaces + m]);
            leave(m);
            for (int v = 0; v < V; ++v) total[v] = S::add(total[v], S::load(left + (m * V + v) * S::lanes));
        }
        for (int64_t sweep = 0; sweep < loss->sweeps; ++sweep)
            for (int64_t m = 0; m < subspaces; ++m) {
                S::F others[V], pull[V], index[V];
                for (int v = 0; v < V; ++v) {
                    others[v] = S::sub(total[v], S::load(left + (m * V + v) * S::lanes));
                    const auto further = S::mul(twice_extra, S::add(others[v], S::load(along + (m * V + v) * S::lanes)));
                    pull[v] = S::add(S::add(length[v], length[v]), further);
                }
                least_loss<V, C>(loss, loss->tiles + m * tile_floats, rows + m * dims * together, pull, index);
                for (int v = 0; v < V; ++v) S::store(chosen + (m * V + v) * S::lanes, index[v]);
                leave(m);
                for (int v = 0; v < V; ++v) total[v] = S::add(others[v], S::load(left + (m * V + v) * S::lanes));
            }
        for (int v = 0; v < V; ++v) S::store(totals + v * S::lanes, total[v]);
        for (int64_t r = 0; r < here; ++r)
            if (length_of[r] > 0.0f && __builtin_fabsf(totals[r]) < __builtin_inff())
                for (int64_t m = 0; m < subspaces; ++m) codes[(start + r) * subspaces + m] = static_cast<int32_t>(chosen[m * together + r]);
    }
}

} // namespace
} // namespace asx::ASX_TARGET
