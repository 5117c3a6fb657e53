// Register tiles for batches: `tile_rows` rows against a panel of 1 or 2 registers of queries, compute-bound.
//
// Rows stay as they are; queries are packed in panels by 4-byte words (a float32, two bfloat16, four int8): word w of all queries lies side by
// side, so one load serves `lanes` queries and a broadcast of the row's word multiplies it. A row's last partial word is read byte
// by byte, never beyond the row. Keys are compared with the thresholds in registers; only tiles with a survivor are written out.
// Cost per word and tile: tile_rows broadcasts, `V` loads, tile_rows * V multiply-adds. Each row's next line is prefetched one
// tile ahead, for the first panel to read a block finds it in memory. A packed panel is `V * lanes` words per word of the row.
#pragma once

#include "kernels/dense_terms.h"
#include "kernels/select.h"

namespace asx::ASX_TARGET {
namespace {

// How words multiply: the accumulator, one step, and how a finished sum becomes a key.
struct FloatWords {
    static constexpr int64_t per_word = 1, element_bytes = 4;
    using Sum = Simd::F;
    static ASX_INLINE Sum start(const Block*, int64_t) { return Simd::zero(); }
    static ASX_INLINE Sum step(Sum sum, uint32_t word, const void* panel) {
        return Simd::fma(Simd::broadcast(&word), Simd::load(panel), sum);
    }
    template <Metric metric> static ASX_INLINE Simd::F key(Sum sum, const Block* block, int64_t row, Simd::F, Simd::F) {
        if constexpr (metric == kCosine) return Simd::mul(sum, Simd::set(block->scale[row]));
        if constexpr (metric == kL2) return Simd::fma(sum, Simd::set(2.0f), Simd::set(block->bias[row]));
        return sum;
    }
    static ASX_INLINE void store(void* p, Sum sum) { Simd::store(p, sum); }
    static ASX_INLINE uint32_t pack_word(const uint8_t* p, int64_t elements) { return elements > 0 ? read<uint32_t>(p) : 0; }
    static constexpr int64_t query_bytes = 4;
};

// Two bfloat16 products a lane, where the target has them (S::has_bfloat16_dot); queries are rounded to bfloat16, which the slack covers
// (2^-8 |q||x|).
template <class S> struct BFloat16Words : FloatWords {
    static constexpr int64_t per_word = 2, element_bytes = 2;
    static ASX_INLINE Sum step(Sum sum, uint32_t word, const void* panel) {
        return S::dot_bfloat16(sum, S::load_bytes(panel), S::broadcast_word(word));
    }
    static ASX_INLINE uint32_t pack_word(const uint8_t* p, int64_t elements) {
        uint32_t word = 0;
        for (int64_t i = 0; i < elements && i < 2; ++i) {
            const uint32_t bits = read<uint32_t>(p + 4 * i);
            word |= ((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16) << (16 * i); // to nearest, ties to even; queries are finite
        }
        return word;
    }
};

// int8 queries of 7 or 8 bits, stored with the target's offset; the sum starts at minus offset times the row's sum, so it ends exact.
template <int bits> struct IntegerWords {
    static constexpr int64_t per_word = 4, element_bytes = 1, query_bytes = 1;
    static constexpr int offset = bits == 7 ? Simd::offset7 : Simd::offset8;
    using Sum = Simd::I;
    static ASX_INLINE Sum start(const Block* block, int64_t row) {
        return offset ? Simd::int_set(-offset * block->row_sums[row]) : Simd::int_zero();
    }
    static ASX_INLINE Sum step(Sum sum, uint32_t word, const void* panel) {
        const auto query = Simd::load_bytes(panel), x = Simd::broadcast_word(word);
        return bits == 7 ? Simd::dot_words7(sum, query, x) : Simd::dot_words8(sum, query, x);
    }
    // (offset + bias) + factor * sum: each step rounded, as the canonical score is
    template <Metric metric> static ASX_INLINE Simd::F key(Sum sum, const Block* block, int64_t row, Simd::F factor, Simd::F shift) {
        const auto base = metric == kL2 ? Simd::add(shift, Simd::set(block->bias[row])) : shift;
        return Simd::add(base, Simd::mul(factor, Simd::to_float(sum)));
    }
    static ASX_INLINE void store(void* p, Sum sum) { Simd::int_store(p, sum); }
    static ASX_INLINE uint32_t pack_word(const uint8_t* p, int64_t elements) {
        uint32_t word = 0;
        for (int64_t i = 0; i < elements && i < 4; ++i) word |= static_cast<uint32_t>(static_cast<uint8_t>(p[i] + offset)) << (8 * i);
        return word;
    }
};

constexpr int max_tile_queries = 2 * Simd::lanes;

struct PanelHeader {
    float slack[max_tile_queries];
    float factor[max_tile_queries];
    float offset[max_tile_queries];
    int32_t count;
    int32_t padding[15];
};
static_assert(sizeof(PanelHeader) % 32 == 0, "panels stay aligned");

template <class W, int V> int64_t panel_bytes(const Queries* queries) {
    int64_t words = 0;
    for (int32_t j = 0; j < queries->n_pieces; ++j) words += (queries->widths[j] + W::per_word - 1) / W::per_word;
    return static_cast<int64_t>(sizeof(PanelHeader)) + words * V * Simd::lanes * 4;
}

template <class W, int V> void panel_pack(const Queries* queries, void* packed) {
    auto* header = static_cast<PanelHeader*>(packed);
    auto* to = reinterpret_cast<uint32_t*>(header + 1);
    constexpr int columns = V * Simd::lanes;
    for (int q = 0; q < max_tile_queries; ++q) {
        const bool real = q < queries->count;
        header->slack[q] = real && queries->slack ? queries->slack[q] : 0.0f;
        header->factor[q] = real && queries->factor ? queries->factor[q] : 0.0f;
        header->offset[q] = real && queries->offset ? queries->offset[q] : 0.0f;
    }
    header->count = queries->count;
    int64_t at = 0;
    for (int32_t j = 0; j < queries->n_pieces; ++j) {
        const int64_t width = queries->widths[j];
        for (int64_t w = 0; w < width; w += W::per_word, to += columns)
            for (int q = 0; q < columns; ++q)
                to[q] = q < queries->count
                            ? W::pack_word(static_cast<const uint8_t*>(queries->data) + q * queries->stride + (at + w) * W::query_bytes,
                                           width - w)
                            : 0;
        at += width;
    }
}

// All sums of R rows from `row` on.
template <class W, int R, int V> ASX_INLINE void tile_sums(const Block* block, const uint32_t* panel, int64_t row,
                                                           typename W::Sum (&out)[R][V]) {
    constexpr int columns = V * Simd::lanes;
    constexpr int64_t line = 16; // words in a cache line
    typename W::Sum sums[R][V];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
        const auto start = W::start(block, row + r);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] = start;
    }
    for (int32_t j = 0; j < block->n_pieces; ++j) {
        const int64_t stride = block->pieces[j].stride, words = block->pieces[j].width / W::per_word;
        const uint8_t* base = block->pieces[j].base + row * stride;
        // Row r is at base[r / 3] + (r % 3) * stride: x86 addresses that with a third of the pointers.
        constexpr int thirds = (R + 2) / 3;
        const uint8_t* at[thirds];
        for (int t = 0; t < thirds; ++t) at[t] = base + 3 * t * stride;
        const auto word_step = [&](int64_t byte) __attribute__((always_inline)) {
#pragma GCC unroll 32
            for (int r = 0; r < R; ++r) {
                const uint32_t word = read<uint32_t>(at[r / 3] + (r % 3) * stride + byte);
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) sums[r][v] = W::step(sums[r][v], word, panel + v * Simd::lanes);
            }
            panel += columns;
        };
        int64_t w = 0;
        for (; w + line <= words; w += line) {
#pragma GCC unroll 32
            for (int r = 0; r < R; ++r) __builtin_prefetch(at[r / 3] + (r % 3) * stride + 4 * w + R * stride);
#pragma GCC unroll 4
            for (int64_t u = 0; u < line; ++u) word_step(4 * (w + u));
        }
        for (; w < words; ++w) word_step(4 * w);
        if (const int64_t rest = (block->pieces[j].width - words * W::per_word) * W::element_bytes) {
            for (int r = 0; r < R; ++r) {
                const auto word = static_cast<uint32_t>(read_low_bytes(base + r * stride + 4 * words, rest));
                for (int v = 0; v < V; ++v) sums[r][v] = W::step(sums[r][v], word, panel + v * Simd::lanes);
            }
            panel += columns;
        }
    }
    // Copied out: an array indexed at run time would otherwise live on the stack throughout the loops above.
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) out[r][v] = sums[r][v];
}

