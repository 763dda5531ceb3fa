#include "cpp/check.hpp"

#include <cstdio>

namespace vegrad::tests {
namespace {
int g_failures = 0;
}

int failures() { return g_failures; }

void close(const std::string& what, double got, double want, double tolerance) {
  if (std::fabs(got - want) <= tolerance * (1 + std::fabs(want)) || got == want) return;
  if (++g_failures <= 20) std::printf("  %s is %.17g, not %.17g\n", what.c_str(), got, want);
}

}  // namespace vegrad::tests
