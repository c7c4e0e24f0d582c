/* Tiles of a product, summed in registers. */
#ifndef MOE_TILE_H
#define MOE_TILE_H

#include "packing.h"

/* c[i, j] (+)= sum over k of a[k * TILE_ROWS + i] b[k * TILE_COLUMNS + j] for i < rows. */
INLINE void tile_of(const int rows, int terms, const float *a, const float *b, float *c,
                    size_t stride, int add, Ahead *ahead) {
  Ahead walk = *ahead;
  vec sum[TILE_ROWS][2];
  UNROLL
  for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vec){0};
  for (int k = 0; k < terms; k++, a += TILE_ROWS, b += TILE_COLUMNS) {
    vec left = load(b), right = load(b + LANES);
    if (!(k & walk.pause)) work_ahead(&walk);
    UNROLL
    for (int i = 0; i < rows; i++) {
      sum[i][0] += a[i] * left;
      sum[i][1] += a[i] * right;
    }
  }
  UNROLL
  for (int i = 0; i < rows; i++, c += stride) {
    if (add) {
      sum[i][0] += load(c);
      sum[i][1] += load(c + LANES);
    }
    store(c, sum[i][0]);
    store(c + LANES, sum[i][1]);
  }
  *ahead = walk;
}

/* The same for a number of rows, 1 to TILE_ROWS, that the compiler doesn't know. */
static void tile(int rows, int terms, const float *a, const float *b, float *c, size_t stride,
                 int add, Ahead *ahead) {
#define CASE(n)                                                                                    \
  case n:                                                                                          \
    if (n <= TILE_ROWS) tile_of(n, terms, a, b, c, stride, add, ahead);                            \
    break;
  switch (rows) {
    /* clang-format off */
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
    CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
    /* clang-format on */
  }
#undef CASE
}

/* A tile that has fewer than TILE_COLUMNS columns. */
static void edge_tile(int rows, int columns, int terms, const float *a, const float *b, float *c,
                      size_t stride, int add, float *whole, Ahead *ahead) {
  tile(rows, terms, a, b, whole, TILE_COLUMNS, 0, ahead);
  for (int i = 0; i < rows; i++, c += stride, whole += TILE_COLUMNS)
    for (int j = 0; j < columns; j++) c[j] = add ? c[j] + whole[j] : whole[j];
}

#endif
