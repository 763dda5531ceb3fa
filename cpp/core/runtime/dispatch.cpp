#include "core/runtime/dispatch.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(VEGRAD_X86)
#include <cpuid.h>
#endif
#if defined(VEGRAD_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vegrad {
namespace {

#if defined(VEGRAD_X86)
// Clang's __builtin_cpu_supports does not know the name before version 18.
bool has_f16c() {
  unsigned a, b, c = 0, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
}
#endif

std::vector<const InstructionSet*> detect() {
  std::vector<const InstructionSet*> found;
#if defined(VEGRAD_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(&kAvx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
    found.push_back(&kAvx2);
  found.push_back(&kBaseline);
#elif defined(VEGRAD_ARM)
  found.push_back(&kNeon);
#else
  found.push_back(&kBaseline);
#endif
  return found;
}

// Whether the processor has the unit and the system gives this process its registers, which add
// 8 KB to what a thread has.
bool ask_for_matrix_unit() {
#if defined(VEGRAD_HAS_AMX)
  unsigned a, b, c, d = 0;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBfloat16) || !(d & kTiles)) return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

std::atomic<bool> g_matrix_unit_on{true};

}  // namespace

bool has_matrix_unit() {
  static const bool found = ask_for_matrix_unit();
  return found;
}

void read_matrix_unit_environment() {
  const char* const text = std::getenv("VEGRAD_AMX");
  if (!text) return;
  const std::string value = text;
  if (value != "0" && value != "1")
    throw std::invalid_argument("VEGRAD_AMX must be 0 or 1, not '" + value + "'");
  use_matrix_unit(value == "1");
}

void use_matrix_unit(bool on) { g_matrix_unit_on.store(on); }

const MatrixUnit* matrix_unit() {
#if defined(VEGRAD_HAS_AMX)
  if (g_matrix_unit_on.load() && &instruction_set() == &kAvx512 && has_matrix_unit()) return &kAmx;
#endif
  return nullptr;
}

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
