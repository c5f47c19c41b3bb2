// AMX tiles: C[m][n] += Σ_k A[m][k]·B[k][n] with up to 16 rows, 16 columns, 32 inputs, bf16 in, fp32 out.
//
// TDPBF16PS sums even and odd k apart over the 32 inputs with fused multiply-adds, adds the two, and adds that to C
// (Intel SDM vol. 2, denormals are zero). The bf16 product in matvec.h keeps the same order, so it equals AMX bit for bit;
// and an emulated unit runs the tile code here on machines without AMX.
#pragma once
#include "cpu/simd.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

#if defined(__AMX_BF16__)

// The compiler does not know that tiles and their configuration are loaded from memory (GCC 12 names 8 bytes of 64, and none
// of a tile): what was written must really be there.
inline void tile_fence(const void* at = nullptr) { __asm__ volatile("" ::"r"(at) : "memory"); }

// For tile_block: tiles 0-3 hold C, 4 holds A (rows of inputs), 5-6 hold B. `rows`: how many rows A and C have.
inline void tile_configure(int rows) {
  struct alignas(64) { std::uint8_t palette = 1, start_row = 0, reserved[14] = {}; std::uint16_t bytes[16] = {}; std::uint8_t rows[16] = {}; } config;
  for (int i = 0; i < 7; ++i) config.bytes[i] = 64, config.rows[i] = i < 5 ? rows : 16;
  tile_fence(&config);
  _tile_loadconfig(&config);
}
inline void tile_release() { _tile_release(); }

// out[m][0..16·NV) = Σ_k in[m][k]·panel[k][..];  panel as in matrix.h, `width` outputs wide
template <int NV>
inline void tile_block(const bf16* panel, int width, const bf16* in, int ld, int K, float* out) {
  tile_fence();
  _tile_zero(0);
  if (NV > 1) _tile_zero(1);
  if (NV > 2) _tile_zero(2);
  if (NV > 3) _tile_zero(3);
  const int stride = width * 4;  // bytes from one pair of inputs to the next
  for (int k = 0; k < K; k += 32) {
    const bf16* w = panel + k * width;
    _tile_loadd(4, in + k, ld * 2);
    _tile_loadd(5, w, stride);
    _tile_dpbf16ps(0, 4, 5);
    if (NV > 1) { _tile_loadd(6, w + 32, stride); _tile_dpbf16ps(1, 4, 6); }
    if (NV > 2) { _tile_loadd(5, w + 64, stride); _tile_dpbf16ps(2, 4, 5); }
    if (NV > 3) { _tile_loadd(6, w + 96, stride); _tile_dpbf16ps(3, 4, 6); }
  }
  const int row = 64 * 4;
  _tile_stored(0, out, row);
  if (NV > 1) _tile_stored(1, out + 16, row);
  if (NV > 2) _tile_stored(2, out + 32, row);
  if (NV > 3) _tile_stored(3, out + 48, row);
}

// For products of many rows: tiles 0-3 hold C, two times 16 rows by two times 16 columns; 4-5 hold A, 6-7 hold B.
inline void tile_configure_square() {
  struct alignas(64) { std::uint8_t palette = 1, start_row = 0, reserved[14] = {}; std::uint16_t bytes[16] = {}; std::uint8_t rows[16] = {}; } config;
  for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
  tile_fence(&config);
  _tile_loadconfig(&config);
}

template <int NH, int NV>
inline void tile_clear() {
  _tile_zero(0);
  if (NV > 1) _tile_zero(1);
  if (NH > 1) _tile_zero(2);
  if (NH > 1 && NV > 1) _tile_zero(3);
}

// C += A·B over 32 inputs: a[h] the first of 16 rows, ld[h] apart; b as in tile_block
template <int NH, int NV>
inline void tile_multiply(const bf16* const (&a)[2], const std::int64_t (&ld)[2], const bf16* b, int width) {
  tile_fence();
  _tile_loadd(6, b, width * 4);
  if (NV > 1) _tile_loadd(7, b + 32, width * 4);
  _tile_loadd(4, a[0], ld[0] * 2);
  _tile_dpbf16ps(0, 4, 6);
  if (NV > 1) _tile_dpbf16ps(1, 4, 7);
  if (NH > 1) {
    _tile_loadd(5, a[1], ld[1] * 2);
    _tile_dpbf16ps(2, 5, 6);
    if (NV > 1) _tile_dpbf16ps(3, 5, 7);
  }
}

template <int NH, int NV>
inline void tile_result(float* out, int ld) {
  _tile_stored(0, out, ld * 4);
  if (NV > 1) _tile_stored(1, out + 16, ld * 4);
  if (NH > 1) {
    _tile_stored(2, out + 16 * ld, ld * 4);
    if (NV > 1) _tile_stored(3, out + 16 * ld + 16, ld * 4);
  }
}

#else  // what the instructions do, in plain C++

inline thread_local int emulated_rows = 0;
inline void tile_configure(int rows) { emulated_rows = rows; }
inline void tile_release() {}

inline float widen(bf16 x) {
  const std::uint32_t u = std::uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

template <int NV>
inline void tile_block(const bf16* panel, int width, const bf16* in, int ld, int K, float* out) {
  for (int m = 0; m < emulated_rows; ++m)
    for (int n = 0; n < 16 * NV; ++n) {
      float c = 0;
      for (int k = 0; k < K; k += 32) {
        float even = 0, odd = 0;
        for (int p = k / 2; p < k / 2 + 16; ++p) {
          even = __builtin_fmaf(widen(panel[(p * width + n) * 2]), widen(in[m * ld + 2 * p]), even);
          odd = __builtin_fmaf(widen(panel[(p * width + n) * 2 + 1]), widen(in[m * ld + 2 * p + 1]), odd);
        }
        c += even + odd;
      }
      out[m * 64 + n] = c;
    }
}

inline thread_local float emulated_c[2][2][16][16];
inline void tile_configure_square() {}

template <int NH, int NV>
inline void tile_clear() {
  std::memset(emulated_c, 0, sizeof emulated_c);
}

template <int NH, int NV>
inline void tile_multiply(const bf16* const (&a)[2], const std::int64_t (&ld)[2], const bf16* b, int width) {
  for (int h = 0; h < NH; ++h)
    for (int v = 0; v < NV; ++v)
      for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 16; ++n) {
          float even = 0, odd = 0;
          for (int p = 0; p < 16; ++p) {
            const bf16 *x = a[h] + m * ld[h] + 2 * p, *w = b + (p * width + v * 16 + n) * 2;
            even = __builtin_fmaf(widen(w[0]), widen(x[0]), even);
            odd = __builtin_fmaf(widen(w[1]), widen(x[1]), odd);
          }
          emulated_c[h][v][m][n] += even + odd;
        }
}

template <int NH, int NV>
inline void tile_result(float* out, int ld) {
  for (int h = 0; h < NH; ++h)
    for (int v = 0; v < NV; ++v)
      for (int m = 0; m < 16; ++m) std::memcpy(out + (h * 16 + m) * ld + v * 16, emulated_c[h][v][m], 64);
}

#endif

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
