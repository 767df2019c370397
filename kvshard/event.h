/* kvshard/event.h: which hooks of methods fall due in a layer, and running them. */
#ifndef SHEAF_KVSHARD_EVENT_H
#define SHEAF_KVSHARD_EVENT_H
#include "kvshard/store.h"
SF_C_BEGIN

struct sf_seq;

/* A hook is shown no more sequences at once, and none beyond the one with which their tokens come
 * to so many: that bounds its memory (bytes.c), whatever falls due in a step. */
enum { SF_HOOK_SPANS = 16, SF_HOOK_TOKENS = 8192 };

/* Rows from position `pos` on that one call may have: layer groups are encoded behind the last of
 * them, or not at all. */
int32_t   sf_events_apart(const struct sf_store *, const struct sf_seq *, int32_t pos);
/* Rows of an item that can run before an event of `layer` falls due, given `left` >= 1 of them. */
int32_t   sf_events_rows(const struct sf_store *, int32_t layer, const struct sf_seq *,
                         int32_t left);
/* Before (chunk events) and after the attention of a round; store->done and rows are set. */
sf_status sf_events_before(struct sf_store *, int32_t layer, const struct sf_kv_step *);
sf_status sf_events_after(struct sf_store *, int32_t layer, const struct sf_kv_step *);
/* SF_AT_PRESSURE of the items' sequences, whose prompts have ended and budgets are set. */
sf_status sf_events_pressure(struct sf_store *, int32_t layer, const struct sf_kv_step *);
/* select.c: before a round's rows are appended, what attention reads of sequences that decode. */
sf_status sf_select_run(struct sf_store *, int32_t layer, const struct sf_kv_step *);

SF_C_END
#endif
