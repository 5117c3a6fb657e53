// Hamming distances of batches of queries: codes are turned first, a cache block of rows at a time for all queries.
//
// Turned, 32 rows lie beside each other in the lanes of a register, one column of their bits in each register. Nothing is summed across
// lanes, and a threshold is compared with 32 sums at once. A distance does not depend on the order of the bits, so columns come in the order
// that is cheapest to make; queries are turned by the same code. Turning 16 bytes of 32 rows is a transpose of 16 x 16 bytes in each
// 128-bit lane; the last 16 bytes of a row overlap those before, with a mask for what was counted already, so that any width is turned
// alike and nothing is read beyond the rows.
//
// Columns of 16 bits (AVX-512). xor, popcount and add are three operations a column, of which Zen 4 does two a cycle: 64 bytes in 1.5
// cycles. Three columns a, b, c of differences take eight operations instead of nine, for |a| + |b| + |c| = |a ^ b ^ c| + 2 |majority|:
// with x the row's and q the query's column, a ^ b = (xa ^ xb) ^ (qa ^ qb) is one operation whose parentheses are made once per row and
// per query, and so is a ^ b ^ c; the majority is a ^ ((a ^ b) & (a ^ c)), three operations with the ternary ones. The majorities come
// first, their sum is doubled, and the rest is added to it. Sums have 16 bits: codes of 8192 bytes and more are not turned.
//
// Columns of 4 bits (AVX2), a byte each: the distances of a query's 4 bits to all 16 values are a table in a register (which of 16 tables
// is chosen by the query), so a lookup and an addition count 32 rows: four operations for 32 bytes, where splitting bytes into nibbles
// in the loop takes eight. Byte sums are widened before 64 columns of at most 4.
//
// Measured on Zen 4 with rows in the second-level cache: 153 to 163 GB/s of rows times queries in columns of 16 bits (without the
// majorities 138 to 146), 73 to 79 in columns of 4 bits. Turning costs 1.2 ns for 32 bytes of a row there, 2 to 3 times as much from memory.
#pragma once

#include "kernels/hamming.h"

