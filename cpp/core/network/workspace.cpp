// The memory of a network: parameters, gradients, and the workspace of its passes.
#include <algorithm>
#include <new>

#include "core/network/network.hpp"
#include "core/runtime/dispatch.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

template <class T>
int column_step(int columns) {
  const int unit = kPadBytes / int(sizeof(T));
  const int whole = (columns + unit - 1) / unit * unit;
  return whole * int(sizeof(T)) <= kWideBytes ? whole : kColumnBytes / int(sizeof(T));
}

// Columns of a panel for the widest vectors of any instruction set.
template <class T>
constexpr int kLargestPanel = 2 * 64 / int(sizeof(T));

// Room for k rows of panels that cover `columns`.
template <class T>
std::size_t packed_size(std::size_t k, int columns) {
  const std::size_t panel = kLargestPanel<T>;
  return k * ((columns + panel - 1) / panel * panel);
}

const MatrixUnit* unit_of(float) { return matrix_unit(); }
const MatrixUnit* unit_of(double) { return nullptr; }

}  // namespace

FlowColumns::FlowColumns(int layers)
    : activation_rms(layers),
      preactivation_mean(layers),
      preactivation_std(layers),
      saturated(layers),
      dead(layers),
      delta_log2(layers),
      gradient_log2(layers),
      weight_gain_log2(std::max(layers - 1, 0)),
      activation_gain_log2(std::max(layers - 1, 0)) {}

template <class T>
Network<T>::Network(NetworkShape shape) : shape_(std::move(shape)) {
  const std::size_t unit = kPadBytes / sizeof(T);
  std::size_t size = 0;
  const auto take = [&](std::size_t n) {
    const std::size_t at = size;
    size += (n + unit - 1) / unit * unit;
    return at;
  };
  weight_at_.push_back(0);
  bias_at_.push_back(0);
  for (int l = 1; l <= shape_.layers(); ++l) {
    weight_at_.push_back(take(std::size_t(shape_.sizes[l]) * shape_.sizes[l - 1]));
    bias_at_.push_back(take(shape_.sizes[l]));
  }
  // Sizes whose products pass what an index can hold are as unlikely to fit as to be meant.
  double elements = 0;
  for (int l = 1; l <= shape_.layers(); ++l)
    elements += (double(shape_.sizes[l - 1]) + 1) * shape_.sizes[l];
  if (elements > 0x1p56) throw std::bad_alloc();
  parameters_ = Buffer<T>(size);
  gradients_ = Buffer<T>(size);
  gradients_at_ = gradients_.data();
  flow_ = FlowColumns(shape_.layers());
  gradient_squares_.resize(shape_.layers());
  layers_.resize(shape_.layers() + 1);
  shifts_.resize(shape_.layers() + 1);
  unit_ = unit_of(T());
}

template <class T>
Grid Network<T>::row_grid(int rows, int l) const {
  const int columns = shape_.sizes[l];
  const int step = column_step<T>(columns);
  if (shape_.has_norm(l)) return make_grid(rows, kNarrowRowStep, columns, padded<T>(columns));
  if (rows <= kFewRows) return make_grid(rows, kFewRows, columns, kColumnBytes / int(sizeof(T)));
  // One block of rows: columns are all that threads can share.
  if (rows <= kNarrowRowStep)
    return make_grid(rows, kNarrowRowStep, columns, kColumnBytes / int(sizeof(T)));
  return make_grid(rows, step < columns ? kWideRowStep : kNarrowRowStep, columns, step);
}

template <class T>
Grid Network<T>::gradient_grid(int rows, int l) const {
  const int columns = shape_.sizes[l - 1];
  if (rows <= kFewRows) {
    Grid grid = few_rows_grid(shape_.sizes[l]);
    grid.columns = grid.column_step = columns;
    return grid;
  }
  return make_grid(shape_.sizes[l], kNarrowRowStep, columns, kWideBytes / int(sizeof(T)));
}

