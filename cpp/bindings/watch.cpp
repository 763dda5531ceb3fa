// What a monitor's hooks do at every step, without a Python frame: after a product of matrices
// nothing of Python is in a cache, and what takes a microsecond in a loop takes ten.
//
// Whatever is not quite usual is left to Python, which has done nothing of it then: each hook gets
// the function that does the same for anything.
#include <pybind11/numpy.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "bindings/buffers.hpp"
#include "bindings/builtin.hpp"
#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "core/buffers/norms.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

constexpr Order kL2{};
// Elements from which other Python threads may run meanwhile: to get the lock back from one takes
// up to 5 ms.
constexpr std::int64_t kLong = 1 << 20;

struct Names {
  PyObject *on = interned("on"), *requires_grad = interned("requires_grad"),
           *grad_fn = interned("grad_fn"), *hooks = interned("_backward_hooks"),
           *attach = interned("_register_hook_dict"), *register_hook = interned("register_hook"),
           *grad = interned("grad"), *key = interned("monitor");
};

template <class Body>
auto unlocked_if(bool release, const Body& body) {
  std::unique_ptr<WithoutGil> released;
  if (release) released = std::make_unique<WithoutGil>();
  return body();
}

class Watch {
 public:
  // What Python knows and we cannot ask without linking PyTorch.
  Watch(const py::type& tensor, py::function is_grad_enabled, py::object hooks_type,
        py::object state, std::size_t modules)
      : reader_(tensor),
        is_grad_enabled_(std::move(is_grad_enabled)),
        hooks_type_(std::move(hooks_type)),
        state_(std::move(state)),
        squares(py::ssize_t(modules)),
        counts(py::ssize_t(modules)),
        deltas(py::ssize_t(modules)) {
    clear();
  }

  bool on = true;     // whether this step is looked at
  bool plain = true;  // and Python has nothing more to do for each tensor
  bool seen = false;  // whether a module was called, also where its step is not looked at
  int last = -1;      // the last module whose delta was finite

  void clear() {
    last = -1;
    for (py::ssize_t i = 0; i < squares.size(); ++i) {
      squares.mutable_data()[i] = counts.mutable_data()[i] = 0;
      deltas.mutable_data()[i] = -1;
    }
  }

  // Σ x² of a tensor's elements; nan if it is none that can be read at once, or not finite.
  double sum_of_squares(PyObject* object, std::int64_t& count) const {
    AxisStore axes;
    View view;
    if (!reader_(object, axes, view)) return std::numeric_limits<double>::quiet_NaN();
    count = view.count;
    const Scaled sum = unlocked_if(count > kLong, [&] { return power_sum(view, kL2); });
    return sum.exponent == 0 && is_finite(sum.sum) ? sum.sum
                                                   : std::numeric_limits<double>::quiet_NaN();
  }

  // After a module's forward pass. Returns whether all is done; throws what Python has raised.
  bool ran(int place, PyObject* output, PyObject* back) {
    if (!plain || is_true(state_.ptr(), names_.on)) return false;
    if (PyTuple_CheckExact(output) && PyTuple_GET_SIZE(output) > 0)
      output = PyTuple_GET_ITEM(output, 0);
    std::int64_t count = 0;
    const double sum = sum_of_squares(output, count);
    if (sum != sum) return false;
    squares.mutable_data()[place] += sum;
    counts.mutable_data()[place] += double(count);
    if (back != Py_None && is_true(output, names_.requires_grad)) add_hook(output, back);
    return true;
  }

  // With the gradient of its output.
  bool flowed(int place, PyObject* gradient) {
    if (!plain) return false;
    std::int64_t count = 0;
    const double sum = sum_of_squares(gradient, count);
    if (sum != sum) return false;
    double& delta = deltas.mutable_data()[place];
    delta = delta < 0 ? std::sqrt(sum) : std::sqrt(delta * delta + sum);
    last = place;
    return true;
  }

  bool grad_enabled() const {
    return taken(PyObject_CallNoArgs(is_grad_enabled_.ptr())).ptr() == Py_True;
  }

