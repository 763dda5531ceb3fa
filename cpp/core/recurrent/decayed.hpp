// States that are too small or too large for the dtype.
//
// Where no input holds it up, h shrinks or grows at each step as δ does on the way back, and a
// state below the dtype's range is flushed to 0. Its size is still known, and so are its signs,
// which are the slopes of relu: such a row is carried on here in double, with an exponent, for as
// long as it is out of range.
#pragma once

#include "core/recurrent/pass.hpp"

namespace vegrad {

// After step t of all layers, if the pass follows states: rows whose h has left the range, or comes
// back to it. Their sizes take the place of what the kernel measured, and of relu the slopes take
// that of the gates.
template <class T>
void follow_decayed(TimePass<T>& pass, int t, RowRange rows);

// The row's state after step t, of which follow_decayed() was told last; null if h is in range.
template <class T>
const DecayedState* decayed_state(const TimePass<T>& pass, int l, int t, int row) {
  if (!pass.follows()) return nullptr;
  const LayerMemory<T>& m = pass.work.layers[l];
  return m.hidden_exponents[pass.place(t) + row] != 0 ? &m.decayed[row] : nullptr;
}

}  // namespace vegrad
