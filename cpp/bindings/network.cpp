// The network, for both dtypes behind one Python class.
#include "bindings/network.hpp"

#include <pybind11/stl.h>

#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "core/runtime/names.hpp"
#include "core/runtime/threads.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

Loss loss_of(const std::string& name) { return Loss(index_of(kLossNames, name, "loss")); }
Norm norm_of(const std::string& name) { return Norm(index_of(kNormNames, name, "norm")); }

// Views of the network's memory, which they keep alive.
py::dict views(const py::object& self, bool gradients) {
  return self.cast<const AnyNetwork&>().visit([&](auto& network) {
    using T = ElementOf<std::decay_t<decltype(network)>>;
    py::dict result;
    for (int l = 1; l <= network.shape().layers(); ++l) {
      const py::ssize_t I = network.shape().sizes[l - 1], O = network.shape().sizes[l];
      const std::string name = "layers." + std::to_string(l - 1);
      result[py::str(name + ".weight")] =
          py::array_t<T>({O, I}, gradients ? network.weight_gradient(l) : network.weight(l), self);
      result[py::str(name + ".bias")] =
          py::array_t<T>({O}, gradients ? network.bias_gradient(l) : network.bias(l), self);
    }
    return result;
  });
}

py::object forward(const AnyNetwork& self, const py::object& x) {
  return self.visit([&](auto& network) -> py::object {
    using T = ElementOf<std::decay_t<decltype(network)>>;
    const Batch<T> batch(network.shape(), x, nullptr);
    if (!batch.fits) return py::none();
    py::array_t<T> out({batch.B, network.shape().sizes.back()});
    T* const to = out.mutable_data();
    const WithoutGil released;
    network.forward(batch.x, batch.B, to);
    return out;
  });
}

std::optional<double> loss(const AnyNetwork& self, const py::object& x, const py::object& target) {
  return self.visit([&](auto& network) -> std::optional<double> {
    const Batch<ElementOf<std::decay_t<decltype(network)>>> batch(network.shape(), x, &target);
    if (!batch.fits) return std::nullopt;
    const WithoutGil released;
    return network.loss(batch.x, batch.B, batch.values, batch.labels);
  });
}

std::optional<double> backward(const AnyNetwork& self, const py::object& x,
                               const py::object& target, bool flow, int layers) {
  return self.visit([&](auto& network) -> std::optional<double> {
    const Batch<ElementOf<std::decay_t<decltype(network)>>> batch(network.shape(), x, &target);
    if (!batch.fits) return std::nullopt;
    const WithoutGil released;
    return network.backward(batch.x, batch.B, batch.values, batch.labels, flow, layers);
  });
}

py::object examine(const AnyNetwork& self, const py::object& x, const py::object& target) {
  return self.visit([&](auto& network) -> py::object {
    using T = ElementOf<std::decay_t<decltype(network)>>;
    const Batch<T> batch(network.shape(), x, &target);
    if (!batch.fits) return py::none();
    const py::ssize_t L = network.shape().layers(), B = batch.B;
    py::array_t<T> out({B, py::ssize_t(network.shape().sizes.back())});
    py::array_t<double> squares({L, B}), exponents(L);
    T* const to = out.mutable_data();
    const RowSquares rows{squares.mutable_data(), exponents.mutable_data()};
    const double loss = without_gil(
        [&] { return network.examine(batch.x, batch.B, batch.values, batch.labels, to, rows); });
    return py::make_tuple(loss, out, squares, exponents);
  });
}

py::object forward_kept(const AnyNetwork& self, const py::object& x) {
  return self.visit([&](auto& network) -> py::object {
    using T = ElementOf<std::decay_t<decltype(network)>>;
    const Batch<T> batch(network.shape(), x, nullptr);
    if (!batch.fits) return py::none();
    py::array_t<T> out({batch.B, network.shape().sizes.back()});
    T* const to = out.mutable_data();
    std::uint64_t pass;
    {
      const WithoutGil released;
      on_borrowed_threads([&] { pass = network.forward_kept(batch.x, batch.B, to); });
    }
    return py::make_tuple(out, pass);
  });
}

