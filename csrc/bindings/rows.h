// Rows and scans as Python holds them: the native object and the arrays that it points into.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "ops/problem.h"
#include "ops/rows.h"
#include "ops/scan.h"

namespace asx {

struct PyRows {
    std::shared_ptr<const Rows> rows;
    py::object owners;          // of the memory behind the pieces
    int64_t subspaces = 0;      // product quantization
    int bits = 0;
    std::shared_ptr<const PyRows> centroids; // of inverted lists, coded
};

struct PyScan {
    std::unique_ptr<Scan> scan;
    py::object owners;

    static PyScan make(std::shared_ptr<const Problem> problem, int64_t k, const py::object& allowed, py::object owners);
};

Allowed allowed_of(const py::object& allowed, int64_t rows, int64_t queries);
inline Allowed allowed_of(const py::object& allowed, const Problem& problem) {
    return allowed_of(allowed, problem.rows().size(), problem.queries());
}

Kind kind_of(const std::string& name);
Metric metric_of(const std::string& name);

Piece piece_of(const py::array& a, py::ssize_t item_bytes);
PyRows dense_rows(const std::string& kind, const py::sequence& chunks, const py::object& ids);
PyRows bit_rows(const py::sequence& chunks, int64_t bits, const py::object& ids);
// Codes as Python packs them, by which the chunk has to be outlived.
Chunk pq_chunk(const py::array& packed, int64_t rows, int64_t subspaces, int bits);
PyRows pq_rows(const py::sequence& chunks, int64_t subspaces, int bits, const py::object& ids);
PyRows list_rows(const py::sequence& chunks, const PyRows& centroids, const py::object& ids);

// What each stage of a cascade scored for some queries, (stages, count).
py::array_t<int64_t> counts_of(const Scan& scan, int64_t first, int64_t count);

void register_rows(py::module_& m);

}  // namespace asx
