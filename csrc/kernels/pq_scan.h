// Product quantization: scans with integer tables held in registers.
//
// A query's table (M subspaces x K entries) is rounded to bytes, with one step for all subspaces or, of the first few trees, four times as large a
// one (their sum is then doubled twice before the others are added). Entries of 8 subspaces become one byte by a tree of averages, rounding up, and
// only that is added in 16 bits: widening is what used to cost most. With 4 bits the first level of the tree is a sum, of entries up to 127: Zen can
// add on four ports where averages have two, which shuffles get in the way of. A byte times the entries it averages is never less than their sum, and
// sums that are too large only let rows pass. So the slack is what entries lose by rounding, the most per subspace, summed: a proven bound, because
// every row uses exactly one entry of each subspace. And the worst entries of wide subspaces may be raised, which makes steps smaller (`pq_span`).
// Sums fit 16 bits, for which entries are kept smaller where there are many trees. Tables of whole numbers that span no more than 63 in any subspace
// need none of that: 4 entries add up in a byte, sums are exact, and keys are read off them. Sums: `low` adds whole 16-bit elements (even byte + 256
// * odd byte), `high` the odd bytes; the even sums are low - (high << 8), exact modulo 2^16. Rows that pass get their canonical keys before a call
// ends, several at once, since one alone waits for every addition: what leaves this file is exact.
//
// Codes come in blocks of 64 rows, subspace by subspace. 8 bits: with VBMI a 256-entry table is four registers, looked up by two permutes and a
// blend, and serves several blocks of rows; with AVX2 it is sixteen 16-entry shuffles. 4 bits: one shuffle per nibble, the nibbles split once for up
// to 4 queries. A tree is merged as its entries come, query by query, so that of 4 queries' sums and trees most stay in 16 registers.
//
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
constexpr int pq_together = 4; // keys made at once
constexpr int pq_tree = 8; // entries averaged in bytes
constexpr int pq_exact_tree = 4; // entries of exact tables added in bytes
constexpr float pq_coarse = 4.0f; // times the other trees' steps, of the first few trees
constexpr int pq_most_coarse = 3;
constexpr float pq_exact_range = 63.0f;
constexpr int registers_per_block = kPqBlock / Simd::bytes;

// How a byte is made of `pq_tree` entries that are not whole.
template <int bits> struct PqTree {
    static constexpr int levels = bits == 4 ? 2 : 3; // of averages; with 4 bits there is one of sums before
    static constexpr int averaged = 1 << levels; // what the byte stands for, times this
    static constexpr int most = 255 * averaged / pq_tree; // largest entry
    static constexpr int excess =
        levels * averaged / 2; // of the byte times `averaged` over the sum of the entries, at most; half of it as a rule
    static constexpr float cut = bits == 4 ? 2.0f : 4.0f; // see `pq_span`
};

struct PqHeader {
    const float* tables[pq_queries]; // for the exact keys of survivors
    double base[pq_queries]; // key = base + step * sum of averages
    double step[pq_queries];
    float slack[pq_queries];
    int64_t count;
    float sign;
    bool exact; // all tables are
    bool scaled; // rows have scales, and the numbers below are the queries' terms
    int16_t coarse; // trees in front whose entries count `pq_coarse` times
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
    return {-Simd::largest(negated_low), Simd::largest(high)};
}

// Writes the rounded entries of one subspace and returns by how much they miss the exact ones at most; with `below` only where they are less.
// inverse is 1 / step, or 0 to round all to 0.
template <int64_t entries, bool below>
ASX_INLINE float round_entries(const float* table, Simd::F sign, float low, float step, float inverse, float most, uint8_t* to) {
    using S = Simd;
    auto worst = S::zero();
    for (int64_t j = 0; j < entries; j += S::lanes) {
        const auto exact = S::sub(S::mul(sign, S::load(table + j)), S::set(low));
        const auto clipped = S::min(S::max(S::mul(exact, S::set(inverse)), S::zero()), S::set(most));
        const auto entry = S::truncate(S::add(clipped, S::set(0.5f)));
        const auto miss = S::sub(exact, S::mul(S::set(step), S::to_float(entry)));
        worst = S::max(below ? miss : S::max(miss, S::sub(S::zero(), miss)), worst);
        S::int_store_bytes(to + j, entry);
    }
    return Simd::largest(worst);
}

