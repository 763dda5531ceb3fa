// What the clipping functions and the optimizers share.
#pragma once

#include <string>
#include <vector>

#include "bindings/buffers.hpp"
#include "core/clipping.hpp"

namespace vegrad {

// A rule of vegrad.clipping as it is handed down. `limit`: a number; for global_norm also a
// function that gives it from the norm, or None for no limit; for limits an array with the largest
// norm of each buffer.
struct RuleArguments {
  std::string rule;
  pybind11::object limit;
  double ord, eps;
  std::string nonfinite;
};

// Clips, or lets `consumer` take what is clipped. `parameters`: of the adaptive rule.
Clipped clip_buffers(Buffers& grads, const RuleArguments& arguments,
                     const std::vector<View>* parameters, Consumer* consumer);

// ValueError if buffers that will be written share memory with each other or with `read`.
void refuse_overlap(const Buffers& written, const Buffers* read);

}  // namespace vegrad
