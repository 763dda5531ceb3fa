#include "core/buffers/optimizer.hpp"

#include <cmath>

namespace vegrad {
namespace {

template <class T>
StepNumbers<T> numbers_as(const OptimizerSettings& s, double rate, std::int64_t steps) {
  const bool adam = s.kind == kAdam;
  const double t = double(steps + 1);
  StepNumbers<T> n{};
  n.rate = T(adam ? rate / (1 - std::pow(s.beta1, t)) : rate);
  n.weight_decay = T(s.decoupled ? 0 : s.weight_decay);
  n.shrink = T(s.decoupled ? 1 - rate * s.weight_decay : 1);
  n.momentum = T(s.momentum);
  n.undamped = T(1 - s.dampening);
  n.mean_weight = T(1 - s.beta1);
  n.square_weight = T(1 - s.beta2);
  n.square_decay = T(s.beta2);
  n.root_scale = T(adam ? 1 / std::sqrt(1 - std::pow(s.beta2, t)) : 1);
  n.eps = T(s.eps);
  n.nesterov = s.nesterov;
  n.amsgrad = s.amsgrad;
  n.first = steps == 0;
  return n;
}

template <class T, class E>
auto converter(const StepKernels<T>& kernels) {
  if constexpr (std::is_same_v<E, float16>)
    return kernels.from_float16;
  else if constexpr (std::is_same_v<E, bfloat16>)
    return kernels.from_bfloat16;
  else if constexpr (std::is_same_v<E, float>)
    return kernels.from_float32;
  else
    return kernels.from_float64;
}

// A view's elements in C order, in blocks.
template <class E>
class Blocks {
 public:
  explicit Blocks(const View& view) : layout_(Layout::in_c_order(view)) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % sizeof(E) == 0;
    const bool gapless =
        layout_.ndim == 0 || (layout_.ndim == 1 && layout_.axes[0].stride == sizeof(E));
    if (aligned && gapless) data_ = reinterpret_cast<E*>(layout_.lowest);
  }
  // Where they lie, or a copy in `block`.
  E* read(std::int64_t first, std::int64_t count, E* block) const {
    if (data_) return data_ + first;
    gather(layout_, sizeof(E), first, count, block);
    return block;
  }
  void write(std::int64_t first, std::int64_t count, const E* block) const {
    if (!data_) scatter(layout_, sizeof(E), first, count, block);
  }

 private:
  Layout layout_;
  E* data_ = nullptr;
};

}  // namespace

std::vector<const char*> OptimizerSettings::state_names() const {
  std::vector<const char*> names = all_state_names();
  names.resize(states());
  return names;
}

std::size_t OptimizerSettings::states() const {
  if (kind == kSgd) return momentum != 0;
  if (kind == kLion) return 1;
  return amsgrad ? 3 : 2;
}

std::vector<const char*> OptimizerSettings::all_state_names() const {
  if (kind == kSgd) return {"momentum"};
  if (kind == kLion) return {"mean"};
  return {"mean", "square", "largest_square"};
}

void OptimizerState::make_room(const OptimizerSettings& settings) {
  const std::size_t bytes = std::size_t(count) * (dtype == Dtype::kFloat64 ? 8 : 4);
  const std::size_t wanted = settings.states();
  if (memory.size() < wanted && settings.kind == kSgd) steps = 0;
  while (memory.size() < wanted) memory.emplace_back(bytes);
}

Stepper::Stepper(std::vector<StepGroup> groups, std::vector<std::size_t> group_of, bool norm_wanted,
                 const std::vector<View>& parameters, const std::vector<View>& gradients,
                 std::vector<std::unique_ptr<OptimizerState>*> states, WorkLock& writing)
    : groups_(std::move(groups)),
      group_of_(std::move(group_of)),
      norm_wanted_(norm_wanted),
      parameters_(parameters),
      gradients_(gradients),
      states_(std::move(states)),
      numbers_of_(parameters.size()),
      plain_(std::make_unique_for_overwrite<Plain[]>(parameters.size())),
      writing_(writing, std::defer_lock) {}

