// Dense scans for one to four queries: memory-bound, so every row is read once, in order, and nothing is unrolled over rows: many load
// streams defeat the hardware prefetcher.
//
// Dims lie in lanes; a group of `lanes` rows is summed by one transposing tree. Rows come piece by piece (slab by slab), with partial sums
// of the block carried in its workspace, so that each slab is read as one stream. Sums of squares for the row terms ride along: one more FMA
// per load, free under the memory bound. Queries are packed as float32, each piece's tail padded with zeros.
// Cost per 16 float32 of a row: 1 load, and per query 1 load of the packed query and 1 FMA.
#pragma once

#include "kernels/dense_terms.h"
#include "kernels/select.h"

namespace asx::ASX_TARGET {
namespace {

constexpr int few = 4;

struct FewHeader {
    float slack[few];
    int32_t count;
    int32_t padding[11];
};
static_assert(sizeof(FewHeader) == 64, "packed queries stay aligned");

ASX_INLINE int64_t padded_width(const int64_t* widths, int32_t n_pieces) {
    int64_t total = 0;
    for (int32_t j = 0; j < n_pieces; ++j) total += (widths[j] + 15) / 16 * 16;
    return total;
}

int64_t few_packed_bytes(const Queries* queries) {
    return static_cast<int64_t>(sizeof(FewHeader)) + few * 4 * padded_width(queries->widths, queries->n_pieces);
}

void few_pack(const Queries* queries, void* packed) {
    auto* header = static_cast<FewHeader*>(packed);
    auto* to = reinterpret_cast<float*>(header + 1);
    header->count = queries->count;
    for (int32_t q = 0; q < queries->count; ++q) {
        header->slack[q] = queries->slack ? queries->slack[q] : 0.0f;
        const uint8_t* from = static_cast<const uint8_t*>(queries->data) + q * queries->stride;
        for (int32_t j = 0; j < queries->n_pieces; ++j) {
            const int64_t width = queries->widths[j], padded = (width + 15) / 16 * 16;
            for (int64_t i = 0; i < padded; ++i) *to++ = i < width ? read<float>(from + 4 * i) : 0.0f;
            from += 4 * width;
        }
    }
}

// Sums of one row: lanes of q.x per query, and of x.x.
template <class K, int Q, bool with_squares, bool fetch>
ASX_INLINE void row_sums(const uint8_t* row, int64_t width, const float* query, int64_t query_stride, int64_t ahead, float* lanes_out) {
    using S = Simd;
    constexpr int depth = Q == 1 ? 4 : Q == 2 ? 2 : 1; // independent sums, to hide the latency of the FMA
    S::F sums[Q][depth], squares[depth];
    for (int d = 0; d < depth; ++d) squares[d] = S::zero();
    for (int q = 0; q < Q; ++q)
        for (int d = 0; d < depth; ++d) sums[q][d] = S::zero();
    int64_t i = 0;
#pragma GCC unroll 1
    for (; i + depth * S::lanes <= width; i += depth * S::lanes) {
#pragma GCC unroll 4
        for (int d = 0; d < depth; ++d) {
            const auto x = S::template widen<K>(row + (i + d * S::lanes) * K::bytes);
            if (fetch) S::prefetch(row + (i + d * S::lanes) * K::bytes, ahead);
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q) sums[q][d] = S::fma(x, S::load(query + q * query_stride + i + d * S::lanes), sums[q][d]);
            if (with_squares) squares[d] = S::fma(x, x, squares[d]);
        }
    }
    if constexpr (depth > 1)
        for (; i + S::lanes <= width; i += S::lanes) {
            const auto x = S::template widen<K>(row + i * K::bytes);
            for (int q = 0; q < Q; ++q) sums[q][0] = S::fma(x, S::load(query + q * query_stride + i), sums[q][0]);
            if (with_squares) squares[0] = S::fma(x, x, squares[0]);
        }
    if (i < width) {
        const auto x = S::template widen_part<K>(row + i * K::bytes, 0, width - i);
        for (int q = 0; q < Q; ++q) sums[q][0] = S::fma(x, S::load(query + q * query_stride + i), sums[q][0]);
        if (with_squares) squares[0] = S::fma(x, x, squares[0]);
    }
    for (int d = 1; d < depth; ++d) {
        for (int q = 0; q < Q; ++q) sums[q][0] = S::add(sums[q][0], sums[q][d]);
        squares[0] = S::add(squares[0], squares[d]);
    }
    for (int q = 0; q < Q; ++q) S::store(lanes_out + q * S::lanes * S::lanes, sums[q][0]);
    if (with_squares) S::store(lanes_out + Q * S::lanes * S::lanes, squares[0]);
}

// Sums of the whole block into workspace[query * kBlockRows + row] and, if asked, block->squares.
template <class K, int Q, bool with_squares, bool fetch>
ASX_INLINE void block_sums(const Block* block, const float* query, int64_t query_stride) {
    using S = Simd;
    constexpr int64_t group = S::lanes;
    alignas(64) float lanes[(Q + 1) * group * group];
    for (int32_t j = 0; j < block->n_pieces; ++j) {
        const Piece& piece = block->pieces[j];
        const int64_t ahead = fetch ? fetch_distance(block, piece, piece.width * K::bytes) : 0;
        for (int64_t r = 0; r < block->rows; r += group) {
            const int64_t count = block->rows - r < group ? block->rows - r : group;
#pragma GCC unroll 1
            for (int64_t i = 0; i < count; ++i)
                row_sums<K, Q, with_squares, fetch>(piece.base + (r + i) * piece.stride, piece.width, query, query_stride, ahead,
                                                    lanes + i * group);
            for (int q = 0; q < Q; ++q) {
                float* to = block->workspace + q * kBlockRows + r;
                const auto sums = S::reduce_rows(lanes + q * group * group); // beyond `count`: stale, never looked at
                S::store(to, j == 0 ? sums : S::add(S::load(to), sums));
            }
            if (with_squares) {
                const auto sums = S::reduce_rows(lanes + Q * group * group);
                S::store(block->squares + r, j == 0 ? sums : S::add(S::load(block->squares + r), sums));
            }
        }
        query += (piece.width + 15) / 16 * 16;
    }
}

// Even a branch that is never taken, in the loop over a row, costs one query a quarter of the bandwidth on Zen 4 (128 dims: 30 -> 22 GB/s).
template <class K, int Q> ASX_INLINE void block_sums_of(const Block* block, const float* query, int64_t stride, bool with_squares) {
    const bool fetch = Simd::fetches && block->ahead;
    if (with_squares)
        fetch ? block_sums<K, Q, true, true>(block, query, stride) : block_sums<K, Q, true, false>(block, query, stride);
    else
        fetch ? block_sums<K, Q, false, true>(block, query, stride) : block_sums<K, Q, false, false>(block, query, stride);
}

template <class K> void few_sums(const Block* block, const FewHeader* header, bool with_squares) {
    const auto* query = reinterpret_cast<const float*>(header + 1);
    int64_t stride = 0;
    for (int32_t j = 0; j < block->n_pieces; ++j) stride += (block->pieces[j].width + 15) / 16 * 16;
    switch (header->count) {
        case 1: return block_sums_of<K, 1>(block, query, stride, with_squares);
        case 2: return block_sums_of<K, 2>(block, query, stride, with_squares);
        case 3: return block_sums_of<K, 3>(block, query, stride, with_squares);
        default: return block_sums_of<K, 4>(block, query, stride, with_squares);
    }
}

template <class K> int64_t few_scan(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    using S = Simd;
    const auto* header = static_cast<const FewHeader*>(packed);
    few_sums<K>(block, header, !block->ready);
    if (!block->ready) dense_terms(block, nullptr);
    for (int64_t r = 0; r < block->rows; r += S::lanes) {
        if (!has_room(survivors, S::lanes * header->count)) return r;
        const int64_t count = block->rows - r < S::lanes ? block->rows - r : S::lanes;
        const auto scale = S::load(block->scale + r), bias = S::load(block->bias + r), slack = S::load(block->slack + r);
        for (int32_t q = 0; q < header->count; ++q) {
            const auto key = S::fma(S::load(block->workspace + q * kBlockRows + r), scale, bias);
            const auto best = S::fma(slack, S::set(header->slack[q]), key);
            const uint32_t mask = S::not_less(best, S::set(thresholds[q])) & static_cast<uint32_t>((1ull << count) - 1);
            if (__builtin_expect(mask != 0, 0)) {
                float keys[S::lanes];
                S::store(keys, key);
                for_bits(mask, [&](int i) { append(block, survivors, r + i, q, keys[i]); });
            }
        }
    }
    return block->rows;
}

template <class K> void few_fill(const Block* block, const void* packed, void* out, int64_t out_stride) {
    const auto* header = static_cast<const FewHeader*>(packed);
    few_sums<K>(block, header, false);
    for (int32_t q = 0; q < header->count; ++q)
        __builtin_memcpy(static_cast<float*>(out) + q * out_stride, block->workspace + q * kBlockRows,
                         static_cast<uint64_t>(block->rows) * 4);
}

} // namespace
} // namespace asx::ASX_TARGET
