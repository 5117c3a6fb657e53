#include "ops/candidates.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace asx {

namespace {

float unordered(uint32_t bits) {
    bits = bits >> 31 ? bits & 0x7fffffffu : ~bits;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Selection by counting: a histogram over the range of the keys finds the bin of the k-th largest, and only that bin is selected in.
// Keys are often few distinct values (distances), and moving whole candidates about is several times slower.
float kth_largest_lower(const std::vector<Candidate>& items, int64_t k) {
    constexpr int kBins = 2048;
    thread_local std::vector<uint32_t> keys;
    keys.resize(items.size());
    if (items.size() <= kBins / 4) {            // clearing and searching the bins would take longer
        for (size_t i = 0; i < items.size(); ++i) keys[i] = ordered(items[i].lower);
        std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end(), std::greater<uint32_t>());
        return unordered(keys[static_cast<size_t>(k - 1)]);
    }
    uint32_t least = ~0u, most = 0;
    for (size_t i = 0; i < items.size(); ++i) {
        keys[i] = ordered(items[i].lower);
        least = std::min(least, keys[i]);
        most = std::max(most, keys[i]);
    }
    int shift = 0;
    while ((most - least) >> shift >= kBins) ++shift;
    uint32_t counts[kBins] = {};
    for (const uint32_t key : keys) ++counts[(key - least) >> shift];
    auto bin = static_cast<int>((most - least) >> shift);
    int64_t rank = k;                       // of the wanted key within its bin, from the largest
    for (; rank > counts[bin]; --bin) rank -= counts[bin];
    if (shift == 0) return unordered(least + static_cast<uint32_t>(bin));
    const auto end =
        std::partition(keys.begin(), keys.end(), [&](uint32_t key) { return (key - least) >> shift == static_cast<uint32_t>(bin); });
    std::nth_element(keys.begin(), keys.begin() + (rank - 1), end, std::greater<uint32_t>());
    return unordered(keys[static_cast<size_t>(rank - 1)]);
}

}  // namespace

void sort_best(std::vector<Candidate>& items, const Rows& rows) {
    std::sort(items.begin(), items.end(), [&](const Candidate& a, const Candidate& b) {
        return a.lower != b.lower ? a.lower > b.lower : rows.id(a.row) < rows.id(b.row);
    });
}

void Candidates::shrink(const Problem& problem, int64_t query, int64_t k, int64_t enough) {
    threshold_ = std::max(threshold_, kth_largest_lower(items_, k));
    items_.erase(std::remove_if(items_.begin(), items_.end(), [&](const Candidate& c) { return c.upper < threshold_; }), items_.end());
    if (static_cast<int64_t>(items_.size()) > enough) settle(problem, query, k);
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
    const float least = kth_largest_lower(items_, k);
    const auto ties = std::partition(items_.begin(), items_.end(), [&](const Candidate& c) { return c.lower > least; });
    const auto worse = std::partition(ties, items_.end(), [&](const Candidate& c) { return c.lower == least; });
    const auto end = items_.begin() + k;
    if (end < worse)
        std::nth_element(ties, end - 1, worse, [&](const Candidate& a, const Candidate& b) { return rows.id(a.row) < rows.id(b.row); });
    items_.resize(static_cast<size_t>(k));
    threshold_ = std::max(threshold_, least);
}

const std::vector<Candidate>& Candidates::best(const Problem& problem, int64_t query, int64_t k) {
    settle(problem, query, k);
    sort_best(items_, problem.rows());
    return items_;
}

}  // namespace asx
