// Narrow layers of the backward pass, many in two loops: δ of all of them, each thread going down
// with its rows, then the weights' gradients.
//
// What it is for: a narrow layer is done in a few microseconds, and a parallel loop costs about one
// to start and end. A thread that keeps its rows through many layers need not wait for the others
// between them, and its rows stay in its cache.
//
// What it must guarantee: the same bits as layer by layer. By what power of two δ is scaled back on
// its way follows from the mean square of the whole batch, which no thread has seen. So a chain
// expects what the last pass did (pass.expected_shifts), checks that afterwards, from the top down,
// and of its layers only those count that come out as layer by layer. In the others φ(z) has taken
// the place of z; they go forward again, and then back layer by layer.
//
// What it leaves out: small batches, layers of several column blocks, everything that has left the
// range of T, and normalization without residual connections, whose outputs have no memory of their
// own. All of that is backward_layer()'s.
#include "core/network/backward_chain.hpp"

#include "core/network/forward.hpp"
#include "core/network/products.hpp"

namespace vegrad {
namespace {

// Passes in which no chain is tried after one that did not come out right.
constexpr int kPassesAfterFailure = 16;

// The lowest of the layers from l down that one loop can take: each in one column block, so that a
// thread can go on with its rows without waiting for the others.
template <class T>
int end_of_backward_chain(const Pass<T>& pass, int l) {
  const bool alone = pass.rows <= kSmallBatch || pass.row_grid(l).row_blocks < 2;
  if (alone || !pass.shape.keeps_outputs()) return l;
  double cycles = 0;
  int last = l + 1;
  for (; last > pass.lowest && l - last + 1 < kLongestBackwardChain; --last) {
    if (pass.row_grid(last - 1).column_blocks > 1) break;
    cycles += 2 * pass.product_cycles(last);
  }
  return pass.team(cycles) > 1 ? std::min(last, l) : l;
}

// The steps of layers l … last, as far as the fast path can take them.
template <class T>
std::vector<BackwardStep<T>> expected_steps(const Pass<T>& pass, int l, int last,
                                            const WeightGradient<T>& pending) {
  const Workspace<T>& w = pass.work;
  const int slots = int(w.chain_delta.size());
  int slot = 0;  // after the one that is in use, if any
  for (int i = 0; i < slots; ++i)
    if (w.chain_delta[i] == pass.delta.data || w.chain_delta[i] == pending.delta.data) slot = i + 1;
  std::vector<BackwardStep<T>> steps;
  steps.reserve(l - last + 1);
  for (int k = l; k >= last; --k, ++slot) {
    const bool first = k == l;
    const ScaledMatrix<T>& above = first ? pass.delta : steps.back().delta;
    const ScaledMatrix<T>& skip = first ? pass.skip_gradient : steps.back().g;
    const std::int64_t shift = first ? correction(above.mean_square) : pass.expected_shifts[k];
    T* const delta = w.chain_delta[slot % slots];
    T* const g = pass.shape.residual ? w.chain_g[slot % slots] : delta;
    const BackwardStep<T> step = backward_step(pass, k, shift, delta, g, above, skip);
    if (!fits_fast_path(pass, k, step)) break;
    steps.push_back(step);
  }
  return steps;
}

// A thread's blocks of rows of one layer of a chain; `sums` has one entry a block.
template <class T>
void backward_blocks(Pass<T>& pass, int l, int first, int end, const ScaledMatrix<T>& from,
                     const BackwardStep<T>& step, int thread, TileSums* sums) {
  const int O = pass.shape.sizes[l + 1];
  const Weights<T> weights{pass.weight(l + 1), pass.shape.sizes[l], O, false};
  const Grid grid = pass.row_grid(l);
  const bool unit = pass.on_unit(l + 1);
  PackedBlock packed;
  for (int block = first; block < end; ++block) {
    const Tile t = grid.tile(block);
    T* const g = step.g.data + t.row * step.g.ld;
    if (unit) split_left(pass, t, O, from.data, from.ld);
    tile_product(pass, t, O, from.data, from.ld, weights, unit, thread, packed, g, step.g.ld, {});
    end_backward_tile(pass, l, t, step, sums[block]);
  }
}

// Takes over the step of layer k, whose sums are there, and adds the gradient of the layer above to
// `gradients`. False, and nothing is changed, if it is not what the layer would be by itself.
template <class T>
bool accept_step(Pass<T>& pass, int k, const BackwardStep<T>& step, const TileSums* sums,
                 std::vector<WeightGradient<T>>& gradients) {
  const ScaledMatrix<T> above = pass.delta, skip = pass.skip_gradient;
  if (step.shift != correction(above.mean_square)) return false;
  pass.delta = step.delta;
  pass.skip_gradient = step.g;
  if (!end_backward(pass, k, sums)) {
    pass.delta = above;
    pass.skip_gradient = skip;
    return false;
  }
  pass.expected_shifts[k] = step.shift;
  if (pass.flow_wanted) note_delta(pass, k);
  make_bias_gradient(pass, k);
  gradients.push_back(gradient_of_layer(pass, k + 1, above));
  return true;
}

// z of layers 1 … l once more, to the bit: from the input, as φ(z) from the kept form of z may be
// rounded otherwise. δ is kept, though it may stand in memory that the forward pass uses.
template <class T>
void forward_again(Pass<T>& pass, int l) {
  if (pass.shape.residual) return;  // φ(z) stands elsewhere
  const std::size_t size = pass.rows * pass.delta.ld;
  const std::vector<T> kept(pass.delta.data, pass.delta.data + size);
  const bool nonfinite = pass.nonfinite;
  forward_to(pass, l);
  pass.nonfinite = nonfinite;
  std::copy(kept.begin(), kept.end(), pass.delta.data);
}

}  // namespace

template <class T>
int backward_chain(Pass<T>& pass, int l, WeightGradient<T>& pending) {
  const int last = pass.passes_without_chains == 0 ? end_of_backward_chain(pass, l) : l;
  if (last == l) return l;
  const std::vector<BackwardStep<T>> steps = expected_steps(pass, l, last, pending);
  const int n = int(steps.size());
  if (n < 2) return l;
  for (int k = l; k > l - n; --k) pass.layers[k].replaced = !pass.shape.residual;
  std::vector<TileSums>& sums = pass.work.sums;
  const ScaledMatrix<T> above = pass.delta;
  const int blocks = pass.row_grid(l).row_blocks, threads = pass.work.threads_in_use;
  const int groups = std::min(threads, blocks);
  parallel_for(groups, threads, [&](int group, int thread) {
    const int first = first_task(blocks, group, groups),
              end = first_task(blocks, group + 1, groups);
    for (int i = 0; i < n; ++i)
      backward_blocks(pass, l - i, first, end, i == 0 ? above : steps[i - 1].delta, steps[i],
                      thread, &sums[i * blocks]);
  });
  std::vector<WeightGradient<T>> gradients{pending};
  int k = l;
  while (k > l - n && accept_step(pass, k, steps[l - k], &sums[(l - k) * blocks], gradients)) --k;
  make_all_gradients(pass, gradients);
  pending = {};
  if (k > l - n) {
    pass.passes_without_chains = kPassesAfterFailure;
    forward_again(pass, k);
  }
  return k;
}

VEGRAD_FOR_BOTH(backward_chain)

}  // namespace vegrad
