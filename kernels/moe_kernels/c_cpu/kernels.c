/* The kernels of `primitives` whose work is in products, for float32 on CPUs, as handlers of XLA's
   foreign function interface. What an expert lacks is passed as an empty array. */

#include "activations.h"
#include "handlers.h"
#include "product.h"

#define CHUNK 1024 /* columns whose intermediate values stay in the cache */

/* x W_in + b_in, x W_gate + b_gate, and the activation: x, token, offset, w_in, w_gate, b_in, b_gate
   -> a, h_in, h_gate (empty unless they are kept). */
typedef struct {
  const Unit *units;
  const float *x, *w_in, *w_gate, *b_in, *b_gate;
  const int32_t *token;
  int64_t d, f;
  float *a, *h_in, *h_gate;
  int activation;
} Up;

/* Rows of the bias, for a product to add to. */
static void start_with(const float *bias, int rows, int64_t columns, float *to, size_t stride) {
  for (int i = 0; i < rows; i++, to += stride) memcpy(to, bias, sizeof(float) * (size_t)columns);
}

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

/* The function `name` with `kind` known to the compiler. */
#define BY_KIND(kind, name, ...)                                                                   \
  switch (kind) {                                                                                  \
  case SILU: name(SILU, __VA_ARGS__); break;                                                       \
  case GELU: name(GELU, __VA_ARGS__); break;                                                       \
  case GELU_TANH: name(GELU_TANH, __VA_ARGS__); break;                                             \
  case RELU: name(RELU, __VA_ARGS__); break;                                                       \
  default: name(RELU2, __VA_ARGS__);                                                               \
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
      Factor own = {{w[i] + unit.expert * up->d * up->f, NULL, 0, (size_t)up->f}, 1, (size_t)column};
      product(&x, &own, unit.rows, columns, up->d, h[i], stride, b[i] != NULL, scratch);
    }
    BY_KIND(up->activation, activate_rows, unit.rows, columns, h_in, h_gate, stride, up->a + at,
            (size_t)up->f)
  }
}

XLA_FFI_Error *moe_up(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  int64_t experts = length(frame, 3, 0), rows = length(frame, 1, 0), units;
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
  const char *wrong = wrong_rows(offset, experts, rows);
  if (!wrong) wrong = wrong_index(up.token, rows, length(frame, 0, 0));
  if (wrong) return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, wrong);
  Unit *made = make_units(offset, experts, threads_of(frame), &units);
  if (!made) return failure(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory");
  up.units = made;
  spread(frame, units, up_unit, &up);
  free(made);
  return NULL;
}

/* x W + x2 W2 + bias: x, index, offset, w, bias, x2, w2 -> y. W transposed, or not. */
typedef struct {
  const Unit *units;
  const float *x, *w, *bias, *x2, *w2;
  const int32_t *index;
  int64_t n_in, n_out;
  float *y;
  int transposed;
} Grouped;

static void grouped_unit(const void *shared, int64_t number) {
  const Grouped *g = shared;
  Unit unit = g->units[number];
  float *y = g->y + unit.row * g->n_out, *scratch = scratch_of(PRODUCT_SCRATCH);
  const float *x[2] = {g->x, g->x2}, *w[2] = {g->w, g->w2};
  if (g->bias)
    start_with(g->bias + unit.expert * g->n_out, unit.rows, g->n_out, y, (size_t)g->n_out);
  for (int i = 0; i < 2 && x[i]; i++) {
    Factor left = {{x[i], g->index, unit.row, (size_t)g->n_in}, 0, 0};
    Factor right = {{w[i] + unit.expert * g->n_in * g->n_out, NULL, 0,
                     (size_t)(g->transposed ? g->n_in : g->n_out)},
                    !g->transposed,
                    0};
    product(&left, &right, unit.rows, g->n_out, g->n_in, y, (size_t)g->n_out, g->bias || i,
            scratch);
  }
}

XLA_FFI_Error *moe_grouped_matmul(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  int transposed = attribute(frame);
  const int32_t *offset = integers(frame, 2);
  int64_t experts = length(frame, 3, 0), units;
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
  const char *wrong = wrong_rows(offset, experts, rows);
  if (!wrong) wrong = wrong_index(g.index, rows, length(frame, 0, 0));
  if (wrong) return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, wrong);
  Unit *made = make_units(offset, experts, threads_of(frame), &units);
  if (!made) return failure(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory");
  g.units = made;
  spread(frame, units, grouped_unit, &g);
  free(made);
  return NULL;
}

/* Back from dy through W_out and the activation: dy, token, weight, offset, w_out, h_in, h_gate
   -> dh_in, dh_gate, weight * a, <dy W_out^T, a>. */
