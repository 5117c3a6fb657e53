// Product quantization: float tables, and the assignment of rows to codewords.
//
// Tables. Codewords in lanes, dims in rising order, multiply then add: the canonical sums. Query by query, so that a table is written in order.
//
// Assignment. Rows in lanes, codewords broadcast. Half the squared distance is |x|^2/2 + |c|^2/2 - x.c, one FMA an element where the canonical
// sum takes three operations, on elements minus the codewords' mean so that little cancels. The number of a codeword replaces the low 8 bits of
// its distance; two minima and a maximum then keep the two least. The least is the canonical answer if the second is farther away than the
// errors of both sides allow, which all but some 0.1% of rows pass; the others are settled by canonical sums. The errors, in units of u = 2^-24
// times (|x| + radius)^2, for two codewords: 2 S for the products, S + 2 for the canonical sums, 4 for norms and centering; the tags add
// 2^-15 of either distance.
#pragma once

#include "kernels/memory.h"

namespace asx::ASX_TARGET {
namespace {

// Of V registers of codewords of one subspace.
template <bool squared, int V>
ASX_INLINE void table_entries(const float* query, const float* codebook, int64_t dims, int64_t padded, Simd::F (&sums)[V]) {
    using S = Simd;
    for (int v = 0; v < V; ++v) sums[v] = S::zero();
    for (int64_t s = 0; s < dims; ++s) {
        const auto q = S::set(query[s]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            const auto c = S::load(codebook + s * padded + v * S::lanes);
            const auto d = squared ? S::sub(q, c) : q;
            sums[v] = S::add(sums[v], S::mul(d, squared ? d : c));
        }
    }
}

template <bool squared>
ASX_INLINE bool float_tables(const PqBooks* books, const float* queries, int64_t stride, int64_t count, float* out, int64_t out_stride) {
    using S = Simd;
    const int64_t dims = books->dims, codewords = books->codewords, padded = books->padded;
    auto odd = S::zero(); // NaN once an entry is not finite
    const auto put = [&](float* to, S::F entries) {
        S::store(to, entries);
        odd = S::add(odd, S::sub(entries, entries));
    };
    for (int64_t q = 0; q < count; ++q) {
        const float *query = queries + q * stride, *codebook = books->codebooks;
        float* to = out + q * out_stride;
        for (int64_t m = 0; m < books->subspaces; ++m, query += dims, codebook += dims * padded, to += codewords) {
            int64_t j = 0;
            S::F two[2], one[1];
            for (; j + 2 * S::lanes <= codewords; j += 2 * S::lanes) {
                table_entries<squared>(query, codebook + j, dims, padded, two);
                put(to + j, two[0]);
                put(to + j + S::lanes, two[1]);
            }
            for (; j < codewords; j += S::lanes) {
                table_entries<squared>(query, codebook + j, dims, padded, one);
                if (j + S::lanes <= codewords) {
                    put(to + j, one[0]);
                } else {
                    float lane[S::lanes];
                    S::store(lane, one[0]);
                    for (int64_t i = codewords - j; i < S::lanes; ++i) lane[i] = 0.0f;
                    put(lane, S::load(lane));
                    for (int64_t i = j; i < codewords; ++i) to[i] = lane[i - j];
                }
            }
        }
    }
    return S::not_less(odd, S::set(1.0f)) == 0;
}

bool pq_tables(const PqBooks* books, const float* queries, int64_t stride, int64_t count, float* out, int64_t out_stride) {
    return (books->squared ? float_tables<true> : float_tables<false>)(books, queries, stride, count, out, out_stride);
}

// Tables rounded to whole numbers: see backends/protocol.py. lows: one float a subspace, to work in.
void pq_whole(float* tables, int64_t count, int64_t subspaces, int64_t entries, float* lows, double* base, double* step) {
    using S = Simd;
    const int64_t together = entries / S::lanes * S::lanes;
    for (int64_t q = 0; q < count; ++q, tables += subspaces * entries) {
        float widest = 0.0f;
        double sum = 0.0;
        for (int64_t m = 0; m < subspaces; ++m) {
            const float* table = tables + m * entries;
            float low = table[0], high = table[0];
            if (together) {
                auto least = S::load(table), most = least;
                for (int64_t j = S::lanes; j < together; j += S::lanes) {
                    const auto x = S::load(table + j);
                    least = S::min(x, least), most = S::max(x, most);
                }
                low = -S::largest(S::sub(S::zero(), least)), high = S::largest(most);
            }
            for (int64_t j = together; j < entries; ++j) {
                low = table[j] < low ? table[j] : low;
                high = table[j] > high ? table[j] : high;
            }
            lows[m] = low;
            sum += static_cast<double>(low);
            widest = high - low > widest ? high - low : widest;
        }
        const bool usable = 1e-30f < widest && widest < 1e37f;
        const float size = usable ? widest / 63.0f : 1.0f, inverse = usable ? 1.0f / size : 0.0f;
        base[q] = sum;
        step[q] = static_cast<double>(size);
        for (int64_t i = 0; i < subspaces * entries && !usable; ++i) tables[i] = 0.0f;
        for (int64_t m = 0; m < subspaces && usable; ++m) {
            float* table = tables + m * entries;
            for (int64_t j = 0; j < together; j += S::lanes) {
                const auto scaled = S::add(S::mul(S::sub(S::load(table + j), S::set(lows[m])), S::set(inverse)), S::set(0.5f));
                S::store(table + j, S::min(S::to_float(S::truncate(scaled)), S::set(63.0f)));
            }
            for (int64_t j = together; j < entries; ++j) {
                const auto whole = static_cast<float>(static_cast<int32_t>((table[j] - lows[m]) * inverse + 0.5f));
                table[j] = whole < 63.0f ? whole : 63.0f;
            }
        }
    }
}

// The canonical answer. Padding codewords are infinite, so they never come first.
__attribute__((noinline)) void assign_canonically(const PqCodebook* book, const float* row, int32_t* out) {
    using S = Simd;
    alignas(64) float iota[S::lanes];
    for (int i = 0; i < S::lanes; ++i) iota[i] = static_cast<float>(i);
    auto best = S::set(__builtin_inff()), best_index = S::load(iota);
    for (int64_t j = 0; j < book->codewords; j += S::lanes) {
        auto sum = S::zero();
        for (int64_t s = 0; s < book->dims; ++s) {
            const auto d = S::sub(S::set(row[s]), S::load(book->canonical + s * book->padded + j));
            sum = S::add(sum, S::mul(d, d));
        }
        S::keep_least(sum, S::add(S::load(iota), S::set(static_cast<float>(j))), best, best_index);
    }
    float least[S::lanes], index[S::lanes];
    S::store(least, best);
    S::store(index, best_index);
    int winner = 0;
    for (int i = 1; i < S::lanes; ++i)
        if (least[i] < least[winner] || (least[i] == least[winner] && index[i] < index[winner])) winner = i;
    *out = static_cast<int32_t>(index[winner]);
}

// Half the squared distance of V registers of rows to C codewords of a tile; the two least of every row, tagged, and the least of these C.
// rows: (dims, V registers), minus the rows; half_squares: of the rows; part: the first of the codewords.
template <int V, int C>
ASX_INLINE void nearest_two(int64_t dims, const float* part, const float* rows, const Simd::F (&half_squares)[V], Simd::F (&first)[V],
                            Simd::F (&second)[V], Simd::F (&least)[V]) {
    using S = Simd;
    const float *half_norms = part, *tags = half_norms + kPqTile, *codewords = tags + kPqTile;
    S::F half[V][C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) half[v][c] = S::add(half_squares[v], S::as_floats(S::repeat_words<1>(half_norms + c)));
    for (int64_t s = 0; s < dims; ++s) {
        S::F x[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) x[v] = S::load(rows + (s * V + v) * S::lanes);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const auto codeword = S::as_floats(S::repeat_words<1>(codewords + s * kPqTile + c));
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) half[v][c] = S::fma(x[v], codeword, half[v][c]);
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        const auto tag = S::as_floats(S::repeat_words<1>(tags + c));
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const auto tagged = S::tag(half[v][c], tag);
            second[v] = S::min(S::max(tagged, first[v]), second[v]);
            first[v] = S::min(tagged, first[v]);
            least[v] = c == 0 ? tagged : S::min(tagged, least[v]);
        }
    }
}

