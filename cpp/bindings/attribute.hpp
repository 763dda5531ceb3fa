// One attribute of many objects, nearly all of one type, so that it is looked up once.
#pragma once

#include <pybind11/pybind11.h>

namespace vegrad {

class Attribute {
 public:
  explicit Attribute(const char* name)
      : name_(pybind11::reinterpret_steal<pybind11::object>(PyUnicode_InternFromString(name))) {
    if (!name_) throw pybind11::error_already_set();
  }

  // A new reference, or null with an error set.
  PyObject* get(PyObject* object) {
    if (find(Py_TYPE(object))) return get_(descriptor_, object, reinterpret_cast<PyObject*>(type_));
    return PyObject_GetAttr(object, name_.ptr());
  }
  // 0, or -1 with an error set.
  int set(PyObject* object, PyObject* value) {
    if (find(Py_TYPE(object))) return set_(descriptor_, object, value);
    return PyObject_SetAttr(object, name_.ptr(), value);
  }

 private:
  // Whether objects of the type leave it to a descriptor, which an object's own cannot hide.
  bool find(PyTypeObject* type) {
    if (type == type_) return descriptor_ != nullptr;
    type_ = type;
    descriptor_ = nullptr;
    if (type->tp_getattro != PyObject_GenericGetAttr ||
        type->tp_setattro != PyObject_GenericSetAttr)
      return false;
    PyObject* const found = _PyType_Lookup(type, name_.ptr());
    if (!found || !Py_TYPE(found)->tp_descr_get || !Py_TYPE(found)->tp_descr_set) return false;
    get_ = Py_TYPE(found)->tp_descr_get;
    set_ = Py_TYPE(found)->tp_descr_set;
    descriptor_ = found;
    return true;
  }

  pybind11::object name_;
  PyTypeObject* type_ = nullptr;
  PyObject* descriptor_ = nullptr;  // the type's
  descrgetfunc get_ = nullptr;
  descrsetfunc set_ = nullptr;
};

}  // namespace vegrad
