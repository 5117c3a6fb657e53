// int8 rows with integer queries.
#pragma once

#include <memory>
#include <vector>

#include "ops/problem.h"

namespace asx {

// Queries as 7-bit integers with the scales of int8 rows folded in: see backends/protocol.py. codes (count, dims), steps (count).
void integer_queries(const float* queries, int64_t count, int64_t dims, const float* scales, int8_t* codes, double* steps);

enum class IntegerMetric { ip, l2, l2_exact };

class IntegerProblem final : public Problem {
public:
    // scaled: products are multiplied with the rows' weights. margins: per query, for rows that come with weights; else null.
    IntegerProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, const int8_t* codes, int64_t count, const float* factors,
                   const float* offsets, IntegerMetric metric, bool scaled, const double* margins, bool scan);

    void canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const override;
    bool exact() const override { return metric_ != IntegerMetric::l2_exact; }
    void prepare(Block& block, const Chunk& chunk, int64_t start, Workspace& workspace) const override;

private:
    const KernelTable& table_;
    IntegerMetric metric_;
    std::vector<int8_t> codes_;
    std::vector<float> factors_, offsets_;      // signed so that keys are larger for better rows
    float query_norm_ = 0.0f;
    bool needs_row_sums_ = false, scaled_, weighted_;
};

}  // namespace asx
