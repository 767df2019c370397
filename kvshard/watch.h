/* kvshard/watch.h: attention's statistics inside of the store: watch.c (folded row by row) and
 * kept.c (made at the event). */
#ifndef SHEAF_KVSHARD_WATCH_H
#define SHEAF_KVSHARD_WATCH_H
#include "kvshard/mass.h"
#include "kvshard/store_impl.h"
SF_C_BEGIN

/* Floats for the logits that a step's lanes leave, of at most so many sequences and, in a layer,
 * query heads; 0 where nobody watches. */
int64_t sf_logits_room(const struct sf_stack *, int32_t tokens_max, int32_t page_slots,
                       int64_t seqs_max, int64_t heads);
/* Before the round's attention, whose lanes are store->job: where their logits shall be left. */
void sf_watches_leave(struct sf_store *, int32_t layer, const struct sf_kv_step *);
/* After the round's attention, whose job this was. */
sf_status sf_watches_run(struct sf_store *, int32_t layer, const struct sf_kv_step *,
                         const struct sf_attend_job *);
/* The masses that start anew after compress(), and the rows that no longer count. */
void sf_watches_reset(struct sf_store *, const struct sf_plan *, const struct sf_seq *,
                      int32_t layer, int32_t lane);
/* The backend's second pass for the lanes, rows and sums of attention of this job. */
struct sf_columns_job sf_watch_columns(const struct sf_store *, const struct sf_attend_job *,
                                       const struct sf_watch *, int w);
/* Runs it for watch w: on the mirror itself, or where the device has its pages (mass.h). */
void sf_watch_fold(struct sf_store *, const struct sf_columns_job *, int w);
/* SF_FOLD_MEAN: each slot has been seen by more rows, those of the job. */
void sf_watch_count(struct sf_store *, const struct sf_columns_job *, int w);
/* What a method is shown of a slot, and what it has changed it to.  Of SF_FOLD_MEAN the mirror has
 * the sum and the rows. */
static inline float sf_watch_shown(const struct sf_page_pool *pool, const struct sf_plan *plan,
                                   int w, size_t at)
{
    SF_ASSERT(sf_mass_is_here(pool, w, at));
    if (plan->watch[w].fold != SF_FOLD_MEAN) return pool->mass[w][at];
    return pool->seen[w][at] > 0 ? pool->mass[w][at] / pool->seen[w][at] : 0;
}
static inline void sf_watch_keep(struct sf_page_pool *pool, const struct sf_plan *plan, int w,
                                 size_t at, float mass)
{
    float shown = sf_watch_shown(pool, plan, w, at);
    if (plan->watch[w].fold != SF_FOLD_MEAN) pool->mass[w][at] = mass;
    else if (mass < shown || mass > shown) pool->mass[w][at] = mass * pool->seen[w][at];
}
static inline void sf_watch_zero(struct sf_page_pool *pool, int w, size_t at)
{
    SF_ASSERT(sf_mass_is_here(pool, w, at));
    pool->mass[w][at] = 0.0f;
    if (pool->seen[w]) pool->seen[w][at] = 0.0f;
}

/* ---- kept.c --------------------------------------------------------------------------------- */
sf_status sf_kept_open(const struct sf_store *, struct sf_seq *);
void      sf_kept_close(struct sf_seq *);
/* A row that counts: its queries [heads][k_dim], on the device. */
void      sf_kept_add(struct sf_store *, const struct sf_seq *, int32_t layer, int32_t lane, int w,
                      const float *q, int32_t pos);
/* Makes the lane's masses from the rows that are kept. */
sf_status sf_kept_score(struct sf_store *, const struct sf_seq *, int32_t layer, int32_t lane,
                        int w);
void      sf_kept_reset(const struct sf_store *, const struct sf_seq *, int32_t layer,
                        int32_t lane, int w);

SF_C_END
#endif
