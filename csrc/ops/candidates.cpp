#include "ops/candidates.h"

#include <algorithm>

namespace asx {

void Candidates::shrink(const Problem& problem, int64_t query, int64_t k) {
    const auto kth = items_.begin() + (k - 1);
    std::nth_element(items_.begin(), kth, items_.end(), [](const Candidate& a, const Candidate& b) { return a.lower > b.lower; });
    threshold_ = std::max(threshold_, kth->lower);
    items_.erase(std::remove_if(items_.begin(), items_.end(), [&](const Candidate& c) { return c.upper < threshold_; }), items_.end());
    if (static_cast<int64_t>(items_.size()) > k + k / 2 + 48) settle(problem, query, k);
}

void Candidates::settle(const Problem& problem, int64_t query, int64_t k) {
    const auto first_inexact = std::partition(items_.begin(), items_.end(), [](const Candidate& c) { return c.exact(); });
    if (first_inexact != items_.end()) {
        std::sort(first_inexact, items_.end(), [](const Candidate& a, const Candidate& b) { return a.row < b.row; });
        const auto count = static_cast<size_t>(items_.end() - first_inexact);
        std::vector<int64_t> rows(count);
        std::vector<float> keys(count);
        for (size_t i = 0; i < count; ++i) rows[i] = first_inexact[static_cast<std::ptrdiff_t>(i)].row;
        problem.canonical(query, rows.data(), static_cast<int64_t>(count), keys.data());
        for (size_t i = 0; i < count; ++i) {
            Candidate& c = first_inexact[static_cast<std::ptrdiff_t>(i)];
            c.lower = c.upper = keys[i];
        }
    }
    if (static_cast<int64_t>(items_.size()) <= k) return;
    const Rows& rows = problem.rows();
    std::nth_element(items_.begin(), items_.begin() + (k - 1), items_.end(), [&](const Candidate& a, const Candidate& b) {
        return a.lower != b.lower ? a.lower > b.lower : rows.id(a.row) < rows.id(b.row);
    });
    items_.resize(static_cast<size_t>(k));
    threshold_ = std::max(threshold_, items_.back().lower);
}

const std::vector<Candidate>& Candidates::best(const Problem& problem, int64_t query, int64_t k) {
    settle(problem, query, k);
    const Rows& rows = problem.rows();
    std::sort(items_.begin(), items_.end(), [&](const Candidate& a, const Candidate& b) {
        return a.lower != b.lower ? a.lower > b.lower : rows.id(a.row) < rows.id(b.row);
    });
    return items_;
}

}  // namespace asx