const Stepper::Numbers& Stepper::numbers_after(std::size_t group, std::int64_t steps) {
  const std::pair key(group, steps);
  if (last_numbers_ && key == last_key_) return *last_numbers_;
  auto found = numbers_.find(key);
  if (found == numbers_.end()) {
    const auto& [settings, rate] = groups_[group];
    found = numbers_
                .emplace(key, Numbers{numbers_as<float>(settings, rate, steps),
                                      numbers_as<double>(settings, rate, steps)})
                .first;
  }
  last_key_ = key;
  last_numbers_ = &found->second;
  return found->second;
}

void Stepper::begin() {
  writing_.lock();
  // All the small parts first, and then the large ones: later steps find them side by side.
  for (std::size_t b = 0; b < parameters_.size(); ++b) {
    std::unique_ptr<OptimizerState>& state = *states_[b];
    if (state) continue;
    state = std::make_unique<OptimizerState>(parameters_[b]);
    state->memory.reserve(groups_[group_of_[b]].settings.states());
  }
  for (std::size_t b = 0; b < parameters_.size(); ++b) prepare(b);
}

void Stepper::prepare(std::size_t buffer) {
  OptimizerState* const state = states_[buffer]->get();
  const View& parameter = parameters_[buffer];
  const OptimizerSettings& settings = groups_[group_of_[buffer]].settings;
  const std::size_t kept = settings.states();
  if (state->memory.size() < kept) state->make_room(settings);
  numbers_of_[buffer] = &numbers_after(group_of_[buffer], state->steps);
  const View& gradient = gradients_[buffer];
  const auto follows = [](const View& view) { return view.dense && !view.strides; };
  const bool simple =
      !norm_wanted_ && gradient.dtype == parameter.dtype && follows(gradient) && follows(parameter);
  const auto kept_at = [&](std::size_t s) {
    return s < kept ? static_cast<void*>(state->memory[s].data()) : nullptr;
  };
  plain_[buffer] = {numbers_of_[buffer], simple ? gradient.data : nullptr,
                    parameter.data,      {kept_at(0), kept_at(1), kept_at(2)},
                    settings.kind,       settings.maximize,
                    parameter.dtype};
}

template <class T>
void Stepper::step_plainly(const Plain& plain, std::int64_t first, std::int64_t count, T factor) {
  StepRun<T> run{};
  if constexpr (sizeof(T) == 4)
    run.numbers = &plain.numbers->of_float;
  else
    run.numbers = &plain.numbers->of_double;
  run.factor = plain.maximize ? -factor : factor;
  run.g = static_cast<const T*>(plain.g) + first;
  run.p = static_cast<T*>(plain.p) + first;
  for (int s = 0; s < 3; ++s)
    if (plain.state[s]) run.state[s] = static_cast<T*>(plain.state[s]) + first;
  run.count = std::size_t(count);
  const FlushSubnormals flush;
  instruction_set().kernels<T>().optimizer.step[plain.kind](run);
}

