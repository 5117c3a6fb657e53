// A top-k in progress: candidates per query, carried from visit to visit and merged across threads.
#pragma once

#include <memory>
#include <vector>

#include "ops/candidates.h"
#include "ops/problem.h"

namespace asx {

// Which rows a query may return: one byte a row. stride 0: the same for all queries.
struct Allowed {
    const uint8_t* bytes = nullptr;
    int64_t stride = 0;
};

class Scan {
public:
    Scan(std::shared_ptr<const Problem> problem, int64_t k, Allowed allowed);

    int64_t queries() const { return problem_->queries(); }
    int64_t k() const { return k_; }
    int64_t bad_row() const { return bad_row_; }

    std::unique_ptr<Scan> fork() const { return std::make_unique<Scan>(problem_, k_, allowed_); }
    void run(int64_t first_visit, int64_t last_visit);
    void merge(const Scan& other);
    // (queries, k) scores and rows, best first; NaN and -1 beyond the rows there are.
    void finish(float* scores, int64_t* rows);

private:
    void scan_block(const Chunk& chunk, int64_t start, int64_t count, Workspace& workspace);
    void scan_group(const Group& group, const Block& block, int64_t first_row, Survivors& survivors);
    void drain(const Group& group, const Block& block, int64_t first_row, Survivors& survivors);
    bool any_allowed(int64_t first_row, int64_t count) const;
    bool some_query_allows(int64_t row) const;
    void note_bad_row(int64_t row);

    std::shared_ptr<const Problem> problem_;
    int64_t k_;
    Allowed allowed_;
    int64_t bad_row_ = -1;
    int64_t step_;              // rows scanned at a time: few at first, so that thresholds come before whole blocks survive
    std::vector<Candidates> candidates_;
};

// Canonical top-k of candidate lists (queries, width): -1 is none, a row named twice counts once. Returns the smallest row among them
// that holds NaN or infinity, or -1.
int64_t rescore(const Problem& problem, const int64_t* lists, int64_t width, int64_t k, float* scores, int64_t* rows);

}  // namespace asx
