// Locks that a fork does not leave closed for ever.
//
// What it is for: a child of fork() has the forking thread only, but locks as they were. One that
// another thread held would never be opened again.
//
// What it must guarantee: nobody waits for a thread that is no more. What a Lock guards is whole
// at every moment at which a fork can be: the child takes it over. A WorkLock guards what is not,
// while a pass or a step writes; a fork waits until nobody works, and meanwhile nobody begins. If
// it has waited in vain, who takes such a lock in the child gets a std::runtime_error.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace vegrad {

// How long a fork waits for those who work.
void set_fork_patience(std::chrono::milliseconds patience);

class Lock {
 public:
  bool try_lock() { return holder_if_taken() == 0; }
  void lock();
  void unlock();
  bool is_ours() const;

 protected:
  // 0 if it is ours now, else the thread that holds it; also if that is this one.
  std::uint32_t holder_if_taken();
  void wait_while(std::uint32_t holder) { holder_.wait(holder, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint32_t> holder_{0};  // 0: nobody
};

// Whoever holds it must not wait for anything that a forking thread may hold, such as Python's
// lock.
class WorkLock : Lock {
 public:
  void lock();
  void unlock();
};

}  // namespace vegrad
