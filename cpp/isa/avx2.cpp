// The kernels for avx2: standard headers first, then everything else inside the target region.
#include "isa/tables.hpp"
#if defined(VEGRAD_X86)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#define VEGRAD_VECTOR_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include "kernels/instance.hpp"

namespace vegrad {
namespace {
constexpr Kernels<float> kFloat32 = kernels_of_this_instruction_set<float>();
constexpr Kernels<double> kFloat64 = kernels_of_this_instruction_set<double>();
constexpr Runs kRuns = runs_of_this_instruction_set();
}  // namespace
}  // namespace vegrad
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace vegrad {
extern const InstructionSet kAvx2 = {"avx2", &kFloat32, &kFloat64, &kRuns};
}  // namespace vegrad

#endif
