// A monitor's steps that nobody looks at. In each of them there are five calls: the model, the
// beginning and the end of a backward pass, the beginning and the end of an optimizer's step. What
// they tell is kept here until Python asks for it, after some steps. Whatever is not as usual is
// left to Python: then nothing of that call has been done here.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/buffers.hpp"
#include "bindings/builtin.hpp"
#include "bindings/gil.hpp"
#include "core/buffers/norms.hpp"

namespace vegrad {
namespace quiet {

namespace py = pybind11;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kMany = 1 << 14;  // elements of a part of a gradient, at least
constexpr std::int64_t kLong = 1 << 20;  // as in watch.cpp

struct Names {
  PyObject *on = interned("on"), *grad = interned("grad"), *version = interned("_version"),
           *grad_fn = interned("grad_fn"), *groups = interned("param_groups"),
           *rate = interned("lr");
};

// A gradient as it was: which, and how often it had been changed.
struct Stamp {
  PyObject* grad = nullptr;  // an address, null for None
  long version = -1;
  bool operator==(const Stamp& other) const {
    return grad == other.grad && version == other.version;
  }
};

struct Step {
  double joint, loss, rate, before, limit, seconds;
  py::bytes numbers;
  py::object batch;
};

class Quiet {
 public:
  enum Stage { kOver, kCalled, kBack, kStepping };

  Quiet(const py::type& tensor, py::function is_grad_enabled, py::object state)
      : tensor_(tensor),
        reader_(tensor),
        is_grad_enabled_(std::move(is_grad_enabled)),
        state_(std::move(state)) {}

  bool on = false;        // whether the step in progress is one of these
  int depth = 0;          // backward passes within each other that began here
  bool is_added = false;  // whether the last pass was added to gradients that were stepped already
  Stage stage = kOver;

  // Begins a row of steps: the next `most`, unless something is not as usual.
  void begin(py::list parameters, std::vector<std::size_t> probes,
             std::vector<std::optional<std::pair<py::int_, long>>> left, py::object optimizer,
             std::size_t modules, std::size_t most, std::int64_t turn, std::int64_t part,
             double highest_loss, double highest_norm, py::function now, std::size_t timed) {
    for (const std::size_t place : probes)
      if (place >= parameters.size()) throw py::index_error("a probe is no parameter's place");
    parameters_ = std::move(parameters);
    probes_ = std::move(probes);
    left_.assign(probes_.size(), {});
    for (std::size_t i = 0; i < left.size() && i < left_.size(); ++i)
      if (left[i])
        left_[i] = {static_cast<PyObject*>(PyLong_AsVoidPtr(left[i]->first.ptr())),
                    left[i]->second};
    optimizer_ = std::move(optimizer);
    modules_ = modules, most_ = most, turn_ = turn, part_ = part;
    highest_loss_ = highest_loss, highest_norm_ = highest_norm;
    now_ = std::move(now), timed_ = timed;
    graded_.clear();
    stage = kOver, depth = 0, is_added = false, on = most > 0;
    start_ = timed_ > 0 ? time() : kNan, is_called_ = false;
    call = py::none(), batch = py::none();
  }

  // The model is called. Returns whether all is done, as do the others.
  bool called(PyObject* arguments, PyObject* named) {
    if (!on) return false;
    if (is_true(state_.ptr(), names_.on) ||
        taken(PyObject_CallNoArgs(is_grad_enabled_.ptr())).ptr() != Py_True)
      return true;
    if (!PyTuple_CheckExact(arguments) || !PyDict_CheckExact(named)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arguments); ++i)
      if (!is_alone(PyTuple_GET_ITEM(arguments, i))) return false;
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(named, &at, &key, &value);)
      if (!is_alone(value)) return false;
    hold(py::make_tuple(py::handle(arguments), py::handle(named)));
    return true;
  }

  // The model is called with this.
  void hold(py::object of) {
    call = std::move(of);
    if (stage == kOver || stage == kStepping) {
      stage = kCalled;
      if (steps_.size() < timed_) start_ = time(), is_called_ = true;
    }
  }

  // A backward pass begins at `roots`.
  bool begins(PyObject* roots) {
    if (depth > 0) return ++depth > 0;
    if (!on || probes_.empty() || !PyTuple_Check(roots) || PyTuple_GET_SIZE(roots) != 1)
      return false;
    AxisStore axes;
    View view;
    if (!reader_(PyTuple_GET_ITEM(roots, 0), axes, view) || view.ndim != 0) return false;
    const double loss = with_dtype(view.dtype, [&](auto zero) {
      return double(to_double(*reinterpret_cast<const decltype(zero)*>(view.data)));
    });
    if (!is_finite(loss)) return false;
    std::vector<Stamp> before(probes_.size());
    std::vector<py::object> held(probes_.size());
    for (std::size_t i = 0; i < probes_.size(); ++i) {
      held[i] = gradient(probes_[i]);
      before[i] = stamp(held[i].ptr());
    }
    begun_ = loss, before_ = std::move(before), held_ = std::move(held);
    depth = 1;
    return true;
  }

