// The backward pass: from the loss down, each layer's gradients in one sweep after its product.
#pragma once

#include "core/network/pass.hpp"

namespace vegrad {

// What the backward pass of one layer makes: δ and the gradient g with respect to its output, from
// δ of the layer above. Without skip connections δ takes the place of g.
template <class T>
struct BackwardStep {
  ScaledMatrix<T> delta, g;
  // The product of δ above and the weights is multiplied by 2^shift, which brings it to about 1;
  // the exponent of g is that of δ above, less the shift, and δ has that of φ′ on top.
  std::int64_t shift = 0;
  // The gradient that comes around the layer above by a skip connection; null if there is none. Its
  // exponent is larger than this step's by `apart`.
  const T* skip = nullptr;
  std::int64_t apart = 0;
};

// What a pass is to learn: values (B, O), or labels (B); a gradient (B, O) if the loss is given.
template <class T>
struct Target {
  const T* values = nullptr;
  const std::int64_t* labels = nullptr;

  LossRow<T> row(const ScaledMatrix<T>& output, int columns, int i, std::int64_t exponent) const {
    return {columns, output.data + i * output.ld, exponent,
            values ? values + std::ptrdiff_t(i) * columns : nullptr, labels ? labels[i] : 0};
  }
};

// Everything that follows a forward pass in the same workspace: returns the loss, leaves gradients
// and, if wanted, the flow. It ends at layer `lowest`, whose δ stands in pass.delta; the gradients
// of the layers below are zero, and their flow is not measured.
template <class T>
double backward_pass(Pass<T>& pass, const Target<T>& target, int lowest = 1);

// |φ′| below this counts as saturated.
double saturation_limit(Activation activation);

// Where φ(z) of layer l stands once the backward pass has come to it; layer 0 is the input. Unless
// z or φ(z) are needed further it replaces z, in the memory of this layer and of the thread whose
// rows they are: a buffer that all layers share would have to be fetched back, line by line, from
// the threads that read it for the layer before.
template <class T>
T* output_of(const Pass<T>& pass, int l) {
  if (l == 0) return pass.work.input;
  if (pass.shape.residual) return pass.work.h[l];
  return pass.shape.has_norm(l) ? pass.work.normalized_h[l % 2] : pass.work.z[l];
}

// The parts that layers have in common, alone or in a chain (backward_chain.cpp).

// Layer l from `above` and `skip`, those of layer l + 1.
template <class T>
BackwardStep<T> backward_step(const Pass<T>& pass, int l, std::int64_t shift, T* delta, T* g,
                              const ScaledMatrix<T>& above, const ScaledMatrix<T>& skip);

// Whether the fast path can take layer l.
template <class T>
bool fits_fast_path(const Pass<T>& pass, int l, const BackwardStep<T>& step);

// What follows the product of a tile, which stands in step.g.
template <class T>
void end_backward_tile(Pass<T>& pass, int l, const Tile& t, const BackwardStep<T>& step,
                       TileSums& sums);

// Whether the fast path was right to take layer l, whose step stands in pass.delta and
// pass.skip_gradient. Notes the flow if so, or if nobody else will.
template <class T>
bool end_backward(Pass<T>& pass, int l, const TileSums* tiles);

// The rest of the flow, from δ of layer l.
template <class T>
void note_delta(Pass<T>& pass, int l);

// ∂loss/∂b: the sum of the row blocks' column sums, in order.
template <class T>
void make_bias_gradient(Pass<T>& pass, int l);

}  // namespace vegrad
