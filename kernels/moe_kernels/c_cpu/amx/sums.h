/* Sums of products of blocks, in tiles. Of the nine products of two numbers' parts six are added
   up; the others are at most 2^-21 of the whole, 2^-25 on average. Each sum is added up in the same
   order, whatever its neighbours are. */
#ifndef MOE_AMX_SUMS_H
#define MOE_AMX_SUMS_H

#include "beside.h"

#if HAS_AMX

/* Blocks of a factor, and how far apart they are. */
typedef struct {
  const float *parts;
  int64_t count;
  size_t next;
} Blocks;

/* Where sums lie: those of left block i and right block j at i * down + j * right, in rows that are
   `stride` apart. */
typedef struct {
  float *at;
  size_t down, right, stride;
} Sums;

#define LOAD_PART(t, from) LOAD_TILE(t, from, SIDE)

/* Tiles 0 to 3 += two left blocks times two right ones. */
static void sum_2x2(const float *left, const float *right, size_t next_left, size_t next_right,
                    int steps, Beside *beside) {
  Beside own = *beside;
#define LEFT(part)                                                                                 \
  LOAD_PART(4, left + (part));                                                                     \
  LOAD_PART(5, left + next_left + (part))
#define RIGHT(part)                                                                                \
  LOAD_PART(6, right + (part));                                                                    \
  LOAD_PART(7, right + next_right + (part))
#define ADD()                                                                                      \
  ADD_TILES(0, 4, 6);                                                                              \
  ADD_TILES(1, 4, 7);                                                                              \
  take_turn(&own);                                                                                 \
  ADD_TILES(2, 5, 6);                                                                              \
  ADD_TILES(3, 5, 7);                                                                              \
  take_turn(&own)
  for (int s = 0; s < steps; s++, left += BLOCK, right += BLOCK) {
    LEFT(HIGH);
    RIGHT(LOW);
    ADD();
    RIGHT(MIDDLE);
    ADD();
    LEFT(MIDDLE);
    ADD();
    RIGHT(HIGH);
    ADD();
    LEFT(HIGH);
    ADD();
    LEFT(LOW);
    ADD();
  }
#undef LEFT
#undef RIGHT
#undef ADD
  *beside = own;
}

#define UP_TO_FOUR(DO, count)                                                                      \
  DO(0)                                                                                            \
  if (count > 1) DO(1)                                                                             \
  if (count > 2) DO(2)                                                                             \
  if (count > 3) DO(3)

/* Tiles 0 to 3 += one left block times up to four right ones. */
static void sum_1x4(const float *left, const float *right, size_t next, int count, int steps,
                    Beside *beside) {
  Beside own = *beside;
#define FIRST_FIVE(c)                                                                              \
  {                                                                                                \
    LOAD_PART(6, right + c * next + LOW);                                                          \
    ADD_TILES(c, 4, 6);                                                                            \
    LOAD_PART(7, right + c * next + MIDDLE);                                                       \
    ADD_TILES(c, 4, 7);                                                                            \
    take_turn(&own);                                                                               \
    ADD_TILES(c, 5, 7);                                                                            \
    LOAD_PART(6, right + c * next + HIGH);                                                         \
    ADD_TILES(c, 5, 6);                                                                            \
    ADD_TILES(c, 4, 6);                                                                            \
    take_turn(&own);                                                                               \
  }
#define LAST(c)                                                                                    \
  {                                                                                                \
    LOAD_PART(7, right + c * next + HIGH);                                                         \
    ADD_TILES(c, 5, 7);                                                                            \
  }
  for (int s = 0; s < steps; s++, left += BLOCK, right += BLOCK) {
    LOAD_PART(4, left + HIGH);
    LOAD_PART(5, left + MIDDLE);
    UP_TO_FOUR(FIRST_FIVE, count)
    LOAD_PART(5, left + LOW);
    UP_TO_FOUR(LAST, count)
  }
#undef FIRST_FIVE
#undef LAST
  *beside = own;
}

