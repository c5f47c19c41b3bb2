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

// ---- operands from shared memory, rows of 64 bytes at a time ----------------------------------------------------------
//
// A[rows][k] and B[columns][k], k fastest; every row begins at a multiple of 16 bytes, `pitch` bytes from the next. A pitch
// that is an odd multiple of 16 bytes keeps the lanes in different banks.

constexpr int kRowBytes = 64;  // of both operands: 32 halves or 16 floats

#ifdef __CUDACC__
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(unsigned(__cvta_generic_to_shared(row))));
}
#else
// Each lane names a row of 16 bytes; lane 4·g + q gets word q of the rows that lanes g, g + 8, g + 16, g + 24 named.
inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
  struct Words { std::uint32_t r[4]; };
  const int lane = emulator::thread() % 32;
  const Words words = emulator::among_warp(row, [&](auto of) {
    Words w;
    for (int i = 0; i < 4; ++i) w.r[i] = static_cast<const std::uint32_t*>(of(8 * i + lane / 4))[lane % 4];
    return w;
  });
  for (int i = 0; i < 4; ++i) r[i] = words.r[i];
}
#endif

// C (32 × 32, a warp's) += A (32 × 64 bytes)·Bᵀ (32 × 64 bytes). c[m][n]: the sums of rows 16·m … and columns 8·n …
template <class X>
__device__ __forceinline__ void multiply_rows(float (&c)[2][4][4], const char* a, int a_pitch, const char* b, int b_pitch) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(X) == 2) {
#pragma unroll
    for (int k = 0; k < kRowBytes; k += 32) {
      FragmentA fa[2];
      std::uint32_t fb[2][4];  // of two times two column tiles
#pragma unroll
      for (int m = 0; m < 2; ++m) load_matrices(fa[m].r, a + (16 * m + lane % 16) * a_pitch + k + lane / 16 * 16);
#pragma unroll
      for (int n = 0; n < 2; ++n) load_matrices(fb[n], b + (16 * n + lane / 16 * 8 + lane % 8) * b_pitch + k + lane / 8 % 2 * 16);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) mma<X>(c[m][n], fa[m], FragmentB{{fb[n / 2][n % 2 * 2], fb[n / 2][n % 2 * 2 + 1]}});
    }
  } else {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int k = 0; k < kRowBytes; k += 16) {
      Pack<float, 4> fa[4], fb[4][2];
#pragma unroll
      for (int m = 0; m < 4; ++m) fa[m] = *reinterpret_cast<const Pack<float, 4>*>(a + (8 * m + g) * a_pitch + k);
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) fb[n][e] = *reinterpret_cast<const Pack<float, 4>*>(b + (8 * n + 2 * q + e) * b_pitch + k);
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              c[m / 2][n][m % 2 * 2 + e] = fmaf(fa[m].v[i], fb[n][e].v[i], c[m / 2][n][m % 2 * 2 + e]);
    }
  }
}

}  // namespace fastvoc
