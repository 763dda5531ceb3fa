// One array or tensor, looked at where it lies.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "bindings/dlpack.hpp"

namespace vegrad {

std::string type_name(const pybind11::handle& object);

// The table of a type whose tensors can be looked at without a Python object for each; null if the
// type has none.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type);

}  // namespace vegrad
