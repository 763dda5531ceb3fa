// Layers whose values leave 2^±40: the same equations with an exponent beside every matrix.
//
// Products run in T on operands scaled to about 1; what is elementwise runs in double, an element
// at a time. This path is rare and slow, and short: it is the definition once more, with ldexp.
// Each function returns false, having changed nothing that counts, if it meets inf or NaN.
#include <limits>

#include "core/far_activations.hpp"
#include "core/products.hpp"

namespace vegrad {
namespace {

constexpr std::int64_t kNoExponent = std::numeric_limits<std::int64_t>::min() / 4;
constexpr int kFarExponent = 40;       // beyond it an activation is its slopes
constexpr int kUnscaledExponent = 20;  // operands within it go into a product as they are

// x = mantissa 2^exponent with 1 <= |mantissa| < 2; the exponent of 0 is kNoExponent.
std::int64_t exponent_of(double x) { return x == 0 ? kNoExponent : std::ilogb(x); }

// sign 2^log2 as mantissa (returned) and exponent; a true zero is 0.
double split(const SignedLog2& x, std::int64_t& exponent) {
  if (!std::isfinite(x.log2)) return 0;
  exponent = std::int64_t(std::floor(x.log2));
  return x.sign * std::exp2(x.log2 - double(exponent));
}

struct Extent {
  std::int64_t exponent = kNoExponent;  // the largest of any element
  bool finite = true;
};

template <class T>
Extent extent(const T* data, std::ptrdiff_t ld, int rows, int columns) {
  double largest = 0;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) {
      const double x = std::fabs(double(data[i * ld + j]));
      if (!(x <= std::numeric_limits<T>::max())) return {kNoExponent, false};
      largest = std::max(largest, x);
    }
  return {exponent_of(largest), true};
}

}  // namespace

// `data` as an operand for a product and the exponent that this leaves out, 0 if it is used as it
// stands. False if it holds inf or NaN.
template <class T>
bool Network<T>::scaled_operand(const T* data, std::ptrdiff_t ld, int rows, int columns,
                                std::vector<T>& copy, const T*& operand, std::int64_t& exponent) {
  const Extent found = extent(data, ld, rows, columns);
  operand = data;
  exponent = 0;
  if (!found.finite) return false;
  if (found.exponent == kNoExponent || std::abs(found.exponent) <= kUnscaledExponent) return true;
  exponent = found.exponent;
  copy.assign(rows * ld, T(0));
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j)
      copy[i * ld + j] = T(shifted(double(data[i * ld + j]), -exponent));
  operand = copy.data();
  return true;
}

