// A multilayer perceptron: its memory, and one fused forward and backward pass over it.
//
// Letters as everywhere: B batch, I inputs, O outputs of a layer, L layers. Layers are counted
// from 1 here, layer 0 is the input. A value of layer l is its matrix times 2^exponent: exponents
// are zero as long as values are within 2^±40, and the fast path (forward.cpp, backward.cpp) runs;
// otherwise the layer is done again by the far path (far.cpp), which scales.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "core/network/far_activations.hpp"
#include "core/network/grid.hpp"
#include "core/network/loss.hpp"
#include "core/runtime/dispatch.hpp"
#include "core/runtime/memory.hpp"
#include "kernels/table.hpp"

namespace vegrad {

enum class Norm : int { none, layer, rms };
constexpr const char* kNormNames[] = {"none", "layer", "rms"};

struct NetworkShape {
  std::vector<int> sizes;
  Activation activation, output;
  Loss loss;
  Norm norm;
  bool residual;

  int layers() const { return int(sizes.size()) - 1; }
  Activation activation_of(int l) const { return l == layers() ? output : activation; }
  bool has_norm(int l) const { return norm != Norm::none && l < layers(); }
  // Whether each layer's output has memory of its own on the way back; see output_of.
  bool keeps_outputs() const { return residual || norm == Norm::none; }
  bool has_skip(int l) const { return residual && sizes[l] == sizes[l - 1]; }
};

// One entry a layer, first layer first; see Flow in network.py.
struct FlowColumns {
  std::vector<double> activation_rms, preactivation_mean, preactivation_std, saturated, dead,
      delta_log2, gradient_log2, weight_gain_log2, activation_gain_log2;
  explicit FlowColumns(int layers = 0);
};

// What a thread has packed, apart from its neighbours' in the cache.
struct alignas(64) PackedBlock {
  int block = -1;
  int layer = 0;  // of a weight gradient
};

// values · 2^exponent
template <class T>
struct ScaledMatrix {
  T* data = nullptr;
  std::ptrdiff_t ld = 0;
  std::int64_t exponent = 0;
  double mean_square = 0;  // of the values, without the exponent
};

// The gradient of a layer's weights, still to be made. Layer 0: none.
template <class T>
struct WeightGradient {
  int layer = 0;
  Grid grid{};
  ScaledMatrix<T> delta;
  std::int64_t exponent = 0;
  bool on_unit = false;

  int tasks() const { return layer ? grid.tasks() : 0; }
};

// What the backward pass of one layer makes: δ and the gradient g with respect to its output, from
// δ of the layer above. Without skip connections δ takes the place of g.
template <class T>
struct BackwardStep {
  ScaledMatrix<T> delta, g;
  std::int64_t shift = 0;   // added to the exponent of δ above
  std::int64_t apart = 0;   // of the exponent of what comes around the layer above
  const T* skip = nullptr;  // that, if any
};

// What makes a thread worth its start, in cycles: a loop's start and end are a few hundred, but
// the threads must also fetch what the others made. A few rows are soon fetched.
constexpr double kWorthwhile = 5000, kWorthwhileFewRows = 1800;

template <class T>
class Network {
 public:
  explicit Network(NetworkShape shape);

  const NetworkShape& shape() const { return shape_; }
  T* weight(int l) const { return parameters_.data() + weight_at_[l]; }
  T* bias(int l) const { return parameters_.data() + bias_at_[l]; }
  T* weight_gradient(int l) const { return gradients_at_ + weight_at_[l]; }
  T* bias_gradient(int l) const { return gradients_at_ + bias_at_[l]; }
  // All of them, and all gradients, with zeros between.
  std::size_t size() const { return parameters_.size(); }
  T* parameters() const { return parameters_.data(); }
  T* gradients() const { return gradients_.data(); }

