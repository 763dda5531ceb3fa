// The output of a recurrent network and its loss.
#pragma once

#include "core/recurrent/pass.hpp"

namespace vegrad {

// Outputs of a thread's rows at steps begin … end where there are any, to the caller if wanted;
// with targets their losses are added to those of the rows, and the loss's gradient takes their
// place.
template <class T>
void head_forward(TimePass<T>& pass, int begin, int end, RowRange rows);

// The gradient with respect to h of the uppermost layer at steps begin … end, to `local` as steps
// of B rows.
template <class T>
void head_backward(const TimePass<T>& pass, int begin, int end, RowRange rows, T* local);

}  // namespace vegrad
