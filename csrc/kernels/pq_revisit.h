// Assignment of the same rows time and again, while codewords move (`pq_assign`, of which this is a part).
//
// Blocks of rows, made of such that had the same codeword or neighbours of it, know of every group of codewords by how much farther than the
// nearest codeword all of it is at least, for each of their rows: the gap. As a codeword moves, a distance changes by no more than the
// movement (G. Hamerly, "Making k-means even faster", 2010; Y. Ding et al., "Yinyang k-means", 2015). Groups whose gaps are closed come
// first; what they make of the distances tells which of the others could matter. A group that is passed by is farther than the nearest
// codeword by more than the errors of both sides, so that answers are those of all comparisons.
#pragma once

#include "kernels/pq_assign.h"

namespace asx::ASX_TARGET {
namespace {

constexpr int revisited_registers = Simd::lanes == 16 ? 1 : 2, revisited_rows = revisited_registers * Simd::lanes;
constexpr int revisited_group = Simd::lanes == 16 ? 8 : 4;

void pq_revisit(const PqCodebook* book, const PqBlocks* blocks, int64_t begin, int64_t end, float* workspace, int32_t* out) {
    using S = Simd;
    constexpr int V = revisited_registers, C = revisited_group, R = revisited_rows;
    const int64_t dims = book->dims, groups = (book->codewords + C - 1) / C, padded = (groups + 15) / 16 * 16;
    const uint64_t all = ~uint64_t{0} >> (64 - groups);
    const auto part_of = [&](int64_t g) { return book->tiles + g * C / kPqTile * (dims + 2) * kPqTile + g * C % kPqTile; };
    const auto infinity = S::set(__builtin_inff());
    for (int64_t b = begin; b < end; ++b) {
        const float* rows = blocks->centered + b * dims * R;
        const int32_t* numbers = blocks->numbers + b * R;
        float *gaps = blocks->gaps + b * padded, *distances = blocks->distances + b * R;
        S::F squares[V], half_squares[V], error[V], first[V], second[V], least[V];
        for (int v = 0; v < V; ++v) squares[v] = S::zero();
        for (int64_t s = 0; s < dims; ++s)
            for (int v = 0; v < V; ++v) {
                const auto x = S::load(rows + (s * V + v) * S::lanes);
                squares[v] = S::fma(x, x, squares[v]);
            }
        uint32_t beyond[V], any = 0;
        for (int v = 0; v < V; ++v) {
            half_squares[v] = S::mul(squares[v], S::set(0.5f));
            first[v] = second[v] = infinity;
            const auto reach = S::add(S::sqrt(squares[v]), S::set(book->radius));
            const auto square = S::mul(reach, reach);
            error[v] = S::add(S::mul(square, S::set(static_cast<float>(2 * dims + 16) * 0x1p-23f)), S::set(1e-36f));
            any |= beyond[v] = S::not_less(square, S::set(1e37f));
        }
        uint64_t compared = 0;
        const auto compare = [&](uint64_t which) {
            compared |= which;
            for (; which; which &= which - 1) {
                const int64_t g = __builtin_ctzll(which);
                nearest_two<V, C>(dims, part_of(g), rows, half_squares, first, second, least);
                for (int v = 0; v < V; ++v) S::store(workspace + g * R + v * S::lanes, least[v]);
            }
        };
        // Groups whose gaps less what codewords moved are not beyond so much.
        const auto within = [&](float growth) {
            uint64_t found = 0;
            for (int64_t g = 0; g < padded; g += S::lanes) {
                const auto gap = S::sub(S::load(gaps + g), S::load(blocks->moves + g));
                found |= uint64_t{S::not_less(S::set(growth), gap)} << g;
            }
            return found;
        };
        uint64_t closed = 0;
        for (int64_t g = 0; g < padded; g += S::lanes) closed |= uint64_t{S::not_less(S::zero(), S::load(gaps + g))} << g;
        compare(closed & all);
        auto grown = S::sub(S::zero(), infinity);
        for (int v = 0; v < V; ++v) {
            const auto most = S::add(S::mul(first[v], S::set(0x1.0004p1f)), S::add(error[v], error[v]));
            grown = S::max(S::sub(S::sqrt(S::max(most, S::zero())), S::load(distances + v * S::lanes)), grown);
        }
        compare(within(S::largest(grown)) & all & ~compared);

        S::F now[V];
        grown = S::sub(S::zero(), infinity);
        for (int v = 0; v < V; ++v) {
            now[v] = S::sqrt(S::max(S::add(first[v], first[v]), S::zero()));
            grown = S::max(S::sub(now[v], S::load(distances + v * S::lanes)), grown);
            S::store(distances + v * S::lanes, now[v]);
        }
        const auto farther = S::set(S::largest(grown));
        for (int64_t g = 0; g < padded; g += S::lanes)
            S::store(gaps + g, S::sub(S::sub(S::load(gaps + g), S::load(blocks->moves + g)), farther));
        for (; compared; compared &= compared - 1) {
            const int64_t g = __builtin_ctzll(compared);
            auto nearer = S::sub(S::zero(), infinity);
            for (int v = 0; v < V; ++v) {
                const auto low = S::sub(S::mul(S::load(workspace + g * R + v * S::lanes), S::set(0x1.fff8p0f)), S::add(error[v], error[v]));
                nearer = S::max(S::sub(now[v], S::sqrt(S::max(low, S::zero()))), nearer);
            }
            gaps[g] = any ? -__builtin_inff() : -S::largest(nearer);
        }
        for (int v = 0; v < V; ++v) {
            float best[S::lanes];
            S::store(best, first[v]);
            const auto margin = S::add(error[v], S::mul(second[v], S::set(0x1.1p-14f)));
            const uint32_t doubtful = S::not_less(S::add(first[v], margin), second[v]) | beyond[v];
            for (int i = 0; i < S::lanes; ++i) {
                const int64_t number = numbers[v * S::lanes + i];
                if (doubtful >> i & 1)
                    assign_canonically(book, blocks->rows + number * blocks->stride, out + number);
                else
                    out[number] = static_cast<int32_t>(read<uint32_t>(best + i) & 255u);
            }
        }
    }
}

} // namespace
} // namespace asx::ASX_TARGET
