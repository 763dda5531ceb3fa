#include "core/network/backward.hpp"

#include <cstring>

#include "core/network/backward_chain.hpp"
#include "core/network/products.hpp"
#include "core/network/rescaled.hpp"

namespace vegrad {
namespace {

constexpr double kSaturated = 0.05;  // of the largest derivative
constexpr double kLossCycles = 4;    // of an element, at least
// Passes in which no chain is tried after δ was scaled otherwise than in the pass before.
constexpr int kPassesAfterSurprise = 2;

constexpr double kLargestDerivative[] = {
#define VEGRAD_ROW(name, largest, ...) largest,
    VEGRAD_ACTIVATIONS(VEGRAD_ROW)
#undef VEGRAD_ROW
};

// g φ′ of a tile of layer l, and h for the weights' gradient.
template <class T>
BackwardTile<T> through_activation(Pass<T>& pass, int l, const Tile& t, const T* g, T* delta) {
  const NetworkShape& shape = pass.shape;
  Workspace<T>& w = pass.work;
  const Activation activation = pass.activation_of(l);
  const std::ptrdiff_t ld = pass.ld(l), at = t.row * ld + t.column;
  BackwardTile<T> tile{};
  tile.rows = t.rows;
  tile.columns = t.columns;
  tile.g = g + at;
  tile.z = w.z[l] + at;
  tile.kept = pass.layers[l].kept;
  tile.delta = delta + at;
  if (l < shape.layers() && !shape.residual) tile.h = output_of(pass, l) + at;
  tile.ldg = tile.ldz = tile.ld_delta = tile.ldh = ld;
  tile.flow_wanted = pass.flow_wanted;
  tile.saturated_below = T(saturation_limit(activation));
  tile.column_sums = w.column_sums[l] + t.row_block * ld + t.column;
  if (!derivative_underflows(activation)) tile.alive = w.alive[l] + t.row_block * ld + t.column;
  instruction_set().kernels<T>().activation[activation].backward(tile);
  return tile;
}

// δ = g φ′ (back through the normalization) of a tile of layer l, and h for the weights' gradient.
template <class T>
void backward_tile(Pass<T>& pass, int l, const Tile& t, const T* g, T* delta, TileSums& sums) {
  const BackwardTile<T> tile = through_activation(pass, l, t, g, delta);
  sums.g_squares = tile.g_squares;
  sums.delta_squares = tile.delta_squares;
  sums.saturated = tile.saturated;
  if (!pass.shape.has_norm(l)) return;
  NormTile<T> norm{};
  norm.rows = t.rows;
  norm.columns = t.columns;
  norm.center = pass.shape.norm == Norm::layer;
  norm.z = pass.work.z[l] + t.row * tile.ldz + t.column;
  norm.inverse = pass.work.inverse[l] + t.row;
  norm.delta = tile.delta;
  norm.ldz = norm.ld_delta = tile.ldz;
  norm.column_sums = tile.column_sums;
  instruction_set().kernels<T>().normalize_backward(norm);
  sums.delta_squares = norm.delta_squares;
}

// The sizes of the rows of δ of layer l, if they are wanted.
template <class T>
void note_rows(Pass<T>& pass, int l) {
  if (!pass.row_squares) return;
  const auto squares = instruction_set().runs<T>().squares;
  const ScaledMatrix<T>& delta = pass.delta;
  double* const out = pass.row_squares->squares + std::ptrdiff_t(l - 1) * pass.rows;
  pass.row_squares->exponents[l - 1] = double(delta.exponent);
  for (int i = 0; i < pass.rows; ++i)
    out[i] = squares(delta.data + i * delta.ld, std::size_t(pass.shape.sizes[l]));
}

// Saturated elements, and units whose derivative was zero on the whole batch: truly zero, not a
// number that T cannot hold.
template <class T>
void note_units(Pass<T>& pass, int l, std::int64_t saturated) {
  const int N = pass.shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l);
  int dead = 0;
  if (!derivative_underflows(pass.activation_of(l))) {
    const int blocks = pass.row_grid(l).row_blocks;
    const T* const largest = pass.work.alive[l];
    for (int j = 0; j < N; ++j) {
      bool alive = false;
      for (int r = 0; r < blocks && !alive; ++r) alive = largest[r * ld + j] > 0;
      dead += !alive;
    }
  }
  pass.flow.saturated[l - 1] = double(saturated) / pass.elements(l);
  pass.flow.dead[l - 1] = double(dead) / N;
}

// ∂loss/∂h of the last layer in g, rows of blocks in parallel; returns the loss.
template <class T>
double loss_and_gradient(Pass<T>& pass, const Target<T>& target, int threads, T* g) {
  const int O = pass.shape.sizes.back();
  const std::ptrdiff_t ld = pass.ld(pass.shape.layers());
  const double scale = pass.shape.loss_scale(pass.rows);
  // Rows are whole here: a softmax needs all its columns.
  const Grid grid = make_grid(pass.rows, kLossRowStep, O, int(ld));
  std::vector<double>& losses = pass.work.losses;
  parallel_for(grid.tasks(), threads, [&](int task, int) {
    const Tile t = grid.tile(task);
    double sum = 0;
    for (int i = t.row; i < t.row + t.rows; ++i)
      sum += loss_row<T, T>(pass.shape.loss, target.row(pass.output, O, i, 0), scale, g + i * ld);
    losses[task] = sum;
  });
  double loss = 0;
  for (int task = 0; task < grid.tasks(); ++task) loss += losses[task];
  return loss * scale;
}

// The loss, δ of the last layer in pass.delta, and ∂loss/∂h of it in pass.skip_gradient if
// residual.
template <class T>
double backward_from_loss(Pass<T>& pass, const Target<T>& target) {
  Workspace<T>& w = pass.work;
  const int l = pass.shape.layers();
  const std::ptrdiff_t ld = pass.ld(l);
  T* const g = spare_beside(w, {pass.output.data});
  T* const delta = pass.shape.residual ? spare_beside(w, {pass.output.data, g}) : g;
  pass.skip_gradient = {g, ld, 0, 0};
  pass.delta = {delta, ld, 0, 0};
  double loss = 0;
  bool done = pass.output.exponent != 0 && !pass.nonfinite &&
              backward_from_loss_rescaled(pass, target, loss);
  if (!done) {
    const int threads = pass.team(pass.elements(l) * kLossCycles);
    loss = loss_and_gradient(pass, target, threads, g);
    const Grid tiles = pass.row_grid(l);
    parallel_for(tiles.tasks(), threads, [&](int task, int) {
      w.sums[task] = TileSums();
      backward_tile(pass, l, tiles.tile(task), g, delta, w.sums[task]);
    });
    const TileSums sums = add_up(w.sums.data(), tiles.tasks());
    pass.delta.mean_square = sums.delta_squares / pass.elements(l);
    pass.skip_gradient.mean_square = sums.g_squares / pass.elements(l);
    done = !pass.nonfinite && !within(pass.delta.mean_square) &&
           backward_from_loss_rescaled(pass, target, loss);
    if (pass.flow_wanted && !done) note_units(pass, l, sums.saturated);
  }
  if (pass.flow_wanted)
    pass.flow.delta_log2[l - 1] =
        half_log2(pass.delta.mean_square * pass.elements(l), pass.delta.exponent);
  note_rows(pass, l);
  make_bias_gradient(pass, l);
  return loss;
}

// From δ of layer l + 1 in pass.delta to that of layer l, with the weight gradient that is pending.
template <class T>
void backward_layer(Pass<T>& pass, int l, const WeightGradient<T>& pending) {
  Workspace<T>& w = pass.work;
  const ScaledMatrix<T> above = pass.delta, skip = pass.skip_gradient;
  const bool residual = pass.shape.residual;
  const T* const kept_skip = residual ? skip.data : nullptr;
  T* const g = spare_beside(w, {above.data, pending.delta.data, kept_skip});
  T* const delta = residual ? spare_beside(w, {above.data, pending.delta.data, kept_skip, g}) : g;
  const std::int64_t shift = correction(above.mean_square);
  const bool known = l == pass.shape.layers() - 1;  // to a chain that begins here
  bool surprise = shift != pass.expected_shifts[l] && !known;
  pass.expected_shifts[l] = shift;
  const BackwardStep<T> step = backward_step(pass, l, shift, delta, g, above, skip);
  pass.delta = step.delta;
  pass.skip_gradient = step.g;
  bool rescaled =
      !fits_fast_path(pass, l, step) && !pass.nonfinite && backward_rescaled(pass, l, above, skip);
  if (rescaled) {
    make_gradients(pass, pending);
  } else {
    pass.layers[l].replaced = output_of(pass, l) == w.z[l];
    product_with_transpose(
        pass, l + 1, above.data, above.ld, pass.weight(l + 1), g, pending,
        [&](const Tile& t, int task) { end_backward_tile(pass, l, t, step, w.sums[task]); });
    if (!end_backward(pass, l, w.sums.data())) {
      rescaled = backward_rescaled(pass, l, above, skip);
      if (!rescaled) end_backward(pass, l, w.sums.data());
    }
  }
  surprise |= rescaled;
  if (surprise)
    pass.passes_without_chains = std::max(pass.passes_without_chains, kPassesAfterSurprise);
  if (pass.flow_wanted) note_delta(pass, l);
  make_bias_gradient(pass, l);
}

// Ends a pass above layer l, whose gradients and those of all layers below are zero: leaves the
// output of layer l where the weights' gradient of the next layer looks for it. It is rounded as a
// pass through the layer would, unless that has to scale the layer for its δ alone.
template <class T>
void end_above(Pass<T>& pass, int l, const WeightGradient<T>& pending) {
  std::fill(pass.gradients, pass.weight_gradient(l + 1), T(0));
  if (pass.shape.residual) return;
  Workspace<T>& w = pass.work;
  T* const unused = spare_beside(w, {pass.delta.data, pending.delta.data});
  if (!fits_fast_path(pass, l, BackwardStep<T>{}) && !pass.nonfinite)
    return outputs_rescaled(pass, l);
  const Grid tiles = pass.row_grid(l);
  parallel_for(tiles.tasks(), pass.team(pass.elements(l) * kLossCycles), [&](int task, int) {
    through_activation(pass, l, tiles.tile(task), unused, unused);
  });
}

}  // namespace

