// The forward pass: product, bias, normalization, activation and their sums, a tile at a time.
#include <cstring>

#include "core/network/far_activations.hpp"
#include "core/network/products.hpp"
#include "core/runtime/floating_point.hpp"

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

// What a layer's forward pass begins with, unless the far path takes it.
template <class T>
void Network<T>::begin_forward(int l, ScaledMatrix<T>& out, bool keep) {
  const ActivationKernels<T>& kernels =
      instruction_set().kernels<T>().activation[shape_.activation_of(l)];
  layers_[l] = Layer();
  layers_[l].kept = keep && !shape_.has_norm(l) && kernels.map_kept;
  out.ld = padded<T>(shape_.sizes[l]);
  out.exponent = 0;
}

// What follows the product of a tile: normalization, activation, skip connection, and their sums.
template <class T>
void Network<T>::forward_tile(Workspace& w, int l, const Tile& t, const ScaledMatrix<T>& in,
                              const ScaledMatrix<T>& out, T* z, std::ptrdiff_t ldz, bool flow,
                              TileSums& sums) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const T* const b = bias(l) + t.column;
  sums = TileSums();
  ForwardTile<T> tile{};
  if (shape_.has_norm(l)) {
    NormTile<T> norm{};
    norm.rows = t.rows;
    norm.columns = t.columns;
    norm.center = shape_.norm == Norm::layer;
    norm.z = z;
    norm.ldz = ldz;
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
  tile.ldz = ldz;
  if (shape_.has_skip(l)) {
    tile.skip = in.data + t.row * in.ld + t.column;
    tile.ld_skip = in.ld;
  }
  tile.h = out.data + t.row * out.ld + t.column;
  tile.ldh = out.ld;
  tile.keep = layers_[l].kept;
  kernels.activation[shape_.activation_of(l)].forward(tile);
  if (!shape_.has_norm(l)) {
    sums.spread = tile.spread;
    sums.z_squares = tile.z_squares;
  }
  sums.h_squares = tile.h_squares;
  sums.count = double(t.rows) * t.columns;
}

// Whether the fast path was right to take the layer. Notes the flow if so, or if nobody else will.
template <class T>
bool Network<T>::end_forward(int l, int B, const TileSums* tiles, ScaledMatrix<T>& out, bool flow) {
  const TileSums sums = add_up(tiles, row_grid(B, l).tasks());
  const double n = elements(l, B);
  out.mean_square = sums.h_squares / n;
  // All zero is good if it is the truth.
  const bool zero = out.mean_square == 0 && !value_underflows(shape_.activation_of(l));
  const bool good = within(sums.z_squares / n) && (within(out.mean_square) || zero);
  if (!good && !nonfinite_) return false;
  if (flow) note_forward(l, sums, 0, out.mean_square, 0);
  return true;
}

template <class T>
void Network<T>::forward_layer(Workspace& w, int l, int B, const ScaledMatrix<T>& in,
                               ScaledMatrix<T>& out, bool flow, bool keep) {
  begin_forward(l, out, keep);
  if (in.exponent != 0 && !nonfinite_ && forward_far(w, l, B, in, out, flow)) return;
  const auto product = [&] {
    product_with_weights(w, l, B, in.data, in.ld, weight(l), w.z[l], [&](const Tile& t, int task) {
      T* const z = w.z[l] + t.row * out.ld + t.column;
      forward_tile(w, l, t, in, out, z, out.ld, flow, w.sums[task]);
    });
  };
  const bool unit = on_unit(l);
  product();
  if (end_forward(l, B, w.sums.data(), out, flow)) return;
  if (forward_far(w, l, B, in, out, flow)) return;
  if (unit) product();  // without it: an operand was not finite
  end_forward(l, B, w.sums.data(), out, flow);
}

// The last of the layers from l on that one loop can take: each in one column block, so that a
// thread can go on with its rows without waiting for the others.
template <class T>
int Network<T>::end_of_chain(const Workspace& w, int l, int B, bool training) const {
  if (B <= kFewRows || row_grid(B, l).row_blocks < 2) return l;
  double cycles = 0;
  int last = l - 1;
  for (; last < shape_.layers() && last - l + 1 < kLongestChain; ++last) {
    if (row_grid(B, last + 1).column_blocks > 1) break;
    cycles += product_cycles(last + 1, B);
  }
  // On the way back each layer may be a loop of its own. Where that is one thread's, it had better
  // have made all the values itself.
  const bool chained = wary_ == 0 && shape_.keeps_outputs();
  if (training && !chained) cycles *= 2.0 / std::max(1, last - l + 1);
  return team(w, B, cycles) > 1 ? std::max(last, l) : l;
}

