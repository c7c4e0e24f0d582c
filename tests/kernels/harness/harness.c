/* Calls the five handlers without XLA, in random shapes and from several threads, and compares them
   with loops in double precision. For the sanitizers, which stop at the first thing they find.

   harness ROUNDS SEED WORK: so many calls of each handler; WORK, in thousands of multiplications,
   is how large a call may be. Then each allocation of each handler fails once. */

#include <math.h>

#include "frames.h"
#include "oracle.h"

/* Allocations of the kernels, one of which can be made to fail. */
static _Atomic int until_failure; /* 1: the next one fails; 0: none does */

static int may_allocate(void) { return !until_failure || --until_failure != 0; }

#define malloc(size) (may_allocate() ? malloc(size) : NULL)
#define calloc(count, size) (may_allocate() ? calloc(count, size) : NULL)
#define posix_memalign(to, alignment, size)                                                        \
  (may_allocate() ? posix_memalign(to, alignment, size) : 12)
#define pthread_setspecific(key, value) (may_allocate() ? pthread_setspecific(key, value) : 12)
#define pthread_mutex_init(lock, how) (may_allocate() ? pthread_mutex_init(lock, how) : 12)
#define pthread_cond_init(cond, how) (may_allocate() ? pthread_cond_init(cond, how) : 12)
#include "kernels.c"
#undef malloc
#undef calloc
#undef posix_memalign
#undef pthread_setspecific
#undef pthread_mutex_init
#undef pthread_cond_init

#define ACTIVATIONS 5

/* A layer's sizes, its plan, and what is at hand for a call. */
typedef struct {
  Random random;
  Pool *pool;
  int64_t experts, tokens, k, d, f;
  Array ids, slot, row, token, offset;
  int may_fail; /* whether an allocation fails: then an error is as good as a right result */
  int failed;   /* whether the last call did */
} Layer;

static void stop(const char *what, int64_t at, double got, double want) {
  fprintf(stderr, "%s: number %lld is %.9g, not %.9g\n", what, (long long)at, got, want);
  exit(3);
}

static void compare(const char *what, const Array *got, const double *want, int64_t count) {
  const float *value = got->data;
  for (int64_t i = 0; i < count; i++)
    if (!(fabs(value[i] - want[i]) <= 1e-4 * (1 + fabs(want[i])))) stop(what, i, value[i], want[i]);
}

static double *doubles(int64_t count) { return must(calloc((size_t)count + 1, sizeof(double))); }

/* 1 if the call went well, 0 if it failed for want of memory, as it may. */
static int went_well(Layer *layer, Handler *handler, Array *arguments, int count, Array *results,
                     int num_results, int32_t attribute) {
  char message[200] = "";
  int code = call(handler, layer->pool, arguments, count, results, num_results, attribute, message);
  layer->failed = code != 0;
  if (!code) return 1;
  if (layer->may_fail && code == XLA_FFI_Error_Code_RESOURCE_EXHAUSTED) return 0;
  fprintf(stderr, "error %d: %s\n", code, message);
  exit(4);
}

/* 1 to most, small numbers as often as large ones. */
static int64_t size_up_to(Random *random, int64_t most) {
  double share = (double)pick_below(random, 1000) / 1000;
  return (int64_t)pow((double)most + 0.99, share);
}

static Layer new_layer(uint64_t seed, Pool *pool, int64_t work) {
  Layer l = {.random = random_of(seed), .pool = pool};
  l.experts = 1 + pick_below(&l.random, 5);
  l.k = 1 + pick_below(&l.random, 3);
  l.d = size_up_to(&l.random, 1300);
  l.f = size_up_to(&l.random, 1300);
  int64_t most = 1000 * work / (l.k * l.d * l.f);
  l.tokens = pick_below(&l.random, 12) ? size_up_to(&l.random, most < 700 ? most + 1 : 700) : 0;
  int64_t slots = l.tokens * l.k;
  l.ids = new_array(2, l.tokens, l.k, 1);
  /* Some ids are outside; now and then the first expert takes most of the tokens, or none. */
  int skew = (int)pick_below(&l.random, 3);
  for (int64_t s = 0; s < slots; s++) {
    int32_t id = (int32_t)pick_below(&l.random, l.experts + 2) - 1;
    if (skew == 1 && pick_below(&l.random, 8)) id = 0;
    if (skew == 2 && id == 0) id = INT32_MIN;
    ((int32_t *)l.ids.data)[s] = id;
  }
  l.slot = new_array(1, slots, 1, 1);
  l.row = new_array(1, slots, 1, 1);
  l.token = new_array(1, slots, 1, 1);
  l.offset = new_array(1, l.experts + 1, 1, 1);
  return l;
}

