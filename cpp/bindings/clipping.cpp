// Norms, measurements and clipping of anyone's buffers.

#include "bindings/clipping.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "core/buffers/statistics.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

py::handle g_nonfinite_error;  // the exception's type, which lives as long as the module

py::array_t<double> as_array(const std::vector<double>& values) {
  return py::array_t<double>(py::ssize_t(values.size()), values.data());
}

py::tuple index_tuple(const View& view, std::int64_t flat) {
  return py::tuple(py::cast(index_of(view, flat)));
}

std::vector<Scaled> sums_of(const Buffers& buffers, Order order) {
  const WithoutGil released;
  return power_sums(buffers.views, cut(buffers.views), order);
}

double norm(const py::object& object, double p) {
  const KeepSubnormals keep;
  const Buffers buffers("buffers", object, false);
  const Order order{p};
  if (buffers.size() == 1) {
    const WithoutGil released;
    return value(order.root(power_sum(buffers.views[0], order)));
  }
  return value(order.root(total(sums_of(buffers, order), order)));
}

py::array_t<double> norms(const py::object& object, double p) {
  const KeepSubnormals keep;
  const Buffers buffers("buffers", object, false);
  const Order order{p};
  py::array_t<double> out(py::ssize_t(buffers.size()));
  double* values = out.mutable_data();
  for (const Scaled& sum : sums_of(buffers, order)) *values++ = value(order.root(sum));
  return out;
}

const char* dtype_name(Dtype dtype) {
  static constexpr const char* kNames[] = {"float16", "bfloat16", "float32", "float64"};
  return kNames[int(dtype)];
}

py::dict histogram_of(const std::vector<const Histogram*>& histograms) {
  py::dict counts;
  for (int e = Histogram::kLowest; e <= Histogram::kHighest; ++e) {
    std::int64_t n = 0;
    for (const Histogram* one : histograms) n += (*one)[e];
    if (n > 0) counts[py::int_(e)] = n;
  }
  return counts;
}

py::dict described(const Statistics& s) {
  constexpr Order order{};
  const double n = double(s.count), missing = std::numeric_limits<double>::quiet_NaN();
  const Scaled norm = order.root(s.squares);
  py::dict out;
  out["count"] = s.count;
  out["norm"] = value(norm);
  out["norm_log2"] = log2_of(norm);
  out["rms"] = s.count ? value({norm.sum / std::sqrt(n), norm.exponent}) : missing;
  out["mean"] = s.count ? value({s.sum.sum / n, s.sum.exponent}) : missing;
  out["largest"] = s.infs + s.nans < s.count ? s.largest : missing;
  out["smallest"] = s.smallest < std::numeric_limits<double>::infinity() ? s.smallest : missing;
  out["zeros"] = s.zeros;
  out["subnormals"] = s.subnormals;
  out["infs"] = s.infs;
  out["nans"] = s.nans;
  return out;
}

// (names, a dictionary for each buffer, one for all)
py::tuple measure(const py::object& object, bool with_histogram) {
  const KeepSubnormals keep;
  const Buffers buffers("buffers", object, false);
  std::vector<Histogram> histograms(with_histogram ? buffers.size() : 0);
  std::vector<Statistics> found;
  std::vector<std::int64_t> first(buffers.size(), -1);
  {
    const WithoutGil released;
    found = statistics(buffers.views, histograms);
    double ignored;
    for (std::size_t b = 0; b < found.size(); ++b)
      if (found[b].infs + found[b].nans > 0) first[b] = first_nonfinite(buffers.views[b], ignored);
  }
  const py::list names = buffers.names();
  py::list parts;
  Statistics all;
  py::object first_of_all = py::none(), dtype_of_all = py::none();
  std::vector<const Histogram*> pointers;
  for (std::size_t b = 0; b < found.size(); ++b) {
    all = together(all, found[b]);
    py::dict part = described(found[b]);
    part["first_nonfinite"] = py::none();
    if (first[b] >= 0) {
      const py::tuple index = index_tuple(buffers.views[b], first[b]);
      part["first_nonfinite"] = index;
      if (first_of_all.is_none()) first_of_all = py::make_tuple(names[b], index);
    }
    const py::str dtype = dtype_name(buffers.views[b].dtype);
    part["dtype"] = dtype;
    if (dtype_of_all.is_none())
      dtype_of_all = dtype;
    else if (!dtype_of_all.equal(dtype))
      dtype_of_all = py::str("mixed");
    part["histogram"] = py::none();
    if (with_histogram) {
      part["histogram"] = histogram_of({&histograms[b]});
      pointers.push_back(&histograms[b]);
    }
    parts.append(part);
  }
  py::dict joint = described(all);
  joint["first_nonfinite"] = first_of_all;
  joint["dtype"] = dtype_of_all.is_none() ? py::object(py::str("")) : dtype_of_all;
  joint["histogram"] = with_histogram ? py::object(histogram_of(pointers)) : py::none();
  return py::make_tuple(names, parts, joint);
}