template <class T>
bool Network<T>::forward_far(Workspace& w, int l, int B, const Scaled<T>& in, Scaled<T>& out,
                             bool flow) {
  const int I = shape_.sizes[l - 1], N = shape_.sizes[l];
  const std::ptrdiff_t ld = padded<T>(N);
  const Activation activation = shape_.activation_of(l);
  const T *a, *b;
  std::int64_t a_exponent, b_exponent;
  const Extent bias_extent = extent(bias(l), N, 1, N);
  if (!bias_extent.finite || !scaled_operand(in.data, in.ld, B, I, far_left_, a, a_exponent) ||
      !scaled_operand(weight(l), I, N, I, far_right_, b, b_exponent)) {
    nonfinite_ = true;
    return false;
  }
  T* const z = w.z[l];
  product_with_weights(w, l, B, a, in.ld, b, z, [](const Tile&, int) {});

  // z = product + bias, in units of 2^exponent.
  const std::int64_t product_exponent = in.exponent + a_exponent + b_exponent;
  const Extent product = extent(z, ld, B, N);
  std::int64_t exponent = std::max(product.exponent + product_exponent, bias_extent.exponent);
  if (exponent < kNoExponent / 2) exponent = 0;  // all zero
  std::vector<double>& y = far_values_;
  y.resize(std::size_t(B) * N);
  TileSums sums;
  sums.count = double(B) * N;
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      const double x = shifted(double(z[i * ld + j]), product_exponent - exponent) +
                       shifted(double(bias(l)[j]), -exponent);
      y[std::size_t(i) * N + j] = x;
      sums.spread.shift += x / sums.count;
    }
  for (const double x : y)
    sums.spread.sum_of_squares += (x - sums.spread.shift) * (x - sums.spread.shift);

  // y = norm(z), in units of 2^y_exponent: about 1 unless ε is the larger part of the root.
  std::int64_t y_exponent = exponent;
  if (shape_.has_norm(l)) {
    const bool tiny = exponent < -kFarExponent;
    layers_[l].inverse_exponent = tiny ? 0 : -exponent;
    if (!tiny) y_exponent = 0;
    for (int i = 0; i < B; ++i) {
      double* const row = &y[std::size_t(i) * N];
      double mean = 0, squares = 0;
      if (shape_.norm == Norm::layer)
        for (int j = 0; j < N; ++j) mean += row[j] / N;
      for (int j = 0; j < N; ++j) squares += (row[j] - mean) * (row[j] - mean) / N;
      const double inverse = tiny ? 1 / std::sqrt(kNormEpsilon)
                                  : 1 / std::sqrt(squares + shifted(kNormEpsilon, -2 * exponent));
      for (int j = 0; j < N; ++j) row[j] = (row[j] - mean) * inverse;
      w.inverse[l][i] = T(inverse);
    }
  }
  std::int64_t largest = kNoExponent;
  for (const double x : y) largest = std::max(largest, exponent_of(x));
  const std::int64_t size = largest == kNoExponent ? 0 : largest + y_exponent;

  double below, above;
  const bool slopes =
      std::abs(size) > kFarExponent && far_slopes(activation, double(size), below, above);
  layers_[l].z_exponent = slopes ? size : 0;
  const std::int64_t rest = y_exponent - layers_[l].z_exponent;
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) z[i * ld + j] = T(shifted(y[std::size_t(i) * N + j], rest));

  // h = φ(y) + skip, in units of 2^h_exponent.
  std::vector<double>& h = far_outputs_;
  h.resize(y.size());
  far_exponents_.assign(y.size(), 0);
  std::vector<T> value(N), derivative(N);
  std::int64_t h_size = kNoExponent;
  for (int i = 0; i < B; ++i) {
    const T* const row = z + i * ld;
    if (!slopes)
      instruction_set().kernels<T>().activation[activation].map(row, value.data(),
                                                                derivative.data(), N);
    for (int j = 0; j < N; ++j) {
      double& x = h[std::size_t(i) * N + j];
      std::int64_t& e = far_exponents_[std::size_t(i) * N + j];
      x = slopes ? double(row[j]) * (row[j] > 0 ? above : below) : double(value[j]);
      if (x == 0 && !slopes) x = split(value_log2(activation, double(row[j])), e);
      if (x != 0) h_size = std::max(h_size, exponent_of(x) + e);
    }
  }
  std::int64_t h_exponent = slopes ? size : 0;
  if (!slopes && h_size < -kFarExponent && h_size != kNoExponent) h_exponent = h_size;
  for (std::size_t i = 0; i < h.size(); ++i)
    h[i] = shifted(h[i], far_exponents_[i] - (slopes ? 0 : h_exponent));
  if (shape_.has_skip(l)) {
    std::int64_t phi_size = kNoExponent;
    for (const double x : h) phi_size = std::max(phi_size, exponent_of(x));
    const Extent skip = extent(in.data, in.ld, B, N);
    std::int64_t sum_size = std::max(phi_size + h_exponent, skip.exponent + in.exponent);
    if (std::abs(sum_size) <= kFarExponent || sum_size < kNoExponent / 2) sum_size = 0;
    for (int i = 0; i < B; ++i)
      for (int j = 0; j < N; ++j)
        h[std::size_t(i) * N + j] = shifted(h[std::size_t(i) * N + j], h_exponent - sum_size) +
                                    shifted(double(in.data[i * in.ld + j]), in.exponent - sum_size);
    h_exponent = sum_size;
  }
  double squares = 0;
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      const double x = h[std::size_t(i) * N + j];
      squares += x * x;
      out.data[i * ld + j] = T(x);
    }
  out.exponent = h_exponent;
  out.mean_square = squares / double(h.size());
  if (flow) note_forward(l, sums, exponent, out.mean_square, h_exponent);
  return true;
}