ASX_INLINE void pq_pack_padding(uint8_t* to, int64_t from, int64_t end) {
    for (int64_t i = from; i < end; ++i) to[i] = 0;
}

// Packs a table of whole numbers 0..63, as `pq_whole` makes them: all subspaces then have one base, and nothing is to be found out by subspace.
// false: it is none.
template <int bits> bool pq_pack_plain(PqHeader* header, int32_t q, int64_t subspaces, uint8_t* to) {
    using S = Simd;
    const float* table = header->tables[q];
    const int64_t entries = subspaces << bits;
    const bool largest = header->sign > 0.0f;
    if (subspaces > 65535 / static_cast<int64_t>(pq_exact_range)) return false;
    const auto most = S::set(pq_exact_range);
    auto miss = S::zero();
    for (int64_t j = 0; j < entries; j += S::lanes) {
        const auto x = S::load(table + j);
        const auto whole = S::truncate(S::max(S::min(x, most), S::zero()));
        const auto off = S::sub(x, S::to_float(whole));
        miss = S::max(off, S::max(S::sub(S::zero(), off), miss));
        S::int_store_bytes(to + j, largest ? whole : S::truncate(S::sub(most, S::to_float(whole))));
    }
    if (S::largest(miss) != 0.0f) return false;
    pq_pack_padding(to, entries, packed_table_bytes<bits>(subspaces));
    header->base[q] = largest ? 0.0 : -static_cast<double>(pq_exact_range) * static_cast<double>(subspaces);
    header->step[q] = 1.0;
    header->slack[q] = 0.0f;
    return true;
}

// Packs a table of whole numbers whose sums bytes and 16-bit numbers can take; false: it is none.
template <int bits> bool pq_pack_whole(PqHeader* header, int32_t q, int64_t subspaces, uint8_t* to) {
    constexpr int64_t entries = 1 << bits;
    const float* table = header->tables[q];
    const auto sign = Simd::set(header->sign);
    if (subspaces > 65535 / static_cast<int64_t>(pq_exact_range)) return false;
    double base = 0.0;
    for (int64_t m = 0; m < subspaces; ++m) {
        const Range range = entry_range<entries>(table + m * entries, sign);
        if (!(range.high - range.low <= pq_exact_range) || !(range.low >= -1e4f && range.high <= 1e4f)) return false;
        if (round_entries<entries, false>(table + m * entries, sign, range.low, 1.0f, 1.0f, pq_exact_range, to + m * entries) != 0.0f)
            return false;
        if (static_cast<float>(static_cast<int32_t>(range.low)) != range.low) return false;
        base += static_cast<double>(range.low);
    }
    pq_pack_padding(to, subspaces * entries, packed_table_bytes<bits>(subspaces));
    header->base[q] = base;
    header->step[q] = 1.0;
    header->slack[q] = 0.0f;
    return true;
}

// What is kept of a subspace until its entries come to the same place.
struct PqSpan {
    float low, high, inverse; // of its range
};

template <int bits> void pq_pack_spans(const PqHeader* header, int32_t q, int64_t subspaces, uint8_t* to) {
    constexpr int64_t entries = 1 << bits;
    for (int64_t m = 0; m < subspaces; ++m) {
        const Range range = entry_range<entries>(header->tables[q] + m * entries, Simd::set(header->sign));
        write(to + m * entries, PqSpan{range.low, range.high, 1.0f / (range.high - range.low)});
    }
}

