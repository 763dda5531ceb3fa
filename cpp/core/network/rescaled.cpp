// Layers whose values leave 2^±40: the same equations with an exponent beside every matrix.
//
// What it is for: in a network that vanishes or explodes, δ and values of depth 50 are beyond what
// float32, or even double, can hold. They are what a diagnosis is about, so they are computed all
// the same, and right.
//
// How: products run in T on operands scaled to about 1; what is elementwise runs in double, an
// element at a time. This path is rare and slow, and short: it is the definition once more, with
// ldexp.
//
// What it must guarantee: it leaves the pass as the fast path would, so that the next layer may be
// on either path; and it takes a layer only where every number is finite.
//
// What it leaves out: speed (it runs on one thread but for the products), and inf and NaN, which no
// scaling can help.
#include "core/network/rescaled.hpp"

#include <limits>

#include "core/network/forward.hpp"
#include "core/network/products.hpp"

namespace vegrad {
namespace {

constexpr int kMostExponent = 40;      // sizes within it are stored as they are,
constexpr int kMostOfArgument = 100;   // but large arguments of φ also up to here;
constexpr int kUnscaledExponent = 20;  // operands within it go into a product as they are

std::int64_t exponent_of(double x) { return ScaledNumber{x, 0}.size(); }

double value_in(const ScaledNumber& x, std::int64_t unit) {
  return shifted(x.mantissa, x.exponent - unit);
}

// The exponent to store values beside whose largest has this size.
std::int64_t stored_exponent(std::int64_t size, int highest = kMostExponent) {
  return size == kNoExponent || (size >= -kMostExponent && size <= highest) ? 0 : size;
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

// An operand of a product, and the exponent that was taken from it.
template <class T>
struct Operand {
  const T* data;
  std::int64_t exponent = 0;
  bool finite = true;
};

// `data` as it stands or, if it is far from 1, as a scaled copy.
template <class T>
Operand<T> scaled_operand(const T* data, std::ptrdiff_t ld, int rows, int columns,
                          std::vector<T>& copy) {
  const Extent found = extent(data, ld, rows, columns);
  if (!found.finite) return {data, 0, false};
  if (found.exponent == kNoExponent || std::abs(found.exponent) <= kUnscaledExponent) return {data};
  copy.assign(rows * ld, T(0));
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j)
      copy[i * ld + j] = T(shifted(double(data[i * ld + j]), -found.exponent));
  return {copy.data(), found.exponent};
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

// φ(z) and φ′(z) of one row of layer l as the forward pass left it, and φ(z) as it is stored.
template <class T>
void activate_row(const Pass<T>& pass, int l, int row, std::vector<ScaledNumber>& value,
                  std::vector<ScaledNumber>& derivative, T* output) {
  const int N = pass.shape.sizes[l];
  const LayerState& layer = pass.layers[l];
  std::vector<T> scratch(3 * N);
  value.resize(N);
  derivative.resize(N);
  scaled_activation(instruction_set().kernels<T>(), pass.shape.activation_of(l),
                    pass.work.z[l] + row * pass.ld(l), layer.z_exponent, N, scratch.data(),
                    value.data(), derivative.data());
  for (int j = 0; j < N; ++j) output[j] = T(value_in(value[j], layer.h_exponent));
}

// z of layer l as such, where its kept form or φ(z) has taken its place: the forward pass of the
// layer once more, from the output of the layer below.
template <class T>
void restore_z(Pass<T>& pass, int l) {
  if (!pass.layers[l].kept && !pass.layers[l].replaced) return;
  const int I = pass.shape.sizes[l - 1];
  const std::ptrdiff_t ld = pass.ld(l - 1);
  ScaledMatrix<T> in{output_of(pass, l - 1), ld, pass.layers[l - 1].h_exponent}, out;
  std::vector<T> below, above(pass.rows * pass.ld(l));
  if (l > 1 && !pass.shape.residual) {
    below.resize(pass.rows * ld);
    std::vector<ScaledNumber> value, derivative;
    std::vector<T> slope(I);
    const auto map_kept =
        instruction_set().kernels<T>().activation[pass.shape.activation_of(l - 1)].map_kept;
    for (int i = 0; i < pass.rows; ++i) {
      if (pass.layers[l - 1].kept)
        map_kept(pass.work.z[l - 1] + i * ld, &below[i * ld], slope.data(), I);
      else
        activate_row(pass, l - 1, i, value, derivative, &below[i * ld]);
    }
    in.data = below.data();
  }
  out.data = above.data();
  forward_layer(pass, l, in, out, false);
}

// What is found where g meets φ′.
struct SlopeSums {
  std::int64_t saturated = 0;
  double g_squares = 0;
  std::vector<char> alive;  // a unit
};

// The products of g = pass.values 2^g_exponent with φ′ of layer l, back in pass.values; g itself in
// pass.skip_gradient if residual, and φ(z) in its place. Returns the exponents of g and of the
// products, beside g_exponent.
template <class T>
SlopeSums multiply_by_slopes(Pass<T>& pass, int l, std::int64_t& g_exponent,
                             std::int64_t& product_exponent) {
  const int B = pass.rows, N = pass.shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l);
  const bool residual = pass.shape.residual;
  std::vector<double>& g = pass.values;
  std::vector<ScaledNumber>& products = pass.numbers;
  products.resize(g.size());
  std::vector<T> output(N);
  std::vector<ScaledNumber> value, derivative;
  const double limit = saturation_limit(pass.shape.activation_of(l));
  SlopeSums sums;
  sums.alive.assign(N, 0);
  g_exponent = product_exponent = kNoExponent;
  for (const double x : g) g_exponent = std::max(g_exponent, exponent_of(x));
  if (g_exponent == kNoExponent) g_exponent = 0;
  for (int i = 0; i < B; ++i) {
    activate_row(pass, l, i, value, derivative, output.data());
    for (int j = 0; j < N; ++j) {
      const double x = shifted(g[std::size_t(i) * N + j], -g_exponent);
      const ScaledNumber& d = derivative[j];
      sums.g_squares += x * x;
      if (residual) pass.skip_gradient.data[i * ld + j] = T(x);
      sums.saturated += std::fabs(value_in(d, 0)) < limit;
      sums.alive[j] |= d.mantissa != 0;
      ScaledNumber& product = products[std::size_t(i) * N + j];
      product = {x * d.mantissa, d.exponent};
      product_exponent = std::max(product_exponent, product.size());
    }
    if (l < pass.shape.layers() && !residual)
      std::copy(output.begin(), output.end(), output_of(pass, l) + i * ld);
  }
  if (product_exponent == kNoExponent) product_exponent = 0;
  for (std::size_t i = 0; i < g.size(); ++i) g[i] = value_in(products[i], product_exponent);
  return sums;
}

// δ with respect to z from that with respect to norm(z), both in pass.values; returns what is added
// to the exponent.
template <class T>
std::int64_t back_through_norm(Pass<T>& pass, int l) {
  const int N = pass.shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l);
  const LayerState& layer = pass.layers[l];
  const T* const z = pass.work.z[l];
  for (int i = 0; i < pass.rows; ++i) {
    double* const row = &pass.values[std::size_t(i) * N];
    double mean = 0, mean_product = 0;
    for (int j = 0; j < N; ++j) {
      const double y = shifted(double(z[i * ld + j]), layer.z_exponent);
      if (pass.shape.norm == Norm::layer) mean += row[j] / N;
      mean_product += row[j] * y / N;
    }
    for (int j = 0; j < N; ++j) {
      const double y = shifted(double(z[i * ld + j]), layer.z_exponent);
      row[j] = (row[j] - mean - y * mean_product) * double(pass.work.inverse[l][i]);
    }
  }
  std::int64_t largest = kNoExponent;
  for (const double x : pass.values) largest = std::max(largest, exponent_of(x));
  if (largest == kNoExponent) largest = 0;
  for (double& x : pass.values) x = shifted(x, -largest);
  return layer.inverse_exponent + largest;
}

// Stores pass.values as δ of layer l, with the sums of its columns.
template <class T>
void store_delta(Pass<T>& pass, int l) {
  const int N = pass.shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l);
  T* const sums_of_columns = pass.work.column_sums[l];
  std::fill(sums_of_columns, sums_of_columns + pass.row_grid(l).row_blocks * ld, T(0));
  std::vector<double> column_sums(N, 0.0);
  double squares = 0;
  for (int i = 0; i < pass.rows; ++i)
    for (int j = 0; j < N; ++j) {
      const double x = pass.values[std::size_t(i) * N + j];
      squares += x * x;
      column_sums[j] += x;
      pass.delta.data[i * ld + j] = T(x);
    }
  for (int j = 0; j < N; ++j) sums_of_columns[j] = T(column_sums[j]);
  pass.delta.mean_square = squares / double(pass.values.size());
}

