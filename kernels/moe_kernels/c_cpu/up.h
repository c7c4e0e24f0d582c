/* K1: gather, W_in, W_gate, biases and the activation, for some rows at a time. */
#ifndef MOE_UP_H
#define MOE_UP_H

#include "activations.h"
#include "handlers.h"
#include "product.h"

/* x W_in + b_in, x W_gate + b_gate, and the activation: x, token, offset, w_in, w_gate, b_in,
   b_gate -> a, h_in, h_gate (empty unless they are kept). */
typedef struct {
  const Unit *units;
  const float *x, *w_in, *w_gate, *b_in, *b_gate;
  const int32_t *token;
  int64_t d, f;
  float *a, *h_in, *h_gate;
  int activation;
} Up;

INLINE void activate_rows(const int kind, int rows, int64_t columns, const float *h_in,
                          const float *h_gate, size_t h_stride, float *a, size_t stride) {
  for (int i = 0; i < rows; i++, h_in += h_stride, a += stride) {
    const float *gate = h_gate ? h_gate + i * h_stride : NULL;
    for (int64_t j = 0; j < columns; j += LANES) {
      vec in = load_some(h_in + j, columns - j);
      vec out = gate ? activate(kind, load_some(gate + j, columns - j)).value * in
                     : activate(kind, in).value;
      store_some(a + j, out, columns - j);
    }
  }
}

static void up_unit(const void *shared, int64_t number) {
  const Up *up = shared;
  Unit unit = up->units[number];
  float *scratch = scratch_of(PRODUCT_SCRATCH + 2 * (size_t)MAX_ROWS * CHUNK);
  float *own_in = scratch + PRODUCT_SCRATCH, *own_gate = own_in + MAX_ROWS * CHUNK;
  Factor x = {{up->x, up->token, unit.row, (size_t)up->d}, 0, 0};
  for (int64_t column = 0; column < up->f; column += CHUNK) {
    int64_t columns = up->f - column < CHUNK ? up->f - column : CHUNK;
    int64_t at = unit.row * up->f + column;
    size_t stride = up->h_in ? (size_t)up->f : CHUNK;
    float *h_in = up->h_in ? up->h_in + at : own_in;
    float *h_gate = !up->w_gate ? NULL : up->h_gate ? up->h_gate + at : own_gate;
    const float *w[2] = {up->w_in, up->w_gate}, *b[2] = {up->b_in, up->b_gate};
    float *h[2] = {h_in, h_gate};
    for (int i = 0; i < 2 && w[i]; i++) {
      if (b[i]) start_with(b[i] + unit.expert * up->f + column, unit.rows, columns, h[i], stride);
      const float *matrix = w[i] + unit.expert * up->d * up->f;
      Factor own = {{matrix, NULL, 0, (size_t)up->f}, 1, (size_t)column};
      product(&x, &own, unit.rows, columns, up->d, h[i], stride, b[i] != NULL, scratch);
    }
    BY_KIND(up->activation, activate_rows, unit.rows, columns, h_in, h_gate, stride, up->a + at,
            (size_t)up->f)
  }
}

XLA_FFI_Error *moe_up(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  int64_t experts = length(frame, 3, 0), rows = length(frame, 1, 0);
  const int32_t *offset = integers(frame, 2);
  Up up = {.x = floats(frame, 0),
           .token = integers(frame, 1),
           .w_in = floats(frame, 3),
           .w_gate = floats(frame, 4),
           .b_in = floats(frame, 5),
           .b_gate = floats(frame, 6),
           .d = length(frame, 3, 1),
           .f = length(frame, 3, 2),
           .a = result(frame, 0),
           .h_in = result(frame, 1),
           .h_gate = result(frame, 2),
           .activation = attribute(frame)};
  return on_rows(frame, offset, experts, rows, up.token, length(frame, 0, 0), up_unit, &up,
                 &up.units);
}

#endif
