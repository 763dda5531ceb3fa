// Layers whose values leave 2^±40: the same equations with an exponent beside every matrix.
#pragma once

#include "core/network/backward.hpp"

namespace vegrad {

// Each does what its namesake of the fast path does, from the same state of the pass. False, and
// pass.nonfinite is set, if it meets inf or NaN: then the caller lets the fast path spread them.

// Layer l forward.
template <class T>
bool forward_rescaled(Pass<T>& pass, int l, const ScaledMatrix<T>& in, ScaledMatrix<T>& out);

// The loss and δ of the last layer.
template <class T>
bool backward_from_loss_rescaled(Pass<T>& pass, const Target<T>& target, double& loss);

// δ of layer l from `above` and `skip`, those of layer l + 1.
template <class T>
bool backward_rescaled(Pass<T>& pass, int l, const ScaledMatrix<T>& above,
                       const ScaledMatrix<T>& skip);

}  // namespace vegrad