// The names by which a rule keeps something of each buffer.
py::list names(const py::object& object) {
  const Buffers grads("grads", object, false);
  const py::list all = grads.names();
  py::dict places;
  for (std::size_t i = 0; i < grads.size(); ++i) {
    if (places.contains(all[i])) grads.refuse_one_name(py::cast<std::size_t>(places[all[i]]), i);
    places[all[i]] = i;
  }
  return all;
}

NonFinite policy_of(const std::string& name) {
  if (name == "raise") return NonFinite::kRaise;
  if (name == "skip") return NonFinite::kSkip;
  if (name == "zero") return NonFinite::kZero;
  if (name == "propagate") return NonFinite::kPropagate;
  throw py::value_error("nonfinite must be raise, skip, zero or propagate, not '" + name + "'");
}

Rule rule_of(const std::string& name) {
  if (name == "none") return Rule::kNone;
  if (name == "value") return Rule::kValue;
  if (name == "norm") return Rule::kNorm;
  if (name == "global_norm") return Rule::kGlobalNorm;
  if (name == "block_rms") return Rule::kBlockRms;
  if (name == "limits") return Rule::kLimits;
  if (name == "adaptive") return Rule::kAdaptive;
  throw py::value_error("unknown rule '" + name + "'");
}

Clipped clip_with(const std::string& rule, const py::object& object, const py::object& limit,
                  double p, const std::string& nonfinite, const py::object& parameters, double eps,
                  bool after) {
  const bool only_measured = limit.is_none() && nonfinite != "zero";
  Buffers grads("grads", object, !only_measured);
  std::optional<Buffers> matched;
  if (rule == "adaptive") matched.emplace(grads.matched("params", parameters, false));
  if (!only_measured) refuse_overlap(grads, matched ? &*matched : nullptr);
  Asked asked({rule, limit, p, eps, nonfinite}, grads.size());
  if (matched) asked.request.parameters = matched->views.data();
  asked.request.after_wanted = after;
  FirstNonFinite first;
  Clipped result;
  {
    const WithoutGil released;
    together_on(grads.views, [&] { result = clip(grads.views, asked.request, first); });
  }
  if (first.buffer >= 0) raise_nonfinite(grads, first, result.nonfinite);
  return result;
}

// The gradients of parameters, by their joint norm: (all that were found, what was done). A norm of
// theirs has no `slack`; with one, the factor is that of PyTorch, limit / (norm + slack).
py::tuple clip_gradients(const py::list& parameters, double limit, double p,
                         const std::string& nonfinite, double slack) {
  Request request{};
  request.rule = Rule::kGlobalNorm;
  request.order = {p};
  request.nonfinite = policy_of(nonfinite);
  request.limit = limit;
  request.after_wanted = request.norms_wanted = false;
  request.float_factor = slack > 0;
  if (slack > 0)
    request.choose = [limit, slack](double norm) {
      const double factor = limit / (norm + slack);
      // A factor of NaN, of an infinite limit and an infinite norm, is one for PyTorch.
      return factor >= 1            ? std::numeric_limits<double>::infinity()
             : std::isfinite(norm)  ? norm * factor
             : std::isfinite(limit) ? limit
                                    : std::numeric_limits<double>::quiet_NaN();
    };
  py::list present;
  Clipped result;
  together_over(parameters.size(), [&] {
    Buffers grads("grads", parameters, "grad", true);
    refuse_overlap(grads, nullptr);
    present = grads.present();
    if (grads.size() == 0) return;
    FirstNonFinite first;
    {
      const WithoutGil released;
      together_on(grads.views, [&] { result = clip(grads.views, request, first); });
    }
    if (first.buffer >= 0) raise_nonfinite(grads, first, result.nonfinite);
  });
  return py::make_tuple(present, std::move(result));
}

