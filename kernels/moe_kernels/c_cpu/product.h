/* Matrix products of a few rows with large matrices: both operands are packed into panels, and
   tiles of the result are summed in registers (Goto and van de Geijn, "Anatomy of high-performance
   matrix multiplication", 2008). */
#ifndef MOE_PRODUCT_H
#define MOE_PRODUCT_H

#include "amx/products.h"
#include "few_rows.h"
#include "tile.h"

/* Floats of scratch memory that `products` needs. Packing writes up to LANES floats too many. */
#define PACKED_A ((MAX_ROWS + TILE_ROWS) * DEPTH + LANES)
#define PACKED_B (SLAB * DEPTH + LANES)
#define VECTOR_SCRATCH (PACKED_A + 2 * PACKED_B + TILE_ROWS * TILE_COLUMNS)

_Static_assert(FEW_ROWS *RUN <= VECTOR_SCRATCH, "the sums of few rows");
_Static_assert(SLAB % TILE_COLUMNS == 0, "panels of a slab are whole");

/* Rows that a product of so many terms may have: what is packed of A at once is as much then. */
INLINE int64_t most_rows(int64_t terms) {
  return MAX_ROWS * DEPTH / (terms < 1 ? 1 : terms < DEPTH ? terms : DEPTH);
}

#if HAS_AMX
#define PRODUCT_SCRATCH (AMX_SCRATCH > VECTOR_SCRATCH ? AMX_SCRATCH : VECTOR_SCRATCH)
#else
#define PRODUCT_SCRATCH VECTOR_SCRATCH
#endif

/* Slab number s of all: one part of the terms after the other, and in each one B after the other.
 */
INLINE Slab slab_at(int64_t s, const Product *product, int count, int64_t n, int64_t terms) {
  int64_t slabs = (n + SLAB - 1) / SLAB, depths = depths_of(terms), depth = s / (slabs * count);
  int64_t column = s % slabs * SLAB, term = depth_start(terms, depth, depths);
  return (Slab){&product[s / slabs % count].b, column, n - column < SLAB ? n - column : SLAB, term,
                (int)(depth_start(terms, depth + 1, depths) - term)};
}

/* C[i, j] (+)= the sum of a slab's terms, for all rows. */
INLINE void multiply(const float *packed_a, const float *packed_b, int m, int tiles,
                     const Slab *slab, float *c, size_t stride, int add, float *whole,
                     Ahead *ahead) {
  for (int i = 0; i < tiles; i++) {
    int first = share(i, tiles, m), rows = share(i + 1, tiles, m) - first;
    const float *left = packed_a + (size_t)i * TILE_ROWS * slab->terms, *right = packed_b;
    float *to = c + (size_t)first * stride + slab->column;
    int64_t q = 0;
    for (; q + TILE_COLUMNS <= slab->columns; q += TILE_COLUMNS) {
      tile(rows, slab->terms, left, right, to + q, stride, add, ahead);
      right += (size_t)TILE_COLUMNS * slab->terms;
    }
    if (q < slab->columns)
      edge_tile(rows, (int)(slab->columns - q), slab->terms, left, right, to + q, stride, add,
                whole, ahead);
  }
}

/* `products` with the processor's vectors. */
static void vector_products(const Factor *a, int m, int64_t n, int64_t terms,
                            const Product *product, int count, size_t stride, float *scratch) {
  float *packed_a = scratch, *packed_b = packed_a + PACKED_A, *other = packed_b + PACKED_B;
  float *whole = other + PACKED_B;
  int tiles = (m + TILE_ROWS - 1) / TILE_ROWS;
  int64_t slabs = (n + SLAB - 1) / SLAB, last = depths_of(terms) * count * slabs - 1;
  Slab slab, next = slab_at(0, product, count, n, terms);
  Ahead ahead = ahead_of(&next, packed_b, tiles);
  for (int64_t s = 0; s <= last; s++) {
    slab = next;
    if (s % (slabs * count) == 0) pack_a(packed_a, a, m, tiles, slab.term, slab.terms);
    pack_slab(packed_b, &slab, &ahead);
    if (s < last) {
      next = slab_at(s + 1, product, count, n, terms);
      ahead = ahead_of(&next, other, tiles);
    }
    const Product *now = &product[s / slabs % count];
    multiply(packed_a, packed_b, m, tiles, &slab, now->c, stride, now->add || slab.term > 0, whole,
             &ahead);
    if (product->b.by_term) {
      float *swap = packed_b;
      packed_b = other;
      other = swap;
    }
  }
}

/* Whether a call with so many rows in all uses AMX. With few rows an expert all waits for memory,
   and vectors take no longer. Shapes alone decide, so that a row's bits never depend on where the
   other rows go. */
INLINE int use_amx(int64_t rows, int64_t experts) {
#if HAS_AMX
  return rows > FEW_ROWS * experts && may_use_amx();
#else
  return (void)rows, (void)experts, 0;
#endif
}

/* c[i, j] (+)= sum over k of A[i, k] B[k, j] for i < m (at most most_rows) and j < n, for each of
   `count` matrices B of one kind, as if they stood side by side. */
static void products(const Factor *a, int m, int64_t n, int64_t terms, const Product *product,
                     int count, size_t stride, int amx, float *scratch) {
  if (!n || !terms) return;
#if HAS_AMX
  if (amx) {
    amx_products(a, m, n, terms, product, count, stride, scratch);
    return;
  }
#else
  (void)amx;
#endif
  if (m > FEW_ROWS || a->by_term || !product->b.by_term) {
    vector_products(a, m, n, terms, product, count, stride, scratch);
    return;
  }
  for (int i = 0; i < count; i++)
    few_rows(m, a, &product[i].b, n, terms, product[i].c, stride, product[i].add, scratch);
}

#endif
