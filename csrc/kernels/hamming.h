// Hamming distances of packed binary codes, any number of bits: few queries, rows as they lie. Batches: hamming_turned.h.
//
// Bits of a row's last 64-bit word that do not count are masked out of the query when it is packed and out of the row by a mask.
// Keys are minus the distance, rounded to float32 where codes have more than 2^24 bits; slack zero.
// As many rows as a register has words are loaded, a register of each, and transposed there: word w of all rows is then xored with a word of
// a query that is broadcast, and counted. On AVX-512 8 rows of 64 bytes take 24 shuffles and 24 operations a query, no sum crosses lanes, and
// one query leaves more than half of the time of a scan from memory to wait. Rows, or what is left of them, of half a register or less
// are loaded by halves. The last register of a row overlaps the one before, with a mask for the bytes that were counted already, so that no
// width needs a slow path and nothing is read beyond the row.
// With AVX2, where bits are counted by shuffles, one query's rows are counted along, register by register, and sums of four rows brought together at
// the end: transposing them costs more than that, and so do popcounts of words (from memory 0.5 to 0.6 of the speed of reading alone, now 0.75 to 1.0).
// Measured on Zen 4, rows of 32 to 128 bytes in memory: one query 28 to 32 GB/s where plain reading gives 26 to 32 and a loop of scalar
// popcounts 23 to 27; AVX2 24 to 30. Two, four and eight queries, rows of 64 bytes: 28, 20 and 9 GB/s (AVX2: two 15, four 10).
#pragma once

#include "kernels/select.h"

