#include <cstring>

#include "core/runtime/dispatch.hpp"
#include "core/runtime/floating_point.hpp"
#include "core/runtime/memory.hpp"
#include "core/runtime/names.hpp"
#include "cpp/check.hpp"

namespace vegrad::tests {
namespace {

double logistic(double z) { return 1 / (1 + std::exp(-z)); }

double formula(const std::string& name, double z) {
  if (name == "identity") return z;
  if (name == "sigmoid") return logistic(z);
  if (name == "tanh") return std::tanh(z);
  if (name == "relu") return std::fmax(z, 0);
  if (name == "leaky_relu") return z > 0 ? z : kLeakySlope * z;
  if (name == "elu") return z > 0 ? z : std::expm1(z);
  if (name == "selu") return kSeluScale * (z > 0 ? z : kSeluAlpha * std::expm1(z));
  if (name == "gelu") return z * std::erfc(-z / std::sqrt(2.0)) / 2;
  if (name == "silu") return z * logistic(z);
  if (name == "softplus") return std::fmax(z, 0) + std::log1p(std::exp(-std::fabs(z)));
  if (name == "hard_tanh") return std::fmin(std::fmax(z, -1), 1);
  if (name == "erf") return std::erf(z);
  return std::nan("");
}

// φ from z and, where there is one, from the form that is kept; φ′ beside differences of φ.
template <class T>
void check(const std::string& name) {
  const ActivationKernels<T>& kernels =
      instruction_set().kernels<T>().activation[activation_of(name)];
  const FlushSubnormals flush;
  const std::string what = name + " of " + kTypeName<T>;
  constexpr int n = 83;
  const Buffer<T> z(padded<T>(n)), h(padded<T>(n)), slope(padded<T>(n)), form(padded<T>(n));
  std::vector<double> values(n), slopes(n);
  for (int i = 0; i < n; ++i) {
    const double at = z.data()[i] = T((i - 40.3) / 7), step = 1e-4;
    values[i] = formula(name, at);
    slopes[i] = (formula(name, at + step) - formula(name, at - step)) / (2 * step);
  }
  kernels.map(z.data(), h.data(), slope.data(), n);
  close(what, h.data(), values, kTolerance<T>);
  close(what + ", its slope", slope.data(), slopes, 2e-6);
  if (!kernels.map_kept) return;
  std::memcpy(form.data(), z.data(), n * sizeof(T));
  ForwardTile<T> tile{};
  tile.rows = 1;
  tile.columns = n;
  tile.z = form.data();
  tile.h = h.data();
  tile.keep = true;
  kernels.forward(tile);
  kernels.map_kept(form.data(), h.data(), slope.data(), n);
  close(what + " as it is kept", h.data(), values, kTolerance<T>);
  close(what + " as it is kept, its slope", slope.data(), slopes, 2e-6);
}

}  // namespace

void check_activations() {
  for (const std::string& name : activation_names()) {
    check<float>(name);
    check<double>(name);
  }
}

}  // namespace vegrad::tests
