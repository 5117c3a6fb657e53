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

}  // namespace
}  // namespace asx::ASX_TARGET