// Layers l … last of the fast path in one loop. False if they are not all fit for it: then nothing
// is lost but time.
template <class T>
bool Network<T>::forward_chain(Workspace& w, int l, int last, int B, const ScaledMatrix<T>& in,
                               ScaledMatrix<T>& out, bool flow, bool training) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const int blocks = row_grid(B, l).row_blocks, threads = w.threads_in_use;
  // A buffer that serves several layers has one leading dimension for all of them: or the rows of
  // one thread would lie where another's are in the next layer.
  std::ptrdiff_t widest = 0;
  for (int k = l; k <= last; ++k) widest = std::max(widest, padded<T>(shape_.sizes[k]));
  std::vector<ScaledMatrix<T>> values(last - l + 2);
  values[0] = in;
  for (int k = l; k <= last; ++k) {
    ScaledMatrix<T>& value = values[k - l + 1];
    begin_forward(k, value, training && k < shape_.layers());
    // Never over `in`, which is needed once more if the chain fails.
    value.data = w.h[k] ? w.h[k] : spare_beside(w, {in.data, values[k - l].data});
    if (!w.h[k]) value.ld = widest;
  }
  const int groups = std::min(threads, blocks);
  parallel_for(groups, threads, [&](int group, int thread) {
    const int first = first_task(blocks, group, groups),
              end = first_task(blocks, group + 1, groups);
    for (int k = l; k <= last; ++k) {
      const ScaledMatrix<T>&from = values[k - l], &to = values[k - l + 1];
      const int I = shape_.sizes[k - 1];
      const std::ptrdiff_t ldz = training ? padded<T>(shape_.sizes[k]) : widest;
      const Grid grid = row_grid(B, k);
      const bool unit = on_unit(k);
      PackedBlock packed;
      for (int block = first; block < end; ++block) {
        const Tile t = grid.tile(block);
        T* const z = w.z[k] + t.row * ldz;
        if (unit) {
          split_left(w, t, I, from.data, from.ld);
          product_on_unit(w, t, I, weight(k), I, true, thread, packed, z, ldz);
        } else {
          const RightOperand<T> b =
              right_operand(kernels, weight(k), 1, I, I, t, false, w.packed[thread], packed);
          const T* const rows = from.data + t.row * from.ld;
          kernels.product({t.rows, t.columns, I, rows, from.ld, 1, b, z, ldz, false, {}});
        }
        forward_tile(w, k, t, from, to, z, ldz, flow, w.sums[(k - l) * blocks + block]);
      }
    }
  });
  for (int k = l; k <= last; ++k)
    if (!end_forward(k, B, &w.sums[(k - l) * blocks], values[k - l + 1], flow)) return false;
  out = values.back();
  return true;
}

// Layers 1 … top from the input in the workspace, where it leaves z; returns the last one's output.
template <class T>
ScaledMatrix<T> Network<T>::forward_to(Workspace& w, int top, int B, bool flow, bool training) {
  ScaledMatrix<T> in{w.input, padded<T>(shape_.sizes[0])};
  nonfinite_ = false;
  for (int l = 1, alone = 0; l <= top;) {
    ScaledMatrix<T> out;
    const int end = in.exponent == 0 && l > alone ? end_of_chain(w, l, B, training) : l;
    const int last = std::min(end, top);
    if (last > l && forward_chain(w, l, last, B, in, out, flow, training)) {
      l = last + 1;
    } else {
      alone = std::max(alone, last);  // up to there, layer by layer
      out.data = w.h[l] ? w.h[l] : spare_beside(w, {in.data});
      forward_layer(w, l, B, in, out, flow, training && l < shape_.layers());
      ++l;
    }
    in = out;
  }
  return in;
}

// Leaves z in the workspace and the output in out_.
template <class T>
void Network<T>::forward_pass(Workspace& w, const T* x, int B, bool flow, bool training) {
  const int I = shape_.sizes[0];
  const std::ptrdiff_t ld = padded<T>(I);
  for (int i = 0; i < B; ++i)
    std::memcpy(w.input + i * ld, x + std::ptrdiff_t(i) * I, I * sizeof(T));
  ++pass_;
  out_ = forward_to(w, shape_.layers(), B, flow, training);
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
    copy_output(out_, rows, O, out + std::ptrdiff_t(begin) * O);
  }
}

template <class T>
void Network<T>::copy_output(const ScaledMatrix<T>& from, int rows, int columns, T* to) const {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j)
      to[std::ptrdiff_t(i) * columns + j] =
          from.exponent == 0 ? from.data[i * from.ld + j]
                             : T(shifted(double(from.data[i * from.ld + j]), from.exponent));
}

template <class T>
std::uint64_t Network<T>::forward_kept(const T* x, int B, T* out) {
  const std::lock_guard<std::mutex> lock(running_);
  const FlushSubnormals flush;
  prepare(training_, B, true);
  forward_pass(training_, x, B, false, true);
  copy_output(out_, B, shape_.sizes.back(), out);
  return pass_;
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

#define VEGRAD_INSTANCE(T)                                                              \
  template void Network<T>::note_forward(int, const TileSums&, std::int64_t, double,    \
                                         std::int64_t);                                 \
  template void Network<T>::forward_layer(Workspace&, int, int, const ScaledMatrix<T>&, \
                                          ScaledMatrix<T>&, bool, bool);                \
  template void Network<T>::forward_pass(Workspace&, const T*, int, bool, bool);        \
  template ScaledMatrix<T> Network<T>::forward_to(Workspace&, int, int, bool, bool);    \
  template void Network<T>::forward(const T*, int, T*);                                 \
  template std::uint64_t Network<T>::forward_kept(const T*, int, T*);                   \
  template void Network<T>::copy_output(const ScaledMatrix<T>&, int, int, T*) const;    \
  template double Network<T>::loss(const T*, int, const T*, const std::int64_t*);
VEGRAD_INSTANCE(float)
VEGRAD_INSTANCE(double)
#undef VEGRAD_INSTANCE

}  // namespace vegrad