template <class T, class E>
Scaled Stepper::take_as(std::int64_t buffer, std::int64_t first, std::int64_t count, Factor factor,
                        double limit, bool cleaned) {
  const InstructionSet& set = instruction_set();
  const RunKernels<E>& runs = set.runs<E>();
  const StepKernels<T>& kernels = set.kernels<T>().optimizer;
  const Blocks<T> parameter(parameters_[buffer]);
  const Blocks<E> gradient(gradients_[buffer]);
  const OptimizerState& state = **states_[buffer];
  const OptimizerSettings& settings = groups_[group_of_[buffer]].settings;
  const std::size_t kept = settings.states();
  StepRun<T> run{};
  if constexpr (sizeof(T) == 4)
    run.numbers = &numbers_of_[buffer]->of_float;
  else
    run.numbers = &numbers_of_[buffer]->of_double;
  // The gradient is multiplied beforehand by what the weights' dtype cannot hold, and where they
  // cannot hold the gradient itself.
  const double whole = factor.value();
  const bool beforehand = std::fabs(whole) < double(std::numeric_limits<T>::min()) ||
                          (sizeof(E) > sizeof(T) && whole < 1);
  const T times = beforehand ? T(1) : T(whole);
  run.factor = settings.maximize ? -times : times;
  E gradient_block[kBlock];
  T parameter_block[kBlock], converted[kBlock];
  const bool changed = cleaned || is_finite(limit) || beforehand;
  Scaled squares;
  for (std::int64_t i = first; i < first + count; i += kBlock) {
    const std::int64_t n = std::min<std::int64_t>(kBlock, first + count - i);
    E* g = gradient.read(i, n, gradient_block);
    if (changed) {
      if (g != gradient_block) std::memcpy(gradient_block, g, n * sizeof(E));
      g = gradient_block;
      if (cleaned)
        for (std::int64_t j = 0; j < n; ++j)
          if (!is_finite(g[j])) g[j] = E{};
      if (is_finite(limit)) runs.clamp(g, n, limit);
    }
    if (norm_wanted_)
      squares = Order{}.add(squares, checked_squares(runs, g, n, runs.squares(g, n)));
    if (beforehand && sizeof(E) >= sizeof(T)) runs.scale_only(g, n, factor.first, factor.second);
    if constexpr (std::is_same_v<T, E>) {
      run.g = g;
    } else {
      converter<T, E>(kernels)(g, n, converted);
      run.g = converted;
    }
    if (beforehand && sizeof(E) < sizeof(T))
      set.runs<T>().scale_only(converted, n, factor.first, factor.second);
    run.p = parameter.read(i, n, parameter_block);
    run.count = std::size_t(n);
    for (std::size_t s = 0; s < kept; ++s)
      run.state[s] = reinterpret_cast<T*>(state.memory[s].data()) + i;
    {
      const FlushSubnormals flush;
      kernels.step[settings.kind](run);
    }
    parameter.write(i, n, run.p);
  }
  return squares;
}

Scaled Stepper::take(std::int64_t buffer, std::int64_t first, std::int64_t count, Factor factor,
                     double limit, bool cleaned) {
  const Plain& plain = plain_[buffer];
  const double whole = factor.value();
  if (plain.g && !cleaned && !is_finite(limit)) {
    if (plain.dtype == Dtype::kFloat64 && whole >= std::numeric_limits<double>::min()) {
      step_plainly<double>(plain, first, count, whole);
      return {};
    }
    if (plain.dtype == Dtype::kFloat32 && whole >= double(std::numeric_limits<float>::min())) {
      step_plainly<float>(plain, first, count, float(whole));
      return {};
    }
  }
  return with_dtype(gradients_[buffer].dtype, [&](auto element) {
    using E = decltype(element);
    return parameters_[buffer].dtype == Dtype::kFloat64
               ? take_as<double, E>(buffer, first, count, factor, limit, cleaned)
               : take_as<float, E>(buffer, first, count, factor, limit, cleaned);
  });
}

Clipped take_step(std::vector<StepGroup> groups, std::vector<std::size_t> group_of,
                  const std::vector<View>& parameters, std::vector<View>& gradients,
                  const std::vector<std::unique_ptr<OptimizerState>*>& states, WorkLock& writing,
                  Request request, FirstNonFinite& first) {
  const bool norm_wanted =
      request.rule == Rule::kValue || (request.rule == Rule::kNone && !request.squares);
  Stepper stepper(std::move(groups), std::move(group_of), norm_wanted, parameters, gradients,
                  states, writing);
  request.consumer = &stepper;
  request.parameters = parameters.data();
  const Clipped result = clip(gradients, request, first);
  if (!result.skipped && first.buffer < 0)
    for (auto* state : states) ++(*state)->steps;
  return result;
}

}  // namespace vegrad
