// Instruction set and threads.
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "bindings/register.hpp"
#include "core/runtime/dispatch.hpp"
#include "core/runtime/threads.hpp"

namespace py = pybind11;

#ifdef VEGRAD_COVERAGE
extern "C" void __gcov_dump();
#endif

namespace vegrad {
namespace {

py::tuple isas() {
  const auto& sets = supported_instruction_sets();
  py::tuple names(sets.size());
  for (std::size_t i = 0; i < sets.size(); ++i) names[i] = py::str(sets[i]->name);
  return names;
}

void set_num_threads_checked(const py::object& n) {
  if (!PyIndex_Check(n.ptr()) || PyBool_Check(n.ptr()))
    throw py::type_error("n must be an integer, not " +
                         std::string(py::str(py::type::of(n).attr("__name__"))));
  const py::int_ number = py::reinterpret_steal<py::int_>(PyNumber_Index(n.ptr()));
  int overflow = 0;
  const long value = PyLong_AsLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0 || value < 1 || value > kMostThreads)
    throw py::value_error("n must be from 1 to " + std::to_string(kMostThreads) + ", not " +
                          std::string(py::str(number)));
  set_num_threads(int(value));
}

// Addresses, of functions that stay where they are until the process ends.
void borrow_threads(std::uintptr_t parallel, std::uintptr_t most, std::uintptr_t number) {
  OpenMp openmp;
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(parallel);
  openmp.most = reinterpret_cast<decltype(openmp.most)>(most);
  openmp.number = reinterpret_cast<decltype(openmp.number)>(number);
  set_openmp(openmp);
}

}  // namespace

void register_runtime(py::module_& module) {
#ifdef VEGRAD_COVERAGE
  module.def("write_coverage", &__gcov_dump, "Write which lines have run so far.");
#endif
  module.def(
      "isa", [] { return std::string(instruction_set().name); },
      "The instruction set that the kernels run on: baseline, avx2, avx512 or neon.\n\n"
      "Chosen at import; the environment variable VEGRAD_ISA forces one.");
  module.def("isas", &isas, "The instruction sets that this machine supports, best first.");
  module.def("use_isa", &use_instruction_set, py::arg("name"),
             "Switch the instruction set (for tests); ValueError if this machine lacks it.");
  module.def("has_matrix_unit", &has_matrix_unit,
             "Whether this machine has a matrix unit that avx512 can use (AMX with bfloat16).");
  module.def(
      "matrix_unit", [] { return matrix_unit() != nullptr; },
      "Whether products of float32 run on the matrix unit.\n\n"
      "The environment variable VEGRAD_AMX=0 switches it off.");
  module.def("use_matrix_unit", &use_matrix_unit, py::arg("on"),
             "Switch the matrix unit on, where there is one, or off (for tests).");
  module.def(
      "is_plain",
      [] {
#if defined(VEGRAD_PLAIN)
        return true;
#else
        return false;
#endif
      },
      "Whether this is the build for any processor, without threads (VEGRAD_PLAIN).");
  module.def("num_threads", &num_threads, "The number of threads that kernels use.");
  module.def("set_num_threads", &set_num_threads_checked, py::arg("n"),
             "Set the number of threads that kernels use, from 1 to 1024.\n\n"
             "Before the first call it is VEGRAD_NUM_THREADS, else OMP_NUM_THREADS, else the\n"
             "number of cores that this process may use. Results do not depend on it.\n\n"
             "Raises TypeError if n is no integer and ValueError if it is out of range.");
  module.def("share_everything", &set_shares_everything, py::arg("on"),
             "Share work among threads also where that does not pay, or not (for tests).");
  module.def("borrow_threads", &borrow_threads, py::arg("parallel"), py::arg("most"),
             py::arg("number"), "Run on OpenMP's threads where a caller of theirs is the caller.");
}

}  // namespace vegrad
