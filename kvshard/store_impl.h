/* kvshard/store_impl.h: what the files of the store share: store.c (sequences, one layer of one
 * step), block.c (shared beginnings), tier.c (lanes of several tiers), group.c and encode.c
 * (layers encoded together), beside.c (a thread for that), watch.c (attention's statistics),
 * copies.c (those of lanes that several ranks hold), event.c (which hooks fall due, views),
 * tighten.c (budgets, memory pressure), edit.c (answers, checks), apply.c (carrying out), select.c
 * (what is read in decode), turn.c (keys before RoPE) and service.c (what a hook may call).  Nobody
 * else includes it but its tests. */
#ifndef SHEAF_KVSHARD_STORE_IMPL_H
#define SHEAF_KVSHARD_STORE_IMPL_H
#include "kvshard/block.h"
#include "kvshard/encode.h"
#include "kvshard/event.h"
#include "kvshard/group.h"
#include "kvshard/lane.h"
#include "kvshard/policy.h"
#include "kvshard/stack.h"
#include "kvshard/store.h"
#include "kvshard/tier.h"
#include "kvshard/turn.h"
SF_C_BEGIN

struct sf_store_method {                /* an entry of the stack, opened */
    struct sf_env env;                  /* first, so that a service finds the rest from it */
    struct sf_setup setup;              /* with cfg, shape and rank */
    const struct sf_stack_entry *entry;
    struct sf_store *store;
    int64_t scratch_left;               /* host and device bytes the running hook may still take */
};
struct sf_layer_state {
    struct sf_store_layer spec;         /* spec.lane is owned */
    struct sf_layout layout;            /* of tier 0 */
    struct sf_layout *tier_layout;      /* [methods][SF_TIERS] */
    int32_t lane_first;                 /* lanes of a sequence in earlier layers here */
    int32_t *method;                    /* [lanes] the method that acts there; -1: none */
    int64_t *slot_bytes;                /* [lanes][SF_TIERS] that a stored slot counts for */
};
struct sf_kept {                        /* queries of one lane and watch (kept.c) */
    float *q; int32_t *pos;             /* host [most][heads][k_dim], [most]: a ring */
    int32_t most, rows, next, heads;    /* next: where the next row goes */
};
struct sf_seq {
    int64_t id;
    int32_t prompt, tokens_max, tightened;
    int32_t *tokens;                    /* [layers] that have been appended */
    struct sf_kv_lane *lane;            /* [lanes of all layers] */
    int32_t *page_tables;               /* of all lanes, one after the other */
    struct sf_kept *kept; int32_t kepts; /* [2 x lanes of all layers], or none */
    struct sf_kv_lane *more;            /* tiers above 0 of all lanes, likewise, but for shared */
    struct sf_kv_lane **tiers;          /* ones; all of them, as lanes refer to them */
    struct sf_seq_group *group;         /* [groups of the store], or NULL */
    int32_t pick_place;                 /* 1 + its place among the store's picks; 0: none */
    uint8_t *orders;
    int32_t *block, blocks;             /* of the prefix cache, that its prompt begins with */
    int64_t pages, pages_peak;          /* of lanes that count (replica 0) */
    int64_t evicted, merged, recoded;
    uint32_t changed;                   /* bit m: entry m has changed a lane (sf_receipt) */
    int32_t edits;
    uint8_t left_raw;                   /* encode.c left a group of it as it was */
};
struct sf_copies_row { int32_t row, pos; }; /* of a call; its position */
/* Of the copies of a lane (copies.c), for the rows of a round that are watched. */
struct sf_copies {
    float *q, *lse;                     /* device [rows][group][k_dim], [rows][group]; NULL: none */
    float *sent, *came, *all;           /* host: of this rank, of another one, as on the device */
    int32_t *row_pos;                   /* [rows] */
    struct sf_copies_row *row;          /* [rows] */
};
struct sf_store {
    struct sf_device *device;
    struct sf_setup setup;
    struct sf_comm *tensor;
    int32_t layer_first, layers, lanes; /* lanes of one sequence here */
    int32_t page_slots, seqs_max, rows_max, seqs;
    int32_t left_raw;                   /* of these: they hold more pages than account.c says */
    struct sf_layer_state *layer;
    struct sf_store_method *method;
    int32_t methods, methods_open;
    struct sf_page_pool pool;
    struct sf_blocks blocks;
    struct sf_groups groups;
    struct sf_stack_sharing sharing;
    int64_t bytes_stored, bytes_exact;  /* of open sequences; exact: the same tokens uncompressed */
    struct sf_store_seconds seconds;
    struct sf_scratch_mem host, dev;    /* of one hook */
    struct sf_beside beside;
    struct sf_encoding *encoding[SF_HOOK_SPANS]; /* beside the layers, as they will be finished */
    int32_t encodings;
    struct sf_scratch_mem kept;         /* host: of the hook that they lie in (encode.c) */
    const struct sf_answer *answer;     /* of the hook that runs; NULL outside */
    struct sf_store_tap tap;
    /* of one step; sized at creation */
    struct sf_append_lane *append;      /* [seqs_max x most lanes of a layer] */
    struct sf_lane_job *job;
    struct sf_lane_part *part;          /* [jobs][parts_max]; NULL if no method has tiers */
    int32_t parts_max;                  /* of a lane of tokens_max */
    struct sf_lane_job *watched;        /* NULL, as lse, if nobody watches attention */
    float *lse;                         /* device [rows_max][lse_stride] */
    size_t lse_stride;                  /* most query heads of a layer here */
    float *logit; size_t logits;        /* device [logits] what attention leaves for watch.c */
    int32_t *row_pos;                   /* [rows_max] */
    struct sf_copies copies;
    int32_t *done, *rows;               /* [seqs_max] rows before and in this round */
    int32_t *rows_end;                  /* [seqs_max] where watch.c finds a round's last row */
};

