#include "core/network/pass.hpp"

#include <new>

namespace vegrad {

ParameterLayout::ParameterLayout(const NetworkShape& shape, std::size_t itemsize) {
  // Sizes whose products pass what an index can hold are as unlikely to fit as to be meant.
  double elements = 0;
  for (int l = 1; l <= shape.layers(); ++l)
    elements += (double(shape.sizes[l - 1]) + 1) * shape.sizes[l];
  if (elements > 0x1p56) throw std::bad_alloc();
  const std::size_t unit = kPadBytes / itemsize;
  const auto take = [&](std::size_t n) {
    const std::size_t at = size;
    size += (n + unit - 1) / unit * unit;
    return at;
  };
  weight_at.push_back(0);
  bias_at.push_back(0);
  for (int l = 1; l <= shape.layers(); ++l) {
    weight_at.push_back(take(std::size_t(shape.sizes[l]) * shape.sizes[l - 1]));
    bias_at.push_back(take(shape.sizes[l]));
  }
  used = bias_at.back() + shape.sizes.back();
}

FlowColumns::FlowColumns(int layers)
    : activation_rms(layers),
      preactivation_mean(layers),
      preactivation_std(layers),
      saturated(layers),
      dead(layers),
      delta_log2(layers),
      gradient_log2(layers),
      weight_gain_log2(std::max(layers - 1, 0)),
      activation_gain_log2(std::max(layers - 1, 0)) {}

template <class T>
Pass<T>::Pass(const NetworkShape& shape, const ParameterLayout& places, const T* parameters,
              T* gradients)
    : shape(shape),
      places(places),
      parameters(parameters),
      gradients(gradients),
      layers(shape.layers() + 1),
      flow(shape.layers()),
      gradient_squares(shape.layers()),
      expected_shifts(shape.layers() + 1) {}

template struct Pass<float>;
template struct Pass<double>;

}  // namespace vegrad
