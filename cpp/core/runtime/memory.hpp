// Zeroed memory aligned for vectors, in huge pages where that pays.
//
// For tests, VEGRAD_GUARD_PAGES=after (or before) puts every block into pages of its own, so that
// it ends at (or begins right after) a page that may not be touched: a kernel that reads or writes
// beyond the block then ends the process instead of going unnoticed. It is read once, on Linux and
// macOS only.
#pragma once

#include <cstddef>
#include <utility>

#include "kernels/table.hpp"

namespace vegrad {

enum class GuardPages { kNone, kBefore, kAfter };
// Throws std::invalid_argument if VEGRAD_GUARD_PAGES is set to anything but "before" and "after".
GuardPages guard_pages();
std::size_t page_size();
void forbid_page(void* page);

// The memory of a Buffer, without a type.
class Block {
 public:
  Block() = default;
  explicit Block(std::size_t bytes);
  Block(Block&& other) noexcept { swap(other); }
  Block& operator=(Block&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Block();

  void* data() const { return data_; }

 private:
  void swap(Block& other) {
    std::swap(data_, other.data_);
    std::swap(alignment_, other.alignment_);
    std::swap(mapped_, other.mapped_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
  }
  void* data_ = nullptr;
  std::size_t alignment_ = 0;
  void* mapped_ = nullptr;  // with guard pages: the pages, which the system gave us
  std::size_t mapped_bytes_ = 0;
};

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t n) : block_(n * sizeof(T)), size_(n) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  T* data() const { return static_cast<T*>(block_.data()); }
  std::size_t size() const { return size_; }

 private:
  void swap(Buffer& other) {
    std::swap(block_, other.block_);
    std::swap(size_, other.size_);
  }
  Block block_;
  std::size_t size_ = 0;
};

// Lays out the parts of one buffer, one after the other: once with a null base to learn the size,
// and once more with the buffer's memory. With guard pages each part is guarded by itself.
template <class T>
class Parts {
 public:
  explicit Parts(T* base) : base_(base) {}

  // The next part, of n elements; null as long as there is no memory.
  T* take(std::size_t n) {
    const GuardPages guard = guard_pages();
    if (guard == GuardPages::kNone || n == 0) {
      T* const at = place(size_);
      size_ += (n + kPadBytes - 1) / kPadBytes * kPadBytes;
      return at;
    }
    const std::size_t page = page_size() / sizeof(T), unit = kPadBytes / sizeof(T);
    const std::size_t whole = (n + unit - 1) / unit * unit;
    const std::size_t pages = (whole + page - 1) / page * page;
    const bool after = guard == GuardPages::kAfter;
    T* const at = place(size_ + (after ? pages - whole : page));
    if (base_) forbid_page(place(size_ + (after ? pages : 0)));
    size_ += pages + page;
    return at;
  }

  std::size_t size() const { return size_; }  // elements, of all parts up to now

 private:
  T* place(std::size_t at) const { return base_ ? base_ + at : nullptr; }

  T* base_;
  std::size_t size_ = 0;
};

// The leading dimension of an internal matrix of `columns`: whole vectors on every machine, and no
// large power of two, where rows would fight for the same few places in the first-level cache.
template <class T>
std::ptrdiff_t padded(std::ptrdiff_t columns) {
  const std::ptrdiff_t unit = kPadBytes / sizeof(T);
  const std::ptrdiff_t whole = (columns + unit - 1) / unit * unit;
  return whole * sizeof(T) % 1024 == 0 ? whole + unit : whole;
}

}  // namespace vegrad
