#include "ops/pq.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/codeword_tiles.h"

namespace asx {

namespace {

constexpr int64_t kAhead = 12288;       // bytes: measured 6 to 18 KiB, all within 15% from 9 KiB on

constexpr int64_t kTogether = 4;       // sums made at once, as one alone waits for every addition
constexpr int64_t kTransposedFrom = 4; // queries
constexpr int64_t kFirstCacheBytes = 16 << 10; // of a first-level cache, with room for queries and their tables

// As the kernel, of codewords as they lie. For a few queries transposing would take longer (64 subspaces of 16 codewords and 6 dims,
// one query: 5.6 us with it, of which the sums are 1.4, and 2.7 without).
template <bool squared> void few_tables(const float* query, const float* codebook, int64_t dims, int64_t codewords, float* out) {
    for (int64_t j = 0; j < codewords; j += kTogether) {
        const int64_t count = std::min(codewords - j, kTogether);
        const float* from[kTogether];
        float sum[kTogether] = {};
        for (int64_t i = 0; i < kTogether; ++i) from[i] = codebook + (j + std::min(i, count - 1)) * dims;
        for (int64_t s = 0; s < dims; ++s)
            for (int64_t i = 0; i < kTogether; ++i) {
                const float d = squared ? query[s] - from[i][s] : query[s];
                sum[i] = sum[i] + d * (squared ? d : from[i][s]);
            }
        for (int64_t i = 0; i < count; ++i) out[j + i] = sum[i];
    }
}

// Sums of the table entries of a few rows, whose codes are 64 bytes apart.
template <int bits> void sum_rows(const float* table, const uint8_t* const (&codes)[kTogether], int64_t subspaces,
                                  float (&sums)[kTogether]) {
    constexpr int64_t entries = int64_t{1} << bits;
    for (int64_t m = 0; m < subspaces; ++m, table += entries)
        for (int64_t i = 0; i < kTogether; ++i) {
            const int64_t code = bits == 8 ? codes[i][m * kPqBlock] : codes[i][m / 2 * kPqBlock] >> (m % 2 * 4) & 15;
            sums[i] = m == 0 ? table[code] : sums[i] + table[code];
        }
}

// Of the nearest codewords of each part, numbered within it, by canonical sums; the first of equals.
int32_t nearest_of(const float* row, const float* codebook, int64_t dims, const int32_t* nearest, int64_t parts) {
    int64_t best = nearest[0];
    float least = std::numeric_limits<float>::infinity();
    for (int64_t p = 0; p < parts; ++p) {
        const int64_t number = p * kTagged + nearest[p];
        float sum = 0.0f;
        for (int64_t s = 0; s < dims; ++s) {
            const float d = row[s] - codebook[number * dims + s];
            sum = sum + d * d;
        }
        if (sum < least) least = sum, best = number;
    }
    return static_cast<int32_t>(best);
}

}  // namespace

PqProblem::PqProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, int64_t subspaces, int bits, const float* tables,
                     int64_t count, bool largest, ScoreScaling scaling, bool scan)
    : Problem(std::move(rows), count, !largest), table_(table), subspaces_(subspaces), bits_(bits), tables_(tables),
      scaling_(std::move(scaling)) {
    in_pq_blocks_ = true;
    if (!largest)
        for (auto* values : {&scaling_.offset, &scaling_.weight})
            for (double& value : *values) value = -value;
    if (!scan) return;
    block_rows_ = count > 1 ? cached_rows(bits == 8 ? subspaces : (subspaces + 1) / 2) : kBlockRows;
    const std::vector<int64_t> widths = {subspaces};
    const bool scaled = !scaling_.offset.empty();
    const Scaling terms =
        scaled ? Scaling{scaling_.offset.data(), scaling_.base.data(), scaling_.step.data(), scaling_.weight.data()} : Scaling{};
    pack(table.pq[bits == 8], {tables, subspaces * (int64_t{1} << bits) * 4, widths, nullptr, nullptr, largest || scaled, terms});
}

