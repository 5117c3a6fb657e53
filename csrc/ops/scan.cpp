#include "ops/scan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "ops/cpu.h"

namespace asx {

namespace {

// A block that starts `rows` rows later.
Block advanced(const Block& block, int64_t rows, bool in_pq_blocks) {
    Block out = block;
    for (int32_t j = 0; j < out.n_pieces; ++j) out.pieces[j].base += (in_pq_blocks ? rows / kPqBlock : rows) * out.pieces[j].stride;
    for (int32_t j = 0; j < out.n_sources; ++j) out.source[j].base += rows * out.source[j].stride;
    out.rows -= rows;
    if (out.allowed) out.allowed += rows;
    if (out.scales) out.scales += rows;
    if (out.terms) out.terms += rows;
    out.squares += rows, out.scale += rows, out.bias += rows, out.slack += rows, out.row_sums += rows, out.peaks += rows;
    return out;
}

}  // namespace

void write_best(const std::vector<Candidate>& best, bool smallest_first, int64_t k, float* scores, int64_t* rows) {
    for (int64_t i = 0; i < k; ++i) {
        const bool there = i < static_cast<int64_t>(best.size());
        rows[i] = there ? best[static_cast<size_t>(i)].row : -1;
        const float key = there ? best[static_cast<size_t>(i)].lower : std::nanf("");
        scores[i] = smallest_first ? 0.0f - key : key;
    }
}

bool Scan::any_allowed(int64_t first_row, int64_t count) const {
    if (!allowed_.bytes || allowed_.stride) return true;
    return std::any_of(allowed_.bytes + first_row, allowed_.bytes + first_row + count, [](uint8_t a) { return a != 0; });
}

bool Scan::some_query_allows(int64_t row) const {
    if (!allowed_.bytes || !allowed_.stride) return !allowed_.bytes || allowed_.bytes[row];
    for (int64_t q = 0; q < queries(); ++q)
        if (allowed_.bytes[q * allowed_.stride + row]) return true;
    return false;
}

void Scan::scan_block(const Problem& problem, const Chunk& chunk, int64_t start, int64_t count, Workspace& workspace) {
    const int64_t first_row = chunk.first + start;
    if (!any_allowed(first_row, count)) return;
    Block block = {};
    block.n_pieces = static_cast<int32_t>(chunk.pieces.size());
    const bool in_pq_blocks = problem.in_pq_blocks();
    for (int32_t j = 0; j < block.n_pieces; ++j) {
        block.pieces[j] = chunk.pieces[static_cast<size_t>(j)];
        block.pieces[j].base += (in_pq_blocks ? start / kPqBlock : start) * block.pieces[j].stride;
    }
    block.rows = count;
    block.allowed = allowed_.bytes && !allowed_.stride ? allowed_.bytes + first_row : nullptr;
    block.squares = workspace.squares, block.scale = workspace.scale, block.bias = workspace.bias;
    block.slack = workspace.slack, block.row_sums = workspace.row_sums, block.peaks = workspace.peaks, block.workspace = workspace.sums;
    block.last_word = problem.rows().last_word;
    block.ahead = prefetch_distance();
    problem.prepare(block, chunk, start, workspace);
    block.cold = true;
    for (const Group& group : problem.groups()) {
        scan_group(problem, group, block, first_row, workspace.survivors);
        // The other groups find the block in the cache, and its row terms.
        block.cold = false, block.ready = true, block.ahead = 0;
    }
    for (int64_t from = 0, bad; (bad = problem.first_bad_row(block, chunk, start, from)) >= 0; from = bad + 1) {
        if (!some_query_allows(first_row + bad)) continue;
        note_bad_row(first_row + bad);
        break;
    }
}

void Scan::scan_group(const Problem& problem, const Group& group, const Block& block, int64_t first_row, Survivors& survivors) {
    alignas(64) float thresholds[64];
    survivors.count = 0;            // an exception may have left some behind
    for (int64_t done = 0; done < block.rows;) {
        for (int32_t q = 0; q < group.count; ++q) {
            const int64_t query = group.first + q;
            thresholds[q] = threshold(query) - problem.underflow() - problem.shift(query);
        }
        if (done == 0) {        // mostly all of it: a copy takes as long as some rows
            done = group.shape->scan(&block, group.packed.get(), thresholds, &survivors);
            drain(problem, group, block, first_row, survivors);
            continue;
        }
        const Block rest = advanced(block, done, problem.in_pq_blocks());
        const int64_t finished = group.shape->scan(&rest, group.packed.get(), thresholds, &survivors);
        drain(problem, group, rest, first_row + done, survivors);
        done += finished;
    }
}

TopK::TopK(std::shared_ptr<const Problem> problem, int64_t k, Allowed allowed, std::vector<float> floors, int64_t share)
    : Scan(problem->queries(), k, allowed), problem_(std::move(problem)), floors_(std::move(floors)), share_(share) {
    for (const float floor : floors_) candidates_.emplace_back(floor);
    candidates_.resize(static_cast<size_t>(queries()));
    const bool known = !floors_.empty() && std::all_of(floors_.begin(), floors_.end(), [](float floor) { return floor > kLowest; });
    for (int i = 0; known && i < 4; ++i) lengthen_step();
    if (problem_->in_pq_blocks()) lengthen_step();      // 192: whole PQ blocks
    if (problem_->rows().visits() < 2) return;
    thresholds_.reset(new std::atomic<float>[candidates_.size()]);
    for (size_t q = 0; q < candidates_.size(); ++q) thresholds_[q].store(candidates_[q].threshold(), std::memory_order_relaxed);
}

std::unique_ptr<Scan> TopK::fork() const {
    auto made = std::make_unique<TopK>(problem_, k(), allowed(), floors_, share_);
    made->thresholds_ = thresholds_;
    return made;
}

// A threshold that is lost, because another thread wrote a lower one at the same moment, only leaves more rows to be looked at.
void TopK::exchange_thresholds() {
    if (!thresholds_) return;
    for (size_t q = 0; q < candidates_.size(); ++q) {
        const float mine = candidates_[q].threshold(), known = thresholds_[q].load(std::memory_order_relaxed);
        if (mine > known) thresholds_[q].store(mine, std::memory_order_relaxed);
        if (known > mine) candidates_[q].raise(known);
    }
}

void TopK::run(int64_t first_visit, int64_t last_visit) {
    if (queries() == 0 || k() == 0) return;
    Workspace& workspace = thread_workspace(problem_->unpacked_bytes());
    for (int64_t v = first_visit; v < last_visit; ++v) {
        const Visit visit = problem_->rows().visit(v);
        const auto scan_rows = [&](int64_t from, int64_t count) {
            exchange_thresholds();
            scan_block(*problem_, *visit.chunk, visit.start + from, count, workspace);
        };
        if (share_ > 1) {
            for (int64_t from = v % share_ * kPqBlock; from < visit.rows; from += share_ * kPqBlock)
                scan_rows(from, std::min<int64_t>(kPqBlock, visit.rows - from));
            continue;
        }
        for (int64_t done = 0; done < visit.rows;) {
            const int64_t count = std::min(next_step(problem_->block_rows()), visit.rows - done);
            scan_rows(done, count);
            done += count;
            lengthen_step();
        }
    }
    exchange_thresholds();
}

void TopK::drain(const Problem& problem, const Group& group, const Block& block, int64_t first_row, Survivors& survivors) {
    const bool exact = problem.exact();
    const float* row_slack = problem.has_row_slack() ? block.slack : nullptr;
    for (int64_t i = 0; i < survivors.count; ++i) {
        const Survivor& s = survivors.items[i];
        const int64_t query = group.first + s.query, row = first_row + s.row;
        if (!allows(query, row)) continue;
        Candidates& candidates = candidates_[static_cast<size_t>(query)];
        if (exact) {
            candidates.add(problem, query, k(), {s.key, s.key, row}); // as it is: a sum with 0 would lose the sign of -0
            continue;
        }
        const float key = s.key + problem.shift(query);
        const float slack = problem.slack(query) * (row_slack ? row_slack[s.row] : 1.0f) + problem.underflow();
        Candidate c = {key - slack, key + slack, row};
        // NaN keys and infinite slack say nothing; equal bounds would pass for a canonical key
        if (!(c.lower < c.upper) || std::isinf(c.upper)) c.upper = std::numeric_limits<float>::infinity();
        if (!(c.lower < c.upper)) c.lower = kLowest;
        candidates.add(problem, query, k(), c);
    }
    survivors.count = 0;
}

void TopK::merge(const Scan& other) {
    const auto& fork = static_cast<const TopK&>(other);
    for (int64_t q = 0; q < queries(); ++q)
        for (const Candidate& c : fork.candidates_[static_cast<size_t>(q)].items())
            candidates_[static_cast<size_t>(q)].add(*problem_, q, k(), c);
    if (other.bad_row() >= 0) note_bad_row(other.bad_row());
}

void TopK::finish(float* scores, int64_t* rows) {
    for (int64_t q = 0; q < queries(); ++q)
        write_best(candidates_[static_cast<size_t>(q)].best(*problem_, q, k()), problem_->smallest_first(), k(), scores + q * k(),
                   rows + q * k());
}

int64_t rescore(const Problem& problem, const int64_t* lists, int64_t width, int64_t k, float* scores, int64_t* rows) {
    std::vector<int64_t> list;
    std::vector<float> keys;
    std::vector<Candidate> best;
    std::vector<uint32_t> order;
    std::vector<uint64_t> packed;
    const Rows& all = problem.rows();
    int64_t bad_row = -1;
    for (int64_t q = 0; q < problem.queries(); ++q) {
        list.assign(lists + q * width, lists + (q + 1) * width);
        // Often they rise already, and looking is cheaper than sorting.
        if (std::adjacent_find(list.begin(), list.end(), std::greater_equal<int64_t>()) != list.end()) {
            std::sort(list.begin(), list.end());
            list.erase(std::unique(list.begin(), list.end()), list.end());
        }
        list.erase(list.begin(), std::lower_bound(list.begin(), list.end(), int64_t{0}));
        keys.resize(list.size());
        problem.canonical(q, list.data(), static_cast<int64_t>(list.size()), keys.data());
        // Sorted by (key, id) as integers: the key turned round, then the place in the order of ids, which mostly is that of rows.
        const size_t count = list.size();
        order.resize(count);
        std::iota(order.begin(), order.end(), 0u);
        const auto by_id = [&](uint32_t a, uint32_t b) { return all.id(list[a]) < all.id(list[b]); };
        if (!std::is_sorted(order.begin(), order.end(), by_id)) std::sort(order.begin(), order.end(), by_id);
        packed.resize(count);
        for (size_t i = 0; i < count; ++i) {
            const float key = keys[order[i]];
            packed[i] = static_cast<uint64_t>(~ordered(key)) << 32 | i;
            // NaN or infinity in a row always shows in its key
            const int64_t row = list[order[i]];
            if (!std::isfinite(key) && (bad_row < 0 || row < bad_row) && problem.is_bad_row(row)) bad_row = row;
        }
        const auto kept = std::min<int64_t>(k, static_cast<int64_t>(count));
        std::partial_sort(packed.begin(), packed.begin() + kept, packed.end());
        best.clear();
        for (int64_t i = 0; i < kept; ++i) {
            const uint32_t at = order[packed[static_cast<size_t>(i)] & 0xffffffffu];
            best.push_back({keys[at], keys[at], list[at]});
        }
        write_best(best, problem.smallest_first(), k, scores + q * k, rows + q * k);
    }
    return bad_row;
}

}  // namespace asx
