// Buffers of any dtype, shape and strides as sequences of runs, and how they are cut into tasks.
//
// The tasks follow from the shapes alone, never from the number of threads, so sums do not either.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "core/runtime/dispatch.hpp"
#include "core/runtime/floating_point.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {

enum class Dtype : std::uint8_t { kFloat16, kBfloat16, kFloat32, kFloat64 };

// Calls body(E{}) with the element type.
template <class Body>
decltype(auto) with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat16:
      return body(float16{});
    case Dtype::kBfloat16:
      return body(bfloat16{});
    case Dtype::kFloat32:
      return body(float{});
    default:
      return body(double{});
  }
}

// Somebody's memory. Shape and strides lie in an AxisStore.
struct View {
  char* data = nullptr;  // of element (0, …, 0)
  std::int64_t count = 0;
  const std::int64_t* shape = nullptr;
  const std::int64_t* strides = nullptr;  // bytes; null: contiguous, last axis fastest
  std::int32_t ndim = 0;
  Dtype dtype = Dtype::kFloat32;
  bool dense = false;    // count elements without gaps from `lowest`, in whatever order
  bool cleaned = false;  // elements that are not finite count as zeros

  std::int64_t itemsize() const {
    return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
  }
};

constexpr int kMostAxes = 64;  // of a view

// Copies of the shapes and strides of views, whose owners may change or free theirs at any time
// while kernels run. They stay where they are when the store is moved.
class AxisStore {
 public:
  std::int64_t* take(std::size_t n) {
    if (n > left_) {
      left_ = std::max(n, blocks_.empty() ? kFirst : kLater);
      next_ = blocks_.emplace_back(new std::int64_t[left_]).get();
    }
    left_ -= n;
    next_ += n;
    return next_ - n;
  }

 private:
  static constexpr std::size_t kFirst = 16, kLater = 2048;  // numbers of a block
  std::vector<std::unique_ptr<std::int64_t[]>> blocks_;
  std::int64_t* next_ = nullptr;
  std::size_t left_ = 0;
};

// The elements of a view in the order of their addresses as far as axes allow: strides positive
// and falling, neighbouring axes joined where they can be.
struct Layout {
  struct Axis {
    std::int64_t size, stride;  // bytes
  };
  char* lowest = nullptr;
  int ndim = 0;
  Axis axes[kMostAxes];

  Layout() = default;
  explicit Layout(const View& view);
  Layout(const View& view, int first_axis, std::int64_t offset);  // the later axes alone
  static Layout in_c_order(const View& view);        // axes as they are, strides of any sign
  std::int64_t extent(std::int64_t itemsize) const;  // bytes from lowest to the end

 private:
  void join();  // neighbouring axes
};

// Sets the flag. Memory that is not aligned to its elements is not dense.
void set_dense(View& view);

// The place of a flat number in C order along each axis.
std::vector<std::int64_t> index_of(const View& view, std::int64_t flat);

constexpr int kBlock = 4096;         // elements: of a run that is handled at a time
constexpr int kChunk = 16 * kBlock;  // of a buffer that one task takes, at least
constexpr int kMostChunks = 2048;

inline bool is_finite(float x) { return x - x == 0; }
inline bool is_finite(double x) { return x - x == 0; }
inline bool is_finite(float16 x) { return (x.bits & 0x7c00) != 0x7c00; }
inline bool is_finite(bfloat16 x) { return (x.bits & 0x7f80) != 0x7f80; }
double to_double(float16 x);
double to_double(bfloat16 x);
inline double to_double(float x) { return x; }
inline double to_double(double x) { return x; }

// Elements `first` to `first + count` of a layout, copied to or from a run.
void gather(const Layout& layout, std::int64_t itemsize, std::int64_t first, std::int64_t count,
            void* out);
void scatter(const Layout& layout, std::int64_t itemsize, std::int64_t first, std::int64_t count,
             const void* in);

