// One target: its kernels behind the operations of backends/protocol.py.
#pragma once

#include "bindings/arrays.h"

namespace asx {

void register_targets(py::module_& m);

}  // namespace asx
