#include "bindings/register.hpp"
#include "core/runtime/dispatch.hpp"
#include "core/runtime/threads.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
  module.doc() = "The compiled core of vegrad; see _core.pyi.";
  module.attr("__version__") = VEGRAD_VERSION;
  try {
    vegrad::read_thread_environment();
    if (const char* forced = std::getenv("VEGRAD_ISA")) vegrad::use_instruction_set(forced);
    vegrad::read_matrix_unit_environment();
  } catch (const std::invalid_argument& error) {
    throw py::import_error(std::string("vegrad cannot start: ") + error.what());
  }
  vegrad::register_runtime(module);
  vegrad::register_kernels(module);
  vegrad::register_cells(module);
  vegrad::register_network(module);
  vegrad::register_recurrent(module);
  vegrad::register_recurrent_layer(module);
  vegrad::register_clipping(module);
  vegrad::register_optimizer(module);
  vegrad::register_parameters(module);
  vegrad::register_tables(module);
  vegrad::register_training(module);
  vegrad::register_visible(module);
  vegrad::register_watch(module);
  vegrad::register_quiet(module);
}
