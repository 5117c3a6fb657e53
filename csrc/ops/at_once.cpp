#include "ops/at_once.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ops/pq.h"

namespace asx {

namespace {

constexpr int64_t kEntering = 1024;      // queries that are led to their lists together, at most
constexpr int64_t kEnteringKeys = 1 << 21;      // and about how many keys of lists they may have

// The keys of the first level from which on a list should hold what can matter, and not many more rows than `listed`: see `Backend.cascade_top_k`.
// What is scored for it goes to `scored`.
std::vector<float> guessed_floors(const std::shared_ptr<const Cascade>& cascade, int64_t k, int64_t listed, int64_t guess,
                                  const Allowed& allowed, std::vector<int64_t>& scored) {
    const Level& first = cascade->levels.front();
    const Problem& problem = *first.problem;
    const double part = static_cast<double>(k) / static_cast<double>(guess);
    const auto decides = static_cast<int64_t>(std::lround(part + 2.0 * std::sqrt(part) + 1.0)), taken = decides + 9;
    const int64_t rank = (listed + guess - 1) / guess, width = std::max(rank, taken);
    TopK best(first.problem, width, allowed, {}, guess);
    best.run(0, problem.rows().visits());
    std::vector<float> keys(static_cast<size_t>(problem.queries() * width)), floors;
    std::vector<int64_t> rows(keys.size());
    best.finish(keys.data(), rows.data());
    if (problem.smallest_first())
        for (float& key : keys) key = -key;
    CascadeScan seeds(cascade, decides, {}, nullptr);
    for (int64_t q = 0; q < problem.queries(); ++q) {
        const int64_t* found = rows.data() + q * width;
        const float* key = keys.data() + q * width;
        seeds.take(q, found, key, std::find(found, found + taken, int64_t{-1}) - found);
        floors.push_back(std::max(found[rank - 1] < 0 ? kLowest : key[rank - 1], first.least_key(q, seeds.least(q))));
    }
    scored = seeds.scored();
    return floors;
}

} // namespace

std::vector<int64_t> top_k_at_once(const std::shared_ptr<const Cascade>& cascade, const std::shared_ptr<const Problem>& looked_for,
                                   bool keyed, int64_t k, int64_t listed, int64_t share, int64_t guess, const Allowed& allowed,
                                   float* scores, int64_t* rows, bool* again) {
    const Level& first = cascade->levels.front();
    const int64_t queries = looked_for->queries(), visits = looked_for->rows().visits();
    const int64_t width = std::min(listed, looked_for->rows().size());
    std::vector<int64_t> before;
    const std::vector<float> from_key = guess ? guessed_floors(cascade, k, width, guess, allowed, before) : std::vector<float>();
    TopK best(looked_for, width, allowed, from_key, share);
    best.run(0, visits);
    std::vector<float> raw(static_cast<size_t>(queries * width));
    std::vector<int64_t> found(raw.size());
    best.finish(raw.data(), found.data());
    CascadeScan seeds(cascade, k, {}, nullptr);
    std::vector<double> floors(static_cast<size_t>(queries));
    for (int64_t q = 0; q < queries; ++q) {
        const int64_t* from = found.data() + q * width;
        const int64_t count = std::find(from, from + width, int64_t{-1}) - from;
        float* keys = raw.data() + q * width;
        if (first.problem->smallest_first())
            for (int64_t i = 0; i < count; ++i) keys[i] = -keys[i];
        seeds.take(q, from, keyed ? keys : nullptr, count);
        const double least = seeds.least(q);
        const auto i = static_cast<size_t>(q);
        // Rows that are not listed have no better keys than this. Some that are may have worse ones than the floor: a scan is not that exact.
        const float floor = from_key.empty() ? kLowest : from_key[i];
        const float beyond = count == width ? std::max(keys[count - 1], floor) : floor;
        const bool listed_all = count < width && floor == kLowest;
        const bool all = share == 1 && (listed_all || first.estimate(q, beyond) < least);
        again[q] = !keyed || cascade->hard || !all;
        floors[i] = again[q] ? std::min(least, std::numeric_limits<double>::max()) : std::numeric_limits<double>::infinity();
    }
    CascadeScan scan(cascade, k, allowed, floors.data());
    if (std::any_of(again, again + queries, [](bool a) { return a; })) scan.run(0, visits);
    for (int64_t q = 0; q < queries; ++q) (again[q] ? scan : seeds).finish_query(q, scores + q * k, rows + q * k);
    std::vector<int64_t> scored = scan.scored();
    const std::vector<int64_t> listing = seeds.scored();
    for (size_t i = 0; i < scored.size(); ++i) scored[i] += listing[i] + (before.empty() ? 0 : before[i]);
    return scored;
}

bool begins_with(const Cascade& cascade, const Listing& listing) {
    if (cascade.levels.size() < 2) return false;
    const auto* codes = dynamic_cast<const PqProblem*>(cascade.levels[0].problem.get());
    const auto* lists = dynamic_cast<const ListProblem*>(cascade.levels[1].problem.get());
    return codes && lists && &codes->rows() == &listing.codes() && lists->lists() == listing.lists();
}

void search_lists(CascadeScan& scan, const Listing& listing, int64_t first, int64_t last, float* scores, int64_t* rows, bool* left) {
    const int64_t together = std::clamp<int64_t>(kEnteringKeys / std::max<int64_t>(listing.lists(), 1), 16, kEntering);
    for (int64_t from = first; from < last; from += together) {
        const int64_t to = std::min(last, from + together);
        std::vector<CascadeScan::Entrance> entrances;
        std::vector<int64_t> order(static_cast<size_t>(to - from));
        for (int64_t q = from; q < to; ++q) entrances.push_back(scan.enter(q));
        std::iota(order.begin(), order.end(), int64_t{0});
        const auto entrance = [&](int64_t i) -> const CascadeScan::Entrance& { return entrances[static_cast<size_t>(i)]; };
        // Queries whose best lists are the same, one after the other: these lists, and rows of theirs, are then in the cache.
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return entrance(a).best < entrance(b).best; });
        for (const int64_t i : order) {
            const int64_t q = from + i, at = (q - first) * scan.k();
            left[q - first] = !scan.search(q, entrance(i), listing);
            scan.finish_query(q, scores + at, rows + at);
        }
    }
}

} // namespace asx
