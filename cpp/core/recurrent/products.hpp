// The products of a pass with W, over all rows of some steps that a thread has.
#pragma once

#include "core/recurrent/pass.hpp"

namespace vegrad {

// Calls body(t, rows) for each step t of begin … end with the rows from `first` … `last` on that
// are there; once for all steps, with all their rows, where those lie one behind the other.
template <class Body>
void for_rows_of_steps(const Schedule& schedule, int begin, int end, int first, int last,
                       const Body& body) {
  if (schedule.uniform() && first == 0 && last == schedule.rows()) {
    body(begin, (end - begin) * schedule.rows());
    return;
  }
  for (int t = begin; t < end; ++t) {
    const int rows = std::min(last, schedule.count(t)) - first;
    if (rows > 0) body(t, rows);
  }
}

// Numbers that a packed operand of k rows takes.
template <class T>
std::ptrdiff_t packed_numbers(const Kernels<T>& kernels, std::ptrdiff_t k, int columns) {
  return k * ((columns + kernels.panel_columns - 1) / kernels.panel_columns) *
         kernels.panel_columns;
}

// c (rows, n) (+)= a (rows, k) times what pack() left.
template <class T>
void packed_product(const Kernels<T>& kernels, int rows, int n, int k, const T* a,
                    std::ptrdiff_t lda, const T* packed, T* c, std::ptrdiff_t ldc,
                    bool continued = false) {
  const int width = kernels.panel_columns;
  Product<T> p{rows, n,   k,     a,  lda,      1, {packed, width, std::ptrdiff_t(k) * width},
               c,    ldc, false, {}, continued};
  kernels.product(p);
}

}  // namespace vegrad
