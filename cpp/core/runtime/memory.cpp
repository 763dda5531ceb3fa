#include "core/runtime/memory.hpp"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#if (defined(__unix__) || defined(__APPLE__)) && !defined(__EMSCRIPTEN__)
#include <sys/mman.h>
#include <unistd.h>
#define VEGRAD_HAS_PAGES
#endif

namespace vegrad {
namespace {

GuardPages read_guard_pages() {
#if defined(VEGRAD_HAS_PAGES)
  const char* const text = std::getenv("VEGRAD_GUARD_PAGES");
  const std::string value = text ? text : "";
  if (value == "before") return GuardPages::kBefore;
  if (value == "after") return GuardPages::kAfter;
  if (!value.empty())
    throw std::invalid_argument("VEGRAD_GUARD_PAGES must be before or after, not '" + value + "'");
#endif
  return GuardPages::kNone;
}

}  // namespace

GuardPages guard_pages() {
  static const GuardPages found = read_guard_pages();
  return found;
}

#if defined(VEGRAD_HAS_PAGES)
std::size_t page_size() {
  static const std::size_t found = std::size_t(sysconf(_SC_PAGESIZE));
  return found;
}

void forbid_page(void* page) {
  if (mprotect(page, page_size(), PROT_NONE) != 0) throw std::bad_alloc();
}
#else
std::size_t page_size() { return 4096; }
void forbid_page(void*) {}
#endif

Block::Block(std::size_t bytes) {
  if (bytes == 0) return;
#if defined(VEGRAD_HAS_PAGES)
  if (const GuardPages guard = guard_pages(); guard != GuardPages::kNone) {
    const std::size_t page = page_size(), whole = (bytes + kPadBytes - 1) / kPadBytes * kPadBytes;
    const std::size_t pages = (whole + page - 1) / page * page;
    mapped_bytes_ = pages + 2 * page;
    void* const mapped =
        mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    mapped_ = mapped;
    char* const first = static_cast<char*>(mapped);
    forbid_page(first);
    forbid_page(first + page + pages);
    data_ = first + page + (guard == GuardPages::kAfter ? pages - whole : 0);
    return;
  }
#endif
  const std::size_t huge = std::size_t(2) << 20;
  alignment_ = bytes >= 2 * huge ? huge : std::size_t(kPadBytes);
  data_ = ::operator new(bytes, std::align_val_t(alignment_));
#if defined(__linux__)
  if (alignment_ == huge) madvise(data_, bytes, MADV_HUGEPAGE);  // advice: failure is harmless
#endif
  std::memset(data_, 0, bytes);
}

Block::~Block() {
#if defined(VEGRAD_HAS_PAGES)
  if (mapped_) {
    munmap(mapped_, mapped_bytes_);
    return;
  }
#endif
  if (data_) ::operator delete(data_, std::align_val_t(alignment_));
}

}  // namespace vegrad
