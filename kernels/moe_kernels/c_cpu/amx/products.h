/* Products of a few rows with large matrices by AMX. One factor is kept, packed, in the second
   cache; of the other one a panel of 32 rows or columns, and as many terms as the first cache has
   room for, is packed beside the sums of the panel before. */
#ifndef MOE_AMX_PRODUCTS_H
#define MOE_AMX_PRODUCTS_H

#include "sums.h"

#if HAS_AMX

#define SHORT 64     /* terms of a panel where the next one is packed beside its sums */
#define LONG 128     /* terms of a panel that is packed when it is needed */
#define FEW_BLOCKS 4 /* of rows that the first cache has room for, with STEP terms of each */
#define GROUP 512    /* terms that are added up in tiles before they are added to the result */
#define WIDTH 1024   /* columns whose sums are kept */
#define KEPT (MAX_ROWS * GROUP) /* most numbers of the factor that is kept */

#define AMX_KEPT (KEPT / STEP * (BLOCK / SIDE))
#define AMX_PANEL (PANEL * LONG / STEP * (BLOCK / SIDE))
#define AMX_SUMS (MAX_ROWS * WIDTH > KEPT / STEP * PANEL ? MAX_ROWS * WIDTH : KEPT / STEP * PANEL)
#define AMX_SCRATCH (AMX_KEPT + 2 * AMX_PANEL + AMX_SUMS)

/* What is packed at once, and its sums, have room: all rows of a product with a group of terms;
   as many columns, whole blocks of them, as KEPT leaves to a span of terms, the shortest of which
   is a step; a panel of whichever depth. */
_Static_assert(MAX_ROWS % SIDE == 0 && GROUP % STEP == 0 && KEPT % (STEP * SIDE) == 0,
               "blocks are whole");
_Static_assert(MAX_ROWS / SIDE * (GROUP / STEP) * BLOCK <= AMX_KEPT, "a group of all rows");
_Static_assert(KEPT / STEP / SIDE * BLOCK <= AMX_KEPT, "the most columns, with a step of terms");
_Static_assert(KEPT / MAX_ROWS >= GROUP, "a span holds a group, beside all rows");
_Static_assert(PANEL / SIDE * (LONG / STEP) * BLOCK <= AMX_PANEL && SHORT <= LONG && STEP <= LONG,
               "a panel of any depth");
_Static_assert(LONG % STEP == 0 && SHORT % STEP == 0 && GROUP % LONG == 0 && GROUP % SHORT == 0,
               "groups end where panels end");
_Static_assert(WIDTH % PANEL == 0 && PANEL == 2 * SIDE, "panels are two blocks");
_Static_assert(MAX_ROWS / SIDE * (WIDTH / SIDE) * TILE_FLOATS <= AMX_SUMS, "sums of by_terms");
_Static_assert(PANEL / SIDE * (KEPT / STEP / SIDE) * TILE_FLOATS <= AMX_SUMS, "sums of by_panels");

/* Scratch memory. */
typedef struct {
  float *kept, *panel, *other, *sums;
} Room;

INLINE void swap_panels(Room *room) {
  float *swap = room->panel;
  room->panel = room->other;
  room->other = swap;
}

/* Sums tile after tile, those of one left block and all right ones, then of the next. */
INLINE Sums tile_sums(float *at, int64_t rights) {
  return (Sums){at, (size_t)rights * TILE_FLOATS, TILE_FLOATS, SIDE};
}

/* c (+)= a tile, or its transpose; so many rows and columns of c are meant. */
INLINE void put_tile(const float *tile, int transposed, float *c, size_t stride, int64_t rows,
                     int64_t columns, int add) {
  vec lines[LANES];
  for (int r = 0; r < LANES; r++) lines[r] = load(tile + r * SIDE);
  if (transposed) transpose(lines);
  if (rows >= SIDE && columns >= SIDE) {
    for (int r = 0; r < LANES; r++, c += stride) store(c, add ? load(c) + lines[r] : lines[r]);
    return;
  }
  for (int r = 0; r < LANES && r < rows; r++, c += stride)
    store_some(c, add ? load_some(c, columns) + lines[r] : lines[r], columns);
}