py::object backward_kept(const AnyNetwork& self, std::uint64_t pass, const py::object& x,
                         const py::object& gradient, bool delta_wanted,
                         const py::object& gradients) {
  return self.visit([&](auto& network) -> py::object {
    using T = ElementOf<std::decay_t<decltype(network)>>;
    const Batch<T> batch(network.shape(), x, &gradient);
    const auto* const place = fitting<T>(gradients, py::ssize_t(network.used()), -1);
    if (!batch.fits || !batch.values || !place) return py::none();
    T* const gradients_to = py::array_t<T>(gradients).mutable_data();  // throws if it is read-only
    const py::ssize_t rows = delta_wanted ? batch.B : 0;
    py::array_t<T> delta({rows, py::ssize_t(network.shape().sizes[1])});
    T* const to = delta_wanted ? delta.mutable_data() : nullptr;
    {
      const WithoutGil released;
      on_borrowed_threads(
          [&] { network.backward_kept(pass, batch.x, batch.B, batch.values, to, gradients_to); });
    }
    return delta;
  });
}

py::dict flow(const AnyNetwork& self) {
  return self.visit([](auto& network) {
    const FlowColumns columns = without_gil([&] { return network.flow(); });
    const auto array = [](const std::vector<double>& v) {
      return py::array_t<double>(py::ssize_t(v.size()), v.data());
    };
    py::dict result;
    result["activation_rms"] = array(columns.activation_rms);
    result["preactivation_mean"] = array(columns.preactivation_mean);
    result["preactivation_std"] = array(columns.preactivation_std);
    result["saturated"] = array(columns.saturated);
    result["dead"] = array(columns.dead);
    result["delta_log2"] = array(columns.delta_log2);
    result["gradient_log2"] = array(columns.gradient_log2);
    result["weight_gain_log2"] = array(columns.weight_gain_log2);
    result["activation_gain_log2"] = array(columns.activation_gain_log2);
    return result;
  });
}

std::size_t workspace_bytes(const AnyNetwork& self, int batch) {
  return self.visit([&](auto& network) { return network.workspace_bytes(batch); });
}

}  // namespace

AnyNetwork::AnyNetwork(const std::vector<int>& sizes, const std::string& activation,
                       const std::string& output, const std::string& loss,
                       const std::optional<std::string>& norm, bool residual,
                       const std::string& dtype) {
  NetworkShape shape{sizes,         activation_of(activation),      activation_of(output),
                     loss_of(loss), norm_of(norm.value_or("none")), residual};
  if (dtype == "float32")
    network_ = std::make_unique<Network<float>>(std::move(shape));
  else if (dtype == "float64")
    network_ = std::make_unique<Network<double>>(std::move(shape));
  else
    throw py::type_error("dtype must be float32 or float64, not " + dtype);
}

void register_network(py::module_& module) {
  std::vector<std::string> norms(std::begin(kNormNames) + 1, std::end(kNormNames));
  module.attr("NORMS") = py::tuple(py::cast(norms));
  std::vector<std::string> losses(std::begin(kLossNames), std::end(kLossNames) - 1);  // not given
  module.attr("LOSSES") = py::tuple(py::cast(losses));
  py::class_<AnyNetwork>(module, "Network", "The compiled part of vegrad.MLP.")
      .def(py::init<const std::vector<int>&, const std::string&, const std::string&,
                    const std::string&, const std::optional<std::string>&, bool,
                    const std::string&>(),
           py::arg("sizes"), py::arg("activation"), py::arg("output"), py::arg("loss"),
           py::arg("norm"), py::arg("residual"), py::arg("dtype"))
      .def("parameters", [](const py::object& self) { return views(self, false); })
      .def("gradients",
           [](const py::object& self) {
             return views(self, true);
           })  // These return None, having done nothing, if an argument is not an array as they
               // need.
      .def("forward", &forward, py::arg("x"))
      .def("loss", &loss, py::arg("x"), py::arg("target"))
      .def("backward", &backward, py::arg("x"), py::arg("target"), py::arg("flow"),
           py::arg("layers"))
      .def("examine", &examine, py::arg("x"), py::arg("target"))
      .def("forward_kept", &forward_kept, py::arg("x"))
      .def("backward_kept", &backward_kept, py::arg("number"), py::arg("x"), py::arg("gradient"),
           py::arg("delta"), py::arg("gradients"))
      .def("flow", &flow)
      .def("workspace_bytes", &workspace_bytes, py::arg("batch"));
}

}  // namespace vegrad
