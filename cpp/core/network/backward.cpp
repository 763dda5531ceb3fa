// The backward pass: from the loss down, each layer's gradients in one sweep after its product.
#include <cstring>

#include "core/network/far_activations.hpp"
#include "core/network/products.hpp"
#include "core/runtime/floating_point.hpp"

namespace vegrad {
namespace {

// Beyond these the next product is scaled back to about 1.
constexpr double kScaleBelow = 0x1p-20, kScaleAbove = 0x1p20;
constexpr double kSaturated = 0.05;  // of the largest derivative
constexpr double kLossCycles = 4;    // of an element, at least
constexpr int kWary = 2;             // passes, after shifts that were not expected

constexpr double kLargestDerivative[] = {
#define VEGRAD_ROW(name, largest, ...) largest,
    VEGRAD_ACTIVATIONS(VEGRAD_ROW)
#undef VEGRAD_ROW
};

}  // namespace

std::int64_t correction(double mean_square) {
  if (!(mean_square > 0) || !std::isfinite(mean_square)) return 0;
  if (mean_square >= kScaleBelow && mean_square <= kScaleAbove) return 0;
  return -std::int64_t(std::lround(std::log2(mean_square) / 2));
}

double saturation_limit(Activation activation) {
  return kSaturated * kLargestDerivative[activation];
}

// Where φ(z) of layer l stands once the backward pass has come to it; layer 0 is the input. Unless
// z or φ(z) are needed further it replaces z, in the memory of this layer and of the thread whose
// rows they are: a buffer that all layers share would have to be fetched back, line by line, from
// the threads that read it for the layer before.
template <class T>
T* Network<T>::output_of(const Workspace& w, int l) const {
  if (l == 0) return w.input;
  if (shape_.residual) return w.h[l];
  return shape_.has_norm(l) ? w.normalized_h[l % 2] : w.z[l];
}

// δ = g φ′ (back through the normalization) of a tile of layer l, and h for the weights' gradient.
template <class T>
void Network<T>::backward_tile(Workspace& w, int l, const Tile& t, const T* g, T* delta, bool flow,
                               TileSums& sums) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const Activation activation = shape_.activation_of(l);
  const std::ptrdiff_t ld = padded<T>(shape_.sizes[l]), at = t.row * ld + t.column;
  BackwardTile<T> tile{};
  tile.rows = t.rows;
  tile.columns = t.columns;
  tile.g = g + at;
  tile.z = w.z[l] + at;
  tile.kept = layers_[l].kept;
  tile.delta = delta + at;
  if (l < shape_.layers() && !shape_.residual) tile.h = output_of(w, l) + at;
  tile.ldg = tile.ldz = tile.ld_delta = tile.ldh = ld;
  tile.flow_wanted = flow;
  tile.saturated_below = T(saturation_limit(activation));
  tile.column_sums = w.column_sums[l] + t.row_block * ld + t.column;
  if (!derivative_underflows(activation)) tile.alive = w.alive[l] + t.row_block * ld + t.column;
  kernels.activation[activation].backward(tile);
  sums.g_squares = tile.g_squares;
  sums.delta_squares = tile.delta_squares;
  sums.saturated = tile.saturated;
  if (!shape_.has_norm(l)) return;
  NormTile<T> norm{};
  norm.rows = t.rows;
  norm.columns = t.columns;
  norm.center = shape_.norm == Norm::layer;
  norm.z = w.z[l] + at;
  norm.inverse = w.inverse[l] + t.row;
  norm.delta = delta + at;
  norm.ldz = norm.ld_delta = ld;
  norm.column_sums = tile.column_sums;
  kernels.normalize_backward(norm);
  sums.delta_squares = norm.delta_squares;
}