double saturation_limit(Activation activation) {
  return kSaturated * kLargestDerivative[activation];
}

template <class T>
BackwardStep<T> backward_step(const Pass<T>& pass, int l, std::int64_t shift, T* delta, T* g,
                              const ScaledMatrix<T>& above, const ScaledMatrix<T>& skip) {
  const std::ptrdiff_t ld = pass.ld(l);
  const std::int64_t exponent = above.exponent - shift;
  const std::int64_t of_delta = exponent + pass.layers[l].slope_exponent;
  BackwardStep<T> step{{delta, ld, of_delta, 0}, {g, ld, exponent, 0}, shift};
  if (pass.shape.has_skip(l + 1)) {
    step.apart = skip.exponent - exponent;
    step.skip = skip.data;
  }
  return step;
}

template <class T>
bool fits_fast_path(const Pass<T>& pass, int l, const BackwardStep<T>& step) {
  const LayerState& layer = pass.layers[l];
  const bool stored = layer.z_exponent == 0 && (pass.shape.residual || layer.h_exponent == 0);
  return (stored || layer.beside) && layer.inverse_exponent == 0 && std::abs(step.apart) < 60;
}

template <class T>
void end_backward_tile(Pass<T>& pass, int l, const Tile& t, const BackwardStep<T>& step,
                       TileSums& sums) {
  sums = TileSums();
  const std::ptrdiff_t ld = step.g.ld, at = t.row * ld + t.column;
  SkipTile<T> around{t.rows,
                     t.columns,
                     power_of_two<T>(step.shift),
                     power_of_two<T>(step.apart),
                     step.g.data + at,
                     ld,
                     step.skip ? step.skip + at : nullptr,
                     ld};
  const bool residual = pass.shape.residual;
  if (residual || around.scale != T(1)) instruction_set().kernels<T>().add_skip(around);
  backward_tile(pass, l, t, step.g.data, step.delta.data, sums);
  if (!residual) return;
  sums.g_squares = around.product_squares;
  sums.h_squares = around.g_squares;
}

