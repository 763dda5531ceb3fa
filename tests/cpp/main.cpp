// The core without Python, on every instruction set of this processor: for one that is emulated, or
// where no Python is. See CONTRIBUTING.md.
#include <cstdio>

#include "core/runtime/dispatch.hpp"
#include "core/runtime/threads.hpp"
#include "cpp/check.hpp"

int main() {
  using namespace vegrad::tests;
  const struct {
    const char* name;
    void (*check)();
  } parts[] = {{"activations", check_activations}, {"buffers", check_buffers},
               {"network", check_network},         {"recurrent", check_recurrent},
               {"allocations", check_allocations}, {"lock", check_lock},
               {"threads", check_threads}};
  vegrad::set_num_threads(2);
  vegrad::set_shares_everything(true);
  for (const vegrad::InstructionSet* set : vegrad::supported_instruction_sets()) {
    vegrad::use_instruction_set(set->name);
    for (const auto& part : parts) {
      const int before = failures();
      part.check();
      std::printf("%s %s: %s\n", set->name, part.name, failures() == before ? "good" : "wrong");
    }
  }
  return failures() != 0;
}
