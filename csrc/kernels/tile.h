// Register tiles for batches: `tile_rows` rows against two registers of queries, compute-bound.
//
// Rows stay as they are; queries are packed in panels by 4-byte words (a float32, two bfloat16, four int8). A tile of fold F takes
// 2 * lanes / F queries and F words of a row at a time: these are read once, repeated over a register, and multiplied with the same F words of
// as many queries as fit beside each other. So a batch of 4, 8 or 16 queries fills the lanes as one of 32 does (AVX-512), at the same cost:
// per step and tile `tile_rows` repeating loads, 2 loads of the panel, 2 * tile_rows multiply-adds. At the end log2(F) sums of neighbouring
// lanes turn 2 * tile_rows sums into 2 * tile_rows / F registers of keys: 1 register a row for F = 2, 2 rows side by side for F = 4.
// The last step of a row overlaps the one before, with zeros in the panel for what is counted already; nothing is read beyond the row.
//
// Keys are compared with the thresholds in registers; only tiles with a survivor are written out. The scan that first reads a block makes the row
// terms of a few tiles right before them, in the order of memory, so that it is read as one stream, and fetches rows ahead meanwhile.
//
// Loops over accumulators are unrolled without exception: one that is not, even where it never runs, keeps the accumulators in memory.
#pragma once

#include "kernels/dense_terms.h"
#include "kernels/select.h"

