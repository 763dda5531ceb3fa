// The shape of a recurrent network, and whose weights a layer has.
//
// Letters: B rows of the batch, T steps, I inputs, H units, O outputs, L layers, counted from 0
// here. Slots of a unit, and how they are padded: kernels/cell_table.hpp.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/network/loss.hpp"
#include "core/runtime/memory.hpp"
#include "kernels/cell_table.hpp"

namespace vegrad {

struct RecurrentShape {
  int inputs, hidden, outputs;  // outputs 0: there is no head
  Cell cell;
  int layers;
  bool targets_all;  // an output at each step, else at the last of each row
  Loss loss;

  int gates() const { return kCellGates[int(cell)]; }
  int slots() const { return kCellSlots[int(cell)]; }
  int inputs_of(int l) const { return l == 0 ? inputs : hidden; }
  bool has_c() const { return cell == Cell::lstm; }
  bool carries() const { return cell == Cell::lstm || cell == Cell::gru; }
};

// Slots that the weights of the input and those of the state have, gate by gate.
inline int slot_of_input(Cell, int gate) { return gate; }
inline int slot_of_state(Cell cell, int gate) { return cell == Cell::gru && gate == 2 ? 3 : gate; }

// A layer's weights as PyTorch has them: weight_ih (G H, I), weight_hh (G H, H), biases (G H).
template <class T>
struct LayerWeights {
  T *weight_ih, *weight_hh, *bias_ih, *bias_hh;
};

template <class T>
struct HeadWeights {
  T *weight = nullptr, *bias = nullptr;  // (O, H), (O)
};

// Leading dimensions of what a layer has in memory.
template <class T>
struct RowSizes {
  std::ptrdiff_t slot, gates, hidden, output;
  explicit RowSizes(const RecurrentShape& shape) {
    const std::ptrdiff_t unit = kPadBytes / sizeof(T);
    slot = (shape.hidden + unit - 1) / unit * unit;
    gates = padded<T>(shape.slots() * slot);
    hidden = padded<T>(shape.hidden);
    output = padded<T>(shape.outputs);
  }
};

}  // namespace vegrad
