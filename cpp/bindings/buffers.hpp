// What users pass as buffers, looked at where it lies: arrays, tensors, lists and mappings of them.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/buffers/buffers.hpp"

namespace vegrad {

class Buffers {
 public:
  // `argument`: the name in messages. Throws TypeError and ValueError that give wanted and got.
  Buffers(const char* argument, const pybind11::object& object, bool writable);
  // What is found under a name in each of a list's entries: gradients of parameters.
  Buffers(const char* argument, const pybind11::list& holders, const char* attribute,
          bool writable);

  std::vector<View> views;
  std::vector<pybind11::object> owners;  // What keeps the views' memory alive.

  std::size_t size() const { return views.size(); }
  std::string label(std::size_t number) const;     // grads["layers.0.weight"], grads[3] or grads
  pybind11::object key(std::size_t number) const;  // a name, a position or None
  pybind11::list keys() const;
  pybind11::list present() const;  // of a list: those that are not None
  bool is_mapping() const { return kind_ == Kind::kMapping; }
  std::int64_t position(std::size_t number) const { return positions_[number]; }

  // Those of `other` that belong to these, in this order; ValueError unless names and shapes agree.
  Buffers matched(const char* argument, const pybind11::object& other, bool writable) const;

 private:
  enum class Kind { kOne, kSequence, kMapping };
  // How an object's memory is reached: as a NumPy array, by DLPack's table of functions for its
  // type, or by a DLPack capsule that it makes.
  enum class Source { kUnknown, kArray, kExchange, kCapsule };

  Buffers() = default;
  void reserve(std::size_t length);
  pybind11::dict places_in(const char* argument, const Buffers& other) const;
  void add(const pybind11::handle& item, const pybind11::handle& key);
  void add_array(const pybind11::handle& item, View& view);
  void add_exchanged(const pybind11::handle& item, View& view);
  bool add_capsule(const pybind11::handle& item, View& view);
  void take(const void* tensor, const pybind11::handle& item, View& view);
  std::string label_of(const pybind11::handle& key, std::int64_t position) const;
  std::string here() const { return label_of(current_key_, length_); }  // of what is looked at

  const char* argument_ = "";
  bool writable_ = false;
  Kind kind_ = Kind::kOne;
  std::vector<pybind11::object> keys_;   // of a mapping
  std::vector<std::int64_t> positions_;  // in a sequence or mapping, None counted
  std::int64_t length_ = 0;              // None counted
  pybind11::object skipped_;             // a set: the keys of None in a mapping
  pybind11::handle current_key_;
  PyTypeObject* last_type_ = nullptr;  // and how its tensors are read
  Source last_source_ = Source::kUnknown;
  const void* last_api_ = nullptr;
  AxisStore axes_;
};

// Reads tensors of one type by the table of that type, without a Python object for each: those that
// are dense. It is wrong about none, but leaves out many.
class DenseReader {
 public:
  explicit DenseReader(const pybind11::type& type);
  // Whether the object is a dense tensor on the CPU, of one of our types. If not, it is for Buffers
  // to look at, or to say what is wrong. The object and `axes` must outlive the view.
  bool operator()(PyObject* object, AxisStore& axes, View& view) const;

 private:
  pybind11::object type_;
  const void* api_;  // null: the type has no table
};

}  // namespace vegrad
