// Adaptive cascades: a cheap stage looks at every row, dearer ones at what can still be among the k best, the last one decides.
//
// Each stage but the last bounds a row's score from above: upper = estimate + margin. The value of a row is the smaller of its score and of
// its upper bounds, and the answer is the k rows of the best (value, score, id): a function of the query, the stages and the rows alone. A row
// whose upper bound is below the k-th best value found so far is dropped: its own value is no larger, so it cannot be among the k best. Hence
// it matters to no answer in which order blocks are visited, how threads share them, or which rows were scored early to have a threshold.
// Bounds that cannot fail make values scores, and the answer exact. Other margins trade recall for speed.
#pragma once

#include <memory>
#include <vector>

#include "ops/scan.h"

namespace asx {

// A stage for a batch of queries: upper = (offset + factor * key) + margin * weight of the row, in float64. The last stage's score is
// offset + factor * key.
struct Level {
    std::shared_ptr<const Problem> problem;
    std::vector<double> offset, factor; // per query; factors are positive
    std::vector<double> margin; // per query, or empty: rows have no weights

    double estimate(int64_t query, float key) const {
        return offset[static_cast<size_t>(query)] + factor[static_cast<size_t>(query)] * static_cast<double>(key);
    }
    double upper(int64_t query, float key, int64_t row) const;
    // What keys reach whose estimate is not below `least`, before any margin.
    float least_key(int64_t query, double least) const;
    double row_cost() const; // about how many nanoseconds a row takes whose place is random
    double pair_cost() const; // and a row for one of the batch's queries when all rows are scanned
};

class Listing;

struct Cascade {
    std::vector<Level> levels;
    Level judge;
    bool flat; // whether the judge can scan as well, which is faster when bounds do not help
    bool hard; // whether no bound can fail
};

class CascadeScan final : public Scan {
public:
    // floors: per query, a value that at least k rows reach, among those that will be scanned, or infinity to find nothing; or null.
    CascadeScan(std::shared_ptr<const Cascade> cascade, int64_t k, Allowed allowed, const double* floors);

    std::unique_ptr<Scan> fork() const override { return std::make_unique<CascadeScan>(cascade_, k(), allowed(), floors_.data()); }
    void run(int64_t first_visit, int64_t last_visit) override;
    // Takes the rows of a list instead of a scan's survivors, each named once; keys: the first level's canonical ones, or null.
    void take(int64_t query, const int64_t* rows, const float* keys, int64_t count);
    // A query at the door of its lists, for a cascade whose first level is one of PQ codes and whose second is one of lists (`ListProblem`).
    struct Entrance {
        Group alone;
        std::vector<float> keys; // of lists
        uint32_t best; // of them
    };
    Entrance enter(int64_t query) const;
    // Takes the query through its lists. False: so much is left that scoring whole rows one after the other takes less time.
    bool search(int64_t query, const Entrance& entrance, const Listing& listing);
    // The k-th best value so far, minus infinity if there are fewer.
    double least(int64_t query) const { return least_[static_cast<size_t>(query)]; }
    void merge(const Scan& other) override;
    void finish(float* scores, int64_t* rows) override;
    void finish_query(int64_t query, float* scores, int64_t* rows) const;
    std::vector<int64_t> scored() const override { return scored_; }

private:
    static constexpr size_t kTogether = 16; // rows of one query taken through the levels at a time: enough to hide the memory's latency

    struct Pending {
        double upper;
        int64_t row;
        size_t next; // the level that looks at it next
    };
    struct Held {
        double value;
        float key; // where values are the same: finer than the score that is made of it, which rounds
        int64_t row;
    };

    float threshold(int64_t query) const override;
    void drain(const Problem& problem, const Group& group, const Block& block, int64_t first_row, Survivors& survivors) override;
    // Scans the runs at hand; what survives is pending.
    void scan_runs(int64_t query, const Group& alone, Survivors& survivors);
    // Takes all pending rows of the query through the levels, best first.
    void refine(int64_t query);
    // Scores the items with the level, if that is next, and drops those that cannot matter; returns how many are left.
    size_t narrow(int64_t query, size_t level, Pending* items, size_t count);
    void judge(int64_t query, const Pending* items, size_t count);
    void hold(int64_t query, const Held& held);
    bool better(const Held& a, const Held& b) const;
    // Whether the block just scanned left so few rows that scoring them costs less than scanning whole rows would have.
    bool worth_it(int64_t count) const;
    // What rows of lists that have survived are looked at in next.
    const Rows& after_lists() const;
    void forget_block(int64_t first_row, int64_t count);

    std::shared_ptr<const Cascade> cascade_;
    std::vector<std::vector<Pending>> pending_;
    std::vector<std::vector<Held>> held_; // heaps, the worst on top
    std::vector<double> floors_, least_; // per query: the k-th best value at least, and as far as is known by now
    std::vector<int64_t> scored_;
    size_t filter_ = 0; // the level that scans; those before it have not helped
    bool whole_ = false; // the block at hand is scanned by the judge
    int64_t whole_rows_; // how many more are
    int64_t back_off_; // how many will be when the first level fails to help
    int64_t taken_ = 0; // survivors of the block at hand
    double spent_ = 0.0, settled_ = 0.0; // on how many survivors: what they cost after the first level
    std::vector<int64_t> rows_;
    std::vector<float> keys_;
    struct RowsOfRun {
        const uint32_t* places; // their numbers
        float list_key;
    };
    bool by_lists_ = false;
    std::vector<PqRun> runs_; // parts of lists
    std::vector<RowsOfRun> rows_of_runs_;
    std::vector<uint32_t> found_, order_; // lists that can matter
};

} // namespace asx