// The loss, δ of the last layer in delta_, and ∂loss/∂h of it in skip_gradient_ if residual.
template <class T>
double Network<T>::top(Workspace& w, int B, const T* values, const std::int64_t* labels,
                       bool flow) {
  const int l = shape_.layers(), O = shape_.sizes[l];
  const std::ptrdiff_t ld = padded<T>(O);
  const double scale = loss_scale(B);
  T* const g = spare_beside(w, {out_.data});
  T* const delta = shape_.residual ? spare_beside(w, {out_.data, g}) : g;
  skip_gradient_ = {g, ld, 0, 0};
  delta_ = {delta, ld, 0, 0};
  double loss = 0;
  bool done = out_.exponent != 0 && !nonfinite_ && top_far(w, B, values, labels, flow, loss);
  if (!done) {
    loss = 0;
    // Rows are whole here: a softmax needs all its columns.
    const Grid grid = make_grid(B, kLossRowStep, O, int(ld));
    const int threads = team(w, B, elements(l, B) * kLossCycles);
    parallel_for(grid.tasks(), threads, [&](int task, int) {
      const Tile t = grid.tile(task);
      double sum = 0;
      for (int i = t.row; i < t.row + t.rows; ++i) {
        const LossRow<T> row{O, out_.data + i * out_.ld, 0,
                             values ? values + std::ptrdiff_t(i) * O : nullptr,
                             labels ? labels[i] : 0};
        sum += loss_row<T, T>(shape_.loss, row, scale, g + i * ld);
      }
      w.losses[task] = sum;
    });
    for (int task = 0; task < grid.tasks(); ++task) loss += w.losses[task];
    loss *= scale;
    const Grid tiles = row_grid(B, l);
    parallel_for(tiles.tasks(), threads, [&](int task, int) {
      w.sums[task] = TileSums();
      backward_tile(w, l, tiles.tile(task), g, delta, flow, w.sums[task]);
    });
    const TileSums sums = add_up(w.sums.data(), tiles.tasks());
    delta_.mean_square = sums.delta_squares / elements(l, B);
    skip_gradient_.mean_square = sums.g_squares / elements(l, B);
    done = !nonfinite_ && !within(delta_.mean_square) && top_far(w, B, values, labels, flow, loss);
    if (flow && !done) note_backward(w, l, B, sums.saturated);
  }
  if (flow)
    flow_.delta_log2[l - 1] = half_log2(delta_.mean_square * elements(l, B), delta_.exponent);
  bias_gradient(w, l, B);
  return loss;
}

// Layer l from `above` and `skip`, those of layer l + 1.
template <class T>
BackwardStep<T> Network<T>::backward_step(int l, std::int64_t shift, T* delta, T* g,
                                          const ScaledMatrix<T>& above,
                                          const ScaledMatrix<T>& skip) const {
  const std::ptrdiff_t ld = padded<T>(shape_.sizes[l]);
  const std::int64_t exponent = above.exponent - shift;
  BackwardStep<T> step{{delta, ld, exponent, 0}, {g, ld, exponent, 0}, shift};
  if (shape_.has_skip(l + 1)) {
    step.apart = skip.exponent - exponent;
    step.skip = skip.data;
  }
  return step;
}

// Whether the fast path can take layer l.
template <class T>
bool Network<T>::is_near(int l, const BackwardStep<T>& step) const {
  const Layer& layer = layers_[l];
  return layer.z_exponent == 0 && layer.inverse_exponent == 0 &&
         (shape_.residual || layer.h_exponent == 0) && std::abs(step.apart) < 60;
}

// What follows the product of a tile, which stands in step.g.
template <class T>
void Network<T>::end_backward_tile(Workspace& w, int l, const Tile& t, const BackwardStep<T>& step,
                                   bool flow, TileSums& sums) {
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
  if (shape_.residual || around.scale != T(1)) instruction_set().kernels<T>().add_skip(around);
  backward_tile(w, l, t, step.g.data, step.delta.data, flow, sums);
  if (!shape_.residual) return;
  sums.g_squares = around.product_squares;
  sums.h_squares = around.g_squares;
}

