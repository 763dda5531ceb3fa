// Layers whose values leave 2^±40: the same equations with an exponent beside every matrix.
//
// What it is for: in a network that vanishes or explodes, δ and values of depth 50 are beyond what
// float32, or even double, can hold. They are what a diagnosis is about, so they are computed all
// the same, and right.
//
// How: products run in T on operands scaled to about 1; what is elementwise runs in double, an
// element at a time. This path is rare and slow, and short: it is the definition once more, with
// ldexp.
//
// What it must guarantee: it leaves the pass as the fast path would, so that the next layer may be
// on either path; and it takes a layer only where every number is finite.
//
// What it leaves out: speed (it runs on one thread but for the products), and inf and NaN, which no
// scaling can help.
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

// φ(z) of layer l, whose z the rescaled path has left, where output_of has it.
template <class T>
void outputs_rescaled(Pass<T>& pass, int l);

}  // namespace vegrad