static inline struct sf_kv_lane *sf_store_lane_of(const struct sf_store *store,
                                                  const struct sf_seq *seq, int32_t layer,
                                                  int32_t lane)
{
    return &seq->lane[store->layer[layer].lane_first + lane];
}
static inline struct sf_lane_ctx sf_store_ctx(struct sf_store *store, int32_t layer)
{
    struct sf_lane_ctx ctx = { &store->pool, store->layer[layer].layout, &store->host };
    return ctx;
}
/* What a lane holds in all tiers. */
struct sf_held { int64_t bytes; int32_t pages; };
struct sf_held sf_store_held(const struct sf_store *, const struct sf_seq *, int32_t layer,
                             int32_t lane);
/* Books that a sequence has so many tokens more in this layer. */
void sf_store_tokens(struct sf_store *, int32_t layer, int32_t tokens);
/* Books that lane `lane` has changed from `before` to what it is now. */
void sf_store_book(struct sf_store *, struct sf_seq *, int32_t layer, int32_t lane,
                   struct sf_held before);

/* ---- bytes.c -------------------------------------------------------------------------------- */
/* What the stack's methods need to be noted of slots: the mirror's part of the spec. */
void sf_page_notes(const struct sf_stack *, struct sf_page_spec *);

/* ---- block.c -------------------------------------------------------------------------------- */
/* The lane had tokens_before of the prompt, now it has more: blocks that became whole are kept. */
void sf_blocks_fill(struct sf_store *, const struct sf_seq *, int32_t layer, int32_t lane,
                    int32_t tokens_before);
/* How many of `rows` rows of its prompt run before masses have to be noted. */
int32_t sf_blocks_rows(const struct sf_store *, int32_t layer, const struct sf_seq *, int32_t rows);
/* The rows of a round have been watched: masses of blocks that end with them are noted. */
void sf_blocks_note(struct sf_store *, int32_t layer, const struct sf_kv_step *);
/* The sequence goes: what it has not filled is nobody's. */
void sf_blocks_leave(struct sf_store *, struct sf_seq *);

/* ---- tighten.c ------------------------------------------------------------------------------ */
/* The method's budget of a lane, for its prompt and as often as it was tightened; none: 0. */
sf_status sf_seq_budget(const struct sf_store *, const struct sf_seq *, int32_t layer, int32_t lane,
                        struct sf_foot *foot_out);

/* ---- watch.c -------------------------------------------------------------------------------- */
static inline int sf_is_watched(const struct sf_plan *plan, int w)
{
    return plan->watch[w].fold != SF_FOLD_NONE;
}

/* ---- edit.c --------------------------------------------------------------------------------- */
struct sf_view {                        /* what stands behind one lane that a hook sees */
    struct sf_seq *seq;
    struct sf_kv_lane *lane;
    int32_t layer, lane_index, tokens;
    int32_t *slot;                      /* [slots] physical slot, in its tier, of each slot */
    uint8_t *tier;                      /* [slots] what the hook sees */
    uint8_t *to_tier;                   /* [slots] asked for by sf_edit_tier, or NULL */
    uint8_t due;                        /* the event is this lane's; others are only shown */
    int edit;                           /* 0, SF_EDITS_KEEP or SF_EDITS_MIX */
    int32_t *keep, keeps;
    struct sf_mix mix;
    int32_t *exact, exacts;             /* of a group edit: stay raw as well */
    int32_t *chunk, marks;              /* landmarks: their chunks, and keys on the host */
    float *key;
    int32_t chunks;                     /* picked; 0: none */
};
struct sf_answer {
    struct sf_store *store;
    const struct sf_store_method *method;
    int32_t layer;                      /* whose event it is: the last of a group */
    enum sf_when when;
    uint8_t selects;                    /* of select(): picks and no edits, views without slots */
    struct sf_span *span;
    struct sf_group_edit *group;        /* [spans] */
    int32_t spans, views;
    struct sf_lane *shown;              /* [views] */
    struct sf_view *view;               /* [views] */
    sf_status refused;                  /* of the first edit that broke a rule */
    char words[512];
};
/* Whether no edit may touch a slot of this position. */
static inline int sf_is_protected(const struct sf_plan *plan, int32_t tokens, int32_t pos)
{
    return pos < plan->sink_tokens || pos >= tokens - plan->tail_tokens;
}
static inline struct sf_slots sf_view_slots(const struct sf_view *view)
{
    return (struct sf_slots){ view->layer, view->lane_index, view->lane, view->slot, view->tier };
}
/* The tier of new slot i of a mix. */
static inline uint8_t sf_mix_tier(const struct sf_lane *lane, const struct sf_mix *mix, int32_t i)
{
    return mix->tier ? mix->tier[i] : lane->tier[mix->src[mix->ptr[i]]];
}
/* Whether new slot i of a mix is an old one, byte for byte. */
int sf_mix_is_copy(const struct sf_lane *, const struct sf_mix *, int32_t i);

/* ---- apply.c -------------------------------------------------------------------------------- */
/* All edits of the answer, or none if one was refused. */
sf_status sf_answer_apply(struct sf_answer *);
/* The method of a lane has changed it (sf_receipt). */
void sf_note_change(const struct sf_store *, int32_t layer, struct sf_seq *, int32_t lane_index);
/* A keep without a view: the default of a method that ranks by age. */
sf_status sf_keep_newest(struct sf_store *, int32_t layer, struct sf_seq *, int32_t lane_index,
                         const struct sf_plan *);

SF_C_END
#endif
