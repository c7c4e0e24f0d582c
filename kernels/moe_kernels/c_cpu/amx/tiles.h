/* The tile registers of Intel's AMX: eight matrices of up to 16 rows of 64 bytes. Written in
   assembly, because GCC moves its own forms of these instructions past reads and writes of memory:
   whoever lets them read what C wrote puts a FENCE between. */
#ifndef MOE_AMX_TILES_H
#define MOE_AMX_TILES_H

#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define HAS_AMX 1

#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIDE 16 /* rows of a tile, and floats or pairs of bfloat16 in a row */
#define TILE_FLOATS (SIDE * SIDE)

#define FENCE() __asm__ volatile("" ::: "memory")
#define ZERO_TILE(t) __asm__ volatile("tilezero %%tmm" #t :)
/* Rows of 64 bytes, `stride` floats apart. */
#define LOAD_TILE(t, from, stride)                                                                 \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t::"r"(from), "r"((int64_t)(stride) * 4))
#define STORE_TILE(t, to, stride)                                                                  \
  __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride) * 4)       \
                   : "memory")
/* sum[i, j] += sum over pairs p of a[i, p] * b[p, j], for both members of the pairs. */
#define ADD_TILES(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum :)

static int amx_allowed;

static void ask_for_amx(void) {
  const long request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
  amx_allowed = syscall(SYS_arch_prctl, request, tile_data) == 0;
}

/* Whether this process may use the tiles: Linux wants to be asked, as they add 8 kB to what it
   saves of a thread. */
static int may_use_amx(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, ask_for_amx);
  return amx_allowed;
}

/* From here to `end_tiles` the tiles are part of this thread's state. Number 0 to 5, sums and left
   factors, have so many rows, the rest 16: fewer rows take less time. */
static void begin_tiles(int rows) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shape = {.palette = 1};
  for (int t = 0; t < 8; t++) {
    shape.row_bytes[t] = 64;
    shape.rows[t] = (uint8_t)(t < 6 ? rows : SIDE);
  }
  __asm__ volatile("ldtilecfg %0" ::"m"(shape));
}

static void end_tiles(void) { __asm__ volatile("tilerelease" ::: "memory"); }

#endif
#endif
