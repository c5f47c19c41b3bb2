#pragma once
#include <cstdint>
#include <cstring>

namespace fastvoc {

// A number's bits as bf16, to nearest even; NaN stays NaN. As store_bf16 of cpu/simd.h. static: objects of an instruction set may
// share no symbol.
static inline std::uint32_t bf16_bits(float x) {
  std::uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return (u >> 16) | 0x40;
  return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

}  // namespace fastvoc
