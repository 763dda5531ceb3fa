// The loop of training of a recurrent network on whole sequences.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/network/training.hpp"
#include "core/recurrent/recurrent.hpp"

namespace vegrad {

// Sequences without padding: x (rows, T, I), values or labels of each row, or of each step of it.
template <class T>
struct SequenceExamples {
  std::int64_t rows = 0;
  int steps = 0;
  const T *x = nullptr, *values = nullptr;
  const std::int64_t* labels = nullptr;
  std::vector<std::int64_t> lengths;  // of the rows; none: all of T
};

template <class T>
std::unique_ptr<Trainer> make_trainer(Recurrent<T>& network, SequenceExamples<T> examples,
                                      int batch_size, TimeWindow window);

}  // namespace vegrad
