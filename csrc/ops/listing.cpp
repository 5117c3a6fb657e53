#include "ops/listing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/cascade.h"
#include "ops/pq.h"

namespace asx {

namespace {

constexpr size_t kBestLists = 16;       // looked at in the order of their keys; after so many the threshold hardly moves
constexpr size_t kSeeds = 32;          // rows of which the best give the first threshold
constexpr double kFew = 512.0;         // rows that may be scored in any case, and
constexpr double kWorth = 0.5;         // times what it takes to score all rows that may be spent on some of them
constexpr int64_t kPrefetched = 4096;   // bytes of the next list

const uint16_t* lists_of(const Chunk& chunk) { return reinterpret_cast<const uint16_t*>(chunk.pieces[0].base); }

}  // namespace

void ListProblem::canonical(int64_t query, const int64_t* rows, int64_t count, float* out) const {
    const float* own = keys(query);
    for (int64_t i = 0; i < count; ++i) {
        const Chunk& chunk = rows_->chunk_of(rows[i]);
        out[i] = own[lists_of(chunk)[rows[i] - chunk.first]];
    }
}

Listing::Listing(std::shared_ptr<const Rows> codes, const Rows& of_rows, int64_t lists, const Listing* before)
    : codes_(std::move(codes)), lists_(lists) {
    for (size_t c = 0; c < codes_->chunks().size(); ++c) {
        const Chunk &chunk = codes_->chunks()[c], &numbers = of_rows.chunks()[c];
        piece_ = chunk.pieces[0];
        first_.push_back(chunk.first);
        const auto same = [&](const std::shared_ptr<const Own>& own) {
            return own->from == piece_.base && own->numbers == numbers.pieces[0].base &&
                   static_cast<int64_t>(own->places.size()) == chunk.rows;
        };
        const bool fits = before && before->lists_ == lists && before->piece_.stride == piece_.stride && c < before->chunks_.size();
        chunks_.push_back(fits && same(before->chunks_[c]) ? before->chunks_[c] : listed(chunk, numbers));
    }
}

std::shared_ptr<const Listing::Own> Listing::listed(const Chunk& chunk, const Chunk& of_rows) const {
    const uint16_t* list = lists_of(of_rows);
    const int64_t stride = piece_.stride, bytes = stride / kPqBlock;
    std::vector<int64_t> counts(static_cast<size_t>(lists_));
    for (int64_t r = 0; r < chunk.rows; ++r) ++counts[list[r]];
    const auto own = std::make_shared<Own>();
    own->from = piece_.base, own->numbers = of_rows.pieces[0].base;
    own->blocks = own->begins = {0};
    for (const int64_t count : counts) {
        own->blocks.push_back(own->blocks.back() + (count + kPqBlock - 1) / kPqBlock);
        own->begins.push_back(own->begins.back() + count);
    }
    own->places.resize(static_cast<size_t>(chunk.rows));
    own->codes = allocate_large(own->blocks.back() * stride);
    std::memset(own->codes.get(), 0, static_cast<size_t>(own->blocks.back() * stride));
    std::vector<int64_t> next(static_cast<size_t>(lists_));
    for (int64_t r = 0; r < chunk.rows; ++r) {
        const size_t l = list[r];
        const int64_t place = next[l]++;
        own->places[static_cast<size_t>(own->begins[l] + place)] = static_cast<uint16_t>(r);
        const uint8_t* from = piece_.base + r / kPqBlock * stride + r % kPqBlock;
        uint8_t* to = own->codes.get() + (own->blocks[l] + place / kPqBlock) * stride + place % kPqBlock;
        for (int64_t b = 0; b < bytes; ++b) to[b * kPqBlock] = from[b * kPqBlock];
    }
    return own;
}

Listing::Part Listing::part(int64_t list, size_t chunk) const {
    const Own& own = *chunks_[chunk];
    const auto l = static_cast<size_t>(list);
    Piece codes = piece_;
    codes.base = own.codes.get() + own.blocks[l] * piece_.stride;
    return {codes, first_[chunk], own.begins[l + 1] - own.begins[l], own.places.data() + own.begins[l]};
}

// Lists are looked at from the best one on until all that are left have upper bounds below the k-th best value. That value is about what it
// will be after a few lists, so that the others need not be sorted.
bool CascadeScan::search(int64_t query, const Listing& listing) {
    const Level& gate = cascade_->levels[1];
    const auto& codes = static_cast<const PqProblem&>(*cascade_->levels.front().problem);
    const float* keys = static_cast<const ListProblem&>(*gate.problem).keys(query);
    if (k() == 0 || listing.rows() == 0) return true;
    const Group alone = codes.alone(query);
    Workspace& workspace = thread_workspace(0);
    Block block = {};
    block.n_pieces = 1;
    block.squares = workspace.squares, block.scale = workspace.scale, block.bias = workspace.bias;
    block.slack = workspace.slack, block.row_sums = workspace.row_sums, block.workspace = workspace.sums;
    block.ready = true;
    const Level& last = cascade_->judge;
    const double most = kWorth * last.pair_cost() * static_cast<double>(listing.rows()) + kFew * last.row_cost();
    spent_ = 0.0;
    const auto upper = [&](uint32_t list) {
        const double bound = gate.estimate(query, keys[list]);
        return std::isnan(bound) ? std::numeric_limits<double>::infinity() : bound;     // infinities say nothing
    };
    const auto matters = [&](uint32_t list) { return !(upper(list) < least(query)); };
    const auto look_at = [&](uint32_t list) {
        places_upper_ = upper(list);
        for (size_t c = 0; c < listing.chunks(); ++c) {
            const Listing::Part part = listing.part(list, c);
            places_ = part.places;
            for (int64_t done = 0; done < part.rows; done += kBlockRows) {
                block.pieces[0] = part.codes;
                block.pieces[0].base += done / kPqBlock * part.codes.stride;
                block.rows = std::min(kBlockRows, part.rows - done);
                places_first_ = part.first;
                scan_group(codes, alone, block, done, workspace.survivors);
            }
            scored_[static_cast<size_t>(query)] += part.rows;
        }
        const size_t pending = pending_[static_cast<size_t>(query)].size();
        if (pending >= (least(query) > -std::numeric_limits<double>::infinity() ? kTogether : kSeeds)) refine(query);
    };

    const auto fetch = [&](uint32_t list) {
        const Listing::Part next = listing.part(list, 0);
        for (int64_t b = 0; b < kPrefetched; b += 64) __builtin_prefetch(next.codes.base + b);
        for (int64_t b = 0; b < 2 * next.rows; b += 64) __builtin_prefetch(reinterpret_cast<const uint8_t*>(next.places) + b);
    };
    const auto first = static_cast<uint32_t>(std::max_element(keys, keys + listing.lists()) - keys);
    look_at(first);
    refine(query);
    order_.clear();
    for (uint32_t list = 0; list < static_cast<uint32_t>(listing.lists()); ++list)
        if (list != first && matters(list)) order_.push_back(list);
    const auto best = order_.begin() + static_cast<std::ptrdiff_t>(std::min(kBestLists, order_.size()));
    std::partial_sort(order_.begin(), best, order_.end(),
                      [&](uint32_t a, uint32_t b) { return keys[a] != keys[b] ? keys[a] > keys[b] : a < b; });
    const auto go_through = [&](auto list, auto end) {
        for (; list != end && spent_ <= most; ++list) {
            if (list + 1 != end) fetch(*(list + 1));
            if (matters(*list)) look_at(*list);
        }
        refine(query);
    };
    go_through(order_.begin(), best);
    go_through(best, std::partition(best, order_.end(), matters));
    places_ = nullptr;
    return spent_ <= most;
}

}  // namespace asx
