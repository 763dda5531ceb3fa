#include "core/network/forward.hpp"

#include <cstring>

#include "core/network/products.hpp"
#include "core/network/rescaled.hpp"

namespace vegrad {
namespace {

// What a layer's forward pass begins with, unless the rescaled path takes it.
template <class T>
void begin_forward(Pass<T>& pass, int l, ScaledMatrix<T>& out, bool keep) {
  const ActivationKernels<T>& kernels =
      instruction_set().kernels<T>().activation[pass.shape.activation_of(l)];
  pass.layers[l] = LayerState();
  pass.layers[l].kept = keep && !pass.shape.has_norm(l) && kernels.map_kept;
  out.ld = pass.ld(l);
  out.exponent = 0;
}

// What follows the product of a tile: normalization, activation, skip connection, and their sums.
template <class T>
void forward_tile(Pass<T>& pass, int l, const Tile& t, const ScaledMatrix<T>& in,
                  const ScaledMatrix<T>& out, const T* bias, T* z, std::ptrdiff_t ldz,
                  TileSums& sums) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const NetworkShape& shape = pass.shape;
  const T* const b = bias + t.column;
  sums = TileSums();
  ForwardTile<T> tile{};
  if (shape.has_norm(l)) {
    NormTile<T> norm{};
    norm.rows = t.rows;
    norm.columns = t.columns;
    norm.center = shape.norm == Norm::layer;
    norm.z = z;
    norm.ldz = ldz;
    norm.bias = b;
    norm.inverse = pass.work.inverse[l] + t.row;
    norm.spread_wanted = pass.flow_wanted;
    kernels.normalize(norm);
    sums.spread = norm.spread;
    sums.z_squares = norm.z_squares;
  } else {
    tile.bias = b;
    tile.spread_wanted = pass.flow_wanted;
  }
  tile.rows = t.rows;
  tile.columns = t.columns;
  tile.z = z;
  tile.ldz = ldz;
  if (shape.has_skip(l)) {
    tile.skip = in.data + t.row * in.ld + t.column;
    tile.ld_skip = in.ld;
  }
  tile.h = out.data + t.row * out.ld + t.column;
  tile.ldh = out.ld;
  tile.keep = pass.layers[l].kept;
  kernels.activation[pass.activation_of(l)].forward(tile);
  if (!shape.has_norm(l)) {
    sums.spread = tile.spread;
    sums.z_squares = tile.z_squares;
  }
  sums.h_squares = tile.h_squares;
  sums.count = double(t.rows) * t.columns;
}

// Whether the fast path was right to take the layer, whose inputs are beside 2^exponent. Notes the
// flow if so, or if nobody else will.
template <class T>
bool end_forward(Pass<T>& pass, int l, const TileSums* tiles, ScaledMatrix<T>& out,
                 std::int64_t exponent = 0) {
  const TileSums sums = add_up(tiles, pass.row_grid(l).tasks());
  const double n = pass.elements(l);
  out.mean_square = sums.h_squares / n;
  out.exponent = exponent + pass.layers[l].slope_exponent;
  // All zero is good if it is the truth.
  const bool zero = out.mean_square == 0 && !value_underflows(pass.shape.activation_of(l));
  const bool good = within(sums.z_squares / n) && (within(out.mean_square) || zero);
  if (!good && !pass.nonfinite) return false;
  if (pass.flow_wanted) note_forward(pass, l, sums, exponent, out.mean_square, out.exponent);
  return true;
}

// The products of layer l with what follows them, a tile at a time.
template <class T>
void forward_tiles(Pass<T>& pass, int l, const ScaledMatrix<T>& in, const ScaledMatrix<T>& out,
                   const T* bias) {
  Workspace<T>& w = pass.work;
  product_with_weights(pass, l, in.data, in.ld, pass.weight(l), w.z[l],
                       [&](const Tile& t, int task) {
                         T* const z = w.z[l] + t.row * out.ld + t.column;
                         forward_tile(pass, l, t, in, out, bias, z, out.ld, w.sums[task]);
                       });
}

// Layer l of inputs beside 2^exponent, with outputs beside about the same: φ(2^k z) = 2^k φ(z), at
// least of numbers as small as these. False if not, or if these outputs are too far from 1.
template <class T>
bool forward_beside(Pass<T>& pass, int l, const ScaledMatrix<T>& in, ScaledMatrix<T>& out) {
  constexpr double kSmallest = sizeof(T) == 4 ? -30 : -60;  // as slope_near_zero_log2() has it
  const Activation activation = pass.shape.activation_of(l);
  const bool straight = !is_homogeneous(activation);
  const std::optional<int> slope = straight ? slope_near_zero_log2(activation) : 0;
  if (!slope || pass.shape.residual || pass.shape.has_norm(l)) return false;
  LayerState& layer = pass.layers[l] = LayerState();
  layer.beside = true;
  layer.straight = straight;
  layer.slope_exponent = *slope;
  const T* const bias = pass.bias(l);
  std::vector<T>& own = pass.scaled_bias;
  own.assign(out.ld, T(0));
  for (int j = 0; j < pass.shape.sizes[l]; ++j) own[j] = T(shifted(double(bias[j]), -in.exponent));
  forward_tiles(pass, l, in, out, own.data());
  const bool good =
      end_forward(pass, l, pass.work.sums.data(), out, in.exponent) &&
      (!layer.straight || half_log2(out.mean_square * pass.elements(l), in.exponent) < kSmallest);
  layer.z_exponent = in.exponent;
  layer.h_exponent = out.exponent;
  if (!good) layer = LayerState();
  return good;
}

// The last of the layers from l on that one loop can take: each in one column block, so that a
// thread can go on with its rows without waiting for the others.
template <class T>
int end_of_chain(const Pass<T>& pass, int l) {
  const NetworkShape& shape = pass.shape;
  if (pass.rows <= kSmallBatch || pass.row_grid(l).row_blocks < 2) return l;
  double cycles = 0;
  int last = l - 1;
  for (; last < shape.layers() && last - l + 1 < kLongestChain; ++last) {
    if (pass.row_grid(last + 1).column_blocks > 1) break;
    cycles += pass.product_cycles(last + 1);
  }
  // On the way back each layer may be a loop of its own. Where that is one thread's, it had better
  // have made all the values itself.
  const bool chained = pass.passes_without_chains == 0 && shape.keeps_outputs();
  if (pass.training && !chained) cycles *= 2.0 / std::max(1, last - l + 1);
  return pass.team(cycles) > 1 ? std::max(last, l) : l;
}

// A thread's blocks of rows of one layer of a chain; `sums` has one entry a block.
template <class T>
void forward_blocks(Pass<T>& pass, int l, int first, int end, const ScaledMatrix<T>& from,
                    const ScaledMatrix<T>& to, std::ptrdiff_t ldz, int thread, TileSums* sums) {
  const int I = pass.shape.sizes[l - 1];
  const Weights<T> weights{pass.weight(l), I, pass.shape.sizes[l], true};
  const Grid grid = pass.row_grid(l);
  const bool unit = pass.on_unit(l);
  PackedBlock packed;
  for (int block = first; block < end; ++block) {
    const Tile t = grid.tile(block);
    T* const z = pass.work.z[l] + t.row * ldz;
    if (unit) split_left(pass, t, I, from.data, from.ld);
    tile_product(pass, t, I, from.data, from.ld, weights, unit, thread, packed, z, ldz, {});
    forward_tile(pass, l, t, from, to, pass.bias(l), z, ldz, sums[block]);
  }
}

// Layers l … last of the fast path in one loop. False if they are not all fit for it: then nothing
// is lost but time.
template <class T>
bool forward_chain(Pass<T>& pass, int l, int last, const ScaledMatrix<T>& in,
                   ScaledMatrix<T>& out) {
  Workspace<T>& w = pass.work;
  const int blocks = pass.row_grid(l).row_blocks, threads = w.threads_in_use;
  // A buffer that serves several layers has one leading dimension for all of them: or the rows of
  // one thread would lie where another's are in the next layer.
  std::ptrdiff_t widest = 0;
  for (int k = l; k <= last; ++k) widest = std::max(widest, pass.ld(k));
  std::vector<ScaledMatrix<T>> values(last - l + 2);
  values[0] = in;
  for (int k = l; k <= last; ++k) {
    ScaledMatrix<T>& value = values[k - l + 1];
    begin_forward(pass, k, value, pass.training && k < pass.shape.layers());
    // Never over `in`, which is needed once more if the chain fails.
    value.data = w.h[k] ? w.h[k] : spare_beside(w, {in.data, values[k - l].data});
    if (!w.h[k]) value.ld = widest;
  }
  const int groups = std::min(threads, blocks);
  parallel_for(groups, threads, [&](int group, int thread) {
    const int first = first_task(blocks, group, groups),
              end = first_task(blocks, group + 1, groups);
    for (int k = l; k <= last; ++k)
      forward_blocks(pass, k, first, end, values[k - l], values[k - l + 1],
                     pass.training ? pass.ld(k) : widest, thread, &w.sums[(k - l) * blocks]);
  });
  for (int k = l; k <= last; ++k)
    if (!end_forward(pass, k, &w.sums[(k - l) * blocks], values[k - l + 1])) return false;
  out = values.back();
  return true;
}

}  // namespace

