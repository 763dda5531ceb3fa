// Tables as text.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "core/tables/csv.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

// The bytes of a text from a place on. Behind them stands a 0.
struct Text {
  const char *begin, *end;

  Text(const py::bytes& data, std::size_t start) {
    const std::string_view all = data;
    begin = all.data() + std::min(start, all.size());
    end = all.data() + all.size();
  }
};

py::tuple csv_numbers(const py::bytes& data, std::size_t start, char separator, char decimal,
                      const std::vector<int>& place, std::int64_t line) {
  const Text text(data, start);
  const std::int64_t most = without_gil([&] { return most_csv_rows(text.begin, text.end); });
  const py::ssize_t columns = py::ssize_t(place.size());
  for (const int one : place)
    if (one < 0 || one >= columns) throw py::value_error("places must be those of the columns");
  py::array_t<double> numbers({py::ssize_t(most), columns});
  py::array_t<std::int64_t> lines(most);
  double* const to = numbers.mutable_data();
  std::int64_t* const lines_to = lines.mutable_data();
  const CsvContent content = without_gil([&] {
    return read_csv_numbers(text.begin, text.end, {separator, decimal}, place, line, to, lines_to);
  });
  py::list columns_met;
  for (const CsvColumn& one : content.columns)
    columns_met.append(py::make_tuple(one.words, one.missing, one.first_word));
  const py::slice rows(0, content.rows, 1);
  return py::make_tuple(numbers[rows], lines[rows], columns_met,
                        py::make_tuple(content.uneven_line, content.cells_there),
                        content.broken_line, content.empty_rows);
}

std::vector<std::vector<std::string>> csv_words(const py::bytes& data, std::size_t start,
                                                char separator, const std::vector<int>& chosen) {
  const Text text(data, start);
  return without_gil(
      [&] { return read_csv_words(text.begin, text.end, {separator, '.'}, chosen); });
}

}  // namespace

void register_tables(py::module_& module) {
  module.def("csv_numbers", &csv_numbers, py::arg("data"), py::arg("start"), py::arg("separator"),
             py::arg("decimal"), py::arg("place"), py::arg("line"));
  module.def("csv_words", &csv_words, py::arg("data"), py::arg("start"), py::arg("separator"),
             py::arg("chosen"));
}

}  // namespace vegrad
