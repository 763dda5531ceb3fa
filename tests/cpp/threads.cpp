#include "core/runtime/threads.hpp"

#include <chrono>
#include <thread>
#include <vector>

#include "cpp/check.hpp"

namespace vegrad::tests {
namespace {

// Σ of 0 … n - 1, by tasks that each write to a place of their own.
double sum_of(int n, int threads) {
  std::vector<double> parts(n);
  parallel_for(n, threads, [&](int task, int) { parts[task] = task; });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

}  // namespace

// Loops of several callers at once, of all sizes, while the number of threads changes: each task is
// run once, and what it wrote is seen.
void check_threads() {
  constexpr int kCallers = 3, kTurns = 300;
  std::vector<int> wrong(kCallers);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller)
    callers.emplace_back([caller, &wrong] {
      for (int turn = 0; turn < kTurns; ++turn) {
        const int n = 1 + (turn * 7 + caller) % 90;
        if (turn % 50 == 49) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        wake_threads();
        wrong[caller] += sum_of(n, 1 + turn % 5) != 0.5 * n * (n - 1);
        set_num_threads(1 + turn % 4);
      }
    });
  for (std::thread& caller : callers) caller.join();
  for (const int count : wrong) close("sums of loops", count, 0, 0);
}

}  // namespace vegrad::tests
