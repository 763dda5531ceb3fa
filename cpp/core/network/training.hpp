// The loop of training: batches of rows, a pass over each, a step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/buffers/clipping.hpp"
#include "core/network/network.hpp"

namespace vegrad {

// Rows without padding: x (rows, I) and values (rows, O) or labels (rows).
template <class T>
struct Examples {
  std::int64_t rows = 0;
  const T *x = nullptr, *values = nullptr;
  const std::int64_t* labels = nullptr;
};

// What is written down of a step. The last four are NaN unless the gauge looked: at the loss on the
// same batch after the step, at its slope along the step at both ends, times the step's length, and
// at that length.
struct StepRecord {
  double loss, norm, coefficient, rate;
  double loss_after, slope, slope_after, length;
};
constexpr int kRecordSize = sizeof(StepRecord) / sizeof(double);

// At which steps of a run the gauge looks: `first`, counted from 0, and each `every` after it;
// every 0: at none.
struct Gauge {
  std::int64_t first, every;
};

class Trainer {
 public:
  // Σ of the squares of each gradient (weight and bias of layer 1, of layer 2, …), null if not
  // known → what the step's clip found; throws to stop before anything has changed.
  using Step = std::function<Clipped(double rate, const Scaled* squares)>;

  virtual ~Trainer() = default;
  // A step for each batch of rows of `order`, with the next of `rates` unless the last step was
  // skipped, until `after` says no. The network is always as a whole step left it.
  void run(const std::int64_t* order, std::int64_t rows, int batch_size, const double* rates,
           Gauge gauge, const Step& step, const std::function<bool()>& after, StepRecord* records);

  // Of the last run, also if something was thrown.
  std::int64_t done = 0, taken = 0;  // how many steps, and without those skipped
  Clipped last;

 private:
  // Loss and gradients of a batch, and its flow unless the same batch is looked at again.
  virtual double pass(const std::int64_t* rows, int count, bool again) = 0;
  // Starts to bring the rows of the next batch, which lie anywhere, into the cache.
  virtual void fetch(const std::int64_t* rows, int count) = 0;
  virtual const Scaled* squares() = 0;  // null if unknown
  virtual void remember() = 0;          // parameters and gradients, before a step
  virtual void compare(StepRecord& record) = 0;
};

// Parameters and gradients, all in one block each, before a step: what those after it are compared
// with.
template <class T>
class BeforeStep {
 public:
  void remember(const T* parameters, const T* gradients, std::size_t size);
  // Slopes along the step and its length.
  void compare(const T* parameters, const T* gradients, StepRecord& record);

 private:
  std::vector<T> parameters_, gradients_;
  std::vector<double> parts_;  // the sums of each task
};

template <class T>
std::unique_ptr<Trainer> make_trainer(Network<T>& network, const Examples<T>& examples,
                                      int batch_size);

}  // namespace vegrad
