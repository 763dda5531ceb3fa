#include "core/network/training.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

constexpr std::int64_t kPart = 1 << 14;  // elements that a task of a comparison takes
constexpr int kLanes = 8;

template <class T>
class TrainerOf : public Trainer {
 public:
  TrainerOf(Network<T>& network, const Examples<T>& examples, int batch_size)
      : network_(network),
        examples_(examples),
        x_(std::size_t(batch_size) * inputs()),
        values_(examples.values ? std::size_t(batch_size) * outputs() : 0),
        labels_(examples.labels ? batch_size : 0),
        squares_(2 * network.shape().layers()) {}

 private:
  int inputs() const { return network_.shape().sizes.front(); }
  int outputs() const { return network_.shape().sizes.back(); }

  double pass(const std::int64_t* rows, int count, bool again) override {
    const int I = inputs(), O = outputs();
    for (int i = 0; i < count && !again; ++i) {
      const std::int64_t row = rows[i];
      std::memcpy(x_.data() + std::size_t(i) * I, examples_.x + row * I, I * sizeof(T));
      if (!examples_.labels) {
        std::memcpy(values_.data() + std::size_t(i) * O, examples_.values + row * O, O * sizeof(T));
        continue;
      }
      labels_[i] = examples_.labels[row];
      if (labels_[i] < 0 || labels_[i] >= O)  // the owner has changed them since they were checked
        throw std::invalid_argument("a label has become " + std::to_string(labels_[i]));
    }
    return network_.backward(x_.data(), count, examples_.labels ? nullptr : values_.data(),
                             examples_.labels ? labels_.data() : nullptr, !again,
                             network_.shape().layers());
  }

  const Scaled* squares() override {
    const KeepSubnormals keep;
    for (int l = 1; l <= network_.shape().layers(); ++l) {
      double sum = 0;
      const T* const bias = network_.bias_gradient(l);
      for (int j = 0; j < network_.shape().sizes[l]; ++j) sum += double(bias[j]) * double(bias[j]);
      const double weights = network_.gradient_squares(l);
      // A sum in double of few elements of a layer whose weight gradient is of usual size.
      if (!(weights + sum < kHighest)) return nullptr;
      squares_[2 * (l - 1)] = {weights, 0};
      squares_[2 * l - 1] = {sum, 0};
    }
    return squares_.data();
  }

  void fetch(const std::int64_t* rows, int count) override {
    constexpr int kLine = 64 / int(sizeof(T));
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < inputs(); j += kLine)
        __builtin_prefetch(examples_.x + rows[i] * inputs() + j);
  }

  void remember() override {
    before_.remember(network_.parameters(), network_.gradients(), network_.size());
  }
  void compare(StepRecord& record) override {
    before_.compare(network_.parameters(), network_.gradients(), record);
  }

  Network<T>& network_;
  const Examples<T> examples_;
  std::vector<T> x_, values_;  // the batch
  std::vector<std::int64_t> labels_;
  std::vector<Scaled> squares_;
  BeforeStep<T> before_;
};

}  // namespace

template <class T>
void BeforeStep<T>::remember(const T* parameters, const T* gradients, std::size_t size) {
  parameters_.assign(parameters, parameters + size);
  gradients_.assign(gradients, gradients + size);
}

template <class T>
void BeforeStep<T>::compare(const T* after, const T* gradient, StepRecord& record) {
  const std::int64_t n = std::int64_t(parameters_.size()), tasks = (n + kPart - 1) / kPart;
  parts_.resize(3 * tasks);
  parallel_for(int(tasks), int(std::min<std::int64_t>(tasks, num_threads())), [&](int task, int) {
    double lanes[3][kLanes] = {};
    const std::int64_t first = task * kPart, end = std::min(n, first + kPart);
    const auto add = [&](std::int64_t i, int lane) {
      const double moved = double(after[i]) - double(parameters_[i]);
      lanes[0][lane] += moved * double(gradients_[i]);
      lanes[1][lane] += moved * double(gradient[i]);
      lanes[2][lane] += moved * moved;
    };
    std::int64_t i = first;
    for (; i + kLanes <= end; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
    for (; i < end; ++i) add(i, 0);
    double sums[3] = {};
    for (int k = 0; k < 3; ++k)
      for (const double sum : lanes[k]) sums[k] += sum;
    std::copy(sums, sums + 3, parts_.data() + 3 * task);
  });
  double sums[3] = {};
  for (std::size_t i = 0; i < parts_.size(); ++i) sums[i % 3] += parts_[i];
  record.slope = sums[0];
  record.slope_after = sums[1];
  record.length = std::sqrt(sums[2]);
}

void Trainer::run(const std::int64_t* order, std::int64_t rows, int batch_size, const double* rates,
                  Gauge gauge, const Step& step, const std::function<bool()>& after,
                  StepRecord* records) {
  done = taken = 0;
  for (std::int64_t first = 0; first < rows; first += batch_size) {
    const int count = int(std::min<std::int64_t>(batch_size, rows - first));
    const std::int64_t next = first + count;
    fetch(order + next, int(std::min<std::int64_t>(batch_size, rows - next)));
    StepRecord record{pass(order + first, count, false), 0, 0, rates[taken], NAN, NAN, NAN, NAN};
    const bool look = gauge.every > 0 && done % gauge.every == gauge.first;
    if (look) remember();
    records[done].loss = record.loss;  // for a rule of the clip that judges by it
    last = step(record.rate, squares());
    record.norm = last.norm;
    record.coefficient = last.coefficient;
    taken += !last.skipped;
    if (look) {
      record.loss_after = pass(order + first, count, true);
      compare(record);
    }
    records[done++] = record;
    if (!after()) return;
  }
}

template <class T>
std::unique_ptr<Trainer> make_trainer(Network<T>& network, const Examples<T>& examples,
                                      int batch_size) {
  return std::make_unique<TrainerOf<T>>(network, examples, batch_size);
}

template class BeforeStep<float>;
template class BeforeStep<double>;
template std::unique_ptr<Trainer> make_trainer(Network<float>&, const Examples<float>&, int);
template std::unique_ptr<Trainer> make_trainer(Network<double>&, const Examples<double>&, int);

}  // namespace vegrad