// How many trees in front have coarse steps: as many as make the sum of the errors least, which the widest ranges with either step decide.
template <int bits> int16_t pq_coarse_trees(const PqHeader* header, int64_t subspaces, const uint8_t* spans) {
    constexpr int64_t entries = 1 << bits;
    const int64_t bytes = packed_table_bytes<bits>(subspaces), trees = (subspaces + pq_tree - 1) / pq_tree;
    float front[pq_most_coarse + 1] = {}, behind = 0.0f; // widest ranges of the first trees, and of those after them
    for (int64_t m = 0; m < subspaces; ++m) {
        float range = 0.0f;
        for (int64_t q = 0; q < header->count; ++q) {
            const auto kept = read<PqSpan>(spans + q * bytes + m * entries);
            range += kept.high - kept.low;
        }
        float& widest = m < pq_most_coarse * pq_tree ? front[m / pq_tree] : behind;
        widest = range > widest ? range : widest;
    }
    int16_t best = 0;
    float least = __builtin_inff();
    for (int16_t coarse = pq_most_coarse; coarse >= 0; --coarse) { // `front` of them, `behind` of the others
        float widest = behind;
        for (int t = 0; t < coarse; ++t) widest = front[t] > pq_coarse * widest ? front[t] / pq_coarse : widest;
        const float error = widest * static_cast<float>(trees + (pq_coarse - 1) * coarse);
        if (coarse * pq_tree <= subspaces && error <= least) least = error, best = coarse;
        if (coarse > 0) behind = front[coarse - 1] > behind ? front[coarse - 1] : behind;
    }
    return best;
}

// How much of a range is rounded to fine steps, and `pq_coarse` times as much to coarse ones; what lies deeper below the best entry of its subspace
// is raised. A smaller span has smaller errors, which sum to `errors` steps, and raises more rows. Were ranges evenly filled, the two would be in
// balance where the shares of ranges that are cut off sum to errors / most; rows that matter have few entries so low, so that more is cut off.
template <int bits> float pq_span(const uint8_t* spans, int64_t subspaces, int64_t coarse, float widest, float errors, float most) {
    constexpr int64_t entries = 1 << bits;
    const float enough = PqTree<bits>::cut * errors / most;
    float low = 0.0f, high = widest;
    for (int step = 0; step < 6; ++step) {
        const float span = 0.5f * (low + high);
        float cut = 0.0f;
        for (int64_t m = 0; m < subspaces; ++m) {
            const float weight = m < coarse ? pq_coarse : 1.0f,
                        share = weight - weight * weight * span * read<PqSpan>(spans + m * entries).inverse;
            cut += share > 0.0f ? share : 0.0f;
        }
        (cut > enough ? low : high) = span;
    }
    return high;
}

template <int bits> void pq_pack_rounded(PqHeader* header, int32_t q, int64_t subspaces, uint8_t* to) {
    using Tree = PqTree<bits>;
    constexpr int64_t entries = 1 << bits;
    const float* table = header->tables[q];
    const auto sign = Simd::set(header->sign);
    const int64_t coarse = header->coarse * pq_tree; // subspaces
    const int64_t trees = (subspaces + pq_tree - 1) / pq_tree, weighted = trees + (pq_coarse - 1) * header->coarse;
    const int64_t room = 65535 / (weighted > 0 ? weighted : 1) * Tree::averaged / pq_tree;
    const auto most = static_cast<float>(room < Tree::most ? room : Tree::most);
    float widest = 0.0f;
    double base = 0.0, magnitude = 0.0, error = 0.0;
    for (int64_t m = 0; m < subspaces; ++m) {
        const auto kept = read<PqSpan>(to + m * entries);
        const float range = (kept.high - kept.low) / (m < coarse ? pq_coarse : 1.0f);
        widest = range > widest ? range : widest;
        magnitude += static_cast<double>(-kept.low > kept.high ? -kept.low : kept.high);
    }
    // Ranges that float32 cannot divide round to nothing, and the error says so.
    const bool usable = 1e-30f < widest && widest < 1e37f;
    const float errors = 0.5f * (pq_tree + Tree::excess) * static_cast<float>(weighted); // half a step an entry, and what averages exceed
    const float span = usable ? pq_span<bits>(to, subspaces, coarse, widest, errors, most) : widest;
    const float step = usable ? span / most : 1.0f;
    for (int64_t m = 0; m < subspaces; ++m) {
        const auto kept = read<PqSpan>(to + m * entries);
        const float times = m < coarse ? pq_coarse : 1.0f, bottom = kept.high - times * span, low = bottom > kept.low ? bottom : kept.low;
        const float inverse = usable ? 1.0f / (times * step) : 0.0f;
        base += static_cast<double>(low);
        error += static_cast<double>(
            round_entries<entries, true>(table + m * entries, sign, low, times * step, inverse, most, to + m * entries));
    }
    pq_pack_padding(to, subspaces * entries, packed_table_bytes<bits>(subspaces));
    header->base[q] = base;
    header->step[q] = Tree::averaged * static_cast<double>(step);
    // The canonical float32 sum adds a unit of 2^-24 of the magnitude per subspace, float32 arithmetic here at most 12 in all.
    const double slack = (error + (static_cast<double>(subspaces) + 16.0) * 0x1p-23 * magnitude) * (1.0 + 1e-6);
    header->slack[q] = magnitude < 1e38 ? static_cast<float>(slack) : __builtin_inff(); // canonical partial sums may overflow
}

