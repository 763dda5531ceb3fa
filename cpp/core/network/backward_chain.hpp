// Narrow layers of the backward pass, many in two loops.
#pragma once

#include "core/network/backward.hpp"
#include "core/network/weight_gradient.hpp"

namespace vegrad {

// From δ of layer l + 1 in pass.delta down a chain of layers, with their weights' gradients and the
// one that is pending. Returns the layer that is next: l if there was no chain, or none that came
// out right.
template <class T>
int backward_chain(Pass<T>& pass, int l, WeightGradient<T>& pending);

}  // namespace vegrad
