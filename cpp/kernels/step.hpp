// One step of an optimizer on a run of weights; see table.hpp.
#pragma once

#include "kernels/element.hpp"

namespace vegrad {
namespace {

// What a step does to one vector: the weights are changed in place, as are up to three vectors of
// state. `first`: nothing has been seen yet.
template <class T>
struct SgdStep {
  static constexpr int kStates = 1;
  static VEGRAD_INLINE void apply(const StepNumbers<T>& n, Vector<T> g, Vector<T>& p,
                                  Vector<T> (&state)[3]) {
    if (n.weight_decay != 0) g = fma(splat<T>(n.weight_decay), p, g);
    if (n.momentum != 0) {
      state[0] = n.first ? g : fma(splat<T>(n.undamped), g, n.momentum * state[0]);
      g = n.nesterov ? fma(splat<T>(n.momentum), state[0], g) : state[0];
    }
    p = fma(splat<T>(-n.rate), g, p);
  }
};

template <class T>
struct AdamStep {
  static constexpr int kStates = 3;
  static VEGRAD_INLINE void apply(const StepNumbers<T>& n, Vector<T> g, Vector<T>& p,
                                  Vector<T> (&state)[3]) {
    if (n.weight_decay != 0) g = fma(splat<T>(n.weight_decay), p, g);
    p = p * n.shrink;
    state[0] = fma(splat<T>(n.mean_weight), g - state[0], state[0]);
    state[1] = fma(splat<T>(n.square_weight) * g, g, n.square_decay * state[1]);
    Vector<T> square = state[1];
    if (n.amsgrad) square = state[2] = larger(state[2], square);
    const Vector<T> size = fma(square_root(square), splat<T>(n.root_scale), splat<T>(n.eps));
    p = p - n.rate * (state[0] / size);
  }
};

template <class T>
struct LionStep {
  static constexpr int kStates = 1;
  static VEGRAD_INLINE void apply(const StepNumbers<T>& n, Vector<T> g, Vector<T>& p,
                                  Vector<T> (&state)[3]) {
    const Vector<T> u = fma(splat<T>(n.mean_weight), g - state[0], state[0]);
    const Vector<T> size = select<T>(u != T(0), splat<T>(n.rate), splat<T>(T(0)));
    const Vector<T> rate = select<T>(u == u, size, u);  // NaN stays
    p = p * n.shrink - with_sign<T>(rate, u);
    state[0] = fma(splat<T>(n.square_weight), g - state[0], state[0]);
  }
};

template <class T, class Step>
void run_step(const StepRun<T>& r) {
  const StepNumbers<T> n = *r.numbers;
  for (std::size_t i = 0; i < r.count; i += kLanes<T>) {
    const bool whole = r.count - i >= std::size_t(kLanes<T>);
    const int lanes = whole ? kLanes<T> : int(r.count - i);
    const Vector<T> g = (whole ? load<T>(r.g + i) : load_first<T>(r.g + i, lanes)) * r.factor;
    Vector<T> p = whole ? load<T>(r.p + i) : load_first<T>(r.p + i, lanes);
    Vector<T> state[3] = {};
#pragma GCC unroll 3
    for (int s = 0; s < Step::kStates; ++s)
      if (r.state[s])
        state[s] = whole ? load<T>(r.state[s] + i) : load_first<T>(r.state[s] + i, lanes);
    Step::apply(n, g, p, state);
    if (whole)
      store<T>(r.p + i, p);
    else
      store_first<T>(r.p + i, p, lanes);
#pragma GCC unroll 3
    for (int s = 0; s < Step::kStates; ++s) {
      if (!r.state[s]) continue;
      if (whole)
        store<T>(r.state[s] + i, state[s]);
      else
        store_first<T>(r.state[s] + i, state[s], lanes);
    }
  }
}

// Elements of any type as those of the weights.
template <class E, class T>
void convert_run(const E* x, std::size_t n, T* out) {
  E rest[kWide] = {};
  T wide[kWide];
  for (std::size_t i = 0; i < n; i += kWide) {
    const bool whole = n - i >= std::size_t(kWide);
    if (!whole) __builtin_memcpy(rest, x + i, (n - i) * sizeof(E));
    const typename Elements<T>::Stored v =
        Elements<T>::narrow(load_wide(whole ? x + i : static_cast<const E*>(rest)));
    if (whole) {
      __builtin_memcpy(out + i, &v, sizeof v);
    } else {
      __builtin_memcpy(wide, &v, sizeof v);
      __builtin_memcpy(out + i, wide, (n - i) * sizeof(T));
    }
  }
}

template <class T>
constexpr StepKernels<T> step_kernels() {
  return {{run_step<T, SgdStep<T>>, run_step<T, AdamStep<T>>, run_step<T, LionStep<T>>},
          convert_run<float16, T>,
          convert_run<bfloat16, T>,
          convert_run<float, T>,
          convert_run<double, T>};
}

}  // namespace
}  // namespace vegrad
