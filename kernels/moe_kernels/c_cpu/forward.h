/* K1 and K2: from x through W_in, W_gate, the activation and W_out, for some rows at a time. */
#ifndef MOE_FORWARD_H
#define MOE_FORWARD_H

#include "activations.h"
#include "handlers.h"
#include "product.h"

/* a = act(x W_gate + b_gate) * (x W_in + b_in), or act(x W_in + b_in), and y = a W_out + b_out:
   x, token, offset, w_in, w_gate, b_in, b_gate, w_out, b_out -> y, a, h_in, h_gate. A result that
   is not wanted is empty; a then stays in the cache, some columns at a time. */
typedef struct {
  const Unit *units;
  const float *x, *w_in, *w_gate, *b_in, *b_gate, *w_out, *b_out;
  const int32_t *token;
  int64_t d, f;
  float *y, *a, *h_in, *h_gate;
  int activation, amx;
} Forward;

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

/* x W_in and x W_gate of some columns. */
static void up(const Forward *l, Unit unit, int64_t column, int64_t columns, float *h_in,
               float *h_gate, size_t stride, float *scratch) {
  const float *w[2] = {l->w_in, l->w_gate}, *bias[2] = {l->b_in, l->b_gate};
  float *h[2] = {h_in, h_gate};
  int count = l->w_gate ? 2 : 1;
  Product product[2];
  for (int i = 0; i < count; i++) {
    Rows own = {w[i] + unit.expert * l->d * l->f, NULL, 0, (size_t)l->f};
    product[i] = (Product){{own, 1, (size_t)column}, h[i], bias[i] != NULL};
    if (bias[i])
      start_with(bias[i] + unit.expert * l->f + column, unit.rows, columns, h[i], stride);
  }
  Factor x = {{l->x, l->token, unit.row, (size_t)l->d}, 0, 0};
  products(&x, unit.rows, columns, l->d, product, count, stride, l->amx, scratch);
}

#define FORWARD_SCRATCH (PRODUCT_SCRATCH + 2 * MAX_ROWS * CHUNK)

static void forward_unit(const void *shared, int64_t number, float *scratch) {
  const Forward *l = shared;
  Unit unit = l->units[number];
  float *own = scratch + PRODUCT_SCRATCH, *own_gate = own + MAX_ROWS * CHUNK;
  float *y = l->y ? l->y + unit.row * l->d : NULL;
  if (l->b_out) start_with(l->b_out + unit.expert * l->d, unit.rows, l->d, y, (size_t)l->d);
  for (int64_t column = 0; column < l->f; column += CHUNK) {
    int64_t columns = l->f - column < CHUNK ? l->f - column : CHUNK;
    int64_t at = unit.row * l->f + column;
    size_t h_stride = l->h_in ? (size_t)l->f : CHUNK, a_stride = l->a ? (size_t)l->f : CHUNK;
    float *h_in = l->h_in ? l->h_in + at : own;
    float *h_gate = !l->w_gate ? NULL : l->h_gate ? l->h_gate + at : own_gate;
    float *a = l->a ? l->a + at : own; /* in the place of h_in, unless that is kept */
    up(l, unit, column, columns, h_in, h_gate, h_stride, scratch);
    BY_KIND(l->activation, activate_rows, unit.rows, columns, h_in, h_gate, h_stride, a, a_stride)
    if (!y) continue;
    Factor left = {{a, NULL, 0, a_stride}, 0, 0};
    Rows down = {l->w_out + (unit.expert * l->f + column) * l->d, NULL, 0, (size_t)l->d};
    Product product = {{down, 1, 0}, y, l->b_out || column};
    products(&left, unit.rows, l->d, columns, &product, 1, (size_t)l->d, l->amx, scratch);
  }
}

XLA_FFI_Error *moe_forward(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  int64_t experts = length(frame, 3, 0), rows = length(frame, 1, 0);
  const int32_t *offset = integers(frame, 2);
  Forward layer = {.x = floats(frame, 0),
                   .token = integers(frame, 1),
                   .w_in = floats(frame, 3),
                   .w_gate = floats(frame, 4),
                   .b_in = floats(frame, 5),
                   .b_gate = floats(frame, 6),
                   .w_out = floats(frame, 7),
                   .b_out = floats(frame, 8),
                   .d = length(frame, 3, 1),
                   .f = length(frame, 3, 2),
                   .y = result(frame, 0),
                   .a = result(frame, 1),
                   .h_in = result(frame, 2),
                   .h_gate = result(frame, 3),
                   .activation = attribute(frame),
                   .amx = use_amx(rows, experts)};
  return on_rows(frame, offset, experts, rows, layer.token, length(frame, 0, 0), forward_unit,
                 &layer, &layer.units, FORWARD_SCRATCH);
}

#endif
