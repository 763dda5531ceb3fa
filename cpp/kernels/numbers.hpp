// Constants of the activations, for kernels and core alike.
#pragma once

namespace vegrad {

constexpr double kLeakySlope = 0.01;
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;  // Klambauer et al. 2017
constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kTwoOverSqrtPi = 1.1283791670955125739;
constexpr double kSqrtHalf = 0.70710678118654752440;
constexpr double kOneOverSqrtTwoPi = 0.39894228040143267794;
constexpr double kNormEpsilon = 1e-5;  // PyTorch's default for LayerNorm
constexpr double kNone = -1.0;         // no slope is negative

}  // namespace vegrad