template <class W, int R, int V, Metric metric>
ASX_INLINE void scan_tile(const Block* block, const PanelHeader* header, int64_t row, const float* thresholds, Survivors* survivors) {
    using S = Simd;
    typename W::Sum sums[R][V];
    tile_sums<W, R, V>(block, reinterpret_cast<const uint32_t*>(header + 1), row, sums);
    float most_slack = block->slack[row];
    for (int r = 1; r < R; ++r) most_slack = most_slack > block->slack[row + r] ? most_slack : block->slack[row + r];
    uint32_t any = 0;
    S::F keys[R][V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
        const auto factor = S::load(header->factor + v * S::lanes), shift = S::load(header->offset + v * S::lanes);
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) keys[r][v] = W::template key<metric>(sums[r][v], block, row + r, factor, shift);
        auto best = keys[0][v];
#pragma GCC unroll 32
        for (int r = 1; r < R; ++r) best = S::max(keys[r][v], best); // a NaN key yields to `best`; its row's slack is infinite
        any |= S::not_less(S::fma(S::set(most_slack), S::load(header->slack + v * S::lanes), best), S::load(thresholds + v * S::lanes))
               << (v * S::lanes);
    }
    if (V * S::lanes < 32) any &= (1u << (V * S::lanes % 32)) - 1;
    if (header->count < V * S::lanes) any &= (1u << header->count) - 1;
    if (__builtin_expect(any == 0, 1)) return;
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
        uint64_t mask = 0;
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            const auto best = S::fma(S::set(block->slack[row + r]), S::load(header->slack + v * S::lanes), keys[r][v]);
            mask |= static_cast<uint64_t>(S::not_less(best, S::load(thresholds + v * S::lanes))) << (v * S::lanes);
        }
        mask &= any;
        if (mask == 0) continue;
        float stored[V * S::lanes];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) S::store(stored + v * S::lanes, keys[r][v]);
        for_bits(mask, [&](int q) { append(block, survivors, row + r, q, stored[q]); });
    }
}

