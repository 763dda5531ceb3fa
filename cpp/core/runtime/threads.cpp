// The pool of threads, those borrowed from another library, and which of them runs a loop.
//
// What it is for: passes and steps of a few microseconds. To wake a thread takes longer than such a
// loop lasts, so threads look for the next loop for a while on the core they have; but not for
// long, for nobody likes a library that keeps cores busy.
//
// What it must guarantee: a loop always ends, with all tasks done, whatever the system does: the
// caller runs every task that nobody else takes. A caller whose pool is busy, a child of fork(),
// and a system that has no more threads get the same results, on one thread.
//
// What it leaves out: nested loops, which run on one thread, and priorities.
#include "core/runtime/threads.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "core/runtime/cores.hpp"
#include "core/runtime/floating_point.hpp"
#include "core/runtime/task_loop.hpp"

namespace vegrad {
namespace {

// While a loop runs that has no task left for it, a thread looks on for so many times as long: the
// next loop comes right after, and one that has to be woken for it would again be too late.
constexpr int kTurns = 25;

// An OpenMP loop ends when all of its threads have ended, which takes as long as another process
// has one's core. After a wait longer than this we do without these threads for so many times as
// long.
constexpr std::chrono::microseconds kLongestWait{50};
constexpr int kRest = 50;

// Threads that take the tasks of a loop with the caller.
class Team {
 public:
  virtual ~Team() = default;
  // False if another caller's loop runs, or threads are not to be had.
  virtual bool run(int n, TaskFunction function, void* context, int threads) = 0;

 protected:
  TaskLoop loops_;
  std::mutex owner_;
};

// Threads of our own, which sleep when there is nothing to do. They are started when they are first
// needed and never end.
class Workers : public Team {
 public:
  bool run(int n, TaskFunction function, void* context, int threads) override {
    const std::unique_lock<std::mutex> lock(owner_, std::try_to_lock);
    if (!lock) return false;
    try {
      while (workers_ < threads - 1) start_worker();
    } catch (const std::system_error&) {
      return false;  // the system has no more threads
    }
    const TaskLoop::Loop loop = loops_.announce(n, function, context, threads);
    // One that falls asleep at this moment may be missed. It is woken by the next loop: nobody
    // waits for a thread that has taken no task.
    whereabouts_.part(threads);
    wake();
    loops_.finish(loop);
    return true;
  }

  void wake() {
    if (loops_.sleepers().load(std::memory_order_relaxed) == 0) return;
    bell_.fetch_add(1, std::memory_order_relaxed);
    bell_.notify_all();
  }

 private:
  void start_worker() {
    const int thread = workers_ + 1;
    const std::uint64_t before = loops_.last();
    std::thread([this, thread, before] {
      const FlushSubnormals flush;
      TaskLoop::Loop loop{};
      for (std::uint64_t seen = before;; seen = loop.number) {
        wait_for_loop(seen, loop);
        whereabouts_.note(thread);
        if (thread < loop.threads) loops_.work(loop, thread);
      }
    }).detach();
    ++workers_;
  }

  // Returns with a loop after number `seen`: looks for it for a while, then sleeps.
  void wait_for_loop(std::uint64_t seen, TaskLoop::Loop& loop) {
    const auto announced = [&] { return loops_.read(seen, loop); };
    for (int turn = 0; !spin(announced); ++turn) {
      if (turn < kTurns && !loops_.is_over(seen)) continue;
      const std::uint32_t rung = bell_.load(std::memory_order_relaxed);
      loops_.sleepers().fetch_add(1, std::memory_order_seq_cst);
      if (!announced()) bell_.wait(rung, std::memory_order_relaxed);
      loops_.sleepers().fetch_sub(1, std::memory_order_relaxed);
    }
  }

  int workers_ = 0;
  Whereabouts whereabouts_;
  alignas(64) std::atomic<std::uint32_t> bell_{0};
};

// Threads of another library's OpenMP runtime.
class BorrowedThreads : public Team {
 public:
  bool run(int n, TaskFunction function, void* context, int threads) override {
    const std::unique_lock<std::mutex> lock(owner_, std::try_to_lock);
    if (!lock) return false;
    loops_.finish(loops_.announce(n, function, context, threads));
    return true;
  }

  // body() with their help. False if another caller has them, or if they are not to be had: then we
  // do without, so that little time is lost.
  bool lend(const OpenMp& openmp, int threads, void (*body)(void*), void* context) {
    const std::unique_lock<std::mutex> lock(lent_, std::try_to_lock);
    if (!lock || Clock::now() < resting_until_) return false;
    Visit visit{this, openmp.number, body, context, loops_.last(), {}, nullptr};
    open_.store(true, std::memory_order_relaxed);
    openmp.parallel(&BorrowedThreads::visit, &visit, unsigned(threads), 0);
    rest_after(visit.end);
    if (visit.error) std::rethrow_exception(visit.error);
    return true;
  }

