// One recurrent layer over somebody else's parameters, of either dtype behind one Python class.
#include <mutex>
#include <variant>

#include "bindings/gil.hpp"
#include "bindings/recurrent.hpp"
#include "bindings/register.hpp"
#include "core/recurrent/layer.hpp"
#include "core/runtime/lock.hpp"
#include "core/runtime/names.hpp"
#include "core/runtime/threads.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

template <class T>
using LayerPointer = std::shared_ptr<RecurrentLayer<T>>;

// What a forward pass kept, x with it; its memory goes back to the layer.
template <class T>
class Kept {
 public:
  Kept(LayerPointer<T> layer, const py::object& x, bool keep)
      : layer_(std::move(layer)), x_(x), keep_(keep), pass_(layer_->take(keep)) {}
  Kept(Kept&& other) = default;
  ~Kept() {
    if (pass_) layer_->give_back(std::move(pass_), keep_);
  }
  KeptPass<T>& pass() { return *pass_; }
  WorkLock& running() { return *running_; }

 private:
  LayerPointer<T> layer_;
  py::object x_;
  bool keep_;
  std::unique_ptr<KeptPass<T>> pass_;
  std::unique_ptr<WorkLock> running_ = std::make_unique<WorkLock>();
};

// The data of an array of this shape, null for None; TypeError if it is something else.
template <class T>
const T* optional(const char* name, const py::object& object,
                  std::initializer_list<py::ssize_t> shape) {
  if (object.is_none()) return nullptr;
  if (const T* const data = shaped<T>(object, shape)) return data;
  throw py::type_error(std::string(name) +
                       " is no contiguous array of the layer's dtype and of the right shape");
}

template <class T>
const T* needed(const char* name, const py::object& object,
                std::initializer_list<py::ssize_t> shape) {
  if (object.is_none()) throw py::type_error(std::string(name) + " must be an array, not None");
  return optional<T>(name, object, shape);
}

template <class T>
LayerInput<T> input_of(const RecurrentShape& shape, const py::object& x, const py::object& lengths,
                       const py::object& h0, const py::object& c0, bool time_major, bool reverse) {
  LayerInput<T> in{};
  in.x = needed<T>("x", x, {-1, -1, shape.inputs});
  const auto array = py::reinterpret_borrow<py::array>(x);
  const py::ssize_t B = array.shape(time_major ? 1 : 0), steps = array.shape(time_major ? 0 : 1);
  if (B < 1 || steps < 1 || B > 1 << 30 || steps > 1 << 30)
    throw py::value_error("x must have at least one row and one step");
  in.rows = int(B);
  in.steps = int(steps);
  in.lengths = optional<std::int64_t>("lengths", lengths, {B});
  for (py::ssize_t i = 0; in.lengths && i < B; ++i)
    if (in.lengths[i] < 1 || in.lengths[i] > steps)
      throw py::value_error("lengths must be from 1 to " + std::to_string(steps) + ", not " +
                            std::to_string(in.lengths[i]));
  in.h = optional<T>("h0", h0, {B, shape.hidden});
  in.c = optional<T>("c0", c0, {B, shape.hidden});
  in.time_major = time_major;
  in.reverse = reverse;
  return in;
}

template <class T>
py::array_t<T> steps_array(py::ssize_t B, py::ssize_t steps, py::ssize_t n, bool time_major,
                           bool zeros) {
  py::array_t<T> out(time_major ? std::vector<py::ssize_t>{steps, B, n}
                                : std::vector<py::ssize_t>{B, steps, n});
  if (zeros) std::fill(out.mutable_data(), out.mutable_data() + out.size(), T(0));
  return out;
}

// body(), on borrowed threads if several pay.
template <class Body>
void together(int threads, const Body& body) {
  if (threads > 1) return on_borrowed_threads(body);
  body();
}

template <class T>
py::tuple forward(const LayerPointer<T>& layer, const py::object& x, const LayerInput<T>& in,
                  const LayerWeights<const T>& weights, bool keep) {
  const RecurrentShape& shape = layer->shape();
  const py::ssize_t B = in.rows, H = shape.hidden;
  auto out = steps_array<T>(B, in.steps, H, in.time_major, in.lengths);
  py::array_t<T> h({B, H}), c({shape.has_c() ? B : py::ssize_t(0), H});
  T *const to = out.mutable_data(), *const to_h = h.mutable_data(),
           *const to_c = shape.has_c() ? c.mutable_data() : nullptr;
  Kept<T> kept(layer, x, keep);
  {
    const WithoutGil released;
    together(layer->threads(in.rows, in.steps, keep),
             [&] { layer->forward(kept.pass(), in, weights, keep, to, to_h, to_c); });
  }
  py::object last_c = py::none(), of_pass = py::none();
  if (shape.has_c()) last_c = c;
  if (keep) of_pass = py::cast(std::move(kept));
  return py::make_tuple(out, h, last_c, of_pass);
}

