#include "core/network/workspace.hpp"

#include <algorithm>

#include "core/network/pass.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

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

// What a workspace has to be made for.
struct Request {
  const NetworkShape& shape;
  int rows, threads;
  bool training;
};

// The largest of what the loops of a pass need.
struct Extents {
  std::ptrdiff_t widest = 0, widest_of_chain = 0;
  std::size_t tasks = 1, packed = 0;
};

template <class T>
Extents extents(const Request& request) {
  const auto& [shape, rows, threads, training] = request;
  const int L = shape.layers();
  Extents most;
  std::size_t gradient_tasks = 0;
  for (int l = 0; l <= L; ++l) most.widest = std::max(most.widest, padded<T>(shape.sizes[l]));
  for (int l = 1; l <= L; ++l) {
    const int I = shape.sizes[l - 1], O = shape.sizes[l];
    const Grid out = row_grid<T>(shape, rows, l);
    // A loop has the tiles of a layer and of two weight gradients at most; a small batch has
    // others.
    for (const int r : {rows, std::min(rows, kSmallBatch)})
      most.tasks = std::max(most.tasks, std::size_t(row_grid<T>(shape, r, l).tasks()) +
                                            gradient_grid<T>(shape, r, l).tasks() +
                                            gradient_grid<T>(shape, r, std::min(l + 1, L)).tasks());
    gradient_tasks += gradient_grid<T>(shape, rows, l).tasks();
    if (out.column_blocks == 1 && out.row_blocks > 1 && l < L)
      most.widest_of_chain = std::max(most.widest_of_chain, padded<T>(O));
    if (out.column_blocks == 1)
      most.tasks = std::max(most.tasks, std::size_t(out.row_blocks) * std::min(L, kLongestChain));
    most.packed = std::max(most.packed, packed_size<T>(I, std::min(out.column_step, O)));
    if (!training || l == 1) continue;
    const Grid in = row_grid<T>(shape, rows, l - 1);
    most.packed = std::max(most.packed, packed_size<T>(O, std::min(in.column_step, I)));
  }
  if (training && most.widest_of_chain) most.tasks = std::max(most.tasks, gradient_tasks);
  return most;
}

// What the backward pass needs beside the forward pass.
template <class T>
void layout_backward(Workspace<T>& w, Parts<T>& parts, const Request& request,
                     const Extents& most) {
  const auto& [shape, rows, threads, training] = request;
  const int L = shape.layers();
  if (shape.norm != Norm::none && !shape.residual)
    for (T*& h : w.normalized_h) h = parts.take(rows * most.widest);
  w.partial = parts.take(kSmallBatchBlocks * std::min(rows, kSmallBatch) * most.widest);
  for (std::vector<T*>* of : {&w.column_sums, &w.alive}) {
    of->assign(L + 1, nullptr);
    for (int l = 1; l <= L; ++l)
      (*of)[l] = parts.take(row_grid<T>(shape, rows, l).row_blocks * padded<T>(shape.sizes[l]));
  }
  // One δ more than a chain has layers: that which it begins with.
  const int chain = most.widest_of_chain ? std::min(L - 1, kLongestBackwardChain) : 0;
  w.chain_delta.assign(chain ? chain + 1 : 0, nullptr);
  w.chain_g.assign(shape.residual ? w.chain_delta.size() : 0, nullptr);
  for (std::vector<T*>* of : {&w.chain_delta, &w.chain_g})
    for (T*& at : *of) at = parts.take(rows * most.widest_of_chain);
}

// Says where everything lies in w.memory; returns the number of elements.
template <class T>
std::size_t layout(Workspace<T>& w, const Request& request) {
  const auto& [shape, rows, threads, training] = request;
  const int L = shape.layers();
  const Extents most = extents<T>(request);
  Parts<T> parts(w.memory.data());
  w.input = parts.take(rows * padded<T>(shape.sizes[0]));
  w.z.assign(L + 1, nullptr);
  w.h.assign(L + 1, nullptr);
  w.inverse.assign(L + 1, nullptr);
  T* const only_z = training ? nullptr : parts.take(rows * most.widest);
  T* const only_inverse = training ? nullptr : parts.take(rows);
  for (int l = 1; l <= L; ++l) {
    w.z[l] = training ? parts.take(rows * padded<T>(shape.sizes[l])) : only_z;
    if (training && shape.residual) w.h[l] = parts.take(rows * padded<T>(shape.sizes[l]));
    if (shape.has_norm(l)) w.inverse[l] = training ? parts.take(rows) : only_inverse;
  }
  const int spares = training && shape.residual ? 5 : 3;
  for (int i = 0; i < spares; ++i) w.spare[i] = parts.take(rows * most.widest);
  if (training) layout_backward(w, parts, request, most);
  w.packed.assign(threads, nullptr);
  w.tile.assign(threads, nullptr);
  for (int t = 0; t < threads; ++t) {
    w.packed[t] = parts.take(most.packed);
    if (training) w.tile[t] = parts.take(kNarrowRowStep * padded<T>(kWideBytes / sizeof(T)));
  }
  if (w.memory.data()) {
    w.sums.resize(most.tasks);
    w.losses.resize((rows + kLossRowStep - 1) / kLossRowStep);
  }
  return parts.size();
}