// Whether the fast path was right to take layer l, whose step stands in delta_ and skip_gradient_.
// Notes the flow if so, or if nobody else will.
template <class T>
bool Network<T>::end_backward(Workspace& w, int l, int B, const TileSums* tiles, bool flow) {
  const TileSums sums = add_up(tiles, row_grid(B, l).tasks());
  const double n = elements(l, B);
  delta_.mean_square = sums.delta_squares / n;
  skip_gradient_.mean_square = sums.h_squares / n;
  const bool good = within(delta_.mean_square) && within(sums.g_squares / n) &&
                    (!shape_.residual || within(skip_gradient_.mean_square));
  if (!good && !nonfinite_) return false;
  if (flow) {
    note_backward(w, l, B, sums.saturated);
    flow_.weight_gain_log2[l - 1] =
        half_log2(sums.g_squares, delta_.exponent) - flow_.delta_log2[l];
  }
  return true;
}

// The rest of the flow, from delta_ of layer l.
template <class T>
void Network<T>::note_delta(int l, int B) {
  flow_.delta_log2[l - 1] = half_log2(delta_.mean_square * elements(l, B), delta_.exponent);
  flow_.activation_gain_log2[l - 1] =
      flow_.delta_log2[l - 1] - flow_.delta_log2[l] - flow_.weight_gain_log2[l - 1];
}

// From δ of layer l + 1 in delta_ to that of layer l.
template <class T>
void Network<T>::backward_layer(Workspace& w, int l, int B, bool flow,
                                const WeightGradient<T>& pending) {
  const ScaledMatrix<T> above = delta_, skip = skip_gradient_;
  const bool residual = shape_.residual;
  const T* const kept_skip = residual ? skip.data : nullptr;
  T* const g = spare_beside(w, {above.data, pending.delta.data, kept_skip});
  T* const delta = residual ? spare_beside(w, {above.data, pending.delta.data, kept_skip, g}) : g;
  const std::int64_t shift = correction(above.mean_square);
  const bool known = l == shape_.layers() - 1;  // to a chain that begins here
  if (shift != shifts_[l] && !known) wary_ = std::max(wary_, kWary);
  shifts_[l] = shift;
  const BackwardStep<T> step = backward_step(l, shift, delta, g, above, skip);
  delta_ = step.delta;
  skip_gradient_ = step.g;
  bool far = !is_near(l, step) && !nonfinite_ && backward_far(w, l, B, above, skip, flow);
  if (far) {
    make_gradients(w, B, flow, pending);
  } else {
    layers_[l].replaced = output_of(w, l) == w.z[l];
    product_with_transpose(
        w, l + 1, B, above.data, above.ld, weight(l + 1), g, pending, flow,
        [&](const Tile& t, int task) { end_backward_tile(w, l, t, step, flow, w.sums[task]); });
    if (!end_backward(w, l, B, w.sums.data(), flow)) {
      far = backward_far(w, l, B, above, skip, flow);
      if (!far) end_backward(w, l, B, w.sums.data(), flow);
    }
  }
  if (far) wary_ = std::max(wary_, kWary);
  if (flow) note_delta(l, B);
  bias_gradient(w, l, B);
}

// Saturated elements, and units whose derivative was zero on the whole batch: truly zero, not a
// number that T cannot hold.
template <class T>
void Network<T>::note_backward(Workspace& w, int l, int B, std::int64_t saturated) {
  const int N = shape_.sizes[l];
  const std::ptrdiff_t ld = padded<T>(N);
  int dead = 0;
  if (!derivative_underflows(shape_.activation_of(l))) {
    const int blocks = row_grid(B, l).row_blocks;
    for (int j = 0; j < N; ++j) {
      bool alive = false;
      for (int r = 0; r < blocks && !alive; ++r) alive = w.alive[l][r * ld + j] > 0;
      dead += !alive;
    }
  }
  flow_.saturated[l - 1] = double(saturated) / elements(l, B);
  flow_.dead[l - 1] = double(dead) / N;
}

