// The memory of a pass, which is kept between calls and grows with the largest batch and number of
// threads seen.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <vector>

#include "core/network/grid.hpp"
#include "core/network/shape.hpp"
#include "core/runtime/memory.hpp"
#include "kernels/matrix_unit.hpp"

namespace vegrad {

template <class T>
struct Pass;

// What a thread has packed, apart from its neighbours' in the cache.
struct alignas(64) PackedBlock {
  int block = -1;
  int layer = 0;  // of a weight gradient
};

template <class T>
struct Workspace {
  int rows = 0, threads = 0;  // There is room for so many.
  int threads_in_use = 1;     // The pass that runs uses so many.
  Buffer<T> memory;
  T* input = nullptr;
  std::vector<T*> z;        // of each layer; one for all of them if not training
  std::vector<T*> h;        // of each layer if residual and training
  std::vector<T*> inverse;  // (B) of each normalized layer
  T* spare[5] = {};         // (B, widest)
  T* normalized_h[2] = {};  // of even and odd layers, if normalized and not residual
  T* partial = nullptr;     // a small batch: what each block of units adds to the layer below
  std::vector<T*> column_sums, alive;     // of each layer, a row each block of rows
  std::vector<T*> chain_delta, chain_g;   // of the layers of a backward chain, in turn
  std::vector<T*> packed;                 // of each thread: the right operand of its product,
  std::vector<PackedBlock> packed_block;  // and which column block of it that is
  std::vector<T*> tile;                   // of each thread: a tile of a weight gradient
  // For the matrix unit: operands of products, split.
  Buffer<bfloat16> bricks;
  bfloat16* left = nullptr;  // a block of rows after the other, each `left_block` numbers long
  std::size_t left_block = 0;
  std::vector<bfloat16*> right;                     // of each thread: its column block
  std::vector<bfloat16*> delta_left, output_right;  // the operands of a weight gradient,
  std::vector<PackedBlock> split_block;             // and which column block of which layer
  std::vector<TileSums> sums;                       // one entry a tile
  std::vector<double> losses;                       // one entry a block of rows
};

// Makes room for a call with so many rows (or pieces of so many), and says what is asked of it.
template <class T>
void prepare(Pass<T>& pass, int rows, bool training, bool flow_wanted);

// One of the buffers of (B, widest) that is none of those taken.
template <class T>
T* spare_beside(const Workspace<T>& work, std::initializer_list<const T*> taken);

// What a training pass over so many rows takes.
template <class T>
std::size_t training_bytes(const NetworkShape& shape, int rows);

}  // namespace vegrad
