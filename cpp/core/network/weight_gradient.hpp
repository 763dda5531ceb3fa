// The gradients of the weights: products over the batch, each in tasks of its own.
#pragma once

#include <vector>

#include "core/network/pass.hpp"

namespace vegrad {

// ∂loss/∂W (O, I) = δᵀ (O, B) h (B, I) of layer l, to be made when h is there.
template <class T>
WeightGradient<T> gradient_of_layer(const Pass<T>& pass, int l, const ScaledMatrix<T>& delta);

// A tile of it. What `next`, made by the same thread soon, will read is fetched meanwhile.
template <class T>
void gradient_task(Pass<T>& pass, const WeightGradient<T>& g, int task, int thread, TileSums& sums,
                   const WeightGradient<T>& next = {});

// Its part of the flow, from its tiles' sums.
template <class T>
void note_gradient(Pass<T>& pass, const WeightGradient<T>& g, const TileSums* sums);

// One or two of them in a loop of their own.
template <class T>
void make_gradients(Pass<T>& pass, const WeightGradient<T>& one,
                    const WeightGradient<T>& other = {});

// Many of them in one loop.
template <class T>
void make_all_gradients(Pass<T>& pass, const std::vector<WeightGradient<T>>& all);

}  // namespace vegrad
