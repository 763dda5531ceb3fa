// How many threads there are to be, as asked of this process.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "core/runtime/cores.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

std::atomic<int> g_threads{1};
std::atomic<bool> g_shares_everything{false};

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

bool shares_everything() { return g_shares_everything.load(std::memory_order_relaxed); }

void set_shares_everything(bool on) { g_shares_everything.store(on, std::memory_order_relaxed); }

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

}  // namespace vegrad
