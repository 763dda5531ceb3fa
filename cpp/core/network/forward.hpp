// The forward pass: product, bias, normalization, activation and their sums, a tile at a time.
#pragma once

#include "core/network/pass.hpp"

namespace vegrad {

constexpr int kInferenceRows = 256;  // forward without backward goes through in pieces of this

// All layers over x (rows, I), which has no padding: leaves z in the workspace and the output in
// pass.output. prepare() has come before it.
template <class T>
void forward_pass(Pass<T>& pass, const T* x, int rows);

// Layers 1 … last from the input in the workspace, where it leaves z; returns the last one's
// output.
template <class T>
ScaledMatrix<T> forward_to(Pass<T>& pass, int last);

// Layer l; `keep`: whether its z may be left in the activation's kept form.
template <class T>
void forward_layer(Pass<T>& pass, int l, const ScaledMatrix<T>& in, ScaledMatrix<T>& out,
                   bool keep);

// A layer's part of the flow, from the sums of its tiles.
template <class T>
void note_forward(Pass<T>& pass, int l, const TileSums& sums, std::int64_t z_exponent,
                  double h_mean_square, std::int64_t h_exponent);

// To memory without padding, where numbers may overflow.
template <class T>
void copy_unpadded(const ScaledMatrix<T>& from, int rows, int columns, T* to);

}  // namespace vegrad
