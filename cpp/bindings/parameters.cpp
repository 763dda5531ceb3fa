// A network's parameters as an autograd library's objects: what is asked of each at every pass, and
// their gradients, which are handed over at once.
//
// The lists come anew with every call: who keeps objects must tell the garbage collector of them.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "bindings/attribute.hpp"
#include "bindings/buffers.hpp"
#include "bindings/register.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

// Calls body(object, number) for each entry while it is true; returns how often it was.
template <class Body>
std::size_t while_true(const py::list& list, const Body& body) {
  std::size_t i = 0;
  for (; i < list.size(); ++i) {  // by then another thread may have made it shorter
    const auto one = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(list.ptr(), i));
    if (!body(one, i)) break;
  }
  return i;
}

py::object get(Attribute& attribute, const py::object& object) {
  PyObject* const found = attribute.get(object.ptr());
  if (!found) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

bool is_none(Attribute& attribute, const py::object& object) {
  return get(attribute, object).is_none();
}

bool is_true(Attribute& attribute, const py::object& object) {
  return get(attribute, object).ptr() == Py_True;
}

// In C order, else 0.
std::uintptr_t address_of(const DenseReader& reader, const py::object& tensor) {
  AxisStore axes;
  View view;
  if (reader(tensor.ptr(), axes, view)) {
    std::int64_t stride = view.itemsize();
    for (int axis = view.ndim - 1; view.strides && axis >= 0; stride *= view.shape[axis--])
      if (view.shape[axis] != 1 && view.strides[axis] != stride) return 0;
    return reinterpret_cast<std::uintptr_t>(view.data);
  }
  if (!py::bool_(tensor.attr("is_contiguous")())) return 0;
  return py::cast<std::uintptr_t>(tensor.attr("data_ptr")());
}

// A byte each, whether it needs a gradient; None if one is not what its holder, (a dictionary, a
// key), has, or does not lie at its place.
py::object unmoved(const py::list& tensors, const py::list& holders, const py::bytes& places) {
  const std::string_view all(places);
  if (tensors.size() == 0 || holders.size() != tensors.size() ||
      all.size() != tensors.size() * sizeof(std::uint64_t))
    throw py::value_error("tensors must have a holder and a place each");
  const DenseReader reader(py::type::of(tensors[0]));
  Attribute needs_gradient("requires_grad");
  std::string needed(tensors.size(), '\0');
  const std::size_t same = while_true(tensors, [&](const py::object& tensor, std::size_t i) {
    PyObject* const holder = PyList_GET_ITEM(holders.ptr(), i);
    if (!PyTuple_CheckExact(holder) || PyTuple_GET_SIZE(holder) != 2 ||
        !PyDict_Check(PyTuple_GET_ITEM(holder, 0)))
      throw py::type_error("holders must be tuples of a dictionary and a key");
    std::uint64_t place;
    std::memcpy(&place, all.data() + i * sizeof place, sizeof place);
    const PyObject* const held =
        PyDict_GetItemWithError(PyTuple_GET_ITEM(holder, 0), PyTuple_GET_ITEM(holder, 1));
    if (!held && PyErr_Occurred()) throw py::error_already_set();
    if (held != tensor.ptr() || address_of(reader, tensor) != place) return false;
    needed[i] = char(is_true(needs_gradient, tensor));
    return true;
  });
  return same == needed.size() ? py::object(py::bytes(needed)) : py::object(py::none());
}

// Eight bytes each: how often it was changed in place.
py::bytes versions(const py::list& tensors) {
  std::string all(tensors.size() * sizeof(std::int64_t), '\0');
  Attribute version("_version");
  while_true(tensors, [&](const py::object& tensor, std::size_t i) {
    const std::int64_t number = PyLong_AsLongLong(get(version, tensor).ptr());
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    std::memcpy(all.data() + i * sizeof number, &number, sizeof number);
    return true;
  });
  return py::bytes(all);
}

// Whether none has a hook, nor a gradient of another type.
bool unhooked(const py::list& tensors, const py::type& type) {
  Attribute hooks("_backward_hooks"), late("_post_accumulate_grad_hooks"), gradient("grad");
  return while_true(tensors, [&](const py::object& tensor, std::size_t) {
           const auto none = [](const py::object& found) {
             return found.is_none() || PyObject_Not(found.ptr()) == 1;
           };
           if (!none(get(hooks, tensor)) || !none(get(late, tensor))) return false;
           const py::object grad = get(gradient, tensor);
           return grad.is_none() || py::type::of(grad).is(type);
         }) == tensors.size();
}

// The gradient of each, or None.
py::list gradients(const py::list& tensors) {
  Attribute gradient("grad");
  py::list all(tensors.size());
  const std::size_t found = while_true(tensors, [&](const py::object& tensor, std::size_t i) {
    if (i == all.size()) return false;
    PyList_SET_ITEM(all.ptr(), i, get(gradient, tensor).release().ptr());
    return true;
  });
  if (found < all.size()) throw py::value_error("tensors must stay as many as they are");
  return all;
}

// How many are None.
std::size_t nones(const py::list& list) {
  std::size_t found = 0;
  for (std::size_t i = 0; i < list.size(); ++i) found += PyList_GET_ITEM(list.ptr(), i) == Py_None;
  return found;
}

// Whether two lists have the same objects.
bool same_objects(const py::list& one, const py::list& other) {
  if (one.size() != other.size()) return false;
  for (std::size_t i = 0; i < one.size(); ++i)
    if (PyList_GET_ITEM(one.ptr(), i) != PyList_GET_ITEM(other.ptr(), i)) return false;
  return true;
}

// Sets the first ones' gradients, up to one that has some or needs none; returns how many.
std::size_t set_gradients(const py::list& tensors, const py::list& gradients) {
  if (gradients.size() != tensors.size())
    throw py::value_error("tensors must have a gradient each");
  Attribute needs_gradient("requires_grad"), gradient("grad");
  return while_true(tensors, [&](const py::object& tensor, std::size_t i) {
    if (!is_true(needs_gradient, tensor) || !is_none(gradient, tensor)) return false;
    if (gradient.set(tensor.ptr(), PyList_GET_ITEM(gradients.ptr(), i)) != 0)
      throw py::error_already_set();
    return true;
  });
}

}  // namespace

void register_parameters(py::module_& module) {
  module.def("unmoved", &unmoved, py::arg("tensors"), py::arg("holders"), py::arg("places"),
             "Whether each needs a gradient, a byte each; None unless all are held and lie there.");
  module.def("versions", &versions, py::arg("tensors"), "`._version` of each, eight bytes each.");
  module.def("unhooked", &unhooked, py::arg("tensors"), py::arg("type"),
             "Whether none has a hook, nor a `.grad` of another type.");
  module.def("gradients", &gradients, py::arg("tensors"), "`.grad` of each.");
  module.def("nones", &nones, py::arg("entries"), "How many entries are None.");
  module.def("same_objects", &same_objects, py::arg("one"), py::arg("other"),
             "Whether two lists have the same objects in the same order.");
  module.def("set_gradients", &set_gradients, py::arg("tensors"), py::arg("gradients"),
             "Sets `.grad`, up to one that has some or needs none; returns how many.");
}

}  // namespace vegrad
