// Names of users, modules and files as people are shown them, in messages and everywhere else.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace vegrad {

constexpr std::size_t kMostOfName = 80;

// A text on one line: what is no printable character (control characters and escape sequences,
// marks of direction, halves of surrogate pairs) as Python writes it in a literal, \n or \u202e. Of
// one longer than `most` characters, the beginning and the end. `lines` leaves ends of lines as
// they are.
std::string visible(const pybind11::handle& text, std::size_t most = kMostOfName,
                    bool lines = false);

// What repr() gives, made visible; "<Name>" where it fails.
std::string shown(const pybind11::handle& object);

}  // namespace vegrad