// Whether some layer is on the matrix unit with so many rows.
bool any_on_unit(const NetworkShape& shape, const MatrixUnit* unit, int rows) {
  for (int l = 1; unit && l <= shape.layers(); ++l)
    if (suits_matrix_unit(rows, shape.sizes[l - 1], shape.sizes[l])) return true;
  return false;
}

// Where everything lies in w.bricks; returns the number of elements.
template <class T>
std::size_t layout_bricks(Workspace<T>& w, const Request& request) {
  const auto& [shape, rows, threads, training] = request;
  if (!any_on_unit(shape, unit_of(T()), rows)) return 0;
  Parts<bfloat16> parts(w.bricks.data());
  std::size_t left = 0, right = 0, delta = 0, output = 0;
  w.left_block = 0;
  const auto add_product = [&, &shape = shape, rows = rows](int layer, int n, int k) {
    const Grid grid = row_grid<T>(shape, rows, layer);
    w.left_block = std::max(w.left_block, bands_of(grid.row_step, k));
    left = std::max(left, std::size_t(grid.row_blocks));
    right = std::max(right, bands_of(std::min(grid.column_step, n), k));
  };
  for (int l = 1; l <= shape.layers(); ++l) {
    const int I = shape.sizes[l - 1], O = shape.sizes[l];
    add_product(l, O, I);
    if (!training) continue;
    if (l > 1) add_product(l - 1, I, O);
    const Grid grid = gradient_grid<T>(shape, rows, l);
    delta = std::max(delta, bands_of(kNarrowRowStep, rows));
    output = std::max(output, bands_of(std::min(grid.column_step, I), rows));
  }
  w.left = parts.take(left * w.left_block);
  for (std::vector<bfloat16*>* of : {&w.right, &w.delta_left, &w.output_right})
    of->assign(threads, nullptr);
  for (int t = 0; t < threads; ++t) {
    w.right[t] = parts.take(right);
    w.delta_left[t] = parts.take(delta);
    w.output_right[t] = parts.take(output);
  }
  w.split_block.resize(threads);
  return parts.size();
}

}  // namespace

template <class T>
void prepare(Pass<T>& pass, int rows, bool training, bool flow_wanted) {
  Workspace<T>& w = pass.work;
  const int threads = num_threads();
  pass.unit = unit_of(T());
  pass.rows_of_call = rows;
  pass.training = training;
  pass.flow_wanted = flow_wanted;
  const bool bricks_missing = any_on_unit(pass.shape, pass.unit, rows) && !w.left;
  if (rows > w.rows || threads > w.threads || bricks_missing) {
    const Request request{pass.shape, std::max(rows, w.rows), std::max(threads, w.threads),
                          training};
    w = Workspace<T>();  // the old memory goes before the new comes
    w.memory = Buffer<T>(layout(w, request));
    layout(w, request);
    w.bricks = Buffer<bfloat16>(layout_bricks(w, request));
    layout_bricks(w, request);
    w.rows = request.rows;
    w.threads = request.threads;
    w.packed_block.resize(request.threads);
  }
  w.threads_in_use = threads;
}

template <class T>
T* spare_beside(const Workspace<T>& work, std::initializer_list<const T*> taken) {
  for (T* spare : work.spare)
    if (spare && std::find(taken.begin(), taken.end(), spare) == taken.end()) return spare;
  return nullptr;
}

template <class T>
std::size_t training_bytes(const NetworkShape& shape, int rows) {
  Workspace<T> w;
  const Request request{shape, rows, num_threads(), true};
  return layout(w, request) * sizeof(T) + layout_bricks(w, request) * sizeof(bfloat16);
}

VEGRAD_FOR_BOTH(prepare)
VEGRAD_FOR_BOTH(spare_beside)
VEGRAD_FOR_BOTH(training_bytes)

}  // namespace vegrad
