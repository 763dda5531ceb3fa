// Contiguous arrays from and to Python. What users pass is checked in buffers.py; what arrives
// here is asserted once more, so that no mistake there can reach memory.
#pragma once

#include <pybind11/numpy.h>

#include <string>

namespace vegrad {

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

}  // namespace vegrad
