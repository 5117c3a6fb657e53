#include "ops/cascade.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace asx {

namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr size_t kSorted = 32;          // items of a long list that are put into order; the others only if they still matter by then
constexpr int64_t kFirstWhole = 384;    // rows scanned whole to have a first threshold
constexpr int64_t kBackOff = 4096;      // and after the first level did not help, doubling each time

float below(double x) {
    const auto y = static_cast<float>(x);
    return static_cast<double>(y) > x ? std::nextafter(y, -std::numeric_limits<float>::infinity()) : y;
}

double bytes(const Rows& rows) {
    const double element = rows.kind() == kFloat32 ? 4.0 : rows.kind() == kInt8 ? 1.0 : 2.0;
    return element * static_cast<double>(rows.dims());
}

}  // namespace

double Level::upper(int64_t query, float key, int64_t row) const {
    double sum = estimate(query, key);
    if (!margin.empty()) {
        const Chunk& chunk = problem->rows().chunk_of(row);
        sum += margin[static_cast<size_t>(query)] * static_cast<double>(chunk.weights[row - chunk.first]);
    }
    return std::isnan(sum) ? kInfinite : sum;
}

float Level::least_key(int64_t query, double least) const {
    const double from = offset[static_cast<size_t>(query)], by = factor[static_cast<size_t>(query)], key = (least - from) / by;
    // What `estimate` and this may be off by, and what kernels are that add the margin in float32.
    const double lower = key - std::abs(key) * 0x1p-20 - (std::abs(least) + std::abs(from)) / by * 0x1p-50;
    return lower > -kInfinite ? below(lower) : -std::numeric_limits<float>::infinity(); // NaN: infinities say nothing
}

// Measured on Zen 4, and no more than a rule of thumb: rows of 3 KiB at random places take 215-230 ns, less when other queries of the batch
// have just read them, and 100 ns with what it takes to sort survivors out; a scan reads 25 GB/s, and multiplies 100 G floats or 400 G bytes
// a second.
double Level::row_cost() const {
    const double all = bytes(problem->rows());
    return problem->queries() < 32 ? 40.0 + 0.06 * all : 80.0 + 0.04 * all;
}

double Level::pair_cost() const {
    const double all = bytes(problem->rows()), dims = static_cast<double>(problem->rows().dims());
    return std::max(all / 25.0 / static_cast<double>(problem->queries()), dims * (problem->rows().kind() == kInt8 ? 0.005 : 0.02));
}

CascadeScan::CascadeScan(std::shared_ptr<const Cascade> cascade, int64_t k, Allowed allowed, const double* floors)
    : Scan(cascade->judge.problem->queries(), k, allowed), cascade_(std::move(cascade)), pending_(static_cast<size_t>(queries())),
      held_(pending_.size()), floors_(pending_.size(), -kInfinite), scored_((cascade_->levels.size() + 1) * pending_.size()),
      whole_rows_(0), back_off_(kBackOff) {
    if (floors) floors_.assign(floors, floors + queries());
    least_ = floors_;
    const bool known = std::all_of(floors_.begin(), floors_.end(), [](double floor) { return floor > -kInfinite; });
    if (cascade_->flat && !known) whole_rows_ = kFirstWhole;
    for (int i = 0; known && i < 4; ++i) lengthen_step();     // few rows at first are for those who know nothing
    const auto in_blocks = [](const Level& level) { return level.problem->in_pq_blocks(); };
    if (in_blocks(cascade_->judge) || std::any_of(cascade_->levels.begin(), cascade_->levels.end(), in_blocks)) lengthen_step();
}

void CascadeScan::run(int64_t first_visit, int64_t last_visit) {
    if (queries() == 0 || k() == 0) return;
    const auto& levels = cascade_->levels;
    const Level& last = cascade_->judge;
    int64_t unpacked = cascade_->flat ? last.problem->unpacked_bytes() : 0;
    for (const Level& level : levels) unpacked = std::max(unpacked, level.problem->unpacked_bytes());
    Workspace& workspace = thread_workspace(unpacked);
    for (int64_t v = first_visit; v < last_visit; ++v) {
        const int64_t rows = last.problem->rows().visit(v).rows;
        for (int64_t done = 0; done < rows;) {
            whole_ = cascade_->flat && whole_rows_ > 0;
            const Problem& problem = *(whole_ ? last : levels[filter_]).problem;
            const Visit visit = problem.rows().visit(v);        // the same rows in every stage
            const int64_t count = std::min(next_step(problem.block_rows()), rows - done), start = visit.start + done;
            taken_ = 0;
            scan_block(problem, *visit.chunk, start, count, workspace);
            if (whole_) {
                whole_rows_ -= count;
                for (int64_t q = 0; q < queries(); ++q) scored_[levels.size() * pending_.size() + static_cast<size_t>(q)] += count;
            } else if (cascade_->flat && !worth_it(count)) {
                forget_block(visit.chunk->first + start, count);
                if (cascade_->hard && filter_ + 1 < levels.size()) {
                    ++filter_;
                } else {
                    whole_rows_ = back_off_;
                    back_off_ *= 2;
                }
                continue;
            } else {
                back_off_ = kBackOff;
            }
            for (int64_t q = 0; q < queries(); ++q)
                if (pending_[static_cast<size_t>(q)].size() >= kTogether) refine(q);
            done += count;
            lengthen_step();
        }
        spent_ /= 2, settled_ /= 2;
    }
    for (int64_t q = 0; q < queries(); ++q) refine(q);
}

