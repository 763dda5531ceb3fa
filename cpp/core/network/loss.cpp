#include "core/network/loss.hpp"

#include <algorithm>
#include <cmath>

#include "core/network/scaling.hpp"

namespace vegrad {
namespace {

constexpr double kLog2e = 1.4426950408889634;

// (h - t)², gradient 2 (h - t).
template <class T, class G>
double mse(const LossRow<T>& row, double scale, G* gradient) {
  double sum = 0;
  for (int j = 0; j < row.columns; ++j) {
    const double difference = shifted(double(row.h[j]), row.exponent) - double(row.values[j]);
    sum += difference * difference;
    if (gradient) gradient[j] = G(2 * scale * difference);
  }
  return sum;
}

// -log softmax(h)[label], gradient softmax(h) - [label]. The label's entry is written as minus the
// sum of the others, and its loss as log1p of it where it leads: both keep their digits when the
// network is sure of itself.
template <class T, class G>
double cross_entropy(const LossRow<T>& row, double scale, G* gradient) {
  const int n = row.columns;
  const int label = int(row.label);
  double highest = double(row.h[0]);
  for (int j = 1; j < n; ++j) highest = std::max(highest, double(row.h[j]));
  const auto power = [&](int j) {
    return std::exp(shifted(double(row.h[j]) - highest, row.exponent));
  };
  constexpr int kKept = 64;  // of a wider row the rest is made twice
  double kept[kKept], others = 0;
  for (int j = 0; j < n; ++j) {
    const double e = power(j);
    if (j < kKept) kept[j] = e;
    if (j != label) others += e;
  }
  const double lead = shifted(double(row.h[label]) - highest, row.exponent);
  const double total = others + std::exp(lead);
  if (gradient) {
    const double factor = scale / total;
    for (int j = 0; j < n; ++j) gradient[j] = G(factor * (j < kKept ? kept[j] : power(j)));
    gradient[label] = G(-factor * others);
  }
  return lead == 0 ? std::log1p(others) : std::log(total) - lead;
}

// softplus(h) - t h, gradient σ(h) - t, which for t = 1 is -σ(-h).
template <class T, class G>
double binary_cross_entropy(const LossRow<T>& row, double scale, G* gradient) {
  double sum = 0;
  for (int j = 0; j < row.columns; ++j) {
    const double h = shifted(double(row.h[j]), row.exponent), t = double(row.values[j]);
    const double e = std::exp(-std::fabs(h));
    // t softplus(-h) + (1 - t) softplus(h): no difference of large numbers, no 0 · ∞
    const double up = std::max(h, 0.0) + std::log1p(e), down = std::max(-h, 0.0) + std::log1p(e);
    sum += (t == 0 ? 0 : t * down) + (t == 1 ? 0 : (1 - t) * up);
    if (!gradient) continue;
    const double upper = 1 / (1 + e), lower = e / (1 + e);
    const double on = h < 0 ? lower : upper, off = h < 0 ? upper : lower;
    gradient[j] = G(scale * ((1 - t) * on - t * off));
  }
  return sum;
}

// h - t, in units of the larger one.
template <class T>
void mse_scaled(const LossRow<T>& row, double scale, ScaledNumber* gradient) {
  for (int j = 0; j < row.columns; ++j) {
    const ScaledNumber h{double(row.h[j]), row.exponent}, t{double(row.values[j]), 0};
    const std::int64_t unit = std::max(h.size(), t.size());
    gradient[j] = {};
    if (unit != kNoExponent)
      gradient[j] = {
          2 * scale * (shifted(h.mantissa, h.exponent - unit) - shifted(t.mantissa, -unit)), unit};
  }
}

// softmax by its logarithm; the label's entry from the sum of the others'.
template <class T>
void cross_entropy_scaled(const LossRow<T>& row, double scale, ScaledNumber* gradient) {
  const int n = row.columns, label = int(row.label);
  double highest = double(row.h[0]), total = 0;
  for (int j = 1; j < n; ++j) highest = std::max(highest, double(row.h[j]));
  const auto logit = [&](int j) { return shifted(double(row.h[j]) - highest, row.exponent); };
  double highest_other = -HUGE_VAL, others = 0;
  for (int j = 0; j < n; ++j) {
    total += std::exp(logit(j));
    if (j != label) highest_other = std::max(highest_other, logit(j));
  }
  for (int j = 0; j < n; ++j)
    if (j != label && highest_other > -HUGE_VAL) others += std::exp(logit(j) - highest_other);
  const double base = std::log2(scale) - std::log2(total);
  for (int j = 0; j < n; ++j) gradient[j] = scaled_number({1, logit(j) * kLog2e + base});
  gradient[label] = scaled_number({-1, highest_other * kLog2e + std::log2(others) + base});
}

// (1 - t) σ(h) - t σ(-h), the smaller of which has underflowed unless t is 0 or 1.
template <class T>
void binary_cross_entropy_scaled(const LossRow<T>& row, double scale, ScaledNumber* gradient) {
  const auto log2_sigmoid = [](double h) {
    return h < 0 ? value_log2(kActivation_sigmoid, h).log2 : -std::log1p(std::exp(-h)) * kLog2e;
  };
  for (int j = 0; j < row.columns; ++j) {
    const double h = shifted(double(row.h[j]), row.exponent), t = double(row.values[j]);
    const double on = log2_sigmoid(h), off = log2_sigmoid(-h);
    const double size = std::log2(scale);
    if (t == 0)
      gradient[j] = scaled_number({1, on + size});
    else if (t == 1)
      gradient[j] = scaled_number({-1, off + size});
    else
      gradient[j] = {scale * ((1 - t) * std::exp2(on) - t * std::exp2(off)), 0};
  }
}

}  // namespace

template <class T, class G>
double loss_row(Loss loss, const LossRow<T>& row, double scale, G* gradient) {
  switch (loss) {
    case Loss::mse:
      return mse(row, scale, gradient);
    case Loss::cross_entropy:
      return cross_entropy(row, scale, gradient);
    case Loss::binary_cross_entropy:
      return binary_cross_entropy(row, scale, gradient);
    case Loss::given:
      for (int j = 0; gradient && j < row.columns; ++j) gradient[j] = G(row.values[j]);
      return 0;
  }
  return 0;
}

template <class T>
void loss_row_scaled(Loss loss, const LossRow<T>& row, double scale, ScaledNumber* gradient) {
  switch (loss) {
    case Loss::mse:
      return mse_scaled(row, scale, gradient);
    case Loss::cross_entropy:
      return cross_entropy_scaled(row, scale, gradient);
    case Loss::binary_cross_entropy:
      return binary_cross_entropy_scaled(row, scale, gradient);
    case Loss::given:
      for (int j = 0; j < row.columns; ++j) gradient[j] = {double(row.values[j]), 0};
  }
}

template double loss_row(Loss, const LossRow<float>&, double, float*);
template double loss_row(Loss, const LossRow<double>&, double, double*);
template void loss_row_scaled(Loss, const LossRow<float>&, double, ScaledNumber*);
template void loss_row_scaled(Loss, const LossRow<double>&, double, ScaledNumber*);

}  // namespace vegrad
