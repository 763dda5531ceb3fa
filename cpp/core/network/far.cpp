// Layers whose values leave 2^±40: the same equations with an exponent beside every matrix.
//
// Products run in T on operands scaled to about 1; what is elementwise runs in double, an element
// at a time. This path is rare and slow, and short: it is the definition once more, with ldexp.
// Each function returns false if it meets inf or NaN: then the caller lets the fast path spread
// them.
#include <limits>

#include "core/network/far_activations.hpp"
#include "core/network/products.hpp"

namespace vegrad {
namespace {

constexpr int kFarExponent = 40;       // sizes within it are stored as they are,
constexpr int kFarArgument = 100;      // but large arguments of φ also up to here;
constexpr int kUnscaledExponent = 20;  // operands within it go into a product as they are

std::int64_t exponent_of(double x) { return FarNumber{x, 0}.size(); }

// The exponent to store values beside whose largest has this size.
std::int64_t stored_exponent(std::int64_t size, int highest = kFarExponent) {
  return size == kNoExponent || (size >= -kFarExponent && size <= highest) ? 0 : size;
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
bool Network<T>::forward_far(Workspace& w, int l, int B, const ScaledMatrix<T>& in,
                             ScaledMatrix<T>& out, bool flow) {
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

  const std::int64_t z_exponent = layers_[l].z_exponent = stored_exponent(size, kFarArgument);
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j)
      z[i * ld + j] = T(shifted(y[std::size_t(i) * N + j], y_exponent - z_exponent));

  // h = φ(y) + skip, in units of 2^h_exponent.
  std::vector<FarNumber>& h = far_numbers_;
  h.resize(y.size());
  std::vector<T> scratch(3 * N);
  std::vector<FarNumber> derivative(N);
  for (int i = 0; i < B; ++i) {
    FarNumber* const row = &h[std::size_t(i) * N];
    far_activation(instruction_set().kernels<T>(), activation, z + i * ld, z_exponent, N,
                   scratch.data(), row, derivative.data());
    if (!shape_.has_skip(l)) continue;
    for (int j = 0; j < N; ++j) {
      const FarNumber skip{double(in.data[i * in.ld + j]), in.exponent};
      const std::int64_t unit = std::max(row[j].size(), skip.size());
      if (unit == kNoExponent) continue;
      row[j] = {shifted(row[j].mantissa, row[j].exponent - unit) +
                    shifted(skip.mantissa, skip.exponent - unit),
                unit};
    }
  }
  std::int64_t h_size = kNoExponent;
  for (const FarNumber& x : h) h_size = std::max(h_size, x.size());
  const std::int64_t h_exponent = stored_exponent(h_size);
  double squares = 0;
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      const FarNumber& number = h[std::size_t(i) * N + j];
      const double x = shifted(number.mantissa, number.exponent - h_exponent);
      squares += x * x;
      out.data[i * ld + j] = T(x);
    }
  out.exponent = layers_[l].h_exponent = h_exponent;
  out.mean_square = squares / sums.count;
  layers_[l].kept = layers_[l].replaced = false;
  if (flow) note_forward(l, sums, exponent, out.mean_square, h_exponent);
  return true;
}

// φ(z) and φ′(z) of one row of layer l as the forward pass left it, and φ(z) as it is stored.
template <class T>
void Network<T>::output_far(Workspace& w, int l, int row, std::vector<FarNumber>& value,
                            std::vector<FarNumber>& derivative, T* output) {
  const int N = shape_.sizes[l];
  const Layer& layer = layers_[l];
  std::vector<T> scratch(3 * N);
  value.resize(N);
  derivative.resize(N);
  far_activation(instruction_set().kernels<T>(), shape_.activation_of(l),
                 w.z[l] + row * padded<T>(N), layer.z_exponent, N, scratch.data(), value.data(),
                 derivative.data());
  for (int j = 0; j < N; ++j)
    output[j] = T(shifted(value[j].mantissa, value[j].exponent - layer.h_exponent));
}

// z of layer l as such, where its kept form or φ(z) has taken its place: the forward pass of the
// layer once more, from the output of the layer below.
template <class T>
void Network<T>::restore_z(Workspace& w, int l, int B, bool flow) {
  if (!layers_[l].kept && !layers_[l].replaced) return;
  const int I = shape_.sizes[l - 1];
  const std::ptrdiff_t ld = padded<T>(I);
  ScaledMatrix<T> in{output_of(w, l - 1), ld, layers_[l - 1].h_exponent}, out;
  std::vector<T> below, above(B * padded<T>(shape_.sizes[l]));
  if (l > 1 && !shape_.residual) {
    below.resize(B * ld);
    std::vector<FarNumber> value, derivative;
    std::vector<T> slope(I);
    const auto map_kept =
        instruction_set().kernels<T>().activation[shape_.activation_of(l - 1)].map_kept;
    for (int i = 0; i < B; ++i) {
      if (layers_[l - 1].kept)
        map_kept(w.z[l - 1] + i * ld, &below[i * ld], slope.data(), I);
      else
        output_far(w, l - 1, i, value, derivative, &below[i * ld]);
    }
    in.data = below.data();
  }
  out.data = above.data();
  forward_layer(w, l, B, in, out, flow, false);
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
  const double scale = loss_scale(B);
  std::vector<FarNumber>& g = far_numbers_;
  g.resize(std::size_t(B) * O);
  loss = 0;
  for (int i = 0; i < B; ++i) {
    const LossRow<T> row{O, out_.data + i * out_.ld, out_.exponent,
                         values ? values + std::ptrdiff_t(i) * O : nullptr, labels ? labels[i] : 0};
    loss += loss_row<T, T>(shape_.loss, row, scale, nullptr);
    loss_row_far(shape_.loss, row, scale, &g[std::size_t(i) * O]);
  }
  std::int64_t exponent = kNoExponent;
  for (const FarNumber& x : g) exponent = std::max(exponent, x.size());
  if (exponent == kNoExponent) exponent = 0;
  far_values_.resize(g.size());
  for (std::size_t i = 0; i < g.size(); ++i)
    far_values_[i] = shifted(g[i].mantissa, g[i].exponent - exponent);
  loss *= scale;
  delta_far(w, l, B, exponent, flow);
  return true;
}

template <class T>
bool Network<T>::backward_far(Workspace& w, int l, int B, const ScaledMatrix<T>& above,
                              const ScaledMatrix<T>& skip, bool flow) {
  restore_z(w, l, B, flow);
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
  product_with_transpose(w, l + 1, B, a, above.ld, b, g, {}, false, [](const Tile&, int) {});
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

// δ of layer l from g = far_values_ 2^g_exponent, as delta_, with skip_gradient_ and φ(z).
template <class T>
void Network<T>::delta_far(Workspace& w, int l, int B, std::int64_t g_exponent, bool flow) {
  const int N = shape_.sizes[l];
  const std::ptrdiff_t ld = padded<T>(N);
  const Activation activation = shape_.activation_of(l);
  const Layer& layer = layers_[l];
  std::vector<double>& g = far_values_;
  std::vector<FarNumber>& products = far_numbers_;
  products.resize(g.size());
  std::vector<T> output(N);
  std::vector<FarNumber> value, derivative;
  std::vector<char> alive(N, 0);
  const double limit = saturation_limit(activation);
  std::int64_t saturated = 0, g_largest = kNoExponent, largest = kNoExponent;
  double g_squares = 0;

  for (const double x : g) g_largest = std::max(g_largest, exponent_of(x));
  if (g_largest == kNoExponent) g_largest = 0;
  for (int i = 0; i < B; ++i) {
    output_far(w, l, i, value, derivative, output.data());
    for (int j = 0; j < N; ++j) {
      const double x = shifted(g[std::size_t(i) * N + j], -g_largest);
      const FarNumber& d = derivative[j];
      g_squares += x * x;
      if (shape_.residual) skip_gradient_.data[i * ld + j] = T(x);
      saturated += std::fabs(shifted(d.mantissa, d.exponent)) < limit;
      alive[j] |= d.mantissa != 0;
      FarNumber& product = products[std::size_t(i) * N + j];
      product = {x * d.mantissa, d.exponent};
      largest = std::max(largest, product.size());
    }
    if (l < shape_.layers() && !shape_.residual)
      std::copy(output.begin(), output.end(), output_of(w, l) + i * ld);
  }
  if (largest == kNoExponent) largest = 0;
  for (std::size_t i = 0; i < g.size(); ++i)
    g[i] = shifted(products[i].mantissa, products[i].exponent - largest);
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
  T* const sums_of_columns = w.column_sums[l];
  std::fill(sums_of_columns, sums_of_columns + blocks * ld, T(0));
  std::vector<double> column_sums(N, 0.0);
  double squares = 0;
  for (int i = 0; i < B; ++i)
    for (int j = 0; j < N; ++j) {
      const double x = g[std::size_t(i) * N + j];
      squares += x * x;
      column_sums[j] += x;
      delta_.data[i * ld + j] = T(x);
    }
  for (int j = 0; j < N; ++j) sums_of_columns[j] = T(column_sums[j]);
  delta_.exponent = exponent;
  delta_.mean_square = squares / double(g.size());
  skip_gradient_.exponent = g_exponent + g_largest;
  skip_gradient_.mean_square = g_squares / double(g.size());
  if (!flow) return;
  flow_.saturated[l - 1] = double(saturated) / double(g.size());
  const auto dead = std::count(alive.begin(), alive.end(), 0);
  flow_.dead[l - 1] = derivative_underflows(activation) ? 0.0 : double(dead) / N;
}

template bool Network<float>::forward_far(Workspace&, int, int, const ScaledMatrix<float>&,
                                          ScaledMatrix<float>&, bool);
template bool Network<double>::forward_far(Workspace&, int, int, const ScaledMatrix<double>&,
                                           ScaledMatrix<double>&, bool);
template bool Network<float>::top_far(Workspace&, int, const float*, const std::int64_t*, bool,
                                      double&);
template bool Network<double>::top_far(Workspace&, int, const double*, const std::int64_t*, bool,
                                       double&);
template bool Network<float>::backward_far(Workspace&, int, int, const ScaledMatrix<float>&,
                                           const ScaledMatrix<float>&, bool);
template bool Network<double>::backward_far(Workspace&, int, int, const ScaledMatrix<double>&,
                                            const ScaledMatrix<double>&, bool);

}  // namespace vegrad
