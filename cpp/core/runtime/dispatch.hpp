// Which instruction set runs the kernels.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "isa/tables.hpp"

namespace vegrad {

// What this machine supports, best first; never empty.
const std::vector<const InstructionSet*>& supported_instruction_sets();

inline std::atomic<const InstructionSet*> g_instruction_set{nullptr};  // null until first asked for
const InstructionSet& best_instruction_set();

inline const InstructionSet& instruction_set() {
  const InstructionSet* const active = g_instruction_set.load(std::memory_order_acquire);
  return active ? *active : best_instruction_set();
}

// The matrix unit that products of float32 run on, beside the vectors of avx512; null if this
// machine has none, or it is switched off.
const MatrixUnit* matrix_unit();
bool has_matrix_unit();  // this machine
void use_matrix_unit(bool on);
// VEGRAD_AMX, 0 or 1. Throws std::invalid_argument if it is anything else.
void read_matrix_unit_environment();

// Throws std::invalid_argument, with the names to choose from, if unknown or unsupported.
void use_instruction_set(const std::string& name);

}  // namespace vegrad
