#include "core/runtime/threads.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "core/runtime/floating_point.hpp"

namespace vegrad {
namespace {

// A thread with nothing to do looks often at first, since the next loop of a pass comes within a
// microsecond, then about every 25 ns, and sleeps after about 20 µs: longer than the gap between
// two passes, shorter than anybody notices.
constexpr int kLooks = 300, kPauses = 800;
constexpr std::chrono::microseconds kNap{20};

// While a loop runs that has no task left for it, a thread looks on for so many times as long: the
// next loop comes right after, and one that has to be woken for it would again be too late.
constexpr int kTurns = 25;

// A lender's threads that were waited for so long are let alone for so many times as long.
using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kPatience{50};
constexpr int kRest = 50;

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
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

class Pool {
 public:
  explicit Pool(bool borrowed) : borrowed_(borrowed) {}

  bool run(int n, TaskFunction function, void* context, int threads) {
    const std::unique_lock<std::mutex> lock(owner_, std::try_to_lock);
    if (!lock) return false;
    try {
      while (!borrowed_ && int(workers_) < threads - 1) start_worker();
    } catch (const std::system_error&) {
      return false;  // the system has no more threads
    }
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
    // One that falls asleep at this moment may be missed. It is woken by the next loop: nobody
    // waits for a thread that has taken no task.
    wake();
    const Clock::time_point begin = Clock::now();
    work(loop, 0);
    const Clock::time_point end = Clock::now();
    const auto done = [&] {
      std::uint64_t sum = 0;
      for (int t = 0; t < threads; ++t) {
        const std::uint64_t word = done_[t].tasks.load(std::memory_order_acquire);
        if (word >> kTaskBits == loop.number) sum += word & kMostTasks;
      }
      return sum == std::uint64_t(n);
    };
    // A thread that holds a task for longer than all that was done here has lost its core to
    // another process: leave it this one.
    const Clock::time_point patient_until = end + (end - begin);
    while (!spin(done))
      if (Clock::now() > patient_until) std::this_thread::sleep_for(kNap);
    finished_.store(loop.number, std::memory_order_relaxed);
    return true;
  }

  // Of borrowed threads: body() with their help. False if another caller has them, or if they are
  // not to be had: the lender waits for all of them at the end, which takes as long as another
  // process has a core. Then we do without, so that little time is lost.
  bool lend(const Lender& lender, int threads, void (*body)(void*), void* context) {
    const std::unique_lock<std::mutex> lock(lent_, std::try_to_lock);
    if (!lock || Clock::now() < resting_until_) return false;
    Visit visit{this, lender.number, body, context, announced_.loop.load(std::memory_order_relaxed),
                {},   nullptr};
    open_.store(true, std::memory_order_relaxed);
    lender.parallel(&Pool::visit, &visit, unsigned(threads), 0);
    const Clock::time_point now = Clock::now();
    if (now - visit.end > kPatience) resting_until_ = now + kRest * (now - visit.end);
    if (visit.error) std::rethrow_exception(visit.error);
    return true;
  }

  // Of borrowed threads: each does its share of the tasks. False as above.
  bool share(const Lender& lender, int n, int threads, TaskFunction function, void* context) {
    const std::unique_lock<std::mutex> lock(lent_, std::try_to_lock);
    if (!lock || Clock::now() < resting_until_) return false;
    Shares shares(lender.number, n, threads, function, context);
    std::fill_n(shares.done, threads, false);
    lender.parallel(&Pool::do_share, &shares, unsigned(threads), 0);
    const Clock::time_point now = Clock::now();
    if (now - shares.end > kPatience) resting_until_ = now + kRest * (now - shares.end);
    for (int t = 0; t < threads; ++t)  // the lender may have had fewer threads
      if (!shares.done[t]) shares.run(t);
    return true;
  }

  void wake() {
    if (announced_.sleepers.load(std::memory_order_relaxed) == 0) return;
    bell_.fetch_add(1, std::memory_order_relaxed);
    bell_.notify_all();
  }

 private:
  struct Loop {
    std::uint64_t number;
    int tasks, threads;
    TaskFunction function;
    void* context;
  };

  struct Visit {
    Pool* pool;
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

