#include "bindings/rows.h"
#include "bindings/target.h"

PYBIND11_MODULE(_native, m, pybind11::mod_gil_not_used()) {
    m.doc() = "Native kernels of adaptive_search; see backends/protocol.py for what the operations mean.";
    asx::register_rows(m);
    asx::register_targets(m);
}