template <class T>
bool Network<T>::top_far(Workspace& w, int B, const T* values, const std::int64_t* labels,
                         bool flow, double& loss) {
  const int l = shape_.layers(), O = shape_.sizes[l];
  const Extent output = extent(out_.data, out_.ld, B, O);
  const Extent target = values ? extent(values, O, B, O) : Extent();
  if (!output.finite || !target.finite) {
    nonfinite_ = true;
    return false;
  }
  std::int64_t exponent = 0;
  if (shape_.loss == Loss::mse) {
    const std::int64_t size = std::max(output.exponent + out_.exponent, target.exponent);
    if (std::abs(size) > kFarExponent && size > kNoExponent / 2) exponent = size;
  }
  far_values_.resize(std::size_t(B) * O);
  loss = 0;
  for (int i = 0; i < B; ++i) {
    const LossRow<T> row{O, out_.data + i * out_.ld, out_.exponent,
                         values ? values + std::ptrdiff_t(i) * O : nullptr, labels ? labels[i] : 0};
    loss += loss_row<T, double>(shape_.loss, row, loss_scale(B), exponent,
                                &far_values_[std::size_t(i) * O]);
  }
  loss *= loss_scale(B);
  delta_far(w, l, B, exponent, flow);
  return true;
}

template <class T>
bool Network<T>::backward_far(Workspace& w, int l, int B, const Scaled<T>& above,
                              const Scaled<T>& skip, bool flow) {
  const int N = shape_.sizes[l], O = shape_.sizes[l + 1];
  const std::ptrdiff_t ld = padded<T>(N);
  T* const g = skip_gradient_.data;
  const T *a, *b;
  std::int64_t a_exponent, b_exponent;
  if (!scaled_operand(above.data, above.ld, B, O, far_left_, a, a_exponent) ||
      !scaled_operand(weight(l + 1), N, O, N, far_right_, b, b_exponent)) {
    nonfinite_ = true;
    return false;
  }
  product_with_transpose(w, l + 1, B, a, above.ld, b, g, [](const Tile&, int) {});
  std::int64_t exponent = above.exponent + a_exponent + b_exponent;
  double squares = 0;
  far_values_.resize(std::size_t(B) * N);
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      const double x = double(g[i * ld + j]);
      squares += x * x;
      far_values_[std::size_t(i) * N + j] = x;
    }
  if (flow)
    flow_.weight_gain_log2[l - 1] =
        0.5 * std::log2(squares) + double(exponent) - flow_.delta_log2[l];
  if (shape_.has_skip(l + 1)) {
    const Extent product = extent(g, ld, B, N), around = extent(skip.data, skip.ld, B, N);
    const std::int64_t size =
        std::max(product.exponent + exponent, around.exponent + skip.exponent);
    const std::int64_t unit = size < kNoExponent / 2 ? 0 : size;
    for (int i = 0; i < B; ++i)
      for (int j = 0; j < N; ++j) {
        double& x = far_values_[std::size_t(i) * N + j];
        x = shifted(x, exponent - unit) +
            shifted(double(skip.data[i * skip.ld + j]), skip.exponent - unit);
      }
    exponent = unit;
  }
  delta_far(w, l, B, exponent, flow);
  return true;
}

