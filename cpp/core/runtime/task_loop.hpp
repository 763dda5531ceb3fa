// One parallel loop at a time, announced to whoever may help with it.
//
// What it is for: the loops of a pass follow each other within a microsecond, so a thread learns of
// a loop, takes tasks and tells what it has done without a lock, by a handful of atomic words.
//
// What it must guarantee: each task is run once; the owner returns when all are done, and never
// waits for a thread that has taken none; a thread that comes late, after the loop is over and the
// next may be announced, takes nothing of either by mistake. The last is why every word that
// threads change holds the number of its loop beside what it counts.
//
// What it leaves out: where threads come from and how they sleep (threads.cpp).
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "core/runtime/floating_point.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {

using Clock = std::chrono::steady_clock;

// A thread with nothing to do looks often at first, since the next loop of a pass comes within a
// microsecond, then about every 25 ns, and sleeps after about 20 µs: longer than the gap between
// two passes, shorter than anybody notices.
constexpr int kLooks = 300, kPauses = 800;
constexpr std::chrono::microseconds kNap{20};

// One that waits for others' last tasks looks for at most so long before it naps: who has lost its
// core to another process can then go on here.
constexpr std::chrono::microseconds kPatience{200};

inline void pause() {
#if defined(VEGRAD_X86)
  _mm_pause();
#elif defined(VEGRAD_ARM)
  asm volatile("yield");
#endif
}

// Looks at `ready` until it is true or it is time to sleep; returns whether it is true.
template <class Ready>
bool spin(const Ready& ready) {
  for (int i = 0; i < kLooks; ++i)
    if (ready()) return true;
  for (int i = 0; i < kPauses; ++i) {
    pause();
    if (ready()) return true;
  }
  return false;
}

// A loop's number and a number of tasks in one word, so that changing the word also proves that the
// loop is still the one that was read.
constexpr int kTaskBits = 20;
constexpr std::uint64_t kMostTasks = (1u << kTaskBits) - 1;
using Word = std::atomic<std::uint64_t>;

// Each on a cache line of its own: what threads write must not take away what others read.
struct alignas(64) Share {
  Word next{0};  // the next task of those that this thread starts with, if of the loop
};
struct alignas(64) Done {
  Word tasks{0};  // that this thread has done, if of the loop
};

// A loop as it is announced: everything that a waiting thread must know, on the line it looks at.
// The number is odd while the rest is being written.
struct alignas(64) Announcement {
  std::atomic<std::uint64_t> loop{0};
  std::atomic<TaskFunction> function{nullptr};
  std::atomic<void*> context{nullptr};
  std::atomic<int> tasks{0}, threads{0};
  std::atomic<int> sleepers{0};
};

class TaskLoop {
 public:
  struct Loop {
    std::uint64_t number;
    int tasks, threads;
    TaskFunction function;
    void* context;
  };

  // Announces a loop. Only one thread may own loops at a time, from here to the end of finish().
  Loop announce(int n, TaskFunction function, void* context, int threads) {
    Announcement& a = announced_;
    const Loop loop{a.loop.load(std::memory_order_relaxed) + 2, n, threads, function, context};
    // Shares that the last loop did not use may have been left by any loop before.
    for (; known_shares_ < threads; ++known_shares_)
      shares_[known_shares_].next.store((loop.number - 2) << kTaskBits, std::memory_order_relaxed);
    known_shares_ = threads;
    a.loop.store(loop.number - 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    a.function.store(function, std::memory_order_relaxed);
    a.context.store(context, std::memory_order_relaxed);
    a.tasks.store(n, std::memory_order_relaxed);
    a.threads.store(threads, std::memory_order_relaxed);
    a.loop.store(loop.number, std::memory_order_release);
    return loop;
  }

  // The owner's part: works as thread 0, then waits for tasks that others have taken.
  void finish(const Loop& loop) {
    const Clock::time_point begin = Clock::now();
    work(loop, 0);
    const Clock::time_point end = Clock::now();
    const auto done = [&] {
      std::uint64_t sum = 0;
      for (int t = 0; t < loop.threads; ++t) {
        const std::uint64_t word = done_[t].tasks.load(std::memory_order_acquire);
        if (word >> kTaskBits == loop.number) sum += word & kMostTasks;
      }
      return sum == std::uint64_t(loop.tasks);
    };
    // A thread that holds a task for longer than all that was done here, or for very long, has lost
    // its core to another process: leave it this one.
    const Clock::time_point patient_until = end + std::min<Clock::duration>(end - begin, kPatience);
    while (!spin(done))
      if (Clock::now() > patient_until) std::this_thread::sleep_for(kNap);
    finished_.store(loop.number, std::memory_order_relaxed);
  }

  // Takes tasks from the thread's own share, then from the others'.
  void work(const Loop& loop, int thread) {
    std::uint64_t done = loop.number << kTaskBits;
    for (int turn = 0; turn < loop.threads; ++turn) {
      const int t = (thread + turn) % loop.threads;
      const std::uint64_t begin = first_task(loop.tasks, t, loop.threads);
      const std::uint64_t end = first_task(loop.tasks, t + 1, loop.threads);
      Word& share = shares_[t].next;
      std::uint64_t word = share.load(std::memory_order_acquire);
      for (;;) {
        const std::uint64_t number = word >> kTaskBits;
        if (number > loop.number) return;  // this loop is over
        const std::uint64_t task = number == loop.number ? word & kMostTasks : begin;
        if (task >= end) break;
        if (!share.compare_exchange_weak(word, loop.number << kTaskBits | (task + 1),
                                         std::memory_order_acq_rel))
          continue;
        loop.function(loop.context, int(task), thread);
        done_[thread].tasks.store(++done, std::memory_order_release);
        word = share.load(std::memory_order_acquire);
      }
    }
  }

  // The announced loop, once it is another than number `seen` and wholly written.
  bool read(std::uint64_t seen, Loop& loop) {
    const Announcement& a = announced_;
    loop.number = a.loop.load(std::memory_order_acquire);
    if (loop.number == seen || loop.number % 2) return false;
    loop.function = a.function.load(std::memory_order_relaxed);
    loop.context = a.context.load(std::memory_order_relaxed);
    loop.tasks = a.tasks.load(std::memory_order_relaxed);
    loop.threads = a.threads.load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    return a.loop.load(std::memory_order_relaxed) == loop.number;
  }

  // The number of the last loop that was announced; whether it is over.
  std::uint64_t last() const { return announced_.loop.load(std::memory_order_relaxed); }
  bool is_over(std::uint64_t number) const {
    return finished_.load(std::memory_order_relaxed) == number;
  }

  // Threads that sleep until they are woken, on the line that waiting threads look at.
  std::atomic<int>& sleepers() { return announced_.sleepers; }

 private:
  int known_shares_ = 0;
  Announcement announced_;
  Share shares_[kMostThreads];
  Done done_[kMostThreads];
  alignas(64) Word finished_{0};  // the last loop that is over
};

}  // namespace vegrad