/* c (+)= the sums of `tile_sums`, whose left blocks are c's rows, or columns if transposed. */
static void put_sums(const float *sums, int transposed, float *c, size_t stride, int64_t rows,
                     int64_t columns, int add) {
  int64_t down = blocks_of(rows), across = blocks_of(columns);
  for (int64_t i = 0; i < down; i++)
    for (int64_t j = 0; j < across; j++)
      put_tile(sums + (transposed ? j * down + i : i * across + j) * TILE_FLOATS, transposed,
               c + (size_t)i * SIDE * stride + j * SIDE, stride, rows - i * SIDE,
               columns - j * SIDE, add);
}

/* Terms of a panel beside so many blocks of the other factor. */
INLINE int64_t depth_beside(int64_t blocks) { return blocks <= FEW_BLOCKS ? STEP : SHORT; }

/* x W, whose rows are terms, for the group of terms from `term`, of which x is kept. W is gone
   through in the order of memory, some terms of all columns at a time. */
static void by_terms(int m, int64_t n, int64_t terms, const Product *product, int count,
                     size_t stride, int64_t term, Room *room) {
  int64_t blocks = blocks_of(m), group = least(terms - term, GROUP), depth = depth_beside(blocks);
  for (int p = 0; p < count; p++)
    for (int64_t first = 0; first < n; first += WIDTH) {
      const Factor *b = &product[p].b;
      int64_t columns = least(n - first, WIDTH), panels = (columns + PANEL - 1) / PANEL;
      int packed = 0;
      for (int64_t k = 0; k < group; k += depth) {
        int64_t some = least(group - k, depth), follows = term + k + some;
        int steps = steps_of(some);
        const Factor *next = b; /* what is fetched: the terms that follow, of this or the other W */
        if (k + some == group && count > 1) {
          next = &product[1 - p].b;
          if (p == 0) follows = term;
        }
        int64_t later = least(terms - follows, depth);
        Blocks left = {room->kept + k / STEP * BLOCK, blocks, (size_t)steps_of(group) * BLOCK};
        for (int64_t q = 0; q < panels; q++) {
          int64_t column = q * PANEL, width = least(columns - column, PANEL);
          int64_t row = later * q / panels, end = later * (q + 1) / panels;
          if (!packed) pack_parts(room->panel, b, first + column, width, term + k, (int)some, 0);
          Blocks right = {room->panel, blocks_of(width), (size_t)steps * BLOCK};
          Sums sums = tile_sums(room->sums + column / SIDE * blocks * TILE_FLOATS, right.count);
          Beside beside = {0};
          fetch_beside(&beside, next, follows + row, end - row, first, columns);
          packed = pack_beside(&beside, room->other, b, first + column + PANEL,
                               least(columns - column - PANEL, PANEL), term + k, some, 0);
          spread_over(&beside, turns_of(blocks, right.count, steps));
          add_products(&left, &right, steps, &sums, k == 0, &beside);
          finish_packing(&beside);
          swap_panels(room);
          if (k + some == group)
            put_sums(sums.at, 0, product[p].c + first + column, stride, m, width,
                     product[p].add || term);
        }
      }
    }
}

/* Panels of the left factor, one after the other, times all that is kept of the right one. */
typedef struct {
  const Factor *left;
  int64_t count;       /* of its rows */
  int64_t first, kept; /* the columns of the right factor that are kept */
  int64_t term, terms; /* that are kept */
  int transposed;      /* whether c is the transposed product */
} Walk;

