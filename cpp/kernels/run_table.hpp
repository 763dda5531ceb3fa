// Kernels over runs: contiguous elements of somebody's buffer, of any element type.
//
// Every sum is made in double, in kSumLanes lanes that are added pairwise at the end, whatever the
// width of the registers, and without fused operations that would round differently: the bits of a
// result do not depend on the instruction set. Subnormal numbers count.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vegrad {

struct float16 {
  std::uint16_t bits;
};
struct bfloat16 {
  std::uint16_t bits;
};

constexpr int kSumLanes = 16;

// What one read of a run tells; without NaN in the extremes.
struct RunSums {
  double squares, sum;       // Σ x², Σ x
  double smallest, largest;  // of |x|
};

struct RunCounts {
  std::int64_t zeros, subnormals;
  double smallest;  // |x| that is not zero; inf if there is none
};

template <class E>
struct RunKernels {
  double (*squares)(const E* x, std::size_t n);                        // Σ x²
  double (*scaled_squares)(const E* x, std::size_t n, double factor);  // Σ (factor x)²
  double (*magnitudes)(const E* x, std::size_t n, double factor);      // Σ |factor x|
  double (*largest)(const E* x, std::size_t n);                        // |x|, NaN ignored
  void (*sums)(const E* x, std::size_t n, RunSums& out);
  void (*counts)(const E* x, std::size_t n, double smallest_normal, RunCounts& out);
  // x = first x second, rounded once to E if E is not double; returns Σ x² of the results.
  double (*scale)(E* x, std::size_t n, double first, double second);
  void (*scale_only)(E* x, std::size_t n, double first, double second);  // and returns nothing
  // x = x within ±limit, NaN stays; returns Σ x² of the results.
  double (*clamp)(E* x, std::size_t n, double limit);
};

}  // namespace vegrad
