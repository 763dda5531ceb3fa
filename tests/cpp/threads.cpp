#include "core/runtime/threads.hpp"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "core/runtime/cores.hpp"
#include "cpp/check.hpp"

#if defined(__linux__) && !defined(VEGRAD_PLAIN)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

#if defined(__linux__) && !defined(VEGRAD_PLAIN)
// A thread that shared a core with its caller is sent to another. If somebody binds it before it
// wakes, it stays bound as that one wants it; else it may use all of its cores again.
void check_sent(bool bound) {
  cpu_set_t all, one, sent, after;
  sched_getaffinity(0, sizeof all, &all);
  if (CPU_COUNT(&all) < 2) return;
  int first = 0;
  while (!CPU_ISSET(first, &all)) ++first;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  Whereabouts places;
  std::atomic<pid_t> id{0};
  std::atomic<bool> woken{false};
  std::thread worker([&] {
    sched_setaffinity(0, sizeof one, &one);
    places.note(1);
    sched_setaffinity(0, sizeof all, &all);
    id = pid_t(syscall(SYS_gettid));
    while (!woken) std::this_thread::yield();
    places.note(1);
    sched_getaffinity(0, sizeof after, &after);
  });
  while (id == 0) std::this_thread::yield();
  sched_setaffinity(0, sizeof one, &one);
  places.part(2);
  sched_setaffinity(0, sizeof all, &all);
  sched_getaffinity(id, sizeof sent, &sent);
  close("cores of a thread that is sent away", CPU_COUNT(&sent), CPU_COUNT(&all) - 1, 0);
  close("the caller's core among them", CPU_ISSET(first, &sent) != 0, 0, 0);
  if (bound) sched_setaffinity(id, sizeof one, &one);
  woken = true;
  worker.join();
  close("cores once it is awake", CPU_EQUAL(&after, bound ? &one : &all) != 0, 1, 0);
}
#endif

}  // namespace

// Loops of several callers at once, of all sizes, while the number of threads changes: each task is
// run once, and what it wrote is seen.
void check_threads() {
#if defined(__linux__) && !defined(VEGRAD_PLAIN)
  for (const bool bound : {false, true}) check_sent(bound);
#endif
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