template <class T>
void note_forward(Pass<T>& pass, int l, const TileSums& sums, std::int64_t z_exponent,
                  double h_mean_square, std::int64_t h_exponent) {
  const double deviation = std::sqrt(std::max(sums.spread.sum_of_squares, 0.0) / sums.count);
  pass.flow.preactivation_mean[l - 1] = shifted(sums.spread.shift, z_exponent);
  pass.flow.preactivation_std[l - 1] = shifted(deviation, z_exponent);
  pass.flow.activation_rms[l - 1] = shifted(std::sqrt(h_mean_square), h_exponent);
}

template <class T>
void forward_layer(Pass<T>& pass, int l, const ScaledMatrix<T>& in, ScaledMatrix<T>& out,
                   bool keep) {
  const TileSums* const sums = pass.work.sums.data();
  begin_forward(pass, l, out, keep);
  if (in.exponent != 0 && !pass.nonfinite) {
    if (forward_beside(pass, l, in, out) || forward_rescaled(pass, l, in, out)) return;
  }
  const bool unit = pass.on_unit(l);
  forward_tiles(pass, l, in, out, pass.bias(l));
  if (end_forward(pass, l, sums, out)) return;
  if (forward_rescaled(pass, l, in, out)) return;
  if (unit) forward_tiles(pass, l, in, out, pass.bias(l));  // without it: one was not finite
  end_forward(pass, l, sums, out);
}

