#include "core/dispatch.hpp"

#include <stdexcept>

namespace vegrad {
namespace {

std::vector<const InstructionSet*> detect() {
  std::vector<const InstructionSet*> found;
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(&kAvx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    found.push_back(&kAvx2);
  found.push_back(&kBaseline);
#elif defined(__aarch64__) || defined(_M_ARM64)
  found.push_back(&kNeon);
#endif
  return found;
}

}  // namespace

const std::vector<const InstructionSet*>& supported_instruction_sets() {
  static const std::vector<const InstructionSet*> found = detect();
  return found;
}

const InstructionSet& best_instruction_set() {
  const InstructionSet* none = nullptr;
  g_instruction_set.compare_exchange_strong(none, supported_instruction_sets().front());
  return *g_instruction_set.load();
}

void use_instruction_set(const std::string& name) {
  std::string names;
  for (const InstructionSet* set : supported_instruction_sets()) {
    if (name == set->name) {
      g_instruction_set.store(set, std::memory_order_release);
      return;
    }
    if (!names.empty()) names += ", ";
    names += set->name;
  }
  throw std::invalid_argument("instruction set must be one of " + names +
                              " on this machine, not '" + name + "'");
}

}  // namespace vegrad
