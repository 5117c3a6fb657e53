// One target: its kernels behind the operations of backends/protocol.py.
#pragma once

#include "bindings/rows.h"
#include "ops/dense.h"
#include "ops/integer.h"
#include "ops/listing.h"
#include "ops/pq.h"

namespace asx {

struct Target {
    const KernelTable* table;
};

inline int64_t width_of(const PyRows& rows) { return rows.rows->dims(); }

// (queries, width) of one query per row.
template <class T> const T* queries_of(const py::array& a, int64_t width, const char* name) {
    const T* p = contiguous<T>(a, 2, name);
    require(a.shape(1) == width, "queries: expected the width of the rows");
    return p;
}

template <class T> const T* per_query(const py::array& a, int64_t queries, const char* name) {
    const T* p = contiguous<T>(a, 1, name);
    require(a.size() == queries, "expected one value per query");
    return p;
}

struct Lists {
    const int64_t* data;
    int64_t width;
};

Lists lists_of(const py::array& candidates, int64_t queries, int64_t rows);

template <class P, class... Args> std::shared_ptr<P> without_gil(Args&&... args) {
    const py::gil_scoped_release free;
    return std::make_shared<P>(std::forward<Args>(args)...);
}

std::shared_ptr<IntegerProblem> integer_problem(const Target& self, const PyRows& rows, const py::array& codes, const py::array& factors,
                                                const py::array& offsets, const std::string& metric, const double* margins, bool scan);
std::shared_ptr<PqProblem> pq_problem(const Target& self, const PyRows& rows, const py::array& tables, bool largest,
                                      const py::object& scaling, bool scan);
std::shared_ptr<ListProblem> list_problem(const Target& self, const PyRows& rows, const py::array& tables, bool largest);

void register_targets(py::module_& m);

}  // namespace asx
