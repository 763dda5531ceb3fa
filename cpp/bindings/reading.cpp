#include "bindings/reading.hpp"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace vegrad {
namespace {

std::string tuple_of(const std::int64_t* numbers, int n) {
  py::tuple all(n);
  for (int i = 0; i < n; ++i) all[i] = numbers[i];
  return py::str(all);
}

}  // namespace

bool dtype_of(dlpack::DataType type, Dtype& dtype) {
  const auto [code, bits, lanes] = type;
  if (lanes != 1) return false;
  if (code == dlpack::kBfloat && bits == 16)
    dtype = Dtype::kBfloat16;
  else if (code == dlpack::kFloat && (bits == 16 || bits == 32 || bits == 64))
    dtype = bits == 16 ? Dtype::kFloat16 : bits == 32 ? Dtype::kFloat32 : Dtype::kFloat64;
  else
    return false;
  return true;
}

std::string flaw_of(const dlpack::Tensor& tensor, std::int64_t itemsize) {
  const std::int32_t ndim = tensor.ndim;
  if (ndim < 0 || ndim > kMostAxes)
    return "must have from 0 to " + std::to_string(kMostAxes) + " axes, not " +
           std::to_string(ndim);
  if (ndim > 0 && !tensor.shape)
    return "must have a shape, not a null pointer for " + std::to_string(ndim) + " axes";
  std::int64_t bytes = itemsize, below = 0, above = 0;
  bool empty = false, fits = true;
  for (int axis = 0; axis < ndim; ++axis) {
    const std::int64_t size = tensor.shape[axis];
    if (size < 0) return "must have no negative size, not shape " + tuple_of(tensor.shape, ndim);
    empty |= size == 0;
    if (size == 0) continue;  // the others must fit all the same, as NumPy wants it, too
    if (__builtin_mul_overflow(bytes, size, &bytes))
      return "must have less than 2^63 bytes, not shape " + tuple_of(tensor.shape, ndim);
    if (!tensor.strides || size == 1) continue;
    std::int64_t step, length;
    fits &= !__builtin_mul_overflow(tensor.strides[axis], itemsize, &step) &&
            !__builtin_mul_overflow(step, size, &length);
    if (fits) length -= step;
    std::int64_t& end = fits && step < 0 ? below : above;
    fits &= fits && !__builtin_add_overflow(end, length, &end);
    if (!fits)
      return "must lie within 2^63 bytes, not at strides " + tuple_of(tensor.strides, ndim);
  }
  if (empty || !tensor.data) return {};
  if (!tensor.strides) above = bytes - itemsize;
  std::uint64_t first, last;
  if (__builtin_add_overflow(std::uint64_t(tensor.data), tensor.byte_offset, &first) ||
      first < 0 - std::uint64_t(below) ||
      __builtin_add_overflow(first, std::uint64_t(above) + std::uint64_t(itemsize), &last) ||
      last > std::uint64_t(INT64_MAX))
    return "must lie within the address space, not " + std::to_string(tensor.byte_offset) +
           " bytes behind address " + std::to_string(std::uint64_t(tensor.data));
  return {};
}

void copy_axes(const std::int64_t* shape, const std::int64_t* strides, std::int64_t unit,
               AxisStore& axes, View& view) {
  copy_shape(shape, axes, view);
  if (!strides) return;
  const int n = view.ndim;
  std::int64_t* const copy = axes.take(n);
  std::int64_t expected = view.itemsize();
  bool contiguous = true;
  for (int axis = n - 1; axis >= 0; --axis) {
    const std::int64_t size = view.shape[axis];
    // Of a single element the stride means nothing, and may be anything.
    const std::int64_t stride = size == 1 ? 0 : strides[axis] * unit;
    copy[axis] = stride;
    contiguous &= size == 1 || stride == expected;
    expected *= size;
  }
  if (!contiguous) view.strides = copy;
}

void set_memory(const dlpack::Tensor& tensor, AxisStore& axes, View& view) {
  // In numbers: an offset that is nonsense (of a tensor without elements) may wrap.
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.data);
  view.data = begin ? reinterpret_cast<char*>(begin + tensor.byte_offset) : nullptr;
  view.ndim = tensor.ndim;
  copy_axes(tensor.shape, tensor.strides, view.itemsize(), axes, view);
}

bool take_plain(const dlpack::Tensor& tensor, AxisStore& axes, View& view) {
  constexpr std::int64_t kMost = std::int64_t(1) << 40;  // elements
  constexpr std::uint64_t kHighest = std::uint64_t(1) << 62;
  const int n = tensor.ndim;
  Dtype dtype;
  if (tensor.device.type != dlpack::kCpu || !tensor.data || tensor.byte_offset != 0 || n < 0 ||
      n > kMostAxes || (n > 0 && !tensor.shape) || !dtype_of(tensor.dtype, dtype) ||
      std::uint64_t(tensor.data) > kHighest)
    return false;
  std::int64_t count = 1;
  for (int axis = n - 1; axis >= 0; --axis) {
    const std::int64_t size = tensor.shape[axis];
    if (size <= 0 || (tensor.strides && size != 1 && tensor.strides[axis] != count)) return false;
    if (__builtin_mul_overflow(count, size, &count) || count > kMost) return false;
  }
  view.dtype = dtype;
  view.data = static_cast<char*>(tensor.data);
  view.ndim = n;
  copy_shape(tensor.shape, axes, view);
  return true;
}

}  // namespace vegrad