  // The share of an output's mean square that its first `rows` rows have in common, from about
  // `elements` of them; nan of one row. None if it cannot be read here.
  py::object alike(PyObject* output, std::int64_t rows, std::int64_t elements) const {
    AxisStore axes;
    View view;
    if (!reader_(output, axes, view) || view.strides) return py::none();
    if (view.ndim < 2 || view.shape[0] < 2 || view.count == 0) return py::float_(NAN);
    rows = std::min(rows, view.shape[0]);
    const std::int64_t width = view.count / view.shape[0];
    const std::int64_t step = std::max<std::int64_t>(rows * width / elements, 1) | 1;
    double common = 0, whole = 0;
    with_dtype(view.dtype, [&](auto zero) {
      const auto* const data = reinterpret_cast<const decltype(zero)*>(view.data);
      for (std::int64_t column = 0; column < width; column += step) {
        double sum = 0;
        for (std::int64_t row = 0; row < rows; ++row) {
          const double x = to_double(data[row * width + column]);
          sum += x, whole += x * x;
        }
        common += sum * sum;
      }
    });
    return py::float_(whole > 0 && is_finite(whole) ? common / (double(rows) * whole) : NAN);
  }

  // Reads the gradients of all parameters: (joint norm, a record's float64 numbers: their norms,
  // the modules' root mean squares, their deltas), and begins anew. None, having done nothing, if
  // a gradient is missing, elsewhere or not finite.
  py::object record(const py::list& parameters) {
    if (!plain) return py::none();
    const std::size_t n = parameters.size(), modules = std::size_t(squares.size());
    std::vector<py::object> grads(n);
    AxisStore axes;
    std::vector<View> views(n);
    for (std::size_t i = 0; i < n; ++i) {
      grads[i] = taken(PyObject_GetAttr(PyList_GET_ITEM(parameters.ptr(), i), names_.grad));
      if (!reader_(grads[i].ptr(), axes, views[i])) return py::none();
    }
    std::vector<Scaled> sums;
    unlocked_if(elements_of(views) > kLong, [&] {
      const KeepSubnormals keep;
      sums = power_sums(views, cut(views), kL2);
    });
    double total = 0;
    std::vector<double> numbers(n + 2 * modules);
    for (std::size_t i = 0; i < n; ++i) {
      numbers[i] = value(kL2.root(sums[i]));
      total += numbers[i] * numbers[i];
    }
    if (!is_finite(total)) return py::none();
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    for (std::size_t i = 0; i < modules; ++i) {
      const double count = counts.data()[i], delta = deltas.data()[i];
      numbers[n + i] = count > 0 ? std::sqrt(squares.data()[i] / count) : nan;
      numbers[n + modules + i] = delta < 0 ? nan : delta;
    }
    clear();
    return py::make_tuple(std::sqrt(total), py::bytes(reinterpret_cast<const char*>(numbers.data()),
                                                      numbers.size() * sizeof(double)));
  }

 private:
  static bool is_true(PyObject* object, PyObject* name) {
    return taken(PyObject_GetAttr(object, name)).ptr() == Py_True;
  }

  // As register_hook, whose handle takes longer than to read the output.
  void add_hook(PyObject* tensor, PyObject* back) {
    const py::object function = taken(PyObject_GetAttr(tensor, names_.grad_fn));
    if (function.is_none() || !taken(PyObject_GetAttr(tensor, names_.hooks)).is_none()) {
      taken(PyObject_CallMethodOneArg(tensor, names_.register_hook, back));
      return;
    }
    const py::object hooks = taken(PyObject_CallNoArgs(hooks_type_.ptr()));
    if (PyObject_SetItem(hooks.ptr(), names_.key, back) != 0 ||
        PyObject_SetAttr(tensor, names_.hooks, hooks.ptr()) != 0)
      throw py::error_already_set();
    taken(PyObject_CallMethodOneArg(function.ptr(), names_.attach, tensor));
  }

