// States that are too small or too large for the dtype, for the flow's sake.
//
// Where no input holds it up, h shrinks or grows at each step as δ does on the way back, and a
// state below the dtype's range is flushed to 0. Its size is still known: such a row is carried on
// here in double, with an exponent, for as long as it is out of range.
#pragma once

#include "core/recurrent/pass.hpp"

namespace vegrad {

// After step t of layer l: rows whose h has left the range, or comes back to it. Their sizes take
// the place of what the kernel measured.
template <class T>
void follow_decayed(TimePass<T>& pass, int l, int t, RowRange rows);

}  // namespace vegrad