static void by_panels(const Walk *w, const Product *product, size_t stride, Room *room) {
  int64_t blocks = blocks_of(w->kept), depth = w->transposed ? depth_beside(blocks) : LONG;
  int packed = 0;
  for (int64_t row = 0; row < w->count; row += PANEL) {
    int64_t height = least(w->count - row, PANEL), after = w->count - row - height;
    float *c = product->c + (w->transposed ? w->first * (int64_t)stride + row
                                           : row * (int64_t)stride + w->first);
    /* Straight into c if all tiles are whole and nothing is to be added to what it holds. */
    int straight = !w->transposed && !product->add && w->term + w->terms <= GROUP &&
                   height % SIDE == 0 && w->kept % SIDE == 0;
    Sums sums = straight ? (Sums){c, SIDE * stride, SIDE, stride} : tile_sums(room->sums, blocks);
    for (int64_t k = 0, some; k < w->terms; k += some) {
      int64_t group = least(w->terms, (k / GROUP + 1) * GROUP); /* its end */
      some = least(group - k, depth);
      int steps = steps_of(some);
      if (!packed) pack_parts(room->panel, w->left, row, height, w->term + k, (int)some, 1);
      Blocks left = {room->panel, blocks_of(height), (size_t)steps * BLOCK};
      Blocks right = {room->kept + k / STEP * BLOCK, blocks, (size_t)steps_of(w->terms) * BLOCK};
      Beside beside = {0};
      if (w->transposed) {
        int64_t later = least(after - PANEL, PANEL), from = later * k / w->terms;
        fetch_beside(&beside, w->left, row + 2 * PANEL + from, later * (k + some) / w->terms - from,
                     w->term, w->terms);
        int64_t k_next = k + some < w->terms ? k + some : 0;
        int64_t some_next = least(least(w->terms, (k_next / GROUP + 1) * GROUP) - k_next, depth);
        packed = pack_beside(&beside, room->other, w->left, k_next ? row : row + PANEL,
                             k_next ? height : least(after, PANEL), w->term + k_next, some_next, 1);
      }
      spread_over(&beside, turns_of(blocks, left.count, steps));
      add_products(&left, &right, steps, &sums, k % GROUP == 0, &beside);
      finish_packing(&beside);
      swap_panels(room);
      if (k + some == group && !straight)
        put_sums(sums.at, w->transposed, c, stride, w->transposed ? w->kept : height,
                 w->transposed ? height : w->kept, product->add || w->term || k >= GROUP);
    }
  }
}

/* `products` with AMX, of any number of terms. */
static void amx_products(const Factor *a, int m, int64_t n, int64_t terms, const Product *product,
                         int count, size_t stride, float *scratch) {
  Room room = {.kept = scratch, .panel = scratch + AMX_KEPT};
  room.other = room.panel + AMX_PANEL;
  room.sums = room.other + AMX_PANEL;
  const Factor *b = &product->b;
  if (!a->by_term && b->by_term) { /* x W */
    Beside start = {0};
    fetch_beside(&start, b, 0, least(terms, depth_beside(blocks_of(m))), 0, least(n, WIDTH));
    fetch_now(&start);
    begin_tiles(m < SIDE ? m : SIDE);
    for (int64_t term = 0; term < terms; term += GROUP) {
      pack_parts(room.kept, a, 0, m, term, (int)least(terms - term, GROUP), 1);
      by_terms(m, n, terms, product, count, stride, term, &room);
    }
    end_tiles();
    return;
  }
  /* dy W^T as the transpose of W dy^T, so that nothing of W has to be transposed. x^T dy as it is:
     the result is written row after row. */
  int transposed = !a->by_term;
  int64_t columns = transposed ? m : n;
  int64_t span = KEPT / (SIDE * blocks_of(least(columns, MAX_ROWS))) / GROUP * GROUP;
  if (span > terms) span = terms;
  int64_t most = KEPT / (steps_of(span) * STEP) / SIDE * SIDE;
  begin_tiles(SIDE);
  for (int64_t term = 0; term < terms; term += span)
    for (int64_t first = 0; first < columns; first += most) {
      Walk w = {.count = transposed ? n : m,
                .first = first,
                .kept = least(columns - first, most),
                .term = term,
                .terms = least(terms - term, span),
                .transposed = transposed};
      pack_parts(room.kept, transposed ? a : b, first, w.kept, term, (int)w.terms, 0);
      for (int p = 0; p < count; p++) {
        w.left = transposed ? &product[p].b : a;
        by_panels(&w, &product[p], stride, &room);
      }
    }
  end_tiles();
}

#endif
#endif
