// Product quantization: tables of queries, rounded so that scans can hold them in registers.
//
// A query's table (M subspaces x K entries) is rounded to bytes. Entries of 8 subspaces become one byte by a tree of averages, rounding up, and
// only that is added in 16 bits: widening is what used to cost most. With 4 bits the first level of the tree is a sum, of entries up to 127: Zen can
// add on four ports where averages have two, which shuffles get in the way of. A byte times the entries it averages is never less than their sum, and
// sums that are too large only let rows pass. So the slack is what entries lose by rounding, the most per subspace, summed: a proven bound, because
// every row uses exactly one entry of each subspace.
//
// What makes steps, and with them the slack, smaller: the worst entries of wide subspaces may be raised (`pq_span`), and wide trees may have steps that
// are coarser than those of others by powers of two (`pq_choose_steps`). Coarse trees are added first, and the sums so far are doubled before finer
// ones follow (Horner's scheme). Sums fit 16 bits, for which entries are kept smaller where trees, times their powers, are many.
//
// Tables of whole numbers that span no more than 63 in any subspace need none of that: 4 entries add up in a byte, sums are exact, and keys are read
// off them.
//
#pragma once

#include "kernels/select.h"

namespace asx::ASX_TARGET {
namespace {

constexpr int pq_queries = 4; // most in one call
constexpr int pq_tree = 8; // entries averaged in bytes
constexpr int pq_units = 16; // trees that may have steps of their own, the last one with all after it
constexpr int pq_coarsest = 128; // times the finest step
constexpr float pq_change = 0.2f; // of the errors, which a change of the step from tree to tree has to spare: it costs the scan a loop
constexpr float pq_exact_range = 63.0f;

// How a byte is made of `pq_tree` entries that are not whole.
template <int bits> struct PqTree {
    static constexpr int levels = bits == 4 ? 2 : 3; // of averages; with 4 bits there is one of sums before
    static constexpr int averaged = 1 << levels; // what the byte stands for, times this
    static constexpr int most = 255 * averaged / pq_tree; // largest entry
    static constexpr int excess =
        levels * averaged / 2; // of the byte times `averaged` over the sum of the entries, at most; half of it as a rule
    static constexpr float cut = bits == 4 ? 4.0f : 8.0f; // see `pq_span`
};

// Whole trees one after the other, and how many times all sums are doubled before the next.
struct PqSegment {
    int32_t first, end, doublings;
};

struct alignas(64) PqHeader {
    const float* tables[pq_queries]; // for the exact keys of survivors
    double base[pq_queries]; // key = base + step * sum of averages
    double step[pq_queries];
    float slack[pq_queries];
    int64_t count;
    float sign;
    bool exact; // all tables are
    bool scaled; // rows have scales, and the numbers below are the queries' terms
    int16_t segments;
    PqSegment segment[pq_units + 1]; // of tables that are not exact, in the order of adding: coarse steps first
    uint8_t coarse[pq_units + 1]; // how many times an entry counts, by unit; 1 in the tree that is not whole
    double offset[pq_queries];
    double scaled_base[pq_queries];
    double scaled_step[pq_queries];
    double weight[pq_queries];
};

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

template <int bits> ASX_INLINE int64_t pq_whole_trees(int64_t subspaces) { return (bits == 4 ? subspaces + 1 : subspaces) / pq_tree; }

ASX_INLINE int64_t pq_unit(int64_t tree, int64_t whole) { return tree >= whole ? pq_units : tree < pq_units ? tree : pq_units - 1; }

ASX_INLINE int64_t pq_trees_of(int64_t unit, int64_t whole) { return unit < pq_units - 1 ? 1 : whole - unit; }

// What is kept of a subspace until its entries come to the same place.
struct PqSpan {
    float low, high, inverse; // of its range
    float coarse; // see `PqHeader`
};

// Adds to `widest` the widest range of each unit, in shares of those of all.
template <int bits> void pq_pack_spans(const PqHeader* header, int32_t q, int64_t subspaces, uint8_t* to, float (&widest)[pq_units + 1]) {
    constexpr int64_t entries = 1 << bits;
    const int64_t whole = pq_whole_trees<bits>(subspaces);
    float own[pq_units + 1] = {}, total = 0.0f;
    for (int64_t m = 0; m < subspaces; ++m) {
        const Range range = entry_range<entries>(header->tables[q] + m * entries, Simd::set(header->sign));
        const float width = range.high - range.low;
        write(to + m * entries, PqSpan{range.low, range.high, 1.0f / width, 1.0f});
        float& most = own[pq_unit(m / pq_tree, whole)];
        most = width > most ? width : most;
    }
    for (const float x : own) total += x;
    for (int u = 0; u <= pq_units && total > 0.0f; ++u) widest[u] += own[u] / total;
}

// Chooses how coarse the steps of trees are: the powers of two that make the sum of the errors least, as the widest ranges have it. Whatever the
// finest step is, each unit has the least power that it can do with; so from equal steps on, the unit that keeps the finest step from being finer
// takes twice the power. What 16 bits cannot hold makes all steps larger.
ASX_INLINE void pq_choose_steps(PqHeader* header, const float (&widest)[pq_units + 1], int64_t subspaces, int64_t whole) {
    const int64_t units = whole < pq_units ? whole : pq_units, partial = whole * pq_tree < subspaces;
    uint8_t coarse[pq_units];
    float least = __builtin_inff(), bound = partial ? widest[pq_units] : 0.0f; // no steps make smaller errors
    int64_t weighted = whole + partial, finest = units + partial; // trees times their steps; units with the finest step
    for (int64_t u = 0; u < units; ++u) header->coarse[u] = coarse[u] = 1, bound += widest[u] * static_cast<float>(pq_trees_of(u, whole));
    header->coarse[pq_units] = 1;
    while (true) {
        int64_t worst = pq_units, changes = 0;
        float step = widest[pq_units];
        for (int64_t u = 0; u < units; ++u) {
            const float own = widest[u] / static_cast<float>(coarse[u]);
            if (own > step) step = own, worst = u;
            changes += u > 0 && coarse[u] != coarse[u - 1];
        }
        const float crowded = static_cast<float>(weighted) / 257.0f;
        const float error =
            step * static_cast<float>(weighted) * (crowded > 1.0f ? crowded : 1.0f) * (1.0f + pq_change * static_cast<float>(changes));
        if (error < least) {
            least = error;
            for (int64_t u = 0; u < units; ++u) header->coarse[u] = coarse[u];
        }
        if (worst == pq_units || coarse[worst] == pq_coarsest || !((1.0f + pq_change) * bound < least)) break;
        if (coarse[worst] == 1 && --finest == 0) break; // all twice as coarse are what all were
        weighted += coarse[worst] * pq_trees_of(worst, whole);
        coarse[worst] *= 2;
    }
}

// Coarse steps first; neighbours of equal steps together.
ASX_INLINE void pq_make_segments(PqHeader* header, int64_t whole) {
    const int64_t units = whole < pq_units ? whole : pq_units;
    int coarsest = 1;
    for (int64_t u = 0; u < units; ++u) coarsest = header->coarse[u] > coarsest ? header->coarse[u] : coarsest;
    int16_t n = 0;
    for (int coarse = coarsest; coarse > 0; coarse /= 2) {
        for (int64_t u = 0; u < units; ++u) {
            if (header->coarse[u] != coarse) continue;
            const auto first = static_cast<int32_t>(u), end = static_cast<int32_t>(u + pq_trees_of(u, whole));
            if (n > 0 && header->segment[n - 1].end == first && header->segment[n - 1].doublings == 0)
                header->segment[n - 1].end = end;
            else
                header->segment[n++] = {first, end, 0};
        }
        if (coarse > 1) ++header->segment[n - 1].doublings;
    }
    if (n == 0 || header->segment[n - 1].doublings > 0) header->segment[n++] = {0, 0, 0}; // before the tree that is not whole
    header->segments = n;
}

// How much of a range is rounded to the finest steps, and as many times as much to coarser ones; what lies deeper below the best entry of its
// subspace is raised. A smaller span has smaller errors, which sum to `errors` steps, and raises more rows. Were ranges evenly filled, the two would
// be in balance where the shares of ranges that are cut off, times their steps, sum to errors / most; rows that matter have few entries so low, so
// that more is cut off.
template <int bits> float pq_span(const uint8_t* spans, int64_t subspaces, float widest, float errors, float most) {
    constexpr int64_t entries = 1 << bits;
    const float enough = PqTree<bits>::cut * errors / most;
    float low = 0.0f, high = widest;
    for (int step = 0; step < 6; ++step) {
        const float span = 0.5f * (low + high);
        float cut = 0.0f;
        for (int64_t m = 0; m < subspaces; ++m) {
            const auto kept = read<PqSpan>(spans + m * entries);
            const float share = kept.coarse - kept.coarse * kept.coarse * span * kept.inverse;
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
    const int64_t whole = pq_whole_trees<bits>(subspaces);
    int64_t weighted = whole * pq_tree < subspaces;
    for (int64_t u = 0; u < pq_units && u < whole; ++u) weighted += header->coarse[u] * pq_trees_of(u, whole);
    const int64_t room = 65535 / (weighted > 0 ? weighted : 1) * Tree::averaged / pq_tree;
    const auto most = static_cast<float>(room < Tree::most ? room : Tree::most);
    float widest = 0.0f, range = 0.0f; // in finest steps, and as it is
    double base = 0.0, magnitude = 0.0, error = 0.0;
    for (int64_t m = 0; m < subspaces; ++m) {
        auto kept = read<PqSpan>(to + m * entries);
        kept.coarse = header->coarse[pq_unit(m / pq_tree, whole)];
        write(to + m * entries, kept);
        const float own = kept.high - kept.low, fine = own / kept.coarse;
        range = own > range ? own : range;
        widest = fine > widest ? fine : widest;
        magnitude += static_cast<double>(-kept.low > kept.high ? -kept.low : kept.high);
    }
    // Ranges that float32 cannot divide, or steps that it cannot hold, round to nothing, and the error says so.
    const bool usable = 1e-30f < widest && range < 1e35f;
    const float errors = 0.5f * (pq_tree + Tree::excess) * static_cast<float>(weighted); // half a step an entry, and what averages exceed
    const float span = usable ? pq_span<bits>(to, subspaces, widest, errors, most) : widest;
    const float step = usable ? span / most : 1.0f;
    for (int64_t m = 0; m < subspaces; ++m) {
        const auto kept = read<PqSpan>(to + m * entries);
        const float times = kept.coarse, bottom = kept.high - times * span, low = bottom > kept.low ? bottom : kept.low;
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
    for (int32_t q = 0; q < queries->count && header->exact; ++q)
        header->exact =
            pq_pack_plain<bits>(header, q, subspaces, to + q * bytes) || pq_pack_whole<bits>(header, q, subspaces, to + q * bytes);
    if (header->exact) return;
    float widest[pq_units + 1] = {};
    for (int32_t q = 0; q < queries->count; ++q) pq_pack_spans<bits>(header, q, subspaces, to + q * bytes, widest);
    const int64_t whole = pq_whole_trees<bits>(subspaces);
    pq_choose_steps(header, widest, subspaces, whole);
    pq_make_segments(header, whole);
    for (int32_t q = 0; q < queries->count; ++q) pq_pack_rounded<bits>(header, q, subspaces, to + q * bytes);
}

} // namespace
} // namespace asx::ASX_TARGET