template <int bits> void pq_pack(const Queries* queries, void* packed) {
    const int64_t subspaces = queries->widths[0], bytes = packed_table_bytes<bits>(subspaces);
    auto* header = static_cast<PqHeader*>(packed);
    auto* to = reinterpret_cast<uint8_t*>(header + 1);
    header->count = queries->count;
    header->sign = queries->largest ? 1.0f : -1.0f;
    header->scaled = queries->scaling.offset != nullptr;
    for (int32_t q = 0; q < queries->count; ++q) {
        header->tables[q] = reinterpret_cast<const float*>(static_cast<const uint8_t*>(queries->data) + q * queries->stride);
        if (!header->scaled) continue;
        header->offset[q] = queries->scaling.offset[q];
        header->scaled_base[q] = queries->scaling.base[q];
        header->scaled_step[q] = queries->scaling.step[q];
        header->weight[q] = queries->scaling.weight[q];
    }
    header->exact = true;
    header->coarse = 0;
    for (int32_t q = 0; q < queries->count && header->exact; ++q)
        header->exact =
            pq_pack_plain<bits>(header, q, subspaces, to + q * bytes) || pq_pack_whole<bits>(header, q, subspaces, to + q * bytes);
    if (header->exact) return;
    for (int32_t q = 0; q < queries->count; ++q) pq_pack_spans<bits>(header, q, subspaces, to + q * bytes);
    header->coarse = pq_coarse_trees<bits>(header, subspaces, to);
    for (int32_t q = 0; q < queries->count; ++q) pq_pack_rounded<bits>(header, q, subspaces, to + q * bytes);
}

// The least sum that can reach the threshold; one less for the rounding of this formula. Above 65,535: none can.
ASX_INLINE int64_t least_sum(const PqHeader* header, int q, float threshold) {
    const double sum = (static_cast<double>(threshold) - static_cast<double>(header->slack[q]) - header->base[q]) / header->step[q];
    if (!(sum > 1.0)) return 0; // negative, or NaN: everything passes
    return sum > 65537.0 ? 65536 : static_cast<int64_t>(sum) - 1;
}

// The canonical sums of a few survivors, minus them where smaller is better; codes of a row are 64 bytes apart. Never NaN: entries are finite, so that
// an infinite sum stays as it is.
template <int bits>
__attribute__((noinline)) void pq_sum_rows(const Block* block, const PqHeader* header, const Survivor* const (&rows)[pq_together],
                                           float (&out)[pq_together]) {
    const int64_t subspaces = block->pieces[0].width, byte_rows = bits == 8 ? subspaces : (subspaces + 1) / 2;
    const uint8_t* codes[pq_together];
    const float* tables[pq_together];
    float sums[pq_together];
#pragma GCC unroll 4
    for (int i = 0; i < pq_together; ++i) {
        codes[i] = block->pieces[0].base + (rows[i]->row / kPqBlock * byte_rows * kPqBlock + rows[i]->row % kPqBlock);
        tables[i] = header->tables[rows[i]->query];
        const float first = tables[i][bits == 8 ? codes[i][0] : codes[i][0] & 15];
        sums[i] = bits == 4 && subspaces > 1 ? first + tables[i][16 + (codes[i][0] >> 4)] : first;
    }
    for (int64_t b = 1; b < byte_rows; ++b)
#pragma GCC unroll 4
        for (int i = 0; i < pq_together; ++i) {
            const int code = codes[i][b * kPqBlock];
            if constexpr (bits == 8) {
                sums[i] += tables[i][256 * b + code];
            } else {
                sums[i] += tables[i][32 * b + (code & 15)];
                if (2 * b + 1 < subspaces) sums[i] += tables[i][32 * b + 16 + (code >> 4)];
            }
        }
    for (int i = 0; i < pq_together; ++i) out[i] = header->sign * sums[i];
}

