// The processor's mode while kernels run. In a network's pass subnormals are flushed, for
// arithmetic on them made the same step of a vanishing network 6 to 20 times slower; where elements
// of somebody's buffers are looked at, they count. The caller's mode comes back on return.
// A processor that we know no mode of stays as it is: slower there, and as right.
#pragma once

#include <cstdint>

#include "simd/processor.hpp"

#if defined(VEGRAD_X86)
#include <xmmintrin.h>
#endif

namespace vegrad {

template <bool FLUSH>
class SubnormalMode {
 public:
#if defined(VEGRAD_X86)
  SubnormalMode() : before_(_mm_getcsr()) {
    _mm_setcsr(FLUSH ? before_ | kFlags : before_ & ~kFlags);
  }
  ~SubnormalMode() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kFlags = 0x8040;  // FTZ, DAZ
  unsigned before_;
#elif defined(VEGRAD_ARM)
  SubnormalMode() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    const std::uint64_t flag = std::uint64_t(1) << 24;  // FZ
    asm volatile("msr fpcr, %0" : : "r"(FLUSH ? before_ | flag : before_ & ~flag));
  }
  ~SubnormalMode() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  std::uint64_t before_;
#else
  SubnormalMode() {}
#endif

 public:
  SubnormalMode(const SubnormalMode&) = delete;
  SubnormalMode& operator=(const SubnormalMode&) = delete;
};

using FlushSubnormals = SubnormalMode<true>;
using KeepSubnormals = SubnormalMode<false>;

}  // namespace vegrad
