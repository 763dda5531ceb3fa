// The output of a recurrent network and its loss.
#pragma once

#include "core/recurrent/pass.hpp"

namespace vegrad {

// V h of a thread's rows at steps begin … end of a chunk, where there are outputs.
template <class T>
void multiply_by_head(TimePass<T>& pass, int begin, int end, RowRange rows);

// Then, step by step of the chunk that began at `begin`, the outputs, to the caller if wanted; with
// targets their losses are added to those of the rows, and on the way to going back the loss's
// gradient is kept, with an exponent where it or h is out of the dtype's range.
template <class T>
void finish_outputs(TimePass<T>& pass, int begin, int t, RowRange rows, ThreadScratch<T>& scratch);

// The gradient with respect to h of the uppermost layer at steps begin … end, to `local` as steps
// of B rows; its exponents are those of the outputs.
template <class T>
void head_backward(const TimePass<T>& pass, int begin, int end, RowRange rows, T* local);

}  // namespace vegrad
