// The forward pass: product, bias, normalization, activation and their sums, a tile at a time.
#include "core/far_activations.hpp"
#include "core/floating_point.hpp"
#include "core/products.hpp"

namespace vegrad {
namespace {

constexpr int kInferenceRows = 256;  // forward without backward goes through in pieces of this

}  // namespace

template <class T>
void Network<T>::note_forward(int l, const TileSums& sums, std::int64_t z_exponent,
                              double h_mean_square, std::int64_t h_exponent) {
  const double deviation = std::sqrt(std::max(sums.spread.sum_of_squares, 0.0) / sums.count);
  flow_.preactivation_mean[l - 1] = shifted(sums.spread.shift, z_exponent);
  flow_.preactivation_std[l - 1] = shifted(deviation, z_exponent);
  flow_.activation_rms[l - 1] = shifted(std::sqrt(h_mean_square), h_exponent);
}

template <class T>
void Network<T>::forward_layer(Workspace& w, int l, int B, const Scaled<T>& in, Scaled<T>& out,
                               bool flow, bool keep) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const std::ptrdiff_t ld = padded<T>(shape_.sizes[l]);
  const Activation activation = shape_.activation_of(l);
  layers_[l] = Layer();
  out.ld = ld;
  out.exponent = 0;
  if (in.exponent != 0 && !nonfinite_ && forward_far(w, l, B, in, out, flow)) return;
  keep = keep && !shape_.has_norm(l) && kernels.activation[activation].map_kept;
  layers_[l].kept = keep;
  product_with_weights(w, l, B, in.data, in.ld, weight(l), w.z[l], [&](const Tile& t, int task) {
    T* const z = w.z[l] + t.row * ld + t.column;
    const T* const b = bias(l) + t.column;
    TileSums& sums = w.sums[task];
    sums = TileSums();
    ForwardTile<T> tile{};
    if (shape_.has_norm(l)) {
      NormTile<T> norm{};
      norm.rows = t.rows;
      norm.columns = t.columns;
      norm.center = shape_.norm == Norm::layer;
      norm.z = z;
      norm.ldz = ld;
      norm.bias = b;
      norm.inverse = w.inverse[l] + t.row;
      norm.spread_wanted = flow;
      kernels.normalize(norm);
      sums.spread = norm.spread;
      sums.z_squares = norm.z_squares;
    } else {
      tile.bias = b;
      tile.spread_wanted = flow;
    }
    tile.rows = t.rows;
    tile.columns = t.columns;
    tile.z = z;
    tile.ldz = ld;
    if (shape_.has_skip(l)) {
      tile.skip = in.data + t.row * in.ld + t.column;
      tile.ld_skip = in.ld;
    }
    tile.h = out.data + t.row * ld + t.column;
    tile.ldh = ld;
    tile.keep = keep;
    kernels.activation[activation].forward(tile);
    if (!shape_.has_norm(l)) {
      sums.spread = tile.spread;
      sums.z_squares = tile.z_squares;
    }
    sums.h_squares = tile.h_squares;
    sums.count = double(t.rows) * t.columns;
  });
  const TileSums sums = add_up(w.sums.data(), row_grid(B, l).tasks());
  const double n = elements(l, B);
  out.mean_square = sums.h_squares / n;
  // All zero is good if it is the truth.
  const bool zero = out.mean_square == 0 && !value_underflows(activation);
  const bool good = within(sums.z_squares / n) && (within(out.mean_square) || zero);
  if (!good && !nonfinite_ && forward_far(w, l, B, in, out, flow)) return;
  if (flow) note_forward(l, sums, 0, out.mean_square, 0);
}

// Leaves z in the workspace and the output in out_.
template <class T>
void Network<T>::forward_pass(Workspace& w, const T* x, int B, bool flow, bool training) {
  const int I = shape_.sizes[0];
  Scaled<T> in{w.input, padded<T>(I)};
  for (int i = 0; i < B; ++i)
    std::memcpy(w.input + i * in.ld, x + std::ptrdiff_t(i) * I, I * sizeof(T));
  nonfinite_ = false;
  for (int l = 1; l <= shape_.layers(); ++l) {
    Scaled<T> out;
    out.data = w.h[l] ? w.h[l] : w.spare[l % 2];
    forward_layer(w, l, B, in, out, flow, training && l < shape_.layers());
    in = out;
  }
  out_ = in;
}

template <class T>
void Network<T>::forward(const T* x, int B, T* out) {
  const std::lock_guard<std::mutex> lock(running_);
  const FlushSubnormals flush;
  const int I = shape_.sizes.front(), O = shape_.sizes.back();
  prepare(inference_, std::min(B, kInferenceRows), false);
  for (int begin = 0; begin < B; begin += kInferenceRows) {
    const int rows = std::min(kInferenceRows, B - begin);
    forward_pass(inference_, x + std::ptrdiff_t(begin) * I, rows, false, false);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < O; ++j)
        out[std::ptrdiff_t(begin + i) * O + j] =
            out_.exponent == 0 ? out_.data[i * out_.ld + j]
                               : T(shifted(double(out_.data[i * out_.ld + j]), out_.exponent));
  }
}

template <class T>
double Network<T>::loss(const T* x, int B, const T* values, const std::int64_t* labels) {
  const std::lock_guard<std::mutex> lock(running_);
  const FlushSubnormals flush;
  const int I = shape_.sizes.front(), O = shape_.sizes.back();
  prepare(inference_, std::min(B, kInferenceRows), false);
  double sum = 0;
  for (int begin = 0; begin < B; begin += kInferenceRows) {
    const int rows = std::min(kInferenceRows, B - begin);
    forward_pass(inference_, x + std::ptrdiff_t(begin) * I, rows, false, false);
    for (int i = 0; i < rows; ++i) {
      const std::ptrdiff_t row = begin + i;
      const LossRow<T> one{O, out_.data + i * out_.ld, out_.exponent,
                           values ? values + row * O : nullptr, labels ? labels[row] : 0};
      sum += loss_row<T, T>(shape_.loss, one, 1.0, nullptr);
    }
  }
  return sum * loss_scale(B);
}

#define VEGRAD_INSTANCE(T)                                                                    \
  template void Network<T>::note_forward(int, const TileSums&, std::int64_t, double,          \
                                         std::int64_t);                                       \
  template void Network<T>::forward_layer(Workspace&, int, int, const Scaled<T>&, Scaled<T>&, \
                                          bool, bool);                                        \
  template void Network<T>::forward_pass(Workspace&, const T*, int, bool, bool);              \
  template void Network<T>::forward(const T*, int, T*);                                       \
  template double Network<T>::loss(const T*, int, const T*, const std::int64_t*);
VEGRAD_INSTANCE(float)
VEGRAD_INSTANCE(double)
#undef VEGRAD_INSTANCE

}  // namespace vegrad
