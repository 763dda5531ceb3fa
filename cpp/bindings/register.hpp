// One register_* function a concept; module.cpp is their table of contents.
#pragma once

#include <pybind11/pybind11.h>

namespace vegrad {

void register_runtime(pybind11::module_& module);
void register_kernels(pybind11::module_& module);
void register_cells(pybind11::module_& module);
void register_network(pybind11::module_& module);
void register_recurrent(pybind11::module_& module);
void register_recurrent_layer(pybind11::module_& module);
void register_clipping(pybind11::module_& module);
void register_optimizer(pybind11::module_& module);
void register_parameters(pybind11::module_& module);
void register_tables(pybind11::module_& module);
void register_training(pybind11::module_& module);
void register_visible(pybind11::module_& module);
void register_watch(pybind11::module_& module);
void register_quiet(pybind11::module_& module);

}  // namespace vegrad
