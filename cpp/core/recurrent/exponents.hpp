// The powers of two that δ of each row has on its way back.
//
// A step back is p = scale (Uᵀ α + carried), δ = p + local_scale local: here it is found by what
// powers of two, from how large the row's δ was at the step before and how large the local gradient
// is. While all is within 2^±10 of 1 nothing is scaled, and this costs next to nothing.
#pragma once

#include <cstdint>

#include "core/recurrent/pass.hpp"

namespace vegrad {

// Scales of the kernel's call for these rows; null where all are 1.
template <class T>
struct StepScales {
  const T *scale = nullptr, *local_scale = nullptr;
};

// Before a step, of rows that come from the step after it unless `fresh`. `local` (rows at ld),
// null if nothing enters, has exponents local_exponents (of each row; null: 0). Sets the rows'
// exponents.
template <class T>
StepScales<T> scales_of_step(TimePass<T>& pass, int l, int t, RowRange rows, bool fresh,
                             double factor, const T* local, std::ptrdiff_t ld_local,
                             const std::int32_t* local_exponents, const ThreadScratch<T>& scratch);

// After it: by what the next step is to be scaled, from Σ δ².
template <class T>
void note_step(TimePass<T>& pass, int l, int t, RowRange rows, const T* delta_squares);

// `row` (n) times 2^exponent, or 0 or infinity where the dtype ends.
template <class T>
void multiply_back(T* row, std::ptrdiff_t n, std::int64_t exponent);

}  // namespace vegrad
