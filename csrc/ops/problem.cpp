#include "ops/problem.h"

#include <algorithm>
#include <limits>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace asx {

Aligned allocate_aligned(int64_t bytes) {
    void* p = std::aligned_alloc(64, static_cast<size_t>((std::max<int64_t>(bytes, 1) + 63) / 64 * 64));
    if (!p) throw std::bad_alloc();
    return Aligned(static_cast<uint8_t*>(p));
}

Aligned allocate_large(int64_t bytes) {
#if defined(__linux__)
    constexpr int64_t page = 2 << 20;
    if (bytes >= page / 2) {
        const auto size = static_cast<size_t>((bytes + page - 1) / page * page);
        void* p = std::aligned_alloc(page, size);
        if (!p) throw std::bad_alloc();
        madvise(p, size, MADV_HUGEPAGE);        // a wish
        return Aligned(static_cast<uint8_t*>(p));
    }
#endif
    return allocate_aligned(bytes);
}

namespace {

constexpr int64_t kTerms = kBlockRows + 16;             // whole registers may be stored at the end
constexpr int64_t kSurvivors = 5 * kBlockRows;          // a few-query scan of a whole block fits

}  // namespace

Workspace::Workspace(int64_t bytes)
    : memory(allocate_aligned(10 * kTerms * 4 + kSurvivors * static_cast<int64_t>(sizeof(Survivor)) + bytes)), unpacked_bytes(bytes) {
    auto* p = reinterpret_cast<float*>(memory.get());
    squares = p, scale = p + kTerms, bias = p + 2 * kTerms, slack = p + 3 * kTerms;
    row_sums = reinterpret_cast<int32_t*>(p + 4 * kTerms), peaks = reinterpret_cast<int32_t*>(p + 5 * kTerms);
    sums = p + 6 * kTerms;                              // kBlockRows for each of up to four queries
    survivors = {reinterpret_cast<Survivor*>(p + 10 * kTerms), 0, kSurvivors};
    unpacked = reinterpret_cast<float*>(survivors.items + kSurvivors);
}

Workspace& thread_workspace(int64_t unpacked_bytes) {
    thread_local std::unique_ptr<Workspace> workspace;
    if (!workspace || workspace->unpacked_bytes < unpacked_bytes) workspace = std::make_unique<Workspace>(unpacked_bytes);
    return *workspace;
}

const Shape& choose_shape(const Family& family, int64_t remaining) {
    constexpr int64_t pass = 8; // a further pass over the rows costs about as much as so many queries
    const Shape* best = &family.shapes[0];
    int64_t least = std::numeric_limits<int64_t>::max();
    for (const Shape& shape : family.shapes) {
        if (shape.queries == 0) break;
        // In tiles every place for a query costs the same, taken or not; the rest may take the same shape again, or any smaller one.
        const int64_t passes = std::max<int64_t>(1, remaining / shape.queries), rest = remaining - passes * shape.queries;
        const int64_t cost = passes * (shape.queries + pass) + (rest > 0 ? choose_shape(family, rest).queries + pass : 0);
        if (cost <= least) least = cost, best = &shape;
    }
    return *best;
}

int64_t cached_rows(int64_t row_bytes) {
    constexpr int64_t budget = 384 * 1024, multiple = 192;      // whole tiles of 4, 6 and 12 rows, and PQ blocks of 64
    return std::clamp<int64_t>(budget / std::max<int64_t>(row_bytes, 1) / multiple * multiple, multiple, kBlockRows / multiple * multiple);
}

Group Problem::packed(const Shape& shape, const PackedAs& as, int64_t first, int64_t count) const {
    Queries in = {};
    in.data = static_cast<const uint8_t*>(as.data) + first * as.stride;
    in.stride = as.stride;
    in.count = static_cast<int32_t>(count);
    in.widths = as.widths.data();
    in.n_pieces = static_cast<int32_t>(as.widths.size());
    in.slack = slack_.empty() ? nullptr : slack_.data() + first;
    in.factor = as.factor ? as.factor + first : nullptr;
    in.offset = as.offset ? as.offset + first : nullptr;
    in.last_word = rows_->last_word;
    in.largest = as.largest;
    const Scaling& all = as.scaling;
    if (all.offset) in.scaling = {all.offset + first, all.base + first, all.step + first, all.weight + first};
    Group group{&shape, first, in.count, allocate_aligned(shape.packed_bytes(&in))};
    shape.pack(&in, group.packed.get());
    return group;
}

void Problem::pack(const Family& family, const PackedAs& as) {
    for (int64_t first = 0; first < queries_;) {
        const Shape& shape = choose_shape(family, queries_ - first);
        groups_.push_back(packed(shape, as, first, std::min<int64_t>(shape.queries, queries_ - first)));
        first += groups_.back().count;
    }
}

}  // namespace asx
