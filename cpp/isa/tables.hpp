// One table an instruction set; dispatch chooses.
#pragma once

#include "kernels/matrix_unit.hpp"
#include "kernels/table.hpp"
#include "simd/processor.hpp"

// Whoever asks the system for the unit's registers must know how.
#if defined(__linux__) && defined(VEGRAD_X86)
#define VEGRAD_HAS_AMX
#endif

namespace vegrad {

extern const InstructionSet kBaseline, kAvx2, kAvx512, kNeon;
extern const MatrixUnit kAmx;

}  // namespace vegrad
