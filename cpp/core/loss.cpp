#include "core/loss.hpp"

#include <algorithm>
#include <cmath>

namespace vegrad {
namespace {

int clamp_exponent(std::int64_t e) { return int(std::clamp<std::int64_t>(e, -100000, 100000)); }

double shifted(double x, std::int64_t exponent) {
  return exponent == 0 ? x : std::ldexp(x, clamp_exponent(exponent));
}

// (h - t)², gradient 2 (h - t).
template <class T, class G>
double mse(const LossRow<T>& row, double scale, std::int64_t out, G* gradient) {
  double sum = 0;
  for (int j = 0; j < row.columns; ++j) {
    const double difference =
        shifted(double(row.h[j]), row.exponent - out) - shifted(double(row.values[j]), -out);
    sum += difference * difference;
    if (gradient) gradient[j] = G(2 * scale * difference);
  }
  return shifted(sum, 2 * out);
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
  double others = 0;
  for (int j = 0; j < n; ++j) {
    if (j == label) continue;
    others += std::exp(shifted(double(row.h[j]) - highest, row.exponent));
  }
  const double lead = shifted(double(row.h[label]) - highest, row.exponent);
  const double total = others + std::exp(lead);
  if (gradient) {
    for (int j = 0; j < n; ++j)
      gradient[j] = G(scale * std::exp(shifted(double(row.h[j]) - highest, row.exponent)) / total);
    gradient[label] = G(-scale * others / total);
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

}  // namespace

template <class T, class G>
double loss_row(Loss loss, const LossRow<T>& row, double scale, std::int64_t gradient_exponent,
                G* gradient) {
  switch (loss) {
    case Loss::mse:
      return mse(row, scale, gradient_exponent, gradient);
    case Loss::cross_entropy:
      return cross_entropy(row, scale, gradient);
    case Loss::binary_cross_entropy:
      return binary_cross_entropy(row, scale, gradient);
  }
  return 0;
}

template double loss_row<float, float>(Loss, const LossRow<float>&, double, std::int64_t, float*);
template double loss_row<float, double>(Loss, const LossRow<float>&, double, std::int64_t, double*);
template double loss_row<double, double>(Loss, const LossRow<double>&, double, std::int64_t,
                                         double*);

}  // namespace vegrad
