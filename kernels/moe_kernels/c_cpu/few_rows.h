/* Products of one to four rows, as when a language model writes token by token: what they cost is
   the reading of B, so it is read where it lies, in long runs. */
#ifndef MOE_FEW_ROWS_H
#define MOE_FEW_ROWS_H

#include "factors.h"

#define FEW_ROWS 4
#define RUN 1024 /* columns whose sums stay in the first cache */
#define AT_ONCE 4

/* sums[i * RUN + j] += sum over the next `count` terms, one after the other. */
INLINE void add_terms(const int rows, const int count, const float *const *a, const float *const *b,
                      int64_t columns, float *sums) {
  int64_t j = 0;
  for (; j + LANES <= columns; j += LANES) {
    vec sum[FEW_ROWS];
    UNROLL
    for (int i = 0; i < rows; i++) sum[i] = load(sums + i * RUN + j);
    UNROLL
    for (int k = 0; k < count; k++) {
      vec right = load(b[k] + j);
      UNROLL
      for (int i = 0; i < rows; i++) sum[i] += a[i][k] * right;
    }
    UNROLL
    for (int i = 0; i < rows; i++) store(sums + i * RUN + j, sum[i]);
  }
  for (; j < columns; j++)
    for (int i = 0; i < rows; i++) {
      float sum = sums[i * RUN + j];
      for (int k = 0; k < count; k++) sum += a[i][k] * b[k][j];
      sums[i * RUN + j] = sum;
    }
}

INLINE void few_rows_of(const int rows, const Factor *a, const Factor *b, int64_t n, int64_t terms,
                        float *c, size_t stride, int add, float *sums) {
  int64_t depths = depths_of(terms);
  for (int64_t column = 0; column < n; column += RUN) {
    int64_t columns = n - column < RUN ? n - column : RUN;
    for (int64_t depth = 0; depth < depths; depth++) {
      int64_t term = depth_start(terms, depth, depths), end = depth_start(terms, depth + 1, depths);
      for (int i = 0; i < rows; i++) memset(sums + i * RUN, 0, sizeof(float) * (size_t)columns);
      while (term < end) {
        const float *left[FEW_ROWS], *right[AT_ONCE];
        int count = end - term < AT_ONCE ? 1 : AT_ONCE;
        for (int i = 0; i < rows; i++) left[i] = row_of(&a->rows, i) + a->skip + term;
        for (int k = 0; k < count; k++) right[k] = row_of(&b->rows, term + k) + b->skip + column;
        if (count == 1)
          add_terms(rows, 1, left, right, columns, sums);
        else
          add_terms(rows, AT_ONCE, left, right, columns, sums);
        term += count;
      }
      for (int i = 0; i < rows; i++) {
        float *to = c + (size_t)i * stride + column, *from = sums + i * RUN;
        for (int64_t j = 0; j < columns; j++) to[j] = add || depth ? from[j] + to[j] : from[j];
      }
    }
  }
}

/* `products` for at most FEW_ROWS rows of A, not by term, and B by term; the same bits. `sums` has
   room for FEW_ROWS * RUN floats. */
static void few_rows(int rows, const Factor *a, const Factor *b, int64_t n, int64_t terms, float *c,
                     size_t stride, int add, float *sums) {
  switch (rows) {
  case 1: few_rows_of(1, a, b, n, terms, c, stride, add, sums); break;
  case 2: few_rows_of(2, a, b, n, terms, c, stride, add, sums); break;
  case 3: few_rows_of(3, a, b, n, terms, c, stride, add, sums); break;
  default: few_rows_of(4, a, b, n, terms, c, stride, add, sums);
  }
}

#endif