namespace asx::ASX_TARGET {
namespace {

constexpr int tile_lanes = 2 * Simd::lanes; // of one row's accumulators

// A value per row, out[r - first], summed over registers of its bytes; `out` has room for a register more.
template <class Sum, class Step, class ToFloat>
ASX_INLINE void register_sums(const Block* block, int64_t element_bytes, int64_t first, int64_t last, Sum zero, Step step, ToFloat to_float,
                              float* out) {
    using S = Simd;
    alignas(64) float lanes[S::lanes * S::lanes] = {};
    for (int64_t r = first; r < last; ++r) {
        Sum sum = zero, other = zero;
        for (int32_t j = 0; j < block->n_pieces; ++j) {
            const Piece& piece = block->pieces[j];
            const uint8_t* row = piece.base + r * piece.stride;
            const int64_t bytes = piece.width * element_bytes;
            int64_t i = 0;
            for (; i + 2 * S::bytes <= bytes; i += 2 * S::bytes)
                sum = step(sum, S::load_bytes(row + i)), other = step(other, S::load_bytes(row + i + S::bytes));
            if (i + S::bytes <= bytes) sum = step(sum, S::load_bytes(row + i)), i += S::bytes;
            if (i < bytes) other = step(other, S::load_bytes_part(row + i, bytes - i));
        }
        const int64_t place = (r - first) % S::lanes;
        S::store(lanes + place * S::lanes, S::add(to_float(sum), to_float(other)));
        if (place == S::lanes - 1 || r == last - 1) S::store(out + (r - first - place), S::reduce_rows(lanes));
    }
}

// How words multiply: the accumulator, one step, and how a finished sum becomes a key.
struct FloatWords {
    static constexpr int64_t per_word = 1, element_bytes = 4;
    static constexpr bool fills = true; // plain products are asked for
    static constexpr bool guarded = false; // whether some rows need another step
    static constexpr int tiles_ready = 4; // how many tiles are made ready together, at most
    using Sum = Simd::F;
    template <int fold> static ASX_INLINE Sum start(const Block*, int64_t) { return Simd::zero(); }
    static ASX_INLINE Sum step(Sum sum, Simd::Bytes row, Simd::Bytes panel) {
        return Simd::fma(Simd::as_floats(row), Simd::as_floats(panel), sum);
    }
    static ASX_INLINE Sum add_adjacent(Sum a, Sum b) { return Simd::add_adjacent(a, b); }
    static ASX_INLINE void make_ready(const Block* block, int64_t first, int64_t last) {
        range_squares<Float32>(block, first, last);
        range_terms(block, first, last);
    }
    template <int n> static ASX_INLINE Simd::F key(Sum sum, const Block* block, int64_t row, Simd::F, Simd::F) {
        if (block->metric == kCosine) return Simd::mul(sum, Simd::spread<n>(block->scale + row));
        if (block->metric == kL2) return Simd::fma(sum, Simd::set(2.0f), Simd::spread<n>(block->bias + row));
        return sum;
    }
    static ASX_INLINE uint32_t pack_element(const uint8_t* p) { return read<uint32_t>(p); }
    static constexpr int64_t query_bytes = 4;
};

// Two bfloat16 products a lane, where the target has them (S::has_bfloat16_dot); queries are rounded to bfloat16, which the slack covers
// (2^-8 |q||x|).
template <class S> struct BFloat16Words : FloatWords {
    static constexpr int64_t per_word = 2, element_bytes = 2;
    static constexpr bool fills = false; // products come from rows unpacked to float32, with queries as given
    static constexpr int tiles_ready = 1;
    static ASX_INLINE Sum step(Sum sum, Simd::Bytes row, Simd::Bytes panel) { return S::dot_bfloat16(sum, panel, row); }
    // Squares below 2^-126 are taken for zero, which the 1e-30 of the row terms covers.
    static ASX_INLINE void make_ready(const Block* block, int64_t first, int64_t last) {
        register_sums(
            block, element_bytes, first, last, S::zero(), [](Sum sum, Simd::Bytes x) { return S::dot_bfloat16(sum, x, x); },
            [](Sum sum) { return sum; }, block->squares + first);
        range_terms(block, first, last);
    }
    static ASX_INLINE uint32_t pack_element(const uint8_t* p) {
        const uint32_t bits = read<uint32_t>(p);
        return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16; // to nearest, ties to even; queries are finite
    }
};

// int8 queries of 7 or 8 bits, stored with the target's offset; the sum starts at minus offset times the row's sum, so it ends exact.
template <int bits, int by = bits == 7 ? Simd::offset7 : Simd::offset8> struct IntegerWords {
    static constexpr int64_t per_word = 4, element_bytes = 1, query_bytes = 1;
    static constexpr int offset = by;
    static constexpr bool fills = false, guarded = false;
    static constexpr int tiles_ready = 1;
    using Sum = Simd::I;
    template <int fold> static ASX_INLINE Sum start(const Block* block, int64_t row) {
        return offset ? Simd::int_every<fold>(Simd::int_set(-offset * block->row_sums[row])) : Simd::int_zero();
    }
    static ASX_INLINE Sum step(Sum sum, Simd::Bytes row, Simd::Bytes panel) {
        return bits == 7 ? Simd::dot_words7(sum, panel, row) : Simd::dot_words8(sum, panel, row);
    }
    static ASX_INLINE Sum add_adjacent(Sum a, Sum b) { return Simd::int_add_adjacent(a, b); }
    static ASX_INLINE void make_ready(const Block* block, int64_t first, int64_t last) {
        using S = Simd;
        if (!offset) return;
        // Fewer than 2^17 elements: float32 holds their sum exactly.
        float sums[Simd::tile_rows + S::lanes];
        register_sums(
            block, element_bytes, first, last, S::int_zero(), [](Sum sum, Simd::Bytes x) { return S::sum_words(sum, x); },
            [](Sum sum) { return S::to_float(sum); }, sums);
        for (int64_t r = first; r < last; ++r) block->row_sums[r] = static_cast<int32_t>(sums[r - first]);
    }
    // (offset + bias) + factor * (scale * sum): each step rounded, as the canonical score is
    template <int n> static ASX_INLINE Simd::F key(Sum sum, const Block* block, int64_t row, Simd::F factor, Simd::F shift) {
        const auto base = block->metric == kL2 ? Simd::add(shift, Simd::spread<n>(block->bias + row)) : shift;
        const auto product = Simd::to_float(sum);
        return Simd::add(base, Simd::mul(factor, block->scaled ? Simd::mul(Simd::spread<n>(block->scale + row), product) : product));
    }
    static ASX_INLINE uint32_t pack_element(const uint8_t* p) { return static_cast<uint8_t>(*p + offset); }
};

// Queries of 8 bits where only those of 7 have a quick instruction (S::faster_7_bits), which adds two neighbours' products in 16 bits. Larger ones
// may use it as well with rows whose neighbours are together so small that this cannot overflow: with most rows, where few elements are near the
// largest that int8 has. Tiles with other rows take the slower way, from the same panel.
template <class S> struct CarefulWords : IntegerWords<8, 128> {
    static ASX_INLINE Sum step(Sum sum, Simd::Bytes row, Simd::Bytes panel) { return S::dot_unsigned(sum, panel, row); }
};
template <class S> struct GuardedWords : IntegerWords<8, 128> {
    using Careful = CarefulWords<S>;
    static constexpr bool guarded = true;
    static ASX_INLINE Sum step(Sum sum, Simd::Bytes row, Simd::Bytes panel) { return S::dot_words7(sum, panel, row); }
    static ASX_INLINE bool fits(int32_t most, int32_t peak) { return most * peak < 1 << 15; }
    static ASX_INLINE void make_ready(const Block* block, int64_t first, int64_t last) {
        IntegerWords<8, 128>::make_ready(block, first, last);
        auto peaks = S::set_bytes(0); // of the tile
        int32_t shifted = 0;
        for (int64_t r = first; r < last; ++r)
            for (int32_t j = 0; j < block->n_pieces; ++j) {
                const int64_t width = block->pieces[j].width;
                const uint8_t* row = block->pieces[j].base + r * block->pieces[j].stride;
                int64_t i = 0;
                for (; i + S::bytes <= width; i += S::bytes) peaks = S::pair_peaks(peaks, S::load_bytes(row + i));
                if (i < width) peaks = S::pair_peaks(peaks, S::load_bytes_part(row + i, width - i));
                // In the last step of a row of odd width, which overlaps the one before, others are neighbours.
                for (i = width % 2 == 0 ? width : width > 8 ? width - 8 : 0; i + 1 < width; ++i) {
                    const int32_t a = static_cast<int8_t>(row[i]), b = static_cast<int8_t>(row[i + 1]);
                    const int32_t pair = (a < 0 ? -a : a) + (b < 0 ? -b : b);
                    shifted = pair > shifted ? pair : shifted;
                }
            }
        const int32_t peak = S::largest_half(peaks);
        for (int64_t r = first; r < last; ++r) block->peaks[r] = peak > shifted ? peak : shifted;
    }
};

// Where the keys of a tile are: registers of `lanes` keys, in lane order queries `width` at a time, then rows.
template <int F> struct TileLayout {
    static constexpr int queries = tile_lanes / F; // of a tile
    static constexpr int width = queries < Simd::lanes ? queries : Simd::lanes; // queries of a register
    static constexpr int halves = queries / width; // registers that a row's queries fill
    static constexpr int rows = Simd::lanes / width; // rows side by side in a register
    static constexpr int registers(int tile_rows) { return (tile_rows + rows - 1) / rows * halves; }
    static constexpr int row_of(int i) { return i / halves * rows; } // the first row of register i
};

// Per-query values, repeated for every row that shares a register.
struct PanelHeader {
    float slack[tile_lanes];
    float factor[tile_lanes];
    float offset[tile_lanes];
    int32_t count;
    int32_t most; // the largest packed element, where rows are guarded
    int32_t padding[14];
};
static_assert(sizeof(PanelHeader) % 32 == 0, "panels stay aligned");

template <class W, int F> ASX_INLINE int64_t row_steps(int64_t width) { return (width + W::per_word * F - 1) / (W::per_word * F); }

template <class W, int F> int64_t panel_bytes(const Queries* queries) {
    int64_t steps = 0;
    for (int32_t j = 0; j < queries->n_pieces; ++j) steps += row_steps<W, F>(queries->widths[j]);
    return static_cast<int64_t>(sizeof(PanelHeader)) + steps * tile_lanes * 4;
}

template <class W, int F> void panel_pack(const Queries* queries, void* packed) {
    constexpr int columns = TileLayout<F>::queries;
    auto* header = static_cast<PanelHeader*>(packed);
    auto* to = reinterpret_cast<uint32_t*>(header + 1);
    for (int lane = 0; lane < tile_lanes; ++lane) {
        const int q = lane % columns;
        const bool real = q < queries->count;
        header->slack[lane] = real && queries->slack ? queries->slack[q] : 0.0f;
        header->factor[lane] = real && queries->factor ? queries->factor[q] : 0.0f;
        header->offset[lane] = real && queries->offset ? queries->offset[q] : 0.0f;
    }
    header->count = queries->count;
    header->most = 0;
    const auto* from = static_cast<const uint8_t*>(queries->data);
    constexpr int64_t step = W::per_word * F; // elements
    for (int32_t j = 0; j < queries->n_pieces; ++j) {
        const int64_t width = queries->widths[j], steps = row_steps<W, F>(width);
        for (int64_t s = 0; s < steps; ++s, to += tile_lanes) {
            // The last step may overlap the one before; what that has counted is zero here.
            const int64_t first = s * step + step <= width || width < step ? s * step : width - step;
            for (int lane = 0; lane < tile_lanes; ++lane) {
                const int q = lane / F;
                to[lane] = 0;
                for (int64_t i = 0; i < W::per_word; ++i) {
                    const int64_t element = first + lane % F * W::per_word + i;
                    if (q < queries->count && s * step <= element && element < width) {
                        const uint32_t packed_element = W::pack_element(from + q * queries->stride + element * W::query_bytes);
                        to[lane] |= packed_element << (32 / W::per_word * i);
                        if (W::guarded && static_cast<int32_t>(packed_element) > header->most)
                            header->most = static_cast<int32_t>(packed_element);
                    }
                }
            }
        }
        from += width * W::query_bytes;
    }
}

// Fetches rows line by line in the order of memory, which is what the hardware's own prefetching follows.
struct FetchAhead {
    const uint8_t* at;
    int64_t skip, lines, left;
    ASX_INLINE FetchAhead(const uint8_t* row, int64_t stride, int64_t bytes)
        : at(row), skip(stride == bytes ? 0 : stride - (bytes + 63) / 64 * 64),
          lines(stride == bytes ? int64_t{1} << 62 : (bytes + 63) / 64), left(lines) {}
    // `count` lines, mostly `usual` of them and of one row.
    template <int usual> ASX_INLINE void next(int count) {
        if (__builtin_expect(count == usual && left > usual, 1)) {
#pragma GCC unroll 32
            for (int i = 0; i < usual; ++i) __builtin_prefetch(at + 64 * i);
            at += 64 * usual, left -= usual;
            return;
        }
        for (int i = 0; i < count; ++i) {
            __builtin_prefetch(at);
            at += 64;
            if (--left == 0) at += skip, left = lines;
        }
    }
};

// How rows that no scan has read yet come in: so many are made ready together, right before their tiles multiply, while others are fetched that
// are so many rows ahead. Both are whole tiles. Making a tile of narrow rows ready takes as long as a third of its products, four of them together
// half as long each; but they have to stay in the first-level cache. What is fetched is 6 KB beyond them: on Zen 4, 32 queries of 64 dims reach
// 75 % of the peak when the lines of the next tile are fetched row beside row, 79 % in the order of memory, 86 % two tiles (6 KB) ahead, and no
// more beyond.
struct Arrival {
    int64_t ready, ahead;
};
template <class W, int R> ASX_INLINE Arrival arrival(const Block* block) {
    constexpr int64_t bytes_ahead = 6144;
    const Piece* pieces = block->unpack ? block->source : block->pieces;
    int64_t tile_bytes = 0;
    for (int32_t j = 0; j < (block->unpack ? block->n_sources : block->n_pieces); ++j)
        tile_bytes += R * pieces[j].width * (block->unpack ? block->source_bytes : W::element_bytes);
    if (tile_bytes == 0) return {R, 0};
    int64_t tiles = 1;
    while (tiles < W::tiles_ready && (tiles + 1) * tile_bytes <= bytes_ahead) ++tiles;
    return {tiles * R, (tiles - 1 + (bytes_ahead + tile_bytes - 1) / tile_bytes) * R};
}

// All sums of R rows from `row` on.
template <class W, int F, int R>
ASX_INLINE void tile_sums(const Block* block, const uint32_t* panel, int64_t row, int64_t rows_ahead, typename W::Sum (&out)[R][2]) {
    constexpr int64_t step = 4 * F, line = 64; // bytes
    typename W::Sum sums[R][2];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = W::template start<F>(block, row + r);
    for (int32_t j = 0; j < block->n_pieces; ++j) {
        const int64_t stride = block->pieces[j].stride, bytes = block->pieces[j].width * W::element_bytes;
        const uint8_t* base = block->pieces[j].base + row * stride;
        // Row r is at base[r / 3] + (r % 3) * stride: x86 addresses that with a third of the pointers.
        constexpr int thirds = (R + 2) / 3;
        const uint8_t* at[thirds];
        for (int t = 0; t < thirds; ++t) at[t] = base + 3 * t * stride;
        const auto multiply = [&](int64_t byte) __attribute__((always_inline)) {
            const auto first = Simd::load_bytes(panel), second = Simd::load_bytes(panel + Simd::lanes);
#pragma GCC unroll 32
            for (int r = 0; r < R; ++r) {
                const auto x = Simd::repeat_words<F>(at[r / 3] + (r % 3) * stride + byte);
                sums[r][0] = W::step(sums[r][0], x, first);
                sums[r][1] = W::step(sums[r][1], x, second);
            }
            panel += tile_lanes;
        };
        const bool cold = block->cold && (!block->unpack || block->n_sources == 1);
        const Piece& from = block->unpack ? block->source[0] : block->pieces[j];
        const int64_t from_bytes = block->unpack ? from.width * block->source_bytes : bytes;
        const int from_lines = block->unpack ? R * block->source_bytes / 4 : R; // of those that a line of the tile's rows is made from
        FetchAhead ahead(from.base + (row + rows_ahead) * from.stride, from.stride, from_bytes);
        int64_t done = 0;
        for (; done + line <= bytes; done += line) {
            if (cold) ahead.template next<R>(from_lines);
#pragma GCC unroll 4
            for (int64_t i = 0; i < line; i += step) multiply(done + i);
        }
        for (; done + step <= bytes; done += step) multiply(done);
        if (done < bytes && bytes >= step) {
            multiply(bytes - step);
        } else if (done < bytes) {
            uint8_t rest[R][step] = {};
            for (int r = 0; r < R; ++r)
                for (int64_t i = 0; i < bytes; ++i) rest[r][i] = base[r * stride + i];
            const auto first = Simd::load_bytes(panel), second = Simd::load_bytes(panel + Simd::lanes);
#pragma GCC unroll 32
            for (int r = 0; r < R; ++r) {
                const auto x = Simd::repeat_words<F>(rest[r]);
                sums[r][0] = W::step(sums[r][0], x, first);
                sums[r][1] = W::step(sums[r][1], x, second);
            }
            panel += tile_lanes;
        }
    }
    // Copied out: an array indexed at run time would otherwise live on the stack throughout the loops above.
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) out[r][0] = sums[r][0], out[r][1] = sums[r][1];
}

// The sums of a tile in the order of TileLayout; lanes of rows that do not exist repeat others.
template <class W, int F, int R>
ASX_INLINE void folded_sums(const Block* block, const uint32_t* panel, int64_t row, int64_t rows_ahead,
                            typename W::Sum (&out)[TileLayout<F>::registers(R)]) {
    typename W::Sum sums[R][2];
    tile_sums<W, F, R>(block, panel, row, rows_ahead, sums);
    if constexpr (F == 1) {
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) out[2 * r] = sums[r][0], out[2 * r + 1] = sums[r][1];
    } else {
        typename W::Sum level[R + 1];
#pragma GCC unroll 32
        for (int r = 0; r < R + 1; ++r) level[r] = r < R ? W::add_adjacent(sums[r < R ? r : 0][0], sums[r < R ? r : 0][1]) : level[0];
        if constexpr (F == 4) {
#pragma GCC unroll 32
            for (int r = 0; r < (R + 1) / 2; ++r) level[r] = W::add_adjacent(level[2 * r], level[2 * r + 1]);
        }
#pragma GCC unroll 32
        for (int i = 0; i < TileLayout<F>::registers(R); ++i) out[i] = level[i];
    }
}

