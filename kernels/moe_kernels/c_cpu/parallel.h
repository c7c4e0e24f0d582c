/* Work spread over the threads of XLA's own pool, and scratch memory for each of them. */
#ifndef MOE_PARALLEL_H
#define MOE_PARALLEL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "xla/ffi/api/c_api.h"

typedef void Work(const void *shared, int64_t unit);

typedef struct {
  Work *work;
  const void *shared;
  int64_t units;
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
static void take_part(Job *job) {
  int64_t unit, mine = 0;
  for (; (unit = atomic_fetch_add(&job->next, 1)) < job->units; mine++)
    job->work(job->shared, unit);
  if (mine && atomic_fetch_add(&job->done, mine) + mine == job->units) {
    pthread_mutex_lock(&job->lock);
    pthread_cond_signal(&job->finished);
    pthread_mutex_unlock(&job->lock);
  }
}

static void help(void *data) {
  take_part(data);
  leave(data);
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

/* work(shared, u) for every u < units, in no order, on this thread and as many of the pool as help.

   This thread never waits for one that has not begun: it takes what is left itself, so that a pool
   whose threads all wait in here goes on. A helper that comes late finds nothing to take. */
static void spread(XLA_FFI_CallFrame *frame, int64_t units, Work *work, const void *shared) {
  int64_t helpers = threads_of(frame) - 1;
  if (helpers > units - 1) helpers = units - 1;
  Job *job = helpers > 0 ? malloc(sizeof *job) : NULL;
  if (!job) {
    for (int64_t unit = 0; unit < units; unit++) work(shared, unit);
    return;
  }
  *job = (Job){.work = work, .shared = shared, .units = units};
  atomic_store(&job->holders, 1);
  pthread_mutex_init(&job->lock, NULL);
  pthread_cond_init(&job->finished, NULL);
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
  take_part(job);
  pthread_mutex_lock(&job->lock);
  while (atomic_load(&job->done) < units) pthread_cond_wait(&job->finished, &job->lock);
  pthread_mutex_unlock(&job->lock);
  leave(job);
}

typedef struct {
  size_t floats;
  float *memory;
} Scratch;

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void free_scratch(void *scratch) {
  free(((Scratch *)scratch)->memory);
  free(scratch);
}

static void make_scratch_key(void) { pthread_key_create(&scratch_key, free_scratch); }

/* At least that many floats of this thread's own, aligned to 64 bytes. Kept until the thread ends:
   memory that is new each time would cost its page faults each time. */
static float *scratch_of(size_t floats) {
  pthread_once(&scratch_once, make_scratch_key);
  Scratch *own = pthread_getspecific(scratch_key);
  if (!own) {
    own = calloc(1, sizeof *own);
    if (!own) abort();
    pthread_setspecific(scratch_key, own);
  }
  if (own->floats < floats) {
    free(own->memory);
    void *memory;
    if (posix_memalign(&memory, 64, sizeof(float) * floats)) abort();
    *own = (Scratch){floats, memory};
  }
  return own->memory;
}

#endif
