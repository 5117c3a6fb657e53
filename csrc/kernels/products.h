// Canonical products of several queries with several rows, float32 both: the sums of canonical.h, to the bit, of products that share what
// they load.
//
// There a row is loaded for one query. Here a register of a row meets two queries or four, and a register of a query as many rows as there are
// registers for sums. Lanes do not meet before the end, so they are summed a register at a time (a `part` of the sixteen) and wait in memory
// for the others; the trees at the end are four at a time. Any alignment; reads nothing beyond the arrays.
//
// The limit is one multiplication and one addition a product: two registers of each a cycle on Zen 3, 51 G products/s (measured, 3.2 GHz). Of
// 384 dims this reaches 36 G in the first-level cache, 31 G there where rows lie across its lines, as NumPy's do, and 26 to 29 G with queries
// from the second one; query by query, with canonical.h, it was 14 to 20 G. One query alone takes as long as reading the rows, from the second
// or third level (200 KB: 2.6 and 6 us); fetching ahead brought nothing there.
#pragma once

#include "kernels/memory.h"

namespace asx::ASX_TARGET {
namespace {

// Q queries, `dims` floats apart, and R rows; P parts at a time.
template <int Q, int R, int P>
ASX_INLINE void product_tile(const float* queries, const float* const (&rows)[R], int64_t dims, float (&out)[Q * R]) {
    using S = Simd;
    static_assert(Q * R % 4 == 0, "trees are four at a time");
    alignas(64) float lanes[Q * R * 16];
    const int64_t whole = dims / 16 * 16;
    for (int part = 0; part < 16 / S::lanes; part += P) {
        S::F sums[P][Q][R];
        for (int p = 0; p < P; ++p)
            for (int q = 0; q < Q; ++q)
                for (int r = 0; r < R; ++r) sums[p][q][r] = S::zero();
        for (int64_t i = 0; i < whole; i += 16) {
            if (Q > 1 && part == 0) // the next queries
                for (int q = Q; q < 2 * Q; ++q) __builtin_prefetch(queries + q * dims + i);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const int64_t at = i + (part + p) * S::lanes;
                S::F query[Q];
#pragma GCC unroll 4
                for (int q = 0; q < Q; ++q) query[q] = S::load(queries + q * dims + at);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const auto x = S::as_floats(S::in_register(S::load_bytes(rows[r] + at))); // GCC loads it for each query otherwise
#pragma GCC unroll 4
                    for (int q = 0; q < Q; ++q) sums[p][q][r] = S::add(sums[p][q][r], S::mul(query[q], x));
                }
            }
        }
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q)
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) S::store(lanes + (q * R + r) * 16 + (part + p) * S::lanes, sums[p][q][r]);
    }
    // What is left; the other lanes would add +0, which changes no sum.
    for (int i = 0; i < Q * R && whole < dims; ++i)
        for (int64_t d = whole; d < dims; ++d) lanes[i * 16 + d - whole] += queries[i / R * dims + d] * rows[i % R][d];
    for (int i = 0; i < Q * R; i += 4) S::lanes_reduce_four(lanes + i * 16, out + i);
}

// Q queries and all rows. What the last tile lacks of rows is its last one again, and left out.
template <int Q, int R, int P>
void products_of(const float* queries, const float* rows, int64_t count, int64_t dims, float* out, int64_t out_stride) {
    for (int64_t first = 0; first < count; first += R) {
        const int64_t here = count - first < R ? count - first : R;
        const float* row[R];
        for (int r = 0; r < R; ++r) row[r] = rows + (first + (r < here ? r : here - 1)) * dims;
        float sums[Q * R];
        product_tile<Q, R, P>(queries, row, dims, sums);
        for (int q = 0; q < Q; ++q)
            for (int64_t r = 0; r < here; ++r) out[q * out_stride + first + r] = sums[q * R + r];
    }
}

void products(const float* queries, int64_t n_queries, const float* rows, int64_t count, int64_t dims, float* out, int64_t out_stride) {
    // With AVX-512 24 sums, 4 of queries, 2 more: 30 of 32 registers; else 12, 2 and 2 of 16 with AVX2.
    constexpr int together = Simd::lanes == 16 ? 4 : 2, tile = Simd::lanes == 16 ? 6 : Simd::tile_rows;
    constexpr int alone = Simd::lanes == 8 ? 4 : 8, parts = Simd::lanes == 8 ? 2 : 1; // rows of one query: eight sums side by side
    int64_t q = 0;
    for (; q + together <= n_queries; q += together)
        products_of<together, tile, 1>(queries + q * dims, rows, count, dims, out + q * out_stride, out_stride);
    for (; q < n_queries; ++q) products_of<1, alone, parts>(queries + q * dims, rows, count, dims, out + q * out_stride, out_stride);
}

} // namespace
} // namespace asx::ASX_TARGET
