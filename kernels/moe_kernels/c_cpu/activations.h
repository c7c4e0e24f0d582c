/* The activations of moe_kernels.activations and their derivatives. */
#ifndef MOE_ACTIVATIONS_H
#define MOE_ACTIVATIONS_H

#include "vectors.h"

enum { SILU, GELU, GELU_TANH, RELU, RELU2 }; /* in the order of ACTIVATIONS */

typedef struct {
  vec value, slope;
} Activated;

INLINE Activated activate(int kind, vec h) {
  const vec zero = {0};
  switch (kind) {
  case SILU: {
    vec s = 1.0f / (1.0f + vexp(-h));
    return (Activated){h * s, s * (1.0f + h * (1.0f - s))};
  }
  case GELU: {
    vec cdf = 0.5f * verfc(h * -0.70710678f);
    vec density = 0.39894228f * vexp(-0.5f * h * h);
    return (Activated){h * cdf, cdf + h * density};
  }
  case GELU_TANH: {
    vec u = 0.79788456f * (h + 0.044715f * h * h * h);
    vec cdf = 1.0f / (1.0f + vexp(-2.0f * u)); /* (1 + tanh u) / 2 */
    vec du = 0.79788456f * (1.0f + 0.134145f * h * h);
    return (Activated){h * cdf, cdf + h * 2.0f * cdf * (1.0f - cdf) * du};
  }
  case RELU: {
    /* h <= 0, not h > 0: NaN stays NaN. */
    ivec off = h <= 0.0f;
    return (Activated){pick(off, zero, h), pick(off, zero, zero + 1.0f)};
  }
  default: {
    vec r = pick(h <= 0.0f, zero, h);
    return (Activated){r * r, 2.0f * r};
  }
  }
}

/* The function `name` with `kind` known to the compiler. */
#define BY_KIND(kind, name, ...)                                                                   \
  switch (kind) {                                                                                  \
  case SILU: name(SILU, __VA_ARGS__); break;                                                       \
  case GELU: name(GELU, __VA_ARGS__); break;                                                       \
  case GELU_TANH: name(GELU_TANH, __VA_ARGS__); break;                                             \
  case RELU: name(RELU, __VA_ARGS__); break;                                                       \
  default: name(RELU2, __VA_ARGS__);                                                               \
  }

#endif
