// Single kernels, for tests and benchmarks.
#include <pybind11/stl.h>

#include <cstring>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/register.hpp"
#include "core/dispatch.hpp"
#include "core/floating_point.hpp"
#include "core/matmul.hpp"
#include "core/names.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

template <class T>
py::tuple activate_as(Activation activation, const py::array& z) {
  const T* const in = data_of<T>(z, "z");
  py::array_t<T> h(z.size()), derivative(z.size());
  T *const h_out = h.mutable_data(), *const d_out = derivative.mutable_data();
  const std::size_t n = std::size_t(z.size());
  {
    const py::gil_scoped_release release;
    const FlushSubnormals flush;
    instruction_set().kernels<T>().activation[activation].map(in, h_out, d_out, n);
  }
  return py::make_tuple(h, derivative);
}

py::tuple activate(const std::string& name, const py::array& z) {
  const Activation activation = activation_of(name);
  return is_contiguous<float>(z) ? activate_as<float>(activation, z)
                                 : activate_as<double>(activation, z);
}

template <class T>
py::array matmul_as(const py::array& a, const py::array& b, const std::string& kind) {
  const T *const left = data_of<T>(a, "a"), *const right = data_of<T>(b, "b");
  if (a.ndim() != 2 || b.ndim() != 2) throw py::value_error("a and b must be 2-D");
  if (kind != "nt" && kind != "nn" && kind != "tn")
    throw py::value_error("kind must be nt, nn or tn, not '" + kind + "'");
  const bool a_transposed = kind[0] == 't', b_transposed = kind[1] == 't';
  const int m = int(a.shape(a_transposed ? 1 : 0)), k = int(a.shape(a_transposed ? 0 : 1));
  const int n = int(b.shape(b_transposed ? 0 : 1));
  if (b.shape(b_transposed ? 1 : 0) != k) throw py::value_error("a and b do not fit");
  py::array_t<T> c({m, n});
  T* const out = c.mutable_data();
  {
    const py::gil_scoped_release release;
    matmul<T>(m, n, k, left, a_transposed ? 1 : k, a_transposed ? m : 1, right,
              b_transposed ? 1 : n, b_transposed ? k : 1, out);
  }
  return c;
}

py::array matmul_of(const py::array& a, const py::array& b, const std::string& kind) {
  return is_contiguous<float>(a) ? matmul_as<float>(a, b, kind) : matmul_as<double>(a, b, kind);
}

}  // namespace

void register_kernels(py::module_& module) {
  module.attr("ACTIVATIONS") = py::tuple(py::cast(activation_names()));
  module.def("activate", &activate, py::arg("name"), py::arg("z"),
             "φ(z) and φ′(z) of a contiguous float32 or float64 array, flat.");
  module.def("matmul", &matmul_of, py::arg("a"), py::arg("b"), py::arg("kind"),
             "The kernels' matrix product of contiguous arrays (M, N).\n\n"
             "kind nt: a (M, K), b (N, K); nn: a (M, K), b (K, N); tn: a (K, M), b (K, N).");
}

}  // namespace vegrad
