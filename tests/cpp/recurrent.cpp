#include "core/recurrent/recurrent.hpp"

#include "core/runtime/threads.hpp"
#include "cpp/check.hpp"

namespace vegrad::tests {
namespace {

template <class T>
class Case {
 public:
  Case(Cell cell, int hidden, bool every_step)
      : shape_{kInputs, hidden, kOutputs, cell, 2, every_step, Loss::mse}, net_(shape_) {
    Random random(hidden);
    for (std::size_t i = 0; i < net_.size(); ++i) net_.all_parameters()[i] = T(random() / 2);
    direction_ = random.vector<double>(net_.size());
    x_ = random.vector<T>(kRows * kSteps * kInputs);
    target_ = random.vector<T>(kRows * (every_step ? kSteps : 1) * kOutputs);
  }

  void run() {
    const Dual want = plain();
    const std::string what = std::string(kTypeName<T>) + " " + kCellNames[int(shape_.cell)] + ", " +
                             std::to_string(shape_.hidden) + " units";
    const Sequences<T> batch{kRows,   kSteps,  x_.data(),      kLengths,
                             nullptr, nullptr, target_.data(), nullptr};
    close(what + ": loss", net_.loss(batch), want.value, kTolerance<T>);
    std::vector<T> gradient;
    for (const int threads : {1, 2}) {
      set_num_threads(threads);
      close(what + ": loss of a pass back", net_.backward(batch, {}, nullptr, true), want.value,
            kTolerance<T>);
      const std::vector<T> found(net_.all_gradients(), net_.all_gradients() + net_.size());
      close(what + ": gradient", dot(found.data(), direction_), want.slope, 20 * kTolerance<T>);
      if (threads > 1) close(what + ": bits of two threads", found != gradient, 0, 0);
      gradient = found;
    }
  }

 private:
  static constexpr int kInputs = 5, kOutputs = 3, kRows = 7, kSteps = 6;
  static constexpr std::int64_t kLengths[kRows] = {6, 1, 4, 6, 2, 5, 3};

  // A parameter of the network among those that move.
  const Dual* of(const std::vector<Dual>& all, const T* parameter) const {
    return all.data() + (parameter - net_.all_parameters());
  }

  // The loss, and how it changes along the direction.
  Dual plain() const {
    const std::vector<Dual> all = moving(net_.all_parameters(), direction_);
    Dual loss;
    double losses = 0;
    for (int row = 0; row < kRows; ++row) {
      std::vector<Dual> h[2], c[2];
      for (int l = 0; l < 2; ++l) {
        h[l].resize(shape_.hidden);
        c[l].resize(shape_.hidden);
      }
      for (int t = 0; t < kLengths[row]; ++t) {
        const T* const x = x_.data() + (row * kSteps + t) * kInputs;
        step(all, 0, std::vector<Dual>(x, x + kInputs), h[0], c[0]);
        step(all, 1, h[0], h[1], c[1]);
        if (!shape_.targets_all && t + 1 < kLengths[row]) continue;
        const T* const target =
            target_.data() + (shape_.targets_all ? row * kSteps + t : row) * kOutputs;
        for (int o = 0; o < kOutputs; ++o) {
          const Dual off = sum(of(all, net_.head().weight) + o * shape_.hidden, h[1]) +
                           of(all, net_.head().bias)[o] - Dual(double(target[o]));
          loss += off * off;
          ++losses;
        }
      }
    }
    return loss / losses;
  }

  static Dual sum(const Dual* weights, const std::vector<Dual>& of) {
    Dual found;
    for (std::size_t i = 0; i < of.size(); ++i) found += weights[i] * of[i];
    return found;
  }

  void step(const std::vector<Dual>& all, int l, const std::vector<Dual>& below,
            std::vector<Dual>& h, std::vector<Dual>& c) const {
    const int H = shape_.hidden;
    const LayerWeights<T>& w = net_.weights(l);
    std::vector<Dual> next(H);
    for (int j = 0; j < H; ++j) {
      const auto in = [&](int g) {
        const std::ptrdiff_t row = g * H + j;
        return sum(of(all, w.weight_ih) + row * below.size(), below) + of(all, w.bias_ih)[row];
      };
      const auto state = [&](int g) {
        const std::ptrdiff_t row = g * H + j;
        return sum(of(all, w.weight_hh) + row * H, h) + of(all, w.bias_hh)[row];
      };
      const auto z = [&](int g) { return in(g) + state(g); };
      if (shape_.cell == Cell::tanh) next[j] = tanh(z(0));
      if (shape_.cell == Cell::relu) next[j] = relu(z(0));
      if (shape_.cell == Cell::lstm) {
        c[j] = sigmoid(z(1)) * c[j] + sigmoid(z(0)) * tanh(z(2));
        next[j] = sigmoid(z(3)) * tanh(c[j]);
      }
      if (shape_.cell == Cell::gru) {
        const Dual update = sigmoid(z(1)), n = tanh(in(2) + sigmoid(z(0)) * state(2));
        next[j] = (Dual(1) - update) * n + update * h[j];
      }
    }
    h = next;
  }

  const RecurrentShape shape_;
  Recurrent<T> net_;
  std::vector<double> direction_;
  std::vector<T> x_, target_;
};

// h stays 1 = 1/2 + 1/2, and a half of the gradient goes back at each of more steps than the dtype
// has powers of two.
template <class T>
void check_halves() {
  constexpr int steps = 2000;
  Recurrent<T> net({1, 4, 1, Cell::relu, 1, false, Loss::mse});
  for (int j = 0; j < 4; ++j) {
    net.weights(0).weight_hh[j * 4 + j] = net.weights(0).bias_ih[j] = T(0.5);
    net.head().weight[j] = 1;
  }
  const std::vector<T> x(steps), h(4, T(1)), target(1);
  net.backward({1, steps, x.data(), nullptr, h.data(), nullptr, target.data(), nullptr}, {},
               nullptr, true);
  const TimeFlowColumns flow = net.flow();
  for (const double gain : flow.gain)
    close(std::string(kTypeName<T>) + " gain of a half", gain, -1, 1e-6);
}

}  // namespace

void check_recurrent() {
  for (int cell = 0; cell < kCellCount; ++cell)
    for (const int hidden : {1, 9, 37})
      for (const bool every_step : {false, true}) {
        Case<float>(Cell(cell), hidden, every_step).run();
        Case<double>(Cell(cell), hidden, every_step).run();
      }
  check_halves<float>();
  check_halves<double>();
}

}  // namespace vegrad::tests
