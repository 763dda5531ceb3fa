// One table an instruction set; dispatch chooses.
#pragma once

#include "kernels/table.hpp"

namespace vegrad {

extern const InstructionSet kBaseline, kAvx2, kAvx512, kNeon;

}  // namespace vegrad
