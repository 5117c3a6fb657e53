// int8 rows against one to four int8 queries: dims in lanes, rows in order (see dense_few.h). Sums are exact.
//
// Where the target stores queries with an offset, the row's own sum rides along and takes it back: sum(q+o)x - o sum(x) = sum(qx).
// Rows of up to 32,768 dims: |sum| <= 2^15 * 255 * 128 < 2^31.
#pragma once

#include "kernels/dense_few.h"
#include "kernels/tile.h"

namespace asx::ASX_TARGET {
namespace {

struct IntegerFewHeader {
    float factor[few];
    float offset[few];
    float slack[few];
    int32_t count;
    int32_t padding[3];
};
static_assert(sizeof(IntegerFewHeader) == 64, "packed queries stay aligned");

ASX_INLINE int64_t padded_bytes(int64_t width) { return (width + 63) / 64 * 64; }

int64_t integer_few_packed_bytes(const Queries* queries) {
    int64_t total = 0;
    for (int32_t j = 0; j < queries->n_pieces; ++j) total += padded_bytes(queries->widths[j]);
    return static_cast<int64_t>(sizeof(IntegerFewHeader)) + few * total;
}

template <int bits> void integer_few_pack(const Queries* queries, void* packed) {
    auto* header = static_cast<IntegerFewHeader*>(packed);
    auto* to = reinterpret_cast<uint8_t*>(header + 1);
    header->count = queries->count;
    for (int32_t q = 0; q < queries->count; ++q) {
        header->factor[q] = queries->factor ? queries->factor[q] : 1.0f;
        header->offset[q] = queries->offset ? queries->offset[q] : 0.0f;
        header->slack[q] = queries->slack ? queries->slack[q] : 0.0f;
        const uint8_t* from = static_cast<const uint8_t*>(queries->data) + q * queries->stride;
        for (int32_t j = 0; j < queries->n_pieces; ++j) {
            const int64_t width = queries->widths[j];
            for (int64_t i = 0; i < padded_bytes(width); ++i)
                *to++ = i < width ? static_cast<uint8_t>(from[i] + IntegerWords<bits>::offset) : 0;
            from += width;
        }
    }
}

template <int bits> ASX_INLINE Simd::I integer_step(Simd::I sum, Simd::Bytes query, Simd::Bytes row) {
    return bits == 7 ? Simd::dot_words7(sum, query, row) : Simd::dot_words8(sum, query, row);
}

template <int bits, int Q, bool fetch> ASX_INLINE void integer_block_sums(const Block* block, const uint8_t* query, int64_t query_stride,
                                                                          int32_t* out) {
    using S = Simd;
    constexpr bool with_row_sums = IntegerWords<bits>::offset != 0;
    for (int32_t j = 0; j < block->n_pieces; ++j) {
        const Piece& piece = block->pieces[j];
        const int64_t ahead = fetch ? fetch_distance(block, piece, piece.width) : 0;
        for (int64_t r = 0; r < block->rows; ++r) {
            const uint8_t* row = piece.base + r * piece.stride;
            S::I sums[Q], row_sum = S::int_zero();
            for (int q = 0; q < Q; ++q) sums[q] = S::int_zero();
            int64_t i = 0;
#pragma GCC unroll 1
            for (; i + S::bytes <= piece.width; i += S::bytes) {
                const auto x = S::load_bytes(row + i);
                if (fetch) S::prefetch(row + i, ahead);
#pragma GCC unroll 4
                for (int q = 0; q < Q; ++q) sums[q] = integer_step<bits>(sums[q], S::load_bytes(query + q * query_stride + i), x);
                if (with_row_sums) row_sum = S::sum_words(row_sum, x);
            }
            if (i < piece.width) {
                const auto x = S::load_bytes_part(row + i, piece.width - i);
                for (int q = 0; q < Q; ++q) sums[q] = integer_step<bits>(sums[q], S::load_bytes(query + q * query_stride + i), x);
                if (with_row_sums) row_sum = S::sum_words(row_sum, x);
            }
            const int32_t correction = with_row_sums ? IntegerWords<bits>::offset * S::int_reduce(row_sum) : 0;
            for (int q = 0; q < Q; ++q) {
                int32_t& to = out[q * kBlockRows + r];
                to = (j ? to : 0) + S::int_reduce(sums[q]) - correction;
            }
        }
        query += padded_bytes(piece.width);
    }
}

template <int bits, int Q>
ASX_INLINE void integer_block_sums_fetching(const Block* block, const uint8_t* query, int64_t query_stride, int32_t* out) {
    if (Simd::fetches && block->ahead)
        integer_block_sums<bits, Q, true>(block, query, query_stride, out);
    else
        integer_block_sums<bits, Q, false>(block, query, query_stride, out);
}

template <int bits>
ASX_INLINE void integer_block_sums_of(const Block* block, int32_t count, const uint8_t* query, int64_t query_stride, int32_t* out) {
    switch (count) {
        case 1: return integer_block_sums_fetching<bits, 1>(block, query, query_stride, out);
        case 2: return integer_block_sums_fetching<bits, 2>(block, query, query_stride, out);
        case 3: return integer_block_sums_fetching<bits, 3>(block, query, query_stride, out);
        default: return integer_block_sums_fetching<bits, 4>(block, query, query_stride, out);
    }
}

template <int bits> int64_t integer_few_scan(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    using S = Simd;
    const auto* header = static_cast<const IntegerFewHeader*>(packed);
    const auto* query = reinterpret_cast<const uint8_t*>(header + 1);
    auto* sums = reinterpret_cast<int32_t*>(block->workspace);
    int64_t stride = 0;
    for (int32_t j = 0; j < block->n_pieces; ++j) stride += padded_bytes(block->pieces[j].width);
    integer_block_sums_of<bits>(block, header->count, query, stride, sums);
    for (int64_t r = 0; r < block->rows; r += S::lanes) {
        if (!has_room(survivors, S::lanes * header->count)) return r;
        const int64_t count = block->rows - r < S::lanes ? block->rows - r : S::lanes;
        for (int32_t q = 0; q < header->count; ++q) {
            const auto sum = S::to_float(read<S::I>(sums + q * kBlockRows + r));
            const auto products = S::mul(S::set(header->factor[q]), block->scaled ? S::mul(S::load(block->scale + r), sum) : sum);
            const auto shift = S::set(header->offset[q]);
            const auto base = block->metric == kL2 ? S::add(shift, S::load(block->bias + r)) : shift;
            const auto key = S::add(base, products);
            const auto best = S::fma(S::load(block->slack + r), S::set(header->slack[q]), key);
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

}  // namespace
}  // namespace asx::ASX_TARGET
