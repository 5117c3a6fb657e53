// Per-row terms of dense scans: what turns a plain sum into a key, and how far that key may be from the canonical one.
//
//             key                     slack of the row
//   ip        sum                     |x|
//   cosine    sum / |x|               1
//   l2        2 sum - |x|^2           (|x| + largest |q|)^2        (minus the distance, up to the query's own |q|^2)
//
// |x| comes from float32 sums of squares, good to (D+8) 2^-24 relative unless they leave [1e-30, 1e37]: below, squares have underflowed; above, they
// may have overflowed. Outside, the slack is infinite and the canonical score decides. 1e-30 under the root dominates all
// absolute underflow errors. Rows with known norms skip the sums, and a known zero norm is exactly zero.
#pragma once

#include "kernels/memory.h"

namespace asx::ASX_TARGET {
namespace {

constexpr float smallest_square = 1e-30f, largest_square = 1e37f;

struct Terms {
    Simd::F scale, bias, slack;
};

template <Metric metric> ASX_INLINE Terms row_terms(Simd::F squares, Simd::F query_norm) {
    using S = Simd;
    const auto infinite = S::set(__builtin_inff());
    // NaN and overflowed sums make the slack infinite, never NaN: tiles look at the largest slack of their rows.
    const auto root = S::choose(S::zero(), S::set(largest_square), squares, S::sqrt(S::add(squares, S::set(smallest_square))), infinite);
    if constexpr (metric == kCosine) {
        const auto inverse = S::div(S::set(1.0f), S::sqrt(squares));
        const auto low = S::set(smallest_square), high = S::set(largest_square);
        return {S::choose(low, high, squares, inverse, S::zero()), S::zero(), S::choose(low, high, squares, S::set(1.0f), infinite)};
    } else if constexpr (metric == kL2) {
        const auto reach = S::add(root, query_norm);
        return {S::set(2.0f), S::sub(S::zero(), squares), S::mul(reach, reach)};
    } else {
        return {S::set(1.0f), S::zero(), root};
    }
}

template <Metric metric> ASX_INLINE void terms_from_squares(const Block* block, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r += Simd::lanes) { // term arrays are padded to whole registers
        const Terms t = row_terms<metric>(Simd::load(block->squares + r), Simd::set(block->query_norm));
        Simd::store(block->scale + r, t.scale);
        Simd::store(block->bias + r, t.bias);
        Simd::store(block->slack + r, t.slack);
    }
}

template <Metric metric> ASX_INLINE void terms_from_norms(const Block* block, const float* norms) {
    using S = Simd;
    const auto low = S::set(smallest_square), high = S::set(largest_square), infinite = S::set(__builtin_inff());
    for (int64_t r = 0; r < block->rows; r += S::lanes) {
        const auto norm = r + S::lanes <= block->rows ? S::load(norms + r) : S::load_part(norms + r, block->rows - r);
        const auto square = S::mul(norm, norm);
        auto scale = S::set(1.0f), bias = S::zero(), slack = S::choose(S::zero(), S::zero(), norm, S::zero(), S::add(norm, S::set(1e-15f)));
        if constexpr (metric == kCosine) {
            scale = S::choose(low, high, square, S::div(S::set(1.0f), norm), S::zero());
            slack = S::choose(low, high, square, S::set(1.0f), S::choose(S::zero(), S::zero(), norm, S::zero(), infinite));
        } else if constexpr (metric == kL2) {
            const auto reach = S::add(norm, S::set(block->query_norm));
            scale = S::set(2.0f), bias = S::sub(S::zero(), square), slack = S::fma(reach, reach, low);
        }
        S::store(block->scale + r, scale);
        S::store(block->bias + r, bias);
        S::store(block->slack + r, slack);
    }
}

// Terms of rows first .. last, whose squares are there. What lies beyond, up to a whole register, is overwritten.
ASX_INLINE void range_terms(const Block* block, int64_t first, int64_t last) {
    switch (block->metric) {
        case kIp: return terms_from_squares<kIp>(block, first, last);
        case kCosine: return terms_from_squares<kCosine>(block, first, last);
        default: return terms_from_squares<kL2>(block, first, last);
    }
}

void dense_terms(const Block* block, const float* norms) {
    if (!norms) return range_terms(block, 0, block->rows);
    switch (block->metric) {
        case kIp: return terms_from_norms<kIp>(block, norms);
        case kCosine: return terms_from_norms<kCosine>(block, norms);
        default: return terms_from_norms<kL2>(block, norms);
    }
}

// Sums of squares in any order, with one transposing tree for `lanes` rows: narrow rows that many beside each other, which is quicker; wide ones,
// which would be as many streams of memory, in order, with four sums in flight.
// Of rows first .. last; what lies beyond, up to a whole register, is overwritten.
template <class K> ASX_INLINE void range_squares(const Block* block, int64_t first, int64_t last) {
    using S = Simd;
    constexpr int64_t narrow = 512; // bytes
    alignas(64) float lanes[S::lanes * S::lanes] = {};
    int64_t row_bytes = 0;
    for (int32_t j = 0; j < block->n_pieces; ++j) row_bytes += block->pieces[j].width * K::bytes;
    for (; row_bytes <= narrow && first + S::lanes <= last; first += S::lanes) {
        S::F sums[S::lanes];
#pragma GCC unroll 32
        for (int r = 0; r < S::lanes; ++r) sums[r] = S::zero();
        for (int32_t j = 0; j < block->n_pieces; ++j) {
            const Piece& piece = block->pieces[j];
            constexpr int thirds = (S::lanes + 2) / 3;
            const uint8_t* at[thirds];
            for (int t = 0; t < thirds; ++t) at[t] = piece.base + (first + 3 * t) * piece.stride;
            int64_t i = 0;
            for (; i + S::lanes <= piece.width; i += S::lanes) {
#pragma GCC unroll 32
                for (int r = 0; r < S::lanes; ++r) {
                    const auto x = S::template widen<K>(at[r / 3] + r % 3 * piece.stride + i * K::bytes);
                    sums[r] = S::fma(x, x, sums[r]);
                }
            }
            if (i == piece.width) continue;
#pragma GCC unroll 32
            for (int r = 0; r < S::lanes; ++r) {
                const auto x = S::template widen_part<K>(at[r / 3] + r % 3 * piece.stride + i * K::bytes, 0, piece.width - i);
                sums[r] = S::fma(x, x, sums[r]);
            }
        }
#pragma GCC unroll 32
        for (int r = 0; r < S::lanes; ++r) S::store(lanes + r * S::lanes, sums[r]);
        S::store(block->squares + first, S::reduce_rows(lanes));
    }
    for (int64_t r = first; r < last; ++r) {
        auto a = S::zero(), b = S::zero(), c = S::zero(), d = S::zero();
        for (int32_t j = 0; j < block->n_pieces; ++j) {
            const Piece& piece = block->pieces[j];
            const uint8_t* p = piece.base + r * piece.stride;
            int64_t i = 0;
            for (; i + 4 * S::lanes <= piece.width; i += 4 * S::lanes) {
                const auto w = S::template widen<K>(p + i * K::bytes), x = S::template widen<K>(p + (i + S::lanes) * K::bytes);
                const auto y = S::template widen<K>(p + (i + 2 * S::lanes) * K::bytes),
                           z = S::template widen<K>(p + (i + 3 * S::lanes) * K::bytes);
                a = S::fma(w, w, a), b = S::fma(x, x, b), c = S::fma(y, y, c), d = S::fma(z, z, d);
            }
            for (; i + S::lanes <= piece.width; i += S::lanes) {
                const auto x = S::template widen<K>(p + i * K::bytes);
                a = S::fma(x, x, a);
            }
            if (i < piece.width) {
                const auto x = S::template widen_part<K>(p + i * K::bytes, 0, piece.width - i);
                b = S::fma(x, x, b);
            }
        }
        const int64_t place = (r - first) % S::lanes;
        S::store(lanes + place * S::lanes, S::add(S::add(a, b), S::add(c, d)));
        if (place == S::lanes - 1 || r == last - 1) S::store(block->squares + r - place, S::reduce_rows(lanes));
    }
}

template <class K> void squares(const Block* block) { range_squares<K>(block, 0, block->rows); }

template <class K> void unpack(const Piece* piece, int64_t rows, float* out, int64_t out_stride) {
    for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* p = piece->base + r * piece->stride;
        float* to = out + r * out_stride;
        int64_t i = 0;
        for (; i + Simd::lanes <= piece->width; i += Simd::lanes) Simd::store(to + i, Simd::template widen<K>(p + i * K::bytes));
        for (; i < piece->width; ++i) to[i] = widen_one<K>(p + i * K::bytes);
    }
}

} // namespace
} // namespace asx::ASX_TARGET
