// The rows that can still be among the k best of one query, with bounds on their canonical keys.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/problem.h"

namespace asx {

struct Candidate {
    float lower, upper;         // the canonical key lies between them
    int64_t row;
    bool exact() const { return lower == upper; }
};

// Floats as integers in the same order; -0 and +0 are equal as keys and must stay so.
inline uint32_t ordered(float x) {
    uint32_t bits;
    const float positive_zero = x + 0.0f;
    std::memcpy(&bits, &positive_zero, 4);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// By (key, id), best first; the keys are exact.
void sort_best(std::vector<Candidate>& items, const Rows& rows);

class Candidates {
public:
    explicit Candidates(float threshold = kLowest) : threshold_(threshold) {}

    // Not worse than this can still matter: the k-th largest lower bound.
    float threshold() const { return threshold_; }
    // Others hold k rows whose lower bounds reach it.
    void raise(float threshold) { threshold_ = std::max(threshold_, threshold); }

    void add(const Problem& problem, int64_t query, int64_t k, Candidate candidate) {
        if (candidate.upper < threshold_) return;
        items_.push_back(candidate);
        // The keys of PQ rows that pass are dearer than to raise the threshold often.
        const bool often = problem.in_pq_blocks();
        if (static_cast<int64_t>(items_.size()) >= (often ? k + k / 4 + 32 : 2 * k + 64))
            shrink(problem, query, k, often ? k + k / 8 + 16 : k + k / 2 + 48);
    }

    // The k best by (key, id), canonical and sorted; fewer if there are fewer.
    const std::vector<Candidate>& best(const Problem& problem, int64_t query, int64_t k);
    const std::vector<Candidate>& items() const { return items_; }

private:
    // Raises the threshold and drops what is below it; settles near-ties by canonical keys when that leaves more than `enough`. This is well below
    // where `add` shrinks, which would else happen for every one of many ties.
    void shrink(const Problem& problem, int64_t query, int64_t k, int64_t enough);
    // Scores all inexact candidates canonically and cuts to the k best by (key, id).
    void settle(const Problem& problem, int64_t query, int64_t k);

    std::vector<Candidate> items_;
    float threshold_;
};

}  // namespace asx
