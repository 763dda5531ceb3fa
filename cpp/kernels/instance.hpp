// All kernels, compiled for the instruction set of the file that includes this.
#pragma once

#include "kernels/cell.hpp"
#include "kernels/layer.hpp"
#include "kernels/product.hpp"
#include "kernels/run.hpp"
#include "kernels/small_batch.hpp"
#include "kernels/step.hpp"

namespace vegrad {
namespace {

template <class T>
constexpr Kernels<T> kernels_of_this_instruction_set() {
  return {kLanes<T>,
          kPanelColumns<T>,
          pack<T>,
          product<T>,
          small_batch_kernels<T>(),
          normalize<T>,
          normalize_backward<T>,
          add_skip<T>,
          write_gradient<T>,
          step_kernels<T>(),
          {
#define VEGRAD_ROW(name, ...) activation_kernels<T, name>(),
              VEGRAD_ACTIVATIONS(VEGRAD_ROW)
#undef VEGRAD_ROW
          },
          {cell_kernels<TanhCell, T>(), cell_kernels<ReluCell, T>(), cell_kernels<LstmCell, T>(),
           cell_kernels<GruCell, T>()}};
}

constexpr Runs runs_of_this_instruction_set() {
  return {run_kernels<float16>(), run_kernels<bfloat16>(), run_kernels<float>(),
          run_kernels<double>()};
}

}  // namespace
}  // namespace vegrad