namespace asx::ASX_TARGET {
namespace {

constexpr int64_t turned_rows = 32;

struct TurnedShape {
    int64_t columns, triples; // triples: of columns of 16 bits, which take four places: three for the majority, one for the parity
};

template <class S> ASX_INLINE TurnedShape turned_shape(int64_t width) {
    if constexpr (S::columns == Columns::nibbles) return {2 * width, 0};
    const int64_t halves = (width + 1) / 2, triples = halves / 3;
    return {halves + triples, triples};
}

template <class S> int64_t turned_row_bytes(int64_t width) {
    if (width >= 8192) return 0;
    return turned_shape<S>(width).columns * (S::columns == Columns::nibbles ? 1 : 2);
}

// Where column w goes. Triples are taken from the first, second and third `triples` columns; what is left goes to the end.
ASX_INLINE int64_t place_of_half(int64_t w, int64_t triples) {
    if (w >= 3 * triples) return w + triples;
    return w < triples ? 3 * w + 2 : w < 2 * triples ? 3 * (w - triples) + 1 : 3 * (w - 2 * triples);
}

// From columns c, b, a in places 0, 1, 2 of a triple: a ^ c, a ^ b, a there, and their parity.
template <class S> ASX_INLINE void turn_triples(uint8_t* out, int64_t triples) {
    for (int64_t t = 0; t < triples; ++t) {
        uint8_t* triple = out + 3 * t * S::bytes;
        const auto c = S::load_bytes(triple), b = S::load_bytes(triple + S::bytes), a = S::load_bytes(triple + 2 * S::bytes);
        S::store_bytes(triple, S::xor_bytes(a, c));
        S::store_bytes(triple + S::bytes, S::xor_bytes(a, b));
        S::store_bytes(out + (3 * triples + t) * S::bytes, S::xor_xor(a, b, c));
    }
}

template <class S> ASX_INLINE void store_column(uint8_t* out, int64_t column, int64_t triples, typename S::Bytes x) {
    if constexpr (S::columns == Columns::halves) {
        S::store_bytes(out + place_of_half(column, triples) * S::bytes, x);
    } else {
        S::store_bytes(out + 2 * column * S::bytes, S::low_nibbles(x));
        S::store_bytes(out + (2 * column + 1) * S::bytes, S::high_nibbles(x));
    }
}

// 16 bytes of each of 32 rows, `step` bytes apart, as `parts` registers: in part j, what bytes (or pairs of bytes) j of the rows hold.
template <class S, int parts> ASX_INLINE void turn_16_bytes(const uint8_t* p, int64_t step, const uint8_t* mask,
                                                            typename S::Bytes (&x)[parts]) {
#pragma GCC unroll 16
    for (int i = 0; i < parts; ++i) {
        x[i] = S::load_lanes(p + i * step, parts * step);
        if (mask) x[i] = S::and_bytes(x[i], S::repeat_lane(mask));
    }
#pragma GCC unroll 4
    for (int round = 1; round < parts; round *= 2) {
        typename S::Bytes y[parts];
#pragma GCC unroll 8
        for (int i = 0; i < parts / 2; ++i)
            y[2 * i] = S::zip_low(x[i], x[i + parts / 2]), y[2 * i + 1] = S::zip_high(x[i], x[i + parts / 2]);
#pragma GCC unroll 16
        for (int i = 0; i < parts; ++i) x[i] = y[i];
    }
}

template <class S> void turn_codes(Block* block, uint8_t* out) {
    constexpr int unit = S::columns == Columns::halves ? 2 : 1, parts = 16 / unit;
    Piece& piece = block->pieces[0];
    const int64_t width = piece.width, stride = piece.stride, row_bytes = turned_row_bytes<S>(width);
    const TurnedShape shape = turned_shape<S>(width);
    const int64_t whole = block->last_word == ~uint64_t{0} ? width / 16 : (width - 1) / 16; // times 16 bytes that need no mask
    const int64_t rest = width - 16 * whole, last = width < 16 ? 0 : width - 16;
    alignas(16) uint8_t mask[16], copy[16 * turned_rows];
    for (int64_t i = 0; i < 16; ++i) mask[i] = counted_bits(last + i, 16 * whole, width, block->last_word);
    // The lines of 32 rows are met in an order that no prefetcher follows, so those after the next 32 rows are fetched meanwhile.
    const int64_t fetched = 2 * turned_rows * stride;
    // Narrow rows may be read together with what follows them in the block; the mask drops that again.
    const uint8_t* end = stride < 0 ? nullptr : piece.base + (block->rows - 1) * stride + width;
    for (int64_t row = 0; row < block->rows; row += turned_rows) {
        const uint8_t* from = piece.base + row * stride;
        uint8_t* to = out + row * row_bytes;
        const int64_t count = block->rows - row < turned_rows ? block->rows - row : turned_rows;
        const bool readable = count == turned_rows && (width >= 16 || from + (count - 1) * stride + 16 <= end);
        const auto at = [&](int64_t byte) {
            if (__builtin_expect(readable, 1)) return from + byte;
            for (int64_t i = 0; i < turned_rows; ++i)
                for (int64_t j = 0; j < 16; ++j) copy[16 * i + j] = i < count && byte + j < width ? from[i * stride + byte + j] : 0;
            return static_cast<const uint8_t*>(copy);
        };
        const int64_t step = readable ? stride : 16;
        typename S::Bytes x[parts];
        for (int64_t w = 0; w < whole; ++w) {
            if (stride == width)
#pragma GCC unroll 8
                for (int64_t i = 0; i < 16 * turned_rows; i += 64) __builtin_prefetch(from + fetched + 16 * turned_rows * w + i);
            turn_16_bytes<S>(at(16 * w), step, nullptr, x);
#pragma GCC unroll 16
            for (int j = 0; j < parts; ++j) store_column<S>(to, parts * w + j, shape.triples, x[j]);
        }
        if (rest > 0) {
            turn_16_bytes<S>(at(last), step, mask, x);
            alignas(64) uint8_t stored[parts * S::bytes];
            for (int j = 0; j < parts; ++j) S::store_bytes(stored + j * S::bytes, x[j]);
            const int64_t some = (rest + unit - 1) / unit, first = width < 16 ? 0 : parts - some;
            for (int64_t j = 0; j < some; ++j)
                store_column<S>(to, parts * whole + j, shape.triples, S::load_bytes(stored + (first + j) * S::bytes));
        }
        if constexpr (S::columns == Columns::halves) turn_triples<S>(to, shape.triples);
    }
    piece.base = out;
    piece.stride = row_bytes;
}

// --- queries ----------------------------------------------------------------------------------------------------------------

// Rows x queries of a tile, in registers of 32 rows; and queries of a shape: a tile of all of them has 6144 survivors at most.
template <class S> constexpr int turned_tile_rows = S::columns == Columns::halves ? 3 : 6;
template <class S> constexpr int turned_tile_queries = S::columns == Columns::halves ? 6 : 2;
template <class S> constexpr int turned_queries = S::columns == Columns::halves ? 48 : 32;

// Of a query's column: the 16 bits twice, to be broadcast; or the offset of the table of its 4 bits.
template <class S> constexpr int turned_query_bytes = S::columns == Columns::halves ? 4 : 1;

template <class S> ASX_INLINE int64_t turned_panel_bytes(int64_t width) { // of one query
    return turned_shape<S>(width).columns * turned_query_bytes<S>;
}

// Packed: the header, a panel for every `turned_tile_queries`, then room to turn 32 queries in.
template <class S> int64_t turned_packed_bytes(const Queries* queries) {
    const int64_t width = queries->widths[0];
    return static_cast<int64_t>(sizeof(CodesHeader)) + 64 + turned_queries<S> * turned_panel_bytes<S>(width) +
           turned_rows * turned_row_bytes<S>(width);
}

template <class S> void turned_pack(const Queries* queries, void* packed) {
    const int64_t width = queries->widths[0], columns = turned_shape<S>(width).columns;
    auto* header = static_cast<CodesHeader*>(packed);
    auto* panels = reinterpret_cast<uint8_t*>(header + 1);
    auto* turned = panels + (turned_queries<S> * turned_panel_bytes<S>(width) + 63) / 64 * 64;
    header->count = queries->count;
    for (int64_t first = 0; first < queries->count; first += turned_rows) {
        Block block = {};
        block.pieces[0] = {static_cast<const uint8_t*>(queries->data) + first * queries->stride, queries->stride, width};
        block.rows = queries->count - first < turned_rows ? queries->count - first : turned_rows;
        block.last_word = queries->last_word;
        turn_codes<S>(&block, turned);
        for (int64_t i = 0; i < block.rows; ++i) {
            const int64_t tile = (first + i) / turned_tile_queries<S> * turned_tile_queries<S>;
            const int64_t in_tile = queries->count - tile < turned_tile_queries<S> ? queries->count - tile : turned_tile_queries<S>;
            uint8_t* panel = panels + tile * turned_panel_bytes<S>(width);
            for (int64_t c = 0; c < columns; ++c) {
                const int64_t place = c * in_tile + first + i - tile;
                if constexpr (S::columns == Columns::halves)
                    write(panel + 4 * place, read<uint16_t>(turned + c * S::bytes + 2 * i) * 0x10001u);
                else
                    panel[place] = static_cast<uint8_t>(16 * turned[c * S::bytes + i]);
            }
        }
    }
}

// --- scans ------------------------------------------------------------------------------------------------------------------

// Appends the survivors of one query among `count` rows whose sums are `sums`. Not inlined: tiles with survivors are few.
template <class S> __attribute__((noinline)) void turned_survivors(const Block* block, Survivors* survivors, const uint16_t* sums,
                                                                   int64_t row, int64_t count, int64_t query, uint16_t below) {
    constexpr int64_t halves = S::bytes / 2;
    const auto limit = S::set_halves(below);
    for (int64_t i = 0; i < count; i += halves) {
        const uint64_t there = (uint64_t{1} << (count - i < halves ? count - i : halves)) - 1;
        for_bits(~S::halves_not_below(S::load_bytes(sums + i), limit) & there,
                 [&](int64_t j) { append(block, survivors, row + i + j, query, -static_cast<float>(sums[i + j])); });
    }
}

// Distances of R * 32 rows to Q queries in 16 bits.
template <class S, int R, int Q>
ASX_INLINE void turned_tile_of_halves(const uint8_t* rows, const TurnedShape& shape, const uint8_t* panel,
                                      typename S::Bytes (&sums)[R][Q]) {
    const int64_t group = shape.columns * S::bytes;
    const auto load = [&](int r, int64_t column) { return S::load_bytes(rows + r * group + column * S::bytes); };
    const auto query = [&](int64_t place) { return S::template repeat_words<1>(panel + 4 * place); };
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int q = 0; q < Q; ++q) sums[r][q] = S::set_halves(0);
    int64_t c = 0;
    for (; c < 3 * shape.triples; c += 3) {
#pragma GCC unroll 16
        for (int q = 0; q < Q; ++q) {
            const auto ac = query(c * Q + q), ab = query((c + 1) * Q + q), a = query((c + 2) * Q + q);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const auto both = S::and_xor(S::xor_bytes(load(r, c), ac), load(r, c + 1), ab);
                sums[r][q] = S::count_halves(sums[r][q], S::xor_xor(both, load(r, c + 2), a));
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int q = 0; q < Q; ++q) sums[r][q] = S::add_halves(sums[r][q], sums[r][q]);
    for (; c < shape.columns; ++c) {
#pragma GCC unroll 16
        for (int q = 0; q < Q; ++q) {
            const auto word = query(c * Q + q);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) sums[r][q] = S::count_halves(sums[r][q], S::xor_bytes(load(r, c), word));
        }
    }
}

template <class S, int R, int Q>
ASX_INLINE void scan_tile_of_halves(const Block* block, const uint8_t* panel, const TurnedShape& shape, int64_t row, const uint16_t* below,
                                    int64_t query, Survivors* survivors) {
    typename S::Bytes sums[R][Q];
    turned_tile_of_halves<S, R, Q>(block->pieces[0].base + row * block->pieces[0].stride, shape, panel, sums);
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
        auto least = sums[0][q];
#pragma GCC unroll 16
        for (int r = 1; r < R; ++r) least = S::min_halves(least, sums[r][q]);
        if (__builtin_expect(!S::any_half_below(least, S::set_halves(below[q])), 1)) continue;
        alignas(64) uint16_t stored[R * turned_rows];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) S::store_bytes(stored + r * turned_rows, sums[r][q]);
        const int64_t count = block->rows - row < R * turned_rows ? block->rows - row : R * turned_rows;
        turned_survivors<S>(block, survivors, stored, row, count, query + q, below[q]);
    }
}

