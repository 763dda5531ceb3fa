// The network, for both dtypes behind one Python class.
#include "core/network.hpp"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/register.hpp"
#include "core/names.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

class AnyNetwork {
 public:
  AnyNetwork(const std::vector<int>& sizes, const std::string& activation,
             const std::string& output, const std::string& loss,
             const std::optional<std::string>& norm, bool residual, const std::string& dtype) {
    NetworkShape shape{sizes,         activation_of(activation),      activation_of(output),
                       loss_of(loss), norm_of(norm.value_or("none")), residual};
    if (dtype == "float32")
      network_ = std::make_unique<Network<float>>(std::move(shape));
    else if (dtype == "float64")
      network_ = std::make_unique<Network<double>>(std::move(shape));
    else
      throw py::type_error("dtype must be float32 or float64, not " + dtype);
  }

  template <class Body>
  auto visit(const Body& body) const {
    return std::visit([&](const auto& network) { return body(*network); }, network_);
  }

 private:
  std::variant<std::unique_ptr<Network<float>>, std::unique_ptr<Network<double>>> network_;
};

template <class T>
T element(const Network<T>&);
template <class N>
using ElementOf = decltype(element(std::declval<const N&>()));

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

template <class N>
int check_batch(const N& network, const py::array& x) {
  if (x.ndim() != 2 || x.shape(1) != network.shape().sizes.front() || x.shape(0) < 1)
    throw py::value_error("x must have shape (B, I)");
  if (x.shape(0) > (1 << 30)) throw py::value_error("x must have at most 2^30 rows");
  return int(x.shape(0));
}

// The target of a batch, as the pair of pointers of which the loss wants one.
template <class T>
struct Target {
  const T* values = nullptr;
  const std::int64_t* labels = nullptr;

  Target(const NetworkShape& shape, const py::array& target, int B) {
    const int O = shape.sizes.back();
    if (shape.loss == Loss::cross_entropy) {
      labels = data_of<std::int64_t>(target, "target");
      if (target.ndim() != 1 || target.shape(0) != B) throw py::value_error("target must be (B,)");
      for (int i = 0; i < B; ++i)
        if (labels[i] < 0 || labels[i] >= O) throw py::value_error("target out of range");
    } else {
      values = data_of<T>(target, "target");
      if (target.ndim() != 2 || target.shape(0) != B || target.shape(1) != O)
        throw py::value_error("target must be (B, O)");
    }
  }
};

py::array forward(const AnyNetwork& self, const py::array& x) {
  return self.visit([&](auto& network) -> py::array {
    using T = ElementOf<std::decay_t<decltype(network)>>;
    const int B = check_batch(network, x);
    const T* const in = data_of<T>(x, "x");
    py::array_t<T> out({B, network.shape().sizes.back()});
    T* const to = out.mutable_data();
    const py::gil_scoped_release release;
    network.forward(in, B, to);
    return out;
  });
}

double loss(const AnyNetwork& self, const py::array& x, const py::array& target) {
  return self.visit([&](auto& network) {
    using T = ElementOf<std::decay_t<decltype(network)>>;
    const int B = check_batch(network, x);
    const T* const in = data_of<T>(x, "x");
    const Target<T> to(network.shape(), target, B);
    const py::gil_scoped_release release;
    return network.loss(in, B, to.values, to.labels);
  });
}

double backward(const AnyNetwork& self, const py::array& x, const py::array& target, bool flow) {
  return self.visit([&](auto& network) {
    using T = ElementOf<std::decay_t<decltype(network)>>;
    const int B = check_batch(network, x);
    const T* const in = data_of<T>(x, "x");
    const Target<T> to(network.shape(), target, B);
    const py::gil_scoped_release release;
    return network.backward(in, B, to.values, to.labels, flow);
  });
}

py::dict flow(const AnyNetwork& self) {
  return self.visit([](auto& network) {
    const FlowColumns& columns = network.flow();
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

void register_network(py::module_& module) {
  std::vector<std::string> norms(std::begin(kNormNames) + 1, std::end(kNormNames));
  module.attr("NORMS") = py::tuple(py::cast(norms));
  std::vector<std::string> losses(std::begin(kLossNames), std::end(kLossNames));
  module.attr("LOSSES") = py::tuple(py::cast(losses));
  py::class_<AnyNetwork>(module, "Network", "The compiled part of vegrad.MLP.")
      .def(py::init<const std::vector<int>&, const std::string&, const std::string&,
                    const std::string&, const std::optional<std::string>&, bool,
                    const std::string&>(),
           py::arg("sizes"), py::arg("activation"), py::arg("output"), py::arg("loss"),
           py::arg("norm"), py::arg("residual"), py::arg("dtype"))
      .def("parameters", [](const py::object& self) { return views(self, false); })
      .def("gradients", [](const py::object& self) { return views(self, true); })
      .def("forward", &forward, py::arg("x"))
      .def("loss", &loss, py::arg("x"), py::arg("target"))
      .def("backward", &backward, py::arg("x"), py::arg("target"), py::arg("flow"))
      .def("flow", &flow)
      .def("workspace_bytes", &workspace_bytes, py::arg("batch"));
}

}  // namespace vegrad
