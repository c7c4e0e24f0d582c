/* Matrix products of a few rows with large matrices: both operands are packed into panels, and
   tiles of the result are summed in registers (Goto and van de Geijn, "Anatomy of high-performance
   matrix multiplication", 2008). */
#ifndef MOE_PRODUCT_H
#define MOE_PRODUCT_H

#include "factors.h"
#include "few_rows.h"

#define MAX_ROWS 256            /* rows of one product */
#define SLAB (8 * TILE_COLUMNS) /* columns that are packed at once: long reads of B's rows */

/* Floats of scratch memory that `product` needs. Packing writes up to LANES floats too many. */
#define PACKED_A ((MAX_ROWS + TILE_ROWS) * DEPTH + LANES)
#define PACKED_B (SLAB * DEPTH + LANES)
#define PRODUCT_SCRATCH (PACKED_A + PACKED_B + TILE_ROWS * TILE_COLUMNS)

/* panels[p][k * width + i] = row(term + k)[column + p * width + i], for all columns; a panel is
   width * terms floats, and what the last one has too many is left as it is. */
INLINE void pack_by_term(float *panels, const int width, const Rows *rows, int64_t term, int terms,
                         size_t column, int64_t columns) {
  for (int k = 0; k < terms; k++, panels += width) {
    const float *from = row_of(rows, term + k) + column, *end = from + columns;
    float *to = panels;
    for (; from + width <= end; from += width, to += (size_t)width * terms)
      memcpy(to, from, sizeof(float) * width);
    for (; from < end; from++, to++) *to = *from;
  }
}

/* panel[k * width + i] = row(first + i)[term + k] for i < count; the rest of it is not read. */
INLINE void pack_transposed(float *panel, const int width, const Rows *rows, int64_t first,
                            int count, size_t term, int terms) {
  for (int i = 0; i < count; i += LANES) {
    const float *from[LANES];
    for (int r = 0; r < LANES; r++)
      from[r] = row_of(rows, first + (i + r < count ? i + r : i)) + term;
    float *to = panel + i;
    int k = 0;
    for (; k + LANES <= terms; k += LANES) {
      vec square[LANES];
      for (int r = 0; r < LANES; r++) square[r] = load(from[r] + k);
      transpose(square);
      for (int r = 0; r < LANES; r++, to += width) store(to, square[r]);
    }
    for (; k < terms; k++, to += width)
      for (int r = 0; r < LANES && i + r < count; r++) to[r] = from[r][k];
  }
}

/* The rows of A that tile number i of `tiles` takes: even shares. */
INLINE int share(int i, int tiles, int m) { return (int)((int64_t)m * i / tiles); }

INLINE void pack_a(float *packed, const Factor *a, int m, int tiles, int64_t term, int terms) {
  for (int i = 0; i < tiles; i++, packed += (size_t)TILE_ROWS * terms) {
    int first = share(i, tiles, m), count = share(i + 1, tiles, m) - first;
    if (!a->by_term)
      pack_transposed(packed, TILE_ROWS, &a->rows, first, count, a->skip + term, terms);
    else if (count == TILE_ROWS)
      pack_by_term(packed, TILE_ROWS, &a->rows, term, terms, a->skip + first, TILE_ROWS);
    else
      pack_by_term(packed, TILE_ROWS, &a->rows, term, terms, a->skip + first, count);
  }
}

INLINE void pack_b(float *packed, const Factor *b, int64_t column, int64_t columns, int64_t term,
                   int terms) {
  if (b->by_term) {
    pack_by_term(packed, TILE_COLUMNS, &b->rows, term, terms, b->skip + column, columns);
    return;
  }
  for (int64_t j = 0; j < columns; j += TILE_COLUMNS) {
    int count = columns - j < TILE_COLUMNS ? (int)(columns - j) : TILE_COLUMNS;
    pack_transposed(packed + (size_t)j * terms, TILE_COLUMNS, &b->rows, column + j, count,
                    b->skip + term, terms);
  }
}

/* A walk through the lines of memory that will be packed next: `lines` of each row of B. They are
   fetched into the cache beside the sums, for packing alone would wait for memory. */
