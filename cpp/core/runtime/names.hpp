// Names as users write them, to enumerations and back.
#pragma once

#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace vegrad {

inline std::vector<std::string> activation_names() {
  return {
#define VEGRAD_ROW(name, ...) #name,
      VEGRAD_ACTIVATIONS(VEGRAD_ROW)
#undef VEGRAD_ROW
  };
}

template <class Names>
int index_of(const Names& names, const std::string& name, const char* kind) {
  int i = 0;
  for (const auto& known : names) {
    if (name == known) return i;
    ++i;
  }
  throw std::invalid_argument("unknown " + std::string(kind) + " '" + name + "'");
}

inline Activation activation_of(const std::string& name) {
  return Activation(index_of(activation_names(), name, "activation"));
}

}  // namespace vegrad