static void free_layer(Layer *l) {
  Array *arrays[] = {&l->ids, &l->slot, &l->row, &l->token, &l->offset};
  for (int i = 0; i < 5; i++) free_arrays(arrays[i], 1);
}

static void check_integer(const char *what, int64_t at, int32_t got, int64_t want) {
  if (got != want) stop(what, at, got, (double)want);
}

/* The plan: each expert's slots in their order, then those without an expert. */
static void check_plan(Layer *l) {
  Array results[4] = {l->slot, l->row, l->token, l->offset};
  int32_t *id = l->ids.data, *slot = l->slot.data, *row = l->row.data, *token = l->token.data;
  int32_t *offset = l->offset.data, at = 0;
  if (!went_well(l, moe_plan, &l->ids, 1, results, 4, 0)) return;
  for (int64_t e = 0; e <= l->experts; e++) {
    check_integer("offset", e, offset[e], at);
    for (int32_t s = 0; s < l->tokens * l->k; s++) {
      int64_t own = id[s] >= 0 && id[s] < l->experts ? id[s] : l->experts;
      if (own != e) continue;
      check_integer("slot", at, slot[at], s);
      check_integer("token", at, token[at], s / l->k);
      check_integer("row", s, row[s], at++);
    }
  }
}

static int64_t rows_of(const Layer *l) { return l->tokens * l->k; }

static int64_t kept_rows(const Layer *l) { return ((int32_t *)l->offset.data)[l->experts]; }

static Array weights(Layer *l, int64_t n_in, int64_t n_out) {
  return random_array(&l->random, 1 / sqrt((double)n_in), 3, l->experts, n_in, n_out);
}

static Array maybe_bias(Layer *l, int64_t n) {
  return pick_below(&l->random, 2) ? random_array(&l->random, 1, 2, l->experts, n, 1) : NONE;
}

/* x, token, offset, w_in, w_gate, b_in, b_gate, w_out, b_out -> y, a, h_in, h_gate */
static void check_forward(Layer *l) {
  int glu = (int)pick_below(&l->random, 2), whole = (int)pick_below(&l->random, 2);
  int keep = (int)pick_below(&l->random, 2), kind = (int)pick_below(&l->random, ACTIVATIONS);
  int64_t rows = rows_of(l), kept = kept_rows(l);
  Array given[9] = {random_array(&l->random, 1, 2, l->tokens, l->d, 1),
                    l->token,
                    l->offset,
                    weights(l, l->d, l->f),
                    NONE,
                    maybe_bias(l, l->f),
                    NONE,
                    NONE,
                    NONE};
  Array found[4] = {NONE, NONE, NONE, NONE};
  if (glu) {
    given[4] = weights(l, l->d, l->f);
    given[6] = maybe_bias(l, l->f);
  }
  if (whole) {
    given[7] = weights(l, l->f, l->d);
    given[8] = maybe_bias(l, l->d);
  }
  found[whole ? 0 : 1] = new_array(2, rows, whole ? l->d : l->f, 1);
  if (keep) found[2] = new_array(2, rows, l->f, 1);
  if (keep && glu) found[3] = new_array(2, rows, l->f, 1);
  double *h_in = doubles(rows * l->f), *h_gate = doubles(rows * l->f), *a = doubles(rows * l->f);
  double *y = doubles(rows * l->d), slope;
  const int32_t *token = l->token.data, *offset = l->offset.data;
  if (went_well(l, moe_forward, given, 9, found, 4, kind)) {
    oracle_product(h_in, given[0].data, token, offset, l->experts, given[3].data, given[5].data,
                   l->d, l->f, 0);
    if (glu)
      oracle_product(h_gate, given[0].data, token, offset, l->experts, given[4].data, given[6].data,
                     l->d, l->f, 0);
    for (int64_t i = 0; i < kept * l->f; i++)
      a[i] = glu ? oracle_activation(kind, h_gate[i], &slope) * h_in[i]
                 : oracle_activation(kind, h_in[i], &slope);
    if (whole)
      oracle_product_of(y, a, offset, l->experts, given[7].data, given[8].data, l->f, l->d, 0);
    compare("y or a of moe_forward", &found[whole ? 0 : 1], whole ? y : a,
            kept * (whole ? l->d : l->f));
    if (keep) compare("h_in of moe_forward", &found[2], h_in, kept * l->f);
    if (keep && glu) compare("h_gate of moe_forward", &found[3], h_gate, kept * l->f);
  }
  free(h_in);
  free(h_gate);
  free(a);
  free(y);
  free_arrays(given, 1);
  free_arrays(given + 3, 6);
  free_arrays(found, 4);
}

