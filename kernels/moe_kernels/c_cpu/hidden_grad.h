/* K4: from dy back through W_out and the activation. */
#ifndef MOE_HIDDEN_GRAD_H
#define MOE_HIDDEN_GRAD_H

#include "activations.h"
#include "handlers.h"
#include "product.h"

/* Back from dy through W_out and the activation: dy, token, weight, offset, w_out, h_in, h_gate
   -> dh_in, dh_gate, weight * a, <dy W_out^T, a>. */
typedef struct {
  const Unit *units;
  const float *dy, *weight, *w_out, *h_in, *h_gate;
  const int32_t *token;
  int64_t d, f;
  float *dh_in, *dh_gate, *wa, *dweight;
  int activation, amx;
} Hidden;

INLINE void hidden_rows(const int kind, const Hidden *h, int64_t row, int rows, int64_t column,
                        int64_t columns, const float *da) {
  for (int i = 0; i < rows; i++, row++, da += CHUNK) {
    int64_t at = row * h->f + column;
    float weight = h->weight[row], dots = 0;
    vec dot = {0};
    for (int64_t j = 0; j < columns; j += LANES, at += LANES) {
      int64_t count = columns - j;
      vec d = load_some(da + j, count), in = load_some(h->h_in + at, count), a, wd = weight * d;
      if (h->h_gate) {
        vec gate = load_some(h->h_gate + at, count);
        Activated act = activate(kind, gate);
        a = act.value * in;
        store_some(h->dh_in + at, wd * act.value, count);
        store_some(h->dh_gate + at, wd * in * act.slope, count);
      } else {
        Activated act = activate(kind, in);
        a = act.value;
        store_some(h->dh_in + at, wd * act.slope, count);
      }
      store_some(h->wa + at, weight * a, count);
      vec part = d * a;
      if (count >= LANES)
        dot += part;
      else
        for (int64_t l = 0; l < count; l++) dots += part[l];
    }
    for (int l = 0; l < LANES; l++) dots += dot[l];
    h->dweight[row] += dots;
  }
}

#define HIDDEN_SCRATCH (PRODUCT_SCRATCH + MAX_ROWS * CHUNK)

static void hidden_unit(const void *shared, int64_t number, float *scratch) {
  const Hidden *h = shared;
  Unit unit = h->units[number];
  float *da = scratch + PRODUCT_SCRATCH;
  Factor dy = {{h->dy, h->token, unit.row, (size_t)h->d}, 0, 0};
  for (int64_t column = 0; column < h->f; column += CHUNK) {
    int64_t columns = h->f - column < CHUNK ? h->f - column : CHUNK;
    Rows own = {h->w_out + unit.expert * h->f * h->d, NULL, column, (size_t)h->d};
    Product product = {{own, 0, 0}, da, 0};
    products(&dy, unit.rows, columns, h->d, &product, 1, CHUNK, h->amx, scratch);
    BY_KIND(h->activation, hidden_rows, h, unit.row, unit.rows, column, columns, da)
  }
}

XLA_FFI_Error *moe_hidden_grad(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  int64_t experts = length(frame, 4, 0), rows = length(frame, 1, 0);
  const int32_t *offset = integers(frame, 3);
  Hidden h = {.dy = floats(frame, 0),
              .token = integers(frame, 1),
              .weight = floats(frame, 2),
              .w_out = floats(frame, 4),
              .h_in = floats(frame, 5),
              .h_gate = floats(frame, 6),
              .f = length(frame, 4, 1),
              .d = length(frame, 4, 2),
              .dh_in = result(frame, 0),
              .dh_gate = result(frame, 1),
              .wa = result(frame, 2),
              .dweight = result(frame, 3),
              .activation = attribute(frame),
              .amx = use_amx(rows, experts)};
  if (h.dweight) memset(h.dweight, 0, sizeof(float) * (size_t)rows);
  return on_rows(frame, offset, experts, rows, h.token, length(frame, 0, 0), hidden_unit, &h,
                 &h.units, HIDDEN_SCRATCH);
}

#endif
