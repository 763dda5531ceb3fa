// The flow through time: sizes of δ at each layer and step, and by what it grows or shrinks.
#pragma once

#include <vector>

#include "core/recurrent/pass.hpp"

namespace vegrad {

// (L, T), NaN where nothing was measured, and (L, H); see TimeFlow in Python.
struct TimeFlowColumns {
  std::vector<double> delta, gain, cell_gain, carry, matrix, hidden, carry_mean;
  std::vector<double> carry_sums;  // (L, H)
  double carry_count = 0;
  void begin(const RecurrentShape& shape, int steps);
};

// What the pass measured on its last way back, from step `end` - 1.
template <class T>
void note_flow(const TimePass<T>& pass, int end, TimeFlowColumns& flow);

}  // namespace vegrad