  // Each does its share of the tasks. False as above.
  bool share(const OpenMp& openmp, int n, int threads, TaskFunction function, void* context) {
    const std::unique_lock<std::mutex> lock(lent_, std::try_to_lock);
    if (!lock || Clock::now() < resting_until_) return false;
    Shares shares(openmp.number, n, threads, function, context);
    std::fill_n(shares.done, threads, false);
    openmp.parallel(&BorrowedThreads::do_share, &shares, unsigned(threads), 0);
    rest_after(shares.end);
    for (int t = 0; t < threads; ++t)  // the runtime may have had fewer threads
      if (!shares.done[t]) shares.run(t);
    return true;
  }

 private:
  struct Visit {
    BorrowedThreads* threads;
    int (*number)();
    void (*body)(void*);
    void* context;
    std::uint64_t seen;     // the last loop before
    Clock::time_point end;  // of the body
    std::exception_ptr error;
  };
  static void visit(void* context);

  struct Shares {
    int (*number)();
    int tasks, threads;
    TaskFunction function;
    void* context;
    Clock::time_point end;    // of the caller's share
    bool done[kMostThreads];  // as many as there are threads
    Shares(int (*number)(), int tasks, int threads, TaskFunction function, void* context)
        : number(number), tasks(tasks), threads(threads), function(function), context(context) {}
    void run(int thread) {
      const int end = first_task(tasks, thread + 1, threads);
      for (int task = first_task(tasks, thread, threads); task < end; ++task)
        function(context, task, thread);
    }
  };
  static void do_share(void* context) {
    Shares& shares = *static_cast<Shares*>(context);
    const int thread = shares.number();
    if (thread >= shares.threads) return;
    shares.run(thread);
    shares.done[thread] = true;
    if (thread == 0) shares.end = Clock::now();
  }

  // After a parallel region whose work had ended at `end`.
  void rest_after(Clock::time_point end) {
    const Clock::time_point now = Clock::now();
    if (now - end > kLongestWait) resting_until_ = now + kRest * (now - end);
  }

  // What a borrowed thread does until the body has returned.
  void help(int thread, std::uint64_t seen) {
    const FlushSubnormals flush;
    TaskLoop::Loop loop{};
    bool fresh = false;
    const auto ready = [&] {
      fresh = loops_.read(seen, loop);
      return fresh || !open_.load(std::memory_order_relaxed);
    };
    while (open_.load(std::memory_order_relaxed)) {
      if (!spin(ready)) std::this_thread::yield();
      if (!fresh) continue;
      seen = loop.number;
      fresh = false;
      if (thread < loop.threads) loops_.work(loop, thread);
    }
  }

  std::mutex lent_;
  std::atomic<bool> open_{false};
  Clock::time_point resting_until_{};
};

// Never destroyed: its threads sleep until the process ends. A child of fork() has none of them
// and starts with a new pool.
std::atomic<Workers*> g_workers{nullptr};
std::atomic<BorrowedThreads*> g_borrowed{nullptr};  // null: there are none to borrow
OpenMp g_openmp;
thread_local Team* t_team = nullptr;  // who takes part in this thread's loops, if not our own

void BorrowedThreads::visit(void* context) {
  Visit& visit = *static_cast<Visit*>(context);
  const int thread = visit.number();
  if (thread != 0) return visit.threads->help(thread, visit.seen);
  t_team = visit.threads;
  try {
    visit.body(visit.context);
  } catch (...) {
    visit.error = std::current_exception();
  }
  t_team = nullptr;
  visit.end = Clock::now();
  visit.threads->open_.store(false, std::memory_order_relaxed);
}

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int g_registered = pthread_atfork(nullptr, nullptr, [] {
  g_workers.store(nullptr);
  g_borrowed.store(nullptr);
});
#endif

Workers& workers() {
  Workers* existing = g_workers.load();
  if (existing) return *existing;
  Workers* fresh = new Workers;
  if (g_workers.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;
  return *existing;
}

}  // namespace

void set_openmp(const OpenMp& openmp) {
  g_openmp = openmp;
  if (!g_borrowed.load()) g_borrowed.store(new BorrowedThreads);
}

void with_borrowed_threads(void (*body)(void*), void* context) {
  BorrowedThreads* const borrowed = t_team ? nullptr : g_borrowed.load(std::memory_order_acquire);
  const int threads = num_threads();
  const bool enough = borrowed && threads > 1 && g_openmp.most() == threads;
  if (!enough || !borrowed->lend(g_openmp, threads, body, context)) body(context);
}

void parallel_shares(int n, int threads, TaskFunction function, void* context) {
  if (threads > n) threads = n;
  BorrowedThreads* const borrowed = t_team ? nullptr : g_borrowed.load(std::memory_order_acquire);
  if (threads <= 1 || !borrowed || g_openmp.most() != num_threads())
    return parallel_tasks(n, threads, function, context);
  if (!borrowed->share(g_openmp, n, threads, function, context))
    parallel_tasks(n, 1, function, context);
}

void wake_threads() {
  if (num_threads() > 1 && !g_borrowed.load(std::memory_order_relaxed)) workers().wake();
}

void parallel_tasks(int n, int threads, TaskFunction function, void* context) {
  if (threads > n) threads = n;
  const bool fits = n < int(kMostTasks);  // more tasks than a word can name: nobody has so many
  Team& team = t_team ? *t_team : workers();
  if (threads > 1 && fits && team.run(n, function, context, threads)) return;
  for (int task = 0; task < n; ++task) function(context, task, 0);
}

}  // namespace vegrad
