// Adaptive cascades: stages of a batch of queries, and the search through them; stages for queries that come later.
#pragma once

#include "bindings/target.h"

namespace asx {

struct PyListing {
    std::shared_ptr<const Listing> listing;
    py::object owners; // of the memory that it was made from, so that nothing else can come to lie there
};

inline void require_share(int64_t share, int64_t guess) {
    require(share > 0 && guess >= 0, "share: expected at least 1, and a guess from 0 up");
}

inline void require_counts(int64_t k, int64_t listed, int64_t share, int64_t guess) {
    require(k > 0, "k: expected at least one row");
    require(listed > 0, "listed: expected at least one row");
    require_share(share, guess);
}

void register_cascades(py::module_& m, py::class_<Target>& target);
void register_sources(py::module_& m, py::class_<Target>& target);

}  // namespace asx
