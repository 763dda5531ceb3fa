#include "core/buffers/buffers.hpp"

#include <algorithm>
#include <cmath>

namespace vegrad {

double to_double(float16 x) {
  const int exponent = x.bits >> 10 & 0x1f, fraction = x.bits & 0x3ff;
  double value;
  if (exponent == 0x1f)
    value = fraction ? NAN : INFINITY;
  else if (exponent == 0)
    value = std::ldexp(double(fraction), -24);
  else
    value = std::ldexp(double(fraction + 0x400), exponent - 25);
  return x.bits & 0x8000 ? -value : value;
}

double to_double(bfloat16 x) {
  const std::uint32_t bits = std::uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

Layout::Layout(const View& view) : Layout(view, 0, 0) {}

Layout::Layout(const View& view, int first_axis, std::int64_t offset) : lowest(view.data + offset) {
  if (view.count == 0) {  // the strides of what is empty may be anything
    axes[ndim++] = {0, view.itemsize()};
    return;
  }
  if (!view.strides) {
    std::int64_t count = 1;
    for (int axis = first_axis; axis < view.ndim; ++axis) count *= view.shape[axis];
    if (count != 1) axes[ndim++] = {count, view.itemsize()};
    return;
  }
  for (int axis = first_axis; axis < view.ndim; ++axis) {
    std::int64_t size = view.shape[axis], stride = view.strides[axis];
    if (size == 1) continue;
    if (stride < 0) {
      lowest += (size - 1) * stride;
      stride = -stride;
    }
    int place = ndim++;
    for (; place > 0 && axes[place - 1].stride < stride; --place) axes[place] = axes[place - 1];
    axes[place] = {size, stride};
  }
  join();
}

Layout Layout::in_c_order(const View& view) {
  if (!view.strides || view.count == 0) return Layout(view);
  Layout layout;
  layout.lowest = view.data;
  for (int axis = 0; axis < view.ndim; ++axis)
    if (view.shape[axis] != 1) layout.axes[layout.ndim++] = {view.shape[axis], view.strides[axis]};
  layout.join();
  return layout;
}

void Layout::join() {
  int kept = 0;
  for (int axis = 0; axis < ndim; ++axis) {
    if (kept > 0 && axes[kept - 1].stride == axes[axis].size * axes[axis].stride)
      axes[kept - 1] = {axes[kept - 1].size * axes[axis].size, axes[axis].stride};
    else
      axes[kept++] = axes[axis];
  }
  ndim = kept;
}

std::int64_t Layout::extent(std::int64_t itemsize) const {
  std::int64_t last = 0;
  for (int axis = 0; axis < ndim; ++axis) last += (axes[axis].size - 1) * axes[axis].stride;
  return last + itemsize;
}

void set_dense(View& view) {
  if (reinterpret_cast<std::uintptr_t>(view.data) & std::uintptr_t(view.itemsize() - 1)) return;
  if (!view.strides || view.count <= 1) {
    view.dense = true;
    return;
  }
  // Most arrays are contiguous: that is seen faster than their layout is made.
  std::int64_t expected = view.itemsize();
  int axis = view.ndim - 1;
  for (; axis >= 0; --axis) {
    if (view.shape[axis] != 1 && view.strides[axis] != expected) break;
    expected *= view.shape[axis];
  }
  if (axis < 0) {
    view.dense = true;
    return;
  }
  const Layout layout(view);
  view.dense = layout.ndim == 1 && layout.axes[0].stride == view.itemsize();
}

std::vector<std::int64_t> index_of(const View& view, std::int64_t flat) {
  std::vector<std::int64_t> index(view.ndim);
  for (int axis = view.ndim - 1; axis >= 0; --axis) {
    index[axis] = flat % view.shape[axis];
    flat /= view.shape[axis];
  }
  return index;
}

namespace {

// Calls body(address, count, stride) for pieces of the innermost axis.
template <class Body>
void for_lines(const Layout& layout, std::int64_t first, std::int64_t count, const Body& body) {
  const int last = layout.ndim - 1;
  std::int64_t index[kMostAxes];
  char* p = layout.lowest;
  for (int axis = last; axis >= 0; --axis) {
    index[axis] = first % layout.axes[axis].size;
    first /= layout.axes[axis].size;
    p += index[axis] * layout.axes[axis].stride;
  }
  if (last < 0) return body(p, std::int64_t(1), std::int64_t(0));
  while (count > 0) {
    const auto [size, stride] = layout.axes[last];
    const std::int64_t n = std::min(count, size - index[last]);
    body(p, n, stride);
    count -= n;
    p += n * stride;
    index[last] += n;
    for (int axis = last; axis > 0 && index[axis] == layout.axes[axis].size; --axis) {
      p += layout.axes[axis - 1].stride - layout.axes[axis].size * layout.axes[axis].stride;
      index[axis] = 0;
      ++index[axis - 1];
    }
  }
}

template <class Item, bool INTO_RUN>
void copy_lines(const Layout& layout, std::int64_t first, std::int64_t count, Item* run) {
  for_lines(layout, first, count, [&](char* p, std::int64_t n, std::int64_t stride) {
    if (stride == sizeof(Item)) {
      if constexpr (INTO_RUN)
        std::memcpy(run, p, n * sizeof(Item));
      else
        std::memcpy(p, run, n * sizeof(Item));
    } else {
      for (std::int64_t i = 0; i < n; ++i) {
        if constexpr (INTO_RUN)
          std::memcpy(run + i, p + i * stride, sizeof(Item));
        else
          std::memcpy(p + i * stride, run + i, sizeof(Item));
      }
    }
    run += n;
  });
}

template <bool INTO_RUN>
void copy(const Layout& layout, std::int64_t itemsize, std::int64_t first, std::int64_t count,
          void* run) {
  if (itemsize == 8)
    copy_lines<std::uint64_t, INTO_RUN>(layout, first, count, static_cast<std::uint64_t*>(run));
  else if (itemsize == 4)
    copy_lines<std::uint32_t, INTO_RUN>(layout, first, count, static_cast<std::uint32_t*>(run));
  else
    copy_lines<std::uint16_t, INTO_RUN>(layout, first, count, static_cast<std::uint16_t*>(run));
}

}  // namespace

void gather(const Layout& layout, std::int64_t itemsize, std::int64_t first, std::int64_t count,
            void* out) {
  copy<true>(layout, itemsize, first, count, out);
}

void scatter(const Layout& layout, std::int64_t itemsize, std::int64_t first, std::int64_t count,
             const void* in) {
  copy<false>(layout, itemsize, first, count, const_cast<void*>(in));
}

std::int64_t elements_of(const std::vector<View>& views) {
  std::int64_t total = 0;
  for (const View& view : views) total += view.count;
  return total;
}

std::int64_t part_of(std::int64_t total) {
  // Of little each thread gets a part, too: of an activation the rows that it may have made.
  const std::int64_t least = total <= 8 * kChunk ? kChunk / 4 : kChunk;
  return (total / kMostChunks / least + 1) * least;
}

std::vector<Piece> cut(const std::vector<View>& views) {
  const std::int64_t chunk = part_of(elements_of(views));
  std::vector<Piece> pieces;
  std::int64_t together = kChunk;  // elements of the last piece; full
  for (std::size_t b = 0; b < views.size(); ++b) {
    const std::int64_t count = views[b].count;
    if (count > chunk) {
      for (std::int64_t first = 0; first < count; first += chunk)
        pieces.push_back({std::int64_t(b), 0, first, std::min(chunk, count - first)});
      together = kChunk;
      continue;
    }
    if (together >= kChunk / 4 || pieces.back().buffers >= 128) {
      pieces.push_back({std::int64_t(b), 0, 0, 0});
      together = 0;
    }
    pieces.back().buffers += 1;
    together += count;
  }
  return pieces;
}

std::vector<Piece> cut_evenly(const std::vector<View>& views) {
  constexpr std::int64_t kLeast = 2048, kMost = 64;  // elements of a part, parts of a buffer
  std::vector<Piece> pieces;
  for (std::size_t b = 0; b < views.size(); ++b) {
    const std::int64_t n = views[b].count, parts = std::clamp<std::int64_t>(n / kLeast, 1, kMost);
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t first = n * part / parts;
      pieces.push_back({std::int64_t(b), 0, first, n * (part + 1) / parts - first});
    }
  }
  const auto place = [&](const Piece& piece) {  // of its middle, in its buffer
    return (double(piece.first) + double(piece.count) / 2) / double(views[piece.buffer].count);
  };
  std::stable_sort(pieces.begin(), pieces.end(),
                   [&](const Piece& a, const Piece& b) { return place(a) < place(b); });
  return pieces;
}

std::vector<int> by_share(const std::vector<View>& views, const std::vector<Piece>& pieces,
                          int threads) {
  const std::int64_t n = std::int64_t(pieces.size());
  std::vector<int> numbers(pieces.size()), share(pieces.size()), place(threads + 1);
  for (std::int64_t number = 0; number < n; ++number) {
    const Piece& piece = pieces[number];
    share[number] =
        int(piece.part() ? (piece.first + piece.count / 2) * threads / views[piece.buffer].count
                         : number * threads / n);
    ++place[share[number] + 1];
  }
  for (int t = 0; t < threads; ++t) place[t + 1] += place[t];
  for (int number = 0; number < n; ++number) numbers[place[share[number]]++] = number;
  return numbers;
}

// A second thread costs about a microsecond, in which one thread reads some 16 KB.
int team_for(std::int64_t elements) {
  constexpr std::int64_t worthwhile = 16 * 1024;
  return int(
      std::max<std::int64_t>(1, std::min<std::int64_t>(num_threads(), elements / worthwhile)));
}

}  // namespace vegrad
