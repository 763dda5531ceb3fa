// What Python calls of quiet.hpp at each step, without pybind11's dispatch, and the rest with it.
#include "bindings/quiet.hpp"

#include "bindings/register.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

using quiet::Quiet;

PyObject* none() { return py::none().release().ptr(); }

// (its Quiet's address, model, slowly, quiet), called with (module, arguments, named)
PyObject* called(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    if (count != 3 || arguments[0] != PyTuple_GET_ITEM(self, 1)) return none();
    if (at_address<Quiet>(self).called(arguments[1], arguments[2])) return none();
    return PyObject_Vectorcall(PyTuple_GET_ITEM(self, 2), arguments, 3, nullptr);
  });
}

// (its Quiet's address, slowly, quiet), called with (roots, weights)
PyObject* begins(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    if (count == 2 && at_address<Quiet>(self).begins(arguments[0])) return none();
    return PyObject_Vectorcall(PyTuple_GET_ITEM(self, 1), arguments, std::size_t(count), nullptr);
  });
}

// (its Quiet's address, slowly, quiet), called with nothing
PyObject* ends(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    Quiet& quiet = at_address<Quiet>(self);
    if (quiet.depth > 0 && quiet.ends()) return none();
    return PyObject_CallNoArgs(PyTuple_GET_ITEM(self, 1));
  });
}

// (its Quiet's address, quiet), called with an optimizer
PyObject* steps(PyObject* self, PyObject* optimizer) {
  return guarded(
      [&]() -> PyObject* { return PyBool_FromLong(at_address<Quiet>(self).steps(optimizer)); });
}

// The same, called with nothing
PyObject* stepped(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* { return PyLong_FromLong(at_address<Quiet>(self).stepped()); });
}

PyMethodDef called_method{"called", as_method(&called), METH_FASTCALL, nullptr};
PyMethodDef begins_method{"begins", as_method(&begins), METH_FASTCALL, nullptr};
PyMethodDef ends_method{"ends", as_method(&ends), METH_NOARGS, nullptr};
PyMethodDef steps_method{"steps", as_method(&steps), METH_O, nullptr};
PyMethodDef stepped_method{"stepped", as_method(&stepped), METH_NOARGS, nullptr};

// So that the garbage collector finds what is held.
void collect(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!py::detail::is_holder_constructed(self)) return 0;
    return py::cast<Quiet&>(py::handle(self)).visit(visit, arg);
  };
  type.tp_clear = [](PyObject* self) {
    if (py::detail::is_holder_constructed(self)) py::cast<Quiet&>(py::handle(self)).let_go();
    return 0;
  };
}

}  // namespace

void register_quiet(py::module_& module) {
  py::class_<Quiet>(module, "Quiet", "Steps of a monitor that nobody looks at.",
                    py::custom_type_setup(&collect))
      .def(py::init<const py::type&, py::function, py::object>(), py::arg("tensor"),
           py::arg("is_grad_enabled"), py::arg("state"))
      .def_readwrite("on", &Quiet::on, "Whether the step in progress is one of these.")
      .def_readonly("depth", &Quiet::depth, "Backward passes within each other.")
      .def_readonly("is_added", &Quiet::is_added,
                    "Whether the last pass was added to gradients that were stepped already.")
      .def_property_readonly(
          "stage", [](const Quiet& self) { return int(self.stage); },
          "0: between steps, 1: the model was called, 2: gradients are there, 3: stepping.")
      .def_readwrite("batch", &Quiet::batch, "The batch of the step in progress.")
      .def_readonly("call", &Quiet::call, "What the model was called with.")
      .def_property_readonly("count", &Quiet::count, "Number of steps that wait.")
      .def_property_readonly("passes", &Quiet::passes,
                             "Backward passes of the step in progress, and their loss.")
      .def_property_readonly("clipped", &Quiet::clipped,
                             "The joint norm before the step's clip, and its limit.")
      .def_property_readonly("left", &Quiet::left, "The gradients after the last step.")
      .def("begin", &Quiet::begin, py::arg("parameters"), py::arg("probes"), py::arg("left"),
           py::arg("optimizer"), py::arg("modules"), py::arg("most"), py::arg("turn"),
           py::arg("part"), py::arg("highest_loss"), py::arg("highest_norm"), py::arg("now"),
           py::arg("timed"), "Begins a row of steps.")
      .def("hold", &Quiet::hold, py::arg("call"), "Notes what the model is called with.")
      .def("clip", &Quiet::clip, py::arg("before"), py::arg("limit"), py::arg("of_all"),
           "Notes a clip by the joint norm.")
      .def("give", &Quiet::give, py::arg("loss"), py::arg("batch"),
           "Sets the loss or the batch of the last step.")
      .def("taken", &Quiet::taken_steps, "Returns the steps that wait, which do so no longer.")
      .def(
          "called",
          [](const py::object& self, const py::object& model, const py::function& slowly) {
            return builtin(called_method,
                           py::make_tuple(address<Quiet>(self), model, slowly, self));
          },
          py::arg("model"), py::arg("slowly"), "A forward pre-hook of the model.")
      .def(
          "begins",
          [](const py::object& self, const py::function& slowly) {
            return builtin(begins_method, py::make_tuple(address<Quiet>(self), slowly, self));
          },
          py::arg("slowly"), "A function to call as a backward pass begins.")
      .def(
          "ends",
          [](const py::object& self, const py::function& slowly) {
            return builtin(ends_method, py::make_tuple(address<Quiet>(self), slowly, self));
          },
          py::arg("slowly"), "A function to call as it ends.")
      .def(
          "steps",
          [](const py::object& self) {
            return builtin(steps_method, py::make_tuple(address<Quiet>(self), self));
          },
          "A function to call before an optimizer's step: was all done?")
      .def(
          "stepped",
          [](const py::object& self) {
            return builtin(stepped_method, py::make_tuple(address<Quiet>(self), self));
          },
          "A function to call after it: 0: nothing was done; 1; 2: that was the last of the row.");
}

}  // namespace vegrad