namespace asx::ASX_TARGET {
namespace {

constexpr int hamming_few = Simd::words == 8 ? 8 : 4;

// Which bits of a row's byte count, when those before byte `first` were counted already.
ASX_INLINE uint8_t counted_bits(int64_t byte, int64_t first, int64_t bytes, uint64_t last_word) {
    if (byte < first || byte >= bytes) return 0;
    const int64_t last = (bytes - 1) / 8 * 8;
    return byte < last ? 0xff : static_cast<uint8_t>(last_word >> (8 * (byte - last)));
}

struct CodesHeader {
    int64_t count;
    int64_t padding[7];
};

// Thresholds are keys: a row passes when its distance is not above `limit`, the largest distance whose key may equal the threshold. Beyond
// 2^24 several distances share a key; below 2^22 the factor adds less than one.
ASX_INLINE int64_t distance_limit(float threshold) {
    if (!(threshold <= 0.0f)) return -1; // keys are never positive
    return threshold < -1e18f ? int64_t{1} << 62 : static_cast<int64_t>(-static_cast<double>(threshold) * (1.0 + 0x1p-22));
}

// --- few queries ------------------------------------------------------------------------------------------------------------

constexpr int64_t register_bytes = 8 * Simd::words;

// A row is `whole` registers and `rest` bytes that are read as the last register of the row, or half register if they fit there: `size`
// bytes at `tail`, of which the words first <= w < last count, under a mask.
struct FewLayout {
    int64_t whole, rest, size, tail, first, last;
};

ASX_INLINE FewLayout few_layout(int64_t bytes, uint64_t last_word) {
    const int64_t whole = last_word == ~uint64_t{0} ? bytes / register_bytes : (bytes - 1) / register_bytes;
    const int64_t rest = bytes - whole * register_bytes;
    const int64_t size = 2 * rest <= register_bytes ? register_bytes / 2 : register_bytes;
    if (bytes < size) return {whole, rest, size, 0, 0, (bytes + 7) / 8};
    return {whole, rest, size, bytes - size, (size - rest) / 8, size / 8};
}

// Packed: the header, the tail's mask, then per query its whole registers and its masked tail.
ASX_INLINE int64_t few_stride(const FewLayout& layout) { return (layout.whole + 1) * register_bytes; }

int64_t codes_few_bytes(const Queries* queries) {
    return static_cast<int64_t>(sizeof(CodesHeader)) + 64 + hamming_few * few_stride(few_layout(queries->widths[0], queries->last_word));
}

void codes_few_pack(const Queries* queries, void* packed) {
    const int64_t bytes = queries->widths[0];
    const FewLayout layout = few_layout(bytes, queries->last_word);
    auto* header = static_cast<CodesHeader*>(packed);
    auto* mask = reinterpret_cast<uint8_t*>(header + 1);
    header->count = queries->count;
    const int64_t counted = layout.whole * register_bytes;
    for (int64_t i = 0; i < register_bytes; ++i)
        mask[i] = i < layout.size ? counted_bits(layout.tail + i, counted, bytes, queries->last_word) : 0;
    for (int32_t q = 0; q < queries->count; ++q) {
        const uint8_t* from = static_cast<const uint8_t*>(queries->data) + q * queries->stride;
        uint8_t* to = mask + 64 + q * few_stride(layout);
        for (int64_t i = 0; i < counted; ++i) to[i] = from[i];
        for (int64_t i = 0; i < register_bytes; ++i) to[counted + i] = mask[i] ? from[layout.tail + i] & mask[i] : 0;
    }
}

// What is known of rows when a scan is compiled, so that loops over them are unrolled: the number of whole registers, or one of these.
constexpr int any_rows = -1, half_rows = -2; // half_rows: half a register or less

// Distances of `words` rows, each of them counted by itself, or two half ones at once. `rest`: whether there is more than whole registers. All that is
// loaded must be readable.
template <class S, int W, bool rest>
ASX_INLINE typename S::Words codes_along_rows(const uint8_t* row, int64_t stride, const FewLayout& layout, const CodesHeader* header) {
    const auto* mask = reinterpret_cast<const uint8_t*>(header + 1);
    const uint8_t* query = mask + 64;
    if constexpr (W == half_rows) {
        typename S::Counts pairs[S::words / 2];
        for (int j = 0; j < S::words / 2; ++j, row += 2 * stride) {
            const auto x = S::and_words(S::load_lanes(row, stride), S::repeat_lane(mask));
            pairs[j] = S::count_add(S::count_zero(), S::xor_words(x, S::repeat_lane(query)));
        }
        return S::count_half_rows(pairs);
    }
    const int64_t whole = W < 0 ? layout.whole : W;
    typename S::Counts counts[S::words];
#pragma GCC unroll 4
    for (int j = 0; j < S::words; ++j, row += stride) {
        counts[j] = S::count_zero();
#pragma GCC unroll 4
        for (int64_t i = 0; i < whole; ++i)
            counts[j] =
                S::count_add(counts[j], S::xor_words(S::load_words(row + i * register_bytes), S::load_words(query + i * register_bytes)));
        if constexpr (rest) {
            const auto x = layout.size < register_bytes ? S::load_half_words(row + layout.tail) : S::load_words(row + layout.tail);
            counts[j] =
                S::count_add(counts[j], S::xor_words(S::and_words(x, S::load_words(mask)), S::load_words(query + whole * register_bytes)));
        }
    }
    return S::count_rows(counts);
}

// How many rows of the block can be counted like that: those of which whole registers, or a half one, can be read; none if counts would overflow.
ASX_INLINE int64_t rows_along(const Block* block, const FewLayout& layout) {
    const Piece& piece = block->pieces[0];
    if (layout.whole + (layout.rest > 0) > Simd::count_steps) return 0;
    if (piece.width >= layout.size) return block->rows;
    if (piece.stride <= 0) return 0;
    const int64_t beyond = (layout.size - piece.width + piece.stride - 1) / piece.stride;
    return block->rows > beyond ? block->rows - beyond : 0;
}

// Distances of `words` rows from r on, of which `count` are in the block.
template <int Q, int W> ASX_INLINE void codes_group(const Block* block, const FewLayout& layout, const CodesHeader* header, int64_t ahead,
                                                    int64_t r, int64_t count, Simd::Words (&out)[Q]) {
    using S = Simd;
    const Piece& piece = block->pieces[0];
    const uint8_t* row = piece.base + r * piece.stride;
    const auto* mask = reinterpret_cast<const uint8_t*>(header + 1);
    const uint8_t* query = mask + 64;
    const int64_t stride = few_stride(layout), whole = W < 0 ? layout.whole : W;
    // A narrow row may be read together with what follows it in the block; the mask drops that again.
    const uint8_t* end = piece.stride < 0 ? nullptr : piece.base + (block->rows - 1) * piece.stride + piece.width;
    const bool readable = count == S::words && (piece.width >= layout.size || row + (S::words - 1) * piece.stride + layout.size <= end);
    alignas(64) uint8_t copy[S::words * register_bytes];
    const int64_t step = readable ? piece.stride : register_bytes;
    const auto at = [&](int64_t byte, int64_t size) {
        if (__builtin_expect(readable, 1)) return row + byte;
        for (int64_t i = 0; i < S::words; ++i)
            for (int64_t j = 0; j < size; ++j)
                copy[i * register_bytes + j] = i < count && byte + j < piece.width ? row[i * piece.stride + byte + j] : 0;
        return static_cast<const uint8_t*>(copy);
    };
    S::Words sums[Q];
    S::Counts counts[Q];
    for (int q = 0; q < Q; ++q) sums[q] = S::set_word(0), counts[q] = S::count_zero();
    const auto add = [&](S::Words x, int64_t word) {
        for (int q = 0; q < Q; ++q)
            counts[q] = S::count_add(counts[q], S::xor_words(x, S::set_word(read<uint64_t>(query + q * stride + 8 * word))));
    };
    constexpr int64_t steps = S::count_steps / S::words - 1; // registers of a row that a Counts can take beside the tail
    static_assert(W <= steps, "short rows never widen early");
    int64_t room = steps;
#pragma GCC unroll 2
    for (int64_t i = 0; i < whole; ++i) {
        S::Words x[S::words];
        S::load_columns(at(i * register_bytes, register_bytes), step, x);
        if (ahead)
            for (int64_t j = 0; j < S::words; ++j) S::prefetch(row + j * piece.stride + i * register_bytes, ahead);
#pragma GCC unroll 8
        for (int w = 0; w < S::words; ++w) add(x[w], i * S::words + w);
        if (W < 0 && --room == 0) {
            for (int q = 0; q < Q; ++q) sums[q] = S::count_widen(sums[q], counts[q]), counts[q] = S::count_zero();
            room = steps;
        }
    }
    const auto add_tail = [&](const auto& x, int w) {
        if (w >= layout.first && w < layout.last) add(S::and_words(x[w], S::set_word(read<uint64_t>(mask + 8 * w))), whole * S::words + w);
    };
    if (layout.rest > 0) {
        if (ahead)
            for (int64_t j = 0; j < S::words; ++j) S::prefetch(row + j * piece.stride + layout.tail, ahead);
        const uint8_t* tail = at(layout.tail, layout.size);
        if (layout.size < register_bytes) {
            S::Words x[S::words / 2];
            S::load_half_columns(tail, step, x);
#pragma GCC unroll 8
            for (int w = 0; w < S::words / 2; ++w) add_tail(x, w);
        } else {
            S::Words x[S::words];
            S::load_columns(tail, step, x);
#pragma GCC unroll 8
            for (int w = 0; w < S::words; ++w) add_tail(x, w);
        }
    }
    for (int q = 0; q < Q; ++q) out[q] = S::count_widen(sums[q], counts[q]);
}

ASX_INLINE void append_codes(const Block* block, Survivors* survivors, int64_t row, int q, uint32_t mask, Simd::Words distances) {
    uint64_t stored[Simd::words];
    Simd::store_words(stored, distances);
    for_bits(mask, [&](int i) { append(block, survivors, row + i, q, -static_cast<float>(stored[i])); });
}

// One query, as many rows as `rows_along` says. Returns how many are finished: fewer when there may be no room for the next.
template <class S, int W, bool rest>
ASX_INLINE int64_t codes_along_scan(const Block* block, const FewLayout& layout, const CodesHeader* header, int64_t limit,
                                    Survivors* survivors) {
    const Piece& piece = block->pieces[0];
    const int64_t rows = rows_along(block, layout), ahead = fetch_distance(block, piece, piece.width);
    const int64_t fetched =
        ahead > 0 && piece.stride < piece.width + 64 ? S::words * piece.stride : 0; // of the next rows, where they lie together
    const auto most = S::set_word(static_cast<uint64_t>(limit));
    int64_t r = 0;
    for (; r + S::words <= rows && has_room(survivors, S::words); r += S::words) {
        const uint8_t* row = piece.base + r * piece.stride;
        for (int64_t at = 0; at < fetched; at += 64) S::prefetch(row + at, ahead);
        const auto distances = codes_along_rows<S, W, rest>(row, piece.stride, layout, header);
        const uint32_t mask = S::words_not_above(distances, most);
        if (__builtin_expect(mask != 0, 0)) append_codes(block, survivors, r, 0, mask, distances);
    }
    return r;
}

template <class S> int64_t codes_along_scan_of(const Block* block, const CodesHeader* header, int64_t limit, Survivors* survivors) {
    const FewLayout layout = few_layout(block->pieces[0].width, block->last_word);
    if (layout.whole == 0 && layout.size < register_bytes)
        return codes_along_scan<S, half_rows, true>(block, layout, header, limit, survivors);
    if (layout.rest == 0) {
        switch (layout.whole) {
            case 1: return codes_along_scan<S, 1, false>(block, layout, header, limit, survivors);
            case 2: return codes_along_scan<S, 2, false>(block, layout, header, limit, survivors);
            case 3: return codes_along_scan<S, 3, false>(block, layout, header, limit, survivors);
            case 4: return codes_along_scan<S, 4, false>(block, layout, header, limit, survivors);
        }
        return codes_along_scan<S, any_rows, false>(block, layout, header, limit, survivors);
    }
    switch (layout.whole) {
        case 0: return codes_along_scan<S, 0, true>(block, layout, header, limit, survivors);
        case 1: return codes_along_scan<S, 1, true>(block, layout, header, limit, survivors);
        case 2: return codes_along_scan<S, 2, true>(block, layout, header, limit, survivors);
    }
    return codes_along_scan<S, any_rows, true>(block, layout, header, limit, survivors);
}

// Of rows from `first` on.
template <int Q, int W> ASX_INLINE int64_t codes_few_scan_of(const Block* block, const CodesHeader* header, const float* thresholds,
                                                             int64_t first, Survivors* survivors) {
    using S = Simd;
    const FewLayout layout = few_layout(block->pieces[0].width, block->last_word);
    S::Words limits[Q];
    uint32_t possible[Q];
    for (int q = 0; q < Q; ++q) {
        const int64_t limit = distance_limit(thresholds[q]);
        limits[q] = S::set_word(static_cast<uint64_t>(limit < 0 ? 0 : limit));
        possible[q] = limit < 0 ? 0u : ~0u;
    }
    const int64_t ahead = fetch_distance(block, block->pieces[0], block->pieces[0].width);
    for (int64_t r = first; r < block->rows; r += S::words) {
        if (!has_room(survivors, S::words * Q)) return r;
        const int64_t count = block->rows - r < S::words ? block->rows - r : S::words;
        S::Words distances[Q];
        codes_group<Q, W>(block, layout, header, ahead, r, count, distances);
        for (int q = 0; q < Q; ++q) {
            const uint32_t mask = S::words_not_above(distances[q], limits[q]) & possible[q] & ((1u << count) - 1);
            if (__builtin_expect(mask != 0, 0)) append_codes(block, survivors, r, q, mask, distances[q]);
        }
    }
    return block->rows;
}

template <int Q> int64_t codes_few_scan_for(const Block* block, const CodesHeader* header, const float* thresholds, Survivors* survivors) {
    if constexpr (Q == 1 && Simd::counts_along_rows) {
        const int64_t limit = distance_limit(thresholds[0]);
        if (limit < 0) return block->rows;
        return codes_few_scan_of<Q, any_rows>(block, header, thresholds, codes_along_scan_of<Simd>(block, header, limit, survivors),
                                              survivors);
    }
    if constexpr (Q <= 4) {
        switch (few_layout(block->pieces[0].width, block->last_word).whole) {
            case 0: return codes_few_scan_of<Q, 0>(block, header, thresholds, 0, survivors);
            case 1: return codes_few_scan_of<Q, 1>(block, header, thresholds, 0, survivors);
            case 2: return codes_few_scan_of<Q, 2>(block, header, thresholds, 0, survivors);
        }
    }
    return codes_few_scan_of<Q, any_rows>(block, header, thresholds, 0, survivors);
}

template <int Q> int64_t codes_few_scan_upto(const Block* block, const CodesHeader* header, const float* thresholds, Survivors* survivors) {
    if constexpr (Q > 1)
        if (header->count < Q) return codes_few_scan_upto<Q - 1>(block, header, thresholds, survivors);
    return codes_few_scan_for<Q>(block, header, thresholds, survivors);
}

int64_t codes_few_scan(const Block* block, const void* packed, const float* thresholds, Survivors* survivors) {
    return codes_few_scan_upto<hamming_few>(block, static_cast<const CodesHeader*>(packed), thresholds, survivors);
}

template <int Q> ASX_INLINE void codes_few_fill_of(const Block* block, const CodesHeader* header, int32_t* out, int64_t out_stride) {
    using S = Simd;
    const FewLayout layout = few_layout(block->pieces[0].width, block->last_word);
    const int64_t ahead = fetch_distance(block, block->pieces[0], block->pieces[0].width);
    for (int64_t r = 0; r < block->rows; r += S::words) {
        const int64_t count = block->rows - r < S::words ? block->rows - r : S::words;
        S::Words distances[Q];
        codes_group<Q, any_rows>(block, layout, header, ahead, r, count, distances);
        for (int q = 0; q < Q; ++q) {
            uint64_t stored[S::words];
            S::store_words(stored, distances[q]);
            for (int64_t i = 0; i < count; ++i) out[q * out_stride + r + i] = static_cast<int32_t>(stored[i]);
        }
    }
}

template <int Q> void codes_few_fill_upto(const Block* block, const CodesHeader* header, int32_t* out, int64_t out_stride) {
    if constexpr (Q > 1)
        if (header->count < Q) return codes_few_fill_upto<Q - 1>(block, header, out, out_stride);
    codes_few_fill_of<Q>(block, header, out, out_stride);
}

void codes_few_fill(const Block* block, const void* packed, void* out, int64_t out_stride) {
    codes_few_fill_upto<hamming_few>(block, static_cast<const CodesHeader*>(packed), static_cast<int32_t*>(out), out_stride);
}

uint32_t hamming_u8(const uint8_t* a, const uint8_t* b, uint64_t bytes) {
    uint64_t i = 0;
    auto sum = Simd::set_word(0);
    for (; i + 8 * Simd::words <= bytes; i += 8 * Simd::words)
        sum =
            Simd::count_widen(sum, Simd::count_add(Simd::count_zero(), Simd::xor_words(Simd::load_words(a + i), Simd::load_words(b + i))));
    uint64_t lanes[Simd::words], total = 0;
    Simd::store_words(lanes, sum);
    for (int w = 0; w < Simd::words; ++w) total += lanes[w];
    for (; i + 8 <= bytes; i += 8) total += static_cast<uint64_t>(__builtin_popcountll(read<uint64_t>(a + i) ^ read<uint64_t>(b + i)));
    for (; i < bytes; ++i) total += static_cast<uint64_t>(__builtin_popcount(static_cast<uint32_t>(a[i] ^ b[i])));
    return static_cast<uint32_t>(total);
}

} // namespace
} // namespace asx::ASX_TARGET