// Says where everything lies in w.memory; returns the number of elements.
template <class T>
std::size_t Network<T>::layout(Workspace& w, int rows, int threads, bool training) const {
  Parts<T> parts(w.memory.data());
  const auto take = [&](std::size_t n) { return parts.take(n); };
  const int L = shape_.layers();
  std::ptrdiff_t widest = 0, widest_of_chain = 0;
  std::size_t tasks = 1, packed = 0, gradient_tasks = 0;
  for (int l = 0; l <= L; ++l) widest = std::max(widest, padded<T>(shape_.sizes[l]));
  for (int l = 1; l <= L; ++l) {
    const int I = shape_.sizes[l - 1], O = shape_.sizes[l];
    const Grid out = row_grid(rows, l);
    // A loop has the tiles of a layer and of two weight gradients at most; a few rows have others.
    for (const int r : {rows, std::min(rows, kFewRows)})
      tasks = std::max(tasks, std::size_t(row_grid(r, l).tasks()) + gradient_grid(r, l).tasks() +
                                  gradient_grid(r, std::min(l + 1, L)).tasks());
    gradient_tasks += gradient_grid(rows, l).tasks();
    if (out.column_blocks == 1 && out.row_blocks > 1 && l < L)
      widest_of_chain = std::max(widest_of_chain, padded<T>(O));
    if (out.column_blocks == 1)
      tasks = std::max(tasks, std::size_t(out.row_blocks) * std::min(L, kLongestChain));
    packed = std::max(packed, packed_size<T>(I, std::min(out.column_step, O)));
    if (!training || l == 1) continue;
    const Grid in = row_grid(rows, l - 1);
    packed = std::max(packed, packed_size<T>(O, std::min(in.column_step, I)));
  }
  w.input = take(rows * padded<T>(shape_.sizes[0]));
  w.z.assign(L + 1, nullptr);
  w.h.assign(L + 1, nullptr);
  w.inverse.assign(L + 1, nullptr);
  T* const only_z = training ? nullptr : take(rows * widest);
  T* const only_inverse = training ? nullptr : take(rows);
  for (int l = 1; l <= L; ++l) {
    w.z[l] = training ? take(rows * padded<T>(shape_.sizes[l])) : only_z;
    if (training && shape_.residual) w.h[l] = take(rows * padded<T>(shape_.sizes[l]));
    if (shape_.has_norm(l)) w.inverse[l] = training ? take(rows) : only_inverse;
  }
  const int spares = training && shape_.residual ? 5 : 3;
  for (int i = 0; i < spares; ++i) w.spare[i] = take(rows * widest);
  if (training) {
    if (shape_.norm != Norm::none && !shape_.residual)
      for (T*& h : w.normalized_h) h = take(rows * widest);
    w.partial = take(kFewRowsBlocks * std::min(rows, kFewRows) * widest);
    for (std::vector<T*>* of : {&w.column_sums, &w.alive}) {
      of->assign(L + 1, nullptr);
      for (int l = 1; l <= L; ++l)
        (*of)[l] = take(row_grid(rows, l).row_blocks * padded<T>(shape_.sizes[l]));
    }
    // One δ more than a chain has layers: that which it begins with.
    if (widest_of_chain) tasks = std::max(tasks, gradient_tasks);
    const int chain = widest_of_chain ? std::min(L - 1, kLongestBackwardChain) : 0;
    w.chain_delta.assign(chain ? chain + 1 : 0, nullptr);
    w.chain_g.assign(shape_.residual ? w.chain_delta.size() : 0, nullptr);
    for (std::vector<T*>* of : {&w.chain_delta, &w.chain_g})
      for (T*& at : *of) at = take(rows * widest_of_chain);
  }
  w.packed.assign(threads, nullptr);
  w.tile.assign(threads, nullptr);
  for (int t = 0; t < threads; ++t) {
    w.packed[t] = take(packed);
    if (training) w.tile[t] = take(kNarrowRowStep * padded<T>(kWideBytes / sizeof(T)));
  }
  if (w.memory.data()) {
    w.sums.resize(tasks);
    w.losses.resize((rows + kLossRowStep - 1) / kLossRowStep);
  }
  return parts.size();
}