  // What a borrowed thread does until the body has returned.
  void help(int thread, std::uint64_t seen) {
    const FlushSubnormals flush;
    Loop loop{};
    bool fresh = false;
    const auto ready = [&] {
      fresh = read_loop(seen, loop);
      return fresh || !open_.load(std::memory_order_relaxed);
    };
    while (open_.load(std::memory_order_relaxed)) {
      if (!spin(ready)) std::this_thread::yield();
      if (!fresh) continue;
      seen = loop.number;
      fresh = false;
      if (thread < loop.threads) work(loop, thread);
    }
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
  bool read_loop(std::uint64_t seen, Loop& loop) {
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

  void start_worker() {
    const int thread = int(workers_) + 1;
    const std::uint64_t before = announced_.loop.load(std::memory_order_relaxed);
    std::thread([this, thread, before] {
      const FlushSubnormals flush;
      Loop loop{};
      for (std::uint64_t seen = before;; seen = loop.number) {
        const auto announced = [&] { return read_loop(seen, loop); };
        for (int turn = 0; !spin(announced); ++turn) {
          if (turn < kTurns && finished_.load(std::memory_order_relaxed) != seen) continue;
          const std::uint32_t rung = bell_.load(std::memory_order_relaxed);
          announced_.sleepers.fetch_add(1, std::memory_order_seq_cst);
          if (!announced()) bell_.wait(rung, std::memory_order_relaxed);
          announced_.sleepers.fetch_sub(1, std::memory_order_relaxed);
        }
        if (thread < loop.threads) work(loop, thread);
      }
    }).detach();
    ++workers_;
  }

  const bool borrowed_;
  std::mutex owner_, lent_;
  std::atomic<bool> open_{false};
  Clock::time_point resting_until_{};
  unsigned workers_ = 0;
  int known_shares_ = 0;
  Announcement announced_;
  Share shares_[kMostThreads];
  Done done_[kMostThreads];
  alignas(64) std::atomic<std::uint32_t> bell_{0};
  alignas(64) Word finished_{0};  // the last loop that is over
};

// Never destroyed: its threads sleep until the process ends. A child of fork() has none of them
// and starts with a new pool.
std::atomic<Pool*> g_pool{nullptr};
std::atomic<int> g_threads{1};
std::atomic<Pool*> g_borrowed{nullptr};  // null: there is no lender
Lender g_lender;
thread_local Pool* t_pool = nullptr;  // whose threads this thread's loops take, if not our own

void Pool::visit(void* context) {
  Visit& visit = *static_cast<Visit*>(context);
  const int thread = visit.number();
  if (thread != 0) return visit.pool->help(thread, visit.seen);
  t_pool = visit.pool;
  try {
    visit.body(visit.context);
  } catch (...) {
    visit.error = std::current_exception();
  }
  t_pool = nullptr;
  visit.end = Clock::now();
  visit.pool->open_.store(false, std::memory_order_relaxed);
}

Pool& pool() {
  static std::once_flag once;
  std::call_once(once, [] {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] {
      g_pool.store(nullptr);
      g_borrowed.store(nullptr);
    });
#endif
  });
  Pool* existing = g_pool.load();
  if (existing) return *existing;
  Pool* fresh = new Pool(false);
  if (g_pool.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;
  return *existing;
}

int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? int(n) : 1;
}

// The number that `text` is, or begins with if a comma follows; 0 if it is none in range.
int parse_threads(const char* text) {
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  if (end == text || (*end != '\0' && *end != ',') || n < 1 || n > kMostThreads) return 0;
  return int(n);
}

}  // namespace

int num_threads() { return g_threads.load(std::memory_order_relaxed); }

void set_num_threads(int n) { g_threads.store(n, std::memory_order_relaxed); }

void read_thread_environment() {
  int n = 0;
  if (const char* own = std::getenv("VEGRAD_NUM_THREADS")) {
    n = parse_threads(own);
    if (n == 0)
      throw std::invalid_argument("VEGRAD_NUM_THREADS must be a number from 1 to " +
                                  std::to_string(kMostThreads) + ", not '" + own + "'");
  } else if (const char* omp = std::getenv("OMP_NUM_THREADS")) {
    n = parse_threads(omp);
  }
  if (n == 0) n = available_cores();
  set_num_threads(n < kMostThreads ? n : kMostThreads);
}

void set_lender(const Lender& lender) {
  pool();  // which sees to a child of fork(): it has none of the lender's threads either
  g_lender = lender;
  if (!g_borrowed.load()) g_borrowed.store(new Pool(true));
}

void with_borrowed_threads(void (*body)(void*), void* context) {
  Pool* const borrowed = t_pool ? nullptr : g_borrowed.load(std::memory_order_acquire);
  const int threads = num_threads();
  const bool enough = borrowed && threads > 1 && g_lender.most() == threads;
  if (!enough || !borrowed->lend(g_lender, threads, body, context)) body(context);
}

void parallel_shares(int n, int threads, TaskFunction function, void* context) {
  if (threads > n) threads = n;
  Pool* const borrowed = t_pool ? nullptr : g_borrowed.load(std::memory_order_acquire);
  if (threads <= 1 || !borrowed || g_lender.most() != num_threads())
    return parallel_tasks(n, threads, function, context);
  if (!borrowed->share(g_lender, n, threads, function, context))
    parallel_tasks(n, 1, function, context);
}

void wake_threads() {
  if (num_threads() > 1 && !g_borrowed.load(std::memory_order_relaxed)) pool().wake();
}

void parallel_tasks(int n, int threads, TaskFunction function, void* context) {
  if (threads > n) threads = n;
  const bool fits = n < int(kMostTasks);  // more tasks than a word can name: nobody has so many
  Pool& threads_of = t_pool ? *t_pool : pool();
  if (threads > 1 && fits && threads_of.run(n, function, context, threads)) return;
  for (int task = 0; task < n; ++task) function(context, task, 0);
}

}  // namespace vegrad
