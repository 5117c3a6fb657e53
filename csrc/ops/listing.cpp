#include "ops/listing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "ops/cascade.h"
#include "ops/pq.h"

namespace asx {

namespace {

constexpr size_t kSeeds = 32;          // rows of which the best give the first threshold
constexpr double kFew = 512.0;         // rows that may be scored in any case, and
constexpr double kWorth = 0.5;         // times what it takes to score all rows that may be spent on some of them
constexpr size_t kFirstLists = 4;       // of those, scanned with the same threshold
constexpr size_t kMostLists = 16;       // of the others

constexpr size_t kMostParts = 4;
constexpr size_t kSteps = 256;          // of keys, by which lists are put into order
constexpr size_t kAtOnce = 16;          // keys of lists that are looked at together

// Of keys without NaN, not none; the first of equals.
uint32_t place_of_largest(const std::vector<float>& keys) {
    float most[kAtOnce];
    std::fill_n(most, kAtOnce, -std::numeric_limits<float>::infinity());
    size_t i = 0;
    for (; i + kAtOnce <= keys.size(); i += kAtOnce)
        for (size_t j = 0; j < kAtOnce; ++j) most[j] = keys[i + j] > most[j] ? keys[i + j] : most[j];
    float largest = *std::max_element(most, most + kAtOnce);
    for (; i < keys.size(); ++i) largest = std::max(largest, keys[i]);
    return static_cast<uint32_t>(std::find(keys.begin(), keys.end(), largest) - keys.begin());
}

// Appends the numbers of keys that are not below the least one.
void collect(const std::vector<float>& keys, float least, std::vector<uint32_t>& numbers) {
    size_t i = 0;
    const auto take = [&](size_t number) {
        if (!(keys[number] < least)) numbers.push_back(static_cast<uint32_t>(number));
    };
    for (; i + kAtOnce <= keys.size(); i += kAtOnce) {
        int below = 0;
        for (size_t j = 0; j < kAtOnce; ++j) below += keys[i + j] < least ? 1 : 0;
        if (below == static_cast<int>(kAtOnce)) continue;
        for (size_t j = 0; j < kAtOnce; ++j) take(i + j);
    }
    for (; i < keys.size(); ++i) take(i);
}

// The numbers of keys that are not below the least one, about in the order of these from the best one down.
void best_first(const std::vector<float>& keys, float best, float least, std::vector<uint32_t>& found, std::vector<uint32_t>& order) {
    found.clear();
    collect(keys, least, found);
    order.resize(found.size());
    if (least == kLowest) least = *std::min_element(keys.begin(), keys.end());
    const float scale = static_cast<float>(kSteps - 1) / (best - least);
    // Where infinities say nothing, all are of one step.
    const bool known = std::isfinite(scale) && std::isfinite(best) && scale > 0.0f;
    const auto step = [&](uint32_t number) { return known ? static_cast<size_t>((best - keys[number]) * scale) : 0; };
    uint32_t places[kSteps + 1] = {};
    for (const uint32_t number : found) ++places[step(number) + 1];
    std::partial_sum(places, places + kSteps, places);
    for (const uint32_t number : found) order[places[step(number)]++] = number;
}

}  // namespace

void ListProblem::canonical(int64_t query, const int64_t* rows, int64_t count, float* keys) const {
    constexpr int64_t together = 64;
    int64_t lists[together];
    for (int64_t first = 0; first < count; first += together) {
        const int64_t n = std::min(together, count - first);
        for (int64_t i = 0; i < n; ++i) {
            const Chunk& chunk = rows_->chunk_of(rows[first + i]);
            lists[i] = reinterpret_cast<const uint16_t*>(chunk.pieces[0].base)[rows[first + i] - chunk.first];
        }
        centroids_->canonical(query, lists, n, keys + first);
    }
}

Listing::Listing(std::shared_ptr<const Rows> codes, const Rows& of_rows, int64_t lists, const Listing* before)
    : codes_(std::move(codes)), lists_(lists) {
    std::vector<Source> left;
    for (size_t c = 0; c < codes_->chunks().size(); ++c) {
        const Chunk& chunk = codes_->chunks()[c];
        piece_ = chunk.pieces[0];
        left.push_back({piece_.base, of_rows.chunks()[c].pieces[0].base, chunk.first, chunk.rows});
    }
    const auto take = [&](const Source& source) {
        const auto at = std::find(left.begin(), left.end(), source);
        if (at != left.end()) left.erase(at);
    };
    std::vector<Source> known;      // in parts of which something else has changed
    if (before && before->lists_ == lists && before->piece_.stride == piece_.stride) {
        for (const auto& part : before->parts_) {
            std::vector<Source> still;
            for (const Source& source : part->sources)
                if (std::find(left.begin(), left.end(), source) != left.end()) still.push_back(source);
            std::for_each(still.begin(), still.end(), take);
            if (still.size() == part->sources.size())
                parts_.push_back(part);
            else
                known.insert(known.end(), still.begin(), still.end());
        }
    }
    if (parts_.size() + !known.empty() + !left.empty() > kMostParts) {
        for (const auto& part : parts_) known.insert(known.end(), part->sources.begin(), part->sources.end());
        known.insert(known.end(), left.begin(), left.end());
        parts_.clear(), left.clear();
    }
    if (!known.empty()) parts_.push_back(listed(std::move(known)));
    if (!left.empty()) parts_.push_back(listed(std::move(left)));
}

std::shared_ptr<const Listing::Own> Listing::listed(std::vector<Source> sources) const {
    const int64_t stride = piece_.stride, bytes = stride / kPqBlock;
    const auto number = [](const Source& source, int64_t row) { return reinterpret_cast<const uint16_t*>(source.numbers)[row]; };
    std::vector<int64_t> counts(static_cast<size_t>(lists_)), next(counts.size());
    for (const Source& source : sources)
        for (int64_t r = 0; r < source.rows; ++r) ++counts[number(source, r)];
    const auto own = std::make_shared<Own>();
    own->blocks = own->begins = {0};
    for (const int64_t count : counts) {
        own->blocks.push_back(own->blocks.back() + (count + kPqBlock - 1) / kPqBlock);
        own->begins.push_back(own->begins.back() + count);
    }
    own->places.resize(static_cast<size_t>(own->begins.back()));
    own->codes = allocate_large(own->blocks.back() * stride);
    std::memset(own->codes.get(), 0, static_cast<size_t>(own->blocks.back() * stride));
    for (const Source& source : sources)
        for (int64_t r = 0; r < source.rows; ++r) {
            const size_t l = number(source, r);
            const int64_t place = next[l]++;
            own->places[static_cast<size_t>(own->begins[l] + place)] = static_cast<uint32_t>(source.first + r);
            const uint8_t* from = source.codes + r / kPqBlock * stride + r % kPqBlock;
            uint8_t* to = own->codes.get() + (own->blocks[l] + place / kPqBlock) * stride + place % kPqBlock;
            for (int64_t b = 0; b < bytes; ++b) to[b * kPqBlock] = from[b * kPqBlock];
        }
    own->sources = std::move(sources);
    return own;
}

Listing::Part Listing::part(int64_t list, size_t number) const {
    const Own& own = *parts_[number];
    const auto l = static_cast<size_t>(list);
    Piece codes = piece_;
    codes.base = own.codes.get() + own.blocks[l] * piece_.stride;
    return {codes, own.begins[l + 1] - own.begins[l], own.places.data() + own.begins[l]};
}

CascadeScan::Entrance CascadeScan::enter(int64_t query) const {
    const auto& codes = static_cast<const PqProblem&>(*cascade_->levels[0].problem);
    const auto& lists = static_cast<const ListProblem&>(*cascade_->levels[1].problem);
    Entrance made = {codes.alone(query), std::vector<float>(static_cast<size_t>(lists.lists())), 0};
    lists.centroids().keys_of_all(made.alone, made.keys.data());
    made.best = place_of_largest(made.keys);
    return made;
}

// Lists are looked at from the best one on until all that are left have upper bounds below the k-th best value.
bool CascadeScan::search(int64_t query, const Entrance& entrance, const Listing& listing) {
    const Level& gate = cascade_->levels[1];
    if (k() == 0 || listing.rows() == 0) return true;
    Workspace& workspace = thread_workspace(0);
    const Level& last = cascade_->judge;
    const double most = kWorth * last.pair_cost() * static_cast<double>(listing.rows()) + kFew * last.row_cost();
    spent_ = 0.0, by_lists_ = true;
    const auto needed = [&] { return gate.least_key(query, least(query)); };
    const auto look_at = [&](const uint32_t* lists, size_t count) {
        runs_.clear(), rows_of_runs_.clear();
        for (size_t i = 0; i < count; ++i) {
            for (size_t p = 0; p < listing.parts(); ++p) {
                const Listing::Part part = listing.part(lists[i], p);
                for (int64_t done = 0; done < part.rows; done += kBlockRows) {
                    runs_.push_back({part.codes.base + done / kPqBlock * part.codes.stride, std::min(kBlockRows, part.rows - done)});
                    rows_of_runs_.push_back({part.places + done, entrance.keys[lists[i]]});
                }
                scored_[static_cast<size_t>(query)] += part.rows;
            }
        }
        scan_runs(query, entrance.alone, workspace.survivors);
        const size_t pending = pending_[static_cast<size_t>(query)].size();
        if (pending >= (least(query) > -std::numeric_limits<double>::infinity() ? kTogether : kSeeds)) refine(query);
    };

    look_at(&entrance.best, 1);
    refine(query);
    best_first(entrance.keys, entrance.keys[entrance.best], needed(), found_, order_);
    uint32_t some[kMostLists];
    size_t together = kFirstLists;
    for (size_t at = 0; at < order_.size() && spent_ <= most; together = kMostLists) {
        const float least_key = needed();
        size_t count = 0;
        for (; at < order_.size() && count < together; ++at)
            if (order_[at] != entrance.best && !(entrance.keys[order_[at]] < least_key)) some[count++] = order_[at];
        if (count > 0) look_at(some, count);
    }
    refine(query);
    by_lists_ = false;
    return spent_ <= most;
}

void CascadeScan::scan_runs(int64_t query, const Group& alone, Survivors& survivors) {
    const Level &first = cascade_->levels.front(), &gate = cascade_->levels[1];
    const auto& codes = static_cast<const PqProblem&>(*first.problem);
    // Before there is a threshold, few of those that survive are looked at again.
    const Rows* ahead = least(query) > -std::numeric_limits<double>::infinity() ? &after_lists() : nullptr;
    auto& pending = pending_[static_cast<size_t>(query)];
    survivors.count = 0;            // an exception may have left some behind
    for (size_t done = 0; done < runs_.size(); survivors.count = 0) {
        const RowsOfRun* of = rows_of_runs_.data() + done;
        done += static_cast<size_t>(
            codes.scan_runs(alone, runs_.data() + done, static_cast<int64_t>(runs_.size() - done), threshold(query), survivors));
        for (int64_t i = 0; i < survivors.count; ++i) __builtin_prefetch(of[survivors.items[i].query].places + survivors.items[i].row);
        for (int64_t i = 0; i < survivors.count; ++i) {
            const Survivor& s = survivors.items[i];
            const int64_t row = of[s.query].places[s.row];
            if (!allows_at_all(query, row)) continue;
            const double upper = std::min(first.upper(query, s.key, row), gate.upper(query, of[s.query].list_key, row));
            if (upper < least(query)) continue;
            pending.push_back({upper, row, 2});
            if (ahead) ahead->fetch(row);
        }
    }
}

}  // namespace asx
