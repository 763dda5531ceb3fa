#include "core/runtime/cores.hpp"

#include <thread>

#include "core/runtime/threads.hpp"

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vegrad {

#if defined(__linux__)

namespace {

// Threads that the system sends back at once, for there is no better core, are not sent away again
// before so long.
constexpr std::chrono::milliseconds kBetween{1};

bool is_in(const cpu_set_t& set, int core) {
  return core >= 0 && core < CPU_SETSIZE && CPU_ISSET(core, &set);
}

}  // namespace

struct Whereabouts::Places {
  // Read by who owns the loops, and written when a thread has moved.
  std::atomic<int> core[kMostThreads];
  // Where a thread was sent, what it is to have again, and whether it was sent away.
  struct alignas(64) Thread {
    std::atomic<pid_t> id{0};
    std::atomic<bool> sent{false};
    cpu_set_t former, others;
  } threads[kMostThreads];
  std::chrono::steady_clock::time_point last{};

  // Sends a thread to one of its cores that is not taken. What it may use is read anew each time.
  void send(Thread& thread, const cpu_set_t& taken) {
    const pid_t id = thread.id.load(std::memory_order_relaxed);
    if (id == 0 || thread.sent.load(std::memory_order_acquire)) return;
    if (sched_getaffinity(id, sizeof thread.former, &thread.former) != 0) return;
    cpu_set_t& others = thread.others;
    CPU_AND(&others, &thread.former, &taken);
    CPU_XOR(&others, &thread.former, &others);
    if (CPU_COUNT(&others) == 0) return;
    // In this order: who sees that it was sent away also finds that this is over.
    if (sched_setaffinity(id, sizeof others, &others) == 0)
      thread.sent.store(true, std::memory_order_release);
  }
};

Whereabouts::Whereabouts() : places_(new Places) {
  for (std::atomic<int>& core : places_->core) core.store(-1, std::memory_order_relaxed);
}

void Whereabouts::note(int thread) {
  Places::Thread& own = places_->threads[thread];
  if (own.id.load(std::memory_order_relaxed) == 0)
    own.id.store(pid_t(syscall(SYS_gettid)), std::memory_order_relaxed);
  const int core = sched_getcpu();
  std::atomic<int>& noted = places_->core[thread];
  if (noted.load(std::memory_order_relaxed) != core) noted.store(core, std::memory_order_relaxed);
  if (own.sent.load(std::memory_order_acquire)) {
    cpu_set_t now;  // which somebody else may have set since (taskset, a job's manager)
    if (sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &own.others))
      sched_setaffinity(0, sizeof own.former, &own.former);
    own.sent.store(false, std::memory_order_release);
  }
}

void Whereabouts::part(int threads) {
  cpu_set_t taken;
  CPU_ZERO(&taken);
  const int here = sched_getcpu();
  if (here < 0 || here >= CPU_SETSIZE) return;
  CPU_SET(here, &taken);
  const auto core_of = [&](int t) { return places_->core[t].load(std::memory_order_relaxed); };
  bool shared = false;
  for (int t = 1; t < threads; ++t) {
    const int core = core_of(t);
    shared |= is_in(taken, core);
    if (core >= 0 && core < CPU_SETSIZE) CPU_SET(core, &taken);
  }
  if (!shared) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - places_->last < kBetween) return;
  places_->last = now;
  cpu_set_t seen;
  CPU_ZERO(&seen);
  CPU_SET(here, &seen);
  for (int t = 1; t < threads; ++t) {
    const int core = core_of(t);
    if (is_in(seen, core))
      places_->send(places_->threads[t], taken);
    else if (core >= 0 && core < CPU_SETSIZE)
      CPU_SET(core, &seen);
  }
}

#else

struct Whereabouts::Places {};
Whereabouts::Whereabouts() = default;
void Whereabouts::note(int) {}
void Whereabouts::part(int) {}

#endif

Whereabouts::~Whereabouts() = default;

int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? int(n) : 1;
}

}  // namespace vegrad