// δ of layer l from g = pass.values 2^exponent, as pass.delta, with pass.skip_gradient and φ(z).
template <class T>
void delta_rescaled(Pass<T>& pass, int l, std::int64_t exponent) {
  std::int64_t of_g, of_products;
  const SlopeSums sums = multiply_by_slopes(pass, l, of_g, of_products);
  const double n = double(pass.values.size());
  pass.skip_gradient.exponent = exponent + of_g;
  pass.skip_gradient.mean_square = sums.g_squares / n;
  exponent += of_g + of_products;
  if (pass.shape.has_norm(l)) exponent += back_through_norm(pass, l);
  store_delta(pass, l);
  pass.delta.exponent = exponent;
  if (!pass.flow_wanted) return;
  pass.flow.saturated[l - 1] = double(sums.saturated) / n;
  const auto dead = std::count(sums.alive.begin(), sums.alive.end(), 0);
  const bool underflows = derivative_underflows(pass.shape.activation_of(l));
  pass.flow.dead[l - 1] = underflows ? 0.0 : double(dead) / pass.shape.sizes[l];
}

// Adds what comes around layer l + 1 to the product in g: pass.values 2^exponent with it.
template <class T>
void add_around(Pass<T>& pass, int l, const T* g, const ScaledMatrix<T>& skip,
                std::int64_t& exponent) {
  const int B = pass.rows, N = pass.shape.sizes[l];
  const Extent product = extent(g, pass.ld(l), B, N), around = extent(skip.data, skip.ld, B, N);
  const std::int64_t size = std::max(product.exponent + exponent, around.exponent + skip.exponent);
  const std::int64_t unit = size < kNoExponent / 2 ? 0 : size;
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      double& x = pass.values[std::size_t(i) * N + j];
      x = shifted(x, exponent - unit) +
          shifted(double(skip.data[i * skip.ld + j]), skip.exponent - unit);
    }
  exponent = unit;
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

