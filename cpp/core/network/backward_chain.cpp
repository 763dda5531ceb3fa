// Narrow layers of the backward pass, many in two loops: δ of all of them, each thread going down
// with its rows, then the weights' gradients.
//
// By what power of two δ is scaled back on its way follows from the whole batch, which no thread
// has seen. So a chain expects what the last pass did, and of its layers those count that come out
// as layer by layer. The others have lost z, which φ(z) took the place of; they are made again.
#include "core/network/products.hpp"

namespace vegrad {
namespace {

constexpr int kWaryOfChains = 16;  // passes, after a chain that did not come out right
}  // namespace

// The lowest of the layers from l down that one loop can take: each in one column block, so that a
// thread can go on with its rows without waiting for the others.
template <class T>
int Network<T>::end_of_backward_chain(const Workspace& w, int l, int B) const {
  if (!shape_.keeps_outputs() || B <= kFewRows || row_grid(B, l).row_blocks < 2) return l;
  double cycles = 0;
  int last = l + 1;
  for (; last > 1 && l - last + 1 < kLongestBackwardChain; --last) {
    if (row_grid(B, last - 1).column_blocks > 1) break;
    cycles += 2 * product_cycles(last, B);
  }
  return team(w, B, cycles) > 1 ? std::min(last, l) : l;
}

// From δ of layer l + 1 in delta_ down a chain of layers, with their weights' gradients and the
// one that is pending. Returns the layer that is next: l if there was no chain, or none that came
// out right.
template <class T>
int Network<T>::backward_chain(Workspace& w, int l, int B, bool flow, WeightGradient<T>& pending) {
  const int last = wary_ == 0 ? end_of_backward_chain(w, l, B) : l;
  if (last == l) return l;
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const int blocks = row_grid(B, l).row_blocks, threads = w.threads_in_use;
  const int slots = int(w.chain_delta.size());
  int slot = 0;  // after the one that is in use, if any
  for (int i = 0; i < slots; ++i)
    if (w.chain_delta[i] == delta_.data || w.chain_delta[i] == pending.delta.data) slot = i + 1;
  std::vector<BackwardStep<T>> steps;
  steps.reserve(l - last + 1);
  for (int k = l; k >= last; --k, ++slot) {
    const bool first = k == l;
    const ScaledMatrix<T>& above = first ? delta_ : steps.back().delta;
    T* const delta = w.chain_delta[slot % slots];
    steps.push_back(backward_step(k, first ? correction(above.mean_square) : shifts_[k], delta,
                                  shape_.residual ? w.chain_g[slot % slots] : delta, above,
                                  first ? skip_gradient_ : steps.back().g));
    if (!is_near(k, steps.back())) {
      steps.pop_back();
      break;
    }
  }
  const int n = int(steps.size());
  if (n < 2) return l;
  for (int k = l; k > l - n; --k) layers_[k].replaced = !shape_.residual;
  const ScaledMatrix<T> top = delta_;
  const int groups = std::min(threads, blocks);
  parallel_for(groups, threads, [&](int group, int thread) {
    const int first = first_task(blocks, group, groups),
              end = first_task(blocks, group + 1, groups);
    for (int i = 0; i < n; ++i) {
      const int k = l - i, I = shape_.sizes[k], O = shape_.sizes[k + 1];
      const ScaledMatrix<T>&from = i == 0 ? top : steps[i - 1].delta, &to = steps[i].g;
      const Grid grid = row_grid(B, k);
      const bool unit = on_unit(k + 1);
      PackedBlock packed;
      for (int block = first; block < end; ++block) {
        const Tile t = grid.tile(block);
        T* const g = to.data + t.row * to.ld;
        if (unit) {
          split_left(w, t, O, from.data, from.ld);
          product_on_unit(w, t, O, weight(k + 1), I, false, thread, packed, g, to.ld);
        } else {
          const RightOperand<T> b =
              right_operand(kernels, weight(k + 1), I, 1, O, t, false, w.packed[thread], packed);
          const T* const rows = from.data + t.row * from.ld;
          kernels.product({t.rows, t.columns, O, rows, from.ld, 1, b, g, to.ld, false, {}});
        }
        end_backward_tile(w, k, t, steps[i], flow, w.sums[i * blocks + block]);
      }
    }
  });
  std::vector<WeightGradient<T>> gradients{pending};
  int k = l;
  for (; k > l - n; --k) {
    const BackwardStep<T>& step = steps[l - k];
    const ScaledMatrix<T> above = delta_, skip = skip_gradient_;
    if (step.shift != correction(above.mean_square)) break;
    delta_ = step.delta;
    skip_gradient_ = step.g;
    if (!end_backward(w, k, B, &w.sums[(l - k) * blocks], flow)) {
      delta_ = above;
      skip_gradient_ = skip;
      break;
    }
    shifts_[k] = step.shift;
    if (flow) note_delta(k, B);
    bias_gradient(w, k, B);
    gradients.push_back(weight_gradient(k + 1, B, above));
  }
  make_gradients(w, B, flow, gradients);
  pending = {};
  if (k > l - n) {
    wary_ = kWaryOfChains;
    forward_again(w, k, B, flow);
  }
  return k;
}

// All of them in one loop.
template <class T>
void Network<T>::make_gradients(Workspace& w, int B, bool flow,
                                const std::vector<WeightGradient<T>>& all) {
  std::vector<int> begin{0};
  for (const WeightGradient<T>& g : all) begin.push_back(begin.back() + g.tasks());
  std::fill(w.split_block.begin(), w.split_block.end(), PackedBlock());
  parallel_for(begin.back(), w.threads_in_use, [&](int task, int thread) {
    const int i = int(std::upper_bound(begin.begin(), begin.end(), task) - begin.begin()) - 1;
    gradient_task(w, all[i], task - begin[i], thread, B, flow, w.sums[task],
                  i + 1 < int(all.size()) ? all[i + 1] : WeightGradient<T>());
  });
  if (!flow) return;
  for (std::size_t i = 0; i < all.size(); ++i) note_gradient(all[i], &w.sums[begin[i]]);
}

// z of layers 1 … l once more, to the bit: from the input, as φ(z) from the kept form of z may be
// rounded otherwise. δ is kept, though it may stand in memory that the forward pass uses.
template <class T>
void Network<T>::forward_again(Workspace& w, int l, int B, bool flow) {
  if (shape_.residual) return;  // φ(z) stands elsewhere
  const std::size_t size = B * delta_.ld;
  const std::vector<T> kept(delta_.data, delta_.data + size);
  const bool nonfinite = nonfinite_;
  forward_to(w, l, B, flow, true);
  nonfinite_ = nonfinite;
  std::copy(kept.begin(), kept.end(), delta_.data);
}

#define VEGRAD_INSTANCE(T)                                                          \
  template int Network<T>::end_of_backward_chain(const Workspace&, int, int) const; \
  template int Network<T>::backward_chain(Workspace&, int, int, bool, WeightGradient<T>&);
VEGRAD_INSTANCE(float)
VEGRAD_INSTANCE(double)
#undef VEGRAD_INSTANCE

}  // namespace vegrad
