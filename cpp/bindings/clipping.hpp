// What the clipping functions and the optimizers share.
#pragma once

#include <string>
#include <vector>

#include "bindings/buffers.hpp"
#include "core/buffers/clipping.hpp"

namespace vegrad {

// A rule of vegrad.clipping as it is handed down. `limit`: a number; for global_norm also a
// function that gives it from the norm (-inf to skip the step), or None for no limit; for limits an
// array with the largest norm of each buffer.
struct RuleArguments {
  std::string rule;
  pybind11::object limit;
  double ord, eps;
  std::string nonfinite;
};

// What they ask for, of so many buffers. It holds what the request points to.
class Asked {
 public:
  Asked(const RuleArguments& arguments, std::size_t buffers);
  Asked(const Asked&) = delete;
  Asked& operator=(const Asked&) = delete;

  Request request{};

 private:
  std::vector<double> limits_;
};

// Throws NonFiniteGradientError, which names the element.
[[noreturn]] void raise_nonfinite(const Buffers& grads, const FirstNonFinite& first,
                                  std::int64_t count);

// ValueError if buffers that will be written share memory with each other or with `read`.
void refuse_overlap(const Buffers& written, const Buffers* read);

}  // namespace vegrad
