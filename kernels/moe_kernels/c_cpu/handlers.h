/* What a handler is called with: buffers, attributes, and the units that rows are cut into. */
#ifndef MOE_HANDLERS_H
#define MOE_HANDLERS_H

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "parallel.h"
#include "product.h"

#define HUGE_PAGE ((uintptr_t)2 << 20)

INLINE XLA_FFI_Buffer *argument(XLA_FFI_CallFrame *frame, int i) { return frame->args.args[i]; }

/* The data of an array, NULL if it is empty: that is how what an expert lacks is passed. */
static void *data_of(const XLA_FFI_Buffer *buffer) {
  for (int64_t i = 0; i < buffer->rank; i++)
    if (buffer->dims[i] == 0) return NULL;
  return buffer->data;
}

INLINE const float *floats(XLA_FFI_CallFrame *frame, int i) { return data_of(argument(frame, i)); }

INLINE const int32_t *integers(XLA_FFI_CallFrame *frame, int i) {
  return data_of(argument(frame, i));
}

INLINE int64_t length(XLA_FFI_CallFrame *frame, int i, int axis) {
  return argument(frame, i)->dims[axis];
}

/* The data of result i. The first write to fresh memory costs a fault for each page, which for the
   gradients of many experts takes longer than computing them; huge pages make it a few. */
static float *result(XLA_FFI_CallFrame *frame, int i) {
  XLA_FFI_Buffer *buffer = frame->rets.rets[i];
  float *data = data_of(buffer);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (data) {
    uintptr_t bytes = sizeof(float);
    for (int64_t axis = 0; axis < buffer->rank; axis++) bytes *= (uintptr_t)buffer->dims[axis];
    /* Whole pages, the first and last one too: it is only advice, for neighbours as for this. */
    uintptr_t first = (uintptr_t)data & ~(HUGE_PAGE - 1);
    uintptr_t last = ((uintptr_t)data + bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    if (bytes >= 2 * HUGE_PAGE) madvise((void *)first, last - first, MADV_HUGEPAGE);
  }
#endif
  return data;
}

INLINE int32_t *integer_result(XLA_FFI_CallFrame *frame, int i) {
  return data_of(frame->rets.rets[i]);
}

/* The one attribute that a handler has, an int32. */
INLINE int attribute(XLA_FFI_CallFrame *frame) {
  return *(const int32_t *)((const XLA_FFI_Scalar *)frame->attrs.attrs[0])->value;
}

/* Whether XLA only asks which version of its interface this was compiled for; then answers. */
static int asks_version(XLA_FFI_CallFrame *frame) {
  /* The type that all extensions begin with has another name in each version of the interface. */
  XLA_FFI_Metadata_Extension *extension = (void *)frame->extension_start;
  if (!extension || extension->extension_base.type != XLA_FFI_Extension_Metadata) return 0;
  extension->metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  extension->metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}

/* Some rows of one expert. */
typedef struct {
  int64_t expert, row;
  int rows;
} Unit;

static int larger_first(const void *a, const void *b) {
  const Unit *left = a, *right = b;
  if (left->rows != right->rows) return left->rows < right->rows ? 1 : -1;
  return left->row < right->row ? -1 : left->row > right->row;
}

/* What is wrong with an offset, or with an index into `length` rows; NULL if nothing is. Both may
   come from the caller of a single operation, and what they point to is read unchecked. */
static const char *wrong_rows(const int32_t *offset, int64_t experts, int64_t rows) {
  int64_t last = 0;
  for (int64_t e = 0; e <= experts; e++) {
    if (offset[e] < last || offset[e] > rows)
      return "offset must not go down, and must stay within 0 and the number of rows";
    last = offset[e];
  }
  return NULL;
}

static const char *wrong_index(const int32_t *index, int64_t count, int64_t length) {
  for (int64_t i = 0; index && i < count; i++)
    if (index[i] < 0 || index[i] >= length) return "the plan points to rows that x does not have";
  return NULL;
}

/* Cuts each expert's rows evenly into units of at most MAX_ROWS, and fewer where threads would have
   nothing to do; larger units come first. NULL if there is no memory, of which `*bytes` were asked
   for. */
static Unit *make_units(const int32_t *offset, int64_t experts, int64_t threads, int64_t *count,
                        size_t *bytes) {
  int64_t rows = offset[experts] - offset[0];
  int64_t most = rows / (4 * threads);
  most = most < 5 * TILE_ROWS ? 5 * TILE_ROWS : most > MAX_ROWS ? MAX_ROWS : most;
  *bytes = sizeof(Unit) * (size_t)(rows / most + experts + 1);
  Unit *units = malloc(*bytes);
  if (!units) return NULL;
  *count = 0;
  for (int64_t e = 0; e < experts; e++) {
    int64_t load = offset[e + 1] - offset[e], parts = (load + most - 1) / most;
    for (int64_t p = 0; p < parts; p++) {
      int64_t first = load * p / parts, last = load * (p + 1) / parts;
      units[(*count)++] = (Unit){e, offset[e] + first, (int)(last - first)};
    }
  }
  qsort(units, (size_t)*count, sizeof(Unit), larger_first);
  return units;
}

#define CHUNK 1024 /* columns whose intermediate values stay in the cache */

/* Rows of the bias, for a product to add to. */
static void start_with(const float *bias, int rows, int64_t columns, float *to, size_t stride) {
  for (int i = 0; i < rows; i++, to += stride) memcpy(to, bias, sizeof(float) * (size_t)columns);
}

/* work(shared, u, scratch) for every unit u of the rows, which `*units` points to meanwhile; an
   error if the offset, or an index into the `length` rows of an argument, points elsewhere, or if
   there is no memory, of which each thread needs `floats`. */
static XLA_FFI_Error *on_rows(XLA_FFI_CallFrame *frame, const int32_t *offset, int64_t experts,
                              int64_t rows, const int32_t *index, int64_t length, Work *work,
                              const void *shared, const Unit **units, size_t floats) {
  const char *wrong = wrong_rows(offset, experts, rows);
  if (!wrong) wrong = wrong_index(index, rows, length);
  if (wrong) return failure(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, wrong);
  int64_t count;
  size_t bytes;
  Unit *made = make_units(offset, experts, threads_of(frame), &count, &bytes);
  if (!made) return no_memory(frame, bytes);
  *units = made;
  XLA_FFI_Error *error = spread(frame, count, work, shared, floats);
  free(made);
  return error;
}

#endif
