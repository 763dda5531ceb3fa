#include "core/runtime/lock.hpp"

#include <atomic>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "cpp/check.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace vegrad::tests {

#if defined(__unix__) || defined(__APPLE__)
namespace {

// Whether the check holds in a child of fork().
bool in_child(const std::function<bool()>& check) {
  const pid_t child = fork();
  if (child == 0) _exit(check() ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  return status == 0;
}

bool is_refused(WorkLock& lock) {
  try {
    lock.lock();
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

// Calls body() while another thread holds the lock.
template <class L, class Body>
void while_held(L& lock, const Body& body) {
  std::atomic<bool> held{false}, over{false};
  std::thread other([&] {
    const std::lock_guard<L> guard(lock);
    held.store(true);
    held.notify_one();
    over.wait(false);
  });
  held.wait(false);
  body();
  over.store(true);
  over.notify_one();
  other.join();
}

}  // namespace

void check_lock() {
  const auto expect = [](const char* what, bool holds) { close(what, holds, true, 0); };
  Lock lock;
  while_held(lock, [&] {
    expect("held", !lock.try_lock() && !lock.is_ours());
    expect("taken over in a child", in_child([&] {
             lock.lock();
             return lock.is_ours() && !lock.try_lock();
           }));
  });
  const std::lock_guard<Lock> again(lock);  // the child has not changed the parent's
  expect("one's own stays one's own", in_child([&] { return lock.is_ours(); }));

  WorkLock work;
  set_fork_patience(std::chrono::milliseconds(0));
  while_held(work, [&] {
    expect("refused in a child", in_child([&] { return is_refused(work); }));
    expect("and in a child's child",
           in_child([&] { return in_child([&] { return is_refused(work); }); }));
  });
  set_fork_patience(std::chrono::hours(1));
  expect("free in a child", in_child([&] { return !is_refused(work); }));
  // A fork waits for who works, so that its child can work.
  std::atomic<bool> stop{false};
  std::thread worker([&] {
    while (!stop) const std::lock_guard<WorkLock> guard(work);
  });
  bool good = true;
  for (int i = 0; i < 20; ++i) good = good && in_child([&] { return !is_refused(work); });
  stop = true;
  worker.join();
  expect("whole in every child", good);
}
#else
void check_lock() {}
#endif

}  // namespace vegrad::tests