// Whether some layer is on the matrix unit with so many rows.
template <class T>
bool Network<T>::any_on_unit(int rows) const {
  for (int l = 1; l <= shape_.layers(); ++l)
    if (unit_ && suits_matrix_unit(rows, shape_.sizes[l - 1], shape_.sizes[l])) return true;
  return false;
}

// Where everything lies in w.bricks; returns the number of elements.
template <class T>
std::size_t Network<T>::layout_bricks(Workspace& w, int rows, int threads, bool training) const {
  if (!any_on_unit(rows)) return 0;
  Parts<bfloat16> parts(w.bricks.data());
  const auto take = [&](std::size_t n) { return parts.take(n); };
  std::size_t left = 0, right = 0, delta = 0, output = 0;
  w.left_block = 0;
  for (int l = 1; l <= shape_.layers(); ++l) {
    const int I = shape_.sizes[l - 1], O = shape_.sizes[l];
    const auto product = [&](int layer, int n, int k) {
      const Grid grid = row_grid(rows, layer);
      w.left_block = std::max(w.left_block, bands_of(grid.row_step, k));
      left = std::max(left, std::size_t(grid.row_blocks));
      right = std::max(right, bands_of(std::min(grid.column_step, n), k));
    };
    product(l, O, I);
    if (!training) continue;
    if (l > 1) product(l - 1, I, O);
    const Grid grid = gradient_grid(rows, l);
    delta = std::max(delta, bands_of(kNarrowRowStep, rows));
    output = std::max(output, bands_of(std::min(grid.column_step, I), rows));
  }
  w.left = take(left * w.left_block);
  for (std::vector<bfloat16*>* of : {&w.right, &w.delta_left, &w.output_right})
    of->assign(threads, nullptr);
  for (int t = 0; t < threads; ++t) {
    w.right[t] = take(right);
    w.delta_left[t] = take(delta);
    w.output_right[t] = take(output);
  }
  w.split_block.resize(threads);
  return parts.size();
}

template <class T>
void Network<T>::prepare(Workspace& w, int rows, bool training) {
  const int threads = num_threads();
  unit_ = unit_of(T());
  rows_of_call_ = rows;
  if (rows > w.rows || threads > w.threads || (any_on_unit(rows) && !w.left)) {
    const int new_rows = std::max(rows, w.rows), new_threads = std::max(threads, w.threads);
    w = Workspace();  // the old memory goes before the new comes
    const std::size_t size = layout(w, new_rows, new_threads, training);
    w.memory = Buffer<T>(size);
    layout(w, new_rows, new_threads, training);
    w.bricks = Buffer<bfloat16>(layout_bricks(w, new_rows, new_threads, training));
    layout_bricks(w, new_rows, new_threads, training);
    w.rows = new_rows;
    w.threads = new_threads;
    w.packed_block.resize(new_threads);
  }
  w.threads_in_use = threads;
}

// One of the buffers of (B, widest) that is none of those taken.
template <class T>
T* Network<T>::spare_beside(const Workspace& w, std::initializer_list<const T*> taken) const {
  for (T* spare : w.spare)
    if (spare && std::find(taken.begin(), taken.end(), spare) == taken.end()) return spare;
  return nullptr;
}

template <class T>
std::size_t Network<T>::workspace_bytes(int B) const {
  Workspace w;
  return layout(w, B, num_threads(), true) * sizeof(T) +
         layout_bricks(w, B, num_threads(), true) * sizeof(bfloat16);
}

#define VEGRAD_INSTANCE(T)                                                                       \
  template Network<T>::Network(NetworkShape);                                                    \
  template Grid Network<T>::row_grid(int, int) const;                                            \
  template Grid Network<T>::gradient_grid(int, int) const;                                       \
  template bool Network<T>::any_on_unit(int) const;                                              \
  template std::size_t Network<T>::layout_bricks(Workspace&, int, int, bool) const;              \
  template void Network<T>::prepare(Workspace&, int, bool);                                      \
  template T* Network<T>::spare_beside(const Workspace&, std::initializer_list<const T*>) const; \
  template std::size_t Network<T>::workspace_bytes(int) const;
VEGRAD_INSTANCE(float)
VEGRAD_INSTANCE(double)
#undef VEGRAD_INSTANCE

}  // namespace vegrad