  // x (B, I) and out (B, O) without padding. Target: values (B, O), or labels (B).
  void forward(const T* x, int B, T* out);
  double loss(const T* x, int B, const T* values, const std::int64_t* labels);
  double backward(const T* x, int B, const T* values, const std::int64_t* labels, bool flow);
  // The same in two calls, the loss being somebody else's (Loss::given). The first returns the
  // number of its pass. If another has been since, the second goes forward again. `delta`, unless
  // null, gets δ of the first layer (B, O); `gradients` (used()) the gradients, as they lie here.
  std::uint64_t forward_kept(const T* x, int B, T* out);
  void backward_kept(std::uint64_t pass, const T* x, int B, const T* gradient, T* delta,
                     T* gradients);
  std::size_t used() const { return bias_at_.back() + shape_.sizes.back(); }
  const FlowColumns& flow() const { return flow_; }
  // Σ of the squares of a weight gradient as it is stored, from a backward pass with flow; NaN if
  // that is not known because elements of it may have left the range of T.
  double gradient_squares(int l) const { return gradient_squares_[l - 1]; }
  std::size_t workspace_bytes(int B) const;

 private:
  // What a layer's forward pass leaves for its backward pass.
  struct Layer {
    std::int64_t z_exponent = 0;  // not 0: only the far path can use z
    std::int64_t h_exponent = 0;
    std::int64_t inverse_exponent = 0;  // of the normalization's 1/√(var + ε)
    bool kept = false;                  // z is in the activation's kept form
    bool replaced = false;              // φ(z) stands where z stood
  };

  // Memory that is kept between calls; grows with the largest batch and number of threads seen.
  struct Workspace {
    int rows = 0, threads = 0;  // that there is room for
    int threads_in_use = 1;     // by the pass that runs
    Buffer<T> memory;
    T* input = nullptr;
    std::vector<T*> z;        // of each layer; one for all of them if not training
    std::vector<T*> h;        // of each layer if residual and training
    std::vector<T*> inverse;  // (B) of each normalized layer
    T* spare[5] = {};         // (B, widest)
    T* normalized_h[2] = {};  // of even and odd layers, if normalized and not residual
    T* partial = nullptr;     // few rows: what each block of units adds to the layer below
    std::vector<T*> column_sums, alive;     // of each layer, a row each block of rows
    std::vector<T*> chain_delta, chain_g;   // of the layers of a backward chain, in turn
    std::vector<T*> packed;                 // a thread: the right operand of its product,
    std::vector<PackedBlock> packed_block;  // and which column block of it
    std::vector<T*> tile;                   // a thread: of a weight gradient
    // For the matrix unit: operands of products, split.
    Buffer<bfloat16> bricks;
    bfloat16* left = nullptr;  // a block of rows after the other, each `left_block` numbers long
    std::size_t left_block = 0;
    std::vector<bfloat16*> right;                     // a thread: of its column block
    std::vector<bfloat16*> delta_left, output_right;  // the same of a weight gradient,
    std::vector<PackedBlock> split_block;             // and which column block of which
    std::vector<TileSums> sums;                       // a tile
    std::vector<double> losses;                       // a block of rows
  };

  std::size_t layout(Workspace& w, int rows, int threads, bool training) const;
  std::size_t layout_bricks(Workspace& w, int rows, int threads, bool training) const;
  void prepare(Workspace& w, int rows, bool training);
  Grid row_grid(int rows, int l) const;
  Grid gradient_grid(int rows, int l) const;
  // Whether the products of layer l run on the matrix unit. Not where a number is not finite: the
  // unit would make NaN of inf. All rows of a call do alike, in whatever pieces they go through.
  bool on_unit(int l) const {
    return unit_ && !nonfinite_ &&
           suits_matrix_unit(rows_of_call_, shape_.sizes[l - 1], shape_.sizes[l]);
  }
  bool any_on_unit(int rows) const;
  // Threads for a loop of so many cycles.
  int team(const Workspace& w, int B, double cycles) const {
    const double worthwhile = B <= kFewRows ? kWorthwhileFewRows : kWorthwhile;
    return int(std::clamp(cycles / worthwhile, 1.0, double(w.threads_in_use)));
  }
  // About what a product of layer l takes: the multiplications, or reading the weights.
  double product_cycles(int l, int B) const {
    return double(shape_.sizes[l]) * shape_.sizes[l - 1] * sizeof(T) * (B / 64.0 + 1 / 24.0);
  }
  double elements(int l, int B) const { return double(B) * shape_.sizes[l]; }
  // The loss is this times the sum over rows.
  double loss_scale(int B) const {
    if (shape_.loss == Loss::given) return 1.0;
    return 1.0 / (shape_.loss == Loss::cross_entropy ? B : elements(shape_.layers(), B));
  }

