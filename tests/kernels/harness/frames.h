/* Stand-ins for what XLA gives a handler: a pool of threads, errors, arrays and call frames. */
#ifndef FRAMES_H
#define FRAMES_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "xla/ffi/api/c_api.h"

#define THREADS 3

/* Numbers from a seed: Marsaglia's xorshift. */
typedef struct {
  uint64_t state;
} Random;

static uint64_t draw(Random *random) {
  uint64_t x = random->state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return random->state = x;
}

/* 0 <= n < below */
static int64_t pick_below(Random *random, int64_t below) {
  return (int64_t)(draw(random) >> 11) % below;
}

static Random random_of(uint64_t seed) {
  Random random = {seed * 0x9E3779B97F4A7C15u + 0x1234567u};
  for (int i = 0; i < 8; i++) draw(&random);
  return random;
}

static void *must(void *memory) {
  if (memory) return memory;
  fprintf(stderr, "the harness itself has no memory\n");
  exit(2);
}

/* The pool: tasks in a list, taken by threads that come late at random. */
typedef struct Task {
  XLA_FFI_Task *run;
  void *data;
  struct Task *next;
} Task;

typedef struct {
  pthread_mutex_t lock;
  pthread_cond_t more;
  Task *first;
  int stopping, refuses; /* refuses one task in so many; 0 for none */
  Random random;         /* under the lock */
  pthread_t threads[THREADS];
} Pool;

static void *serve(void *data) {
  Pool *pool = data;
  for (;;) {
    pthread_mutex_lock(&pool->lock);
    while (!pool->first && !pool->stopping) pthread_cond_wait(&pool->more, &pool->lock);
    Task *task = pool->first;
    if (task) pool->first = task->next;
    int64_t pause = pick_below(&pool->random, 4) ? 0 : pick_below(&pool->random, 400);
    pthread_mutex_unlock(&pool->lock);
    if (!task) return NULL;
    if (pause) usleep((useconds_t)pause);
    task->run(task->data);
    free(task);
  }
}

static Pool *start_pool(uint64_t seed, int refuses) {
  Pool *pool = must(calloc(1, sizeof *pool));
  pool->random = random_of(seed);
  pool->refuses = refuses;
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->more, NULL);
  for (int i = 0; i < THREADS; i++)
    if (pthread_create(&pool->threads[i], NULL, serve, pool)) must(NULL);
  return pool;
}

/* Once all tasks are done. */
static void stop_pool(Pool *pool) {
  pthread_mutex_lock(&pool->lock);
  pool->stopping = 1;
  pthread_cond_broadcast(&pool->more);
  pthread_mutex_unlock(&pool->lock);
  for (int i = 0; i < THREADS; i++) pthread_join(pool->threads[i], NULL);
  pthread_mutex_destroy(&pool->lock);
  pthread_cond_destroy(&pool->more);
  free(pool);
}

/* XLA's side of the interface, as much as handlers use. Its context is the pool. */
struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  char message[200];
};

static XLA_FFI_Error *create_error(XLA_FFI_Error_Create_Args *args) {
  XLA_FFI_Error *error = must(calloc(1, sizeof *error));
  error->code = args->errc;
  snprintf(error->message, sizeof error->message, "%s", args->message);
  return error;
}

static void destroy_error(XLA_FFI_Error_Destroy_Args *args) { free(args->error); }

static XLA_FFI_Error *unavailable(void) {
  XLA_FFI_Error_Create_Args args = {.message = "refused", .errc = XLA_FFI_Error_Code_UNAVAILABLE};
  return create_error(&args);
}

static XLA_FFI_Error *number_of_threads(XLA_FFI_ThreadPool_NumThreads_Args *args) {
  if (!args->ctx) return unavailable();
  *args->num_threads = THREADS;
  return NULL;
}

static XLA_FFI_Error *schedule(XLA_FFI_ThreadPool_Schedule_Args *args) {
  Pool *pool = (Pool *)args->ctx;
  if (!pool) return unavailable();
  Task *task = must(malloc(sizeof *task));
  pthread_mutex_lock(&pool->lock);
  int refused = pool->refuses && pick_below(&pool->random, pool->refuses) == 0;
  if (!refused) {
    *task = (Task){args->task, args->data, pool->first};
    pool->first = task;
    pthread_cond_signal(&pool->more);
  }
  pthread_mutex_unlock(&pool->lock);
  if (!refused) return NULL;
  free(task);
  return unavailable();
}

