// What VEGRAD_PLAIN builds in place of threads.cpp and cores.cpp: every loop runs on its caller.
#include "core/runtime/cores.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {

int available_cores() { return 1; }

void set_openmp(const OpenMp&) {}

void with_borrowed_threads(void (*body)(void*), void* context) { body(context); }

void parallel_shares(int n, int threads, TaskFunction function, void* context) {
  parallel_tasks(n, threads, function, context);
}

void wake_threads() {}

void parallel_tasks(int n, int, TaskFunction function, void* context) {
  for (int task = 0; task < n; ++task) function(context, task, 0);
}

}  // namespace vegrad