  // products.hpp: tile by tile, then `after(tile, task)` while the tile is in cache.
  template <class After>
  void product_with_weights(Workspace& w, int l, int B, const T* in, std::ptrdiff_t ld_in,
                            const T* weights, T* z, const After& after);
  template <class After>
  void product_with_transpose(Workspace& w, int l, int B, const T* delta, std::ptrdiff_t ld_delta,
                              const T* weights, T* g, const WeightGradient<T>& beside, bool flow,
                              const After& after);
  void split_left(const Workspace& w, const Tile& t, int k, const T* in, std::ptrdiff_t ld) const;
  void product_on_unit(const Workspace& w, const Tile& t, int k, const T* weights, int I,
                       bool transposed, int thread, PackedBlock& packed_block, T* c,
                       std::ptrdiff_t ldc) const;
  void few_rows_transposed(const Tile& t, int B, const T* delta, std::ptrdiff_t ld_delta,
                           const T* weights, int I, T* out);

  // forward.cpp
  void forward_pass(Workspace& w, const T* x, int B, bool flow, bool training);
  ScaledMatrix<T> forward_to(Workspace& w, int top, int B, bool flow, bool training);
  void forward_layer(Workspace& w, int l, int B, const ScaledMatrix<T>& in, ScaledMatrix<T>& out,
                     bool flow, bool keep);
  void begin_forward(int l, ScaledMatrix<T>& out, bool keep);
  void forward_tile(Workspace& w, int l, const Tile& t, const ScaledMatrix<T>& in,
                    const ScaledMatrix<T>& out, T* z, std::ptrdiff_t ldz, bool flow,
                    TileSums& sums);
  bool end_forward(int l, int B, const TileSums* tiles, ScaledMatrix<T>& out, bool flow);
  int end_of_chain(const Workspace& w, int l, int B, bool training) const;
  bool forward_chain(Workspace& w, int l, int last, int B, const ScaledMatrix<T>& in,
                     ScaledMatrix<T>& out, bool flow, bool training);
  void note_forward(int l, const TileSums& sums, std::int64_t z_exponent, double h_mean_square,
                    std::int64_t h_exponent);

  void copy_output(const ScaledMatrix<T>& from, int rows, int columns, T* to) const;

  // backward.cpp
  double descend(Workspace& w, int B, const T* values, const std::int64_t* labels, bool flow);
  double top(Workspace& w, int B, const T* values, const std::int64_t* labels, bool flow);
  void backward_layer(Workspace& w, int l, int B, bool flow, const WeightGradient<T>& pending);
  BackwardStep<T> backward_step(int l, std::int64_t shift, T* delta, T* g,
                                const ScaledMatrix<T>& above, const ScaledMatrix<T>& skip) const;
  bool is_near(int l, const BackwardStep<T>& step) const;
  void end_backward_tile(Workspace& w, int l, const Tile& t, const BackwardStep<T>& step, bool flow,
                         TileSums& sums);
  bool end_backward(Workspace& w, int l, int B, const TileSums* tiles, bool flow);
  void note_delta(int l, int B);
  void backward_tile(Workspace& w, int l, const Tile& t, const T* g, T* delta, bool flow,
                     TileSums& sums);
  T* output_of(const Workspace& w, int l) const;
  void bias_gradient(Workspace& w, int l, int B);
  void note_backward(Workspace& w, int l, int B, std::int64_t saturated);
  T* spare_beside(const Workspace& w, std::initializer_list<const T*> taken) const;

  // backward_chain.cpp
  int end_of_backward_chain(const Workspace& w, int l, int B) const;
  int backward_chain(Workspace& w, int l, int B, bool flow, WeightGradient<T>& pending);
  void make_gradients(Workspace& w, int B, bool flow, const std::vector<WeightGradient<T>>& all);
  void forward_again(Workspace& w, int l, int B, bool flow);

  // weight_gradient.cpp
  WeightGradient<T> weight_gradient(int l, int B, const ScaledMatrix<T>& delta) const;
  Ahead read_next(const Workspace& w, const WeightGradient<T>& next, const Tile& t, int B) const;
  void gradient_task(Workspace& w, const WeightGradient<T>& g, int task, int thread, int B,
                     bool flow, TileSums& sums, const WeightGradient<T>& next = {});
  void gradient_on_unit(Workspace& w, const WeightGradient<T>& g, const Tile& t, int thread, int B,
                        T* c, std::ptrdiff_t ldc) const;
  void note_gradient(const WeightGradient<T>& g, const TileSums* sums);
  void make_gradients(Workspace& w, int B, bool flow, const WeightGradient<T>& one,
                      const WeightGradient<T>& other = {});