template <class W, int F, int R>
ASX_INLINE void scan_tile(const Block* block, const PanelHeader* header, int64_t row, int64_t rows_ahead, const float* thresholds,
                          Survivors* survivors) {
    using S = Simd;
    using L = TileLayout<F>;
    constexpr int N = L::registers(R);
    typename W::Sum sums[N];
    const auto* panel = reinterpret_cast<const uint32_t*>(header + 1);
    if constexpr (W::guarded) {
        if (__builtin_expect(W::fits(header->most, block->peaks[row]) && W::fits(header->most, block->peaks[row + R - 1]), 1))
            folded_sums<W, F, R>(block, panel, row, rows_ahead, sums);
        else
            folded_sums<typename W::Careful, F, R>(block, panel, row, rows_ahead, sums);
    } else {
        folded_sums<W, F, R>(block, panel, row, rows_ahead, sums);
    }
    float most_slack = block->slack[row];
    for (int r = 1; r < R; ++r) most_slack = most_slack > block->slack[row + r] ? most_slack : block->slack[row + r];
    S::F keys[N], best[L::halves];
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) {
        const int half = i % L::halves * S::lanes;
        keys[i] =
            W::template key<L::rows>(sums[i], block, row + L::row_of(i), S::load(header->factor + half), S::load(header->offset + half));
        // A NaN key yields to `best`; its row's slack is infinite.
        best[i % L::halves] = i < L::halves ? keys[i] : S::max(keys[i], best[i % L::halves]);
    }
    uint32_t any = 0;
