// What the tests in C++ are made of: comparisons that are counted, and numbers to try.
//
// Each checks the kernels of the active instruction set against a plain loop in double, and gets
// its derivatives from dual numbers: there is no second way back to get wrong.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace vegrad::tests {

// Counts a failure, and prints it, unless |got - want| <= tolerance (1 + |want|).
void close(const std::string& what, double got, double want, double tolerance);
int failures();

template <class T>
void close(const std::string& what, const T* got, const std::vector<double>& want,
           double tolerance) {
  for (std::size_t i = 0; i < want.size(); ++i)
    close(what + "[" + std::to_string(i) + "]", double(got[i]), want[i], tolerance);
}

template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 2e-5 : 1e-12;
template <class T>
constexpr const char* kTypeName = sizeof(T) == 4 ? "float32" : "float64";

// Numbers between -1 and 1, the same on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  double operator()() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return double(std::int64_t(state_ >> 11) - (std::int64_t(1) << 52)) * 0x1p-52;
  }
  template <class T>
  std::vector<T> vector(std::size_t n, double scale = 1) {
    std::vector<T> numbers(n);
    for (T& x : numbers) x = T(scale * (*this)());
    return numbers;
  }

 private:
  std::uint64_t state_;
};

// A number and how fast it changes along some direction.
struct Dual {
  double value = 0, slope = 0;
  Dual() = default;
  Dual(double value, double slope = 0) : value(value), slope(slope) {}
};
inline Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.slope + b.slope}; }
inline Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.slope - b.slope}; }
inline Dual operator*(Dual a, Dual b) {
  return {a.value * b.value, a.slope * b.value + a.value * b.slope};
}
inline Dual operator/(Dual a, Dual b) {
  return {a.value / b.value, (a.slope - a.value / b.value * b.slope) / b.value};
}
inline Dual& operator+=(Dual& a, Dual b) { return a = a + b; }
inline Dual exp(Dual a) { return {std::exp(a.value), std::exp(a.value) * a.slope}; }
inline Dual tanh(Dual a) {
  const double y = std::tanh(a.value);
  return {y, (1 - y * y) * a.slope};
}
inline Dual sigmoid(Dual a) { return Dual(1) / (Dual(1) + exp(Dual(0) - a)); }
inline Dual relu(Dual a) { return a.value > 0 ? a : Dual(); }

// Parameters that move along a direction.
template <class T>
std::vector<Dual> moving(const T* values, const std::vector<double>& direction) {
  std::vector<Dual> all(direction.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = {double(values[i]), direction[i]};
  return all;
}

template <class T>
double dot(const T* gradient, const std::vector<double>& direction) {
  double sum = 0;
  for (std::size_t i = 0; i < direction.size(); ++i) sum += double(gradient[i]) * direction[i];
  return sum;
}

// In the files of their names, for the active instruction set.
void check_activations();
void check_allocations();
void check_buffers();
void check_lock();
void check_network();
void check_recurrent();
void check_threads();

}  // namespace vegrad::tests