template <class T>
bool end_backward(Pass<T>& pass, int l, const TileSums* tiles) {
  const TileSums sums = add_up(tiles, pass.row_grid(l).tasks());
  const double n = pass.elements(l);
  pass.delta.mean_square = sums.delta_squares / n;
  pass.skip_gradient.mean_square = sums.h_squares / n;
  const bool good = within(pass.delta.mean_square) && within(sums.g_squares / n) &&
                    (!pass.shape.residual || within(pass.skip_gradient.mean_square));
  if (!good && !pass.nonfinite) return false;
  if (pass.flow_wanted) {
    note_units(pass, l, sums.saturated);
    pass.flow.weight_gain_log2[l - 1] =
        half_log2(sums.g_squares, pass.skip_gradient.exponent) - pass.flow.delta_log2[l];
  }
  return true;
}

template <class T>
void note_delta(Pass<T>& pass, int l) {
  FlowColumns& flow = pass.flow;
  flow.delta_log2[l - 1] =
      half_log2(pass.delta.mean_square * pass.elements(l), pass.delta.exponent);
  flow.activation_gain_log2[l - 1] =
      flow.delta_log2[l - 1] - flow.delta_log2[l] - flow.weight_gain_log2[l - 1];
  note_rows(pass, l);
}

template <class T>
void make_bias_gradient(Pass<T>& pass, int l) {
  const int N = pass.shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l);
  T* const out = pass.bias_gradient(l);
  const T* const sums = pass.work.column_sums[l];
  std::memcpy(out, sums, N * sizeof(T));
  const int blocks = pass.row_grid(l).row_blocks;
  for (int r = 1; r < blocks; ++r)
    for (int j = 0; j < N; ++j) out[j] += sums[r * ld + j];
  const TwoFactors<T> scale(pass.delta.exponent);
  for (int j = 0; j < N; ++j) out[j] = out[j] * scale.first * scale.second;
}

