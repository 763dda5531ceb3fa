// Steps of SGD, Adam, AdamW and Lion over buffers, with the clip inside.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "core/buffers/clipping.hpp"
#include "core/runtime/lock.hpp"
#include "core/runtime/memory.hpp"

namespace vegrad {

struct OptimizerSettings {
  StepKind kind;
  double momentum = 0, dampening = 0;
  bool nesterov = false;
  double beta1 = 0, beta2 = 0, eps = 0;
  double weight_decay = 0;
  bool decoupled = false;  // weight decay apart from the gradient
  bool amsgrad = false, maximize = false;

  // The names of what is kept of a buffer, in order; and of what could be.
  std::vector<const char*> state_names() const;
  std::size_t states() const;  // how many
  std::vector<const char*> all_state_names() const;
};

// Buffers with settings and a learning rate of their own.
struct StepGroup {
  OptimizerSettings settings;
  double rate;
};

// What is kept of a buffer: in C order, of its dtype.
struct OptimizerState {
  Dtype dtype;
  std::vector<std::int64_t> shape;
  std::int64_t count;  // of elements; -1: the buffer is not known yet
  std::int64_t steps = 0;
  std::vector<Buffer<char>> memory;  // one for each name

  OptimizerState() : dtype(Dtype::kFloat32), count(-1) {}
  explicit OptimizerState(const View& view)
      : dtype(view.dtype), shape(view.shape, view.shape + view.ndim), count(view.count) {}
  // Zeros for what is not kept yet; a momentum that begins now, begins with the gradient.
  void make_room(const OptimizerSettings& settings);
};

// One step, in groups, in place over buffers that do not overlap, clipped as `request` says. Unless
// it was skipped, or `first` found an element that refuses it, it counts in the states. States may
// be null: they are made then. `writing` is held from the first change to the last.
Clipped take_step(std::vector<StepGroup> groups, std::vector<std::size_t> group_of,
                  const std::vector<View>& parameters, std::vector<View>& gradients,
                  const std::vector<std::unique_ptr<OptimizerState>*>& states, WorkLock& writing,
                  Request request, FirstNonFinite& first);

// Hands the clipped gradients of one step to the kernels.
class Stepper : public Consumer {
 public:
  // `group_of`: of each buffer. States may be null before begin(), which makes them. `writing` is
  // held from there to the end of the Stepper.
  Stepper(std::vector<StepGroup> groups, std::vector<std::size_t> group_of, bool norm_wanted,
          const std::vector<View>& parameters, const std::vector<View>& gradients,
          std::vector<std::unique_ptr<OptimizerState>*> states, WorkLock& writing);

  void begin() override;
  Scaled take(std::int64_t buffer, std::int64_t first, std::int64_t count, Factor factor,
              double limit, bool cleaned) override;

 private:
  struct Numbers {
    StepNumbers<float> of_float;
    StepNumbers<double> of_double;
  };

  // Where all of a buffer lies, for a step without any conversion: in one line of the cache, side
  // by side, while the states themselves lie scattered. Written once in a step: to write what other
  // threads have read waits for their caches.
  struct alignas(64) Plain {
    const Numbers* numbers;
    const void* g;  // null: it is not so simple
    void* p;
    void* state[3];  // null: not kept
    StepKind kind;
    bool maximize;
    Dtype dtype;
  };

  void prepare(std::size_t buffer);
  const Numbers& numbers_after(std::size_t group, std::int64_t steps);
  template <class T>
  void step_plainly(const Plain& plain, std::int64_t first, std::int64_t count, T factor);
  template <class T, class E>
  Scaled take_as(std::int64_t buffer, std::int64_t first, std::int64_t count, Factor factor,
                 double limit, bool cleaned);

  std::vector<StepGroup> groups_;
  std::vector<std::size_t> group_of_;
  bool norm_wanted_;
  const std::vector<View>& parameters_;
  const std::vector<View>& gradients_;
  std::vector<std::unique_ptr<OptimizerState>*> states_;
  std::map<std::pair<std::size_t, std::int64_t>, Numbers> numbers_;
  std::pair<std::size_t, std::int64_t> last_key_;
  const Numbers* last_numbers_ = nullptr;  // of that group after so many steps
  std::vector<const Numbers*> numbers_of_;
  std::unique_ptr<Plain[]> plain_;
  std::unique_lock<WorkLock> writing_;
};

}  // namespace vegrad