// Keys of the survivors from number `first` on, and away with those below their thresholds. Their keys are sums where tables are exact; zeros are made
// anew, for the sign.
template <int bits>
__attribute__((noinline)) void pq_settle(const Block* block, const PqHeader* header, const float* thresholds, int64_t first,
                                         Survivors* survivors) {
    Survivor* items = survivors->items;
    const int64_t count = survivors->count;
    const Survivor* some[pq_together];
    float sums[pq_together];
    int n = 0;
    for (int64_t i = first; i < count; ++i) {
        if (!header->exact || items[i].key == 0.0f) some[n++] = items + i;
        if (n < pq_together && (n == 0 || i + 1 < count)) continue;
        for (int j = n; j < pq_together; ++j) some[j] = some[0];
        pq_sum_rows<bits>(block, header, some, sums);
        for (int j = 0; j < n; ++j) items[some[j] - items].key = sums[j];
        n = 0;
    }
    int64_t kept = first;
    for (int64_t i = first; i < count; ++i) {
        Survivor s = items[i];
        if (header->scaled) {
            const double term = block->terms ? static_cast<double>(block->terms[s.row]) : 0.0;
            const double scale = static_cast<double>(block->scales[s.row]);
            s.key = static_cast<float>(header->offset[s.query] + header->weight[s.query] * term +
                                       scale * (header->scaled_base[s.query] + header->scaled_step[s.query] * static_cast<double>(s.key)));
        }
        if (!(s.key < thresholds[s.query])) items[kept++] = s;
    }
    survivors->count = kept;
}

// Appends the even or odd rows of a register; their keys are what exact sums say, and otherwise made later.
template <bool exact>
ASX_INLINE void pq_append(const Block* block, const PqHeader* header, int q, int64_t row, uint64_t mask, Simd::Bytes sums,
                          Survivors* survivors) {
    uint16_t sum[Simd::bytes / 2];
    if (exact) Simd::store_bytes(sum, sums);
    for_bits(mask, [&](int i) {
        const int64_t r = row + 2 * i;
        if (r < block->rows)
            append(block, survivors, r, q, exact ? static_cast<float>(header->base[q] + static_cast<double>(sum[i])) : 0.0f);
    });
}

// Survivors among the rows of one register: 16-bit sums of its even and odd rows.
template <bool exact>
ASX_INLINE void pq_emit(const Block* block, const PqHeader* header, int q, int64_t row, int64_t least, Simd::Bytes low, Simd::Bytes high,
                        Survivors* survivors) {
    using S = Simd;
    if (least > 65535) return;
    const auto limit = S::set_halves(static_cast<uint16_t>(least)), even = S::sub_halves(low, S::halves_up(high));
    pq_append<exact>(block, header, q, row, S::halves_not_below(even, limit), even, survivors);
    pq_append<exact>(block, header, q, row + 1, S::halves_not_below(high, limit), high, survivors);
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
    const double largest = 1e38;
    if (!(__builtin_fabs(a) < largest && __builtin_fabs(b) < largest && __builtin_fabs(c) < largest))
        return {-__builtin_inff(), 0.0f, 0.0f, 0.0f}; // beyond float32: all rows pass
    return {static_cast<float>(a - 0x1p-22 * __builtin_fabs(a) - 1e-37), b_up, static_cast<float>(c),
            static_cast<float>(0x1p-22 * __builtin_fabs(c) + 1e-37)};
}

