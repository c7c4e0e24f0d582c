/* Work spread over the threads of XLA's own pool, and scratch memory for each of them. */
#ifndef MOE_PARALLEL_H
#define MOE_PARALLEL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "xla/ffi/api/c_api.h"

/* What is done for a unit; `scratch` is memory of the thread's own. */
typedef void Work(const void *shared, int64_t unit, float *scratch);

static XLA_FFI_Error *failure(XLA_FFI_CallFrame *frame, XLA_FFI_Error_Code code,
                              const char *message) {
  XLA_FFI_Error_Create_Args args = {
      .struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE, .message = message, .errc = code};
  return frame->api->XLA_FFI_Error_Create(&args);
}

static XLA_FFI_Error *no_memory(XLA_FFI_CallFrame *frame, size_t bytes) {
  char message[96];
  snprintf(message, sizeof message, "moe_kernels: out of memory: %zu bytes could not be had",
           bytes);
  return failure(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, message);
}

typedef struct {
  size_t floats;
  float *memory;
} Scratch;

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static int has_scratch_key;

static void free_scratch(void *scratch) {
  free(((Scratch *)scratch)->memory);
  free(scratch);
}

static void make_scratch_key(void) {
  has_scratch_key = pthread_key_create(&scratch_key, free_scratch) == 0;
}

/* This thread's record of its scratch memory, NULL if there is no room for one. */
static Scratch *own_scratch(void) {
  pthread_once(&scratch_once, make_scratch_key);
  if (!has_scratch_key) return NULL;
  Scratch *own = pthread_getspecific(scratch_key);
  if (own) return own;
  own = calloc(1, sizeof *own);
  if (!own || pthread_setspecific(scratch_key, own) == 0) return own;
  free(own);
  return NULL;
}

/* At least that many floats of this thread's own, aligned to 64 bytes; NULL if there is no memory.
   Kept until the thread ends, as memory that is new each time would cost its page faults each time:
   up to 4 MB a thread, 3 MB without AMX. */
static float *scratch_of(size_t floats) {
  Scratch *own = own_scratch();
  if (!own) return NULL;
  if (own->floats < floats) {
    free(own->memory);
    *own = (Scratch){0, NULL};
    void *memory;
    if (posix_memalign(&memory, 64, sizeof(float) * floats)) return NULL;
    *own = (Scratch){floats, memory};
  }
  return own->memory;
}

typedef struct {
  Work *work;
  const void *shared;
  int64_t units;
  size_t floats; /* of scratch memory */
  _Atomic int64_t next, done;
  _Atomic int holders;
  pthread_mutex_t lock;
  pthread_cond_t finished;
} Job;

static void leave(Job *job) {
  if (atomic_fetch_sub(&job->holders, 1) > 1) return;
  pthread_mutex_destroy(&job->lock);
  pthread_cond_destroy(&job->finished);
  free(job);
}

/* Takes units until none is left. */
static void take_part(Job *job, float *scratch) {
  int64_t unit, mine = 0;
  for (; (unit = atomic_fetch_add(&job->next, 1)) < job->units; mine++)
    job->work(job->shared, unit, scratch);
  if (mine && atomic_fetch_add(&job->done, mine) + mine == job->units) {
    pthread_mutex_lock(&job->lock);
    pthread_cond_signal(&job->finished);
    pthread_mutex_unlock(&job->lock);
  }
}

/* A thread for which there is no memory leaves the units to the others. */
static void help(void *data) {
  Job *job = data;
  float *scratch = scratch_of(job->floats);
  if (scratch) take_part(job, scratch);
  leave(job);
}

/* Whether there is an error, which is given back. */
static int failed(XLA_FFI_CallFrame *frame, XLA_FFI_Error *error) {
  if (!error) return 0;
  XLA_FFI_Error_Destroy_Args args = {.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE,
                                     .error = error};
  frame->api->XLA_FFI_Error_Destroy(&args);
  return 1;
}

static int64_t threads_of(XLA_FFI_CallFrame *frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {.struct_size =
                                                 XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE,
                                             .ctx = frame->ctx,
                                             .num_threads = &threads};
  if (failed(frame, frame->api->XLA_FFI_ThreadPool_NumThreads(&args))) return 1;
  return threads < 1 ? 1 : threads;
}

/* A job with its lock; NULL if they can't be had. */
static Job *make_job(Work *work, const void *shared, int64_t units, size_t floats) {
  Job *job = malloc(sizeof *job);
  if (!job) return NULL;
  *job = (Job){.work = work, .shared = shared, .units = units, .floats = floats};
  atomic_store(&job->holders, 1);
  if (pthread_mutex_init(&job->lock, NULL)) {
    free(job);
    return NULL;
  }
  if (pthread_cond_init(&job->finished, NULL)) {
    pthread_mutex_destroy(&job->lock);
    free(job);
    return NULL;
  }
  return job;
}

/* Asks threads of the pool to help, as many as it takes. */
static void ask_for_help(XLA_FFI_CallFrame *frame, Job *job, int64_t helpers) {
  for (int64_t i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args args = {.struct_size =
                                                 XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE,
                                             .ctx = frame->ctx,
                                             .task = help,
                                             .data = job};
    atomic_fetch_add(&job->holders, 1);
    if (failed(frame, frame->api->XLA_FFI_ThreadPool_Schedule(&args))) {
      leave(job);
      break;
    }
  }
}

/* work(shared, u, scratch) for every u < units, in no order, on this thread and as many of the pool
   as help; an error, and nothing done, if this thread can't have `floats` of scratch memory.

   This thread never waits for one that has not begun: it takes what is left itself, so that a pool
   whose threads all wait in here goes on. A helper that comes late finds nothing to take. */
static XLA_FFI_Error *spread(XLA_FFI_CallFrame *frame, int64_t units, Work *work,
                             const void *shared, size_t floats) {
  float *scratch = scratch_of(floats);
  if (!scratch) return no_memory(frame, sizeof(float) * floats);
  int64_t helpers = threads_of(frame) - 1;
  if (helpers > units - 1) helpers = units - 1;
  Job *job = helpers > 0 ? make_job(work, shared, units, floats) : NULL;
  if (!job) {
    for (int64_t unit = 0; unit < units; unit++) work(shared, unit, scratch);
    return NULL;
  }
  ask_for_help(frame, job, helpers);
  take_part(job, scratch);
  pthread_mutex_lock(&job->lock);
  while (atomic_load(&job->done) < units) pthread_cond_wait(&job->finished, &job->lock);
  pthread_mutex_unlock(&job->lock);
  leave(job);
  return NULL;
}

#endif
