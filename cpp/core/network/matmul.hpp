// A plain matrix product with the network's kernels, for tests and for the benchmark's peak.
#pragma once

#include <cstddef>

namespace vegrad {

// c (m, n) = a b over k, without padding; the element (i, p) of a is a[i * a_row + p * a_column],
// the element (p, j) of b is b[p * b_row + j * b_column].
template <class T>
void matmul(int m, int n, int k, const T* a, std::ptrdiff_t a_row, std::ptrdiff_t a_column,
            const T* b, std::ptrdiff_t b_row, std::ptrdiff_t b_column, T* c);

}  // namespace vegrad
