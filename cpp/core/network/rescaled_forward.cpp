// The way forward of the rescaled path.
#include "core/network/forward.hpp"
#include "core/network/products.hpp"
#include "core/network/rescaled.hpp"
#include "core/network/rescaled_operands.hpp"

namespace vegrad {
namespace {

constexpr int kMostExponent = 40;     // sizes within it are stored as they are,
constexpr int kMostOfArgument = 100;  // but large arguments of φ also up to here

// The exponent to store values beside whose largest has this size.
std::int64_t stored_exponent(std::int64_t size, int highest = kMostExponent) {
  return size == kNoExponent || (size >= -kMostExponent && size <= highest) ? 0 : size;
}

// The pre-activations of layer l, from their product in z: as pass.values 2^exponent, and their
// mean and spread.
template <class T>
TileSums add_bias(Pass<T>& pass, int l, std::int64_t product_exponent, std::int64_t bias_exponent,
                  std::int64_t& exponent) {
  const int B = pass.rows, N = pass.shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l);
  const T *const z = pass.work.z[l], *const bias = pass.bias(l);
  exponent = std::max(extent(z, ld, B, N).exponent + product_exponent, bias_exponent);
  if (exponent < kNoExponent / 2) exponent = 0;  // all zero
  std::vector<double>& y = pass.values;
  y.resize(std::size_t(B) * N);
  TileSums sums;
  sums.count = double(B) * N;
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      const double x = shifted(double(z[i * ld + j]), product_exponent - exponent) +
                       shifted(double(bias[j]), -exponent);
      y[std::size_t(i) * N + j] = x;
      sums.spread.shift += x / sums.count;
    }
  for (const double x : y)
    sums.spread.sum_of_squares += (x - sums.spread.shift) * (x - sums.spread.shift);
  return sums;
}

// norm(values 2^exponent) in place; returns its exponent: 0, for it is about 1, unless ε is the
// larger part of the root.
template <class T>
std::int64_t normalize(Pass<T>& pass, int l, std::int64_t exponent) {
  const int N = pass.shape.sizes[l];
  const bool tiny = exponent < -kMostExponent;
  pass.layers[l].inverse_exponent = tiny ? 0 : -exponent;
  for (int i = 0; i < pass.rows; ++i) {
    double* const row = &pass.values[std::size_t(i) * N];
    double mean = 0, squares = 0;
    if (pass.shape.norm == Norm::layer)
      for (int j = 0; j < N; ++j) mean += row[j] / N;
    for (int j = 0; j < N; ++j) squares += (row[j] - mean) * (row[j] - mean) / N;
    const double inverse = tiny ? 1 / std::sqrt(kNormEpsilon)
                                : 1 / std::sqrt(squares + shifted(kNormEpsilon, -2 * exponent));
    for (int j = 0; j < N; ++j) row[j] = (row[j] - mean) * inverse;
    pass.work.inverse[l][i] = T(inverse);
  }
  return tiny ? exponent : 0;
}

// Stores values 2^exponent as z of layer l.
template <class T>
void store_z(Pass<T>& pass, int l, std::int64_t exponent) {
  const int N = pass.shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l);
  T* const z = pass.work.z[l];
  std::int64_t largest = kNoExponent;
  for (const double x : pass.values) largest = std::max(largest, exponent_of(x));
  const std::int64_t size = largest == kNoExponent ? 0 : largest + exponent;
  const std::int64_t z_exponent = pass.layers[l].z_exponent =
      stored_exponent(size, kMostOfArgument);
  for (int i = 0; i < pass.rows; ++i)
    for (int j = 0; j < N; ++j)
      z[i * ld + j] = T(shifted(pass.values[std::size_t(i) * N + j], exponent - z_exponent));
}

// h = φ(z) + skip of layer l, as pass.numbers.
template <class T>
void activate(Pass<T>& pass, int l, const ScaledMatrix<T>& in) {
  const int N = pass.shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l);
  pass.numbers.resize(std::size_t(pass.rows) * N);
  std::vector<T> scratch(3 * N);
  std::vector<ScaledNumber> derivative(N);
  for (int i = 0; i < pass.rows; ++i) {
    ScaledNumber* const row = &pass.numbers[std::size_t(i) * N];
    scaled_activation(instruction_set().kernels<T>(), pass.shape.activation_of(l),
                      pass.work.z[l] + i * ld, pass.layers[l].z_exponent, N, scratch.data(), row,
                      derivative.data());
    if (!pass.shape.has_skip(l)) continue;
    for (int j = 0; j < N; ++j) {
      const ScaledNumber skip{double(in.data[i * in.ld + j]), in.exponent};
      const std::int64_t unit = std::max(row[j].size(), skip.size());
      if (unit == kNoExponent) continue;
      row[j] = {value_in(row[j], unit) + value_in(skip, unit), unit};
    }
  }
}

}  // namespace

template <class T>
bool forward_rescaled(Pass<T>& pass, int l, const ScaledMatrix<T>& in, ScaledMatrix<T>& out) {
  const int B = pass.rows, I = pass.shape.sizes[l - 1], N = pass.shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l);
  const Extent bias = extent(pass.bias(l), N, 1, N);
  const Operand<T> a = scaled_operand<T>(in.data, in.ld, B, I, pass.scaled_left);
  const Operand<T> b = scaled_operand<T>(pass.weight(l), I, N, I, pass.scaled_right);
  if (!bias.finite || !a.finite || !b.finite) {
    pass.nonfinite = true;
    return false;
  }
  product_with_weights(pass, l, a.data, in.ld, b.data, pass.work.z[l], [](const Tile&, int) {});
  std::int64_t exponent;
  const TileSums sums =
      add_bias(pass, l, in.exponent + a.exponent + b.exponent, bias.exponent, exponent);
  store_z(pass, l, pass.shape.has_norm(l) ? normalize(pass, l, exponent) : exponent);
  activate(pass, l, in);
  std::int64_t h_size = kNoExponent;
  for (const ScaledNumber& x : pass.numbers) h_size = std::max(h_size, x.size());
  const std::int64_t h_exponent = stored_exponent(h_size);
  double squares = 0;
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      const double x = value_in(pass.numbers[std::size_t(i) * N + j], h_exponent);
      squares += x * x;
      out.data[i * ld + j] = T(x);
    }
  out.exponent = pass.layers[l].h_exponent = h_exponent;
  out.mean_square = squares / sums.count;
  pass.layers[l].kept = pass.layers[l].replaced = false;
  if (pass.flow_wanted) note_forward(pass, l, sums, exponent, out.mean_square, h_exponent);
  return true;
}

VEGRAD_FOR_BOTH(forward_rescaled)

}  // namespace vegrad