  const Names names_;
  DenseReader reader_;
  py::function is_grad_enabled_;
  py::object hooks_type_, state_;

 public:
  // A number for each module, which Python writes to as well: Σ x² of its outputs and how many
  // elements they have, the norm of their gradients (negative: there was none).
  py::array_t<double> squares, counts, deltas;
};

// A hook belongs to the model, and refers to it: (its watch's address, place, module, back, slowly,
// watch), called with (module, inputs, output)
PyObject* forward(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    Watch& watch = at_address<Watch>(self);
    if (count != 3 || arguments[0] != PyTuple_GET_ITEM(self, 2)) return py::none().release().ptr();
    watch.seen = true;
    if (!watch.on || !watch.grad_enabled()) return py::none().release().ptr();
    const int place = int(PyLong_AsLong(PyTuple_GET_ITEM(self, 1)));
    if (watch.ran(place, arguments[2], PyTuple_GET_ITEM(self, 3)))
      return py::none().release().ptr();
    return PyObject_Vectorcall(PyTuple_GET_ITEM(self, 4), arguments, 3, nullptr);
  });
}

// (its watch's address, place, slowly, watch), called with the gradient
PyObject* backward(PyObject* self, PyObject* gradient) {
  return guarded([&]() -> PyObject* {
    Watch& watch = at_address<Watch>(self);
    if (!watch.on || watch.flowed(int(PyLong_AsLong(PyTuple_GET_ITEM(self, 1))), gradient))
      return py::none().release().ptr();
    return PyObject_CallOneArg(PyTuple_GET_ITEM(self, 2), gradient);
  });
}

py::object forward_hook(const py::object& watch, int place, const py::object& module,
                        const py::object& back, const py::function& slowly) {
  static PyMethodDef method{"ran", as_method(&forward), METH_FASTCALL, nullptr};
  return builtin(method, py::make_tuple(address<Watch>(watch), place, module, back, slowly, watch));
}

py::object backward_hook(const py::object& watch, int place, const py::function& slowly) {
  static PyMethodDef method{"flowed", as_method(&backward), METH_O, nullptr};
  return builtin(method, py::make_tuple(address<Watch>(watch), place, slowly, watch));
}

}  // namespace

void register_watch(py::module_& module) {
  py::class_<Watch>(module, "Watch", "Norms of what a monitor's hooks are called with.")
      .def(py::init<const py::type&, py::function, py::object, py::object, std::size_t>(),
           py::arg("tensor"), py::arg("is_grad_enabled"), py::arg("hooks_type"), py::arg("state"),
           py::arg("modules"))
      .def_readwrite("on", &Watch::on, "Whether this step is looked at.")
      .def_readwrite("plain", &Watch::plain, "Whether the norms are all that is wanted.")
      .def_readwrite("seen", &Watch::seen, "Whether a module was called.")
      .def_readwrite("last", &Watch::last, "The last module whose delta was finite; -1: none.")
      .def_readonly("squares", &Watch::squares, "Σ x² of each module's outputs.")
      .def_readonly("counts", &Watch::counts, "How many elements they have.")
      .def_readonly("deltas", &Watch::deltas, "Norms of their gradients; negative: none.")
      .def("clear", &Watch::clear, "Begins anew.")
      .def(
          "alike",
          [](const Watch& self, const py::object& output, std::int64_t rows,
             std::int64_t elements) { return self.alike(output.ptr(), rows, elements); },
          py::arg("output"), py::arg("rows"), py::arg("elements"),
          "The share of a mean square that all rows have in common, or None.")
      .def("record", &Watch::record, py::arg("parameters"),
           "Reads the gradients: (joint norm, the numbers of a record), or None.")
      .def("forward_hook", &forward_hook, py::arg("place"), py::arg("module"), py::arg("back"),
           py::arg("slowly"), "A forward hook of a module.")
      .def("backward_hook", &backward_hook, py::arg("place"), py::arg("slowly"),
           "A hook of its output.");
}

}  // namespace vegrad
