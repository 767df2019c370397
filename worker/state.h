/* worker/state.h: what the files of this folder share: one worker and the sequences it knows.
 *
 * Reading order: worker.c (life), step.c (one step from message to result), forward.c (layers),
 * sums.c (over ranks), head.c (logits), choice.c (what a choice goes by), sample.c (the choice of
 * a token), score.c (log probabilities), compare.c (rows of two caches), pipe.c (between stages),
 * report.c and hub.c (to the coordinator), roof.c (what the device can do), load.c. */
#ifndef SHEAF_WORKER_STATE_H
#define SHEAF_WORKER_STATE_H
#include <stdint.h>
#include "comm/link.h"
#include "kvshard/store.h"
#include "worker/choice.h"
#include "worker/compare.h"
#include "worker/load.h"
#include "worker/sample.h"
#include "worker/worker.h"

struct sf_hub;

struct sf_best { float value; int32_t index; };  /* greatest logit of a row in a part of it */

struct sf_worker_seq {                  /* one open sequence */
    uint64_t id;
    struct sf_seq *cache;               /* NULL: this place in the table is free */
    int32_t prompt, tokens_max;
    int32_t stack;                      /* whose store has the cache */
    uint64_t against;                   /* a sequence that its scored rows are compared with; 0 */
    int32_t next_token;                 /* its last sample, to be fed; -1: not known yet */
    uint8_t needs_row;                  /* its choice looks at all logits; equal on all ranks */
    struct sf_wire_sampling sampling;   /* its biases are in: */
    struct sf_worker_choice choice;     /* where it samples */
};
struct sf_seq_table {                   /* open addressing, at most half full */
    struct sf_worker_seq *place;
    int32_t places, used, used_max;     /* places: a power of two */
};
sf_status sf_seq_table_create(struct sf_seq_table *, int32_t seqs_max);
void      sf_seq_table_destroy(struct sf_seq_table *);
struct sf_worker_seq *sf_seq_table_find(const struct sf_seq_table *, uint64_t id); /* or NULL */
/* SF_INTERNAL if it is there already or the table is full. */
sf_status sf_seq_table_add(struct sf_seq_table *, uint64_t id, struct sf_worker_seq **out);
void      sf_seq_table_remove(struct sf_seq_table *, struct sf_worker_seq *);

struct sf_worker {
    struct sf_worker_spec spec;
    const struct sf_model_desc *desc;
    struct sf_workspace ws;
    struct sf_device *device;
    struct sf_load_spec load_spec;
    struct sf_weights_packed weights;
    struct sf_store *store;             /* of the first stack */
    struct sf_store **stores;           /* [besides + 1] of all stacks, that one first */
    struct sf_reduce *reduce;
    struct sf_hub *hub;                 /* world rank 0 only */
    struct sf_seq_table seqs;
    struct sf_sampler *sampler;         /* of the rank that samples; NULL elsewhere */
    struct sf_worker_stats stats;
    double phase_seconds[SF_PHASES];
    enum sf_phase phase;                /* now, since: */
    int64_t phase_ns;
    double decode_seconds[SF_PHASES];   /* of sf_phases, in steps that only decode */
    double decode_factors, decode_factor_wait;  /* of struct sf_store_seconds, in such steps */
    int64_t decode_steps;
    struct sf_buffer signal_packed;

    struct sf_box step_box, tokens_box; /* of the step under way; of the tokens that came last */
    struct sf_buffer packed;            /* the result or report being sent */

