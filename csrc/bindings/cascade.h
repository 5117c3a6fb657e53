// Adaptive cascades: stages of a batch of queries, and the search through them.
#pragma once

#include "bindings/target.h"

namespace asx {

void register_cascades(py::module_& m, py::class_<Target>& target);

}  // namespace asx