// δ of layer l from g = far_values_ 2^g_exponent, as delta_, with panels and skip_gradient_.
template <class T>
void Network<T>::delta_far(Workspace& w, int l, int B, std::int64_t g_exponent, bool flow) {
  const int N = shape_.sizes[l];
  const std::ptrdiff_t ld = padded<T>(N);
  const Activation activation = shape_.activation_of(l);
  const Layer& layer = layers_[l];
  std::vector<double>& g = far_values_;
  far_exponents_.assign(g.size(), 0);
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  std::vector<T> value(N), derivative(N), output(ld);
  std::vector<char> alive(N, 0);
  std::int64_t saturated = 0, g_largest = kNoExponent, largest = kNoExponent;
  double below = 0, above = 0, g_squares = 0;
  if (layer.z_exponent != 0) far_slopes(activation, double(layer.z_exponent), below, above);

  for (const double x : g) g_largest = std::max(g_largest, exponent_of(x));
  if (g_largest == kNoExponent) g_largest = 0;
  for (int i = 0; i < B; ++i) {
    const T* const z = w.z[l] + i * ld;
    if (layer.z_exponent == 0)
      kernels.activation[activation].map(z, value.data(), derivative.data(), N);
    for (int j = 0; j < N; ++j) {
      double& x = g[std::size_t(i) * N + j];
      std::int64_t& e = far_exponents_[std::size_t(i) * N + j];
      x = shifted(x, -g_largest);
      g_squares += x * x;
      if (shape_.residual) skip_gradient_.data[i * ld + j] = T(x);
      double d, h;
      if (layer.z_exponent != 0) {
        d = z[j] > 0 ? above : below;
        h = double(z[j]) * d;
      } else {
        d = double(derivative[j]);
        h = double(value[j]);
        std::int64_t h_shift = 0;
        if (h == 0 && !shape_.residual) h = split(value_log2(activation, double(z[j])), h_shift);
        h = shifted(h, h_shift - layer.h_exponent);
      }
      saturated += std::fabs(d) < saturation_limit(activation);
      if (d == 0) {
        if (layer.z_exponent == 0) d = split(derivative_log2(activation, double(z[j])), e);
      }
      alive[j] |= d != 0;
      output[j] = T(h);
      x *= d;
      if (x != 0) largest = std::max(largest, exponent_of(x) + e);
    }
    if (l < shape_.layers())
      kernels.to_panels(shape_.residual ? w.h[l] + i * ld : output.data(), ld, 1, N,
                        panels(w.h_panels, w.rows, {i, 1, 0, N, 0, 0}));
  }
  if (largest == kNoExponent) largest = 0;
  for (std::size_t i = 0; i < g.size(); ++i) g[i] = shifted(g[i], far_exponents_[i] - largest);
  std::int64_t exponent = g_exponent + g_largest + largest;
  if (shape_.has_norm(l)) {
    for (int i = 0; i < B; ++i) {
      double* const row = &g[std::size_t(i) * N];
      double mean = 0, mean_product = 0;
      for (int j = 0; j < N; ++j) {
        const double y = shifted(double(w.z[l][i * ld + j]), layer.z_exponent);
        if (shape_.norm == Norm::layer) mean += row[j] / N;
        mean_product += row[j] * y / N;
      }
      for (int j = 0; j < N; ++j) {
        const double y = shifted(double(w.z[l][i * ld + j]), layer.z_exponent);
        row[j] = (row[j] - mean - y * mean_product) * double(w.inverse[l][i]);
      }
    }
    exponent += layer.inverse_exponent;
    largest = kNoExponent;
    for (const double x : g) largest = std::max(largest, exponent_of(x));
    if (largest == kNoExponent) largest = 0;
    for (double& x : g) x = shifted(x, -largest);
    exponent += largest;
  }
  const int blocks = row_grid(B, l).row_blocks;
  std::fill(w.column_sums, w.column_sums + blocks * ld, T(0));
  std::vector<double> column_sums(N, 0.0);
  double squares = 0;
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      const double x = g[std::size_t(i) * N + j];
      squares += x * x;
      column_sums[j] += x;
      delta_.data[i * ld + j] = T(x);
    }
  for (int j = 0; j < N; ++j) w.column_sums[j] = T(column_sums[j]);
  kernels.to_panels(delta_.data, ld, B, N, panels(w.delta_panels[l % 2], w.rows, {}));
  delta_.exponent = exponent;
  delta_.mean_square = squares / double(g.size());
  skip_gradient_.exponent = g_exponent + g_largest;
  skip_gradient_.mean_square = g_squares / double(g.size());
  if (!flow) return;
  flow_.saturated[l - 1] = double(saturated) / double(g.size());
  const auto dead = std::count(alive.begin(), alive.end(), 0);
  flow_.dead[l - 1] = derivative_underflows(activation) ? 0.0 : double(dead) / N;
}

template bool Network<float>::forward_far(Workspace&, int, int, const Scaled<float>&,
                                          Scaled<float>&, bool);
template bool Network<double>::forward_far(Workspace&, int, int, const Scaled<double>&,
                                           Scaled<double>&, bool);
template bool Network<float>::top_far(Workspace&, int, const float*, const std::int64_t*, bool,
                                      double&);
template bool Network<double>::top_far(Workspace&, int, const double*, const std::int64_t*, bool,
                                       double&);
template bool Network<float>::backward_far(Workspace&, int, int, const Scaled<float>&,
                                           const Scaled<float>&, bool);
template bool Network<double>::backward_far(Workspace&, int, int, const Scaled<double>&,
                                            const Scaled<double>&, bool);

}  // namespace vegrad