// The distances of 4 bits to 4 bits: entry 16 * a + b.
struct NibbleDistances {
    alignas(64) uint8_t entries[256];
    constexpr NibbleDistances() : entries() {
        for (int i = 0; i < 256; ++i) {
            const int difference = i / 16 ^ i % 16;
            entries[i] = static_cast<uint8_t>((difference & 1) + (difference >> 1 & 1) + (difference >> 2 & 1) + (difference >> 3));
        }
    }
};
constexpr NibbleDistances nibble_distances;

template <class S, int R, int Q>
ASX_INLINE void scan_tile_of_nibbles(const Block* block, const uint8_t* panel, const TurnedShape& shape, int64_t row, const uint16_t* below,
                                     int64_t query, Survivors* survivors) {
    constexpr int64_t most = 63; // columns of at most 4 that a byte can hold
    const uint8_t* rows = block->pieces[0].base + row * block->pieces[0].stride;
    const int64_t group = shape.columns * S::bytes;
    const int64_t segments = (shape.columns + most - 1) / most, segment = (shape.columns + segments - 1) / segments;
    alignas(64) uint16_t stored[Q][R * turned_rows];
    for (int64_t c = 0; c < shape.columns;) {
        const int64_t first = c, stop = shape.columns - c < segment ? shape.columns : c + segment;
        typename S::Bytes sums[R][Q];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int q = 0; q < Q; ++q) sums[r][q] = S::set_bytes(0);
        for (; c < stop; ++c) {
            typename S::Bytes table[Q];
#pragma GCC unroll 16
            for (int q = 0; q < Q; ++q) table[q] = S::load_table16(nibble_distances.entries + panel[c * Q + q]);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const auto x = S::load_bytes(rows + r * group + c * S::bytes);
#pragma GCC unroll 16
                for (int q = 0; q < Q; ++q) sums[r][q] = S::pin(S::add_bytes(sums[r][q], S::look_up16(table[q], x)));
            }
        }
