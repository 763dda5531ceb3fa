// Zeroed memory aligned for vectors, in huge pages where that pays.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels/table.hpp"

namespace vegrad {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t n) : size_(n) {
    if (n == 0) return;
    const std::size_t huge = std::size_t(2) << 20;
    const std::size_t bytes = n * sizeof(T);
    const std::size_t alignment = bytes >= 2 * huge ? huge : std::size_t(kPadBytes);
    data_ = static_cast<T*>(::operator new(bytes, std::align_val_t(alignment)));
    alignment_ = alignment;
#if defined(__linux__)
    if (alignment == huge) madvise(data_, bytes, MADV_HUGEPAGE);  // advice: failure is harmless
#endif
    std::memset(static_cast<void*>(data_), 0, bytes);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_) ::operator delete(data_, std::align_val_t(alignment_));
  }

  T* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(alignment_, other.alignment_);
  }
  T* data_ = nullptr;
  std::size_t size_ = 0, alignment_ = 0;
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