template <class W, int V, Metric metric> ASX_INLINE int64_t scan_tiles(const Block* block, const PanelHeader* header,
                                                                       const float* thresholds, Survivors* survivors) {
    constexpr int R = Simd::tile_rows;
    int64_t row = 0;
    for (; row + R <= block->rows; row += R) {
        if (!has_room(survivors, R * header->count)) return row;
        scan_tile<W, R, V, metric>(block, header, row, thresholds, survivors);
    }
    for (; row < block->rows; ++row) {
        if (!has_room(survivors, header->count)) return row;
        scan_tile<W, 1, V, metric>(block, header, row, thresholds, survivors);
    }
    return row;
}

template <class W, int V> int64_t tile_scan(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    const auto* header = static_cast<const PanelHeader*>(packed);
    switch (block->metric) {
        case kIp: return scan_tiles<W, V, kIp>(block, header, thresholds, survivors);
        case kCosine: return scan_tiles<W, V, kCosine>(block, header, thresholds, survivors);
        default: return scan_tiles<W, V, kL2>(block, header, thresholds, survivors);
    }
}

template <class W, int V> void tile_fill(const Block* block, const void* packed, void* out, int64_t out_stride) {
    constexpr int R = Simd::tile_rows, columns = V * Simd::lanes;
    const auto* header = static_cast<const PanelHeader*>(packed);
    const auto* panel = reinterpret_cast<const uint32_t*>(header + 1);
    uint32_t stored[R][columns]; // the bits of float or int32
    for (int64_t row = 0; row < block->rows;) {
        int done = 1;
        if (row + R <= block->rows) {
            typename W::Sum sums[R][V];
            tile_sums<W, R, V>(block, panel, row, sums);
            for (int r = 0; r < R; ++r)
                for (int v = 0; v < V; ++v) W::store(&stored[r][v * Simd::lanes], sums[r][v]);
            done = R;
        } else {
            typename W::Sum sums[1][V];
            tile_sums<W, 1, V>(block, panel, row, sums);
            for (int v = 0; v < V; ++v) W::store(&stored[0][v * Simd::lanes], sums[0][v]);
        }
        for (int32_t q = 0; q < header->count; ++q)
            for (int r = 0; r < done; ++r) static_cast<uint32_t*>(out)[q * out_stride + row + r] = stored[r][q];
        row += done;
    }
}

} // namespace
} // namespace asx::ASX_TARGET
