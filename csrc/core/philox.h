// Philox4x32-10, a counter-based generator: the same counter and key give the same numbers, anywhere and in any order.
//
//   Salmon, Moraes, Dror, Shaw 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"
//
// fastvoc's noise: key = seed, counter = (sample index, stream, draw / 4), word draw % 4.
#pragma once
#include <cstdint>

#ifndef FASTVOC_HD
#define FASTVOC_HD  // __host__ __device__ where CUDA compiles this
#endif

namespace fastvoc::FASTVOC_ISA {
namespace {

struct Philox {
  std::uint32_t words[4];

  FASTVOC_HD Philox(std::uint64_t seed, std::uint64_t sample, std::uint32_t stream, std::uint32_t block)
      : words{std::uint32_t(sample), std::uint32_t(sample >> 32), stream, block} {
    std::uint32_t key[2] = {std::uint32_t(seed), std::uint32_t(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = std::uint64_t(0xD2511F53u) * words[0], p1 = std::uint64_t(0xCD9E8D57u) * words[2];
      const std::uint32_t w1 = words[1], w3 = words[3];
      words[0] = std::uint32_t(p1 >> 32) ^ w1 ^ key[0];
      words[1] = std::uint32_t(p1);
      words[2] = std::uint32_t(p0 >> 32) ^ w3 ^ key[1];
      words[3] = std::uint32_t(p0);
      key[0] += 0x9E3779B9u;
      key[1] += 0xBB67AE85u;
    }
  }
};

// 23 bits to the middle of their interval: never 0 and, unlike with 24, never rounded to 1.
FASTVOC_HD inline float uniform(std::uint32_t word) { return (float(word >> 9) + 0.5f) * 1.1920928955078125e-7f; }

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
