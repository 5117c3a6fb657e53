// Product quantization: scans with integer tables held in registers (`pq_pack.h` makes them, and says what sums may miss).
//
// Sums: `low` adds whole 16-bit elements (even byte + 256 * odd byte), `high` the odd bytes; the even sums are low - (high << 8), exact modulo 2^16.
// Rows that pass get their canonical keys before a call ends, several at once, since one alone waits for every addition: what leaves this file is
// exact.
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

#include "kernels/pq_pack.h"

namespace asx::ASX_TARGET {
namespace {

constexpr int pq_together = 4; // keys made at once
constexpr int pq_exact_tree = 4; // entries of exact tables added in bytes
constexpr int registers_per_block = kPqBlock / Simd::bytes;

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
    const auto limit = S::set_halves(static_cast<uint16_t>(least)), even = S::sub_halves(low, S::halves_up(high, 8));
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
    const S::Bytes halves[2] = {S::sub_halves(low, S::halves_up(high, 8)), high};
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
            const auto even = S::sub_halves(low.v[q][b], S::halves_up(high.v[q][b], 8));
            beyond = S::max_halves(beyond, S::sub_to_zero(S::max_halves(even, high.v[q][b]), limits[q]));
        }
    return S::any_half(beyond);
}

template <int Q, int B> struct PqInput {
    const PqHeader* header;
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

// Sums for B registers of rows; byte_rows: subspaces of 8 bits, pairs of 4 bits.
template <int bits, bool exact, bool fetch, int Q, int B>
ASX_INLINE void pq_sums(const PqInput<Q, B>& in, int64_t byte_rows, PqRegisters<Q, B>& low_out, PqRegisters<Q, B>& high_out) {
    constexpr int n = pq_byte_rows<bits, exact>;
    PqRegisters<Q, B> low, high;
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) low.v[q][b] = high.v[q][b] = Simd::set_halves(0);
    const int64_t whole = byte_rows / n * n;
    if constexpr (exact) {
        for (int64_t i = 0; i < whole; i += n) pq_add_tree<bits, exact, fetch, false>(in, i, n, low, high);
    } else {
        const PqSegment *segment = in.header->segment, *last = segment + in.header->segments - 1;
        while (true) {
            for (int64_t i = segment->first * n; i < segment->end * n; i += n) pq_add_tree<bits, exact, fetch, false>(in, i, n, low, high);
            if (segment == last) break;
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
                for (int b = 0; b < B; ++b) {
                    low.v[q][b] = Simd::halves_up(low.v[q][b], segment->doublings);
                    high.v[q][b] = Simd::halves_up(high.v[q][b], segment->doublings);
                }
            ++segment;
        }
    }
    if (whole < byte_rows) pq_add_tree<bits, exact, fetch, true>(in, whole, byte_rows - whole, low, high);
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
    in.header = header;
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
