// Single kernels, for tests and benchmarks.
#include <pybind11/stl.h>

#include <cstring>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "core/network/matmul.hpp"
#include "core/runtime/dispatch.hpp"
#include "core/runtime/floating_point.hpp"
#include "core/runtime/memory.hpp"
#include "core/runtime/names.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

// The activations that have a form for the backward pass.
std::vector<std::string> kept_names() {
  std::vector<std::string> names;
  for (int i = 0; i < kActivationCount; ++i)
    if (instruction_set().kernels<float>().activation[i].map_kept)
      names.push_back(activation_names()[i]);
  return names;
}

template <class T>
py::tuple activate_as(Activation activation, const py::array& z, bool kept) {
  const T* const in = data_of<T>(z, "z");
  const std::size_t n = std::size_t(z.size());
  if (n > (1u << 30)) throw py::value_error("z must have at most 2^30 elements");
  py::array_t<T> h(z.size()), derivative(z.size());
  T *const h_out = h.mutable_data(), *const d_out = derivative.mutable_data();
  {
    const WithoutGil released;
    const FlushSubnormals flush;
    const ActivationKernels<T>& kernels = instruction_set().kernels<T>().activation[activation];
    if (!kept) {
      kernels.map(in, h_out, d_out, n);
    } else if (n > 0) {
      const Buffer<T> form(padded<T>(n)), output(padded<T>(n));
      std::memcpy(form.data(), in, n * sizeof(T));
      ForwardTile<T> tile{};
      tile.rows = 1;
      tile.columns = int(n);
      tile.z = form.data();
      tile.h = output.data();
      tile.keep = true;
      kernels.forward(tile);
      kernels.map_kept(form.data(), h_out, d_out, n);
    }
  }
  return py::make_tuple(h, derivative);
}

py::tuple activate(const std::string& name, const py::array& z, bool kept) {
  const Activation activation = activation_of(name);
  if (kept && !instruction_set().kernels<float>().activation[activation].map_kept)
    throw py::value_error(name + " has no form that is kept");
  return is_contiguous<float>(z) ? activate_as<float>(activation, z, kept)
                                 : activate_as<double>(activation, z, kept);
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
    const WithoutGil released;
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
  module.attr("KEPT") = py::tuple(py::cast(kept_names()));
  module.def("activate", &activate, py::arg("name"), py::arg("z"), py::arg("kept") = false,
             "φ(z) and φ′(z) of a contiguous float32 or float64 array, flat.\n\n"
             "kept: from the form in which a forward pass leaves z for the backward pass.");
  module.def("matmul", &matmul_of, py::arg("a"), py::arg("b"), py::arg("kind"),
             "The kernels' matrix product of contiguous arrays (M, N).\n\n"
             "kind nt: a (M, K), b (N, K); nn: a (M, K), b (K, N); tn: a (K, M), b (K, N).");
}

}  // namespace vegrad
