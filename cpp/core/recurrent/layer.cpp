#include "core/recurrent/layer.hpp"

#include <algorithm>
#include <cstring>

#include "core/runtime/floating_point.hpp"

namespace vegrad {
namespace {

template <class T>
StepRows<T> steps_of(T* data, const Schedule& schedule, std::ptrdiff_t n, bool time_major) {
  if (!data) return {};
  if (time_major) return {data, n, schedule.rows() * n};
  return {data, schedule.steps() * n, n};
}

}  // namespace

template <class T>
std::unique_ptr<KeptPass<T>> RecurrentLayer<T>::take(bool keep) {
  const std::lock_guard<std::mutex> lock(taking_);
  std::vector<std::unique_ptr<KeptPass<T>>>& free = free_[keep];
  if (free.empty()) return std::make_unique<KeptPass<T>>(shape_);
  std::unique_ptr<KeptPass<T>> kept = std::move(free.back());
  free.pop_back();
  return kept;
}

template <class T>
void RecurrentLayer<T>::give_back(std::unique_ptr<KeptPass<T>> kept, bool keep) {
  const std::lock_guard<std::mutex> lock(taking_);
  free_[keep].push_back(std::move(kept));
}

template <class T>
void RecurrentLayer<T>::forward(KeptPass<T>& kept, const LayerInput<T>& in,
                                const LayerWeights<const T>& weights, bool keep, T* out, T* h,
                                T* c) {
  const FlushSubnormals flush;
  TimePass<T>& pass = kept.pass;
  const int steps = in.steps, piece = steps_in_memory(steps, keep);
  prepare(pass, in.rows, piece, keep, false, false);
  pass.weights.assign(1, weights);
  pack_weights(pass, keep);
  pass.schedule.arrange(in.rows, steps, in.lengths, false, in.reverse);
  pass.first = 0;
  pass.request = {};
  pass.request.x = steps_of(in.x, pass.schedule, shape_.inputs, in.time_major);
  pass.request.h_before = in.h;
  pass.request.c_before = in.c;
  pass.request.output = steps_of(out, pass.schedule, shape_.hidden, in.time_major);
  for (int t = 0; t < steps; t += piece) {
    move_window(pass, t, t);
    forward_steps(pass, t, std::min(steps, t + piece));
  }
  kept.time_major = in.time_major;
  kept.replaced = false;
  const std::ptrdiff_t H = shape_.hidden, ld = pass.sizes.hidden;
  const LayerMemory<T>& m = pass.work.layers[0];
  for (int i = 0; i < in.rows; ++i) {
    std::memcpy(h + pass.schedule.row_of(i) * H, m.last_h + i * ld, H * sizeof(T));
    if (c) std::memcpy(c + pass.schedule.row_of(i) * H, m.last_c + i * ld, H * sizeof(T));
  }
}

template <class T>
void RecurrentLayer<T>::backward(KeptPass<T>& kept, const LayerGradients<T>& in,
                                 const LayerInputGradients<T>& out,
                                 const LayerWeights<T>& gradients) {
  const FlushSubnormals flush;
  TimePass<T>& pass = kept.pass;
  const int steps = pass.schedule.steps();
  TimeRequest<T>& r = pass.request;
  const StepRows<const T> x = r.x;
  r = {};
  r.x = x;
  r.again = true;
  if (kept.replaced) forward_steps(pass, 0, steps);
  kept.replaced = true;
  r.output_gradient = steps_of(in.output, pass.schedule, shape_.hidden, kept.time_major);
  r.h_gradient = in.h;
  r.c_gradient = in.c;
  r.x_gradient = steps_of(out.x, pass.schedule, shape_.inputs, kept.time_major);
  r.h_before_gradient = out.h;
  r.c_before_gradient = out.c;
  pass.gradients.assign(1, gradients);
  backward_steps(pass, 0, steps);
  make_weight_gradients(pass, 0, steps);
}

template class RecurrentLayer<float>;
template class RecurrentLayer<double>;

}  // namespace vegrad
