// A user's arguments, looked at here where they are what most of them are: for small work, doing that in Python takes as long as the search.
#pragma once

#include <vector>

#include "bindings/arrays.h"
#include "ops/source.h"

namespace asx {

// Exactly numpy's own type, none made from it, and float32 as this machine has it.
inline bool is_plain_float32(py::handle value) {
    const auto& api = py::detail::npy_api::get();
    if (reinterpret_cast<PyObject*>(Py_TYPE(value.ptr())) != reinterpret_cast<PyObject*>(api.PyArray_Type_)) return false;
    const auto a = py::reinterpret_borrow<py::array>(value);
    const py::dtype type = a.dtype();
    return type.num() == py::detail::npy_api::NPY_FLOAT_ && type.byteorder() == '=';
}

// A number from 1 up; 0 if it is none, or another type's.
inline int64_t plain_count(py::handle value) {
    if (!PyLong_CheckExact(value.ptr())) return 0;
    int overflow = 0;
    const int64_t count = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    return overflow || count < 1 ? 0 : count;
}

struct PlainQueries {
    const float* data = nullptr;
    int64_t count = 0; // 0: something about them is out of the ordinary, or wrong
    bool single = false; // one of shape (dim,)

    // Of what is found for them, `width` for each.
    std::vector<py::ssize_t> shape(int64_t width) const {
        return single ? std::vector<py::ssize_t>{width} : std::vector<py::ssize_t>{count, width};
    }
};

// Up to `most`.
inline PlainQueries plain_queries(py::handle value, int64_t dim, int64_t most) {
    if (!is_plain_float32(value)) return {};
    const auto a = py::reinterpret_borrow<py::array>(value);
    constexpr int usable = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if (a.ndim() < 1 || a.ndim() > 2 || a.shape(a.ndim() - 1) != dim || (a.flags() & usable) != usable) return {};
    const auto* data = static_cast<const float*>(a.data());
    const int64_t count = a.ndim() == 1 ? 1 : a.shape(0);
    return count <= most && all_finite(data, count * dim) ? PlainQueries{data, count, a.ndim() == 1} : PlainQueries{};
}

} // namespace asx