void PqProblem::canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const {
    const float* table = tables_ + query * subspaces_ * (int64_t{1} << bits_);
    for (int64_t first = 0; first < count; first += kTogether) {
        const int64_t n = std::min(count - first, kTogether);
        const uint8_t* codes[kTogether];
        float sums[kTogether];
        for (int64_t i = 0; i < kTogether; ++i) {
            const int64_t row = rows[first + std::min(i, n - 1)];
            const Chunk& chunk = rows_->chunk_of(row);
            const int64_t local = row - chunk.first;
            codes[i] = chunk.pieces[0].base + local / kPqBlock * chunk.pieces[0].stride + local % kPqBlock;
        }
        (bits_ == 8 ? sum_rows<8> : sum_rows<4>)(table, codes, subspaces_, sums);
        for (int64_t i = 0; i < n; ++i) keys[first + i] = key_of_sum(query, rows[first + i], sums[i]);
    }
}

float PqProblem::key_of_sum(int64_t query, int64_t row, float sum) const {
    if (scaling_.offset.empty()) return smallest_first_ ? -sum : sum;
    const auto q = static_cast<size_t>(query);
    const Chunk& chunk = rows_->chunk_of(row);
    const int64_t local = row - chunk.first;
    const double term = chunk.norms ? static_cast<double>(chunk.norms[local]) : 0.0;
    const double scale = static_cast<double>(chunk.weights[local]);
    return static_cast<float>(scaling_.offset[q] + scaling_.weight[q] * term +
                              scale * (scaling_.base[q] + scaling_.step[q] * static_cast<double>(sum)));
}

Group PqProblem::alone(int64_t query) const {
    const std::vector<int64_t> widths = {subspaces_};
    return packed(choose_shape(table_.pq[bits_ == 8], 1),
                  {tables_, subspaces_ * (int64_t{1} << bits_) * 4, widths, nullptr, nullptr, !smallest_first_}, query, 1);
}

void PqProblem::keys_of_all(const Group& alone, float* keys) const {
    for (const Chunk& chunk : rows_->chunks())
        for (int64_t done = 0; done < chunk.rows; done += kBlockRows) {
            Block block = {};
            block.n_pieces = 1;
            block.pieces[0] = chunk.pieces[0];
            block.pieces[0].base += done / kPqBlock * chunk.pieces[0].stride;
            block.pieces[0].width = subspaces_;
            block.rows = std::min(kBlockRows, chunk.rows - done);
            alone.shape->fill(&block, alone.packed.get(), keys + chunk.first + done, block.rows);
        }
}

void PqProblem::prepare(Block& block, const Chunk& chunk, int64_t start, Workspace&) const {
    block.pieces[0].width = subspaces_;
    if (!scaling_.offset.empty()) {
        block.scales = chunk.weights + start;
        if (chunk.norms) block.terms = chunk.norms + start;
    }
    block.ahead = kAhead;
    block.ready = true;
}

Codebooks::Codebooks(const float* codebooks, int64_t subspaces, int64_t codewords, int64_t dims)
    : subspaces_(subspaces), codewords_(codewords), dims_(dims), padded_((codewords + 15) / 16 * 16), codebooks_(codebooks) {}

void Codebooks::keep_transposed() {
    transposed_.assign(static_cast<size_t>(subspaces_ * dims_ * padded_), 0.0f);
    for (int64_t m = 0; m < subspaces_; ++m)
        transpose(codebooks_ + m * codewords_ * dims_, codewords_, dims_, padded_, transposed_.data() + m * dims_ * padded_);
}

