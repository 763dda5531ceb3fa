// The recurrent network, for both dtypes behind one Python class.
#include "bindings/recurrent.hpp"

#include <pybind11/stl.h>

#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "core/runtime/names.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

constexpr const char* kTargetNames[] = {"last", "all"};

// Views of the network's memory, which they keep alive.
py::dict views(const py::object& self, bool gradients) {
  return self.cast<const AnyRecurrent&>().visit([&](auto& network) {
    using T = RecurrentElement<std::decay_t<decltype(network)>>;
    const RecurrentShape& shape = network.shape();
    const py::ssize_t H = shape.hidden, GH = shape.gates() * H, O = shape.outputs;
    py::dict result;
    for (int l = 0; l < shape.layers; ++l) {
      const LayerWeights<T>& of = gradients ? network.gradients(l) : network.weights(l);
      const std::string end = "_l" + std::to_string(l);
      const py::ssize_t I = shape.inputs_of(l);
      result[py::str("rnn.weight_ih" + end)] = py::array_t<T>({GH, I}, of.weight_ih, self);
      result[py::str("rnn.weight_hh" + end)] = py::array_t<T>({GH, H}, of.weight_hh, self);
      result[py::str("rnn.bias_ih" + end)] = py::array_t<T>({GH}, of.bias_ih, self);
      result[py::str("rnn.bias_hh" + end)] = py::array_t<T>({GH}, of.bias_hh, self);
    }
    const HeadWeights<T>& head = gradients ? network.head_gradient() : network.head();
    result["head.weight"] = py::array_t<T>({O, H}, head.weight, self);
    result["head.bias"] = py::array_t<T>({O}, head.bias, self);
    return result;
  });
}

py::object forward(const AnyRecurrent& self, const py::object& x, const py::object& lengths,
                   const py::object& state) {
  return self.visit([&](auto& network) -> py::object {
    using T = RecurrentElement<std::decay_t<decltype(network)>>;
    const RecurrentShape& shape = network.shape();
    const SequenceBatch<T> batch(shape, x, lengths, state, nullptr);
    if (!batch.fits) return py::none();
    const py::ssize_t B = batch.all.rows, steps = batch.all.steps, O = shape.outputs;
    py::array_t<T> out(shape.targets_all ? std::vector<py::ssize_t>{B, steps, O}
                                         : std::vector<py::ssize_t>{B, O});
    T* const to = out.mutable_data();
    const WithoutGil released;
    if (batch.all.lengths) std::fill(to, to + out.size(), T(0));
    network.forward(batch.all, to);
    return out;
  });
}

std::optional<double> loss(const AnyRecurrent& self, const py::object& x, const py::object& target,
                           const py::object& lengths, const py::object& state) {
  return self.visit([&](auto& network) -> std::optional<double> {
    using T = RecurrentElement<std::decay_t<decltype(network)>>;
    const SequenceBatch<T> batch(network.shape(), x, lengths, state, &target);
    if (!batch.fits) return std::nullopt;
    const WithoutGil released;
    return network.loss(batch.all);
  });
}

TimeWindow window_of(const std::optional<std::pair<int, int>>& window) {
  if (!window) return {};
  if (window->first < 1 || window->second < window->first)
    throw py::value_error("window must be (k1, k2) with 1 <= k1 <= k2");
  return {window->first, window->second};
}

std::optional<double> backward(const AnyRecurrent& self, const py::object& x,
                               const py::object& target, const py::object& lengths,
                               const py::object& state,
                               const std::optional<std::pair<int, int>>& window,
                               const py::object& factors, bool flow, int losses_from) {
  return self.visit([&](auto& network) -> std::optional<double> {
    using T = RecurrentElement<std::decay_t<decltype(network)>>;
    const SequenceBatch<T> batch(network.shape(), x, lengths, state, &target);
    const double* const of_steps =
        factors.is_none() || !batch.fits ? nullptr : shaped<double>(factors, {batch.all.steps});
    if (!batch.fits || (!factors.is_none() && !of_steps)) return std::nullopt;
    const TimeWindow asked = window_of(window);
    if (losses_from < 0 || losses_from >= batch.all.steps ||
        (losses_from > 0 && (window || !network.shape().targets_all)))
      throw py::value_error("losses_from must be a step, without a window, with targets at all");
    const WithoutGil released;
    return network.backward(batch.all, asked, of_steps, flow, losses_from);
  });
}

