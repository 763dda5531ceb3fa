// The kernels of a recurrent step by themselves, for tests: arrays in the layout of
// kernels/cell_table.hpp, by the names that they have there.
#include <pybind11/stl.h>

#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/register.hpp"
#include "core/runtime/dispatch.hpp"
#include "core/runtime/floating_point.hpp"
#include "core/runtime/names.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

int cell_of(const std::string& name) { return index_of(kCellNames, name, "cell"); }

// The arrays of a step. Those that are missing or None are null.
template <class T>
class StepArrays {
 public:
  StepArrays(const py::dict& arrays, int cell, int H) : arrays_(arrays), slots_(kCellSlots[cell]) {
    constexpr int unit = kPadBytes / int(sizeof(T));
    if (H < 1 || H > (1 << 16)) throw py::value_error("H must be between 1 and 65536");
    slot_ = (H + unit - 1) / unit * unit;
    rows_ = py::cast<py::array>(arrays_["h"]).shape(0);
  }

  T* get(const char* name, py::ssize_t rows, py::ssize_t columns) const {
    if (!arrays_.contains(name) || arrays_[name].is_none()) return nullptr;
    const T* const data = fitting<T>(arrays_[name], rows, columns);
    if (!data || !py::cast<py::array>(arrays_[name]).writeable())
      throw py::value_error(std::string(name) + " is no writeable array of the right shape");
    return const_cast<T*>(data);
  }
  T* units(const char* name) const { return get(name, rows_, slot_); }
  T* slots(const char* name) const { return get(name, rows_, slots_ * slot_); }
  T* one_a_row(const char* name) const { return get(name, rows_, -1); }
  T* bias() const { return get("bias", slots_ * slot_, -1); }
  T* packed(std::size_t size) const { return get("recurrent", py::ssize_t(size), -1); }

  py::ssize_t slot() const { return slot_; }
  py::ssize_t slots_in_all() const { return slots_ * slot_; }
  int rows() const { return int(rows_); }
  bool lone() const { return arrays_.contains("lone"); }

 private:
  const py::dict& arrays_;
  py::ssize_t rows_ = 0, slot_ = 0, slots_;
};

template <class T>
py::array pack_as(int cell, const py::array& recurrent, bool back) {
  const T* const U = data_of<T>(recurrent, "recurrent");
  const int H = int(recurrent.shape(1));
  if (recurrent.ndim() != 2 || recurrent.shape(0) != kCellGates[cell] * H)
    throw py::value_error("recurrent must be (gates * H, H)");
  const CellKernels<T>& kernels = instruction_set().kernels<T>().cell[cell];
  py::array_t<T> packed(py::ssize_t(kernels.packed_size(H)));
  std::memset(packed.mutable_data(), 0, std::size_t(packed.nbytes()));
  (back ? kernels.pack_backward : kernels.pack_forward)(U, H, packed.mutable_data());
  return packed;
}

template <class T>
void forward_as(int cell, int H, const py::dict& arrays) {
  const CellKernels<T>& kernels = instruction_set().kernels<T>().cell[cell];
  const StepArrays<T> in(arrays, cell, H);
  CellForward<T> f{};
  f.rows = in.rows();
  f.lone = in.lone();
  f.H = H;
  f.slot = f.ld = f.ld_before = in.slot();
  f.ld_gates = in.slots_in_all();
  f.recurrent = in.packed(kernels.packed_size(H));
  f.bias = in.bias();
  f.h_before = in.units("h_before");
  f.c_before = in.units("c_before");
  f.gates = in.slots("gates");
  f.h = in.units("h");
  f.c = in.units("c");
  f.h_squares = in.one_a_row("h_squares");
  const bool whole = f.recurrent && f.bias && f.h_before && f.gates;
  if (!whole || (Cell(cell) == Cell::lstm && !(f.c && f.c_before)))
    throw py::value_error("a step forward lacks an array");
  const FlushSubnormals flush;
  kernels.forward(f);
}

template <class T>
void backward_as(int cell, int H, const py::dict& arrays, bool fresh) {
  const CellKernels<T>& kernels = instruction_set().kernels<T>().cell[cell];
  const StepArrays<T> in(arrays, cell, H);
  CellBackward<T> b{};
  b.rows = in.rows();
  b.lone = in.lone();
  b.H = H;
  b.slot = b.ld = b.ld_before = b.ld_local = b.ld_carried = b.ld_delta = in.slot();
  b.ld_gates = in.slots_in_all();
  b.recurrent = in.packed(kernels.packed_size(H));
  b.after = in.slots("after");
  b.scale = in.one_a_row("scale");
  b.local = in.units("local");
  b.local_scale = in.one_a_row("local_scale");
  b.gates = in.slots("gates");
  b.h = in.units("h");
  b.h_before = in.units("h_before");
  b.c = in.units("c");
  b.c_before = in.units("c_before");
  b.carried = in.units("carried");
  b.fresh = fresh;
  b.delta = in.units("delta");
  b.delta_squares = in.one_a_row("delta_squares");
  b.passed_squares = in.one_a_row("passed_squares");
  b.carried_squares = in.one_a_row("carried_squares");
  b.state_squares = in.one_a_row("state_squares");
  b.matrix_squares = in.one_a_row("matrix_squares");
  b.into_state_squares = in.one_a_row("into_state_squares");
  b.carry_sums = in.get("carry_sums", (in.rows() + kRowGroup - 1) / kRowGroup, in.slot());
  const bool state = Cell(cell) != Cell::lstm || (b.c && b.c_before);
  const bool carries = kCellSlots[cell] == 1 || b.carried;
  if (!b.recurrent || !b.h || !b.h_before || !b.delta_squares || !state || !carries)
    throw py::value_error("a step back lacks an array");
  const FlushSubnormals flush;
  kernels.backward(b);
}

bool is_float32(const py::dict& arrays) { return py::isinstance<py::array_t<float>>(arrays["h"]); }

}  // namespace

void register_cells(py::module_& module) {
  module.attr("CELLS") =
      py::tuple(py::cast(std::vector<std::string>(std::begin(kCellNames), std::end(kCellNames))));
  module.def(
      "pack_cell",
      [](const std::string& cell, const py::array& recurrent, bool back) {
        return is_contiguous<float>(recurrent) ? pack_as<float>(cell_of(cell), recurrent, back)
                                               : pack_as<double>(cell_of(cell), recurrent, back);
      },
      py::arg("cell"), py::arg("recurrent"), py::arg("back"),
      "U (gates * H, H) as a step forward or back takes it.");
  module.def(
      "cell_forward",
      [](const std::string& cell, int hidden, const py::dict& arrays) {
        (is_float32(arrays) ? forward_as<float> : forward_as<double>)(cell_of(cell), hidden,
                                                                      arrays);
      },
      py::arg("cell"), py::arg("hidden"), py::arg("arrays"),
      "One step forward, in place, of arrays named as in kernels/cell_table.hpp.");
  module.def(
      "cell_backward",
      [](const std::string& cell, int hidden, const py::dict& arrays, bool fresh) {
        (is_float32(arrays) ? backward_as<float> : backward_as<double>)(cell_of(cell), hidden,
                                                                        arrays, fresh);
      },
      py::arg("cell"), py::arg("hidden"), py::arg("arrays"), py::arg("fresh"),
      "One step back, in place.");
}

}  // namespace vegrad
