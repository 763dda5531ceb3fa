#include "core/recurrent/training.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace vegrad {
namespace {

template <class T>
class SequenceTrainer : public Trainer {
 public:
  SequenceTrainer(Recurrent<T>& network, SequenceExamples<T> examples, int batch_size,
                  TimeWindow window)
      : network_(network), examples_(std::move(examples)), window_(window) {
    const std::size_t rows = std::min<std::int64_t>(batch_size, examples_.rows);
    x_.resize(rows * x_size());
    if (examples_.labels)
      labels_.resize(rows * targets());
    else
      values_.resize(rows * targets() * outputs());
    if (!examples_.lengths.empty()) lengths_.resize(rows);
  }

 private:
  int outputs() const { return network_.shape().outputs; }
  std::size_t x_size() const { return std::size_t(examples_.steps) * network_.shape().inputs; }
  std::size_t targets() const { return network_.shape().targets_all ? examples_.steps : 1; }

  double pass(const std::int64_t* rows, int count, bool again) override {
    for (int i = 0; i < count && !again; ++i) take(rows[i], i);
    const Sequences<T> batch{count,
                             examples_.steps,
                             x_.data(),
                             lengths_.empty() ? nullptr : lengths_.data(),
                             nullptr,
                             nullptr,
                             examples_.labels ? nullptr : values_.data(),
                             examples_.labels ? labels_.data() : nullptr};
    return network_.backward(batch, window_, nullptr, !again);
  }

  // A row, to be row i of the batch.
  void take(std::int64_t row, int i) {
    const auto copy = [&](const auto* from, auto& to, std::size_t n) {
      std::copy_n(from + row * n, n, to.data() + i * n);
    };
    copy(examples_.x, x_, x_size());
    if (!lengths_.empty()) lengths_[i] = examples_.lengths[row];
    if (!examples_.labels) return copy(examples_.values, values_, targets() * outputs());
    copy(examples_.labels, labels_, targets());
    const std::size_t there =
        targets() == 1 || lengths_.empty() ? targets() : std::size_t(lengths_[i]);
    for (std::size_t t = 0; t < there; ++t) {
      const std::int64_t label = labels_[i * targets() + t];
      if (label < 0 || label >= outputs())  // the owner has changed it since it was checked
        throw std::invalid_argument("a label has become " + std::to_string(label));
    }
  }

  // Rows are long: the machine sees by itself what is wanted next.
  void fetch(const std::int64_t*, int) override {}
  const Scaled* squares() override { return nullptr; }

  void remember() override {
    before_.remember(network_.all_parameters(), network_.all_gradients(), network_.size());
  }
  void compare(StepRecord& record) override {
    before_.compare(network_.all_parameters(), network_.all_gradients(), record);
  }

  Recurrent<T>& network_;
  const SequenceExamples<T> examples_;
  const TimeWindow window_;
  std::vector<T> x_, values_;  // the batch
  std::vector<std::int64_t> labels_, lengths_;
  BeforeStep<T> before_;
};

}  // namespace

template <class T>
std::unique_ptr<Trainer> make_trainer(Recurrent<T>& network, SequenceExamples<T> examples,
                                      int batch_size, TimeWindow window) {
  return std::make_unique<SequenceTrainer<T>>(network, std::move(examples), batch_size, window);
}

template std::unique_ptr<Trainer> make_trainer(Recurrent<float>&, SequenceExamples<float>, int,
                                               TimeWindow);
template std::unique_ptr<Trainer> make_trainer(Recurrent<double>&, SequenceExamples<double>, int,
                                               TimeWindow);

}  // namespace vegrad
