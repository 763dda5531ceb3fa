// The way back of the rescaled path.
#include "core/network/forward.hpp"
#include "core/network/products.hpp"
#include "core/network/rescaled.hpp"
#include "core/network/rescaled_operands.hpp"

namespace vegrad {
namespace {

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

template <class T>
void outputs_rescaled(Pass<T>& pass, int l) {
  std::vector<T> output(pass.shape.sizes[l]);
  std::vector<ScaledNumber> value, derivative;
  for (int i = 0; i < pass.rows; ++i) {
    activate_row(pass, l, i, value, derivative, output.data());
    std::copy(output.begin(), output.end(), output_of(pass, l) + i * pass.ld(l));
  }
}

VEGRAD_FOR_BOTH(backward_from_loss_rescaled)
VEGRAD_FOR_BOTH(backward_rescaled)
VEGRAD_FOR_BOTH(outputs_rescaled)

}  // namespace vegrad
