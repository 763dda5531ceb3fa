// The loop of training: a network's batches and an optimizer's steps in one call.
#include "core/network/training.hpp"

#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <string>

#include "bindings/gil.hpp"
#include "bindings/network.hpp"
#include "bindings/optimizer.hpp"
#include "bindings/recurrent.hpp"
#include "bindings/register.hpp"
#include "core/recurrent/training.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

using Clock = std::chrono::steady_clock;

// How often signals are looked for: another Python thread may make us wait for its turn.
constexpr std::chrono::milliseconds kSignalInterval(10);

class PyTrainer {
 public:
  // The arguments as vegrad.buffers makes them: x and target contiguous, of the network's dtype.
  // lengths and window are of sequences, as Recurrent.backward takes them.
  PyTrainer(py::object network, py::object x, py::object target, int batch_size,
            const py::object& lengths, const std::optional<std::pair<int, int>>& window)
      : network_(std::move(network)),
        x_(std::move(x)),
        target_(std::move(target)),
        batch_size_(batch_size),
        parameters_("params", network_.attr("parameters")(), true),
        gradients_("grads", network_.attr("gradients")(), false) {
    if (batch_size < 1) throw py::value_error("batch_size must be at least 1");
    if (py::isinstance<AnyRecurrent>(network_)) {
      begin_sequences(lengths, window);
      return;
    }
    network_.cast<const AnyNetwork&>().visit([&](auto& typed) {
      using T = ElementOf<std::decay_t<decltype(typed)>>;
      const Batch<T> all(typed.shape(), x_, &target_);
      must_fit(all.fits && lengths.is_none() && !window);
      rows_ = all.B;
      const Examples<T> examples{all.B, all.x, all.values, all.labels};
      trainer_ = make_trainer(typed, examples, batch_size);
    });
  }

  // Steps over the rows of `order`, until there are none or `seconds` are over; what is written
  // down of each goes to `records` (steps, 8).
  void run(Optimizer& optimizer, const py::object& order, const py::object& rates,
           const py::object& records, double seconds, std::pair<std::int64_t, std::int64_t> gauge,
           const std::string& rule, const py::object& limit, double ord,
           const std::string& nonfinite, double eps) {
    trainer_->done = trainer_->taken = 0;
    const std::int64_t* const rows = fitting<std::int64_t>(order, -1, -1);
    const py::ssize_t count = rows ? py::reinterpret_borrow<py::array>(order).size() : 0;
    const py::ssize_t steps = (count + batch_size_ - 1) / batch_size_;
    if (!rows || !fitting<double>(rates, steps, -1) ||
        !fitting<double>(records, steps, kRecordSize))
      throw py::type_error("order, rates and records must be arrays for the same steps");
    for (py::ssize_t i = 0; i < count; ++i)
      if (rows[i] < 0 || rows[i] >= rows_) throw py::index_error("order has a row that x has not");
    const Asked asked({rule, limit, ord, eps, nonfinite}, gradients_.size());
    const Optimizer::Turn turn(optimizer);
    turn.must_be_first();
    const auto states = optimizer.states_of(parameters_);
    const auto step = [&](double rate, const Scaled* squares) {
      Request request = asked.request;
      request.squares = squares;
      FirstNonFinite first;
      const Clipped clipped = take_step(
          {{optimizer.settings(), rate}}, std::vector<std::size_t>(gradients_.size()),
          parameters_.views, gradients_.views, states, optimizer.writing(), request, first);
      if (first.buffer >= 0) {
        const WithGil held;
        raise_nonfinite(gradients_, first, clipped.nonfinite);
      }
      return clipped;
    };
    const auto start = Clock::now();
    auto looked = start;
    const auto after = [&] {
      const auto now = Clock::now();
      if (now - looked >= kSignalInterval) {
        looked = now;
        const WithGil held;
        // It collects garbage, too.
        if (ask_python(PyErr_CheckSignals) != 0) throw py::error_already_set();
      }
      return std::chrono::duration<double>(now - start).count() < seconds;
    };
    auto* const written =
        static_cast<StepRecord*>(py::reinterpret_borrow<py::array>(records).mutable_data());
    const double* const of_steps = fitting<double>(rates, steps, -1);
    const WithoutGil released;
    trainer_->run(rows, count, batch_size_, of_steps, {gauge.first, gauge.second}, step, after,
                  written);
  }

  const Trainer& trainer() const { return *trainer_; }

 private:
  static void must_fit(bool fits) {
    if (!fits) throw py::type_error("x and target must be as the network takes them");
  }

  void begin_sequences(const py::object& lengths,
                       const std::optional<std::pair<int, int>>& window) {
    const TimeWindow asked = window ? TimeWindow{window->first, window->second} : TimeWindow{};
    network_.cast<const AnyRecurrent&>().visit([&](auto& typed) {
      using T = RecurrentElement<std::decay_t<decltype(typed)>>;
      const SequenceBatch<T> batch(typed.shape(), x_, lengths, py::none(), &target_);
      must_fit(batch.fits && (!window || (asked.steps >= 1 && asked.back >= asked.steps)));
      const Sequences<T>& all = batch.all;
      rows_ = all.rows;
      SequenceExamples<T> examples{all.rows, all.steps, all.x, all.values, all.labels, {}};
      if (all.lengths) examples.lengths.assign(all.lengths, all.lengths + all.rows);
      trainer_ = make_trainer(typed, std::move(examples), batch_size_, asked);
    });
  }

  py::object network_, x_, target_;
  int batch_size_;
  std::int64_t rows_ = 0;
  Buffers parameters_, gradients_;
  std::unique_ptr<Trainer> trainer_;
};

}  // namespace

void register_training(py::module_& module) {
  py::class_<PyTrainer>(module, "Trainer",
                        "Steps of a network over batches; see fit() of vegrad.MLP and vegrad.RNN.")
      .def(py::init<py::object, py::object, py::object, int, const py::object&,
                    const std::optional<std::pair<int, int>>&>(),
           py::arg("network"), py::arg("x"), py::arg("target"), py::arg("batch_size"),
           py::arg("lengths") = py::none(), py::arg("window") = py::none())
      .def("run", &PyTrainer::run, py::arg("optimizer"), py::arg("order"), py::arg("rates"),
           py::arg("records"), py::arg("seconds"), py::arg("gauge"), py::arg("rule"),
           py::arg("limit"), py::arg("ord"), py::arg("nonfinite"), py::arg("eps"),
           "A step for each batch of rows in this order.")
      .def_property_readonly(
          "done", [](const PyTrainer& t) { return t.trainer().done; },
          "How many steps the last run made, also if it ended in an error.")
      .def_property_readonly(
          "taken", [](const PyTrainer& t) { return t.trainer().taken; },
          "The same without those that were skipped.")
      .def_property_readonly(
          "clipped", [](const PyTrainer& t) { return t.trainer().last; }, "Of the last step.");
}

}  // namespace vegrad
