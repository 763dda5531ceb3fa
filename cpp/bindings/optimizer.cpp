#include "bindings/optimizer.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "bindings/tensors.hpp"
#include "bindings/visible.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

StepKind kind_of(const std::string& name) {
  if (name == "sgd") return kSgd;
  if (name == "adam") return kAdam;
  if (name == "lion") return kLion;
  throw py::value_error("unknown kind '" + name + "'");
}

// The only length of an array that was loaded with one axis: it may be that of a weight, or one of
// version 0.1.0, whose arrays were flat.
constexpr std::int64_t kFlat = -1;

bool is_flat(const OptimizerState& state) {
  return state.shape.size() == 1 && state.shape[0] == kFlat;
}

std::vector<std::int64_t> axes_of(const OptimizerState& state) {
  return is_flat(state) ? std::vector<std::int64_t>{state.count} : state.shape;
}

std::string shape_of(const std::vector<std::int64_t>& shape) {
  return py::str(py::tuple(py::cast(shape)));
}

// A number of steps as it stands in a state.
std::int64_t read_steps(const std::string& label, const py::handle& value) {
  if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr()))
    throw py::type_error(label + " must have an integer as step, not " + type_name(value));
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long steps = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0 || steps < 0)
    throw py::value_error(label + " must have a step from 0 to 2^63 - 1, not " + shown(number));
  return steps;
}

template <class T>
bool any_negative(const py::array& array) {
  const T* const values = static_cast<const T*>(array.data());
  return std::any_of(values, values + array.size(), [](T value) { return value < 0; });
}

// An array of a state, in C order.
py::array read_array(const std::string& label, const std::string& name, const py::object& value) {
  const py::array array = py::array::ensure(value, py::array::c_style);
  const bool wide = array && array.dtype().equal(py::dtype::of<double>());
  if (!array || !(wide || array.dtype().equal(py::dtype::of<float>())))
    throw py::value_error(label + " must have an array of float32 or float64 as " + name);
  if (name.find("square") != name.npos &&
      (wide ? any_negative<double>(array) : any_negative<float>(array)))
    throw py::value_error(label + " must have no negative number in " + name +
                          ", a mean of squares");
  return array;
}

// What state() gave of one buffer.
std::unique_ptr<OptimizerState> read_state(const std::string& label, const py::handle& value,
                                           const OptimizerSettings& settings) {
  if (!PyDict_Check(value.ptr()))
    throw py::type_error(label + " must be a dictionary, not " + type_name(value));
  const auto one = py::reinterpret_borrow<py::dict>(value);
  const std::vector<const char*> names = settings.all_state_names();
  std::vector<py::array> arrays;
  for (const char* name : names) {
    if (!one.contains(name)) {
      if (arrays.size() >= settings.states()) break;
      throw py::value_error(label + " must have " + name);
    }
    const py::array array = read_array(label, name, one[name]);
    arrays.push_back(array);
    const bool same = array.ndim() == arrays[0].ndim() && array.dtype().equal(arrays[0].dtype()) &&
                      std::equal(array.shape(), array.shape() + array.ndim(), arrays[0].shape());
    if (!same) throw py::value_error(label + " must have arrays of one dtype and shape");
  }
  if (!one.contains("step")) throw py::value_error(label + " must have step");
  for (const auto& [key, unused] : one) {
    const bool known = key.equal(py::str("step")) ||
                       std::any_of(names.begin(), names.begin() + arrays.size(),
                                   [&](const char* name) { return key.equal(py::str(name)); });
    if (!known) throw py::value_error(label + " must not have " + shown(key));
  }
  auto state = std::make_unique<OptimizerState>();
  state->steps = read_steps(label, one["step"]);
  if (!arrays.empty()) {
    const py::array& first = arrays[0];
    state->dtype = first.itemsize() == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
    state->shape.assign(first.shape(), first.shape() + first.ndim());
    if (first.ndim() == 1) state->shape = {kFlat};
    state->count = first.size();
  }
  for (const py::array& array : arrays) {
    state->memory.emplace_back(array.nbytes());
    if (array.nbytes() == 0) continue;  // memcpy takes no null, not even for nothing
    std::memcpy(state->memory.back().data(), array.data(), array.nbytes());
  }
  return state;
}

}  // namespace

Optimizer::Turn::Turn(Optimizer& optimizer)
    : optimizer_(optimizer), first_(!optimizer.running_.is_ours()) {
  if (!first_ || optimizer_.running_.try_lock()) return;
  const WithoutGil released;
  optimizer_.running_.lock();
}

Optimizer::Turn::~Turn() {
  if (first_) optimizer_.running_.unlock();
}

