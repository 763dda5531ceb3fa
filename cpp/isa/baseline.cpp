// The kernels for baseline: standard headers first, then everything else inside the target region.
#include "isa/tables.hpp"
#if !defined(VEGRAD_ARM)

#if defined(VEGRAD_X86)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>
#include <limits>

#define VEGRAD_VECTOR_BYTES 16
#include "kernels/instance.hpp"

namespace vegrad {
namespace {
constexpr Kernels<float> kFloat32 = kernels_of_this_instruction_set<float>();
constexpr Kernels<double> kFloat64 = kernels_of_this_instruction_set<double>();
constexpr Runs kRuns = runs_of_this_instruction_set();
}  // namespace
extern const InstructionSet kBaseline = {"baseline", &kFloat32, &kFloat64, &kRuns};
}  // namespace vegrad

#endif
