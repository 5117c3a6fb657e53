// A user's arguments, looked at here where they are what most of them are: for small work, doing that in Python takes as long as the search.
#pragma once

#include <type_traits>
#include <vector>

#include "bindings/arrays.h"
#include "ops/source.h"

namespace asx {

// Exactly numpy's own type, none made from it, and elements as this machine has them: float32 or uint8.
template <class T> bool is_plain(py::handle value) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, uint8_t>);
    constexpr int number = std::is_same_v<T, float> ? py::detail::npy_api::NPY_FLOAT_ : py::detail::npy_api::NPY_UBYTE_;
    const auto& api = py::detail::npy_api::get();
    if (reinterpret_cast<PyObject*>(Py_TYPE(value.ptr())) != reinterpret_cast<PyObject*>(api.PyArray_Type_)) return false;
    const auto a = py::reinterpret_borrow<py::array>(value);
    const py::dtype type = a.dtype();
    return type.num() == number && type.byteorder() == (sizeof(T) == 1 ? '|' : '=');
}

// A number from 1 up; 0 if it is none, or another type's.
inline int64_t plain_count(py::handle value) {
    if (!PyLong_CheckExact(value.ptr())) return 0;
    int overflow = 0;
    const int64_t count = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    return overflow || count < 1 ? 0 : count;
}

template <class T> struct PlainQueries {
    const T* data = nullptr;
    int64_t count = 0; // 0: something about them is out of the ordinary, or wrong
    bool single = false; // one of shape (dim,)

    // Of what is found for them, `width` for each.
    std::vector<py::ssize_t> shape(int64_t width) const {
        return single ? std::vector<py::ssize_t>{width} : std::vector<py::ssize_t>{count, width};
    }
};

// Up to `most` of so many elements.
template <class T> PlainQueries<T> plain_queries(py::handle value, int64_t width, int64_t most) {
    if (!is_plain<T>(value)) return {};
    const auto a = py::reinterpret_borrow<py::array>(value);
    constexpr int usable = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if (a.ndim() < 1 || a.ndim() > 2 || a.shape(a.ndim() - 1) != width || (a.flags() & usable) != usable) return {};
    const auto* data = static_cast<const T*>(a.data());
    const int64_t count = a.ndim() == 1 ? 1 : a.shape(0);
    if constexpr (std::is_same_v<T, float>)
        if (count <= most && !all_finite(data, count * width)) return {};
    return count <= most ? PlainQueries<T>{data, count, a.ndim() == 1} : PlainQueries<T>{};
}

} // namespace asx