void Optimizer::Turn::must_be_first() const {
  if (!first_) throw std::runtime_error("an optimizer must not be used by what its own step calls");
}

Clipped Optimizer::step(const py::object& parameters, const py::object& grads, double rate,
                        const std::string& rule, const py::object& limit, double ord,
                        const std::string& nonfinite, double eps, const py::object& groups) {
  const Turn turn(*this);
  turn.must_be_first();
  const bool many = PyList_CheckExact(parameters.ptr());
  Clipped result;
  together_over(many ? std::size_t(PyList_GET_SIZE(parameters.ptr())) : 0, [&] {
    result = step_over(parameters, grads, rate, {rule, limit, ord, eps, nonfinite}, groups);
  });
  return result;
}

Clipped Optimizer::step_over(const py::object& parameters_object, const py::object& grads_object,
                             double rate, const RuleArguments& arguments,
                             const py::object& groups) {
  Buffers grads("grads", grads_object, false);
  const Buffers parameters = grads.matched("params", parameters_object, true);
  for (std::size_t i = 0; i < parameters.size(); ++i)
    if (parameters.views[i].itemsize() < 4)
      throw py::type_error(parameters.label(i) + " must be float32 or float64, not " +
                           (parameters.views[i].dtype == Dtype::kFloat16 ? "float16" : "bfloat16"));
  refuse_overlap(parameters, &grads);
  const Asked asked(arguments, grads.size());
  const auto states = states_of(parameters);
  std::vector<StepGroup> found;
  std::vector<std::size_t> group_of(grads.size(), 0);
  if (groups.is_none())
    found.push_back({settings_, rate});
  else
    find_groups(groups, parameters, found, group_of);
  FirstNonFinite first;
  Clipped result;
  {
    const WithoutGil released;
    together_on(grads.views, [&] {
      result = take_step(std::move(found), std::move(group_of), parameters.views, grads.views,
                         states, writing_, asked.request, first);
    });
  }
  if (first.buffer >= 0) raise_nonfinite(grads, first, result.nonfinite);
  return result;
}

// Of a sequence: (one more than the last position, rate, an optimizer with the settings) each.
void Optimizer::find_groups(const py::object& groups, const Buffers& parameters,
                            std::vector<StepGroup>& found, std::vector<std::size_t>& group_of) {
  std::size_t next = 0;
  for (const py::handle item : groups) {
    const auto [end, rate, settings] =
        py::cast<std::tuple<std::int64_t, double, const Optimizer*>>(item);
    while (next < parameters.size() && parameters.position(next) < end)
      group_of[next++] = found.size();
    found.push_back({settings->settings_, rate});
  }
  if (next < parameters.size())
    throw py::value_error("groups must have a place for every buffer, but have none for " +
                          parameters.label(next));
}

std::vector<std::unique_ptr<OptimizerState>*> Optimizer::states_of(const Buffers& parameters) {
  // Places for new states first: growing moves them.
  std::vector<std::size_t> places;
  places.reserve(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) places.push_back(place_of(parameters, i));
  if (loaded_ > 0 && !places.empty()) {
    if (std::all_of(places.begin(), places.end(), [&](std::size_t p) { return p >= loaded_; }))
      throw py::value_error("params must have names of the state that was loaded, such as " +
                            shown(keys_.front()) + ", but the first is " +
                            shown(parameters.name(0)));
    loaded_ = 0;
  }
  if (!parameters.is_flat()) {
    constexpr std::size_t kNobody = std::numeric_limits<std::size_t>::max();
    std::vector<std::size_t> owner(states_.size(), kNobody);
    for (std::size_t i = 0; i < places.size(); ++i) {
      if (owner[places[i]] != kNobody) parameters.refuse_one_name(owner[places[i]], i);
      owner[places[i]] = i;
    }
  }
  std::vector<std::unique_ptr<OptimizerState>*> states;
  states.reserve(parameters.size());
  for (const std::size_t place : places) states.push_back(&states_[place]);
  // They lie scattered, and no step leaves them in a cache near by: fetched ahead.
  constexpr std::size_t kAhead = 8;
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (i + 2 * kAhead < states.size()) __builtin_prefetch(states[i + 2 * kAhead]->get());
    if (i + kAhead < states.size()) {
      if (const OptimizerState* const later = states[i + kAhead]->get()) {
        __builtin_prefetch(later->shape.data());
        __builtin_prefetch(later->memory.data());
      }
    }
    check(parameters, i, states[i]->get());
  }
  return states;
}

