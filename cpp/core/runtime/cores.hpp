// Which core each thread of a team runs on, and how threads that share one are parted.
//
// What it is for: the system wakes a thread on the core that it slept on. If the thread that wakes
// it has meanwhile come there too, and the other cores were busy a moment ago, it leaves both on
// one core for tens of milliseconds while another is idle.
//
// What it must guarantee: no thread stays bound to anything. One that is sent away may use all of
// its cores again as soon as it runs; nobody depends on where it then is. Cores that somebody else
// gives to a thread meanwhile are left to it.
//
// What it leaves out: systems other than Linux, where this does nothing.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>

namespace vegrad {

// Cores that this process may use, or all that there are.
int available_cores();

class Whereabouts {
 public:
  Whereabouts();
  ~Whereabouts();

  // The calling thread, number `thread` of the team, is awake.
  void note(int thread);
  // Sends those of threads 1 … threads - 1 that were last seen on the caller's core, or on one
  // another's, to other cores, if there are any. Called before they are woken.
  void part(int threads);

 private:
  struct Places;
  std::unique_ptr<Places> places_;
};

}  // namespace vegrad