bool CascadeScan::worth_it(int64_t count) const {
    const auto& levels = cascade_->levels;
    const Level &first = levels[filter_], &next = filter_ + 1 < levels.size() ? levels[filter_ + 1] : cascade_->judge;
    const double each = settled_ > 256.0 ? spent_ / settled_ : next.row_cost();
    const double saved = cascade_->judge.pair_cost() - first.pair_cost();
    // Margins that may fail were chosen because they help on the whole: they must be far off before they are left aside.
    const double enough = cascade_->hard ? 0.8 : 3.0;
    return static_cast<double>(taken_) * each <= enough * saved * static_cast<double>(count * queries());
}

void CascadeScan::forget_block(int64_t first_row, int64_t count) {
    for (auto& pending : pending_)
        while (!pending.empty() && pending.back().row >= first_row && pending.back().row < first_row + count) pending.pop_back();
}

const Rows& CascadeScan::after_lists() const {
    return (cascade_->levels.size() > 2 ? cascade_->levels[2] : cascade_->judge).problem->rows();
}

float CascadeScan::threshold(int64_t query) const {
    if (floors_[static_cast<size_t>(query)] == kInfinite) return std::numeric_limits<float>::max();     // nothing is looked for
    return (whole_ ? cascade_->judge : cascade_->levels[filter_]).least_key(query, least(query));
}

void CascadeScan::drain(const Problem& problem, const Group& group, const Block& block, int64_t first_row, Survivors& survivors) {
    const Level& first = cascade_->levels[filter_];
    const float* row_slack = problem.has_row_slack() ? block.slack : nullptr;
    taken_ += survivors.count;
    for (int64_t i = 0; i < survivors.count; ++i) {
        const Survivor& s = survivors.items[i];
        const int64_t query = group.first + s.query, row = first_row + s.row;
        if (!allows(query, row)) continue;
        Pending item = {kInfinite, row, 0};
        if (whole_) {
            const float slack = problem.exact() ? 0.0f : problem.slack(query) * (row_slack ? row_slack[s.row] : 1.0f) + problem.underflow();
            const double upper = cascade_->judge.estimate(query, s.key + problem.shift(query) + 2.0f * slack);
            if (!std::isnan(upper)) item.upper = upper;
            if (cascade_->hard) item.next = cascade_->levels.size();       // levels say no more
        } else if (problem.exact()) {
            item.upper = first.upper(query, s.key, row);
            item.next = filter_ + 1;
        } else {
            item.next = filter_;
        }
        if (item.upper < least(query)) continue;
        pending_[static_cast<size_t>(query)].push_back(item);
    }
    survivors.count = 0;
}

void CascadeScan::take(int64_t query, const int64_t* rows, const float* keys, int64_t count) {
    auto& pending = pending_[static_cast<size_t>(query)];
    for (int64_t i = 0; i < count; ++i) {
        if (keys)
            pending.push_back({cascade_->levels.front().upper(query, keys[i], rows[i]), rows[i], 1});
        else
            pending.push_back({kInfinite, rows[i], 0});
    }
    refine(query);
}

size_t CascadeScan::narrow(int64_t query, size_t number, Pending* items, size_t count) {
    const Level& level = cascade_->levels[number];
    rows_.clear();
    for (size_t i = 0; i < count; ++i)
        if (items[i].next <= number) rows_.push_back(items[i].row);
    if (rows_.empty()) return count;
    keys_.resize(rows_.size());
    level.problem->canonical(query, rows_.data(), static_cast<int64_t>(rows_.size()), keys_.data());
    spent_ += static_cast<double>(rows_.size()) * level.row_cost();
    scored_[static_cast<size_t>(query) + number * pending_.size()] += static_cast<int64_t>(rows_.size());
    size_t kept = 0, scored = 0;
    for (size_t i = 0; i < count; ++i) {
        Pending item = items[i];
        if (item.next <= number) {
            item.upper = std::min(item.upper, level.upper(query, keys_[scored++], item.row));
            item.next = number + 1;
        }
        if (!(item.upper < least(query))) items[kept++] = item;
    }
    return kept;
}