bool Codebooks::tables(const KernelTable& table, const float* queries, int64_t count, int64_t query_dims, bool squared, float* out) const {
    const int64_t padded_dims = subspaces_ * dims_, each = subspaces_ * codewords_;
    std::vector<float> padded;
    if (query_dims < padded_dims) {
        padded.resize(static_cast<size_t>(count * padded_dims));
        for (int64_t q = 0; q < count; ++q) std::copy_n(queries + q * query_dims, query_dims, padded.begin() + q * padded_dims);
        queries = padded.data();
    }
    const bool kept = !transposed_.empty();
    if (count < kTransposedFrom && !kept) {
        for (int64_t q = 0; q < count; ++q)
            for (int64_t m = 0; m < subspaces_; ++m)
                (squared ? few_tables<true> : few_tables<false>)(queries + q * padded_dims + m * dims_, codebooks_ + m * codewords_ * dims_,
                                                                 dims_, codewords_, out + q * each + m * codewords_);
        return std::all_of(out, out + count * each, [](float x) { return std::isfinite(x); });
    }
    // So many subspaces at a time that their codebooks stay in the first-level cache for all queries.
    const int64_t book = dims_ * padded_;
    const int64_t together = std::clamp<int64_t>(kFirstCacheBytes / std::max<int64_t>(book * 4, 1), 1, std::max<int64_t>(subspaces_, 1));
    std::vector<float> some(static_cast<size_t>(kept ? 0 : together * book));
    bool finite = true;
    for (int64_t m = 0; m < subspaces_; m += together) {
        const int64_t here = std::min(together, subspaces_ - m);
        for (int64_t i = 0; i < here && !kept; ++i)
            transpose(codebooks_ + (m + i) * codewords_ * dims_, codewords_, dims_, padded_, some.data() + i * book);
        const PqBooks books = {here, dims_, codewords_, padded_, kept ? transposed_.data() + m * book : some.data(), squared};
        finite &= table.pq_tables(&books, queries + m * dims_, padded_dims, count, out + m * codewords_, each);
    }
    return finite;
}

void Codebooks::assign(const KernelTable& table, const float* vectors, int64_t stride, int64_t count, int64_t vector_dims,
                       int32_t* out) const {
    const int64_t parts = (codewords_ + kTagged - 1) / kTagged, most = std::min(codewords_, kTagged);
    const int64_t each = prepared_floats(most, dims_);
    std::vector<float> prepared(static_cast<size_t>(subspaces_ * parts * each), std::numeric_limits<float>::infinity());
    std::vector<PqCodebook> books(static_cast<size_t>(subspaces_ * parts));
    for (int64_t m = 0; m < subspaces_; ++m)
        for (int64_t p = 0; p < parts; ++p)
            books[static_cast<size_t>(m * parts + p)] =
                prepare_codebook(codebooks_ + (m * codewords_ + p * kTagged) * dims_, std::min(codewords_ - p * kTagged, kTagged), dims_,
                                 nullptr, prepared.data() + (m * parts + p) * each);
    const bool whole = vector_dims == subspaces_ * dims_;
    // Codewords beyond 256 come in parts, each of which is read from the cache above for so many rows.
    const int64_t block = parts > 1 ? 1024 : 128;
    std::vector<float> padded_rows(whole ? 0 : static_cast<size_t>(block * subspaces_ * dims_), 0.0f);
    std::vector<float> workspace(static_cast<size_t>(kPqAssigned * dims_));
    std::vector<int32_t> nearest(static_cast<size_t>(parts > 1 ? parts * block : 0));
    for (int64_t first = 0; first < count; first += block) {
        const int64_t rows = std::min(block, count - first);
        const float* from = vectors + first * stride;
        int64_t step = stride;
        if (!whole) {
            step = subspaces_ * dims_;
            for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * stride, vector_dims, padded_rows.begin() + r * step);
            from = padded_rows.data();
        }
        for (int64_t m = 0; m < subspaces_; ++m) {
            int32_t* to = out + first * subspaces_ + m;
            if (parts == 1) {
                table.pq_assign(&books[static_cast<size_t>(m)], from + m * dims_, step, rows, workspace.data(), to, subspaces_);
                continue;
            }
            for (int64_t p = 0; p < parts; ++p)
                table.pq_assign(&books[static_cast<size_t>(m * parts + p)], from + m * dims_, step, rows, workspace.data(),
                                nearest.data() + p, parts);
            for (int64_t r = 0; r < rows; ++r)
                to[r * subspaces_] =
                    nearest_of(from + r * step + m * dims_, codebooks_ + m * codewords_ * dims_, dims_, nearest.data() + r * parts, parts);
        }
    }
}