// ∂loss/∂b: the sum of the row blocks' column sums, in order.
template <class T>
void Network<T>::bias_gradient(Workspace& w, int l, int B) {
  const int N = shape_.sizes[l];
  const std::ptrdiff_t ld = padded<T>(N);
  T* const out = bias_gradient(l);
  std::memcpy(out, w.column_sums[l], N * sizeof(T));
  const int blocks = row_grid(B, l).row_blocks;
  for (int r = 1; r < blocks; ++r)
    for (int j = 0; j < N; ++j) out[j] += w.column_sums[l][r * ld + j];
  const TwoFactors<T> scale(delta_.exponent);
  for (int j = 0; j < N; ++j) out[j] = out[j] * scale.first * scale.second;
}

template <class T>
double Network<T>::backward(const T* x, int B, const T* values, const std::int64_t* labels,
                            bool flow) {
  const std::lock_guard<std::mutex> lock(running_);
  const FlushSubnormals flush;
  Workspace& w = training_;
  prepare(w, B, true);
  forward_pass(w, x, B, flow, true);
  return descend(w, B, values, labels, flow);
}

template <class T>
void Network<T>::backward_kept(std::uint64_t pass, const T* x, int B, const T* gradient, T* delta,
                               T* gradients) {
  const std::lock_guard<std::mutex> lock(running_);
  const FlushSubnormals flush;
  if (pass != pass_) {
    prepare(training_, B, true);
    forward_pass(training_, x, B, false, true);
  }
  struct Restore {
    Network& network;
    ~Restore() { network.gradients_at_ = network.gradients_.data(); }
  } const restore{*this};
  gradients_at_ = gradients;
  descend(training_, B, gradient, nullptr, false);
  if (delta) copy_output(delta_, B, shape_.sizes[1], delta);
}

// What follows a forward pass in the same workspace.
template <class T>
double Network<T>::descend(Workspace& w, int B, const T* values, const std::int64_t* labels,
                           bool flow) {
  ++pass_;  // δ and gradients take the place of what the forward pass has left
  const double loss = top(w, B, values, labels, flow);
  // A layer's weight gradient needs δ of the layer and h of the one below; it is made beside the
  // product that comes after both, in one loop.
  WeightGradient<T> pending;
  for (int l = shape_.layers() - 1; l >= 1;) {
    const int next = backward_chain(w, l, B, flow, pending);
    if (next < l) {
      l = next;
      continue;
    }
    const ScaledMatrix<T> above = delta_;
    backward_layer(w, l, B, flow, pending);
    pending = weight_gradient(l + 1, B, above);
    --l;
  }
  if (wary_ > 0) --wary_;
  make_gradients(w, B, flow, pending, weight_gradient(1, B, delta_));
  return loss;
}

#define VEGRAD_INSTANCE(T)                                                                  \
  template double Network<T>::backward(const T*, int, const T*, const std::int64_t*, bool); \
  template void Network<T>::backward_kept(std::uint64_t, const T*, int, const T*, T*, T*);  \
  template T* Network<T>::output_of(const Workspace&, int) const;                           \
  template BackwardStep<T> Network<T>::backward_step(                                       \
      int, std::int64_t, T*, T*, const ScaledMatrix<T>&, const ScaledMatrix<T>&) const;     \
  template bool Network<T>::is_near(int, const BackwardStep<T>&) const;                     \
  template void Network<T>::end_backward_tile(Workspace&, int, const Tile&,                 \
                                              const BackwardStep<T>&, bool, TileSums&);     \
  template bool Network<T>::end_backward(Workspace&, int, int, const TileSums*, bool);      \
  template void Network<T>::note_delta(int, int);                                           \
  template void Network<T>::bias_gradient(Workspace&, int, int);
VEGRAD_INSTANCE(float)
VEGRAD_INSTANCE(double)
#undef VEGRAD_INSTANCE

}  // namespace vegrad