std::string shown(const Clipped& c) {
  char text[160];
  std::snprintf(text, sizeof text, "Clipped(norm=%.6g, norm_after=%.6g, coefficient=%.6g, ",
                std::fabs(c.norm), std::fabs(c.norm_after),
                std::fabs(c.coefficient));  // NaN has no sign
  return text + std::string("clipped=") + (c.clipped ? "True" : "False") +
         ", skipped=" + (c.skipped ? "True" : "False") +
         ", nonfinite=" + std::to_string(c.nonfinite) + ")";
}

}  // namespace

Asked::Asked(const RuleArguments& arguments, std::size_t buffers) {
  request.rule = rule_of(arguments.rule);
  request.order = {arguments.ord};
  request.nonfinite = policy_of(arguments.nonfinite);
  request.eps = arguments.eps;
  const py::object& limit = arguments.limit;
  if (request.rule == Rule::kLimits) {
    limits_ = limit.cast<std::vector<double>>();
    if (limits_.size() != buffers)
      throw py::value_error("limits must be one a buffer: " + std::to_string(buffers) + ", not " +
                            std::to_string(limits_.size()));
    request.limits = limits_.data();
  } else if (PyCallable_Check(limit.ptr())) {
    request.choose = [limit](double norm) {
      const WithGil held;
      const auto chosen = py::reinterpret_steal<py::object>(ask_python(limit.ptr(), norm));
      if (!chosen) throw py::error_already_set();
      return chosen.is_none() ? std::numeric_limits<double>::infinity() : chosen.cast<double>();
    };
  } else if (!limit.is_none()) {
    request.limit = limit.cast<double>();
  }
}

void raise_nonfinite(const Buffers& grads, const FirstNonFinite& first, std::int64_t count) {
  const py::tuple index = index_tuple(grads.views[first.buffer], first.flat);
  const std::string value = first.value != first.value ? "nan" : first.value > 0 ? "inf" : "-inf";
  std::string message = grads.label(first.buffer) + " must be finite, but is " + value;
  if (index.size() > 0) message += " at " + std::string(py::str(index));
  if (count > 1) message += ", the first of " + std::to_string(count) + " such elements";
  const py::object error = g_nonfinite_error(message + "; nothing has been changed");
  error.attr("name") = grads.key(first.buffer);
  error.attr("index") = index;
  PyErr_SetObject(g_nonfinite_error.ptr(), error.ptr());
  throw py::error_already_set();
}

namespace {

// Where buffers lie, if that is all there is to say of them: from where, how many bytes.
using Places = std::vector<std::pair<const char*, std::int64_t>>;

bool has_place(const View& view) {
  for (int axis = 0; view.strides && axis < view.ndim; ++axis)
    if (view.strides[axis] < 0) return false;
  return view.dense;
}

Places::value_type place_of(const View& view) { return {view.data, view.count * view.itemsize()}; }

// Whether the views lie at the places from number `first`.
bool lie_at(const std::vector<View>& views, const Places& places, std::size_t first) {
  for (std::size_t i = 0; i < views.size(); ++i)
    if (!has_place(views[i]) || place_of(views[i]) != places[first + i]) return false;
  return true;
}

bool add_places(const std::vector<View>& views, Places& places) {
  for (const View& view : views) {
    if (!has_place(view)) return false;
    places.push_back(place_of(view));
  }
  return true;
}

}  // namespace

void refuse_overlap(const Buffers& written, const Buffers* read) {
  // Most lie where they lay at the last step: that is seen sooner than that they are apart.
  thread_local Places apart;
  thread_local std::size_t apart_written = 0;  // the others were only read, and may overlap
  const std::size_t count = written.size() + (read ? read->size() : 0);
  if (count == apart.size() && written.size() == apart_written && lie_at(written.views, apart, 0) &&
      (!read || lie_at(read->views, apart, written.size())))
    return;
  Places places;
  places.reserve(count);
  const bool comparable =
      add_places(written.views, places) && (!read || add_places(read->views, places));
  const auto pair = read ? find_overlap(written.views, read->views) : find_overlap(written.views);
  if (!pair) {
    if (comparable) {
      apart = std::move(places);
      apart_written = written.size();
    }
    return;
  }
  const auto label = [&](std::size_t number) {
    return number < written.size() ? written.label(number) : read->label(number - written.size());
  };
  if (pair->first == pair->second)
    throw py::value_error(label(pair->first) +
                          " must not overlap itself: some of its elements are the same memory");
  throw py::value_error(label(pair->first) + " and " + label(pair->second) +
                        " must not overlap, but share memory");
}