template <class T>
bool backward_from_loss_rescaled(Pass<T>& pass, const Target<T>& target, double& loss) {
  const int l = pass.shape.layers(), O = pass.shape.sizes[l], B = pass.rows;
  const ScaledMatrix<T>& out = pass.output;
  const bool target_finite = !target.values || extent(target.values, O, B, O).finite;
  if (!extent(out.data, out.ld, B, O).finite || !target_finite) {
    pass.nonfinite = true;
    return false;
  }
  const double scale = pass.shape.loss_scale(B);
  std::vector<ScaledNumber>& g = pass.numbers;
  g.resize(std::size_t(B) * O);
  loss = 0;
  for (int i = 0; i < B; ++i) {
    const LossRow<T> row = target.row(out, O, i, out.exponent);
    loss += loss_row<T, T>(pass.shape.loss, row, scale, nullptr);
    loss_row_scaled(pass.shape.loss, row, scale, &g[std::size_t(i) * O]);
  }
  std::int64_t exponent = kNoExponent;
  for (const ScaledNumber& x : g) exponent = std::max(exponent, x.size());
  if (exponent == kNoExponent) exponent = 0;
  pass.values.resize(g.size());
  for (std::size_t i = 0; i < g.size(); ++i) pass.values[i] = value_in(g[i], exponent);
  loss *= scale;
  delta_rescaled(pass, l, exponent);
  return true;
}

template <class T>
bool backward_rescaled(Pass<T>& pass, int l, const ScaledMatrix<T>& above,
                       const ScaledMatrix<T>& skip) {
  restore_z(pass, l);
  const int B = pass.rows, N = pass.shape.sizes[l], O = pass.shape.sizes[l + 1];
  T* const g = pass.skip_gradient.data;
  const Operand<T> a = scaled_operand<T>(above.data, above.ld, B, O, pass.scaled_left);
  const Operand<T> b = scaled_operand<T>(pass.weight(l + 1), N, O, N, pass.scaled_right);
  if (!a.finite || !b.finite) {
    pass.nonfinite = true;
    return false;
  }
  product_with_transpose(pass, l + 1, a.data, above.ld, b.data, g, {}, [](const Tile&, int) {});
  std::int64_t exponent = above.exponent + a.exponent + b.exponent;
  double squares = 0;
  pass.values.resize(std::size_t(B) * N);
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      const double x = double(g[i * pass.ld(l) + j]);
      squares += x * x;
      pass.values[std::size_t(i) * N + j] = x;
    }
  if (pass.flow_wanted)
    pass.flow.weight_gain_log2[l - 1] =
        0.5 * std::log2(squares) + double(exponent) - pass.flow.delta_log2[l];
  if (pass.shape.has_skip(l + 1)) add_around(pass, l, g, skip, exponent);
  delta_rescaled(pass, l, exponent);
  return true;
}

VEGRAD_FOR_BOTH(forward_rescaled)
VEGRAD_FOR_BOTH(backward_from_loss_rescaled)
VEGRAD_FOR_BOTH(backward_rescaled)

}  // namespace vegrad
