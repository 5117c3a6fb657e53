// numpy arrays as pointers: types and layouts are checked, memory is used in place.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

namespace asx {

namespace py = pybind11;

inline void require(bool condition, const char* what) {
    if (!condition) throw py::value_error(what);
}

// The pointer to a C-contiguous array of T with the given number of axes.
template <class T> const T* contiguous(const py::array& a, int axes, const char* name) {
    // Items of a list are taken for arrays unseen.
    if (!py::isinstance<py::array>(a)) throw py::type_error(std::string(name) + ": expected an array");
    if (!py::isinstance<py::array_t<T>>(a) || a.ndim() != axes || !(a.flags() & py::array::c_style))
        throw py::type_error(std::string(name) + ": expected a C-contiguous array of " + std::to_string(axes) + " axes and dtype " +
                             std::string(py::str(py::dtype::of<T>())) + ", got dtype " + std::string(py::str(a.dtype())) + " with " +
                             std::to_string(a.ndim()) + " axes");
    return static_cast<const T*>(a.data());
}

template <class T> T* writable(py::array& a, int axes, const char* name) {
    const T* p = contiguous<T>(a, axes, name);
    if (!a.writeable()) throw py::value_error(std::string(name) + ": expected a writable array");
    return const_cast<T*>(p);
}

}  // namespace asx
