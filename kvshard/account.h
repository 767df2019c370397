/* kvshard/account.h: what a sequence will cost, before it runs.  Pure.
 *
 * Methods state their footprint in slots per lane (policy.h); here it becomes bytes and pages of a
 * rank.  Where a method's lo and hi are equal, predicted and stored bytes agree exactly. */
#ifndef SHEAF_KVSHARD_ACCOUNT_H
#define SHEAF_KVSHARD_ACCOUNT_H
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"
#include "kvshard/stack.h"
#include "model/share.h"
SF_C_BEGIN

struct sf_factor_job;

struct sf_rank_lanes {                  /* the lanes of one rank */
    int32_t layer_first, layers;
    const int32_t *lane_ptr;            /* [layers + 1] */
    const int32_t *head_global;         /* [lanes] KV head in the model */
    const uint8_t *replica;             /* [lanes] > 0: a copy, holds pages but is not counted */
};
/* The lanes of a share; what is there is freed by sf_rank_lanes_free, on failure too. */
sf_status sf_rank_lanes_make(const struct sf_share *, struct sf_rank_lanes *lanes_out);
void      sf_rank_lanes_free(struct sf_rank_lanes *);
struct sf_cost {                        /* of one sequence on one rank */
    int64_t bytes_exact;                /* the same tokens in the exact cache */
    int64_t bytes_lo, bytes_hi;         /* stored, copies not counted */
    int64_t pages_peak;                 /* most pages that its lanes hold at any time, copies too */
    int64_t pages_after;                /* the same, once the prompt has ended */
    int64_t bytes_peak;                 /* pages_peak in bytes */
};
/* One lane at the spot's length. */
struct sf_lane_cost {
    int64_t bytes_lo, bytes_hi, bytes_exact, pages_peak, pages_after;
    int64_t slots_after;                /* most live ones of all tiers, once the prompt has ended */
};
sf_status sf_account_lane(const struct sf_setup *, const struct sf_stack *, enum sf_dtype,
                          const struct sf_spot *, struct sf_lane_cost *cost_out);
/* A sequence of `prompt` tokens that has grown to `tokens` (peak: on the way there).  The second
 * form takes them from a spot, with how often it was tightened: pages_after is what holds then;
 * layer and head are not looked at. */
sf_status sf_account_sequence(const struct sf_setup *, const struct sf_stack *,
                              const struct sf_rank_lanes *, enum sf_dtype, int32_t prompt,
                              int32_t tokens, struct sf_cost *cost_out);
sf_status sf_account_tightened(const struct sf_setup *, const struct sf_stack *,
                               const struct sf_rank_lanes *, enum sf_dtype,
                               const struct sf_spot *, struct sf_cost *cost_out);
/* Columns of the two bases that the layer's group has on a tensor rank with its part of the heads;
 * 0 where it has none. */
void sf_account_group_ranks(const struct sf_setup *, const struct sf_stack_entry *, int32_t layer,
                            int32_t *rank_k_out, int32_t *rank_v_out);
/* Whether each tensor rank of several has all of the entry's bases. */
int sf_account_replicated(const struct sf_setup *, const struct sf_stack_entry *);
/* About how long a rank shows no sign of life while it makes a basis of so many tokens of the
 * layer's group: the longest call of LAPACK, by a rate that one core reaches; 0 where there is no
 * long one, as with svd.method: randomized. */
double sf_account_silent_seconds(const struct sf_setup *, const struct sf_stack_entry *,
                                 int32_t layer, int32_t tokens);
/* Sequences of this cost that so many pages hold at once: one in its prompt, the others after it.
 * INT64_MAX for a rank that has no lanes. */
int64_t sf_account_holds(int64_t pages, const struct sf_cost *);
/* Bytes of one page: the one page size of a rank's pool. */
int64_t sf_account_page_bytes(const struct sf_setup *, const struct sf_rank_lanes *, enum sf_dtype);

/* ---- what the cache takes beside the pages of its pool (bytes.c) ---- */
struct sf_cache_room {
    enum sf_dtype dtype;
    int64_t pages;
    int32_t seqs_max, rows_max, tokens_max;
    int32_t threads_beside;             /* as in struct sf_store_spec; 0 where the host cannot
                                           touch the device's memory */
    uint8_t hosted;                     /* 1: it cannot */
    size_t (*factor_bytes)(const struct sf_factor_job *); /* of the backend's table */
};
struct sf_cache_bytes {
    int64_t tables;                     /* of layers, pages and shared blocks */
    int64_t mirrors;                    /* positions, biases and methods' bytes of slots */
    int64_t masses;                     /* attention's statistics of slots; hosted: twice, and
                                           room for what is on its way */
    int64_t step;                       /* jobs of one step, sums of attention */
    int64_t copies;                     /* rows that copies of a KV head exchange */
    int64_t seqs;                       /* lanes, page tables, kept queries of all sequences */
    int64_t beside;                     /* matrices of layer groups that are factored beside */
    int64_t scratch;                    /* of one hook and its edits; data decide: at most */
};
/* Pure, for one rank and a checked stack.  All but seqs and scratch is taken when the store is
 * made, to the byte where the backend's allocator adds none.  seqs: as many sequences of tokens_max
 * as the pool can promise pages to, and short ones in the other places.  scratch: as many sequences
 * fall due at once as a hook is ever shown. */
sf_status sf_account_cache(const struct sf_setup *, const struct sf_stack *,
                           const struct sf_share *, const struct sf_cache_room *,
                           struct sf_cache_bytes *out);
static inline int64_t sf_cache_bytes_sum(const struct sf_cache_bytes *bytes)
{
    return bytes->tables + bytes->mirrors + bytes->masses + bytes->step + bytes->copies +
           bytes->seqs + bytes->beside + bytes->scratch;
}

/* ---- why a method did nothing (idle.c) ---- */
enum { SF_IDLE_WORDS = 128 };
/* Why entry m has changed no lane of a sequence of `prompt` tokens that has come to `tokens`.
 * Pure; the stack has been checked. */
sf_status sf_account_idle(const struct sf_setup *, const struct sf_stack *, int32_t m,
                          int32_t prompt, int32_t tokens, char words_out[SF_IDLE_WORDS]);

SF_C_END
#endif