#pragma GCC unroll 2
    for (int h = 0; h < L::halves; ++h)
        any |= S::not_less(S::fma(S::set(most_slack), S::load(header->slack + h * S::lanes), best[h]), S::load(thresholds + h * S::lanes));
    if (__builtin_expect(any == 0, 1)) return;
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) {
        const int half = i % L::halves * S::lanes;
        const int64_t first = row + L::row_of(i);
        const auto upper = S::fma(S::spread<L::rows>(block->slack + first), S::load(header->slack + half), keys[i]);
        const uint32_t mask = S::not_less(upper, S::load(thresholds + half));
        if (mask == 0) continue;
        float stored[S::lanes];
        S::store(stored, keys[i]);
        for_bits(mask, [&](int lane) {
            const int64_t at = first + lane / L::width;
            const int q = half + lane % L::width;
            if (at < row + R && q < header->count) append(block, survivors, at, q, stored[lane]);
        });
    }
}

// What the first scan of a block does to rows before it scores them.
template <class W> ASX_INLINE void read_rows(const Block* block, int64_t first, int64_t count) {
    if (block->cold && block->unpack) {
        const Piece& to = block->pieces[0];
        auto* out = reinterpret_cast<float*>(const_cast<uint8_t*>(to.base + first * to.stride)); // workspace
        for (int32_t j = 0; j < block->n_sources; ++j) {
            const Piece from = {block->source[j].base + first * block->source[j].stride, block->source[j].stride, block->source[j].width};
            block->unpack(&from, count, out, to.stride / 4);
            out += from.width;
        }
    }
    if (!block->ready) W::make_ready(block, first, first + count);
}

