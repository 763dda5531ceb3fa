// What users pass as buffers, looked at where it lies: arrays, tensors, lists and mappings of them,
// nested as deep as they like.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
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
  std::string label(std::size_t number) const;  // grads["layers"][0]["weight"], grads[3] or grads
  // A key or a position; of one in a container inside, its name; of one alone, None.
  pybind11::object key(std::size_t number) const;
  // Keys and positions from the outside in, joined by dots: layers.0.weight.
  pybind11::str name(std::size_t number) const;
  pybind11::list names() const;
  // Throws ValueError: something is to be kept by name, and these two have the same.
  [[noreturn]] void refuse_one_name(std::size_t number, std::size_t other) const;
  pybind11::list present() const;  // of a list: those that are not None
  // Whether positions say it all: one buffer, or a sequence that is not nested.
  bool is_flat() const { return entries_.empty(); }
  // In the outermost sequence or mapping, None counted.
  std::int64_t position(std::size_t number) const { return positions_[number]; }

  // Those of `other` that belong to these, in this order; TypeError or ValueError, which gives the
  // first place that differs, unless nesting, names and shapes agree. None here goes with anything.
  Buffers matched(const char* argument, const pybind11::object& other, bool writable);

 private:
  enum class Kind { kOne, kSequence, kMapping, kNone };
  // How an object's memory is reached: as a NumPy array, by DLPack's table of functions for its
  // type, or by a DLPack capsule that it makes.
  enum class Source { kUnknown, kArray, kExchange, kCapsule };
  // What stands at one place, each container before what is in it.
  struct Entry {
    std::size_t parent;    // itself for the outermost
    Kind kind;             // kOne: a buffer
    pybind11::object key;  // in a mapping
    std::int64_t position;
    std::size_t number;      // of a buffer; of a container, where the next entry is
    const PyObject* object;  // a container
  };
  static constexpr int kDeepest = 64;  // containers within each other
  static constexpr int kMostItems = 1 << 22;
  static constexpr int kAhead = 8;  // items: how far ahead their memory is fetched

  Buffers() = default;
  static Kind container_kind(const pybind11::handle& object);
  static const char* kind_name(Kind kind);
  void reserve(std::size_t length);
  [[noreturn]] static void refuse(const std::string& label, const pybind11::handle& object);
  static bool is_of_jax(const pybind11::handle& object);
  static const char* hint_for(const pybind11::handle& object);
  void check_jax(const pybind11::handle& item) const;
  [[noreturn]] void refuse_unreadable(const pybind11::handle& container) const;
  void plant();
  void enter(const pybind11::handle& item, const pybind11::handle& key);
  pybind11::object listed(const pybind11::handle& container, bool named) const;
  void add_items(const pybind11::handle& container);
  Py_ssize_t add_arrays(PyObject* list, Py_ssize_t next);
  void note(Kind kind, const pybind11::handle& key, std::size_t number);
  void add(const pybind11::handle& item, const pybind11::handle& key);
  void add_array(const pybind11::handle& item, View& view);
  void add_exchanged(const pybind11::handle& item, View& view);
  bool add_capsule(const pybind11::handle& item, View& view);
  void take(const void* tensor, const pybind11::handle& item, View& view);

  std::size_t after(std::size_t entry) const {
    const Kind kind = entries_[entry].kind;
    return kind == Kind::kSequence || kind == Kind::kMapping ? entries_[entry].number : entry + 1;
  }
  std::size_t length_of(std::size_t sequence) const;
  void pair(const Buffers& other, std::size_t entry, std::size_t theirs,
            std::vector<std::size_t>& places) const;
  void pair_named(const Buffers& other, std::size_t mapping, std::size_t theirs,
                  std::vector<std::size_t>& places) const;
  void pair_flat(const Buffers& other, std::vector<std::size_t>& places) const;
  // ValueError unless buffer `number`, which `other` has as `theirs`, has the same shape there.
  void require_shape(std::size_t number, const Buffers& other, const View& theirs) const;
  [[noreturn]] void miss(const Buffers& other, std::size_t mapping, std::size_t theirs,
                         std::size_t entry) const;

  static std::string part(Kind container, const pybind11::handle& key, std::int64_t position);
  std::string path(std::size_t entry) const;
  std::string here() const;  // what is looked at

  const char* argument_ = "";
  bool writable_ = false;
  const PyObject* root_ = nullptr;
  std::vector<Entry> entries_;           // of a mapping, and of a sequence with containers in it
  std::vector<std::size_t> leaves_;      // where the buffers are in entries_
  std::vector<std::int64_t> positions_;  // in the outermost container, None counted
  // The container that is looked at, at last the outermost: its entry, and how far it is read.
  std::size_t within_ = 0;
  Kind kind_ = Kind::kOne;
  std::int64_t length_ = 0;     // None counted
  std::int64_t outermost_ = 0;  // the position where it lies in the outermost
  pybind11::handle current_key_;
  PyTypeObject* last_type_ = nullptr;  // and how its tensors are read
  Source last_source_ = Source::kUnknown;
  const void* last_api_ = nullptr;
  pybind11::object last_descriptor_;  // of an array, held, so that no other can have its place
  Dtype last_dtype_ = Dtype::kFloat32;
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