template <class T>
double backward_pass(Pass<T>& pass, const Target<T>& target, int lowest) {
  pass.lowest = lowest;
  const double loss = backward_from_loss(pass, target);
  // A layer's weight gradient needs δ of the layer and h of the one below; it is made beside the
  // product that comes after both, in one loop.
  WeightGradient<T> pending;
  for (int l = pass.shape.layers() - 1; l >= lowest;) {
    const int next = backward_chain(pass, l, pending);
    if (next < l) {
      l = next;
      continue;
    }
    const ScaledMatrix<T> above = pass.delta;
    backward_layer(pass, l, pending);
    pending = gradient_of_layer(pass, l + 1, above);
    --l;
  }
  if (pass.passes_without_chains > 0) --pass.passes_without_chains;
  if (lowest > 1) end_above(pass, lowest - 1, pending);
  make_gradients(pass, pending, gradient_of_layer(pass, lowest, pass.delta));
  return loss;
}

VEGRAD_FOR_BOTH(backward_step)
VEGRAD_FOR_BOTH(fits_fast_path)
VEGRAD_FOR_BOTH(end_backward_tile)
VEGRAD_FOR_BOTH(end_backward)
VEGRAD_FOR_BOTH(note_delta)
VEGRAD_FOR_BOTH(make_bias_gradient)
VEGRAD_FOR_BOTH(backward_pass)

}  // namespace vegrad
