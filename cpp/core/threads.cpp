#include "core/threads.hpp"

#include <atomic>
#include <cstdint>
#include <cstdlib>
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

#include "core/floating_point.hpp"

namespace vegrad {
namespace {

// About 20 µs: longer than the gap between two loops of a pass, shorter than anybody notices.
constexpr int kSpins = 600;

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The tasks that one thread starts with: loop number (24 bits), next task, end (20 bits each), in
// one word, so that taking a task also proves that its loop is still the one that was read.
struct alignas(64) Share {
  std::atomic<std::uint64_t> word{0};
};
constexpr int kTaskBits = 20;
constexpr std::uint64_t kTaskMask = (1u << kTaskBits) - 1;

std::uint64_t share(std::uint32_t loop, int next, int end) {
  return std::uint64_t(loop) << (2 * kTaskBits) | std::uint64_t(next) << kTaskBits |
         std::uint64_t(end);
}

class Pool {
 public:
  bool run(int n, TaskFunction function, void* context, int threads) {
    const std::unique_lock<std::mutex> lock(owner_, std::try_to_lock);
    if (!lock) return false;
    try {
      while (int(workers_) < threads - 1) start_worker();
    } catch (const std::system_error&) {
      return false;  // the system has no more threads
    }
    function_.store(function, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    threads_.store(threads, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const std::uint32_t loop = (loop_.load(std::memory_order_relaxed) + 1) & 0xffffff;
    for (int t = 0; t < threads; ++t) {
      const int begin = int(std::int64_t(n) * t / threads);
      const int end = int(std::int64_t(n) * (t + 1) / threads);
      shares_[t].word.store(share(loop, begin, end), std::memory_order_release);
    }
    loop_.store(loop, std::memory_order_release);
    loop_.notify_all();
    work(loop, 0, threads);
    for (int spin = 0; done_.load(std::memory_order_acquire) != n; ++spin) {
      pause();
      if (spin >= kSpins) {
        const int seen = done_.load(std::memory_order_acquire);
        if (seen != n) done_.wait(seen, std::memory_order_acquire);
      }
    }
    return true;
  }

 private:
  // Takes tasks of `loop` from the thread's own share, then from the others'.
  void work(std::uint32_t loop, int thread, int threads) {
    for (int turn = 0; turn < threads; ++turn) {
      Share& from = shares_[(thread + turn) % threads];
      std::uint64_t word = from.word.load(std::memory_order_acquire);
      for (;;) {
        const int next = int(word >> kTaskBits & kTaskMask), end = int(word & kTaskMask);
        if (std::uint32_t(word >> (2 * kTaskBits)) != loop || next >= end) break;
        // Read before the exchange: if it succeeds, the loop was still running.
        const TaskFunction function = function_.load(std::memory_order_relaxed);
        void* const context = context_.load(std::memory_order_relaxed);
        if (thread >= threads_.load(std::memory_order_relaxed)) return;
        if (!from.word.compare_exchange_weak(word, share(loop, next + 1, end),
                                             std::memory_order_acq_rel))
          continue;
        function(context, next, thread);
        done_.fetch_add(1, std::memory_order_acq_rel);
        done_.notify_one();
        word = from.word.load(std::memory_order_acquire);
      }
    }
  }

  void start_worker() {
    const int thread = int(workers_) + 1;
    std::uint32_t seen = loop_.load(std::memory_order_relaxed);
    std::thread([this, thread, seen]() mutable {
      const FlushSubnormals flush;
      for (;;) {
        for (int spin = 0; loop_.load(std::memory_order_acquire) == seen; ++spin) {
          pause();
          if (spin >= kSpins) loop_.wait(seen, std::memory_order_acquire);
        }
        seen = loop_.load(std::memory_order_acquire);
        const int threads = threads_.load(std::memory_order_relaxed);
        if (thread < threads) work(seen, thread, threads);
      }
    }).detach();
    ++workers_;
  }

  std::mutex owner_;
  unsigned workers_ = 0;
  Share shares_[kMostThreads];
  alignas(64) std::atomic<std::uint32_t> loop_{0};
  alignas(64) std::atomic<int> done_{0};
  std::atomic<TaskFunction> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> threads_{0};
};

// Never destroyed: its threads sleep until the process ends. A child of fork() has none of them
// and starts with a new pool.
std::atomic<Pool*> g_pool{nullptr};
std::atomic<int> g_threads{1};

Pool& pool() {
  static std::once_flag once;
  std::call_once(once, [] {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr); });
#endif
  });
  Pool* existing = g_pool.load();
  if (existing) return *existing;
  Pool* fresh = new Pool;
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

void parallel_tasks(int n, int threads, TaskFunction function, void* context) {
  if (threads > n) threads = n;
  const bool fits = n < int(kTaskMask);  // more tasks than a share can name: nobody has so many
  if (threads > 1 && fits && pool().run(n, function, context, threads)) return;
  for (int task = 0; task < n; ++task) function(context, task, 0);
}

}  // namespace vegrad
