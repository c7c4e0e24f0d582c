/* K5 and K7: the gradients of the experts' matrices. */
#ifndef MOE_WEIGHT_GRAD_H
#define MOE_WEIGHT_GRAD_H

#include "handlers.h"
#include "product.h"

/* x^T dy of each expert's rows: x, x_index, dy, dy_index, offset -> dw. */
typedef struct {
  const Unit *units; /* `row` is the first of some rows of dw[expert] */
  const float *x, *dy;
  const int32_t *x_index, *dy_index, *offset;
  int64_t n_in, n_out;
  float *dw;
  int amx;
} WeightGrad;

static void weight_unit(const void *shared, int64_t number, float *scratch) {
  const WeightGrad *g = shared;
  Unit unit = g->units[number];
  int64_t first = g->offset[unit.expert], load = g->offset[unit.expert + 1] - first;
  float *to = g->dw + (unit.expert * g->n_in + unit.row) * g->n_out;
  if (!load) {
    memset(to, 0, sizeof(float) * (size_t)unit.rows * (size_t)g->n_out);
    return;
  }
  Factor x = {{g->x, g->x_index, first, (size_t)g->n_in}, 1, (size_t)unit.row};
  Product product = {{{g->dy, g->dy_index, first, (size_t)g->n_out}, 1, 0}, to, 0};
  products(&x, unit.rows, g->n_out, load, &product, 1, (size_t)g->n_out, g->amx, scratch);
}

/* Cuts each expert's matrix into rows, as many as its load leaves room for, and fewer where threads
   would have nothing to do; larger loads come first. NULL if there is no memory, of which `*bytes`
   were asked for. */
static Unit *weight_units(const int32_t *offset, int64_t experts, int64_t n_in, int64_t threads,
                          int64_t *count, size_t *bytes) {
  int64_t fair = n_in * experts / (4 * threads);
  if (fair < 5 * TILE_ROWS) fair = 5 * TILE_ROWS;
  int64_t fewest = fair < MAX_ROWS ? fair : MAX_ROWS;
  size_t first_bytes = sizeof(Unit) * (size_t)(experts + 1);
  *bytes = sizeof(Unit) * (size_t)(experts * (n_in / fewest + 1) + 1);
  Unit *loads = malloc(first_bytes), *units = malloc(*bytes);
  if (loads && units) {
    for (int64_t e = 0; e < experts; e++) loads[e] = (Unit){e, e, (int)(offset[e + 1] - offset[e])};
    qsort(loads, (size_t)experts, sizeof(Unit), larger_first);
    *count = 0;
    for (int64_t e = 0; e < experts; e++) {
      int64_t most = most_rows(loads[e].rows);
      if (most > fair) most = fair;
      int64_t parts = (n_in + most - 1) / most;
      for (int64_t p = 0; p < parts; p++) {
        int64_t first = n_in * p / parts, last = n_in * (p + 1) / parts;
        units[(*count)++] = (Unit){loads[e].expert, first, (int)(last - first)};
      }
    }
  }
  if (!loads) {
    free(units);
    units = NULL;
  }
  free(loads);
  return units;
}

XLA_FFI_Error *moe_weight_grad(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  int64_t experts = length(frame, 4, 0) - 1, units = 0;
  size_t bytes;
  WeightGrad g = {.x = floats(frame, 0),
                  .x_index = integers(frame, 1),
                  .dy = floats(frame, 2),
                  .dy_index = integers(frame, 3),
                  .offset = integers(frame, 4),
                  .n_in = length(frame, 0, 1),
                  .n_out = length(frame, 2, 1),
                  .dw = result(frame, 0)};
  int64_t rows = length(frame, g.x_index ? 1 : 0, 0);
  int64_t dy_rows = length(frame, g.dy_index ? 3 : 2, 0);
  const char *wrong = wrong_rows(g.offset, experts, rows < dy_rows ? rows : dy_rows);
  if (!wrong) wrong = wrong_index(g.x_index, rows, length(frame, 0, 0));
  if (!wrong) wrong = wrong_index(g.dy_index, dy_rows, length(frame, 2, 0));
  if (wrong) return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, wrong);
  Unit *made = weight_units(g.offset, experts, g.n_in, threads_of(frame), &units, &bytes);
  if (!made) return no_memory(frame, bytes);
  g.units = made;
  g.amx = use_amx(rows, experts);
  XLA_FFI_Error *error = spread(frame, units, weight_unit, &g, PRODUCT_SCRATCH);
  free(made);
  return error;
}

#endif
