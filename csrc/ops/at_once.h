// Whole searches through a cascade, on one thread.
#pragma once

#include <memory>
#include <vector>

#include "ops/cascade.h"
#include "ops/listing.h"

namespace asx {

// See `Backend.cascade_top_k`: scores and rows (queries, k), and which queries were scanned once more. Returns rows scored, (stages, queries).
// looked_for: whose best rows come first, the first level of the cascade if `keyed`.
std::vector<int64_t> top_k_at_once(const std::shared_ptr<const Cascade>& cascade, const std::shared_ptr<const Problem>& looked_for,
                                   bool keyed, int64_t k, int64_t listed, int64_t share, int64_t guess, const Allowed& allowed,
                                   float* scores, int64_t* rows, bool* again);

// Whether the cascade begins with the codes of the listing, whose lists come second.
bool begins_with(const Cascade& cascade, const Listing& listing);

// Takes the queries first .. last through their lists: scores and rows (queries, k), and which queries were left.
void search_lists(CascadeScan& scan, const Listing& listing, int64_t first, int64_t last, float* scores, int64_t* rows, bool* left);

}  // namespace asx
