// Functions of Python that are C++ and are called without a frame, or pybind11's dispatch.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

namespace vegrad {

inline pybind11::object taken(PyObject* fresh) {
  if (!fresh) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(fresh);
}

// A name that exists once: to make one takes longer than to look it up.
inline PyObject* interned(const char* name) {
  return taken(PyUnicode_InternFromString(name)).release().ptr();
}

// Calls body, and turns what C++ throws into Python's exceptions.
template <class Body>
PyObject* guarded(const Body& body) {
  try {
    return body();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <class Function>
PyCFunction as_method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// `self`: a tuple of what the function needs, which the garbage collector can look into.
inline pybind11::object builtin(PyMethodDef& method, const pybind11::tuple& self) {
  return taken(PyCFunction_New(&method, self.ptr()));
}

// Where an object of C++ is, as the first of such a tuple, which must have the object itself too.
template <class T>
pybind11::capsule address(const pybind11::object& object) {
  return pybind11::capsule(&object.cast<T&>());
}

template <class T>
T& at_address(PyObject* self) {
  return *static_cast<T*>(PyCapsule_GetPointer(PyTuple_GET_ITEM(self, 0), nullptr));
}

}  // namespace vegrad