/* Arrays of exactly their size, so that what is read or written past them is found. */
typedef struct {
  void *data; /* NULL if there are no elements */
  int64_t rank, dims[3];
} Array;

#define NONE ((Array){NULL, 1, {0}})

static int64_t size_of(const Array *array) {
  int64_t size = 1;
  for (int64_t i = 0; i < array->rank; i++) size *= array->dims[i];
  return size;
}

/* An array of float32 or int32, with all bits set: NaN, or -1. */
static Array new_array(int64_t rank, int64_t a, int64_t b, int64_t c) {
  Array array = {NULL, rank, {a, b, c}};
  size_t bytes = 4 * (size_t)size_of(&array);
  if (bytes) array.data = memset(must(malloc(bytes)), 0xFF, bytes);
  return array;
}

/* Numbers with mean 0 and a standard deviation of `scale`. */
static Array random_array(Random *random, double scale, int64_t rank, int64_t a, int64_t b,
                          int64_t c) {
  Array array = new_array(rank, a, b, c);
  float *to = array.data;
  for (int64_t i = 0, size = size_of(&array); i < size; i++) {
    double sum = 0;
    for (int part = 0; part < 4; part++) sum += (double)(draw(random) >> 11) / 9007199254740992.0;
    to[i] = (float)((sum - 2) * 1.7320508 * scale);
  }
  return array;
}

static Array copy_of(const Array *array) {
  Array copy = *array;
  size_t bytes = 4 * (size_t)size_of(array);
  if (bytes) copy.data = memcpy(must(malloc(bytes)), array->data, bytes);
  return copy;
}

static void free_arrays(Array *arrays, int count) {
  for (int i = 0; i < count; i++) {
    free(arrays[i].data);
    arrays[i].data = NULL;
  }
}

#define MOST_ARRAYS 9

typedef XLA_FFI_Error *Handler(XLA_FFI_CallFrame *frame);

static void fill_buffers(XLA_FFI_Buffer *buffers, void **to, Array *arrays, int count) {
  for (int i = 0; i < count; i++) {
    buffers[i] = (XLA_FFI_Buffer){.struct_size = sizeof *buffers,
                                  .data = arrays[i].data,
                                  .rank = arrays[i].rank,
                                  .dims = arrays[i].dims};
    to[i] = &buffers[i];
  }
}

/* Calls the handler; 0, or the code of its error, which is told in `message`. */
static int call(Handler *handler, Pool *pool, Array *arguments, int num_arguments, Array *results,
                int num_results, int32_t attribute, char message[200]) {
  XLA_FFI_Api api = {.struct_size = sizeof api,
                     .XLA_FFI_Error_Create = create_error,
                     .XLA_FFI_Error_Destroy = destroy_error,
                     .XLA_FFI_ThreadPool_Schedule = schedule,
                     .XLA_FFI_ThreadPool_NumThreads = number_of_threads};
  XLA_FFI_Buffer buffers[2][MOST_ARRAYS];
  void *places[2][MOST_ARRAYS];
  fill_buffers(buffers[0], places[0], arguments, num_arguments);
  fill_buffers(buffers[1], places[1], results, num_results);
  XLA_FFI_Scalar scalar = {.value = &attribute};
  void *scalars[1] = {&scalar};
  XLA_FFI_CallFrame frame = {.struct_size = sizeof frame,
                             .api = &api,
                             .ctx = (XLA_FFI_ExecutionContext *)pool,
                             .stage = XLA_FFI_ExecutionStage_EXECUTE,
                             .args = {.size = num_arguments, .args = places[0]},
                             .rets = {.size = num_results, .rets = places[1]},
                             .attrs = {.size = 1, .attrs = scalars}};
  XLA_FFI_Error *error = handler(&frame);
  if (!error) return 0;
  int code = error->code;
  memcpy(message, error->message, 200);
  free(error);
  return code;
}

/* The version of the interface that the handler says it was compiled for, as XLA asks for it. */
static int version_of(Handler *handler) {
  XLA_FFI_Metadata metadata = {.struct_size = sizeof metadata};
  XLA_FFI_Metadata_Extension extension = {.metadata = &metadata};
  extension.extension_base.type = XLA_FFI_Extension_Metadata;
  XLA_FFI_CallFrame frame = {.struct_size = sizeof frame, .extension_start = (void *)&extension};
  XLA_FFI_Error *error = handler(&frame);
  return error ? -1
               : 1000 * metadata.api_version.major_version + metadata.api_version.minor_version;
}

#endif
