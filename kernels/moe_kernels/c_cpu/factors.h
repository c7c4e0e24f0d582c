/* The factors of a product of matrices, and how its sums are cut. */
#ifndef MOE_FACTORS_H
#define MOE_FACTORS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

#define DEPTH 256    /* terms of a sum that are added up before they are added to the rest */
#define MAX_ROWS 256 /* rows of one product that has DEPTH terms or more */
#define LINE 16      /* floats of a line of memory */

/* Rows of a matrix: number r is at base + stride * (index ? index[first + r] : first + r). */
typedef struct {
  const float *base;
  const int32_t *index;
  int64_t first;
  size_t stride;
} Rows;

/* A factor of sum over k of A[i, k] B[k, j], with `skip` floats of each row left out. If `by_term`,
   row k holds A[:, k] or B[k, :]; otherwise row i holds A[i, :], or row j B[:, j]. */
typedef struct {
  Rows rows;
  int by_term;
  size_t skip;
} Factor;

/* What A is multiplied with, and where the result goes: C (+)= A B. */
typedef struct {
  Factor b;
  float *c;
  int add;
} Product;

INLINE const float *row_of(const Rows *rows, int64_t r) {
  int64_t at = rows->first + r;
  return rows->base + rows->stride * (size_t)(rows->index ? rows->index[at] : at);
}

/* Sums are cut evenly, into as few parts of at most DEPTH terms as there can be. */
INLINE int64_t depths_of(int64_t terms) { return (terms + DEPTH - 1) / DEPTH; }

INLINE int64_t depth_start(int64_t terms, int64_t depth, int64_t depths) {
  return terms * depth / depths;
}

#endif