#pragma GCC unroll 16
        for (int q = 0; q < Q; ++q)
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                typename S::Bytes low, high;
                S::widen_bytes(sums[r][q], low, high);
                uint16_t* to = stored[q] + r * turned_rows;
                if (first > 0) low = S::add_halves(low, S::load_bytes(to)), high = S::add_halves(high, S::load_bytes(to + S::bytes / 2));
                S::store_bytes(to, low);
                S::store_bytes(to + S::bytes / 2, high);
            }
    }
    for (int q = 0; q < Q; ++q) {
        auto least = S::load_bytes(stored[q]);
        for (int64_t i = S::bytes / 2; i < R * turned_rows; i += S::bytes / 2) least = S::min_halves(least, S::load_bytes(stored[q] + i));
        if (__builtin_expect(!S::any_half_below(least, S::set_halves(below[q])), 1)) continue;
        const int64_t count = block->rows - row < R * turned_rows ? block->rows - row : R * turned_rows;
        turned_survivors<S>(block, survivors, stored[q], row, count, query + q, below[q]);
    }
}

template <class S, int R, int Q>
void scan_turned_tile(const Block* block, const uint8_t* panel, const TurnedShape& shape, int64_t row, const uint16_t* below, int64_t query,
                      Survivors* survivors) {
    if constexpr (S::columns == Columns::halves)
        scan_tile_of_halves<S, R, Q>(block, panel, shape, row, below, query, survivors);
    else
        scan_tile_of_nibbles<S, R, Q>(block, panel, shape, row, below, query, survivors);
}

