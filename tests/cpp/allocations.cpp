// Passes and trainings of a recurrent network, which take no memory once they have been done.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <numeric>

#include "core/recurrent/layer.hpp"
#include "core/recurrent/training.hpp"
#include "core/runtime/threads.hpp"
#include "cpp/check.hpp"

namespace {

std::atomic<int> g_taken{0};

// Before the memory stands where it really begins.
[[maybe_unused]] void* take(std::size_t bytes, std::size_t alignment) {
  ++g_taken;
  void* const begin = std::malloc(bytes + alignment + sizeof(void*));
  if (!begin) throw std::bad_alloc();
  const auto after = reinterpret_cast<std::uintptr_t>(begin) + sizeof(void*) + alignment - 1;
  void** const memory = reinterpret_cast<void**>(after / alignment * alignment);
  memory[-1] = begin;
  return memory;
}

[[maybe_unused]] void give_back(void* memory) noexcept {
  if (memory) std::free(static_cast<void**>(memory)[-1]);
}

}  // namespace

// ThreadSanitizer brings its own, beside which no others can be linked: there nothing is counted.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VEGRAD_NOT_COUNTED
#endif
#endif

#ifndef VEGRAD_NOT_COUNTED
// All others call these.
void* operator new(std::size_t n) { return take(n, alignof(std::max_align_t)); }
void* operator new(std::size_t n, std::align_val_t at) { return take(n, std::size_t(at)); }
void operator delete(void* p) noexcept { give_back(p); }
void operator delete(void* p, std::size_t) noexcept { give_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }
#endif

namespace vegrad::tests {
namespace {

constexpr int kInputs = 3, kHidden = 9, kOutputs = 2, kRows = 7, kSteps = 12;

// How often body() takes memory after it has run twice.
template <class Body>
void takes_none(const std::string& what, const Body& body) {
  for (int i = 0; i < 2; ++i) body();
  const int before = g_taken;
  for (int i = 0; i < 2; ++i) body();
  const int taken = g_taken - before;
  close(what + ": times that memory was taken", taken, 0, 0);
}

template <class T>
class Case {
 public:
  // `size`: of all parameters, so that states may leave the range that kernels see to.
  Case(Cell cell, bool every_step, double size)
      : shape_{kInputs, kHidden, kOutputs, cell, 2, every_step, Loss::mse}, net_(shape_) {
    Random random(3);
    for (std::size_t i = 0; i < net_.size(); ++i) net_.all_parameters()[i] = T(size * random());
    x_ = random.vector<T>(kRows * kSteps * kInputs);
    target_ = random.vector<T>(kRows * kSteps * kOutputs);
    if (size < 0.1)  // nor does anything hold them up; and nothing is to be learned
      for (std::vector<T>* all : {&x_, &target_})
        for (std::size_t i = 4; i < all->size(); ++i) (*all)[i] = T(0);
    what_ = std::string(kTypeName<T>) + " " + kCellNames[int(cell)] +
            (every_step ? " at each step, " : " at the last, ") +
            (size < 0.1 ? "out of range, " : "") + std::to_string(num_threads()) + " threads, ";
  }

  void run() {
    const Sequences<T> whole{kRows,   kSteps,  x_.data(),      nullptr,
                             nullptr, nullptr, target_.data(), nullptr};
    Sequences<T> ragged = whole;
    ragged.lengths = kLengths;
    for (const Sequences<T>& batch : {whole, ragged}) {
      const std::string of = what_ + (batch.lengths ? "lengths, " : "");
      for (const TimeWindow window : {TimeWindow{}, {4, 4}, {2, 5}})
        for (const bool flow : {false, true})
          takes_none(of + "back " + std::to_string(window.back) + (flow ? ", flow" : ""),
                     [&] { net_.backward(batch, window, nullptr, flow); });
      takes_none(of + "loss", [&] { net_.loss(batch); });
      std::vector<T> out(kRows * kSteps * kOutputs);
      takes_none(of + "forward", [&] { net_.forward(batch, out.data()); });
    }
    train();
  }

 private:
  static constexpr std::int64_t kLengths[kRows] = {12, 1, 4, 12, 2, 9, 3};

  void train() {
    SequenceExamples<T> examples{kRows, kSteps, x_.data(), target_.data(), nullptr, {}};
    for (const bool ragged : {false, true}) {
      if (ragged) examples.lengths.assign(kLengths, kLengths + kRows);
      const auto trainer = make_trainer(net_, examples, 3, {4, 4});
      std::vector<std::int64_t> order(kRows);
      std::iota(order.begin(), order.end(), 0);
      const std::vector<double> rates(kRows, 0.01);
      std::vector<StepRecord> records(kRows);
      const Trainer::Step step = [](double, const Scaled*) { return Clipped(); };
      const std::function<bool()> after = [] { return true; };
      takes_none(what_ + (ragged ? "training, lengths" : "training"), [&] {
        trainer->run(order.data(), kRows, 3, rates.data(), {0, 2}, step, after, records.data());
      });
    }
  }

  const RecurrentShape shape_;
  Recurrent<T> net_;
  std::vector<T> x_, target_;
  std::string what_;
};

template <class T>
void check_layer(Cell cell) {
  RecurrentLayer<T> layer(kInputs, kHidden, cell);
  const int rows = layer.shape().gates() * kHidden;
  const bool has_c = layer.shape().has_c();
  Random random(5);
  const auto x = random.vector<T>(kRows * kSteps * kInputs);
  const auto w_ih = random.vector<T>(rows * kInputs), w_hh = random.vector<T>(rows * kHidden),
             bias = random.vector<T>(rows);
  std::vector<T> out(kRows * kSteps * kHidden), h(kRows * kHidden), c(h), dx(x), dh(h), dc(h);
  std::vector<T> d_ih(w_ih), d_hh(w_hh), d_bias(bias), d_other(bias);
  takes_none(std::string(kTypeName<T>) + " layer, " + kCellNames[int(cell)], [&] {
    for (const bool keep : {false, true}) {
      auto kept = layer.take(keep);
      layer.forward(*kept, {kRows, kSteps, x.data(), nullptr, nullptr, nullptr, true, false},
                    {w_ih.data(), w_hh.data(), bias.data(), bias.data()}, keep, out.data(),
                    h.data(), has_c ? c.data() : nullptr);
      if (keep)
        layer.backward(*kept, {out.data(), nullptr, nullptr},
                       {dx.data(), dh.data(), has_c ? dc.data() : nullptr},
                       {d_ih.data(), d_hh.data(), d_bias.data(), d_other.data()});
      layer.give_back(std::move(kept), keep);
    }
  });
}

template <class T>
void check() {
  for (int cell = 0; cell < kCellCount; ++cell) {
    for (const bool every_step : {false, true})
      for (const double size : {0.5, sizeof(T) == 4 ? 1e-30 : 1e-200})
        Case<T>(Cell(cell), every_step, size).run();
    check_layer<T>(Cell(cell));
  }
}

}  // namespace

void check_allocations() {
  for (const int threads : {1, 2}) {
    set_num_threads(threads);
    check<float>();
    check<double>();
  }
}

}  // namespace vegrad::tests