py::tuple state(const AnyRecurrent& self) {
  return self.visit([&](auto& network) -> py::tuple {
    using T = RecurrentElement<std::decay_t<decltype(network)>>;
    const RecurrentShape& shape = network.shape();
    const auto found = without_gil([&] { return network.state(); });
    const std::vector<py::ssize_t> axes{shape.layers, found.rows, shape.hidden};
    const py::array_t<T> h(axes, found.h.data());
    if (shape.has_c()) return py::make_tuple(h, py::array_t<T>(axes, found.c.data()));
    return py::make_tuple(h);
  });
}

py::dict flow(const AnyRecurrent& self) {
  return self.visit([](auto& network) {
    const TimeFlowColumns flow = without_gil([&] { return network.flow(); });
    const py::ssize_t L = network.shape().layers;
    const auto array = [L](const std::vector<double>& v) {
      return py::array_t<double>({L, py::ssize_t(v.size()) / L}, v.data());
    };
    py::dict result;
    result["delta_log2"] = array(flow.delta);
    result["gain_log2"] = array(flow.gain);
    result["cell_gain_log2"] = array(flow.cell_gain);
    result["carry_log2"] = array(flow.carry);
    result["matrix_log2"] = array(flow.matrix);
    result["hidden_log2"] = array(flow.hidden);
    result["carry_mean"] = array(flow.carry_mean);
    return result;
  });
}

std::size_t workspace_bytes(const AnyRecurrent& self, int batch, int steps, int window) {
  return self.visit([&](auto& network) {
    return network.workspace_bytes(batch, steps,
                                   {std::min(window, steps), std::min(window, steps)});
  });
}

}  // namespace

AnyRecurrent::AnyRecurrent(int inputs, int hidden, int outputs, const std::string& cell, int layers,
                           const std::string& targets, const std::string& loss,
                           const std::string& dtype) {
  if (inputs < 1 || hidden < 1 || outputs < 1 || layers < 1)
    throw py::value_error("inputs, hidden, outputs and layers must be at least 1");
  const RecurrentShape shape{inputs,
                             hidden,
                             outputs,
                             Cell(index_of(kCellNames, cell, "cell")),
                             layers,
                             index_of(kTargetNames, targets, "targets") == 1,
                             Loss(index_of(kLossNames, loss, "loss"))};
  if (dtype == "float32")
    network_ = std::make_unique<Recurrent<float>>(shape);
  else if (dtype == "float64")
    network_ = std::make_unique<Recurrent<double>>(shape);
  else
    throw py::type_error("dtype must be float32 or float64, not " + dtype);
}

void register_recurrent(py::module_& module) {
  module.attr("CELLS") =
      py::tuple(py::cast(std::vector<std::string>(std::begin(kCellNames), std::end(kCellNames))));
  py::class_<AnyRecurrent>(module, "Recurrent", "The compiled part of vegrad.RNN.")
      .def(py::init<int, int, int, const std::string&, int, const std::string&, const std::string&,
                    const std::string&>(),
           py::arg("inputs"), py::arg("hidden"), py::arg("outputs"), py::arg("cell"),
           py::arg("layers"), py::arg("targets"), py::arg("loss"), py::arg("dtype"))
      .def("parameters", [](const py::object& self) { return views(self, false); })
      .def("gradients", [](const py::object& self) { return views(self, true); })
      // These return None, having done nothing, if an argument is not an array as they need.
      .def("forward", &forward, py::arg("x"), py::arg("lengths"), py::arg("state"))
      .def("loss", &loss, py::arg("x"), py::arg("target"), py::arg("lengths"), py::arg("state"))
      .def("backward", &backward, py::arg("x"), py::arg("target"), py::arg("lengths"),
           py::arg("state"), py::arg("window"), py::arg("factors"), py::arg("flow"),
           py::arg("losses_from") = 0)
      .def("state", &state)
      .def("flow", &flow)
      .def("workspace_bytes", &workspace_bytes, py::arg("batch"), py::arg("steps"),
           py::arg("window"));
}

}  // namespace vegrad
