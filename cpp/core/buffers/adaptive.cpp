#include "core/buffers/adaptive.hpp"

#include <algorithm>
#include <cmath>

namespace vegrad {
namespace {

// Adaptive gradient clipping: a unit is all of a buffer with one axis at most, else what the first
// axis counts.
struct Units {
  View view;  // of one unit
  Layout layout;
  char* first;
  std::int64_t stride = 0;

  explicit Units(const View& buffer)
      : view(buffer), layout(buffer, buffer.ndim < 2 ? 0 : 1, 0), first(layout.lowest) {
    if (buffer.ndim < 2) return;
    view.count = 1;
    for (int axis = 1; axis < buffer.ndim; ++axis) view.count *= buffer.shape[axis];
    stride = buffer.strides ? buffer.strides[0] : view.count * buffer.itemsize();
    const bool without_gaps =
        layout.ndim == 0 || (layout.ndim == 1 && layout.axes[0].stride == buffer.itemsize());
    const bool aligned = reinterpret_cast<std::uintptr_t>(buffer.data) % buffer.itemsize() == 0 &&
                         stride % buffer.itemsize() == 0;
    view.dense = without_gaps && aligned;
  }
  void go_to(std::int64_t number) { layout.lowest = first + number * stride; }
};

Written adapt(const Units& gradient, const Units& parameter, const Request& request,
              std::int64_t buffer, std::int64_t unit) {
  const View& view = gradient.view;
  const Scaled weight =
      kL2.root(squares_of(parameter.view, parameter.layout, 0, parameter.view.count));
  const double limit = request.limit * std::max(value(weight), request.eps);
  const Scaled squares = squares_of(view, gradient.layout, 0, view.count);
  Scaled norm = kL2.root(squares);
  const bool clipped =
      exceeds(norm, limit, Rounding(view.dtype), view.count, kL2) || norm.sum != norm.sum;
  if (value(norm) < 1e-6) norm = {1e-6, 0};
  const Factor factor = clipped ? ratio(limit, norm) : Factor{};
  if (request.consumer) {
    request.consumer->take(buffer, unit * view.count, view.count, factor, kInfinity, view.cleaned);
    return {PowerOf(factor, kL2).times(squares), factor.value(), clipped};
  }
  if (clipped) return scale(view, gradient.layout, 0, view.count, factor);
  return view.cleaned ? leave(view, gradient.layout, 0, view.count) : Written{squares, 1, false};
}

}  // namespace

std::vector<Written> clip_adaptively(const std::vector<View>& views, const Request& request) {
  struct Range {
    std::int64_t buffer, first, count;
  };
  std::vector<Range> tasks;
  for (std::int64_t b = 0; b < std::int64_t(views.size()); ++b) {
    const View& view = views[b];
    if (view.count == 0) continue;  // however many units of nothing it has
    if (view.ndim < 2) {
      tasks.push_back({b, 0, 1});
      continue;
    }
    const std::int64_t units = view.shape[0];
    std::int64_t step =
        std::max<std::int64_t>(1, kChunk * units / std::max<std::int64_t>(view.count, 1));
    step = std::max(step, units / kMostChunks);
    for (std::int64_t first = 0; first < units; first += step)
      tasks.push_back({b, first, std::min(step, units - first)});
  }
  std::vector<Written> of_task(tasks.size()), of_buffer(views.size());
  const int n = int(tasks.size()), threads = std::min(n, team_for(2 * elements_of(views)));
  parallel_for(n, threads, [&](int task, int) {
    const KeepSubnormals keep;
    const int number = backwards_in_share(task, n, threads);
    const Range& range = tasks[number];
    Written& result = of_task[number];
    Units gradient(views[range.buffer]), parameter(request.parameters[range.buffer]);
    for (std::int64_t i = range.first; i < range.first + range.count; ++i) {
      gradient.go_to(i);
      parameter.go_to(i);
      result = together(result, adapt(gradient, parameter, request, range.buffer, i));
    }
  });
  for (int task = 0; task < n; ++task)
    of_buffer[tasks[task].buffer] = together(of_buffer[tasks[task].buffer], of_task[task]);
  return of_buffer;
}

}  // namespace vegrad
