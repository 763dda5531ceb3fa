#include "core/recurrent/recurrent.hpp"

#include <cstring>
#include <mutex>
#include <new>

#include "core/runtime/floating_point.hpp"

namespace vegrad {
namespace {

// Where the parameters lie in one block, from one cache line on each; the gradients lie alike.
template <class T>
std::size_t lay_out(const RecurrentShape& shape, T* base, std::vector<LayerWeights<T>>& layers,
                    HeadWeights<T>& head) {
  const std::size_t G = shape.gates(), H = shape.hidden, O = shape.outputs;
  Parts<T> parts(base);
  layers.resize(shape.layers);
  for (int l = 0; l < shape.layers; ++l) {
    const std::size_t I = shape.inputs_of(l);
    if (double(G) * H * double(I + H) * shape.layers > 0x1p56) throw std::bad_alloc();
    layers[l].weight_ih = parts.take(G * H * I);
    layers[l].weight_hh = parts.take(G * H * H);
    layers[l].bias_ih = parts.take(G * H);
    layers[l].bias_hh = parts.take(G * H);
  }
  head.weight = parts.take(O * H);
  head.bias = parts.take(O);
  return parts.size();
}

template <class T>
StepRows<T> all_steps(T* data, int steps, std::ptrdiff_t n, bool at_each_step) {
  return {data, at_each_step ? steps * n : n, at_each_step ? n : 0};
}

}  // namespace

template <class T>
Recurrent<T>::Recurrent(const RecurrentShape& shape) : training_(shape), inference_(shape) {
  parameters_ = Buffer<T>(lay_out<T>(shape, nullptr, weights_, head_));
  gradients_ = Buffer<T>(parameters_.size());
  lay_out(shape, parameters_.data(), weights_, head_);
  lay_out(shape, gradients_.data(), training_.gradients, training_.head_gradient);
  for (TimePass<T>* pass : {&training_, &inference_}) {
    for (const LayerWeights<T>& of : weights_)
      pass->weights.push_back({of.weight_ih, of.weight_hh, of.bias_ih, of.bias_hh});
    pass->head = {head_.weight, head_.bias};
  }
}

// The pass over this batch, with room for so many steps.
template <class T>
void Recurrent<T>::begin(TimePass<T>& pass, const Sequences<T>& batch, int steps, bool sliding,
                         bool flow, int losses_from) {
  const RecurrentShape& shape = pass.shape;
  const bool training = &pass == &training_, all = shape.targets_all;
  prepare(pass, batch.rows, steps, training, sliding, flow);
  pack_weights(pass, training);
  pass.schedule.arrange(batch.rows, batch.steps, batch.lengths, !all);
  TimeRequest<T>& r = pass.request = {};
  r.x = all_steps(batch.x, batch.steps, shape.inputs, true);
  r.h_before = batch.h;
  r.c_before = batch.c;
  if (batch.values) r.values = all_steps(batch.values, batch.steps, shape.outputs, all);
  if (batch.labels) r.labels = all_steps(batch.labels, batch.steps, 1, all);
  const std::int64_t outputs = pass.schedule.row_steps() - pass.schedule.place(losses_from);
  const double losses = double(all ? outputs : batch.rows);
  r.loss_scale = 1 / (shape.loss == Loss::cross_entropy ? losses : losses * shape.outputs);
  r.flow = flow;
  pass.first = 0;
  pass.add = false;
  last_ = &pass;
}

template <class T>
void Recurrent<T>::forward_only(TimePass<T>& pass, int end) {
  const int most = int(std::max<std::size_t>(pass.work.row_steps / pass.schedule.rows(), 1));
  for (int t = 0; t < end; t += most) {
    move_window(pass, t, t);
    forward_steps(pass, t, std::min(end, t + most));
  }
}

template <class T>
double Recurrent<T>::sum_of_losses(const TimePass<T>& pass) const {
  double sum = 0;
  for (int i = 0; i < pass.schedule.rows(); ++i) sum += pass.work.losses[i];
  return sum * pass.request.loss_scale;
}

template <class T>
void Recurrent<T>::forward(const Sequences<T>& batch, T* out) {
  const std::lock_guard<WorkLock> lock(running_);
  const FlushSubnormals flush;
  begin(inference_, batch, std::min(batch.steps, kInferenceSteps), false, false);
  const RecurrentShape& shape = inference_.shape;
  inference_.request.output = all_steps(out, batch.steps, shape.outputs, shape.targets_all);
  forward_only(inference_, batch.steps);
}

template <class T>
double Recurrent<T>::loss(const Sequences<T>& batch) {
  const std::lock_guard<WorkLock> lock(running_);
  const FlushSubnormals flush;
  begin(inference_, batch, std::min(batch.steps, kInferenceSteps), false, false);
  forward_only(inference_, batch.steps);
  return sum_of_losses(inference_);
}

template <class T>
double Recurrent<T>::backward(const Sequences<T>& batch, TimeWindow window, const double* factors,
                              bool flow, int losses_from) {
  const std::lock_guard<WorkLock> lock(running_);
  const FlushSubnormals flush;
  const int T_ = batch.steps;
  TimePass<T>& pass = training_;
  const int back = window.back ? std::min(window.back, T_) : T_;
  int steps = window.steps ? std::min(window.steps, T_) : T_, first = 0;
  const bool all = pass.shape.targets_all;
  if (!all) {
    steps = back;
    first = T_ - back;
  }
  begin(pass, batch, back, all && back > steps, flow, losses_from);
  pass.request.factors = factors;
  if (flow) flow_.begin(pass.shape, T_);
  if (losses_from == 0) {
    forward_only(pass, first);
  } else {
    forward_steps(pass, 0, losses_from);
    std::fill(pass.work.losses.begin(), pass.work.losses.end(), 0.0);
    first = losses_from;
    steps = T_ - first;
  }
  for (int t = first; t < T_; t += steps) {
    const int end = std::min(T_, t + steps);
    // Chunks that lie one behind the other are never gone through twice, not even by a short last.
    move_window(pass, back > steps ? std::max(0, end - back) : t, t);
    forward_steps(pass, t, end);
    backward_steps(pass, t, end);
    make_weight_gradients(pass, t, end);
    if (flow) note_flow(pass, end, flow_);
    pass.add = true;
  }
  return sum_of_losses(pass);
}

template <class T>
auto Recurrent<T>::state() const -> State {
  const std::lock_guard<WorkLock> lock(running_);
  if (!last_) return {};
  const Schedule& schedule = last_->schedule;
  const std::ptrdiff_t H = shape().hidden, B = schedule.rows(), ld = last_->sizes.hidden;
  State found{int(B), std::vector<T>(shape().layers * B * H), {}};
  if (shape().has_c()) found.c.resize(found.h.size());
  for (int l = 0; l < shape().layers; ++l)
    for (int i = 0; i < B; ++i) {
      const LayerMemory<T>& m = last_->work.layers[l];
      const std::ptrdiff_t to = (l * B + schedule.row_of(i)) * H;
      std::memcpy(found.h.data() + to, m.last_h + i * ld, H * sizeof(T));
      if (shape().has_c()) std::memcpy(found.c.data() + to, m.last_c + i * ld, H * sizeof(T));
    }
  return found;
}

template <class T>
TimeFlowColumns Recurrent<T>::flow() const {
  const std::lock_guard<WorkLock> lock(running_);
  return flow_;
}

template <class T>
std::size_t Recurrent<T>::workspace_bytes(int rows, int steps, TimeWindow window) const {
  const int back = window.back ? std::min(window.back, steps) : steps;
  const bool sliding = shape().targets_all && window.steps && window.steps < back;
  return time_bytes<T>(shape(), rows, back, sliding);
}

template class Recurrent<float>;
template class Recurrent<double>;

}  // namespace vegrad
