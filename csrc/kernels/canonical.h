// Canonical scores: the sums that define what a score is, the same bits on every target.
//
// Sixteen lanes, lane = dim % 16 over all pieces; one multiply, one add per element, never fused; a fixed tree at the end. A piece that
// starts or ends inside a group of 16 contributes to its own lanes only: the others add +0, which changes no sum (none is -0).
// Cost per 16 float32: one load, one multiply, one add. The add is a dependency chain, so up to eight rows run side by side,
// which also keeps eight cache misses in flight when rows are far apart. Any alignment; reads nothing beyond the pieces.
#pragma once

#include "kernels/memory.h"

namespace asx::ASX_TARGET {
namespace {

// Calls full(piece offset in bytes, dim) for whole groups of 16 lanes and edge(offset, dim, first, last) for partial ones.
template <class K, class Full, class Edge>
ASX_INLINE void for_lanes(int64_t start, int64_t width, Full full, Edge edge) {
    int64_t done = 0;
    const int64_t lead = start % 16;
    if (lead) {
        const int64_t last = lead + width < 16 ? lead + width : 16;
        edge(int64_t{0}, start - lead, lead, last);
        done = last - lead;
    }
    for (; done + 16 <= width; done += 16) full(done * K::bytes, start + done);
    if (done < width) edge(done * K::bytes, start + done, int64_t{0}, width - done);
}

// With `ahead` it fetches the same parts of the rows `next` as it goes. With registers for five rows only, fetching the starts of the next ones keeps too few
// misses in flight; five rows that are summed and five that are fetched are ten. Random rows of 3 KiB (Zen 3, busy; NumPy's gather and product being 1): four
// at a time, starts of the next four 1.9, with their lines as these are summed 2.2, five 2.4, six 2.3, eight 2.3; in slabs of 64, 64, 128 and 512 dims
// 1.3, 1.6, 1.7, 1.6 and 1.6. `whole`: all pieces begin and end with 16 lanes; code for those that do not costs slabs a little, if it never runs.
template <class K, int R, bool squared, bool ahead = false, bool whole = false>
ASX_INLINE void canonical_rows(const Piece* pieces, int32_t n_pieces, const float* query, const int64_t* rows, float* out,
                               const int64_t* next = nullptr) {
    using L = Simd::Lanes;
    L sums[R];
    for (int r = 0; r < R; ++r) sums[r] = Simd::lanes_zero();
    int64_t start = 0;
    for (int32_t j = 0; j < n_pieces; ++j) {
        const uint8_t *at[R], *following[R];
        for (int r = 0; r < R; ++r) {
            at[r] = pieces[j].base + rows[r] * pieces[j].stride;
            if constexpr (ahead) following[r] = pieces[j].base + next[r] * pieces[j].stride;
        }
        const auto add = [&](int r, L q, L x) {
            const L d = squared ? Simd::lanes_sub(q, x) : q;
            sums[r] = Simd::lanes_add_product(sums[r], d, squared ? d : x);
        };
        for_lanes<K>(
            start, pieces[j].width,
            [&](int64_t offset, int64_t dim) {
                const L q = Simd::lanes_load(query + dim);
                if constexpr (ahead) {
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) __builtin_prefetch(following[r] + offset);
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) add(r, q, Simd::template lanes_widen<K>(at[r] + offset));
            },
            [&](int64_t offset, int64_t dim, int64_t first, int64_t last) {
                if constexpr (!whole) {
                    const L q =
                        Simd::template lanes_widen_part<Float32>(reinterpret_cast<const uint8_t*>(query + dim + first), first, last);
                    for (int r = 0; r < R; ++r) add(r, q, Simd::template lanes_widen_part<K>(at[r] + offset, first, last));
                }
            });
        start += pieces[j].width;
    }
    for (int r = 0; r < R; ++r) out[r] = Simd::lanes_reduce(sums[r]);
}

// The first 256 bytes of a row: its reading then starts at once, and the hardware sees a stream and goes on by itself. Random rows of 3 KiB, eight at a
// time: 260-300 ns without, 215-230 ns with; fetching whole rows ahead 245-350 ns.
template <class K> ASX_INLINE void fetch_start(const Piece& piece, int64_t row) {
    const uint8_t* p = piece.base + row * piece.stride;
    const int64_t bytes = piece.width * K::bytes < 256 ? piece.width * K::bytes : 256;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

template <class K, bool squared>
void canonical_each(const Piece* pieces, int32_t n_pieces, const float* query, const int64_t* rows, int64_t count, float* out) {
    constexpr int side_by_side = Simd::lanes == 16 ? 8 : 5;
    bool whole = true;
    for (int32_t j = 0; j < n_pieces; ++j) whole = whole && pieces[j].width % 16 == 0;
    int64_t i = 0;
    for (; i + side_by_side <= count; i += side_by_side) {
        if constexpr (Simd::lanes == 16) {
            for (int64_t r = i + side_by_side; r < count && r < i + 2 * side_by_side; ++r)
                for (int32_t j = 0; j < n_pieces; ++j) fetch_start<K>(pieces[j], rows[r]);
            canonical_rows<K, side_by_side, squared>(pieces, n_pieces, query, rows + i, out + i);
        } else {
            // Those that are left over in the end, too.
            const int64_t* next = rows + (i + 2 * side_by_side <= count ? i + side_by_side : count - side_by_side);
            if (whole)
                canonical_rows<K, side_by_side, squared, true, true>(pieces, n_pieces, query, rows + i, out + i, next);
            else
                canonical_rows<K, side_by_side, squared, true>(pieces, n_pieces, query, rows + i, out + i, next);
        }
    }
    for (; i < count; ++i) canonical_rows<K, 1, squared>(pieces, n_pieces, query, rows + i, out + i);
}

template <class K>
void canonical(const Piece* pieces, int32_t n_pieces, const float* query, const int64_t* rows, int64_t count, bool squared, float* out) {
    if (squared)
        canonical_each<K, true>(pieces, n_pieces, query, rows, count, out);
    else
        canonical_each<K, false>(pieces, n_pieces, query, rows, count, out);
}

// Norms in float64 over the same lanes: squares of float32 are exact there, and cannot overflow.
template <class K> void norms(const Piece* pieces, int32_t n_pieces, int64_t first, int64_t count, double* out) {
    for (int64_t i = 0; i < count; ++i) {
        auto sum = Simd::wide_zero();
        int64_t start = 0;
        for (int32_t j = 0; j < n_pieces; ++j) {
            const uint8_t* row = pieces[j].base + (first + i) * pieces[j].stride;
            for_lanes<K>(
                start, pieces[j].width,
                [&](int64_t offset, int64_t) { sum = Simd::wide_add_square(sum, Simd::template lanes_widen<K>(row + offset)); },
                [&](int64_t offset, int64_t, int64_t begin, int64_t end) {
                    sum = Simd::wide_add_square(sum, Simd::template lanes_widen_part<K>(row + offset, begin, end));
                });
            start += pieces[j].width;
        }
        out[i] = __builtin_sqrt(Simd::wide_reduce(sum));
    }
}

// --- pairs, for other people's indexes ------------------------------------------------------------------------------------

template <class K, bool squared> float pair(const float* query, const void* row, uint64_t dims) {
    const Piece piece = {static_cast<const uint8_t*>(row), 0, static_cast<int64_t>(dims)};
    const int64_t first = 0;
    float out;
    canonical_rows<K, 1, squared>(&piece, 1, query, &first, &out);
    return out;
}

float dot_f32(const float* a, const float* b, uint64_t dims) { return pair<Float32, false>(a, b, dims); }
float l2_f32(const float* a, const float* b, uint64_t dims) { return pair<Float32, true>(a, b, dims); }
float dot_f16(const float* a, const uint16_t* b, uint64_t dims) { return pair<Float16, false>(a, b, dims); }
float l2_f16(const float* a, const uint16_t* b, uint64_t dims) { return pair<Float16, true>(a, b, dims); }
float dot_bf16(const float* a, const uint16_t* b, uint64_t dims) { return pair<BFloat16, false>(a, b, dims); }
float l2_bf16(const float* a, const uint16_t* b, uint64_t dims) { return pair<BFloat16, true>(a, b, dims); }

// The norms are float64, so that neither large nor tiny vectors lose them.
float cosine_f32(const float* a, const float* b, uint64_t dims) {
    double norm[2];
    const Piece piece[2] = {{reinterpret_cast<const uint8_t*>(a), 0, static_cast<int64_t>(dims)},
                            {reinterpret_cast<const uint8_t*>(b), 0, static_cast<int64_t>(dims)}};
    norms<Float32>(&piece[0], 1, 0, 1, &norm[0]);
    norms<Float32>(&piece[1], 1, 0, 1, &norm[1]);
    if (norm[0] == 0 || norm[1] == 0) return 0.0f;
    return static_cast<float>(static_cast<double>(dot_f32(a, b, dims)) / (norm[0] * norm[1]));
}

template <class S> ASX_INLINE int32_t integer_dot(const int8_t* a, const int8_t* b, int64_t dims) {
    auto sum = S::int_zero();
    int64_t i = 0;
    int32_t rest = 0, correction = 0;
    if constexpr (S::offset8 == 0) {
        for (; i + S::bytes <= dims; i += S::bytes) sum = S::dot_words8(sum, S::load_bytes(a + i), S::load_bytes(b + i));
    } else {
        auto row_sum = S::int_zero();
        const auto flip = S::set_bytes(static_cast<int8_t>(S::offset8));        // + 128 modulo 256 is an exclusive or of the top bit
        for (; i + S::bytes <= dims; i += S::bytes) {
            const auto row = S::load_bytes(b + i);
            sum = S::dot_words8(sum, S::xor_words(S::load_bytes(a + i), flip), row);
            row_sum = S::sum_words(row_sum, row);
        }
        correction = S::offset8 * S::int_reduce(row_sum);
    }
    for (; i < dims; ++i) rest += static_cast<int32_t>(a[i]) * b[i];
    return rest + S::int_reduce(sum) - correction;
}

int32_t dot_i8(const int8_t* a, const int8_t* b, uint64_t dims) { return integer_dot<Simd>(a, b, static_cast<int64_t>(dims)); }

}  // namespace
}  // namespace asx::ASX_TARGET
