/* Floats cut into three bfloat16 each, in tiles. x = high + middle + low exactly: high is x cut to
   8 bits, middle the rest rounded to 8 bits, and low what is left, which has no more. */
#ifndef MOE_AMX_PARTS_H
#define MOE_AMX_PARTS_H

#include "tiles.h"
#include "../factors.h"

#if HAS_AMX

#define STEP 32 /* terms in a tile: pairs of term p and term p + 16 */
#define HIGH 0
#define MIDDLE TILE_FLOATS
#define LOW (2 * TILE_FLOATS)
#define BLOCK (3 * TILE_FLOATS) /* 16 rows or columns of a factor, for 32 terms */

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t blocks_of(int64_t count) { return (count + SIDE - 1) / SIDE; }

INLINE int steps_of(int64_t terms) { return (int)((terms + STEP - 1) / STEP); }

/* The upper halves of a's and b's numbers in pairs, a's first. */
INLINE ivec pairs_of(ivec a, ivec b) {
  typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
  return (ivec)((uvec)a >> 16) | (b & (int32_t)0xFFFF0000);
}

/* A row of each of the three tiles at `to`: pairs of x[p] and y[p]. */
INLINE void put_parts(float *to, vec x, vec y) {
  const int32_t upper = (int32_t)0xFFFF0000, half = 0x8000;
  vec rest_x = x - (vec)((ivec)x & upper), rest_y = y - (vec)((ivec)y & upper);
  ivec middle_x = ((ivec)rest_x + half) & upper, middle_y = ((ivec)rest_y + half) & upper;
  vec low_x = rest_x - (vec)middle_x, low_y = rest_y - (vec)middle_y;
  store(to + HIGH, (vec)pairs_of((ivec)x, (ivec)y));
  store(to + MIDDLE, (vec)pairs_of(middle_x, middle_y));
  store(to + LOW, (vec)pairs_of((ivec)low_x, (ivec)low_y));
}

INLINE vec load_or_zero(const float *from, int64_t count) {
  return count > 0 ? load_some(from, count) : (vec){0};
}

INLINE void transpose_block(float *block) {
  for (float *tile = block; tile < block + BLOCK; tile += TILE_FLOATS) {
    vec rows[LANES];
    for (int r = 0; r < LANES; r++) rows[r] = load(tile + r * SIDE);
    transpose(rows);
    for (int r = 0; r < LANES; r++) store(tile + r * SIDE, rows[r]);
  }
}

/* Rows of the factor are terms: pairs of them are rows of tiles. */
static void pack_terms(float *blocks, const Factor *f, int64_t first, int64_t count, int64_t term,
                       int terms) {
  size_t next = (size_t)steps_of(terms) * BLOCK, skip = f->skip + (size_t)first;
  for (int k = 0; k < terms; k += STEP, blocks += BLOCK)
    for (int p = 0; p < SIDE; p++) {
      int64_t k_x = k + p, k_y = k_x + SIDE, last = terms - 1;
      const float *x = row_of(&f->rows, term + least(k_x, last)) + skip;
      const float *y = row_of(&f->rows, term + least(k_y, last)) + skip;
      float *to = blocks + p * SIDE;
      int64_t j = 0;
      if (k_y <= last)
        for (; j + SIDE <= count; j += SIDE, to += next) put_parts(to, load(x + j), load(y + j));
      for (; j < count; j += SIDE, to += next)
        put_parts(to, load_or_zero(x + j, k_x <= last ? count - j : 0),
                  load_or_zero(y + j, k_y <= last ? count - j : 0));
    }
}

/* Rows of the factor are its rows or columns, and rows of tiles. */
static void pack_rows(float *blocks, const Factor *f, int64_t first, int64_t count, int64_t term,
                      int terms) {
  size_t next = (size_t)steps_of(terms) * BLOCK;
  for (int64_t i = 0; i < count; i++) {
    const float *from = row_of(&f->rows, first + i) + f->skip + term;
    float *to = blocks + i / SIDE * next + i % SIDE * SIDE;
    int k = 0;
    for (; k + STEP <= terms; k += STEP, to += BLOCK)
      put_parts(to, load(from + k), load(from + k + SIDE));
    if (k < terms)
      put_parts(to, load_or_zero(from + k, terms - k),
                load_or_zero(from + k + SIDE, terms - k - SIDE));
  }
}

/* Blocks of a factor, all steps of the first 16 of its rows (or columns), then of the next. A left
   factor's tiles have its rows in their rows, a right factor's pairs of terms. Terms behind the
   last are 0; rows behind the last hold anything, and so do the sums that they go into. */
static void pack_parts(float *blocks, const Factor *f, int64_t first, int64_t count, int64_t term,
                       int terms, int left) {
  if (f->by_term)
    pack_terms(blocks, f, first, count, term, terms);
  else
    pack_rows(blocks, f, first, count, term, terms);
  if (f->by_term != left) return;
  for (int64_t b = 0; b < blocks_of(count) * steps_of(terms); b++)
    transpose_block(blocks + b * BLOCK);
}

#endif
#endif
