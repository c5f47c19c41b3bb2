// IEEE half on the host: storage and conversions, rounding to nearest even. Arithmetic is done in float.
#pragma once
#include <cstdint>
#include <cstring>

struct __half {
  std::uint16_t bits;
  __half() = default;
  __half(float x) {
    std::uint32_t u;
    std::memcpy(&u, &x, 4);
    const std::uint32_t sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    if (u >= 0x7f800000) bits = std::uint16_t(sign | (u > 0x7f800000 ? 0x7e00 : 0x7c00));
    else if (u >= 0x47800000) bits = std::uint16_t(sign | 0x7c00);  // 65536 and above
    else if (u >= 0x38800000) {                                     // normal: the exponent moves, 13 bits fall
      const std::uint32_t v = u - 0x38000000;
      bits = std::uint16_t(sign | ((v + 0xfff + (v >> 13 & 1)) >> 13));
    } else {  // subnormal: float adds in steps of 2^-24 by itself
      float magnitude;
      std::memcpy(&magnitude, &u, 4);
      magnitude += 0.5f;
      std::memcpy(&u, &magnitude, 4);
      bits = std::uint16_t(sign | (u - 0x3f000000));
    }
  }
  operator float() const {
    const std::uint32_t sign = std::uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
    std::uint32_t u;
    float x;
    if (rest >= 0x7c00) u = 0x7f800000 | (rest & 0x3ff) << 13;
    else if (rest >= 0x400) u = (rest << 13) + 0x38000000;
    else {
      x = float(rest) * 5.9604644775390625e-8f;  // 2^-24
      std::memcpy(&u, &x, 4);
    }
    u |= sign;
    std::memcpy(&x, &u, 4);
    return x;
  }
};