void register_clipping(py::module_& module) {
  g_nonfinite_error = PyErr_NewExceptionWithDoc(
      "vegrad.NonFiniteGradientError",
      "A gradient has an element that is inf or NaN, and nothing has been changed.\n\n"
      "name: the buffer's name in a mapping, its position in a sequence, its path such as\n"
      "\"layers.0.weight\" where they are nested, or None if there is only one.\n"
      "index: the first such element, a tuple.",
      PyExc_ValueError, nullptr);
  if (!g_nonfinite_error) throw py::error_already_set();
  module.attr("NonFiniteGradientError") = g_nonfinite_error;
  py::class_<Clipped>(module, "Clipped", "What a clipping function found and did.")
      .def_readonly("norm", &Clipped::norm, "Joint norm before.")
      .def_readonly("norm_after", &Clipped::norm_after, "Joint norm of what is there now.")
      .def_property_readonly(
          "norms", [](const Clipped& c) { return as_array(c.norms); },
          "Norm of each buffer before; float64.")
      .def_readonly("coefficient", &Clipped::coefficient,
                    "Smallest factor that any element was multiplied by; 1 if nothing was clipped.")
      .def_readonly("clipped", &Clipped::clipped, "Whether anything was above its limit.")
      .def_readonly("skipped", &Clipped::skipped,
                    "Whether nothing was done because an element is not finite, or because the "
                    "rule leaves out the step.")
      .def_readonly("nonfinite", &Clipped::nonfinite,
                    "How many elements are not finite; 0 after a step without a clip, which "
                    "does not look.")
      .def_readonly("dtypes", &Clipped::dtypes,
                    "The buffers' dtypes, a bit each: float16, bfloat16, float32, float64.")
      .def("__repr__", &shown)
      .def(py::pickle(
          [](const Clipped& c) {
            return py::make_tuple(c.norm, c.norm_after, c.coefficient, c.clipped, c.skipped,
                                  c.nonfinite, c.norms, c.dtypes);
          },
          [](const py::tuple& t) {
            if (t.size() != 8) throw py::value_error("the state must be that of a Clipped");
            return Clipped{t[0].cast<double>(),
                           t[1].cast<double>(),
                           t[2].cast<double>(),
                           t[3].cast<bool>(),
                           t[4].cast<bool>(),
                           t[5].cast<std::int64_t>(),
                           t[6].cast<std::vector<double>>(),
                           t[7].cast<unsigned>()};
          }));
  module.def("norm", &norm, py::arg("buffers"), py::arg("ord"),
             "The joint norm of buffers; see vegrad.norm.");
  module.def("norms", &norms, py::arg("buffers"), py::arg("ord"),
             "The norm of each buffer; see vegrad.norms.");
  module.def("measure", &measure, py::arg("buffers"), py::arg("histogram"),
             "Names, statistics of each buffer, and of all; see vegrad.measure.");
  module.def("names", &names, py::arg("grads"),
             "The name or path of each buffer; ValueError if two have the same.");
  module.def("clip", &clip_with, py::arg("rule"), py::arg("grads"), py::arg("limit"),
             py::arg("ord") = 2.0, py::arg("nonfinite") = "raise", py::arg("params") = py::none(),
             py::arg("eps") = 0.0, py::arg("after") = true,
             "Clip in place; see vegrad.clipping. Without `after`, norm_after may be NaN.");
  module.def("clip_gradients", &clip_gradients, py::arg("parameters"), py::arg("limit"),
             py::arg("ord"), py::arg("nonfinite"), py::arg("slack"),
             "Clip the joint norm of `.grad` in place; returns the gradients, and what was done "
             "without norms of each.");
}

}  // namespace vegrad
