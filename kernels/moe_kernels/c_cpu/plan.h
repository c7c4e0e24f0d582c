/* Slots in the order of their experts: a counting sort. */
#ifndef MOE_PLAN_H
#define MOE_PLAN_H

#include "handlers.h"

/* expert [t, k] -> slot, row, token, offset. A slot whose expert does not exist is dropped: its row
   comes after those of all experts. */
XLA_FFI_Error *moe_plan(XLA_FFI_CallFrame *frame) {
  if (asks_version(frame)) return NULL;
  const int32_t *expert = integers(frame, 0);
  int64_t tokens = length(frame, 0, 0), k = length(frame, 0, 1);
  int32_t *slot = integer_result(frame, 0), *row = integer_result(frame, 1);
  int32_t *token = integer_result(frame, 2), *offset = integer_result(frame, 3);
  int64_t experts = ((XLA_FFI_Buffer *)frame->rets.rets[3])->dims[0] - 1;
  /* offset[e + 1] counts, then offset[e] is where the next slot of e goes, and in the end where e
     ends: the offset of e + 1. */
  memset(offset, 0, sizeof *offset * (size_t)(experts + 1));
  for (int64_t s = 0; s < tokens * k; s++)
    if (expert[s] >= 0 && expert[s] < experts) offset[expert[s] + 1]++;
  for (int64_t e = 0; e < experts; e++) offset[e + 1] += offset[e];
  int32_t dropped = offset[experts], s = 0;
  for (int32_t t = 0; t < tokens; t++)
    for (int64_t j = 0; j < k; j++, s++) {
      int kept = expert[s] >= 0 && expert[s] < experts;
      int32_t to = kept ? offset[expert[s]]++ : dropped++;
      slot[to] = s;
      token[to] = t;
      row[s] = to;
    }
  memmove(offset + 1, offset, sizeof *offset * (size_t)experts);
  offset[0] = 0;
  return NULL;
}

#endif
