// Anisotropic codes: codewords chosen one subspace after the other, given those of the others (protocol.Backend.pq_descend).
#pragma once

#include "kernels/memory.h"

namespace asx::ASX_TARGET {
namespace {

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
