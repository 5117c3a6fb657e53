// Dense rows with float queries.
#pragma once

#include <memory>
#include <vector>

#include "ops/problem.h"

namespace asx {

// The unit queries u of the canonical cosine: float32(q / norm64(q)), the zero query stays zero.
void unit_queries(const KernelTable& table, const float* queries, int64_t count, int64_t dims, float* out);

// Canonical products of each of the `count` queries with each of the n rows of a matrix, all of `dims` contiguous floats: out (count, n).
void map_queries(const KernelTable& table, const float* queries, int64_t count, const float* matrix, int64_t n, int64_t dims, float* out);

// Canonical norms of all rows of a chunk; upward: the next float32 not below the norm.
void row_norms(const KernelTable& table, Kind kind, const Chunk& chunk, bool upward, float* out);

class DenseProblem : public Problem {
public:
    // scan: whether queries are packed for scanning; otherwise the problem is for rescoring only.
    DenseProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, const float* queries, int64_t count, Metric metric, bool scan);

    void canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const override;
    void prepare(Block& block, const Chunk& chunk, int64_t start, Workspace& workspace) const override;
    int64_t first_bad_row(const Block& block, const Chunk& chunk, int64_t start, int64_t from) const override;
    int64_t unpacked_bytes() const override;
    bool is_bad_row(int64_t row) const override;

protected:
    DenseProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, int64_t count, Metric metric, std::vector<float> queries);

    const float* query(int64_t number) const { return canonical_queries_.data() + number * rows_->dims(); }
    double query_norm(int64_t number) const;
    // How scans will read the rows, and how far that is from exact: keys of a row are off by so much of |q||x|, and by so much more.
    struct Rounding {
        float relative;
        double flushed;         // of each operand, where subnormal numbers count as zero
    };
    Rounding plan_scan();
    void pack_queries();        // once the slacks are known
    // Canonical sums of rows (global numbers, rising); then `finish(chunk, local row, sum)` makes them keys.
    template <class Finish> void sums(int64_t query, const int64_t* rows, int64_t count, bool squared, float* keys, Finish finish) const;

    const KernelTable& table_;
    Metric metric_;

private:
    std::vector<float> canonical_queries_;      // as given, or unit for cosine
    bool unpack_ = false, leave_terms_ = false;
    float query_norm_ = 0.0f;
};

// The first dims of rows as an estimate of whole scores: as if what is left out were orthogonal to the query. Rows come with the norms of
// whole rows; their weights times a query's margin say how much the rest may add.
// Keys, in float64 from the canonical product p of the prefixes, then rounded: p, p/|x| (cosine, unit queries), 2p - |q|^2 - |x|^2 (l2).
class PrefixProblem final : public DenseProblem {
public:
    // queries: prefixes, for cosine of unit queries. squares: |q|^2 of the whole queries, for l2. largest: no row has a larger norm.
    PrefixProblem(const KernelTable& table, std::shared_ptr<const Rows> rows, const float* queries, int64_t count, Metric metric,
                  const double* squares, const double* margins, double largest, bool scan);

    void canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const override;
    void prepare(Block& block, const Chunk& chunk, int64_t start, Workspace& workspace) const override;

private:
    std::vector<double> squares_;
};

// Plain products of rows first..last into out[query * out_stride + row - first]; returns the first bad row or -1.
int64_t dense_dot(const KernelTable& table, const Rows& rows, const float* queries, int64_t count, int64_t first, int64_t last, float* out,
                  int64_t out_stride);

}  // namespace asx