  // far.cpp: the same layers where values leave 2^±40
  bool forward_far(Workspace& w, int l, int B, const ScaledMatrix<T>& in, ScaledMatrix<T>& out,
                   bool flow);
  bool top_far(Workspace& w, int B, const T* values, const std::int64_t* labels, bool flow,
               double& loss);
  bool backward_far(Workspace& w, int l, int B, const ScaledMatrix<T>& above,
                    const ScaledMatrix<T>& skip, bool flow);
  void delta_far(Workspace& w, int l, int B, std::int64_t g_exponent, bool flow);
  void restore_z(Workspace& w, int l, int B, bool flow);
  void output_far(Workspace& w, int l, int row, std::vector<FarNumber>& value,
                  std::vector<FarNumber>& derivative, T* output);
  bool scaled_operand(const T* data, std::ptrdiff_t ld, int rows, int columns, std::vector<T>& copy,
                      const T*& operand, std::int64_t& exponent);

  NetworkShape shape_;
  std::vector<std::size_t> weight_at_, bias_at_;
  Buffer<T> parameters_, gradients_;
  T* gradients_at_ = nullptr;  // where a backward pass leaves them
  std::mutex running_;
  Workspace training_, inference_;
  FlowColumns flow_;
  std::vector<double> gradient_squares_;
  const MatrixUnit* unit_ = nullptr;  // that the pass may use; null: none
  int rows_of_call_ = 0;              // or of its largest piece

  // What backward chains expect, which changes no result: the shift of each layer in the last pass,
  // and in how many passes they are not to be trusted.
  std::vector<std::int64_t> shifts_;
  int wary_ = 1;

  // State of the pass that runs.
  std::uint64_t pass_ = 0;  // its number; a backward pass uses it up
  std::vector<Layer> layers_;
  ScaledMatrix<T> out_;                  // the output of the forward pass
  ScaledMatrix<T> delta_;                // of the layer last reached by the backward pass
  ScaledMatrix<T> skip_gradient_;        // with respect to that layer's output, if residual
  bool nonfinite_ = false;               // inf or NaN were met: no scaling can help
  std::vector<T> far_left_, far_right_;  // scaled copies for the far path
  std::vector<double> far_values_;
  std::vector<FarNumber> far_numbers_;
};

// Mean squares within these need no scaling: no element that matters to a norm is near the ends
// of the range of float32, nor is a square.
constexpr double kLowest = 0x1p-80, kHighest = 0x1p80;
inline bool within(double mean_square) { return mean_square >= kLowest && mean_square <= kHighest; }

// Beyond these the next product is scaled back to about 1; 0 if δ of this mean square is not.
std::int64_t correction(double mean_square);

// 2^exponent, or the nearest power of two that is a normal number of T.
template <class T>
T power_of_two(std::int64_t exponent) {
  if (exponent == 0) return T(1);
  const std::int64_t most = std::numeric_limits<T>::max_exponent - 1;
  return T(std::ldexp(1.0, int(std::clamp<std::int64_t>(exponent, 1 - most, most))));
}

// log2 of the root of `squares` times 4^exponent.
inline double half_log2(double squares, std::int64_t exponent) {
  return 0.5 * std::log2(squares) + double(exponent);
}

// 2^exponent as two factors, the second 1 unless it takes both.
template <class T>
struct TwoFactors {
  T first, second = T(1);
  explicit TwoFactors(std::int64_t exponent) {
    const bool both = std::abs(exponent) >= std::numeric_limits<T>::max_exponent - 1;
    first = power_of_two<T>(both ? exponent / 2 : exponent);
    if (both) second = power_of_two<T>(exponent - exponent / 2);
  }
};

// |φ′| below this counts as saturated.
double saturation_limit(Activation activation);

inline double shifted(double x, std::int64_t exponent) {
  if (exponent == 0) return x;
  return std::ldexp(x, int(std::clamp<std::int64_t>(exponent, -100000, 100000)));
}

}  // namespace vegrad