  // It is over, or has raised. False if it was added to gradients that were stepped: those are
  // there as the step has left them, as also in another model's pass, which does not change them.
  bool ends() {
    if (--depth > 0) return true;
    bool changed = false, empty = false, left = false;
    for (std::size_t i = 0; i < probes_.size(); ++i) {
      const bool is_other = !(stamp(gradient(probes_[i]).ptr()) == before_[i]);
      if (is_other && !changed) empty = !before_[i].grad;
      changed |= is_other;
      left |= before_[i].grad && before_[i] == left_[i];
    }
    held_.clear();
    if (!on || !changed) return true;
    is_added = stage != kBack && left;
    if (stage != kBack || empty) backwards_ = 0, loss_ = 0;
    if (stage != kBack) before_clip_ = limit_ = kNan, is_of_all_ = false;
    ++backwards_, loss_ += begun_;
    stage = kBack;
    return !is_added;
  }

  // Joint norm before a clip of the gradients, its limit, and whether it was of all of them.
  void clip(double before, double limit, bool of_all) {
    before_clip_ = before, limit_ = limit, is_of_all_ = of_all;
  }

  // An optimizer is about to step.
  bool steps(PyObject* optimizer) {
    if (!on || stage != kBack || depth > 0) return false;
    if (taken(PyObject_CallNoArgs(optimizer_.ptr())).ptr() != optimizer) return false;
    Step one{kNan, loss_, rate_of(optimizer), before_clip_, limit_, kNan, py::bytes(), batch};
    if (!read(one)) return false;
    // A clip has read all of them: what is left of their norm is known.
    if (is_of_all_) one.joint = std::min(before_clip_, limit_);
    if (!is_finite(one.joint)) return false;
    if (one.joint > highest_norm_ || one.loss > highest_loss_) most_ = steps_.size() + 1;
    steps_.push_back(std::move(one));
    stage = kStepping;
    call = py::none(), batch = py::none();
    return true;
  }

  // It has stepped. Returns 0 if that is not of ours, 1, or 2 at the end of the row.
  int stepped() {
    if (!on || stage != kStepping) return 0;
    for (std::size_t i = 0; i < probes_.size(); ++i) left_[i] = stamp(gradient(probes_[i]).ptr());
    if (start_ == start_) {
      const double end = time();
      steps_.back().seconds = end - start_;
      start_ = is_called_ ? kNan : end;  // without a call, a step begins with the end before
    }
    if (steps_.size() >= timed_) start_ = kNan;
    stage = kOver;
    return steps_.size() < most_ ? 1 : 2;
  }

  std::size_t count() const { return steps_.size(); }
  std::tuple<int, double> passes() const { return {backwards_, loss_}; }
  std::tuple<double, double> clipped() const { return {before_clip_, limit_}; }

  // The loss and the batch of the last step.
  void give(std::optional<double> loss, const py::object& of) {
    if (steps_.empty()) return;
    if (loss) steps_.back().loss = *loss;
    if (!of.is_none()) steps_.back().batch = of;
  }

  // The gradients that were there after the last step: address and version, by probe.
  std::vector<std::pair<py::int_, long>> left() const {
    std::vector<std::pair<py::int_, long>> found;
    for (const Stamp& one : left_)
      found.emplace_back(taken(PyLong_FromVoidPtr(one.grad)).cast<py::int_>(), one.version);
    return found;
  }

  // The steps so far, as tuples of their fields, and none any more.
  py::list taken_steps() {
    py::list found;
    for (Step& one : steps_)
      found.append(py::make_tuple(one.joint, one.numbers, one.loss, one.rate, one.before, one.limit,
                                  one.batch, one.seconds));
    turn_ += std::int64_t(steps_.size()), most_ -= std::min(most_, steps_.size());
    timed_ = 0;
    steps_.clear();
    return found;
  }

  void let_go() {
    parameters_ = py::list();
    call = batch = optimizer_ = now_ = py::none();
    held_.clear(), steps_.clear();
    on = false;
  }

  int visit(visitproc visit, void* arg) const {
    Py_VISIT(parameters_.ptr());
    Py_VISIT(call.ptr());
    Py_VISIT(batch.ptr());
    Py_VISIT(now_.ptr());
    for (const py::object& one : held_) Py_VISIT(one.ptr());
    for (const Step& one : steps_) Py_VISIT(one.batch.ptr());
    return 0;
  }

 private:
  static bool is_true(PyObject* object, PyObject* name) {
    return taken(PyObject_GetAttr(object, name)).ptr() == Py_True;
  }

