// A top-k in progress: candidates per query, carried from visit to visit and merged across threads.
#pragma once

#include <algorithm>
#include <atomic>
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

// Walks over the blocks of rows. What becomes of the survivors, and from where on a row is one, is up to the kind of scan.
class Scan {
public:
    Scan(int64_t queries, int64_t k, Allowed allowed) : queries_(queries), k_(k), allowed_(allowed) {}
    virtual ~Scan() = default;

    int64_t queries() const { return queries_; }
    int64_t k() const { return k_; }
    int64_t bad_row() const { return bad_row_; }

    virtual std::unique_ptr<Scan> fork() const = 0;
    virtual void run(int64_t first_visit, int64_t last_visit) = 0;
    virtual void merge(const Scan& other) = 0;
    // (queries, k) scores and rows, best first; NaN and -1 beyond the rows there are.
    virtual void finish(float* scores, int64_t* rows) = 0;
    // Cascades: rows that each stage after the first scored, (stages, queries).
    virtual std::vector<int64_t> scored() const { return {}; }

protected:
    // Rows that may be scanned at a time; `most` is what the problem at hand can take.
    int64_t next_step(int64_t most) { return step_ = std::min(step_, most); }
    void lengthen_step() { step_ *= 2; }

    void scan_block(const Problem& problem, const Chunk& chunk, int64_t start, int64_t count, Workspace& workspace);
    void scan_group(const Problem& problem, const Group& group, const Block& block, int64_t first_row, Survivors& survivors);
    // From where on the query's canonical keys matter.
    virtual float threshold(int64_t query) const = 0;
    // Takes over all survivors of a block whose first row has this number, and clears them.
    virtual void drain(const Problem& problem, const Group& group, const Block& block, int64_t first_row, Survivors& survivors) = 0;
    bool allows(int64_t query, int64_t row) const { return !allowed_.stride || allowed_.bytes[query * allowed_.stride + row]; }
    // The same where no kernel has looked at what all queries may return.
    bool allows_at_all(int64_t query, int64_t row) const { return !allowed_.bytes || allowed_.bytes[query * allowed_.stride + row]; }
    void note_bad_row(int64_t row) { bad_row_ = bad_row_ < 0 ? row : std::min(bad_row_, row); }
    Allowed allowed() const { return allowed_; }

private:
    bool any_allowed(int64_t first_row, int64_t count) const;
    bool some_query_allows(int64_t row) const;

    int64_t queries_, k_;
    Allowed allowed_;
    int64_t bad_row_ = -1;
    int64_t step_ = 96;         // few rows at first, so that thresholds come before whole blocks survive
};

// The k rows of the best canonical keys; floors: per query, the key from which on rows are wanted, or none. share: a sample is enough, one of so
// many runs of 64 rows; every visit has some, as rows that lie together may be alike.
class TopK final : public Scan {
public:
    TopK(std::shared_ptr<const Problem> problem, int64_t k, Allowed allowed, std::vector<float> floors = {}, int64_t share = 1);

    std::unique_ptr<Scan> fork() const override;
    void run(int64_t first_visit, int64_t last_visit) override;
    void merge(const Scan& other) override;
    void finish(float* scores, int64_t* rows) override;

private:
    float threshold(int64_t query) const override { return candidates_[static_cast<size_t>(query)].threshold(); }
    void drain(const Problem& problem, const Group& group, const Block& block, int64_t first_row, Survivors& survivors) override;

    void exchange_thresholds();

    std::shared_ptr<const Problem> problem_;
    std::vector<float> floors_;
    int64_t share_;
    std::vector<Candidates> candidates_;
    // Per query the highest threshold of all forks: k rows that one of them holds reach it, so that none need look at less. Null for one visit.
    std::shared_ptr<std::atomic<float>[]> thresholds_;
};

// The k first of sorted candidates as (k) scores and rows; NaN and -1 where there are fewer.
void write_best(const std::vector<Candidate>& best, bool smallest_first, int64_t k, float* scores, int64_t* rows);

// Canonical top-k of candidate lists (queries, width): -1 is none, a row named twice counts once. Returns the smallest row among them
// that holds NaN or infinity, or -1.
int64_t rescore(const Problem& problem, const int64_t* lists, int64_t width, int64_t k, float* scores, int64_t* rows);

}  // namespace asx
