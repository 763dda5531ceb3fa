// A parallel loop over tasks, on a pool of threads that sleep when there is nothing to do.
//
// The caller works too and never waits for a thread that has taken nothing: when another process
// holds the other core, the caller does all the work. Which thread runs a task changes no result:
// tasks write to their own places, and sums over tasks are made afterwards, in order.
#pragma once

#include <cstdint>

namespace vegrad {

int num_threads();
void set_num_threads(int n);  // n >= 1
constexpr int kMostThreads = 1024;

// Whether also work that is over before a second thread has begun is shared: for tests.
bool shares_everything();
void set_shares_everything(bool on);

// VEGRAD_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may use. Throws
// std::invalid_argument if VEGRAD_NUM_THREADS is no number from 1 to kMostThreads.
void read_thread_environment();

using TaskFunction = void (*)(void* context, int task, int thread);

// The first of n tasks that a thread of a loop starts with; it goes on to the next thread's first.
inline int first_task(int n, int thread, int threads) {
  return int(std::int64_t(n) * thread / threads);
}

// The functions of another library's OpenMP runtime, from which threads can be borrowed. After each
// loop of that library its threads spin for milliseconds. During that time threads of our own would
// get no core, while those that spin begin at once.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel
  int (*most)() = nullptr;                                                 // omp_get_max_threads
  int (*number)() = nullptr;                                               // omp_get_thread_num
};
void set_openmp(const OpenMp& openmp);

// Calls body(); its loops run on borrowed threads if there are as many as num_threads(), else on
// our own.
void with_borrowed_threads(void (*body)(void*), void* context);

template <class Body>
void on_borrowed_threads(const Body& body) {
  with_borrowed_threads([](void* context) { (*static_cast<const Body*>(context))(); },
                        const_cast<void*>(static_cast<const void*>(&body)));
}

// Runs tasks 0 … n-1, which take about the same time each, for a single short loop. Inside a body
// of on_borrowed_threads(), and where there is nothing to borrow, this is parallel_tasks().
// Elsewhere each borrowed thread gets a fixed share of the tasks, which is faster for one loop. If
// another library has threads but will not lend them now, this thread runs all tasks: a thread of
// ours would take a core from that library's.
void parallel_shares(int n, int threads, TaskFunction function, void* context);

// Wakes sleeping threads for a loop that will come within a few microseconds.
void wake_threads();

// Runs tasks 0 … n-1 with thread numbers below `threads`, which a caller asks of num_threads() once
// for all loops that share memory a thread: another thread may set it at any time. Neighbouring
// tasks tend to run on the same thread. If the pool is busy with another caller's loop, or threads
// cannot be had, this one runs on its own thread.
void parallel_tasks(int n, int threads, TaskFunction function, void* context);

template <class Body>
void parallel_for(int n, int threads, const Body& body) {
  parallel_tasks(
      n, threads,
      [](void* context, int task, int thread) {
        (*static_cast<const Body*>(context))(task, thread);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

template <class Body>
void shares_for(int n, int threads, const Body& body) {
  parallel_shares(
      n, threads,
      [](void* context, int task, int thread) {
        (*static_cast<const Body*>(context))(task, thread);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace vegrad
