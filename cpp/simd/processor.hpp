// Which processor this is built for: VEGRAD_X86, VEGRAD_ARM, or neither. With neither, kernels are
// written in the compiler's vectors alone, and nothing is asked of the processor or set in it. The
// option VEGRAD_PLAIN of CMakeLists.txt builds that on any processor, and without threads: what a
// port needs that has none of them, as WebAssembly.
#pragma once

#if !defined(VEGRAD_PLAIN)
#if defined(__x86_64__) || defined(_M_X64)
#define VEGRAD_X86
#elif defined(__aarch64__) || defined(_M_ARM64)
#define VEGRAD_ARM
#endif
#endif
