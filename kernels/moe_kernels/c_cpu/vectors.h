/* Vectors of floats as wide as the processor's registers, in GCC's and Clang's own notation. */
#ifndef MOE_VECTORS_H
#define MOE_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define TILE_ROWS 14 /* 28 sums, 2 operands and 1 broadcast in 32 registers */
#elif defined(__AVX__)
#define LANES 8
#define TILE_ROWS 6 /* 12 sums, 2 operands and 1 broadcast in 16 registers */
#elif defined(__aarch64__)
#define LANES 4
#define TILE_ROWS 12
#else
#define LANES 4
#define TILE_ROWS 4
#endif
_Static_assert(TILE_ROWS <= LANES || TILE_ROWS % LANES == 0,
               "pack_transposed writes whole vectors");
#define TILE_COLUMNS (2 * LANES)

#define INLINE static inline __attribute__((always_inline))

/* Before a loop whose array is to lie in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

INLINE vec load(const float *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

/* The first `count` floats from p, which may be fewer than a vector's. */
INLINE vec load_some(const float *p, int64_t count) {
  if (count >= LANES) return load(p);
  vec v = {0};
  for (int64_t i = 0; i < count; i++) v[i] = p[i];
  return v;
}

INLINE void store_some(float *p, vec v, int64_t count) {
  if (count >= LANES)
    store(p, v);
  else
    for (int64_t i = 0; i < count; i++) p[i] = v[i];
}

/* a's and b's lanes in turns: a[0] b[0] a[1] b[1] ..., the lower half of them and the upper half.
 */
#if LANES == 16
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#endif
#if defined(__clang__)
#define WEAVE(a, b, lanes) __builtin_shufflevector(a, b, lanes)
#else
#define WEAVE(a, b, lanes) __builtin_shuffle(a, b, (ivec){lanes})
#endif

/* Transposes a square of LANES rows, by log2(LANES) rounds of weaving row i with row i + LANES/2.
 */
INLINE void transpose(vec rows[LANES]) {
  for (int round = 1; round < LANES; round *= 2) {
    vec woven[LANES];
    for (int i = 0; i < LANES / 2; i++) {
      woven[2 * i] = WEAVE(rows[i], rows[i + LANES / 2], LOWER);
      woven[2 * i + 1] = WEAVE(rows[i], rows[i + LANES / 2], UPPER);
    }
    for (int i = 0; i < LANES; i++) rows[i] = woven[i];
  }
}

/* yes where the mask is set (all ones), no elsewhere. */
INLINE vec pick(ivec mask, vec yes, vec no) {
  return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

/* e^x with a relative error of about 1e-7: x = n ln 2 + r, a polynomial for e^r, and 2^n by its
   exponent's bits. Below -87 it is 0, above 88 infinity; NaN stays NaN. */
INLINE vec vexp(vec x) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to the nearest integer */
  ivec high = x > 88.0f, low = x < -87.0f;
  x = pick(high | low, (vec){0}, x);
  vec shifted = x * 1.44269504f + magic;
  vec n = shifted - magic;
  vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  ivec exponent = ((ivec)shifted - 0x4B400000 + 127) << 23;
  return pick(low, (vec){0}, pick(high, __builtin_inff() + (vec){0}, p * (vec)exponent));
}

/* The complementary error function, relative error below 1.2e-7 (a Chebyshev fit; Press et al.,
   Numerical Recipes, "erfcc"). */
INLINE vec verfc(vec x) {
  vec z = pick(x < 0.0f, -x, x);
  vec t = 1.0f / (1.0f + 0.5f * z);
  vec p = 0.17087277f * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  vec r = t * vexp(p - z * z);
  return pick(x < 0.0f, 2.0f - r, r);
}

#endif
