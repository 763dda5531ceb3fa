// Adaptive gradient clipping: each unit by its weights' norm.
#pragma once

#include "core/buffers/clipping.hpp"
#include "core/buffers/rewrite.hpp"

namespace vegrad {

// Clips all buffers, or hands them to the request's consumer; returns what is left of each.
std::vector<Written> clip_adaptively(const std::vector<View>& views, const Request& request);

}  // namespace vegrad
