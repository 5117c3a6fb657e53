#include "ops/integer.h"

#include <algorithm>
#include <cmath>

#include "ops/bounds.h"

namespace asx {

IntegerProblem::IntegerProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, const int8_t* codes, int64_t count,
                               const float* factors, const float* offsets, IntegerMetric metric, bool scaled, const double* margins,
                               bool scan)
    : Problem(std::move(rows), count, metric != IntegerMetric::ip), table_(table), metric_(metric), scaled_(scaled),
      weighted_(margins != nullptr) {
    const int64_t dims = rows_->dims();
    codes_.assign(codes, codes + count * dims);
    const float sign = metric == IntegerMetric::ip ? 1.0f : -1.0f;
    factors_.resize(static_cast<size_t>(count));
    offsets_.resize(static_cast<size_t>(count));
    has_row_slack_ = metric == IntegerMetric::l2_exact;
    for (int64_t q = 0; q < count; ++q) {
        if (metric == IntegerMetric::l2_exact) {
            const double square = static_cast<double>(table.c.dot_i8(codes + q * dims, codes + q * dims, static_cast<uint64_t>(dims)));
            query_norm_ = std::max(query_norm_, round_up(std::sqrt(square)));
            factors_[static_cast<size_t>(q)] = 2.0f;
            offsets_[static_cast<size_t>(q)] = -static_cast<float>(square);
            slack_.push_back(relative_slack(dims));
        } else {
            factors_[static_cast<size_t>(q)] = sign * factors[q];
            offsets_[static_cast<size_t>(q)] = sign * offsets[q];
            slack_.push_back(margins ? kernel_margin(margins[q]) : 0.0f);
        }
    }
    if (!scan) return;
    const bool seven_bits = std::all_of(codes_.begin(), codes_.end(), [](int8_t c) { return -64 <= c && c < 64; });
    const Family& family = seven_bits ? table.integer7 : table.integer8;
    needs_row_sums_ = choose_shape(family, count).queries > family.shapes[0].queries;
    if (needs_row_sums_) block_rows_ = cached_rows(dims);
    pack(family, {codes_.data(), dims, rows_->widths(), factors_.data(), offsets_.data(), true});
}

void IntegerProblem::canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const {
    const int8_t* code = codes_.data() + query * rows_->dims();
    constexpr int64_t ahead = 2, line = 64;
    const auto fetch = [&](int64_t i) {
        if (i >= count) return;
        const Chunk& chunk = rows_->chunk_of(rows[i]);
        for (const Piece& piece : chunk.pieces)
            for (int64_t at = 0; at < piece.width; at += line) __builtin_prefetch(piece.base + (rows[i] - chunk.first) * piece.stride + at);
    };
    for (int64_t i = 0; i < ahead; ++i) fetch(i);
    for (int64_t i = 0; i < count; ++i) {
        fetch(i + ahead);
        const Chunk& chunk = rows_->chunk_of(rows[i]);
        const int64_t local = rows[i] - chunk.first;
        int64_t at = 0;
        int32_t dot = 0;
        int64_t squares = 0;
        for (const Piece& piece : chunk.pieces) {
            const auto* row = reinterpret_cast<const int8_t*>(piece.base + local * piece.stride);
            dot += table_.c.dot_i8(code + at, row, static_cast<uint64_t>(piece.width));
            if (metric_ == IntegerMetric::l2_exact)
                squares += int64_t{table_.c.dot_i8(row, row, static_cast<uint64_t>(piece.width))} +
                           table_.c.dot_i8(code + at, code + at, static_cast<uint64_t>(piece.width));
            at += piece.width;
        }
        if (metric_ == IntegerMetric::l2_exact) {
            keys[i] = -static_cast<float>(squares - 2 * int64_t{dot});
        } else {
            const float bias = metric_ == IntegerMetric::l2 ? -chunk.norms[local] : 0.0f;
            const float base =
                metric_ == IntegerMetric::l2 ? offsets_[static_cast<size_t>(query)] + bias : offsets_[static_cast<size_t>(query)];
            const float sum = static_cast<float>(dot);
            const float scaled = scaled_ ? chunk.weights[local] * sum : sum;
            const float product = factors_[static_cast<size_t>(query)] * scaled;
            keys[i] = base + product;
        }
    }
}

void IntegerProblem::prepare(Block& block, const Chunk& chunk, int64_t start, Workspace&) const {
    block.metric = metric_ == IntegerMetric::ip ? kIp : kL2;
    block.query_norm = query_norm_;
    block.ready = !needs_row_sums_;
    if (metric_ == IntegerMetric::l2_exact) {
        table_.squares[kInt8](&block);
        table_.dense_terms(&block, nullptr);
    } else {
        block.scaled = scaled_;
        if (scaled_) std::copy_n(chunk.weights + start, block.rows, block.scale);
        if (weighted_)
            std::copy_n(chunk.weights + start, block.rows, block.slack);
        else
            std::fill(block.slack, block.slack + block.rows, 0.0f);
        for (int64_t r = 0; metric_ == IntegerMetric::l2 && r < block.rows; ++r) block.bias[r] = -chunk.norms[start + r];
    }
}

void integer_queries(const float* queries, int64_t count, int64_t dims, const float* scales, int8_t* codes, double* steps) {
    constexpr double limit = 63.0, rounder = 0x1.8p52;      // adding and subtracting it rounds to even whole numbers
    std::vector<double> folded(static_cast<size_t>(dims));
    for (int64_t q = 0; q < count; ++q, queries += dims, codes += dims) {
        double most = 0.0;
        for (int64_t i = 0; i < dims; ++i) {
            const double x = static_cast<double>(queries[i]) * static_cast<double>(scales[i]);
            folded[static_cast<size_t>(i)] = x;
            most = std::max(most, std::abs(x));
        }
        steps[q] = most / limit;
        const double step = steps[q] > 0.0 ? steps[q] : 1.0;
        for (int64_t i = 0; i < dims; ++i) {
            const double code = folded[static_cast<size_t>(i)] / step + rounder - rounder;
            codes[i] = std::abs(code) <= limit ? static_cast<int8_t>(code) : int8_t{0};     // else the query is not finite
        }
    }
}

}  // namespace asx
