// Tensors as they stand in DLPack's structures, read as views.
#pragma once

#include <cstdint>
#include <string>

#include "bindings/dlpack.hpp"
#include "core/buffers/buffers.hpp"

namespace vegrad {

inline bool on_cpu(dlpack::Device device) {
  return device.type == dlpack::kCpu || device.type == dlpack::kCudaHost ||
         device.type == dlpack::kRocmHost;
}

// Whether it is one of ours.
bool dtype_of(dlpack::DataType type, Dtype& dtype);

// What is wrong with the shape, the strides or the address that a tensor claims to have, as the end
// of a message; empty if nothing is. What passes can be walked over without an overflow.
std::string flaw_of(const dlpack::Tensor& tensor, std::int64_t itemsize);

// The shape as a copy of ours, of elements that follow each other in C order.
inline void copy_shape(const std::int64_t* shape, AxisStore& axes, View& view) {
  const int n = view.ndim;
  std::int64_t* const copy = axes.take(n);
  std::int64_t count = 1;
  for (int axis = 0; axis < n; ++axis) {
    const std::int64_t size = shape[axis];
    copy[axis] = size;
    count *= size;
  }
  view.shape = copy;
  view.count = count;
}

// Shape and strides (`unit` bytes each) as copies of ours; no strides if they say no more than the
// shape.
void copy_axes(const std::int64_t* shape, const std::int64_t* strides, std::int64_t unit,
               AxisStore& axes, View& view);

// All but the dtype, which is set already, of a tensor without a flaw.
void set_memory(const dlpack::Tensor& tensor, AxisStore& axes, View& view);

// Most tensors: contiguous, with memory, and so small that nothing overflows. True, and the view is
// set, if it is one; of others the view is untouched.
bool take_plain(const dlpack::Tensor& tensor, AxisStore& axes, View& view);

}  // namespace vegrad