void CascadeScan::refine(int64_t query) {
    auto& all = pending_[static_cast<size_t>(query)];
    if (all.empty()) return;
    const auto by_row = [](const Pending& a, const Pending& b) { return a.row < b.row; };
    const size_t levels = cascade_->levels.size();
    size_t count = all.size();
    settled_ += static_cast<double>(count);
    const size_t open = std::min_element(all.begin(), all.end(), [](const Pending& a, const Pending& b) { return a.next < b.next; })->next;
    if (open < levels && all.front().upper == kInfinite) {      // what the scan, or the list, says too little of to begin with the best
        if (!std::is_sorted(all.begin(), all.end(), by_row)) std::sort(all.begin(), all.end(), by_row);
        count = narrow(query, open, all.data(), count);
    }
    const auto is_better = [](const Pending& a, const Pending& b) { return a.upper > b.upper; };
    const auto at = [&](size_t i) { return all.begin() + static_cast<std::ptrdiff_t>(i); };
    // The best of many are enough to rule out most.
    size_t sorted = std::min(count, kSorted);
    if (sorted < count) std::nth_element(at(0), at(sorted), at(count), is_better);
    if (count > kTogether) std::sort(at(0), at(sorted), is_better);
    Pending some[kTogether];
    for (size_t first = 0; first < count; first += kTogether) {
        if (first == sorted) {
            const double needed = least(query);
            count =
                static_cast<size_t>(std::partition(at(first), at(count), [=](const Pending& p) { return !(p.upper < needed); }) - at(0));
            std::sort(at(first), at(count), is_better);
            sorted = count;
        }
        size_t n = 0;
        for (size_t i = first; i < std::min(count, first + kTogether); ++i)
            if (!(all[i].upper < least(query))) some[n++] = all[i];
        if (by_lists_)
            for (size_t i = first + kTogether; i < std::min(count, first + 2 * kTogether); ++i) after_lists().fetch(all[i].row);
        if (n == 0) break;              // the rest is no better
        std::sort(some, some + n, by_row);
        for (size_t level = 0; level < levels && n > 0; ++level) n = narrow(query, level, some, n);
        if (n > 0) judge(query, some, n);
    }
    all.clear();
}

void CascadeScan::judge(int64_t query, const Pending* items, size_t count) {
    const Level& last = cascade_->judge;
    rows_.clear();
    for (size_t i = 0; i < count; ++i) rows_.push_back(items[i].row);
    keys_.resize(count);
    last.problem->canonical(query, rows_.data(), static_cast<int64_t>(count), keys_.data());
    spent_ += static_cast<double>(count) * last.row_cost();
    scored_[static_cast<size_t>(query) + cascade_->levels.size() * pending_.size()] += static_cast<int64_t>(count);
    for (size_t i = 0; i < count; ++i) {
        hold(query, {std::min(last.upper(query, keys_[i], items[i].row), items[i].upper), keys_[i], items[i].row});
    }
}

bool CascadeScan::better(const Held& a, const Held& b) const {
    if (a.value != b.value) return a.value > b.value;
    if (a.key != b.key) return a.key > b.key;
    const Rows& rows = cascade_->judge.problem->rows();
    return rows.id(a.row) < rows.id(b.row);
}

void CascadeScan::hold(int64_t query, const Held& held) {
    auto& heap = held_[static_cast<size_t>(query)];
    const auto order = [this](const Held& a, const Held& b) { return better(a, b); };
    const bool full = static_cast<int64_t>(heap.size()) >= k();
    if (full && !better(held, heap.front())) return;
    if (full) std::pop_heap(heap.begin(), heap.end(), order), heap.pop_back();
    heap.push_back(held);
    std::push_heap(heap.begin(), heap.end(), order);
    if (static_cast<int64_t>(heap.size()) >= k())
        least_[static_cast<size_t>(query)] = std::max(floors_[static_cast<size_t>(query)], heap.front().value);
}

void CascadeScan::merge(const Scan& other) {
    const auto& fork = static_cast<const CascadeScan&>(other);
    for (int64_t q = 0; q < queries(); ++q)
        for (const Held& held : fork.held_[static_cast<size_t>(q)]) hold(q, held);
    for (size_t i = 0; i < scored_.size(); ++i) scored_[i] += fork.scored_[i];
    if (other.bad_row() >= 0) note_bad_row(other.bad_row());
}

void CascadeScan::finish(float* scores, int64_t* rows) {
    for (int64_t q = 0; q < queries(); ++q) finish_query(q, scores + q * k(), rows + q * k());
}

void CascadeScan::finish_query(int64_t query, float* scores, int64_t* rows) const {
    const Problem& problem = *cascade_->judge.problem;
    std::vector<Candidate> best;
    for (const Held& held : held_[static_cast<size_t>(query)]) best.push_back({held.key, held.key, held.row});
    sort_best(best, problem.rows());
    write_best(best, problem.smallest_first(), k(), scores, rows);
}

}  // namespace asx
