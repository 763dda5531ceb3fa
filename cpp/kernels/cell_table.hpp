// One step of a recurrent layer, forward and back: what the kernels for it take.
//
// Letters: H units, G slots of a unit. A slot is a gate's number for each unit: lstm i f g o (G 4),
// gru r z n m (4, of which the input's part has the first three), tanh and relu z (1). Rows of
// slots are padded: slot s of unit j stands at s * slot + j, `slot` being H rounded up to whole
// vectors of kPadBytes. Padding is zero in h, c, δ and what is packed, and stays so.
//
// A step reads h of the step before and writes into other memory. What a row gets does not depend
// on the rows that are computed beside it, unless it is `lone`: the sums of the only row of a batch
// are made in another order, which is faster.
#pragma once

#include <cstddef>

namespace vegrad {

enum class Cell : int { tanh, relu, lstm, gru };
constexpr int kCellCount = 4;
constexpr const char* kCellNames[] = {"tanh", "relu", "lstm", "gru"};
constexpr int kCellSlots[] = {1, 1, 4, 4};
// Rows of the weights are so many times H.
constexpr int kCellGates[] = {1, 1, 4, 3};

constexpr int kRowGroup = 4;  // rows that are never parted among threads

// h and c of a step from those of the step before.
template <class T>
struct CellForward {
  int rows, H;
  bool lone;
  std::ptrdiff_t slot;
  const T* recurrent;  // U as pack_forward() leaves it
  const T* bias;       // G * slot: the sums of both biases; gru: b_in in slot n, b_hn in slot m
  const T* h_before;   // (rows, H)
  const T* c_before;   // lstm
  T* gates;            // in: W x; out: lstm i f g o, gru r z n m, tanh its kept form
  T *h, *c;            // out; c: lstm
  std::ptrdiff_t ld_before, ld, ld_gates;  // of h and c before, of h and c, of gates
  T* h_squares;                            // out, of each row: Σ h²; null: not wanted
};

// δ and the gates' α of a step, from the α of the step after it.
//
// With p = scale (Uᵀ α_after + carried), where `carried` is what lstm's κ_after f_after or gru's
// δ_after z_after hold: δ = p + local_scale local for tanh, relu, gru; lstm: carried goes into κ
// instead, so p = scale Uᵀ α_after and κ = scale carried + δ o (1 - tanh² c). Then α of the step:
// lstm α_i α_f α_g α_o; gru ρ ζ ν and ν r (of which W has the first three, U the first two and the
// last); else ε.
template <class T>
struct CellBackward {
  int rows, H;
  bool lone;
  std::ptrdiff_t slot;
  const T* recurrent;  // U as pack_backward() leaves it
  const T* after;      // α of the step after (rows, G slots), at ld_gates; null: p is scale carried
  const T* scale;      // of each row; null: 1
  const T* local;      // (rows, H): the gradient that enters at this step; null: none
  const T* local_scale;  // of each row; null: 1
  T* gates;              // in: as the forward step left them; out: α. Null: only δ and `carried` of
             // what comes before the first step: δ = p (+ local), carried *= scale (lstm)
  const T *h, *h_before;  // relu: h; gru: h_before
  const T *c, *c_before;  // lstm
  T* carried;             // in, out; null: nothing is carried (tanh, relu)
  bool fresh;             // nothing comes from later steps: `after` and `carried` are not read
  T* delta;               // out: δ (rows, H); null: not wanted
  std::ptrdiff_t ld_local, ld_gates, ld, ld_before, ld_carried, ld_delta;  // ld: of h and c
  // Out, of each row, not null:
  T* delta_squares;  // Σ δ²
  // Out, of each row; all null: not wanted.
  T* passed_squares;   // Σ p²
  T* carried_squares;  // lstm: Σ (κ f)², gru: Σ (δ z)², of this step
  T* state_squares;    // lstm: Σ κ²
  T* carry_sums;  // lstm, gru: f or z of each unit is added (slot), for every four rows of those
  int carry_row;  // of which this is the number of the first
  T* matrix_squares;      // lstm: Σ (p o (1 - tanh² c))², gru: Σ (scale Uᵀ α_after)²
  T* into_state_squares;  // lstm: Σ of that and what is carried from the step after, squared
};

template <class T>
struct CellKernels {
  // How many numbers the packed U takes, and how it is packed from U (gates * H, H), without
  // padding. Both ways have the same size.
  std::size_t (*packed_size)(int H);
  void (*pack_forward)(const T* U, int H, T* out);
  void (*pack_backward)(const T* U, int H, T* out);
  void (*forward)(const CellForward<T>&);
  void (*backward)(const CellBackward<T>&);
};

}  // namespace vegrad