// Calls body(E* run, count) for each run of at most kBlock of the elements `first` to
// `first + count`; what body writes to a run is in the buffer afterwards if WRITE.
template <bool WRITE, class E, class Body>
void for_runs(const View& view, const Layout& layout, std::int64_t first, std::int64_t count,
              const Body& body) {
  if (view.dense && !view.cleaned) {
    E* const data = reinterpret_cast<E*>(layout.lowest) + first;
    for (std::int64_t i = 0; i < count; i += kBlock)
      body(data + i, std::size_t(count - i < kBlock ? count - i : kBlock));
    return;
  }
  E run[kBlock];
  for (std::int64_t i = 0; i < count; i += kBlock) {
    const std::int64_t n = count - i < kBlock ? count - i : kBlock;
    gather(layout, sizeof(E), first + i, n, run);
    if (view.cleaned)
      for (std::int64_t j = 0; j < n; ++j)
        if (!is_finite(run[j])) run[j] = E{};
    body(run, std::size_t(n));
    if constexpr (WRITE) scatter(layout, sizeof(E), first + i, n, run);
  }
}

// Some whole buffers, or a part of one.
struct Piece {
  std::int64_t buffer, buffers;  // the first, and how many
  std::int64_t first, count;     // elements, if a part of one
  bool part() const { return buffers == 0; }
};

// The elements of a part, where all buffers have `total`.
std::int64_t part_of(std::int64_t total);

// All buffers, cut. Parts of one buffer follow each other.
std::vector<Piece> cut(const std::vector<View>& views);

// The same such that each thread gets the same share of every buffer: of a network's weights the
// rows whose gradient it made, and which it needs next. No buffer may be empty.
std::vector<Piece> cut_evenly(const std::vector<View>& views);

// The numbers of pieces in the order of their threads' shares: of every buffer each thread gets the
// part that it has most likely written, since others cut their loops like this, too.
std::vector<int> by_share(const std::vector<View>& views, const std::vector<Piece>& pieces,
                          int threads);

std::int64_t elements_of(const std::vector<View>& views);
int team_for(std::int64_t elements);  // threads that are worth their start

// So many buffers take as long to be looked at as a sleeping thread to begin.
constexpr std::size_t kMany = 64;

// body(), which looks at so many buffers first, with threads borrowed before it does.
template <class Body>
void together_over(std::size_t buffers, const Body& body) {
  if (buffers >= kMany) return on_borrowed_threads(body);
  body();
}

// body(), on borrowed threads if there is enough for several.
template <class Body>
void together_on(const std::vector<View>& views, const Body& body) {
  if (team_for(elements_of(views)) > 1) return on_borrowed_threads(body);
  body();
}

// The task to do instead of one of n, so that each thread goes through its own from the last: what
// it read last in a pass before is still in its cache.
inline int backwards_in_share(int task, int n, int threads) {
  int share = 0;
  while (task >= first_task(n, share + 1, threads)) ++share;
  return first_task(n, share, threads) + first_task(n, share + 1, threads) - 1 - task;
}

// body(buffer, first, count) for every buffer, in parts if it is large; returns a result for each
// buffer, the parts' added in order. Subnormal numbers are numbers here.
// `weight`: how much work an element is.
template <class Result, class Body, class Add>
std::vector<Result> fold(const std::vector<View>& views, const std::vector<Piece>& pieces,
                         bool backwards, const Body& body, const Add& add, int weight = 1) {
  std::vector<Result> of_buffer(views.size()), of_part(pieces.size());
  const int n = int(pieces.size()), threads = std::min(n, team_for(weight * elements_of(views)));
  const std::vector<int> numbers = by_share(views, pieces, threads);
  shares_for(n, threads, [&](int task, int) {
    const KeepSubnormals keep;
    const int number = numbers[backwards ? backwards_in_share(task, n, threads) : task];
    const Piece& piece = pieces[number];
    // Results are made in their places: to copy one would wait for all that body has written.
    static_assert(std::is_trivially_destructible_v<Result>);
    if (piece.part())
      new (&of_part[number]) Result(body(piece.buffer, piece.first, piece.count));
    else
      for (std::int64_t b = piece.buffer; b < piece.buffer + piece.buffers; ++b)
        new (&of_buffer[b]) Result(body(b, std::int64_t(0), views[b].count));
  });
  for (int number = 0; number < n; ++number)
    if (const Piece& piece = pieces[number]; piece.part())
      of_buffer[piece.buffer] =
          piece.first == 0 ? of_part[number] : add(of_buffer[piece.buffer], of_part[number]);
  return of_buffer;
}

}  // namespace vegrad
