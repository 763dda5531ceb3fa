#include "core/dispatch.hpp"

#include <atomic>
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
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kAvx2);
  found.push_back(&kBaseline);
#elif defined(__aarch64__) || defined(_M_ARM64)
  found.push_back(&kNeon);
#endif
  return found;
}

std::atomic<const InstructionSet*> g_active{nullptr};

}  // namespace

const std::vector<const InstructionSet*>& supported_instruction_sets() {
  static const std::vector<const InstructionSet*> found = detect();
  return found;
}

const InstructionSet& instruction_set() {
  const InstructionSet* active = g_active.load(std::memory_order_acquire);
  return active ? *active : *supported_instruction_sets().front();
}

void use_instruction_set(const std::string& name) {
  std::string names;
  for (const InstructionSet* set : supported_instruction_sets()) {
    if (name == set->name) {
      g_active.store(set, std::memory_order_release);
      return;
    }
    if (!names.empty()) names += ", ";
    names += set->name;
  }
  throw std::invalid_argument("instruction set must be one of " + names +
                              " on this machine, not '" + name + "'");
}

}  // namespace vegrad
