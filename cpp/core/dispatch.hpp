// Which instruction set runs the kernels.
#pragma once

#include <string>
#include <vector>

#include "isa/tables.hpp"

namespace vegrad {

// What this machine supports, best first; never empty.
const std::vector<const InstructionSet*>& supported_instruction_sets();

const InstructionSet& instruction_set();

// Throws std::invalid_argument, with the names to choose from, if unknown or unsupported.
void use_instruction_set(const std::string& name);

}  // namespace vegrad