/* Tiles 0 to 3 += up to four left blocks times one right one. */
static void sum_4x1(const float *left, const float *right, size_t next, int count, int steps,
                    Beside *beside) {
  Beside own = *beside;
#define FIRST_THREE(r)                                                                             \
  {                                                                                                \
    LOAD_PART(4, left + r * next + HIGH);                                                          \
    ADD_TILES(r, 4, 6);                                                                            \
    ADD_TILES(r, 4, 7);                                                                            \
    LOAD_PART(5, left + r * next + MIDDLE);                                                        \
    ADD_TILES(r, 5, 7);                                                                            \
    take_turn(&own);                                                                               \
  }
#define LAST_THREE(r)                                                                              \
  {                                                                                                \
    LOAD_PART(5, left + r * next + MIDDLE);                                                        \
    ADD_TILES(r, 5, 6);                                                                            \
    LOAD_PART(4, left + r * next + HIGH);                                                          \
    ADD_TILES(r, 4, 6);                                                                            \
    LOAD_PART(5, left + r * next + LOW);                                                           \
    ADD_TILES(r, 5, 6);                                                                            \
    take_turn(&own);                                                                               \
  }
  for (int s = 0; s < steps; s++, left += BLOCK, right += BLOCK) {
    LOAD_PART(6, right + LOW);
    LOAD_PART(7, right + MIDDLE);
    UP_TO_FOUR(FIRST_THREE, count)
    LOAD_PART(6, right + HIGH);
    UP_TO_FOUR(LAST_THREE, count)
  }
#undef FIRST_THREE
#undef LAST_THREE
  *beside = own;
}

INLINE float *sums_of(const Sums *sums, int64_t i, int64_t j) {
  return sums->at + i * sums->down + j * sums->right;
}

/* Tiles 0 to 3 with the sums so far of `tall` times `wide` blocks from (i, j), or with zeros. */
INLINE void begin_sums(const Sums *sums, int fresh, int64_t i, int64_t j, const int tall,
                       const int wide) {
  if (fresh) {
    ZERO_TILE(0);
    ZERO_TILE(1);
    ZERO_TILE(2);
    ZERO_TILE(3);
    return;
  }
#define TAKE(n) LOAD_TILE(n, sums_of(sums, i + n / wide, j + n % wide), sums->stride);
  UP_TO_FOUR(TAKE, tall * wide)
#undef TAKE
}

INLINE void end_sums(const Sums *sums, int64_t i, int64_t j, const int tall, const int wide) {
#define PUT(n) STORE_TILE(n, sums_of(sums, i + n / wide, j + n % wide), sums->stride);
  UP_TO_FOUR(PUT, tall * wide)
#undef PUT
}

/* sums (+)= left right, two by two blocks, then what is odd. */
static void add_products(const Blocks *left, const Blocks *right, int steps, const Sums *sums,
                         int fresh, Beside *beside) {
  int64_t even = left->count / 2 * 2, last = right->count - 1;
  FENCE();
  for (int64_t i = 0; i < even; i += 2)
    for (int64_t j = 0; j + 2 <= right->count; j += 2) {
      begin_sums(sums, fresh, i, j, 2, 2);
      sum_2x2(left->parts + i * left->next, right->parts + j * right->next, left->next, right->next,
              steps, beside);
      end_sums(sums, i, j, 2, 2);
    }
  for (int64_t i = 0; right->count % 2 && i < even; i += 4) {
    int count = (int)least(even - i, 4);
    begin_sums(sums, fresh, i, last, count, 1);
    sum_4x1(left->parts + i * left->next, right->parts + last * right->next, left->next, count,
            steps, beside);
    end_sums(sums, i, last, count, 1);
  }
  for (int64_t j = 0; left->count % 2 && j < right->count; j += 4) {
    int count = (int)least(right->count - j, 4);
    begin_sums(sums, fresh, even, j, 1, count);
    sum_1x4(left->parts + even * left->next, right->parts + j * right->next, right->next, count,
            steps, beside);
    end_sums(sums, even, j, 1, count);
  }
}

/* How often `add_products` takes a turn, about. */
INLINE int64_t turns_of(int64_t blocks, int64_t others, int steps) {
  return 3 * blocks * others * steps;
}

#endif
#endif