template <class T>
ScaledMatrix<T> forward_to(Pass<T>& pass, int last) {
  Workspace<T>& w = pass.work;
  ScaledMatrix<T> in{w.input, pass.ld(0)};
  pass.nonfinite = false;
  for (int l = 1, alone = 0; l <= last;) {
    ScaledMatrix<T> out;
    const int end = std::min(in.exponent == 0 && l > alone ? end_of_chain(pass, l) : l, last);
    if (end > l && forward_chain(pass, l, end, in, out)) {
      l = end + 1;
    } else {
      alone = std::max(alone, end);  // up to there, layer by layer
      out.data = w.h[l] ? w.h[l] : spare_beside(w, {in.data});
      forward_layer(pass, l, in, out, pass.training && l < pass.shape.layers());
      ++l;
    }
    in = out;
  }
  return in;
}

template <class T>
void forward_pass(Pass<T>& pass, const T* x, int rows) {
  const int I = pass.shape.sizes[0];
  pass.rows = rows;
  for (int i = 0; i < rows; ++i)
    std::memcpy(pass.work.input + i * pass.ld(0), x + std::ptrdiff_t(i) * I, I * sizeof(T));
  pass.output = forward_to(pass, pass.shape.layers());
}

template <class T>
void copy_unpadded(const ScaledMatrix<T>& from, int rows, int columns, T* to) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j)
      to[std::ptrdiff_t(i) * columns + j] =
          from.exponent == 0 ? from.data[i * from.ld + j]
                             : T(shifted(double(from.data[i * from.ld + j]), from.exponent));
}

VEGRAD_FOR_BOTH(note_forward)
VEGRAD_FOR_BOTH(forward_layer)
VEGRAD_FOR_BOTH(forward_to)
VEGRAD_FOR_BOTH(forward_pass)
VEGRAD_FOR_BOTH(copy_unpadded)

}  // namespace vegrad