// As `pq_emit`, of rows with scales.
template <bool exact>
ASX_INLINE void pq_emit_scaled(const Block* block, const PqHeader* header, int q, int64_t row, const PqLimit& limit,
                               const PqFactors& factors, Simd::Bytes low, Simd::Bytes high, Survivors* survivors) {
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
    for (int parity = 0; parity < 2; ++parity) pq_append<exact>(block, header, q, row + parity, masks[parity], halves[parity], survivors);
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

// Of one tree.
template <int bits, bool exact> constexpr int pq_byte_rows = (exact ? pq_exact_tree : pq_tree) * bits / 8;

// Whether any sum reaches its query's limit. One answer for all of them: mostly none does.
template <int Q, int B>
ASX_INLINE bool pq_any_passes(const PqRegisters<Q, B>& low, const PqRegisters<Q, B>& high, const Simd::Bytes (&limits)[Q]) {
    using S = Simd;
    auto beyond = S::set_halves(0); // how far
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            const auto even = S::sub_halves(low.v[q][b], S::halves_up(high.v[q][b]));
            beyond = S::max_halves(beyond, S::sub_to_zero(S::max_halves(even, high.v[q][b]), limits[q]));
        }
    return S::any_half(beyond);
}

template <int Q, int B> struct PqInput {
    int64_t coarse; // rows of bytes of the trees in front that count `pq_coarse` times
    const uint8_t* at[B]; // codes of B registers of rows
    const uint8_t* tables[Q];
    const uint8_t* next; // what to fetch meanwhile, in the order of memory
};

// Adds the tree of the rows of bytes (one subspace of 8 bits, two of 4) from row i on to the sums; with `partial` only `left` rows of bytes are
// there, the others count as zero.
template <int bits, bool exact, bool fetch, bool partial, int Q, int B>
ASX_INLINE void pq_add_tree(const PqInput<Q, B>& in, int64_t i, int64_t left, PqRegisters<Q, B>& low, PqRegisters<Q, B>& high) {
    using S = Simd;
    constexpr int n = pq_byte_rows<bits, exact>;
    PqRegisters<Q, B> branches[3]; // what waits to be merged with its right neighbour, by level
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j, ++i) {
        const auto merge = [&](int q, int b, S::Bytes x) {
            int level = 0;
#pragma GCC unroll 4
            for (int k = j; k & 1; k >>= 1, ++level) {
                const auto before = branches[level].v[q][b];
                x = exact ? S::add_bytes(before, x) : S::average_bytes(before, x);
                if (bits == 4) x = S::in_register(x);
            }
            if (j < n - 1) {
                branches[level].v[q][b] = x;
            } else {
                low.v[q][b] = S::add_halves(low.v[q][b], x);
                high.v[q][b] = S::add_halves(high.v[q][b], S::halves_down(x));
                if (bits == 4) low.v[q][b] = S::in_register(low.v[q][b]), high.v[q][b] = S::in_register(high.v[q][b]);
            }
        };
        if (partial && j >= left) {
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
                for (int b = 0; b < B; ++b) merge(q, b, S::set_halves(0));
            continue;
        }
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
                for (int b = 0; b < B; ++b) merge(q, b, S::look_up(table, codes[b]));
            }
        } else {
            S::Bytes even[B], odd[B];
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) even[b] = S::low_nibbles(codes[b]), odd[b] = S::high_nibbles(codes[b]);
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q) {
                const auto first = S::load_table16(in.tables[q] + 32 * i), second = S::load_table16(in.tables[q] + 32 * i + 16);
#pragma GCC unroll 8
                for (int b = 0; b < B; ++b)
                    merge(q, b, S::in_register(S::add_bytes(S::look_up16(first, even[b]), S::look_up16(second, odd[b]))));
            }
        }
    }
}

ASX_INLINE Simd::Bytes pq_times_coarse(Simd::Bytes a) {
    static_assert(pq_coarse == 4.0f, "doubled twice");
    const auto twice = Simd::add_halves(a, a);
    return Simd::add_halves(twice, twice);
}

