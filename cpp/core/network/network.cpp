#include "core/network/network.hpp"

#include <mutex>

#include "core/network/backward.hpp"
#include "core/network/forward.hpp"
#include "core/runtime/floating_point.hpp"

namespace vegrad {
namespace {

// Calls body(first row, rows) for the pieces in which a batch goes forward.
template <class T, class Body>
void in_pieces(Pass<T>& pass, const T* x, int B, const Body& body) {
  const int I = pass.shape.sizes.front();
  prepare(pass, std::min(B, kInferenceRows), false, false);
  for (int begin = 0; begin < B; begin += kInferenceRows) {
    const int rows = std::min(kInferenceRows, B - begin);
    forward_pass(pass, x + std::ptrdiff_t(begin) * I, rows);
    body(begin, rows);
  }
}

}  // namespace

template <class T>
Network<T>::Network(NetworkShape shape)
    : shape_(std::move(shape)),
      places_(shape_, sizeof(T)),
      parameters_(places_.size),
      gradients_(places_.size),
      training_(shape_, places_, parameters_.data(), gradients_.data()),
      inference_(shape_, places_, parameters_.data(), gradients_.data()) {}

template <class T>
void Network<T>::forward(const T* x, int B, T* out) {
  const std::lock_guard<WorkLock> lock(running_);
  const FlushSubnormals flush;
  const int O = shape_.sizes.back();
  ++number_;
  in_pieces(inference_, x, B, [&](int begin, int rows) {
    copy_unpadded(inference_.output, rows, O, out + std::ptrdiff_t(begin) * O);
  });
}

template <class T>
double Network<T>::loss(const T* x, int B, const T* values, const std::int64_t* labels) {
  const std::lock_guard<WorkLock> lock(running_);
  const FlushSubnormals flush;
  const int O = shape_.sizes.back();
  ++number_;
  double sum = 0;
  in_pieces(inference_, x, B, [&](int begin, int rows) {
    const ScaledMatrix<T>& out = inference_.output;
    const Target<T> target{values ? values + std::ptrdiff_t(begin) * O : nullptr,
                           labels ? labels + begin : nullptr};
    for (int i = 0; i < rows; ++i)
      sum += loss_row<T, T>(shape_.loss, target.row(out, O, i, out.exponent), 1.0, nullptr);
  });
  return sum * shape_.loss_scale(B);
}

template <class T>
double Network<T>::backward(const T* x, int B, const T* values, const std::int64_t* labels,
                            bool flow, int layers) {
  const std::lock_guard<WorkLock> lock(running_);
  const FlushSubnormals flush;
  const int lowest = std::max(1, shape_.layers() - layers + 1);
  ++number_;
  prepare(training_, B, true, flow && lowest == 1);
  forward_pass(training_, x, B);
  return backward_pass(training_, {values, labels}, lowest);
}

template <class T>
double Network<T>::examine(const T* x, int B, const T* values, const std::int64_t* labels, T* out,
                           const RowSquares& rows) {
  const std::lock_guard<WorkLock> lock(running_);
  const FlushSubnormals flush;
  ++number_;
  prepare(training_, B, true, true);
  forward_pass(training_, x, B);
  copy_unpadded(training_.output, B, shape_.sizes.back(), out);
  struct Restore {
    Network& network;
    ~Restore() { network.training_.row_squares = nullptr; }
  } const restore{*this};
  training_.row_squares = &rows;
  return backward_pass(training_, {values, labels});
}

template <class T>
std::uint64_t Network<T>::forward_kept(const T* x, int B, T* out) {
  const std::lock_guard<WorkLock> lock(running_);
  const FlushSubnormals flush;
  ++number_;
  prepare(training_, B, true, false);
  forward_pass(training_, x, B);
  copy_unpadded(training_.output, B, shape_.sizes.back(), out);
  return number_;
}

template <class T>
void Network<T>::backward_kept(std::uint64_t number, const T* x, int B, const T* gradient, T* delta,
                               T* gradients) {
  const std::lock_guard<WorkLock> lock(running_);
  const FlushSubnormals flush;
  if (number != number_) {
    prepare(training_, B, true, false);
    forward_pass(training_, x, B);
  }
  ++number_;  // δ and gradients take the place of what the forward pass has left
  struct Restore {
    Network& network;
    ~Restore() { network.training_.gradients = network.gradients_.data(); }
  } const restore{*this};
  training_.gradients = gradients;
  backward_pass(training_, {gradient, nullptr});
  if (delta) copy_unpadded(training_.delta, B, shape_.sizes[1], delta);
}

template <class T>
FlowColumns Network<T>::flow() const {
  const std::lock_guard<WorkLock> lock(running_);
  return training_.flow;
}

template class Network<float>;
template class Network<double>;

}  // namespace vegrad