template <class T>
py::tuple backward(const LayerPointer<T>& layer, Kept<T>& kept, const py::object& d_out,
                   const py::object& d_h, const py::object& d_c, bool need_dx) {
  const RecurrentShape& shape = layer->shape();
  const KeptPass<T>& of = kept.pass();
  const py::ssize_t B = of.pass.schedule.rows(), steps = of.pass.schedule.steps(), H = shape.hidden,
                    I = shape.inputs, GH = shape.gates() * H;
  const bool time_major = of.time_major;
  const LayerGradients<T> in{time_major ? optional<T>("d_out", d_out, {steps, B, H})
                                        : optional<T>("d_out", d_out, {B, steps, H}),
                             optional<T>("d_h", d_h, {B, H}),
                             shape.has_c() ? optional<T>("d_c", d_c, {B, H}) : nullptr};
  auto dx = steps_array<T>(need_dx ? B : 0, steps, I, time_major, !of.pass.schedule.uniform());
  py::array_t<T> dh({B, H}), dc({shape.has_c() ? B : py::ssize_t(0), H}), w_ih({GH, I}),
      w_hh({GH, H}), b_ih({GH}), b_hh({GH});
  const LayerInputGradients<T> out{need_dx ? dx.mutable_data() : nullptr, dh.mutable_data(),
                                   shape.has_c() ? dc.mutable_data() : nullptr};
  const LayerWeights<T> gradients{w_ih.mutable_data(), w_hh.mutable_data(), b_ih.mutable_data(),
                                  b_hh.mutable_data()};
  {
    const WithoutGil released;
    const std::lock_guard<WorkLock> lock(kept.running());
    together(of.pass.threads, [&] { layer->backward(kept.pass(), in, out, gradients); });
  }
  py::object of_x = py::none(), of_c = py::none();
  if (need_dx) of_x = dx;
  if (shape.has_c()) of_c = dc;
  return py::make_tuple(of_x, dh, of_c, w_ih, w_hh, b_ih, b_hh);
}

class AnyLayer {
 public:
  AnyLayer(int inputs, int hidden, const std::string& cell, const std::string& dtype) {
    if (inputs < 1 || hidden < 1) throw py::value_error("inputs and hidden must be at least 1");
    const Cell kind = Cell(index_of(kCellNames, cell, "cell"));
    if (dtype == "float32")
      layer_ = std::make_shared<RecurrentLayer<float>>(inputs, hidden, kind);
    else if (dtype == "float64")
      layer_ = std::make_shared<RecurrentLayer<double>>(inputs, hidden, kind);
    else
      throw py::type_error("dtype must be float32 or float64, not " + dtype);
  }

  py::tuple forward(const py::object& x, const py::object& lengths, const py::object& h0,
                    const py::object& c0, const py::object& w_ih, const py::object& w_hh,
                    const py::object& b_ih, const py::object& b_hh, bool time_major, bool reverse,
                    bool keep) const {
    return visit([&](auto of_dtype, const auto& layer) {
      using T = decltype(of_dtype);
      const RecurrentShape& shape = layer->shape();
      const py::ssize_t H = shape.hidden, GH = shape.gates() * H;
      const LayerWeights<const T> weights{
          needed<T>("w_ih", w_ih, {GH, shape.inputs}), needed<T>("w_hh", w_hh, {GH, H}),
          optional<T>("b_ih", b_ih, {GH}), optional<T>("b_hh", b_hh, {GH})};
      return vegrad::forward(layer, x, input_of<T>(shape, x, lengths, h0, c0, time_major, reverse),
                             weights, keep);
    });
  }

  py::tuple backward(const py::object& kept, const py::object& d_out, const py::object& d_h,
                     const py::object& d_c, bool need_dx) const {
    return visit([&](auto of_dtype, const auto& layer) {
      using T = decltype(of_dtype);
      return vegrad::backward(layer, kept.cast<Kept<T>&>(), d_out, d_h, d_c, need_dx);
    });
  }

 private:
  template <class Body>
  py::tuple visit(const Body& body) const {
    if (const auto* const single = std::get_if<LayerPointer<float>>(&layer_))
      return body(float(), *single);
    return body(double(), std::get<LayerPointer<double>>(layer_));
  }

  std::variant<LayerPointer<float>, LayerPointer<double>> layer_;
};

}  // namespace

void register_recurrent_layer(py::module_& module) {
  py::class_<Kept<float>>(module, "_KeptFloat32");
  py::class_<Kept<double>>(module, "_KeptFloat64");
  py::class_<AnyLayer>(module, "RecurrentLayer",
                       "One layer and direction over somebody else's parameters.")
      .def(py::init<int, int, const std::string&, const std::string&>(), py::arg("inputs"),
           py::arg("hidden"), py::arg("cell"), py::arg("dtype"))
      .def("forward", &AnyLayer::forward, py::arg("x"), py::arg("lengths"), py::arg("h0"),
           py::arg("c0"), py::arg("w_ih"), py::arg("w_hh"), py::arg("b_ih"), py::arg("b_hh"),
           py::arg("time_major"), py::arg("reverse"), py::arg("keep"))
      .def("backward", &AnyLayer::backward, py::arg("kept"), py::arg("d_out"), py::arg("d_h"),
           py::arg("d_c"), py::arg("need_dx"));
}

}  // namespace vegrad