typedef struct {
  const Unit *units;
  const float *dy, *weight, *w_out, *h_in, *h_gate;
  const int32_t *token;
  int64_t d, f;
  float *dh_in, *dh_gate, *wa, *dweight;
  int activation;
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

static void hidden_unit(const void *shared, int64_t number) {
  const Hidden *h = shared;
  Unit unit = h->units[number];
  float *scratch = scratch_of(PRODUCT_SCRATCH + (size_t)MAX_ROWS * CHUNK);
  float *da = scratch + PRODUCT_SCRATCH;
  Factor dy = {{h->dy, h->token, unit.row, (size_t)h->d}, 0, 0};
  for (int64_t column = 0; column < h->f; column += CHUNK) {
    int64_t columns = h->f - column < CHUNK ? h->f - column : CHUNK;
    Factor own = {{h->w_out + unit.expert * h->f * h->d, NULL, column, (size_t)h->d}, 0, 0};
    product(&dy, &own, unit.rows, columns, h->d, da, CHUNK, 0, scratch);
    BY_KIND(h->activation, hidden_rows, h, unit.row, unit.rows, column, columns, da)
  }
}

XLA_FFI_Error *moe_hidden_grad(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  int64_t experts = length(frame, 4, 0), rows = length(frame, 1, 0), units;
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
              .activation = attribute(frame)};
  const char *wrong = wrong_rows(offset, experts, rows);
  if (!wrong) wrong = wrong_index(h.token, rows, length(frame, 0, 0));
  if (wrong) return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, wrong);
  Unit *made = make_units(offset, experts, threads_of(frame), &units);
  if (!made) return failure(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory");
  h.units = made;
  memset(h.dweight, 0, sizeof(float) * (size_t)rows);
  spread(frame, units, hidden_unit, &h);
  free(made);
  return NULL;
}

/* x^T dy of each expert's rows: x, x_index, dy, dy_index, offset -> dw. */
typedef struct {
  const Unit *units; /* `row` is the first of some rows of dw[expert] */
  const float *x, *dy;
  const int32_t *x_index, *dy_index, *offset;
  int64_t n_in, n_out;
  float *dw;
} WeightGrad;

static void weight_unit(const void *shared, int64_t number) {
  const WeightGrad *g = shared;
  Unit unit = g->units[number];
  int64_t first = g->offset[unit.expert], load = g->offset[unit.expert + 1] - first;
  float *to = g->dw + (unit.expert * g->n_in + unit.row) * g->n_out;
  if (!load) {
    memset(to, 0, sizeof(float) * (size_t)unit.rows * (size_t)g->n_out);
    return;
  }
  Factor x = {{g->x, g->x_index, first, (size_t)g->n_in}, 1, (size_t)unit.row};
  Factor dy = {{g->dy, g->dy_index, first, (size_t)g->n_out}, 1, 0};
  product(&x, &dy, unit.rows, g->n_out, load, to, (size_t)g->n_out, 0,
          scratch_of(PRODUCT_SCRATCH));
}

static Unit *weight_units(const int32_t *offset, int64_t experts, int64_t n_in, int64_t threads,
                          int64_t *count) {
  int64_t most = n_in * experts / (4 * threads);
  most = most < 5 * TILE_ROWS ? 5 * TILE_ROWS : most > MAX_ROWS ? MAX_ROWS : most;
  int64_t parts = (n_in + most - 1) / most;
  /* Experts in the order of their loads, the largest first. */
  Unit *loads = malloc(sizeof(Unit) * (size_t)experts);
  Unit *units = malloc(sizeof(Unit) * (size_t)(experts * parts));
  if (loads && units) {
    for (int64_t e = 0; e < experts; e++)
      loads[e] = (Unit){e, e, (int)(offset[e + 1] - offset[e])};
    qsort(loads, (size_t)experts, sizeof(Unit), larger_first);
    *count = 0;
    for (int64_t e = 0; e < experts; e++)
      for (int64_t p = 0; p < parts; p++) {
        int64_t first = n_in * p / parts, last = n_in * (p + 1) / parts;
        units[(*count)++] = (Unit){loads[e].expert, first, (int)(last - first)};
      }
  }
  free(loads);
  return units;
}

XLA_FFI_Error *moe_weight_grad(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  int64_t experts = length(frame, 4, 0) - 1, units = 0;
  WeightGrad g = {.x = floats(frame, 0),
                  .x_index = integers(frame, 1),
                  .dy = floats(frame, 2),
                  .dy_index = integers(frame, 3),
                  .offset = integers(frame, 4),
                  .n_in = length(frame, 0, 1),
                  .n_out = length(frame, 2, 1),
                  .dw = result(frame, 0)};
  int64_t rows = length(frame, g.x_index ? 1 : 0, 0), dy_rows = length(frame, g.dy_index ? 3 : 2, 0);
  const char *wrong = wrong_rows(g.offset, experts, rows < dy_rows ? rows : dy_rows);
  if (!wrong) wrong = wrong_index(g.x_index, rows, length(frame, 0, 0));
  if (!wrong) wrong = wrong_index(g.dy_index, dy_rows, length(frame, 2, 0));
  if (wrong) return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, wrong);
  Unit *made = weight_units(g.offset, experts, g.n_in, threads_of(frame), &units);
  if (!made) return failure(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory");
  g.units = made;
  spread(frame, units, weight_unit, &g);
  free(made);
  return NULL;
}