void pq_assign(const PqCodebook* book, const float* rows, int64_t stride, int64_t count, float* workspace, int32_t* out,
               int64_t out_stride) {
    using S = Simd;
    constexpr int V = 2, C = S::lanes == 16 ? 8 : 4, together = V * S::lanes;
    static_assert(together <= kPqAssigned, "fits the workspace");
    if (book->codewords > 256) {
        for (int64_t i = 0; i < count; ++i) assign_canonically(book, rows + i * stride, out + i * out_stride);
        return;
    }
    for (int64_t start = 0; start < count; start += together) {
        const float* from = rows + start * stride;
        const int64_t here = count - start < together ? count - start : together;
        for (int64_t r = 0; r < together; ++r) {
            const float* row = from + (r < here ? r : 0) * stride;
            // The row's next subspace, on its way while this one is compared: of a block of wide rows little stays near.
            for (int64_t s = 0; s < book->dims; s += 16)
                __builtin_prefetch(row + book->dims + (s + 15 < book->dims ? s + 15 : book->dims - 1));
            for (int64_t s = 0; s < book->dims; ++s) workspace[s * together + r] = book->center[s] - row[s];
        }
        S::F squares[V], half_squares[V], first[V], second[V];
        for (int v = 0; v < V; ++v) squares[v] = S::zero();
        for (int64_t s = 0; s < book->dims; ++s)
            for (int v = 0; v < V; ++v) {
                const auto x = S::load(workspace + s * together + v * S::lanes);
                squares[v] = S::fma(x, x, squares[v]);
            }
        for (int v = 0; v < V; ++v) {
            half_squares[v] = S::mul(squares[v], S::set(0.5f));
            first[v] = second[v] = S::set(__builtin_inff());
        }
        S::F least[V];
        const float* tile = book->tiles;
        for (int64_t j = 0; j < book->codewords; j += kPqTile, tile += (book->dims + 2) * kPqTile)
            for (int part = 0; part < kPqTile; part += C)
                nearest_two<V, C>(book->dims, tile + part, workspace, half_squares, first, second, least);
        for (int v = 0; v < V; ++v) {
            float best[S::lanes];
            S::store(best, first[v]);
            const auto reach = S::add(S::sqrt(squares[v]), S::set(book->radius));
            const auto square = S::mul(reach, reach);
            const auto error = S::add(S::mul(square, S::set(static_cast<float>(2 * book->dims + 16) * 0x1p-23f)), S::set(1e-36f));
            const auto margin = S::add(error, S::mul(second[v], S::set(0x1.1p-14f)));
            const uint32_t doubtful = S::not_less(S::add(first[v], margin), second[v]) | S::not_less(square, S::set(1e37f));
            for (int i = 0; i < S::lanes && v * S::lanes + i < here; ++i) {
                const int64_t r = v * S::lanes + i;
                int32_t* to = out + (start + r) * out_stride;
                if (doubtful >> i & 1)
                    assign_canonically(book, from + r * stride, to);
                else
                    *to = static_cast<int32_t>(read<uint32_t>(best + i) & 255u);
            }
        }
    }
}

} // namespace
} // namespace asx::ASX_TARGET