void Codebooks::descend(const KernelTable& table, const float* units, const float* lengths, int64_t count, int64_t vector_dims, float extra,
                        int64_t sweeps, int32_t* codes) const {
    const int64_t tiles = (codewords_ + kPqTile - 1) / kPqTile;
    std::vector<float> prepared(static_cast<size_t>(subspaces_ * tiles * (dims_ + 1) * kPqTile), 0.0f);
    for (int64_t m = 0; m < subspaces_; ++m)
        for (int64_t j = 0; j < tiles * kPqTile; ++j) {
            float* to = prepared.data() + (m * tiles + j / kPqTile) * (dims_ + 1) * kPqTile + j % kPqTile;
            const float* codeword = codebooks_ + (m * codewords_ + j) * dims_;
            to[0] = j < codewords_ ? 0.0f : std::numeric_limits<float>::infinity();
            for (int64_t s = 0; s < dims_ && j < codewords_; ++s) {
                to[0] += codeword[s] * codeword[s];
                to[(s + 1) * kPqTile] = codeword[s];
            }
        }
    std::vector<float> workspace(static_cast<size_t>(kPqAssigned * subspaces_ * (dims_ + 3)));
    const PqLoss loss = {subspaces_, codewords_, dims_, codebooks_, prepared.data(), extra, sweeps};
    table.pq_descend(&loss, units, vector_dims, vector_dims, lengths, count, workspace.data(), codes);
}

void centroid_sums(const uint8_t* points, int64_t stride, int64_t count, int64_t width, const int32_t* nearest, int64_t codewords,
                   double* sums, int64_t* counts) {
    std::fill_n(sums, codewords * width, 0.0);
    std::fill_n(counts, codewords, int64_t{0});
    for (int64_t i = 0; i < count; ++i) {
        const uint8_t* from = points + i * stride;
        double* __restrict to = sums + nearest[i] * width;
        for (int64_t s = 0; s < width; ++s) {
            float x;
            std::memcpy(&x, from + 4 * s, 4);
            to[s] += static_cast<double>(x);
        }
        ++counts[nearest[i]];
    }
}

void make_whole(const KernelTable& table, float* tables, int64_t count, int64_t subspaces, int64_t entries, double* base, double* step) {
    std::vector<float> lows(static_cast<size_t>(subspaces));
    table.pq_whole(tables, count, subspaces, entries, lows.data(), base, step);
}

void pack_codes(const uint8_t* codes, int64_t stride, int64_t rows, int64_t code_bytes, uint8_t* out) {
    for (int64_t first = 0; first < rows; first += kPqBlock, out += code_bytes * kPqBlock) {
        const int64_t count = std::min<int64_t>(kPqBlock, rows - first);
        if (count < kPqBlock) std::memset(out, 0, static_cast<size_t>(code_bytes * kPqBlock));
        for (int64_t r = 0; r < count; ++r)
            for (int64_t b = 0; b < code_bytes; ++b) out[b * kPqBlock + r] = codes[(first + r) * stride + b];
    }
}

void unpack_codes(const uint8_t* packed, int64_t rows, int64_t code_bytes, uint8_t* out) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t b = 0; b < code_bytes; ++b)
            out[r * code_bytes + b] = packed[(r / kPqBlock * code_bytes + b) * kPqBlock + r % kPqBlock];
}

}  // namespace asx
