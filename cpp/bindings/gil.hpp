// The interpreter's lock, given up for a while and taken back.
//
// Once Python ends, a daemon thread does not get it any more. Up to Python 3.13 it ends right where
// it asks, by unwinding the stack; but what would be destroyed on the way are objects of an
// interpreter that is no more, and out of a destructor nothing may be unwound: the process would
// be aborted. So it stays where it is, until the process has ended.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

#if defined(Py_GIL_DISABLED) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vegrad {

struct Stay {
  bool needed = true;
  ~Stay() {
    while (needed) std::this_thread::sleep_for(std::chrono::hours(1));
  }
};

// Free-threaded Python gives back the states of daemon threads when it ends, and looks into them
// when these ask.
inline bool is_left_behind_by_python() {
#if defined(Py_GIL_DISABLED) && defined(__linux__)
  return Py_IsFinalizing() && syscall(SYS_gettid) != getpid();
#else
  return false;
#endif
}

inline void take_gil_back(PyThreadState* state) {
  Stay stay;
  while (is_left_behind_by_python()) std::this_thread::sleep_for(std::chrono::hours(1));
  PyEval_RestoreThread(state);
  stay.needed = false;
}

inline thread_local PyThreadState* t_without_gil = nullptr;  // the state of a thread without it

class WithoutGil {
 public:
  WithoutGil() : before_(t_without_gil), state_(PyEval_SaveThread()) { t_without_gil = state_; }
  ~WithoutGil() {
    take_gil_back(state_);
    t_without_gil = before_;
  }
  WithoutGil(const WithoutGil&) = delete;

 private:
  PyThreadState *before_, *state_;
};

template <class Body>
auto without_gil(const Body& body) {
  const WithoutGil released;
  return body();
}

// Calls a function of Python's C interface that may run Python code, which gives the lock to other
// threads now and then, and so may end the thread, too.
template <class Call>
auto ask_python(const Call& call) {
  Stay stay;
  const auto result = call();
  stay.needed = false;
  return result;
}

// Calls a function with a number; returns a new reference, or null where it has raised an error.
inline PyObject* ask_python(PyObject* function, double number) {
  PyObject* const given = PyFloat_FromDouble(number);
  if (given == nullptr) return nullptr;
  PyObject* const answer = ask_python([&] { return PyObject_CallOneArg(function, given); });
  Py_DECREF(given);
  return answer;
}

// Within the life of a WithoutGil, on the same thread. What runs Python code goes by `ask_python`.
class WithGil {
 public:
  WithGil() : state_(t_without_gil) { take_gil_back(state_); }
  ~WithGil() { PyEval_SaveThread(); }
  WithGil(const WithGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace vegrad
