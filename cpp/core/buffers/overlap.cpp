// Which of many views share memory: n log n where none do.
#include <algorithm>
#include <cstdint>

#include "core/buffers/clipping.hpp"

namespace vegrad {
namespace {

// The last axes of a layout, somewhere.
struct Grid {
  std::int64_t start;
  const Layout::Axis* axes;
  int ndim;
  std::int64_t itemsize;

  std::int64_t end() const {
    std::int64_t last = start;
    for (int axis = 0; axis < ndim; ++axis) last += (axes[axis].size - 1) * axes[axis].stride;
    return last + itemsize;
  }
  Grid row(std::int64_t number) const {
    return {start + number * axes[0].stride, axes + 1, ndim - 1, itemsize};
  }
  // The numbers of the rows that reach into [from, to).
  std::pair<std::int64_t, std::int64_t> rows_in(std::int64_t from, std::int64_t to) const {
    const std::int64_t length = row(0).end() - start, stride = axes[0].stride;
    const std::int64_t last = to - start <= 0 ? 0 : (to - start - 1) / stride + 1;
    const std::int64_t first = from - start < length ? 0 : (from - start - length) / stride + 1;
    return {first, std::min(last, axes[0].size)};
  }
};

// Repeated elements take no memory.
Grid grid_of(const Layout& layout, std::int64_t itemsize) {
  Grid grid{std::int64_t(layout.lowest), layout.axes, layout.ndim, itemsize};
  while (grid.ndim > 0 && grid.axes[grid.ndim - 1].stride == 0) --grid.ndim;
  return grid;
}

// Exact. Axes have positive, falling strides.
bool share(const Grid& a, const Grid& b) {
  if (a.start >= b.end() || b.start >= a.end()) return false;
  if (a.ndim == 0 && b.ndim == 0) return true;
  if (b.ndim == 0 || (a.ndim > 0 && a.axes[0].stride > b.axes[0].stride)) {
    const auto [first, last] = a.rows_in(b.start, b.end());
    for (std::int64_t i = first; i < last; ++i)
      if (share(a.row(i), b)) return true;
    return false;
  }
  if (a.ndim == 0 || b.axes[0].stride > a.axes[0].stride) return share(b, a);
  // The same stride: only how many rows apart two rows are matters.
  const std::int64_t stride = a.axes[0].stride;
  const Grid row_a = a.row(0), row_b = b.row(0);
  const auto down = [&](std::int64_t x) {
    return x >= 0 ? x / stride : -((-x + stride - 1) / stride);
  };
  const std::int64_t least = down(row_b.start - row_a.end()) + 1;
  const std::int64_t most = -down(-(row_b.end() - row_a.start)) - 1;
  for (std::int64_t apart = std::max(least, 1 - b.axes[0].size);
       apart <= std::min(most, a.axes[0].size - 1); ++apart) {
    Grid moved = row_a;
    moved.start += apart * stride;
    if (share(moved, row_b)) return true;
  }
  return false;
}

struct Entry {
  std::int64_t start, end;
  std::size_t number;
};

using Pair = std::optional<std::pair<std::size_t, std::size_t>>;

class Search {
 public:
  // Pairs of which one at least is among the first `mine`; both may be.
  Search(const std::vector<const View*>& views, std::size_t mine) : views_(views), mine_(mine) {}

  Pair among_all() {
    std::vector<Entry> entries;
    entries.reserve(views_.size());
    for (std::size_t i = 0; i < views_.size(); ++i)
      if (views_[i]->count > 0) entries.push_back(extent_of(i));
    return groups(entries, [&](std::vector<Entry>& group) { return in_group(group); });
  }

 private:
  Entry extent_of(std::size_t i) const {
    const View& view = *views_[i];
    const auto upwards = [](std::int64_t stride) { return stride >= 0; };
    if (view.dense &&
        (!view.strides || std::all_of(view.strides, view.strides + view.ndim, upwards))) {
      const std::int64_t start = std::int64_t(view.data);
      return {start, start + view.count * view.itemsize(), i};
    }
    const Layout layout(view);
    const std::int64_t start = std::int64_t(layout.lowest);
    return {start, start + layout.extent(view.itemsize()), i};
  }

