// The matrix unit that some processors with avx512 have.
#include "isa/tables.hpp"
#if defined(VEGRAD_HAS_AMX)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#define VEGRAD_VECTOR_BYTES 64
#if defined(__clang__)
#pragma clang attribute push(                                                                 \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,amx-tile,amx-bf16")
#endif
#include "kernels/split.hpp"

namespace vegrad {
namespace {
constexpr MatrixUnit kUnit = matrix_unit_of_this_instruction_set();
}  // namespace
}  // namespace vegrad
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace vegrad {
extern const MatrixUnit kAmx = kUnit;
}  // namespace vegrad

#endif