// R registers of rows against all queries, a panel of the packed queries at a time.
template <class S, int R>
ASX_INLINE void scan_turned_rows(const Block* block, const CodesHeader* header, const TurnedShape& shape, int64_t row,
                                 const uint16_t* below, Survivors* survivors) {
    constexpr int Q = turned_tile_queries<S>;
    const auto* panel = reinterpret_cast<const uint8_t*>(header + 1);
    for (int64_t q = 0; q < header->count; q += Q, panel += Q * shape.columns * turned_query_bytes<S>) {
        const auto scan = [&](auto queries) {
            scan_turned_tile<S, R, decltype(queries)::value>(block, panel, shape, row, below + q, q, survivors);
        };
        const int64_t some = header->count - q < Q ? header->count - q : Q;
        if (some == Q) {
            scan(Number<Q>());
            continue;
        }
        if constexpr (Q == 2) {
            scan(Number<1>());
        } else {
            switch (some) {
                case 1: scan(Number<1>()); break;
                case 2: scan(Number<2>()); break;
                case 3: scan(Number<3>()); break;
                case 4: scan(Number<4>()); break;
                default: scan(Number<5>()); break;
            }
        }
    }
}

template <class S> int64_t turned_scan(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    constexpr int R = turned_tile_rows<S>;
    const auto* header = static_cast<const CodesHeader*>(packed);
    const TurnedShape shape = turned_shape<S>(block->pieces[0].width);
    uint16_t below[turned_queries<S>];
    for (int64_t q = 0; q < header->count; ++q) {
        const int64_t limit = distance_limit(thresholds[q]);
        below[q] = static_cast<uint16_t>(limit < 0xffff ? limit + 1 : 0xffff); // sums are less than 8 * 8192 - 1
    }
    for (int64_t row = 0; row < block->rows;) {
        const int64_t registers = block->rows - row > (R - 1) * turned_rows ? R : 1;
        if (!has_room(survivors, registers * turned_rows * header->count)) return row;
        if (registers == R)
            scan_turned_rows<S, R>(block, header, shape, row, below, survivors);
        else
            scan_turned_rows<S, 1>(block, header, shape, row, below, survivors);
        row += registers * turned_rows;
    }
    return block->rows;
}

// From here on turning costs less than taking rows as they lie once for every `hamming_few` queries: measured, it takes 3 to 14 ns for rows of
// 32 to 128 bytes in memory.
template <class S> constexpr int32_t turned_least = S::columns == Columns::halves ? 17 : 12;

template <class S> constexpr TurnedCodes turned_codes() {
    if constexpr (S::columns == Columns::none)
        return {};
    else
        return {{{{turned_queries<S>, turned_packed_bytes<S>, turned_pack<S>, turned_scan<S>, nullptr}}},
                turned_least<S>,
                turned_row_bytes<S>,
                turn_codes<S>};
}

} // namespace
} // namespace asx::ASX_TARGET
