// What every scan does with its keys: compare with the thresholds and append survivors.
#pragma once

#include "kernels/memory.h"

namespace asx::ASX_TARGET {
namespace {

ASX_INLINE void append(const Block* block, Survivors* survivors, int64_t row, int64_t query, float key) {
    if (block->allowed && !block->allowed[row]) return;
    survivors->items[survivors->count++] = {static_cast<uint32_t>(row), static_cast<uint32_t>(query), key};
}

ASX_INLINE bool has_room(const Survivors* survivors, int64_t more) { return survivors->count + more <= survivors->capacity; }

// Calls visit(bit) for every set bit, lowest first.
template <class Visit> ASX_INLINE void for_bits(uint64_t mask, Visit visit) {
    for (; mask; mask &= mask - 1) visit(__builtin_ctzll(mask));
}

// Of `count` rows from `row` on, a lane each, those survive that are at best not below the query's threshold.
ASX_INLINE void append_lanes(const Block* block, Survivors* survivors, int64_t row, int64_t count, int32_t query, Simd::F key, Simd::F best,
                             float threshold) {
    using S = Simd;
    const uint32_t mask = S::not_less(best, S::set(threshold)) & static_cast<uint32_t>((1ull << count) - 1);
    if (__builtin_expect(mask != 0, 0)) {
        float keys[S::lanes];
        S::store(keys, key);
        for_bits(mask, [&](int i) { append(block, survivors, row + i, query, keys[i]); });
    }
}

}  // namespace
}  // namespace asx::ASX_TARGET
