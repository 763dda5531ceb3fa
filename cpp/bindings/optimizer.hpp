// Optimizers: their settings, and what they keep of each buffer.
#pragma once

#include <pybind11/numpy.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/clipping.hpp"
#include "core/buffers/optimizer.hpp"
#include "core/runtime/lock.hpp"

namespace vegrad {

class Optimizer {
 public:
  // While one thread steps, others wait, without the GIL: it holds pointers to the states.
  class Turn {
   public:
    explicit Turn(Optimizer& optimizer);
    ~Turn();
    Turn(const Turn&) = delete;
    // RuntimeError if this thread is in a step already, whose clip has called back.
    void must_be_first() const;

   private:
    Optimizer& optimizer_;
    bool first_;
  };

  explicit Optimizer(const OptimizerSettings& settings) : settings_(settings) {}

  const OptimizerSettings& settings() const { return settings_; }
  WorkLock& writing() { return writing_; }
  Clipped step(const pybind11::object& parameters, const pybind11::object& grads, double rate,
               const std::string& rule, const pybind11::object& limit, double ord,
               const std::string& nonfinite, double eps, const pybind11::object& groups);
  // Of each buffer, null where nothing is kept yet; ValueError if it is of other buffers.
  std::vector<std::unique_ptr<OptimizerState>*> states_of(const Buffers& parameters);
  // {key: {"step": n, name: an array in C order}}
  pybind11::dict state();
  void load(const pybind11::dict& all);

 private:
  Clipped step_over(const pybind11::object& parameters, const pybind11::object& grads, double rate,
                    const RuleArguments& arguments, const pybind11::object& groups);
  static void find_groups(const pybind11::object& groups, const Buffers& parameters,
                          std::vector<StepGroup>& found, std::vector<std::size_t>& group_of);
  std::size_t place_of(const Buffers& parameters, std::size_t number);
  void check(const Buffers& parameters, std::size_t number, OptimizerState* state) const;

  OptimizerSettings settings_;
  Lock running_;
  WorkLock writing_;                 // what a step changes
  pybind11::dict place_;             // of each key
  std::vector<pybind11::str> keys_;  // of each place
  std::vector<std::unique_ptr<OptimizerState>> states_;
  std::size_t loaded_ = 0;  // how many places a loaded state has, until a step has found one
  std::vector<std::int64_t> by_position_;  // the places of flat sequences' buffers; -1: not known
};

}  // namespace vegrad
