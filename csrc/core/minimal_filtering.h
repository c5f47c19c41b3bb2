// Which samples minimal filtering computes together (core/gated_residual_stack.h, core/gated_residual.h): t and t + dilation.
#pragma once
#include <cstdint>

namespace fastvoc {

// How many pairs cover T samples; those at the end may lack their second.
inline std::int64_t pairs_of(std::int64_t T, std::int64_t dilation) {
  const std::int64_t odd = T % (2 * dilation);
  return T / (2 * dilation) * dilation + (odd < dilation ? odd : dilation);
}

// The first sample of pair q.
inline std::int64_t first_of_pair(std::int64_t q, std::int64_t dilation) { return q / dilation * 2 * dilation + q % dilation; }

}  // namespace fastvoc
