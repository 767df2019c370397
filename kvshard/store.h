/* kvshard/store.h: the paged, per-head KV cache of one rank.
 *
 * A lane is the slots of one (sequence, layer, KV head).  Lanes are ragged: each has its own pages,
 * and an edit of one lane frees its pages alone.  The store appends, attends, fires the events of
 * the methods in the stack, checks their edits and applies them; it decides nothing.
 *
 *   lane:  pages  [ 7 ][ 3 ][ 9 ]          page_slots physical slots each
 *   slots  s s s s . . . .|s s s s ...|s s _ _     s live, . hole (dropped), _ not yet written
 *
 * A keep edit marks what it drops as holes (bias -inf), gives back every page that is all holes at
 * once, and compacts the lane when holes outgrow a fixed share of it; so a window that slides by
 * one token moves nothing.  Holes are invisible above the store: views, counts and bytes speak of
 * live slots, in the lane's order. */
#ifndef SHEAF_KVSHARD_STORE_H
#define SHEAF_KVSHARD_STORE_H
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"
#include "kernels/device.h"
SF_C_BEGIN

struct sf_store;
struct sf_seq;
struct sf_stack;                        /* kvshard/stack.h */
struct sf_setup;                        /* kvshard/policy.h */
struct sf_comm;                         /* comm/comm.h */

struct sf_store_lane {                  /* one KV head here */
    int32_t head_global;                /* number in the model */
    int32_t q_first, q_heads;           /* its query heads, numbered on this rank */
    int32_t replica, replicas;          /* of copies, placed as model/share.h says */
};
struct sf_store_layer {
    int32_t k_dim, v_dim, window;
    float scale;                        /* of the softmax */
    const struct sf_store_lane *lane; int32_t lanes;
};
/* Rows of one sequence that one layer has appended and attended, with what attention has left. */
struct sf_store_rows {
    struct sf_store *store;
    struct sf_device *device;
    const struct sf_seq *seq;
    int64_t seq_id;
    int32_t layer_local, prompt, pos_first, rows;
    const float *q, *lse;               /* device, [rows][stride] each: query heads of this rank */
    size_t q_stride, lse_stride;
};
/* Sees them before any event; for calibration.  rows NULL: nobody looks. */
struct sf_store_tap {
    sf_status (*rows)(void *arg, const struct sf_store_rows *);
    void *arg;
};
struct sf_store_spec {
    struct sf_device *device;
    const struct sf_stack *stack;       /* outlives the store */
    const struct sf_setup *setup;       /* the model as methods see it, rank filled in; outlives */
    struct sf_comm *tensor;             /* its tensor group; NULL for a rank alone */
    int32_t layer_first, layers;        /* of this rank */
    const struct sf_store_layer *layer; /* [layers] copied */
    enum sf_dtype dtype;                /* of the raw tier */
    int32_t page_slots;
    int64_t pool_bytes;                 /* rounded down to pages */
    uint8_t populate;                   /* touch the pool now, so that it cannot fail later */
    int32_t threads_beside;             /* idle threads beside the device's: layer groups are then
                                           factored while the layers behind them run; 0: none */
    int32_t seqs_max, rows_max;         /* most sequences open; most rows of one step */
    struct sf_store_tap tap;
};

/* What was done to one sequence's cache on this rank; lanes that are replicas > 0 do not count. */
struct sf_receipt {
    int64_t bytes_exact, bytes_stored;  /* at its last token (interface.md section 4) */
    int64_t bytes_peak;                 /* pages really held, at most */
    int64_t slots_evicted, slots_merged, slots_requantised;
    int32_t tokens, edits;
    uint32_t changed;                   /* bit m: entry m of the stack changed a lane; bit 31: 31
                                           or a later one */
};

sf_status sf_store_create(const struct sf_store_spec *, struct sf_store **out);
void      sf_store_destroy(struct sf_store *);

/* seq_id is for messages and hooks.  prompt: its length, known; tokens_max: prompt + answer. */
sf_status sf_seq_open(struct sf_store *, int64_t seq_id, int32_t prompt, int32_t tokens_max,
                      struct sf_seq **out);
