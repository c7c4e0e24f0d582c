/* What is done beside the sums, a piece at a time, as tiles leave the rest of the processor idle:
   the next panel is packed, and memory that comes later is fetched into the cache. */
#ifndef MOE_AMX_BESIDE_H
#define MOE_AMX_BESIDE_H

#include "parts.h"

#if HAS_AMX

#define PANEL 32 /* rows or columns of a factor that are packed just before they are used */

/* A piece is four lines of memory to fetch, in its order: the processor then fetches further by
   itself. And it is a row for each of two blocks to pack. */
typedef struct {
  int pieces;      /* left to do */
  int every, wait; /* turns from piece to piece, and to the next */

  const float *line;
  int64_t floats, row, to_next_row; /* left of this row, of each; floats from its end to the next */

  int rows; /* left to pack */
  const float *from;
  float *to;
  int64_t to_pair;                      /* floats from a number to the one paired with it */
  int64_t from_other, to_other;         /* to the other block's */
  int64_t stride, from_after, to_after; /* to the next row, and what more after 16 */
} Beside;

#define PIECE 64 /* floats of a piece */

/* To fetch some floats of some rows. */
INLINE void fetch_beside(Beside *b, const Factor *f, int64_t row, int64_t rows, int64_t column,
                         int64_t floats) {
  if (f->rows.index || rows <= 0 || floats <= 0) return;
  int64_t pieces = (floats + PIECE - 1) / PIECE;
  b->line = row_of(&f->rows, row) + f->skip + column;
  b->floats = b->row = floats;
  b->to_next_row = (int64_t)f->rows.stride - pieces * PIECE;
  b->pieces = (int)(rows * pieces);
}

/* To pack a panel as `pack_parts` does; whether that can be: a whole one whose rows lie in order,
   and which needn't be transposed. */
INLINE int pack_beside(Beside *b, float *panel, const Factor *f, int64_t first, int64_t count,
                       int64_t term, int64_t terms, int left) {
  int64_t stride = (int64_t)f->rows.stride, steps = terms / STEP;
  if (f->rows.index || f->by_term == left || count != PANEL || terms <= 0 || terms % STEP) return 0;
  if (!f->by_term && steps > 2) return 0;
  b->to = panel;
  b->stride = stride;
  if (f->by_term) {
    b->from = row_of(&f->rows, term) + f->skip + first;
    b->rows = SIDE * (int)steps;
    b->to_pair = SIDE * stride;
    b->from_other = SIDE;
    b->to_other = steps * BLOCK;
    b->from_after = SIDE * stride;
    b->to_after = BLOCK - TILE_FLOATS;
  } else {
    b->from = row_of(&f->rows, first) + f->skip + term;
    b->rows = SIDE * (int)steps;
    b->to_pair = SIDE;
    b->from_other = steps == 2 ? STEP : SIDE * stride;
    b->to_other = BLOCK;
    b->from_after = 0;
    b->to_after = steps * BLOCK - TILE_FLOATS;
  }
  if (b->pieces < b->rows) b->pieces = b->rows;
  return 1;
}

/* To do it in so many turns. */
INLINE void spread_over(Beside *b, int64_t turns) {
  b->every = b->pieces && turns > b->pieces ? (int)(turns / b->pieces) : 1;
  b->wait = b->every;
}

INLINE void do_piece(Beside *b) {
  b->pieces--;
  if (b->line) {
    for (int i = 0; i < PIECE; i += LINE) __builtin_prefetch(b->line + i, 0, 2);
    b->line += PIECE;
    b->floats -= PIECE;
    if (b->floats <= 0) {
      b->line += b->to_next_row;
      b->floats = b->row;
    }
  }
  if (!b->rows) return;
  const float *from = b->from, *other = from + b->from_other;
  put_parts(b->to, load(from), load(from + b->to_pair));
  put_parts(b->to + b->to_other, load(other), load(other + b->to_pair));
  b->from += b->stride;
  b->to += SIDE;
  if (--b->rows % SIDE) return;
  b->from += b->from_after;
  b->to += b->to_after;
}

INLINE void take_turn(Beside *b) {
  if (--b->wait) return;
  b->wait = b->every;
  if (b->pieces) do_piece(b);
}

/* Packs what is left to pack. */
INLINE void finish_packing(Beside *b) {
  while (b->rows) do_piece(b);
}

INLINE void fetch_now(Beside *b) {
  while (b->pieces) do_piece(b);
}

#endif
#endif
