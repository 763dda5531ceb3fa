#include "core/network/network.hpp"

#include "core/runtime/names.hpp"
#include "cpp/check.hpp"

namespace vegrad::tests {
namespace {

Dual activate(const std::string& name, Dual z) {
  if (name == "tanh") return tanh(z);
  if (name == "sigmoid") return sigmoid(z);
  return name == "relu" ? relu(z) : z;
}

template <class T>
class Case {
 public:
  Case(const std::string& activation, int rows)
      : name_(activation),
        rows_(rows),
        shape_{{7, 19, 33, 3},
               activation_of(activation),
               activation_of("identity"),
               Loss::mse,
               Norm::none,
               false},
        places_(shape_, sizeof(T)),
        net_(shape_) {
    Random random(rows);
    x_ = random.vector<T>(std::size_t(rows) * shape_.sizes.front());
    target_ = random.vector<T>(std::size_t(rows) * shape_.sizes.back());
    direction_.assign(net_.used(), 0);
    for (int l = 1; l <= shape_.layers(); ++l) {
      const int I = shape_.sizes[l - 1], O = shape_.sizes[l];
      for (int i = 0; i < O * I; ++i) net_.weight(l)[i] = T(random() * 2 / std::sqrt(I));
      for (int i = 0; i < O; ++i) net_.bias(l)[i] = T(random());
      for (std::size_t i = 0; i < std::size_t(O) * I; ++i)
        direction_[places_.weight_at[l] + i] = random();
      for (int i = 0; i < O; ++i) direction_[places_.bias_at[l] + i] = random();
    }
  }

  void run() {
    const Dual want = plain();
    const std::string what =
        std::string(kTypeName<T>) + " network of " + name_ + ", " + std::to_string(rows_) + " rows";
    close(what + ": loss", net_.loss(x_.data(), rows_, target_.data(), nullptr), want.value,
          kTolerance<T>);
    close(what + ": loss of a pass back",
          net_.backward(x_.data(), rows_, target_.data(), nullptr, true, shape_.layers()),
          want.value, kTolerance<T>);
    close(what + ": gradient", dot(net_.gradients(), direction_), want.slope, 10 * kTolerance<T>);
    for (int l = 0; l < shape_.layers(); ++l)
      if (!std::isfinite(net_.flow().delta_log2[l])) close(what + ": flow", 1, 0, 0);
  }

 private:
  // The loss, and how it changes along the direction.
  Dual plain() const {
    const std::vector<Dual> all = moving(net_.parameters(), direction_);
    Dual loss;
    for (int row = 0; row < rows_; ++row) {
      const T* const in = x_.data() + row * shape_.sizes.front();
      std::vector<Dual> h(in, in + shape_.sizes.front());
      for (int l = 1; l <= shape_.layers(); ++l) {
        std::vector<Dual> next(shape_.sizes[l]);
        for (std::size_t o = 0; o < next.size(); ++o) {
          Dual z = all[places_.bias_at[l] + o];
          for (std::size_t i = 0; i < h.size(); ++i)
            z += all[places_.weight_at[l] + o * h.size() + i] * h[i];
          next[o] = l < shape_.layers() ? activate(name_, z) : z;
        }
        h = next;
      }
      for (std::size_t o = 0; o < h.size(); ++o) {
        const Dual off = h[o] - double(target_[row * h.size() + o]);
        loss += off * off;
      }
    }
    return loss * shape_.loss_scale(rows_);
  }

  const std::string name_;
  const int rows_;
  const NetworkShape shape_;
  const ParameterLayout places_;
  Network<T> net_;
  std::vector<T> x_, target_;
  std::vector<double> direction_;
};

}  // namespace

// With few rows, with some, and with so many that they are cut.
void check_network() {
  for (const char* activation : {"tanh", "sigmoid", "relu", "identity"})
    for (const int rows : {1, 4, 37, 130}) {
      Case<float>(activation, rows).run();
      Case<double>(activation, rows).run();
    }
}

}  // namespace vegrad::tests
