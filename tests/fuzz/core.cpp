// What libFuzzer calls with bytes of its choice: kernels over buffers of any layout, and passes of
// small networks, on every instruction set. For builds with VEGRAD_FUZZ, which take Clang.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "core/buffers/clipping.hpp"
#include "core/buffers/optimizer.hpp"
#include "core/buffers/statistics.hpp"
#include "core/network/network.hpp"
#include "core/recurrent/recurrent.hpp"
#include "core/runtime/dispatch.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

// Choices that follow from bytes; when they are used up, the first of each.
class Drawn {
 public:
  Drawn(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  int number(int below) {
    if (at_ == size_) return 0;
    return data_[at_++] % below;
  }
  template <class T, std::size_t N>
  T one(const T (&among)[N]) {
    return among[number(N)];
  }
  double value() {
    static const double special[] = {0,     -0.0, INFINITY, -INFINITY, NAN,
                                     1e-45, 3e38, -1e300,   5e-324,    1};
    return number(8) == 7 ? one(special) : (number(256) - 128) * std::ldexp(1, 8 * number(9) - 32);
  }
  template <class T>
  std::vector<T> values(std::size_t count) {
    std::vector<T> drawn(count);
    const std::size_t own = std::min<std::size_t>(count, 24);
    for (std::size_t i = 0; i < count; ++i) drawn[i] = i < own ? T(value()) : drawn[i % own];
    return drawn;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_, at_ = 0;
};

// A buffer of bytes and a view of any layout that stays within.
struct Piece {
  std::vector<char> memory;
  std::vector<std::int64_t> shape, strides;
  View view{};

  explicit Piece(Drawn& drawn, Dtype dtype) {
    static const int counts[] = {0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 65, 130, 300};
    view.dtype = dtype;
    const std::int64_t size = view.itemsize(), count = drawn.one(counts);
    const int odd = drawn.number(8) == 7 ? 1 : 0;  // not aligned
    memory.resize(count * size + odd);
    const auto numbers = drawn.values<float>(count);
    for (std::int64_t i = 0; i < count; ++i) {
      if (dtype == Dtype::kFloat64) {
        const double wide = numbers[i];
        std::memcpy(&memory[odd + i * 8], &wide, 8);
      } else {  // halves of floats are 16-bit numbers, too
        std::memcpy(&memory[odd + i * size], &numbers[i], size);
      }
    }
    std::int64_t reach = 0, first = 0;
    for (int axis = drawn.number(5); axis > 0; --axis) {
      const std::int64_t length = drawn.number(6);
      std::int64_t stride = drawn.number(9);
      if (length > 1 && reach + (length - 1) * stride >= count) stride = 0;
      if (length > 0) reach += (length - 1) * stride;
      if (drawn.number(3) == 2) {
        if (length > 0) first += (length - 1) * stride;
        stride = -stride;
      }
      shape.push_back(length);
      strides.push_back(stride * size);
    }
    if (shape.empty() || count == 0) {
      shape = {count};
      strides = {size};
      first = 0;
    }
    view.data = memory.data() + odd + first * size;
    view.ndim = int(shape.size());
    view.shape = shape.data();
    view.strides = strides.data();
    view.count = 1;
    for (const std::int64_t length : shape) view.count *= length;
    set_dense(view);
  }
};

void over_buffers(Drawn& drawn) {
  static const Dtype dtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16,
                                 Dtype::kBfloat16};
  static const double orders[] = {2, 1, INFINITY, 3.5}, limits[] = {1, 0, 1e-300, 1e300, INFINITY};
  static const NonFinite policies[] = {NonFinite::kRaise, NonFinite::kSkip, NonFinite::kZero,
                                       NonFinite::kPropagate};
  static const Rule rules[] = {Rule::kGlobalNorm, Rule::kValue, Rule::kNorm, Rule::kBlockRms};
  std::vector<std::unique_ptr<Piece>> pieces;
  std::vector<View> views;
  for (int n = 1 + drawn.number(3); n > 0; --n) {
    pieces.push_back(std::make_unique<Piece>(drawn, drawn.one(dtypes)));
    views.push_back(pieces.back()->view);
  }
  const Order order{drawn.one(orders)};
  power_sums(views, cut(views), order);
  std::vector<Histogram> histograms(views.size());
  statistics(views, histograms);
  if (find_overlap(views)) return;
  Request request{};
  request.rule = drawn.one(rules);
  request.order = order;
  request.limit = drawn.one(limits);
  request.nonfinite = drawn.one(policies);
  FirstNonFinite first;
  clip(views, request, first);
  if (drawn.number(2)) return;
  std::vector<std::vector<double>> weights;
  std::vector<View> parameters;
  std::vector<std::unique_ptr<OptimizerState>> kept(views.size());
  std::vector<std::unique_ptr<OptimizerState>*> states;
  for (std::size_t i = 0; i < views.size(); ++i) {
    weights.emplace_back(views[i].count + 1, 1.0);
    View view{};
    view.dtype = Dtype::kFloat64;
    view.data = reinterpret_cast<char*>(weights.back().data());
    view.count = views[i].count;
    view.ndim = views[i].ndim;
    view.shape = views[i].shape;
    view.dense = true;
    parameters.push_back(view);
    states.push_back(&kept[i]);
  }
  OptimizerSettings settings{};
  settings.kind = drawn.one({kSgd, kAdam, kLion});
  settings.momentum = settings.beta1 = settings.beta2 = 0.9;
  WorkLock writing;
  for (int step = 0; step < 2; ++step)
    take_step({{settings, 0.1}}, std::vector<std::size_t>(views.size()), parameters, views, states,
              writing, request, first);
}

template <class T>
void through_network(Drawn& drawn) {
  static const int widths[] = {1, 2, 5, 16, 17, 33};
  NetworkShape shape;
  shape.sizes = {1 + drawn.number(6)};
  const int width = drawn.one(widths);
  for (int layers = drawn.number(5); layers > 0; --layers) shape.sizes.push_back(width);
  shape.sizes.push_back(1 + drawn.number(4));
  shape.activation = Activation(drawn.number(kActivationCount));
  shape.output = Activation(drawn.number(kActivationCount));
  shape.loss = Loss(drawn.number(3));
  shape.norm = Norm(drawn.number(3));
  shape.residual = drawn.number(2);
  const int rows = 1 + drawn.number(70);
  Network<T> network(shape);
  const auto numbers = drawn.values<T>(network.size());
  std::copy(numbers.begin(), numbers.end(), network.parameters());
  const int O = shape.sizes.back();
  const auto x = drawn.values<T>(std::size_t(rows) * shape.sizes[0]);
  const auto values = drawn.values<T>(std::size_t(rows) * O);
  std::vector<std::int64_t> labels(rows);
  for (std::int64_t& label : labels) label = drawn.number(O);
  std::vector<T> out(std::size_t(rows) * O);
  network.forward(x.data(), rows, out.data());
  const bool labelled = shape.loss == Loss::cross_entropy;
  network.backward(x.data(), rows, labelled ? nullptr : values.data(),
                   labelled ? labels.data() : nullptr, drawn.number(2),
                   1 + drawn.number(shape.layers()));
}

template <class T>
void through_time(Drawn& drawn) {
  static const int widths[] = {1, 3, 16, 17, 40};
  const RecurrentShape shape{1 + drawn.number(4),
                             drawn.one(widths),
                             1 + drawn.number(3),
                             Cell(drawn.number(4)),
                             1 + drawn.number(2),
                             bool(drawn.number(2)),
                             Loss::mse};
  const int rows = 1 + drawn.number(20), steps = 1 + drawn.number(8);
  Recurrent<T> network(shape);
  const auto numbers = drawn.values<T>(network.size());
  std::copy(numbers.begin(), numbers.end(), network.all_parameters());
  const auto x = drawn.values<T>(std::size_t(rows) * steps * shape.inputs);
  const std::size_t outputs = std::size_t(rows) * (shape.targets_all ? steps : 1) * shape.outputs;
  const auto values = drawn.values<T>(outputs);
  std::vector<std::int64_t> lengths(rows);
  for (std::int64_t& length : lengths) length = 1 + drawn.number(steps);
  const Sequences<T> batch{
      rows,    steps,   x.data(),      drawn.number(2) ? lengths.data() : nullptr,
      nullptr, nullptr, values.data(), nullptr};
  std::vector<T> out(outputs);
  network.forward(batch, out.data());
  const int window = drawn.number(steps + 1);
  network.backward(batch, {window, window ? window + drawn.number(4) : 0}, nullptr,
                   drawn.number(2));
  network.state();
}

}  // namespace
}  // namespace vegrad

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vegrad;
  Drawn drawn(data, size);
  const auto& sets = supported_instruction_sets();
  use_instruction_set(sets[drawn.number(int(sets.size()))]->name);
  set_num_threads(1 + drawn.number(2));
  switch (drawn.number(6)) {
    case 0:
      through_network<float>(drawn);
      break;
    case 1:
      through_network<double>(drawn);
      break;
    case 2:
      through_time<float>(drawn);
      break;
    case 3:
      through_time<double>(drawn);
      break;
    default:
      over_buffers(drawn);
  }
  return 0;
}