// Sums for B registers of rows; byte_rows: subspaces of 8 bits, pairs of 4 bits.
template <int bits, bool exact, bool fetch, int Q, int B>
ASX_INLINE void pq_sums(const PqInput<Q, B>& in, int64_t byte_rows, PqRegisters<Q, B>& low_out, PqRegisters<Q, B>& high_out) {
    constexpr int n = pq_byte_rows<bits, exact>;
    PqRegisters<Q, B> low, high;
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) low.v[q][b] = high.v[q][b] = Simd::set_halves(0);
    int64_t i = 0;
    if constexpr (!exact) {
        for (; i < in.coarse; i += n) pq_add_tree<bits, exact, fetch, false>(in, i, n, low, high);
#pragma GCC unroll 4
        for (int q = 0; q < Q && i > 0; ++q)
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) low.v[q][b] = pq_times_coarse(low.v[q][b]), high.v[q][b] = pq_times_coarse(high.v[q][b]);
    }
    for (; i + n <= byte_rows; i += n) pq_add_tree<bits, exact, fetch, false>(in, i, n, low, high);
    if (i < byte_rows) pq_add_tree<bits, exact, fetch, true>(in, i, byte_rows - i, low, high);
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
    Simd::Bytes below[Q]; // one less than the least sums, as far as 16 bits can hold them
    PqLimit limits[Q];
    in.coarse = header->coarse * pq_byte_rows<bits, exact>;
    bool all = false; // rows with sums of 0 pass
    for (int q = 0; q < Q; ++q) {
        const int real = q < header->count ? q : 0; // missing queries repeat the first, and emit nothing
        in.tables[q] = reinterpret_cast<const uint8_t*>(header + 1) + real * packed_table_bytes<bits>(subspaces);
        least[q] = q < header->count ? least_sum(header, q, thresholds[q]) : 65536;
        all |= least[q] == 0;
        below[q] = Simd::set_halves(static_cast<uint16_t>(least[q] > 0 ? least[q] - 1 : 0));
        if (header->scaled && q < header->count) limits[q] = pq_limit(header, q, thresholds[q]);
    }
    int64_t row = 0, settled = survivors->count;
    for (; row < block->rows && has_room(survivors, Q * rows_per_step); row += rows_per_step) {
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
                        pq_emit_scaled<exact>(block, header, q, r, limits[q], factors, low.v[q][b], high.v[q][b], survivors);
                }
                continue;
            }
            if (__builtin_expect(!all && !pq_any_passes(low, high, below), 1)) continue;
            for (int q = 0; q < Q; ++q)
                for (int b = 0; b < B; ++b)
                    pq_emit<exact>(block, header, q, (first + b) * Simd::bytes, least[q], low.v[q][b], high.v[q][b], survivors);
        }
        if (!exact && survivors->count - settled >= pq_together) { // their codes are still in the first-level cache
            pq_settle<bits>(block, header, thresholds, settled, survivors);
            settled = survivors->count;
        }
    }
    pq_settle<bits>(block, header, thresholds, settled, survivors);
    return row < block->rows ? row : block->rows;
}

template <int bits, bool exact, int Q>
ASX_INLINE int64_t pq_scan_as(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    constexpr int streamed = bits == 8 ? Simd::pq8_streamed : 2, cached = bits == 8 ? Simd::pq8_cached : Simd::pq4_cached(Q);
    if constexpr (Q == 1 && streamed > 0)
        if (block->ahead) return pq_scan_with<bits, exact, Q, streamed, true>(block, packed, thresholds, survivors);
    return pq_scan_with<bits, exact, Q, cached, false>(block, packed, thresholds, survivors);
}

template <int bits, int Q> int64_t pq_scan(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    return static_cast<const PqHeader*>(packed)->exact ? pq_scan_as<bits, true, Q>(block, packed, thresholds, survivors)
                                                       : pq_scan_as<bits, false, Q>(block, packed, thresholds, survivors);
}

} // namespace
} // namespace asx::ASX_TARGET
