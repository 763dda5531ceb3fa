#include "core/runtime/lock.hpp"

#include <stdexcept>
#include <thread>

#if (defined(__unix__) || defined(__APPLE__)) && !defined(__EMSCRIPTEN__)
#include <pthread.h>
#define VEGRAD_HAS_FORK
#endif

namespace vegrad {
namespace {

constexpr std::chrono::microseconds kLook{50};

// Threads are numbered from 1 on as they come, in a child of fork() from where its parent was.
std::atomic<std::uint32_t> g_threads{0};
thread_local std::uint32_t t_number = 0;
// A child's threads are the one that forked, and those numbered above the last of its parent.
std::atomic<std::uint32_t> g_forked{0}, g_last_of_parent{0};

std::atomic<int> g_working{0};                // how many are at work
std::atomic<int> g_forks{0};                  // how many forks wait until nobody is
std::atomic<std::int64_t> g_patience{10000};  // milliseconds

std::uint32_t number() {
  if (t_number == 0) t_number = g_threads.fetch_add(1) + 1;
  return t_number;
}

bool is_left_behind(std::uint32_t thread) {
  return thread <= g_last_of_parent.load(std::memory_order_relaxed) &&
         thread != g_forked.load(std::memory_order_relaxed);
}

void begin_work() {
  g_working.fetch_add(1);
  while (const int forks = g_forks.load()) {
    g_working.fetch_sub(1);
    g_forks.wait(forks);
    g_working.fetch_add(1);
  }
}

void end_work() { g_working.fetch_sub(1); }

#if defined(VEGRAD_HAS_FORK)
void before_fork() {
  using Clock = std::chrono::steady_clock;
  g_forks.fetch_add(1);
  const Clock::time_point end = Clock::now() + std::chrono::milliseconds(g_patience.load());
  while (g_working.load() > 0 && Clock::now() < end) std::this_thread::sleep_for(kLook);
}

void after_fork_in_parent() {
  g_forks.fetch_sub(1);
  g_forks.notify_all();
}

void after_fork_in_child() {
  g_forked.store(number());
  g_last_of_parent.store(g_threads.load());
  g_working.store(0);
  g_forks.store(0);
}

// Before any thread can be about to do so.
[[maybe_unused]] const int g_registered =
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
#endif

}  // namespace

void set_fork_patience(std::chrono::milliseconds patience) { g_patience.store(patience.count()); }

std::uint32_t Lock::holder_if_taken() {
  std::uint32_t holder = 0;
  holder_.compare_exchange_strong(holder, number(), std::memory_order_acquire,
                                  std::memory_order_relaxed);
  return holder;
}

void Lock::lock() {
  while (std::uint32_t holder = holder_if_taken()) {
    if (!is_left_behind(holder))
      wait_while(holder);
    else if (holder_.compare_exchange_strong(holder, number(), std::memory_order_acquire))
      return;
  }
}

void Lock::unlock() {
  holder_.store(0, std::memory_order_release);
  holder_.notify_one();
}

bool Lock::is_ours() const { return holder_.load(std::memory_order_relaxed) == number(); }

void WorkLock::lock() {
  for (;;) {
    begin_work();
    const std::uint32_t holder = holder_if_taken();
    if (holder == 0) return;
    end_work();
    if (is_left_behind(holder))
      throw std::runtime_error(
          "another thread was at work on this when the process was forked, so that this child has "
          "it half done: make it anew here, or fork while no thread is in a pass or a step");
    wait_while(holder);
  }
}

void WorkLock::unlock() {
  Lock::unlock();
  end_work();
}

}  // namespace vegrad
