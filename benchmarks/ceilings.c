// What a core can do at most: multiply-adds of independent chains in registers, and reads of an array. For the roofline.
#include <immintrin.h>
#include <stdint.h>

#ifdef __AVX512F__
enum { kBytes = 64 };
#else
enum { kBytes = 32 };
#endif
typedef float floats __attribute__((vector_size(kBytes)));
enum { kChains = 12 };  // two units of five cycles, in the sixteen registers of AVX2

static void keep(floats* v) { __asm__ volatile("" : "+m"(*v)); }

// 2 * kChains * lanes operations a turn; returns operations done.
double fp32_operations(int64_t turns) {
  floats sums[kChains] = {}, a = {}, b = {};
  keep(&a);
  keep(&b);
  for (int64_t i = 0; i < turns; ++i)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] += a * b;
  for (int c = 0; c < kChains; ++c) keep(&sums[c]);
  return 2.0 * turns * kChains * (kBytes / 4);
}

// 0 where the compiler's machine has no such instruction.
double bf16_operations(int64_t turns) {
#ifdef __AVX512BF16__
  __m512 sums[kChains] = {};
  floats seed = {};
  keep(&seed);
  __m512bh a = (__m512bh)seed;
  for (int64_t i = 0; i < turns; ++i)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], a, a);
  for (int c = 0; c < kChains; ++c) keep((floats*)&sums[c]);
  return 4.0 * turns * kChains * 16;
#else
  return 0 * turns;
#endif
}

double int8_operations(int64_t turns) {
#ifdef __AVX512VNNI__
  __m512i sums[kChains] = {};
  floats seed = {};
  keep(&seed);
  __m512i a = (__m512i)seed;
  for (int64_t i = 0; i < turns; ++i)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbusd_epi32(sums[c], a, a);
  for (int c = 0; c < kChains; ++c) keep((floats*)&sums[c]);
  return 8.0 * turns * kChains * 16;
#else
  return 0 * turns;
#endif
}

// Reads n_bytes, a multiple of 1024, `times` over.
double read_bytes(const char* data, int64_t n_bytes, int64_t times) {
  enum { kAtOnce = 8 };
  floats sums[kAtOnce] = {};
  for (int64_t r = 0; r < times; ++r) {
    for (int64_t i = 0; i < n_bytes; i += kAtOnce * kBytes)
#pragma GCC unroll 8
      for (int c = 0; c < kAtOnce; ++c) sums[c] += *(const floats*)(data + i + c * kBytes);
    for (int c = 0; c < kAtOnce; ++c) keep(&sums[c]);
  }
  return (double)n_bytes * times;
}
