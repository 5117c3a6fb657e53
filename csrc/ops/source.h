// What the levels of a cascade are made of, for queries that come later: rows, and how queries are made ready for them. It is what
// representations do in Python, with the same bits, for searches so small that calls from there would take longer than the search.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "ops/cascade.h"
#include "ops/pq.h"

namespace asx {

bool all_finite(const float* values, int64_t count);

// Scores are about intercept + slope * key, on the scales on which queries of any length are alike: see margins.py. Margins are in the intercept.
struct Line {
    double intercept, slope;
};

class Source {
public:
    Source(const KernelTable& table, std::shared_ptr<const Rows> rows, Metric metric, int64_t dim)
        : table_(table), rows_(std::move(rows)), metric_(metric), dim_(dim) {}
    virtual ~Source() = default;

    int64_t dim() const { return dim_; }
    const std::shared_ptr<const Rows>& rows() const { return rows_; }
    // Appends its level for queries (count, dim), and that of its lists; false if their scores are too large for float32.
    virtual bool add(const float* queries, int64_t count, bool scan, std::vector<Level>& levels) const = 0;

protected:
    std::vector<float> unit(const float* queries, int64_t count, int64_t dims) const;
    // What scores of a query are proportional to.
    std::vector<double> units(const float* queries, int64_t count) const;

    const KernelTable& table_;
    std::shared_ptr<const Rows> rows_;
    Metric metric_;
    int64_t dim_;
};

class FullSource final : public Source {
public:
    using Source::Source;
    bool add(const float* queries, int64_t count, bool scan, std::vector<Level>& levels) const override;
};

// Codes of the first `dims` dims of rows, or of as many directions (dims, dim). whole: of unit rows cut off, else unit rows of what is left.
struct Coded {
    int64_t dims;
    const float* directions = nullptr;
    bool whole = false;
};

class CodedSource : public Source {
public:
    CodedSource(const KernelTable& table, std::shared_ptr<const Rows> rows, Metric metric, int64_t dim, Coded coded, Line line)
        : Source(table, std::move(rows), metric, dim), line_(line), coded_(coded) {}

protected:
    // (count, dims); of unit length for cosine, but for `whole` ones.
    std::vector<float> coordinates(const float* queries, int64_t count) const;
    // Canonical products of vectors (count, dims) with a matrix (rows, dims), within the range of float32.
    std::vector<float> mapped(const std::vector<float>& vectors, int64_t count, const float* matrix, int64_t rows, int64_t dims) const;
    int64_t dims() const { return coded_.dims; }

    Line line_;

private:
    Coded coded_;
};

// For inner products and cosines.
class IntegerSource final : public CodedSource {
public:
    IntegerSource(const KernelTable& table, std::shared_ptr<const Rows> rows, Metric metric, int64_t dim, Coded coded, Line line,
                  const float* scales)
        : CodedSource(table, std::move(rows), metric, dim, coded, line), scales_(scales) {}
    bool add(const float* queries, int64_t count, bool scan, std::vector<Level>& levels) const override;

private:
    const float* scales_;
};

// Inverted lists before codes: numbers of rows' lists, and the lists' centroids, coded.
struct CodedLists {
    std::shared_ptr<const Rows> rows, centroids;
    Line line;
};

// For inner products and cosines. rotation (dims, dims) or null; tables of 4 bits are made whole.
class PqSource final : public CodedSource {
public:
    PqSource(const KernelTable& table, std::shared_ptr<const Rows> rows, Metric metric, int64_t dim, Coded coded, Line line,
             Codebooks codebooks, int64_t subspaces, int bits, const float* rotation, std::optional<CodedLists> lists)
        : CodedSource(table, std::move(rows), metric, dim, coded, line), codebooks_(std::move(codebooks)), subspaces_(subspaces),
          bits_(bits), rotation_(rotation), lists_(std::move(lists)) {
        codebooks_.keep_transposed();
    }
    bool add(const float* queries, int64_t count, bool scan, std::vector<Level>& levels) const override;

private:
    Codebooks codebooks_;
    int64_t subspaces_;
    int bits_;
    const float* rotation_;
    std::optional<CodedLists> lists_;
};

}  // namespace asx