/* Blocks of the prefix cache (block.h) that its prompt begins with, in order: the first `reused`
 * are attached, as if their tokens had been appended, the others are filled as its rows come.  Once
 * for a sequence without rows; at least one row of the prompt stays to be computed.  SF_INTERNAL
 * where the numbers do not fit what is there, or a method of the stack edits prompts that have not
 * ended or has aux_bytes; then nothing has changed. */
struct sf_seq_share { const int32_t *block; int32_t blocks, reused; };
sf_status sf_seq_share(struct sf_store *, struct sf_seq *, const struct sf_seq_share *);
/* The block's pages lose a holder; its number is free again.  A sequence that was still to fill it
 * does not any more. */
sf_status sf_block_drop(struct sf_store *, int32_t block);
/* What was done so far, while it goes on. */
void      sf_seq_receipt(const struct sf_store *, const struct sf_seq *, struct sf_receipt *out);
/* Frees its pages; receipt may be NULL. */
void      sf_seq_close(struct sf_store *, struct sf_seq *, struct sf_receipt *receipt_out);

struct sf_kv_item {                     /* rows of one sequence in this step */
    struct sf_seq *seq;
    int32_t row_first, rows, pos_first; /* positions pos_first .. pos_first + rows - 1, in order */
};
struct sf_kv_step {                     /* one layer of one step */
    const struct sf_kv_item *item; int32_t items;
    float *q, *k, *v;                   /* [rows][stride]: heads of this rank; after RoPE */
    size_t q_stride, k_stride, v_stride;
    void *out;                          /* attention output, head h at h * out_head_stride */
    size_t out_stride, out_head_stride;
    enum sf_dtype out_dtype;
};
/* Appends the rows, attends, fires events and applies edits (interface.md 3.1: order in decode).
 * SF_NO_PAGES takes no page; rows up to an earlier event of the call stand, and those before an
 * edit that needs copies of shared pages (lane.h).  The job ends. */
sf_status sf_store_layer(struct sf_store *, int32_t layer_local, const struct sf_kv_step *);
/* The end of a step: what layer groups of it are still being factored is waited for and carried
 * out.  Until then their lanes are as they were; receipts come between steps. */
sf_status sf_store_settle(struct sf_store *);
/* Memory pressure, between two steps: every lane whose method answers SF_AT_PRESSURE comes down to
 * the budget of a sequence that was tightened once more.  SF_INTERNAL for one whose prompt has not
 * ended in every layer, or that has not `tokens` in each. */
sf_status sf_store_tighten(struct sf_store *, struct sf_seq *, int32_t tokens);

int64_t sf_store_pages_free(const struct sf_store *);
int64_t sf_store_pages(const struct sf_store *);
/* Bytes now: stored payload of live slots (replicas not counted), and pages held. */
int64_t sf_store_bytes_stored(const struct sf_store *);
/* The same tokens in the exact cache. */
int64_t sf_store_bytes_exact(const struct sf_store *);
int64_t sf_store_bytes_held(const struct sf_store *);
/* Since the start, on the thread that runs the layers, but for factor. */
struct sf_store_seconds {
    double edit;                        /* inside events and edits */
    double watch;                       /* in attention's statistics */
    double factor;                      /* in the factors of layer groups, wherever */
    double factor_wait;                 /* of edit: waiting for them, or making them at once */
};
struct sf_store_seconds sf_store_seconds(const struct sf_store *);

/* A lane decoded: its live slots in order.  Room for `slots` each; NULL where not wanted. */
int32_t sf_seq_lane_slots(const struct sf_store *, const struct sf_seq *, int32_t layer_local,
                          int32_t lane);
sf_status sf_seq_lane_read(const struct sf_store *, const struct sf_seq *, int32_t layer_local,
                           int32_t lane, float *k, float *v, int32_t *pos, float *bias);

/* The tier of each of them, in the plan of the method that acts there. */
void    sf_seq_lane_tiers(const struct sf_store *, const struct sf_seq *, int32_t layer_local,
                          int32_t lane, uint8_t *tier_out);

SF_C_END
#endif
