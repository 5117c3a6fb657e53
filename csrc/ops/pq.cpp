#include "ops/pq.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace asx {

namespace {

constexpr int64_t kAhead = 12288;       // bytes: measured 6 to 18 KiB, all within 15% from 9 KiB on

}  // namespace

PqProblem::PqProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, int64_t subspaces, int bits, const float* tables,
                     int64_t count, bool largest, bool scan)
    : Problem(std::move(rows), count, !largest), subspaces_(subspaces), bits_(bits), tables_(tables) {
    has_row_slack_ = false;
    in_pq_blocks_ = true;
    if (!scan) return;
    slack_.resize(static_cast<size_t>(count));
    block_rows_ = count > 1 ? cached_rows(bits == 8 ? subspaces : (subspaces + 1) / 2) : kBlockRows;
    const std::vector<int64_t> widths = {subspaces};
    pack(table.pq[bits == 8], tables, subspaces * (int64_t{1} << bits) * 4, widths, nullptr, nullptr, largest);
}

void PqProblem::canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const {
    const int64_t entries = int64_t{1} << bits_;
    const float* table = tables_ + query * subspaces_ * entries;
    for (int64_t i = 0; i < count; ++i) {
        const Chunk& chunk = rows_->chunk_of(rows[i]);
        const int64_t local = rows[i] - chunk.first;
        const uint8_t* codes = chunk.pieces[0].base + local / kPqBlock * chunk.pieces[0].stride + local % kPqBlock;
        float sum = 0.0f;
        for (int64_t m = 0; m < subspaces_; ++m) {
            const int64_t code = bits_ == 8 ? codes[m * kPqBlock] : codes[m / 2 * kPqBlock] >> (m % 2 * 4) & 15;
            sum = m == 0 ? table[code] : sum + table[m * entries + code];
        }
        keys[i] = smallest_first_ ? -sum : sum;
    }
}

void PqProblem::prepare(Block& block, const Chunk&, int64_t, Workspace&) const {
    block.pieces[0].width = subspaces_;
    block.ahead = kAhead;
    block.ready = true;
}

Codebooks::Codebooks(const float* codebooks, int64_t subspaces, int64_t codewords, int64_t dims)
    : subspaces_(subspaces), codewords_(codewords), dims_(dims), padded_((codewords + 15) / 16 * 16),
      transposed_(static_cast<size_t>(subspaces * dims * padded_), std::numeric_limits<float>::infinity()) {
    for (int64_t m = 0; m < subspaces; ++m)
        for (int64_t j = 0; j < codewords; ++j)
            for (int64_t s = 0; s < dims; ++s)
                transposed_[static_cast<size_t>((m * dims + s) * padded_ + j)] = codebooks[(m * codewords + j) * dims + s];
}

void Codebooks::tables(const KernelTable& table, const float* queries, int64_t count, int64_t query_dims, bool squared, float* out) const {
    std::vector<float> padded(static_cast<size_t>(subspaces_ * dims_), 0.0f);
    for (int64_t q = 0; q < count; ++q) {
        std::copy_n(queries + q * query_dims, query_dims, padded.begin());
        for (int64_t m = 0; m < subspaces_; ++m)
            table.pq_table(padded.data() + m * dims_, of(m), dims_, codewords_, padded_, squared, out + (q * subspaces_ + m) * codewords_);
    }
}

void Codebooks::assign(const KernelTable& table, const float* vectors, int64_t stride, int64_t count, int64_t vector_dims,
                       int32_t* out) const {
    const bool whole = vector_dims == subspaces_ * dims_;
    constexpr int64_t block = 64;
    std::vector<float> padded(whole ? 0 : static_cast<size_t>(block * subspaces_ * dims_), 0.0f);
    for (int64_t first = 0; first < count; first += block) {
        const int64_t rows = std::min(block, count - first);
        const float* from = vectors + first * stride;
        int64_t step = stride;
        if (!whole) {
            step = subspaces_ * dims_;
            for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * stride, vector_dims, padded.begin() + r * step);
            from = padded.data();
        }
        for (int64_t m = 0; m < subspaces_; ++m)
            table.pq_assign(from + m * dims_, step, rows, of(m), dims_, codewords_, padded_, out + first * subspaces_ + m, subspaces_);
    }
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