    /* step buffers; sizes in ws */
    /* the twins of what one side cannot touch, or that itself where both can (sums.c): host, of the
     * residual and of the logits; device, of desc->rope_inv_freq */
    float *embedded, *logits_host;
    const float *inv_freq;
    float *leaves;                      /* sums.c, where there is no `reduce` */
    struct sf_link *sum_link, *pipe_link;       /* of the tensor group; between stages.  NULL where
                                           there is no such group or the host's memory serves */
    float *residual, *qkv, *gate_up, *rope, *head_rows_in, *logits, *logits_all, *transfer;
    void *normed, *attention, *activation;
    /* host arrays of a step, rows_pad and seqs_max long */
    int32_t *row_pos, *row_token;
    struct sf_kv_item *kv_item;         /* by stack: those of stack s from kv_first[s] on */
    int32_t *kv_first;                  /* [besides + 2] */
    int32_t *item_row;                  /* [seqs_max] first row of each item */
    int32_t *head_row, *head_item;      /* rows that want logits, and their items */
    int32_t *vocab_first;               /* [tensor ranks + 1] rows of the output head by rank */
    float *best_value;                  /* [head_rows] */
    int32_t *best_index;                /* [head_rows] */
    struct sf_best *best, *best_all;    /* [head_rows], [tensor ranks * head_rows] */
    /* where the device chooses (ws.choices), else NULL: what is asked of a tile, host; the answers
     * of a step, on the device and their twins on the host */
    struct sf_choose_row *choose_row;   /* [head_rows] */
    struct sf_choice *choice, *choice_host;             /* [rows_pad] */
    struct sf_choice_top *choice_top, *choice_top_host; /* [rows_pad][SF_CHOICE_TOPS_MAX] */
    struct sf_wire_sample *sample;      /* [seqs_max] of the step under way */
    struct sf_buffer taken;             /* the step or the tokens being unpacked */
    /* where tokens are scored, and as large as the largest step so far has needed: scores, their
     * likeliest tokens one score after the other, and a row that biases and penalties change */
    struct sf_wire_score *score; size_t score_room;
    struct sf_wire_top *top; size_t top_room;
    float *changed_row; size_t changed_room;
    struct sf_kept_rows kept;           /* where caches are compared: of the first stack */
    /* [tensor ranks] one leaf a rank: puts column blocks together */
    struct sf_leaf *block_leaf;
    struct sf_request *sending;         /* the activations of the step before; NULL: none */
    int64_t tokens_expected;            /* SF_TAG_TOKENS messages of earlier steps still to come */
};

/* world ranks */
int32_t sf_worker_rank_of(const struct sf_worker *, int32_t stage, int32_t tensor_rank);
static inline int sf_worker_is_first(const struct sf_worker *w) { return w->spec.stage == 0; }
static inline int sf_worker_is_last(const struct sf_worker *w)
{
    return w->spec.stage == w->spec.stages - 1;
}
static inline int sf_worker_samples(const struct sf_worker *w)
{
    return sf_worker_is_last(w) && w->spec.share->tp_rank == 0;
}

/* The time since the last call went into the phase that was named then. */
void sf_phase(struct sf_worker *, enum sf_phase next);
/* All time so far, edits by themselves and not inside of attention. */
void sf_phases(struct sf_worker *, double seconds_out[SF_PHASES]);

/* ---- step.c ---- */
/* One whole step; results and receipts are sent. */
sf_status sf_worker_step(struct sf_worker *, const struct sf_wire_step *);

/* ---- forward.c: rows of the step through the layers of this rank ---- */
struct sf_rows {
    int32_t rows;                       /* row_pos, residual */
    const struct sf_kv_item *item;      /* by stack: w->kv_first */
};
sf_status sf_forward_layers(struct sf_worker *, const struct sf_rows *);

/* ---- head.c ---- */
/* Logits of the rows that ask, samples of the items that sample, scores; result has room for the
 * samples of all items. */
sf_status sf_head(struct sf_worker *, const struct sf_wire_step *, struct sf_wire_result *);

/* ---- pipe.c ---- */
sf_status sf_pipe_receive(struct sf_worker *, int32_t rows);     /* into residual */
sf_status sf_pipe_send(struct sf_worker *, int32_t rows);
/* Last stage: tokens to the first stage and the result to rank 0. */
sf_status sf_pipe_results(struct sf_worker *, const struct sf_wire_result *);
/* First stage: waits until every sequence that this step feeds has its token. */
sf_status sf_pipe_tokens(struct sf_worker *, const struct sf_wire_step *);
/* at the end: takes what is left */
sf_status sf_pipe_drain(struct sf_worker *);

#include "worker/hub.h"
#include "worker/report.h"
#include "worker/sums.h"
/* To the coordinator: by ring on rank 0, by message elsewhere. */
sf_status sf_worker_send(struct sf_worker *, int32_t tag, const void *bytes, size_t count);

#endif