  // Whether an argument can be kept as it is: without a graph, and nothing in it that has one.
  bool is_alone(PyObject* value) const {
    if (reinterpret_cast<PyObject*>(Py_TYPE(value)) == tensor_.ptr())
      return taken(PyObject_GetAttr(value, names_.grad_fn)).is_none();
    return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) ||
           PyFloat_CheckExact(value) || PyUnicode_CheckExact(value);
  }

  py::object gradient(std::size_t place) const {
    return taken(
        PyObject_GetAttr(PyList_GET_ITEM(parameters_.ptr(), py::ssize_t(place)), names_.grad));
  }

  Stamp stamp(PyObject* grad) const {
    if (grad == Py_None) return {};
    return {grad, PyLong_AsLong(taken(PyObject_GetAttr(grad, names_.version)).ptr())};
  }

  double time() const { return PyFloat_AsDouble(taken(PyObject_CallNoArgs(now_.ptr())).ptr()); }

  // The largest learning rate of the groups; nan if none is a plain number.
  double rate_of(PyObject* optimizer) const {
    const py::object groups = taken(PyObject_GetAttr(optimizer, names_.groups));
    double largest = kNan;
    for (const py::handle group : groups) {
      PyObject* const rate =
          PyDict_Check(group.ptr()) ? PyDict_GetItemWithError(group.ptr(), names_.rate) : nullptr;
      if (rate && PyFloat_CheckExact(rate)) largest = std::fmax(largest, PyFloat_AS_DOUBLE(rate));
    }
    return largest;
  }

  // Reads the gradients, of large ones a part if there are many. False if one cannot be read, or
  // what was read is not finite.
  bool read(Step& step) {
    const std::size_t n = parameters_.size();
    if (graded_.empty()) {
      for (std::size_t place = 0; place < n; ++place)
        if (!gradient(place).is_none()) graded_.push_back(place);
      if (graded_.empty()) return false;
    }
    AxisStore axes;
    std::vector<View> views;
    std::vector<std::size_t> places;
    std::vector<double> scale;
    std::vector<py::object> grads;
    for (const std::size_t place : graded_) {
      py::object grad = gradient(place);
      if (grad.is_none()) continue;
      View& view = views.emplace_back();
      if (!reader_(grad.ptr(), axes, view)) return false;
      places.push_back(place);
      scale.push_back(cut_out(view, axes, turn_ + std::int64_t(steps_.size() + place)));
      grads.push_back(std::move(grad));
    }
    std::vector<Scaled> sums;
    const auto add = [&] {
      const KeepSubnormals keep;
      sums = power_sums(views, cut(views), Order{});
    };
    if (elements_of(views) > kLong) {
      const WithoutGil released;
      add();
    } else {
      add();
    }
    step.numbers = py::bytes(nullptr, (n + 2 * modules_) * sizeof(double));
    auto* const numbers = reinterpret_cast<double*>(PyBytes_AS_STRING(step.numbers.ptr()));
    std::fill(numbers, numbers + n + 2 * modules_, kNan);
    double total = 0;
    for (std::size_t i = 0; i < views.size(); ++i) {
      const double norm = scale[i] * value(Order{}.root(sums[i]));
      numbers[places[i]] = norm;
      total += norm * norm;
    }
    step.joint = std::sqrt(total);
    return is_finite(total);
  }

  // Leaves one of `part_` parts of a large view, or of as many as it has that are long enough,
  // another at each turn. Returns the factor from its norm to the whole one's.
  double cut_out(View& view, AxisStore& axes, std::int64_t turn) const {
    const std::int64_t parts = std::min(part_, view.count / kMany);
    if (parts <= 1 || view.strides) return 1;
    const std::int64_t length = view.count / parts, whole = view.count, place = turn % parts;
    view.data += place * length * view.itemsize();
    view.count = place == parts - 1 ? whole - place * length : length;
    view.ndim = 1;
    std::int64_t* const shape = axes.take(1);
    shape[0] = view.count;
    view.shape = shape;
    return std::sqrt(double(whole) / double(view.count));
  }

  const Names names_;
  py::object tensor_;
  DenseReader reader_;
  py::function is_grad_enabled_;
  py::object state_;
  py::list parameters_;
  std::vector<std::size_t> probes_, graded_;
  py::object optimizer_ = py::none(), now_ = py::none();
  std::size_t modules_ = 0, most_ = 0, timed_ = 0;
  std::int64_t turn_ = 0, part_ = 1;
  double highest_loss_ = 0, highest_norm_ = 0, start_ = kNan;
  std::vector<Stamp> left_, before_;
  std::vector<py::object> held_;  // the gradients of before_, so that no other takes their place
  double begun_ = kNan, loss_ = 0, before_clip_ = kNan, limit_ = kNan;
  bool is_of_all_ = false, is_called_ = false;
  int backwards_ = 0;
  std::vector<Step> steps_;

 public:
  py::object call = py::none();   // what the model was last called with: positions and names
  py::object batch = py::none();  // of the step in progress, as the user calls it
};

}  // namespace quiet
}  // namespace vegrad
