// The kernels for avx512: standard headers first, then everything else inside the target region.
#include "isa/tables.hpp"
#if defined(VEGRAD_X86)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#define VEGRAD_VECTOR_BYTES 64
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
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
extern const InstructionSet kAvx512 = {"avx512", &kFloat32, &kFloat64, &kRuns};
}  // namespace vegrad

#endif
