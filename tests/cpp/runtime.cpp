// Locks and the pool of threads by themselves: small enough for .ci/run to build them with
// ThreadSanitizer each time.
#include <cstdio>

#include "cpp/check.hpp"

int main() {
  using namespace vegrad::tests;
  check_lock();
  check_threads();
  std::printf("locks and threads: %s\n", failures() == 0 ? "good" : "wrong");
  return failures() != 0;
}