typedef struct {
  const float *at;
  int64_t to_next_row;
  int line, lines, rows;
} Ahead;

#define LINE 16 /* floats */

INLINE void fetch(Ahead *ahead) {
  __builtin_prefetch(ahead->at, 0, 2);
  ahead->at += LINE;
  if (++ahead->line < ahead->lines) return;
  ahead->line = 0;
  /* After the last row the walk stays on it. */
  if (ahead->rows > 1)
    ahead->at += ahead->to_next_row, ahead->rows--;
  else
    ahead->at -= LINE * ahead->lines;
}

/* What `pack_b` reads for these columns and terms. */
INLINE Ahead ahead_of(const Factor *b, int64_t column, int64_t columns, int64_t term, int terms) {
  int64_t row = b->by_term ? term : column, rows = b->by_term ? terms : columns;
  int64_t from = b->by_term ? column : term, floats = b->by_term ? columns : terms;
  int lines = (int)((floats + LINE - 1) / LINE);
  return (Ahead){row_of(&b->rows, row) + b->skip + from, (int64_t)b->rows.stride - LINE * lines, 0,
                 lines, (int)rows};
}

/* c[i, j] (+)= sum over k of a[k * TILE_ROWS + i] b[k * TILE_COLUMNS + j] for i < rows. */
INLINE void tile_of(const int rows, int terms, const float *a, const float *b, float *c,
                    size_t stride, int add, Ahead *ahead) {
  Ahead walk = *ahead;
  vec sum[TILE_ROWS][2];
  UNROLL
  for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vec){0};
  for (int k = 0; k < terms; k++, a += TILE_ROWS, b += TILE_COLUMNS) {
    vec left = load(b), right = load(b + LANES);
    if (k % 2) fetch(&walk);
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

/* c[i, j] (+)= sum over k of A[i, k] B[k, j] for i < m (at most MAX_ROWS) and j < n. */
static void product(const Factor *a, const Factor *b, int m, int64_t n, int64_t terms, float *c,
                    size_t stride, int add, float *scratch) {
  float *packed_a = scratch, *packed_b = packed_a + PACKED_A, *whole = packed_b + PACKED_B;
  if (m <= FEW_ROWS && !a->by_term && b->by_term) {
    few_rows(m, a, b, n, terms, c, stride, add, packed_a);
    return;
  }
  int tiles = (m + TILE_ROWS - 1) / TILE_ROWS;
  int64_t depths = depths_of(terms);
  for (int64_t depth = 0; depth < depths; depth++) {
    int64_t term = depth_start(terms, depth, depths);
    int now = (int)(depth_start(terms, depth + 1, depths) - term);
    int more = add || depth > 0;
    pack_a(packed_a, a, m, tiles, term, now);
    for (int64_t j = 0; j < n; j += SLAB) {
      int64_t columns = n - j < SLAB ? n - j : SLAB;
      pack_b(packed_b, b, j, columns, term, now);
      int64_t next = j + columns < n ? j + columns : 0, next_term = next ? term : term + now;
      Ahead ahead = {packed_b, 0, 0, 1, 1};
      if (next_term < terms && !b->rows.index)
        ahead = ahead_of(b, next, n - next < SLAB ? n - next : SLAB, next_term,
                         next ? now : (int)(depth_start(terms, depth + 2, depths) - next_term));
      for (int i = 0; i < tiles; i++) {
        int first = share(i, tiles, m), rows = share(i + 1, tiles, m) - first;
        const float *left = packed_a + (size_t)i * TILE_ROWS * now, *right = packed_b;
        float *to = c + (size_t)first * stride + j;
        int64_t q = 0;
        for (; q + TILE_COLUMNS <= columns; q += TILE_COLUMNS, right += (size_t)TILE_COLUMNS * now)
          tile(rows, now, left, right, to + q, stride, more, &ahead);
        if (q < columns)
          edge_tile(rows, (int)(columns - q), now, left, right, to + q, stride, more, whole,
                    &ahead);
      }
    }
  }
}

#endif
