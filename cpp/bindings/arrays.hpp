// Contiguous arrays from Python. What users pass is converted in buffers.py, with every check and
// its message; here it is only looked at, quickly, so that no mistake there can reach memory.
#pragma once

#include <pybind11/numpy.h>

#include <string>

namespace vegrad {

// Whether an object is an array, and of no subclass: a masked array's masked elements would count.
inline bool is_plain(const pybind11::object& object) {
  return Py_TYPE(object.ptr()) == pybind11::detail::npy_api::get().PyArray_Type_;
}

template <class T>
bool is_contiguous(const pybind11::array& array) {
  return pybind11::isinstance<pybind11::array_t<T>>(array) &&
         (array.flags() & pybind11::array::c_style);
}

template <class T>
const T* data_of(const pybind11::array& array, const char* name) {
  if (!is_contiguous<T>(array))
    throw pybind11::type_error(std::string(name) + " must be a C-contiguous array of " +
                               std::string(pybind11::str(pybind11::dtype::of<T>())));
  return static_cast<const T*>(array.data());
}

// The data of a contiguous array of T with this shape, any number of rows if `rows` is negative;
// null if the object is something else. A vector has `columns` -1.
template <class T>
const T* fitting(const pybind11::object& object, pybind11::ssize_t rows,
                 pybind11::ssize_t columns) {
  if (!is_plain(object) || !pybind11::isinstance<pybind11::array_t<T>>(object)) return nullptr;
  const auto array = pybind11::reinterpret_borrow<pybind11::array>(object);
  const bool vector = columns < 0;
  if (!(array.flags() & pybind11::array::c_style) || array.ndim() != (vector ? 1 : 2) ||
      (rows >= 0 && array.shape(0) != rows) || (!vector && array.shape(1) != columns))
    return nullptr;
  return static_cast<const T*>(array.data());
}

}  // namespace vegrad
