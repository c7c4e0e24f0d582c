/* Panels: parts of both factors in the order in which tiles read them. */
#ifndef MOE_PACKING_H
#define MOE_PACKING_H

#include "factors.h"

#define SLAB (8 * TILE_COLUMNS) /* columns of B that are packed at once: long reads of its rows */

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

/* Each row is read in one go, and its pieces go to all panels. All pieces but the last one are
   TILE_ROWS floats, with some of the next share: any two shares are that much. */
INLINE void pack_a_by_term(float *packed, const Factor *a, int m, int tiles, int64_t term,
                           int terms) {
  size_t panel = (size_t)TILE_ROWS * terms;
  int count = m / tiles, odd = m % tiles, last = m - share(tiles - 1, tiles, m);
  for (int k = 0; k < terms; k++, packed += TILE_ROWS) {
    const float *from = row_of(&a->rows, term + k) + a->skip;
    float *to = packed;
    /* `share`, without a division for each piece. */
    for (int i = 1, part = 0; i < tiles; i++, to += panel) {
      memcpy(to, from, sizeof(float) * TILE_ROWS);
      part += odd;
      from += part < tiles ? count : count + 1;
      part -= part < tiles ? 0 : tiles;
    }
    for (int i = 0; i < last; i++) to[i] = from[i];
  }
}

INLINE void pack_a(float *packed, const Factor *a, int m, int tiles, int64_t term, int terms) {
  if (a->by_term) {
    pack_a_by_term(packed, a, m, tiles, term, terms);
    return;
  }
  for (int i = 0; i < tiles; i++, packed += (size_t)TILE_ROWS * terms) {
    int first = share(i, tiles, m), count = share(i + 1, tiles, m) - first;
    pack_transposed(packed, TILE_ROWS, &a->rows, first, count, a->skip + term, terms);
  }
}

/* Some columns of B, for some of its terms. */
typedef struct {
  const Factor *b;
  int64_t column, columns, term;
  int terms;
} Slab;

/* What is done for the next slab of B beside the sums of this one, a cell at a time, since a slab
   that is packed in one go waits for memory. Where rows are terms, a cell is TILE_COLUMNS floats of
   a row, which are packed, while those some rows further on are fetched into the cache. Where rows
   are columns, it is a line of memory, which is only fetched: there is no register left to
   transpose it. */
typedef struct {
  const Rows *rows;
  int64_t row, end; /* the row that is gone through, and the one behind the last */
  size_t skip;      /* floats of a row before its first cell */
  const float *from;
  float *to;       /* NULL if cells are only fetched */
  size_t distance; /* bytes from what is packed to what is fetched */
  int64_t to_next_panel, to_next_line;
  int cell, cells;
  int pause; /* there is a cell at each term k with !(k & pause) */
} Ahead;

#define ROWS_AHEAD 4

INLINE void fetch(const float *from, size_t distance, int64_t floats) {
  /* An address that may lie past the array: fetching never fails. */
  const char *at = (const char *)((uintptr_t)from + distance);
  for (int64_t i = 0; i < floats; i += LINE) __builtin_prefetch(at + sizeof(float) * i, 0, 2);
}

INLINE void start_row(Ahead *ahead) {
  int64_t later = ahead->row + ROWS_AHEAD < ahead->end ? ahead->row + ROWS_AHEAD : ahead->end - 1;
  const float *row = row_of(ahead->rows, ahead->row);
  ahead->from = row + ahead->skip;
  ahead->distance = (size_t)((uintptr_t)row_of(ahead->rows, later) - (uintptr_t)row);
}

INLINE void work_ahead(Ahead *ahead) {
  if (ahead->row >= ahead->end) return;
  if (ahead->to) {
    fetch(ahead->from, ahead->distance, TILE_COLUMNS);
    store(ahead->to, load(ahead->from));
    store(ahead->to + LANES, load(ahead->from + LANES));
    ahead->from += TILE_COLUMNS;
    ahead->to += ahead->to_next_panel;
  } else {
    fetch(ahead->from, 0, LINE);
    ahead->from += LINE;
  }
  if (++ahead->cell < ahead->cells) return;
  ahead->cell = 0;
  if (ahead->to) ahead->to += ahead->to_next_line;
  if (++ahead->row < ahead->end) start_row(ahead);
}

INLINE Ahead to_fetch(const Slab *slab) {
  int cells = slab->terms / LINE;
  return (Ahead){.rows = &slab->b->rows,
                 .row = slab->column,
                 .end = cells ? slab->column + slab->columns : 0,
                 .skip = slab->b->skip + (size_t)slab->term,
                 .cells = cells,
                 .pause = 1};
}

/* Each panel's terms are gone through `tiles` times: that gives each cell a turn. */
INLINE Ahead to_pack(const Slab *slab, float *packed, int tiles) {
  const Rows *rows = &slab->b->rows;
  size_t skip = slab->b->skip + (size_t)slab->column;
  int64_t panel = (int64_t)TILE_COLUMNS * slab->terms;
  int cells = (int)(slab->columns / TILE_COLUMNS), pause = 0;
  while (pause < 7 && 2 * pause + 1 < tiles) pause = 2 * pause + 1;
  for (int r = 0; r < ROWS_AHEAD && r < slab->terms; r++)
    fetch(row_of(rows, slab->term + r) + skip, 0, TILE_COLUMNS * cells);
  return (Ahead){.rows = rows,
                 .row = slab->term,
                 .end = cells ? slab->term + slab->terms : 0,
                 .skip = skip,
                 .to = packed,
                 .to_next_panel = panel,
                 .to_next_line = TILE_COLUMNS - panel * cells,
                 .cells = cells,
                 .pause = pause};
}

INLINE Ahead ahead_of(const Slab *slab, float *packed, int tiles) {
  Ahead ahead = slab->b->by_term ? to_pack(slab, packed, tiles) : to_fetch(slab);
  if (ahead.row < ahead.end) start_row(&ahead);
  return ahead;
}

/* Packs what `ahead` has left of the slab. */
INLINE void pack_slab(float *packed, const Slab *slab, Ahead *ahead) {
  const Factor *b = slab->b;
  if (b->by_term) {
    int64_t done = slab->columns / TILE_COLUMNS * TILE_COLUMNS;
    while (ahead->row < ahead->end) work_ahead(ahead);
    if (done < slab->columns)
      pack_by_term(packed + done * slab->terms, TILE_COLUMNS, &b->rows, slab->term, slab->terms,
                   b->skip + (size_t)(slab->column + done), slab->columns - done);
    return;
  }
  ahead->end = 0;
  for (int64_t j = 0; j < slab->columns; j += TILE_COLUMNS) {
    int64_t left = slab->columns - j;
    pack_transposed(packed + j * slab->terms, TILE_COLUMNS, &b->rows, slab->column + j,
                    left < TILE_COLUMNS ? (int)left : TILE_COLUMNS, b->skip + slab->term,
                    slab->terms);
  }
}

#endif
