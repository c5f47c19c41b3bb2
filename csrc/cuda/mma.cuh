// The matrix instruction, C[16×8] += A[16×16]·B[16×8] with float sums, behind one function for every device and the host.
//
// A warp holds the operands in pieces. Of lane 4·g + q (g = 0 … 7, q = 0 … 3):
//   A  4 words: (row g, columns 2q 2q+1), (g+8, 2q 2q+1), (g, 2q+8 2q+9), (g+8, 2q+8 2q+9)
//   B  2 words: (rows 2q 2q+1, column g), (2q+8 2q+9, g)
//   C  4 floats: (row g, columns 2q 2q+1), (g+8, 2q 2q+1)
//
// sm_80 and later: one instruction. sm_75: two for half; bfloat16, which it does not know, by shuffles. The emulator sums
// the products in double, in this order: no tensor core rounds like that.
#pragma once
#include "cuda/common.cuh"

namespace fastvoc {

struct FragmentA { std::uint32_t r[4]; };
struct FragmentB { std::uint32_t r[2]; };

// The two 16-bit numbers of a word, as floats; half e.
template <class T>
__device__ __forceinline__ float half_of(std::uint32_t word, int e) {
  const std::uint16_t bits = std::uint16_t(word >> (16 * e));
  T value;
  memcpy(&value, &bits, 2);
  return float(value);
}

#ifndef __CUDACC__

template <class T>
void mma(float (&c)[4], const FragmentA& a, const FragmentB& b) {
  struct Both { FragmentA a; FragmentB b; };
  struct Sums { float c[4]; };
  const int lane = emulator::thread() % 32, g = lane / 4, q = lane % 4;
  const Sums sums = emulator::among_warp(Both{a, b}, [&](auto of) {
    Sums s;
    for (int i = 0; i < 4; ++i) {
      const int row = i / 2, column = 2 * q + i % 2;  // row 0: g, 1: g + 8
      double sum = c[i];
      for (int k = 0; k < 16; ++k) {
        const FragmentA& x = of(4 * g + k % 8 / 2).a;
        const FragmentB& y = of(4 * column + k % 8 / 2).b;
        sum += double(half_of<T>(x.r[row + k / 8 * 2], k % 2)) * half_of<T>(y.r[k / 8], k % 2);
      }
      s.c[i] = float(sum);
    }
    return s;
  });
  for (int i = 0; i < 4; ++i) c[i] = sums.c[i];
}

#else

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const FragmentA& a, const FragmentB& b) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same<T, __half>::value)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
#else
  if constexpr (std::is_same<T, __half>::value) {
    for (int k = 0; k < 2; ++k)
      asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a.r[2 * k]), "r"(a.r[2 * k + 1]), "r"(b.r[k]));
  } else {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    for (int j = 0; j < 4; ++j)
      for (int k = 0; k < 2; ++k) {
        const std::uint32_t upper = __shfl_sync(~0u, a.r[2 * k], 4 * g + j), lower = __shfl_sync(~0u, a.r[2 * k + 1], 4 * g + j);
        for (int e = 0; e < 2; ++e) {
          const std::uint32_t y = __shfl_sync(~0u, b.r[k], 4 * (2 * q + e) + j);
          for (int h = 0; h < 2; ++h) {
            c[e] = fmaf(half_of<T>(upper, h), half_of<T>(y, h), c[e]);
            c[2 + e] = fmaf(half_of<T>(lower, h), half_of<T>(y, h), c[2 + e]);
          }
        }
      }
  }
#endif
}

#endif

}  // namespace fastvoc
