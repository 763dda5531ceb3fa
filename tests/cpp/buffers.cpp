#include <cstring>

#include "core/buffers/clipping.hpp"
#include "core/buffers/optimizer.hpp"
#include "cpp/check.hpp"

namespace vegrad::tests {
namespace {

template <class E>
E narrowed(double x);
template <>
double narrowed(double x) {
  return x;
}
template <>
float narrowed(double x) {
  return float(x);
}
template <>
bfloat16 narrowed(double x) {  // cut off: any number will do
  const float f = float(x);
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return {std::uint16_t(bits >> 16)};
}
template <>
float16 narrowed(double x) {  // of 1 … 2, or of -1 … -2
  return {std::uint16_t((x < 0 ? 0xbc00 : 0x3c00) + int(std::fabs(x) * 1023))};
}

template <class E>
View view_of(std::vector<E>& values, Dtype dtype) {
  View view;
  view.data = reinterpret_cast<char*>(values.data());
  view.count = std::int64_t(values.size());
  view.dtype = dtype;
  set_dense(view);
  return view;
}

// Norms, and clipping by the joint norm; `rounding` is that of an element.
template <class E>
void check_norms(Dtype dtype, const std::string& name, double rounding) {
  Random random(3);
  std::vector<E> values(10007);
  for (E& x : values) x = narrowed<E>(random());
  std::vector<double> want(values.size());
  double squares = 0, sum = 0, largest = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    want[i] = to_double(values[i]);
    squares += want[i] * want[i];
    sum += std::fabs(want[i]);
    largest = std::fmax(largest, std::fabs(want[i]));
  }
  std::vector<View> views{view_of(values, dtype)};
  for (const auto& [p, norm] : {std::pair(2.0, std::sqrt(squares)), std::pair(1.0, sum),
                                std::pair(double(INFINITY), largest)})
    close(name + " norm", value(Order{p}.root(power_sum(views[0], Order{p}))), norm, 1e-9);
  Request request{Rule::kGlobalNorm};
  request.limit = std::sqrt(squares) / 3;
  FirstNonFinite first;
  const Clipped clipped = clip(views, request, first);
  close(name + " norm that was clipped", clipped.norm, std::sqrt(squares), 1e-6);
  for (std::size_t i = 0; i < values.size(); ++i)
    close(name + " clipped", to_double(values[i]), want[i] / 3, rounding);
}

// Two steps of Adam, whose formula is its paper's.
template <class T>
void check_adam(Dtype dtype) {
  Random random(4);
  std::vector<T> weights = random.vector<T>(517), gradient(517);
  std::vector<double> p(weights.begin(), weights.end()), m(517), v(517);
  std::vector<View> of_weights{view_of(weights, dtype)}, of_gradient{view_of(gradient, dtype)};
  OptimizerSettings settings{kAdam};
  settings.beta1 = 0.9;
  settings.beta2 = 0.99;
  settings.eps = 1e-3;
  std::unique_ptr<OptimizerState> state;
  for (int step = 1; step <= 2; ++step) {
    gradient = random.vector<T>(517);
    of_gradient = {view_of(gradient, dtype)};
    for (int i = 0; i < 517; ++i) {
      const double g = double(gradient[i]);
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.99 * v[i] + 0.01 * g * g;
      const double root = std::sqrt(v[i] / (1 - std::pow(0.99, step)));
      p[i] -= 0.1 * m[i] / (1 - std::pow(0.9, step)) / (root + 1e-3);
    }
    FirstNonFinite first;
    WorkLock writing;
    take_step({{settings, 0.1}}, {0}, of_weights, of_gradient, {&state}, writing,
              Request{Rule::kNone}, first);
    close(std::string(kTypeName<T>) + " adam", weights.data(), p, kTolerance<T>);
  }
}

}  // namespace

void check_buffers() {
  check_norms<float16>(Dtype::kFloat16, "float16", 1e-3);
  check_norms<bfloat16>(Dtype::kBfloat16, "bfloat16", 8e-3);
  check_norms<float>(Dtype::kFloat32, "float32", 1e-6);
  check_norms<double>(Dtype::kFloat64, "float64", 1e-6);
  check_adam<float>(Dtype::kFloat32);
  check_adam<double>(Dtype::kFloat64);
}

}  // namespace vegrad::tests
