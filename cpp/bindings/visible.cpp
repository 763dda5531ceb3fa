#include "bindings/visible.hpp"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "bindings/register.hpp"
#include "bindings/tensors.hpp"

namespace py = pybind11;

namespace vegrad {
namespace {

struct Piece {
  std::string text;
  std::size_t width;  // in characters
};

Piece piece_of(Py_UCS4 c, bool lines) {
  if (Py_UNICODE_ISPRINTABLE(c) || (lines && c == '\n')) {
    std::string text;
    if (c < 0x80) {
      text += char(c);
    } else {
      if (c >= 0x10000) {
        text += char(0xf0 | c >> 18);
        text += char(0x80 | (c >> 12 & 0x3f));
      } else if (c >= 0x800) {
        text += char(0xe0 | c >> 12);
      }
      text += c >= 0x800 ? char(0x80 | (c >> 6 & 0x3f)) : char(0xc0 | c >> 6);
      text += char(0x80 | (c & 0x3f));
    }
    return {text, 1};
  }
  if (c == '\n') return {"\\n", 2};
  if (c == '\r') return {"\\r", 2};
  if (c == '\t') return {"\\t", 2};
  char text[16];
  const char* const format = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
  const int width = std::snprintf(text, sizeof text, format, unsigned(c));
  return {text, std::size_t(width)};
}

}  // namespace

std::string visible(const py::handle& text, std::size_t most, bool lines) {
  PyObject* const all = text.ptr();
  const Py_ssize_t length = PyUnicode_GET_LENGTH(all);
  const int kind = PyUnicode_KIND(all);
  const void* const data = PyUnicode_DATA(all);
  const auto piece = [&](Py_ssize_t i) { return piece_of(PyUnicode_READ(kind, data, i), lines); };
  std::string head;
  std::size_t width = 0, room = 0;  // of what fits with a sign for the rest
  Py_ssize_t next = 0, kept = 0;
  for (; next < length && width <= most; ++next) {
    const Piece one = piece(next);
    width += one.width;
    head += one.text;
    if (width <= most / 2) {
      kept = next + 1;
      room = head.size();
    }
  }
  if (width <= most) return head;
  head.resize(room);
  std::vector<std::string> tail;
  width = 0;
  for (Py_ssize_t i = length; i-- > kept;) {
    const Piece one = piece(i);
    if ((width += one.width) >= most - most / 2) break;
    tail.push_back(one.text);
  }
  head += "\u2026";
  for (auto one = tail.rbegin(); one != tail.rend(); ++one) head += *one;
  return head;
}

std::string shown(const py::handle& object) {
  try {
    return visible(py::repr(object));
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;
    return "<" + type_name(object) + ">";
  }
}

void register_visible(py::module_& module) {
  module.def(
      "visible",
      [](const py::str& text, std::size_t most, bool lines) { return visible(text, most, lines); },
      py::arg("text"), py::arg("most") = kMostOfName, py::arg("lines") = false,
      "A text on one line (unless `lines`), of at most so many characters, in which what cannot be "
      "printed is written as in a literal: escape sequences, marks of direction.");
}

}  // namespace vegrad