/* x, index, offset, w, bias, x2, w2 -> y */
static void check_grouped_matmul(Layer *l) {
  int indexed = (int)pick_below(&l->random, 2), transposed = (int)pick_below(&l->random, 2);
  int two = (int)pick_below(&l->random, 2);
  int64_t rows = rows_of(l), kept = kept_rows(l), from = indexed ? l->tokens : rows;
  Array given[7] = {random_array(&l->random, 1, 2, from, l->d, 1),
                    indexed ? l->token : NONE,
                    l->offset,
                    transposed ? weights(l, l->f, l->d) : weights(l, l->d, l->f),
                    maybe_bias(l, l->f),
                    NONE,
                    NONE};
  if (two) {
    given[5] = random_array(&l->random, 1, 2, from, l->d, 1);
    given[6] = transposed ? weights(l, l->f, l->d) : weights(l, l->d, l->f);
  }
  Array found = new_array(2, rows, l->f, 1);
  double *y = doubles(rows * l->f), *second = doubles(rows * l->f);
  if (went_well(l, moe_grouped_matmul, given, 7, &found, 1, transposed)) {
    const int32_t *index = given[1].data, *offset = l->offset.data;
    oracle_product(y, given[0].data, index, offset, l->experts, given[3].data, given[4].data, l->d,
                   l->f, transposed);
    if (two)
      oracle_product(second, given[5].data, index, offset, l->experts, given[6].data, NULL, l->d,
                     l->f, transposed);
    for (int64_t i = 0; i < kept * l->f; i++) y[i] += second[i];
    compare("y of moe_grouped_matmul", &found, y, kept * l->f);
  }
  free(y);
  free(second);
  free_arrays(given, 1);
  free_arrays(given + 3, 4);
  free_arrays(&found, 1);
}

/* The oracle's share of `check_hidden_grad`: dh_in, dh_gate, wa, dweight from da. */
static void hidden_rows_of(const Layer *l, int kind, const double *da, const Array *given,
                           double *want[4]) {
  const float *weight = given[2].data, *in = given[5].data, *gate = given[6].data;
  for (int64_t s = 0; s < kept_rows(l); s++)
    for (int64_t j = 0; j < l->f; j++) {
      int64_t at = s * l->f + j;
      double slope, value = oracle_activation(kind, gate ? gate[at] : in[at], &slope);
      double a = gate ? value * in[at] : value, scaled = weight[s] * da[at];
      want[0][at] = scaled * (gate ? value : slope);
      want[1][at] = gate ? scaled * in[at] * slope : 0;
      want[2][at] = weight[s] * a;
      want[3][s] += da[at] * a;
    }
}

/* dy, token, weight, offset, w_out, h_in, h_gate -> dh_in, dh_gate, wa, dweight. The first two may
   be where h_in and h_gate are. */