  // Calls body with those whose extents touch each other, until it finds a pair.
  template <class Body>
  Pair groups(std::vector<Entry>& entries, const Body& body) {
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return a.start < b.start; });
    for (std::size_t first = 0; first < entries.size();) {
      std::int64_t end = entries[first].end;
      std::size_t last = first + 1;
      for (; last < entries.size() && entries[last].start < end; ++last)
        end = std::max(end, entries[last].end);
      if (last > first + 1) {
        std::vector<Entry> group(entries.begin() + first, entries.begin() + last);
        if (const Pair found = body(group)) return found;
      }
      first = last;
    }
    return {};
  }

  // Views of one matrix are first told apart by their columns.
  Pair in_group(std::vector<Entry>& group) {
    const std::int64_t base = group[0].start;
    std::int64_t stride = 0;
    std::vector<Entry> columns;
    for (const Entry& entry : group) {
      const Layout layout(*views_[entry.number]);
      if (layout.ndim > 0) stride = std::max(stride, layout.axes[0].stride);
    }
    if (stride == 0) return pairs(group);
    for (const Entry& entry : group) {
      const View& view = *views_[entry.number];
      Layout layout(view);
      std::int64_t length = layout.extent(view.itemsize());
      if (layout.ndim > 0 && layout.axes[0].stride == stride)
        length -= (layout.axes[0].size - 1) * stride;
      const std::int64_t column = (entry.start - base) % stride;
      if (column + length > stride) return pairs(group);  // goes on in the next row
      columns.push_back({column, column + length, entry.number});
    }
    return groups(columns, [&](std::vector<Entry>& same) {
      for (Entry& entry : same) entry = extent_of(entry.number);
      return pairs(same);
    });
  }

  Pair pairs(std::vector<Entry>& group) {
    std::sort(group.begin(), group.end(),
              [](const Entry& a, const Entry& b) { return a.start < b.start; });
    std::vector<Entry> open;
    for (const Entry& entry : group) {
      std::erase_if(open, [&](const Entry& other) { return other.end <= entry.start; });
      for (const Entry& other : open)
        if (of_interest(entry.number, other.number) && share_bytes(entry.number, other.number))
          return std::minmax(entry.number, other.number);
      open.push_back(entry);
    }
    return {};
  }

  bool of_interest(std::size_t i, std::size_t j) const { return i < mine_ || j < mine_; }

  bool share_bytes(std::size_t i, std::size_t j) const {
    const Layout a(*views_[i]), b(*views_[j]);
    return share(grid_of(a, views_[i]->itemsize()), grid_of(b, views_[j]->itemsize()));
  }

  const std::vector<const View*>& views_;
  std::size_t mine_;
};

// Whether two indices name the same byte.
bool overlaps_itself(const View& view) {
  if (view.dense || view.count <= 1) return false;
  const Layout layout(view);
  if (layout.ndim > 0 && layout.axes[layout.ndim - 1].stride == 0) return true;
  // Two different elements share a byte if rows of some axis do that are not the same row.
  for (int axis = 0; axis < layout.ndim; ++axis) {
    const Layout::Axis& steps = layout.axes[axis];
    const Grid row{0, layout.axes + axis + 1, layout.ndim - axis - 1, view.itemsize()};
    if (steps.stride >= row.end()) continue;
    const std::int64_t rows = std::min(steps.size, (row.end() - 1) / steps.stride + 1);
    for (std::int64_t apart = 1; apart < rows; ++apart) {
      Grid moved = row;
      moved.start = apart * steps.stride;
      if (share(row, moved)) return true;
    }
  }
  return false;
}

}  // namespace

Pair find_overlap(const std::vector<View>& views, const std::vector<View>& others) {
  for (std::size_t i = 0; i < views.size(); ++i)
    if (overlaps_itself(views[i])) return std::pair(i, i);
  std::vector<const View*> all;
  all.reserve(views.size() + others.size());
  for (const View& view : views) all.push_back(&view);
  for (const View& view : others) all.push_back(&view);
  return Search(all, views.size()).among_all();
}

}  // namespace vegrad
