/* Rows through the matrix of their expert: K2, K6 and the single operations. */
#ifndef MOE_GROUPED_MATMUL_H
#define MOE_GROUPED_MATMUL_H

#include "handlers.h"
#include "product.h"

/* x W + x2 W2 + bias: x, index, offset, w, bias, x2, w2 -> y. W transposed, or not. */
typedef struct {
  const Unit *units;
  const float *x, *w, *bias, *x2, *w2;
  const int32_t *index;
  int64_t n_in, n_out;
  float *y;
  int transposed, amx;
} Grouped;

static void grouped_unit(const void *shared, int64_t number, float *scratch) {
  const Grouped *g = shared;
  Unit unit = g->units[number];
  float *y = g->y + unit.row * g->n_out;
  const float *x[2] = {g->x, g->x2}, *w[2] = {g->w, g->w2};
  if (g->bias)
    start_with(g->bias + unit.expert * g->n_out, unit.rows, g->n_out, y, (size_t)g->n_out);
  for (int i = 0; i < 2 && x[i]; i++) {
    Factor left = {{x[i], g->index, unit.row, (size_t)g->n_in}, 0, 0};
    Rows right = {w[i] + unit.expert * g->n_in * g->n_out, NULL, 0,
                  (size_t)(g->transposed ? g->n_in : g->n_out)};
    Product product = {{right, !g->transposed, 0}, y, g->bias || i};
    products(&left, unit.rows, g->n_out, g->n_in, &product, 1, (size_t)g->n_out, g->amx, scratch);
  }
}

XLA_FFI_Error *moe_grouped_matmul(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  int transposed = attribute(frame);
  const int32_t *offset = integers(frame, 2);
  int64_t experts = length(frame, 3, 0);
  Grouped g = {.x = floats(frame, 0),
               .index = integers(frame, 1),
               .w = floats(frame, 3),
               .bias = floats(frame, 4),
               .x2 = floats(frame, 5),
               .w2 = floats(frame, 6),
               .n_in = length(frame, 3, transposed ? 2 : 1),
               .n_out = length(frame, 3, transposed ? 1 : 2),
               .y = result(frame, 0),
               .transposed = transposed};
  int64_t rows = length(frame, g.index ? 1 : 0, 0);
  g.amx = use_amx(rows, experts);
  return on_rows(frame, offset, experts, rows, g.index, length(frame, 0, 0), grouped_unit, &g,
                 &g.units, PRODUCT_SCRATCH);
}

#endif
