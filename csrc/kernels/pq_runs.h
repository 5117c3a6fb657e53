// Product quantization for inverted lists: runs of rows here and there for one query, and the keys of all rows, which are centroids then.
#pragma once

#include "kernels/pq_scan.h"

namespace asx::ASX_TARGET {
namespace {

constexpr int64_t pq_run_fetched = 2048; // bytes of the next run

template <bool exact, int bits, int B>
ASX_INLINE void pq_scan_step(const Block* block, const PqHeader* header, PqInput<1, B>& in, int64_t row, int64_t byte_rows, int64_t least,
                             const Simd::Bytes (&below)[1], const uint8_t* next, Survivors* survivors) {
    PqRegisters<1, B> low, high;
    pq_registers<B>(block, row / Simd::bytes, byte_rows * kPqBlock, in.at);
    in.next = next;
    pq_sums<bits, exact, true>(in, byte_rows, low, high);
    if (__builtin_expect(least > 0 && !pq_any_passes(low, high, below), 1)) return;
    for (int b = 0; b < B; ++b) pq_emit<exact>(block, header, 0, row + b * Simd::bytes, least, low.v[0][b], high.v[0][b], survivors);
}

template <int bits, bool exact>
ASX_INLINE int64_t pq_scan_runs(const PqRun* runs, int64_t count, int64_t subspaces, const void* packed, float threshold,
                                Survivors* survivors) {
    const auto* header = static_cast<const PqHeader*>(packed);
    const int64_t byte_rows = bits == 8 ? subspaces : (subspaces + 1) / 2, least = least_sum(header, 0, threshold);
    const Simd::Bytes below[1] = {Simd::set_halves(static_cast<uint16_t>(least > 0 ? least - 1 : 0))};
    PqInput<1, 1> one;
    PqInput<1, 2> two;
    one.tables[0] = two.tables[0] = reinterpret_cast<const uint8_t*>(header + 1);
    one.header = two.header = header;
    Block block = {};
    block.n_pieces = 1;
    block.pieces[0].width = subspaces;
    int64_t n = 0;
    for (; n < count && has_room(survivors, runs[n].rows + 2 * kPqBlock); ++n) {
        block.pieces[0].base = runs[n].codes;
        block.rows = runs[n].rows;
        const uint8_t* next = runs[n + 1 < count ? n + 1 : n].codes;
        const int64_t before = survivors->count;
        for (int64_t row = 0; row < block.rows;) {
            if (block.rows - row > Simd::bytes) {
                pq_scan_step<exact, bits>(&block, header, two, row, byte_rows, least, below, next, survivors);
                row += 2 * Simd::bytes, next += 2 * Simd::bytes * byte_rows;
            } else {
                pq_scan_step<exact, bits>(&block, header, one, row, byte_rows, least, below, next, survivors);
                row += Simd::bytes, next += Simd::bytes * byte_rows;
            }
        }
        if (survivors->count == before) continue;
        pq_settle<bits>(&block, header, &threshold, before, survivors);
        for (int64_t i = before; i < survivors->count; ++i) survivors->items[i].query = static_cast<uint32_t>(n);
    }
    return n;
}

// See `KernelTable::pq_runs`.
template <int bits>
int64_t pq_runs(const PqRun* runs, int64_t count, int64_t subspaces, const void* packed, float threshold, Survivors* survivors) {
    return static_cast<const PqHeader*>(packed)->exact ? pq_scan_runs<bits, true>(runs, count, subspaces, packed, threshold, survivors)
                                                       : pq_scan_runs<bits, false>(runs, count, subspaces, packed, threshold, survivors);
}

// Canonical keys of all rows, which have no scales.
template <int bits> void pq_fill(const Block* block, const void* packed, void* out, int64_t out_stride) {
    using S = Simd;
    const auto* header = static_cast<const PqHeader*>(packed);
    const int64_t rows = block->rows, subspaces = block->pieces[0].width, byte_rows = bits == 8 ? subspaces : (subspaces + 1) / 2;
    for (int q = 0; q < header->count; ++q) {
        float* keys = static_cast<float*>(out) + q * out_stride;
        for (int64_t row = 0; !header->exact && row < rows; row += pq_together) {
            Survivor items[pq_together];
            const Survivor* some[pq_together];
            float sums[pq_together];
            for (int i = 0; i < pq_together; ++i) {
                const int64_t last = rows - 1, at = row + i;
                items[i] = {static_cast<uint32_t>(at < last ? at : last), static_cast<uint32_t>(q), 0.0f};
                some[i] = items + i;
            }
            pq_sum_rows<bits>(block, header, some, sums);
            for (int i = 0; i < pq_together; ++i) keys[items[i].row] = sums[i];
        }
        if (!header->exact) continue;
        const auto base = static_cast<float>(header->base[q]); // whole, and small
        PqInput<1, 1> in;
        in.tables[0] = reinterpret_cast<const uint8_t*>(header + 1) + q * packed_table_bytes<bits>(subspaces);
        for (int64_t row = 0; row < rows; row += S::bytes) {
            PqRegisters<1, 1> low, high;
            uint16_t even[S::bytes / 2], odd[S::bytes / 2];
            float both[S::bytes];
            pq_registers<1>(block, row / S::bytes, byte_rows * kPqBlock, in.at);
            in.next = in.at[0];
            pq_sums<bits, true, false>(in, byte_rows, low, high);
            S::store_bytes(even, S::sub_halves(low.v[0][0], S::halves_up(high.v[0][0], 8)));
            S::store_bytes(odd, high.v[0][0]);
            const int64_t left = rows - row;
            float* to = left < S::bytes ? both : keys + row;
            for (int i = 0; i < S::bytes / 2; ++i)
                to[2 * i] = base + static_cast<float>(even[i]), to[2 * i + 1] = base + static_cast<float>(odd[i]);
            for (int64_t i = 0; i < left && left < S::bytes; ++i) keys[row + i] = both[i];
        }
    }
}

} // namespace
} // namespace asx::ASX_TARGET