static void check_hidden_grad(Layer *l) {
  int glu = (int)pick_below(&l->random, 2), kind = (int)pick_below(&l->random, ACTIVATIONS);
  int in_place = (int)pick_below(&l->random, 2);
  int64_t rows = rows_of(l), kept = kept_rows(l);
  Array given[7] = {random_array(&l->random, 1, 2, l->tokens, l->d, 1),
                    l->token,
                    random_array(&l->random, 1, 1, rows, 1, 1),
                    l->offset,
                    weights(l, l->d, l->f), /* of this scale; as [f, d] */
                    random_array(&l->random, 1, 2, rows, l->f, 1),
                    glu ? random_array(&l->random, 1, 2, rows, l->f, 1) : NONE};
  given[4].dims[1] = l->f;
  given[4].dims[2] = l->d;
  Array before[7];
  memcpy(before, given, sizeof before);
  before[5] = copy_of(&given[5]);
  before[6] = copy_of(&given[6]);
  Array found[4] = {in_place ? given[5] : new_array(2, rows, l->f, 1),
                    !glu       ? NONE
                    : in_place ? given[6]
                               : new_array(2, rows, l->f, 1),
                    new_array(2, rows, l->f, 1), new_array(1, rows, 1, 1)};
  double *da = doubles(rows * l->f), *want[4];
  for (int i = 0; i < 4; i++) want[i] = doubles(rows * l->f);
  if (went_well(l, moe_hidden_grad, given, 7, found, 4, kind)) {
    oracle_product(da, given[0].data, l->token.data, l->offset.data, l->experts, given[4].data,
                   NULL, l->d, l->f, 1);
    hidden_rows_of(l, kind, da, before, want);
    compare("dh_in of moe_hidden_grad", &found[0], want[0], kept * l->f);
    if (glu) compare("dh_gate of moe_hidden_grad", &found[1], want[1], kept * l->f);
    compare("weight * a of moe_hidden_grad", &found[2], want[2], kept * l->f);
    compare("dweight of moe_hidden_grad", &found[3], want[3], rows);
  }
  free(da);
  for (int i = 0; i < 4; i++) free(want[i]);
  free_arrays(given, 1);
  free_arrays(given + 2, 1);
  free_arrays(given + 4, 3);
  free_arrays(before + 5, 2);
  free_arrays(found + (in_place ? 2 : 0), in_place ? 2 : 4);
}

/* x, x_index, dy, dy_index, offset -> dw */
static void check_weight_grad(Layer *l) {
  int indexed = (int)pick_below(&l->random, 2), dy_indexed = (int)pick_below(&l->random, 2);
  int64_t rows = rows_of(l), size = l->experts * l->d * l->f;
  Array given[5] = {random_array(&l->random, 1, 2, indexed ? l->tokens : rows, l->d, 1),
                    indexed ? l->token : NONE,
                    random_array(&l->random, 1, 2, dy_indexed ? l->tokens : rows, l->f, 1),
                    dy_indexed ? l->token : NONE, l->offset};
  Array found = new_array(3, l->experts, l->d, l->f);
  double *dw = doubles(size);
  if (went_well(l, moe_weight_grad, given, 5, &found, 1, 0)) {
    oracle_weight_grad(dw, given[0].data, given[1].data, given[2].data, given[3].data,
                       l->offset.data, l->experts, l->d, l->f);
    compare("dw of moe_weight_grad", &found, dw, size);
  }
  free(dw);
  free_arrays(given, 1);
  free_arrays(given + 2, 1);
  free_arrays(&found, 1);
}

/* An offset or an index that points elsewhere is an error, and nothing is read there. */
static void check_wrong_rows(Layer *l) {
  if (!rows_of(l)) return;
  Array index = copy_of(&l->token), offset = copy_of(&l->offset);
  if (pick_below(&l->random, 2))
    ((int32_t *)index.data)[pick_below(&l->random, rows_of(l))] =
        pick_below(&l->random, 2) ? (int32_t)l->tokens : -1;
  else
    ((int32_t *)offset.data)[pick_below(&l->random, l->experts + 1)] =
        pick_below(&l->random, 2) ? INT32_MAX : -1;
  Array given[7] = {random_array(&l->random, 1, 2, l->tokens, l->d, 1),
                    index,
                    offset,
                    weights(l, l->d, l->f),
                    NONE,
                    NONE,
                    NONE};
  Array found = new_array(2, rows_of(l), l->f, 1);
  char message[200];
  int code = call(moe_grouped_matmul, l->pool, given, 7, &found, 1, 0, message);
  if (code != XLA_FFI_Error_Code_INVALID_ARGUMENT)
    stop("the code of wrong rows", 0, code, XLA_FFI_Error_Code_INVALID_ARGUMENT);
  free_arrays(given, 4);
  free_arrays(&found, 1);
}