py::dict Optimizer::state() {
  const Turn turn(*this);
  py::dict all;
  const std::vector<const char*> names = settings_.all_state_names();
  for (std::size_t place = 0; place < states_.size(); ++place) {
    const OptimizerState* const state = states_[place].get();
    if (!state) continue;
    py::dict one;
    one["step"] = state->steps;
    for (std::size_t s = 0; s < state->memory.size(); ++s) {
      const py::dtype dtype =
          state->dtype == Dtype::kFloat64 ? py::dtype::of<double>() : py::dtype::of<float>();
      one[names[s]] =
          py::array(dtype, axes_of(*state), state->memory[s].data());  // without an owner: a copy
    }
    all[keys_[place]] = one;
  }
  return all;
}

void Optimizer::load(const py::dict& all) {
  const Turn turn(*this);
  turn.must_be_first();
  std::vector<py::str> keys;
  std::vector<std::unique_ptr<OptimizerState>> states;
  for (const auto& [key, value] : all) {
    const py::str name(key);
    states.push_back(read_state("the state of " + visible(name), value, settings_));
    keys.push_back(name);
  }
  place_ = py::dict();
  for (std::size_t i = 0; i < keys.size(); ++i) place_[keys[i]] = i;
  keys_ = std::move(keys);
  states_ = std::move(states);
  by_position_.clear();
  loaded_ = keys_.size();
}

std::size_t Optimizer::place_of(const Buffers& parameters, std::size_t number) {
  const std::int64_t position = parameters.position(number);
  const bool named = !parameters.is_flat();
  if (!named && position < std::int64_t(by_position_.size()) && by_position_[position] >= 0)
    return std::size_t(by_position_[position]);
  const py::str key = parameters.name(number);
  std::size_t place = states_.size();
  if (place_.contains(key)) {
    place = py::cast<std::size_t>(place_[key]);
  } else {
    place_[key] = place;
    keys_.push_back(key);
    states_.emplace_back();
  }
  if (!named) {
    if (position >= std::int64_t(by_position_.size())) by_position_.resize(position + 1, -1);
    by_position_[position] = std::int64_t(place);
  }
  return place;
}

void Optimizer::check(const Buffers& parameters, std::size_t number, OptimizerState* state) const {
  if (!state) return;
  const View& view = parameters.views[number];
  const std::int64_t* const end = view.shape + view.ndim;
  if (state->count == -1 ||
      (is_flat(*state) && state->count == view.count && state->dtype == view.dtype)) {
    state->count = view.count;
    state->dtype = view.dtype;
    state->shape.assign(view.shape, end);
    return;
  }
  const std::vector<std::int64_t>& shape = state->shape;
  if (state->dtype == view.dtype && std::equal(shape.begin(), shape.end(), view.shape, end)) return;
  const auto name = [](Dtype dtype) { return dtype == Dtype::kFloat64 ? "float64" : "float32"; };
  throw py::value_error(parameters.label(number) + " must have shape " + shape_of(axes_of(*state)) +
                        " and " + name(state->dtype) + " as in the steps before, not shape " +
                        shape_of({view.shape, end}) + " and " + name(view.dtype));
}

void register_optimizer(py::module_& module) {
  py::class_<Optimizer>(module, "Optimizer", "Steps and what they keep; see vegrad.optim.")
      .def(py::init([](const std::string& kind, double momentum, double dampening, bool nesterov,
                       double beta1, double beta2, double eps, double weight_decay, bool decoupled,
                       bool amsgrad, bool maximize) {
             return std::make_unique<Optimizer>(
                 OptimizerSettings{kind_of(kind), momentum, dampening, nesterov, beta1, beta2, eps,
                                   weight_decay, decoupled, amsgrad, maximize});
           }),
           py::arg("kind"), py::arg("momentum") = 0.0, py::arg("dampening") = 0.0,
           py::arg("nesterov") = false, py::arg("beta1") = 0.0, py::arg("beta2") = 0.0,
           py::arg("eps") = 0.0, py::arg("weight_decay") = 0.0, py::arg("decoupled") = false,
           py::arg("amsgrad") = false, py::arg("maximize") = false)
      .def("step", &Optimizer::step, py::arg("params"), py::arg("grads"), py::arg("rate"),
           py::arg("rule"), py::arg("limit"), py::arg("ord"), py::arg("nonfinite"), py::arg("eps"),
           py::arg("groups") = py::none(),
           "One step in place; the clip as in clip(), of all groups together.")
      .def("state", &Optimizer::state, "What is kept of each buffer, copied.")
      .def("load", &Optimizer::load, py::arg("state"), "Goes on from such a state.");
}

}  // namespace vegrad