template <class W, int F> int64_t tile_scan(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    constexpr int R = Simd::tile_rows, columns = TileLayout<F>::queries;
    const auto* header = static_cast<const PanelHeader*>(packed);
    float repeated[tile_lanes];
    for (int lane = 0; lane < tile_lanes; ++lane) {
        const int q = lane % columns;
        repeated[lane] = q < header->count ? thresholds[q] : __builtin_inff();
    }
    const Arrival arriving = arrival<W, R>(block);
    int64_t row = 0, ready = 0;
    const auto read = [&](int64_t most) __attribute__((always_inline)) {
        if (row < ready) return;
        const int64_t left = block->rows - row, count = most < left ? most : left;
        read_rows<W>(block, row, count);
        ready = row + count;
    };
    for (; row + R <= block->rows; row += R) {
        if (!has_room(survivors, R * header->count)) return row;
        read(arriving.ready);
        scan_tile<W, F, R>(block, header, row, arriving.ahead, repeated, survivors);
    }
    for (; row < block->rows; ++row) {
        if (!has_room(survivors, header->count)) return row;
        read(1);
        scan_tile<W, F, 1>(block, header, row, arriving.ahead, repeated, survivors);
    }
    return row;
}

template <class W, int F, int R>
ASX_INLINE void fill_tile(const Block* block, const PanelHeader* header, int64_t row, float* out, int64_t out_stride) {
    using L = TileLayout<F>;
    constexpr int N = L::registers(R);
    typename W::Sum sums[N];
    folded_sums<W, F, R>(block, reinterpret_cast<const uint32_t*>(header + 1), row, 0, sums);
    float stored[N][Simd::lanes];
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) Simd::store(stored[i], sums[i]);
    for (int32_t q = 0; q < header->count; ++q)
        for (int r = 0; r < R; ++r)
            out[q * out_stride + row + r] = stored[r / L::rows * L::halves + q / L::width][r % L::rows * L::width + q % L::width];
}

template <class W, int F> void tile_fill(const Block* block, const void* packed, void* out, int64_t out_stride) {
    constexpr int R = Simd::tile_rows;
    const auto* header = static_cast<const PanelHeader*>(packed);
    int64_t row = 0;
    for (; row + R <= block->rows; row += R) fill_tile<W, F, R>(block, header, row, static_cast<float*>(out), out_stride);
    for (; row < block->rows; ++row) fill_tile<W, F, 1>(block, header, row, static_cast<float*>(out), out_stride);
}

} // namespace
} // namespace asx::ASX_TARGET