typedef void Check(Layer *layer);

static Check *const PRODUCTS[] = {check_forward, check_grouped_matmul, check_hidden_grad,
                                  check_weight_grad};

/* What each of the threads that call does at the same time. */
typedef struct {
  int rounds;
  uint64_t seed;
  int64_t work;
  Pool *pool;
} Caller;

static void *call_all(void *data) {
  const Caller *caller = data;
  for (int round = 0; round < caller->rounds; round++) {
    uint64_t seed = caller->seed + (uint64_t)round;
    /* Now and then there is no pool. */
    Layer layer = new_layer(seed, seed % 8 == 7 ? NULL : caller->pool, caller->work);
    check_plan(&layer);
    for (int i = 0; i < 4; i++) PRODUCTS[i](&layer);
    check_wrong_rows(&layer);
    free_layer(&layer);
  }
  return NULL;
}

static void on_threads(int count, void *(*run)(void *), Caller *callers) {
  pthread_t threads[2];
  for (int i = 0; i < count; i++)
    if (pthread_create(&threads[i], NULL, run, &callers[i])) must(NULL);
  for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
}

/* One product on new threads, which have no scratch memory yet, with one allocation that fails;
   the next call has to go well. */
typedef struct {
  Caller caller; /* first, so that it can be passed for one */
  Check *check;
  int which, reached, failed;
} Shortage;

static void *call_in_need(void *data) {
  Shortage *shortage = data;
  Pool *pool = start_pool(shortage->caller.seed, 0);
  Layer layer = new_layer(shortage->caller.seed, pool, shortage->caller.work);
  check_plan(&layer);
  layer.may_fail = 1;
  until_failure = shortage->which;
  shortage->check(&layer);
  shortage->failed = layer.failed;
  layer.may_fail = 0;
  stop_pool(pool); /* before it is said that none has to fail: helpers may come late */
  shortage->reached = until_failure <= 0;
  until_failure = 0;
  layer.pool = start_pool(shortage->caller.seed, 0);
  shortage->check(&layer);
  stop_pool(layer.pool);
  free_layer(&layer);
  return NULL;
}

/* A layer of enough units for helpers to have a share. */
static uint64_t large_seed(int64_t work) {
  for (uint64_t seed = 1;; seed++) {
    Layer layer = new_layer(seed, NULL, work);
    int large = layer.tokens * layer.k > 300 && layer.d * layer.f > 100;
    free_layer(&layer);
    if (large) return seed;
  }
}

static int fail_each_allocation(int64_t work) {
  int failures = 0;
  for (int i = 0; i < 4; i++)
    for (int which = 1, reached = 1; reached && which < 40; which++) {
      Shortage shortage = {
          .caller = {.seed = large_seed(work), .work = work}, .check = PRODUCTS[i], .which = which};
      on_threads(1, call_in_need, &shortage.caller);
      reached = shortage.reached;
      failures += shortage.failed;
    }
  return failures;
}

int main(int count, char **argument) {
  if (count != 4) {
    fprintf(stderr, "harness ROUNDS SEED WORK\n");
    return 2;
  }
  int rounds = atoi(argument[1]);
  uint64_t seed = strtoull(argument[2], NULL, 10);
  int64_t work = atoll(argument[3]);
  Handler *handlers[] = {moe_plan, moe_forward, moe_grouped_matmul, moe_hidden_grad,
                         moe_weight_grad};
  for (int i = 0; i < 5; i++)
    if (version_of(handlers[i]) != 1000 * XLA_FFI_API_MAJOR + XLA_FFI_API_MINOR)
      stop("version", i, version_of(handlers[i]), XLA_FFI_API_MINOR);
  Pool *pool = start_pool(seed, 8);
  Caller callers[2];
  for (int i = 0; i < 2; i++)
    callers[i] = (Caller){(rounds + i) / 2, seed + 100000u * (uint64_t)(i + 1), work, pool};
  on_threads(2, call_all, callers);
  stop_pool(pool);
  int failures = fail_each_allocation(work);
  printf("rounds %d, failures %d, lanes %d, amx %d\n", rounds, failures, LANES, use_amx(1000, 1));
  return failures >= 8 ? 0 : 5;
}
