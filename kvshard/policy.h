/* kvshard/policy.h: what a compression method is.
 *
 *   token  one position of a sequence, 0-based; its number never changes
 *   slot   one stored entry: k_per_group keys and v_per_group values, of one token or of several
 *   lane   the slots of one (sequence, layer, KV group) on this rank; ragged
 *   tier   how (codec) and where (device, host) slots are stored; tier 0 is the raw tail
 *   edit   a change of lanes; pick: what attention reads.  Both are data, in a struct sf_answer
 *
 * A method decides; kvshard/store.c moves bytes.  Functions that take a struct sf_setup are pure.
 * Hooks take a struct sf_env and are collective: all tensor ranks call them in the same order for
 * the same spans, so a hook may reduce integers; it does no other I/O, reads no clock and takes
 * memory from sf_scratch alone. */
#ifndef SHEAF_KVSHARD_POLICY_H
#define SHEAF_KVSHARD_POLICY_H
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"                  /* SF_C_BEGIN and SF_C_END: extern "C" in C++ */
SF_C_BEGIN
struct sf_opt; struct sf_comm; struct sf_device; struct sf_kernels; struct sf_store;
struct sf_answer;
struct sf_model_desc; struct sf_weights; struct sf_weights_out; struct sf_profile;
struct sf_shape; struct sf_plan;

/* ---- 1. identities and geometry ------------------------------------------------------------- */
struct sf_layer {                         /* of the whole model; head counts may differ by layer */
    int32_t q_heads, k_heads, v_heads;
    int32_t groups, k_per_group, v_per_group; /* groups = gcd(k_heads, v_heads); 1 for a latent */
    int32_t lane_first;                   /* lanes of earlier layers: id = lane_first + head */
    int32_t k_dim, v_dim, rope_dim;       /* elements per head; rope_dim: rotated part of a key */
    int32_t window;                       /* the model's own sliding window, tokens; 0 = none */
    uint8_t v_is_k_prefix;                /* latent: V is the first v_dim of K, stored once */
};
struct sf_rank {                          /* one rank's share, known after placement */
    int32_t layer_first, layer_count, tp_rank;
    const int32_t *heads;                 /* [layer_count] lanes of a sequence held here */
};
struct sf_setup {                         /* all that plan-time functions may look at */
    const struct sf_model_desc *model;
    const struct sf_layer *layer;         /* [layers] */
    int32_t layers, lanes, tokens_max;    /* lanes of one sequence in the whole model */
    int32_t tp_size, page_slots;          /* slots of a raw page (block_size) */
    enum sf_dtype kv_dtype;               /* of the raw tier */
    const void *cfg;                      /* the method's options, parsed */
    const char *const *place;             /* [rows of its options] where each was given, such as */
                                          /* "job.yaml:7:3"; NULL, as any of them: not known */
    const struct sf_profile *profile;     /* written by calibrate; NULL if none */
    const struct sf_shape *shape;         /* NULL in shape() */
    const int32_t *stage;                 /* [layers] of the pipeline; NULL before it is cut */
    const struct sf_rank *rank;           /* NULL before placement */
    const struct sf_plan *inner;          /* of the method that it refines; NULL if none */
};

/* ---- 2. what a method declares: shape, footprint, plan -------------------------------------- */
enum { SF_TIERS = 4, SF_TIER_FOREIGN = 255 }; /* FOREIGN: stored by another entry of the stack */
enum sf_place { SF_ON_DEVICE, SF_ON_HOST };
enum sf_head_class { SF_HEAD_ANY, SF_HEAD_RETRIEVAL, SF_HEAD_OTHER };
struct sf_shape {                         /* whole model, before placement; arrays come preset */
    /* [layers] Equal numbers are encoded together; -1 = no.  Once stages are cut, whoever would
     * have a group cross one counts anew, leaves layers exact, or refuses. */
    int16_t *layer_group;
    uint8_t *head_class;                  /* [lanes] enum sf_head_class, for `on:` of the stack */
    uint8_t *acts_on;                     /* [lanes] 0: this method leaves the lane exact */
    /* Stages end where groups do, as long as the dearest costs no more than the mean by this part;
     * 0: stages are cut wherever they are level; INFINITY: there alone, if it can be. */
    double   imbalance_max;
    int32_t *group_lanes;                 /* [layers] of the layer's group in the whole model; the
                                             store's, made behind shape(): NULL there */
};
struct sf_spot { int32_t layer, head_global, prompt, tokens; /* tokens: prompt + generated */
                 int32_t tightened; };  /* times that SF_AT_PRESSURE came; never raises an answer */
struct sf_foot {                          /* one lane at one length; account.c turns it to bytes */
    /* Equal where the data do not decide.  At an interval a group's tier grows by every_tokens
     * slots or none. */
    int32_t slots_lo[SF_TIERS], slots_hi[SF_TIERS];
    int32_t slots_peak;                   /* most slots at once before the first edit */
    /* The lane's budget; 0 = none.  An edit of a lane that holds slots_trigger slots or more leaves
     * at most slots_keep, or what is protected where that is more. */
    int32_t slots_trigger, slots_keep;
    int64_t extra_bytes;                  /* size of lane->state at this length */
    int32_t marks;                        /* landmarks, once the prompt has ended */
};
struct sf_tier {
    const char *codec;                    /* a name in codec.h: raw quant gear lowrank pair ... */
    uint8_t k_place, v_place;             /* enum sf_place */
    int32_t block_slots;                  /* slots that one tier edit encodes together; 0 = any */
    int64_t codec_cfg[8];                 /* the codec's own struct, set by its codec.h helper */
};
enum sf_codec_can { SF_CAN_DROP = 1, SF_CAN_MIX = 2, SF_CAN_RECODE = 4, SF_CAN_FORK = 8,
                    SF_CAN_GROUP = 16 };  /* holds what group edits encode, and nothing else */
enum sf_edits { SF_EDITS_KEEP = 1, SF_EDITS_MIX = 2,
                SF_EDITS_TIER = 4,        /* side data as well */
                SF_EDITS_GROUP = 8,
                SF_EDITS_ROTATE = 16,     /* beside MIX: some mixes have SF_MIX_ROTATE */
                SF_EDITS_DENSE = 32 };    /* beside MIX: some mixes have a dense part */
enum sf_when { SF_AT_PREFILL_CHUNK,       /* before the next chunk, layer by layer */
               SF_AT_PREFILL_END,         /* per layer group, as soon as its last layer has run, */
                                          /* and so SF_AT_INTERVAL of a method with groups */
               SF_AT_FULL,                /* decode: slots >= slots_trigger, after attention */
               SF_AT_INTERVAL, SF_AT_SENTENCE_END, SF_AT_TURN_END, /* decode: after attention */
               SF_AT_PRESSURE };          /* decode, between two steps: pages have run out, and */
                                          /* each lane comes down to what footprint() now says; */
                                          /* never under run.deterministic */
enum sf_need { SF_NEED_PRE_ROPE = 1, SF_NEED_TOKENS = 2, SF_NEED_SENTENCES = 4, SF_NEED_Q_MAX = 8,
               SF_NEED_PROFILE = 16, SF_NEED_INNER = 32, SF_NEED_SELECT_PREFILL = 64,
               SF_NEED_SELECT_DECODE = 128 };
enum sf_prefix { SF_PREFIX_NONE, SF_PREFIX_KV, /* aux zero, as for all, until the prompt's end */
                 SF_PREFIX_KV_AND_MASS }; /* watched mass as it was at the shared border */

/* ---- 3. statistics that attention keeps ----------------------------------------------------- */
enum sf_fold { SF_FOLD_NONE, SF_FOLD_SUM, SF_FOLD_MEAN, SF_FOLD_MAX, SF_FOLD_DECAY,
               SF_FOLD_BELOW_MEAN };      /* counts rows whose weight is < 1 / visible slots; */
                                          /* MEAN: over the rows that counted and saw the slot */
enum sf_watch_flag { SF_WATCH_RESET = 1,  /* zeroed after every compress() */
                     SF_WATCH_STORED = 2 }; /* made at the event: kept queries over the slots up */
                                            /* to their positions, those of the prompt at its end */
struct sf_watch {                         /* head fold first, then rows; result in lane->mass */
    uint8_t fold, head_fold, flags;       /* over rows; over the group's query heads */
    int32_t prompt_rows, decode_rows;     /* last ones before an event; 0 = all, -1 = none; */
    float decay;                          /* ghosts come on top. Per row, SF_FOLD_DECAY */
};
struct sf_draft_ask {                     /* the scheduler runs it; both 0 = no draft model */
    int32_t lookahead, window;            /* tokens to draft, -1: max_tokens; last rows folded */
    int32_t first_layer, min_tokens;      /* draft layers counted; shorter prompts: no draft */
    uint8_t fold, row_ramp;               /* row_ramp: row weights rise linearly from 0 to 1 */
};
struct sf_v_top {                         /* attend reads only the values of the best slots */
    int32_t slots, min_slots;             /* 0 = off; exact below min_slots */
    uint8_t per_q_head, renormalise;
};
struct sf_plan {
    uint32_t needs, whens, edits;         /* enum sf_need; 1u << enum sf_when; enum sf_edits */
    int32_t tiers; struct sf_tier tier[SF_TIERS];
    struct sf_watch watch[2];
    struct sf_draft_ask draft;
    struct sf_v_top v_top;
    int32_t sink_tokens, tail_tokens;     /* first and newest positions that no edit may touch */
    int32_t chunk_tokens;                 /* prompt chunks end at its multiples; 0 = anywhere: */
                                          /* only without SF_AT_PREFILL_CHUNK */
    int32_t every_tokens;                 /* SF_AT_INTERVAL when tokens % every_tokens == 0, */
    uint8_t every_from_prompt;            /* or, if set, (tokens - prompt) % every_tokens == 0 */
    uint8_t prefix;                       /* enum sf_prefix: what a shared prefix must carry */
    int32_t aux_bytes, span_state_bytes;  /* per slot; per sequence and layer group, host */
    int32_t mark_slots, pick_slots;       /* of the chunk that a landmark stands for, 0: there */
                                          /* are none; most that a lane's pick names */
    int64_t scratch_bytes;                /* of one compress(), or one score(): edits are copied */
    int64_t reduce_bytes;                 /* per hook and sequence, over TP; 0 = no reduction */
};

/* ---- 4. views, for one hook; mass (made for score and compress), aux, state may be written --- */
struct sf_buf { void *data; size_t bytes; }; /* device memory; read and written through env->k */
struct sf_list {                          /* n indices (-1: all): on the host, or where ids is */
    const int32_t *ids; const struct sf_buf *buf; int32_t n; /* NULL on the device, ended by -1 */
};
struct sf_lane {
    int32_t layer, head, head_global;     /* head: on this rank; head_global: in the model */
    uint8_t head_class, replica, replicas;/* copies of this lane in the tensor group */
    int32_t slots, slots_trigger, slots_keep;
    const int32_t *pos;                   /* [slots] lowest token of a fold, centre of a merge */
    const float   *bias;                  /* [slots] added to the logit, ln(tokens) or 0 */
    const uint8_t *tier;                  /* [slots] */
    float         *mass[2];               /* [slots] watched; NULL if not watched */
    const float   *q_max;                 /* [k_per_group][k_dim] largest |q| of the prompt */
    void          *aux;                   /* [slots][aux_bytes], follows its slot */
    struct sf_buf *state;                 /* device, extra_bytes of sf_foot; grows zeroed */
    int32_t marks;                        /* landmarks that it has */
    const struct sf_store *store;         /* where sf_lane_read looks */
};
struct sf_span {                          /* lanes of one sequence and one layer group */
    int64_t seq_id;
    int32_t prompt, tokens, turn, layers, lanes;
    const int32_t *lane_ptr;              /* [layers + 1] lanes of layer i: lane_ptr[i] and on */
    const struct sf_lane *lane;           /* [lanes] */
    const int32_t *token, *sentence_end;  /* [tokens]; [sentences] index of the last token */
    int32_t sentences;
    /* select() only: [rows][q heads here][k_dim] after RoPE.  Else 0 and NULL: how the scheduler
     * cut the prompt stays unseen.  In decode a span is of one row and one layer, and its lanes are
     * shown without what grows with their slots: pos, bias, tier, mass and aux are NULL. */
    int32_t rows; const struct sf_buf *q;
    void *state;                          /* [span_state_bytes], zeroed at open, copied on fork */
};
struct sf_batch { const struct sf_span *span; int32_t spans; };
struct sf_prompt {
    const int32_t *token, *sentence_end, *turn_end, *draft_token; /* index of the last token */
    int32_t tokens, sentences, turns, draft_tokens;
    const float *draft_mass;              /* [tokens] folded as asked; NULL if no draft ran */
};
struct sf_env {                           /* lives as long as the stack entry */
    const struct sf_setup *setup; const struct sf_plan *plan;
    const struct sf_kernels *k;           /* maths on buffers; the only way to touch the device */
    struct sf_device *device;             /* first argument of every entry of k */
    const struct sf_weights *weights;     /* calibrate and convert only */
    void *self;                           /* what open() made */
};

/* ---- 5. answers ----------------------------------------------------------------------------- */
struct sf_admit {                         /* made once by the coordinator, then broadcast */
    int32_t *keep, keeps;                 /* room [tokens], ascending: they become a new sequence */
    int32_t *ghost, ghosts;               /* room [draft_tokens]: attend, are watched, no KV left */
    int32_t replay_last;                  /* prompt tokens dropped, then fed again after the end */
};
enum { SF_MIX_ROTATE = 1,                 /* turn each source key to the new slot's pos first */
       SF_MIX_FOLD = 2 };                 /* what is summed counts as evicted, not as merged */
struct sf_mix {                           /* the lane anew, in this order: new slot i = */
    int32_t slots, flags;                 /* sum weight[j] * old[src[j]], j in [ptr[i], ptr[i+1]) */
    const int32_t *ptr, *src;             /* one source of weight 1 in its own tier: bytes copied */
    const float *k_weight, *v_weight;
    const struct sf_buf *dense;           /* f32 [dense_slots][dense_src.n], K and V alike: the */
    struct sf_list dense_src; int32_t dense_slots; /* last dense_slots slots; their ptr is empty */
    const int32_t *pos; const float *bias, *mass[2]; /* [slots] of the new slots */
    const uint8_t *tier; const void *aux; /* NULL mass, tier, aux: as the first source, else 0 */
};
struct sf_lines { struct sf_list col, diag; }; /* slots; distances row - column in tokens */

/* The lane's budget from here on, before its keep or mix, which is then held to it.  Refused where
 * the lane could outgrow what footprint() says for the sequence's longest. */
sf_status sf_edit_budget(struct sf_answer *, const struct sf_lane *, int32_t slots_keep,
                         int32_t slots_trigger);
/* Slot numbers are those of the view.  Edits are checked (budget, sinks, tail, codec) and applied
 * all or none: side, tier, group, then one keep (ascending) or mix a lane, whose order stays. */
sf_status sf_edit_keep (struct sf_answer *, const struct sf_lane *, struct sf_list slots);
sf_status sf_edit_mix  (struct sf_answer *, const struct sf_lane *, const struct sf_mix *);
sf_status sf_edit_tier (struct sf_answer *, const struct sf_lane *, struct sf_list slots, int tier);
sf_status sf_edit_side (struct sf_answer *, const struct sf_lane *, int tier, struct sf_buf *side);
sf_status sf_edit_group(struct sf_answer *, const struct sf_span *, struct sf_list slots, int tier,
                        const struct sf_list *exact);  /* [lanes] stay raw as well; NULL = none */
/* Picks: for one query head of the group, or -1 for all.  In the prompt a pick holds for this call;
 * else until the lane's next one, and slots appended later are read too.  Unnamed rows output 0.
 * A pick of a lane whose slots a group shares is of those alone; its raw slots are always read.
 * Built in decode: picks by landmarks, which are found on the device (codec.h: sf_pick_chunks). */
sf_status sf_pick_slots(struct sf_answer *, const struct sf_lane *, int q_head, struct sf_list);
sf_status sf_pick_lines(struct sf_answer *, const struct sf_lane *, int q_head,
                        const struct sf_lines *);
sf_status sf_pick_rows (struct sf_answer *, const struct sf_span *, struct sf_list rows);

/* ---- 6. hooks ------------------------------------------------------------------------------- */
struct sf_policy_ops {
    /* pure, required */
    sf_status (*plan)(const struct sf_setup *, struct sf_plan *);
    sf_status (*footprint)(const struct sf_setup *, const struct sf_spot *, struct sf_foot *);
    /* pure, may be NULL: no groups, no classes, acts on all; prompts stay as they are.  shape() is
     * asked again with the stages; a group then lies inside one. */
    sf_status (*shape)(const struct sf_setup *, struct sf_shape *);
    sf_status (*admit)(const struct sf_setup *, const struct sf_prompt *, struct sf_admit *);
    /* pure, may be NULL: why a lane that it acts on is as it was after spot->tokens, in few words
     * that do not differ from prompt to prompt; NULL: it should not be.  For warnings; without it,
     * what events and footprint tell. */
    const char *(*idle)(const struct sf_setup *, const struct sf_spot *);
    /* collective, may be NULL */
    sf_status (*open)(struct sf_env *);   /* sets self */
    void      (*close)(struct sf_env *);
    sf_status (*score)(const struct sf_env *, const struct sf_span *, float *out); /* by lanes */
    /* Before a layer's attention.  SF_NEED_SELECT_DECODE: of all sequences that decode, row by row
     * where an answer is fed again; a step may come without a pick, but not before the first of a
     * lane that has slots raw which its group's tier holds too. */
    sf_status (*select)(const struct sf_env *, const struct sf_batch *, struct sf_answer *);
    /* Some of the sequences that are due, the same on all ranks; the others come in later calls. */
    sf_status (*compress)(const struct sf_env *, enum sf_when, const struct sf_batch *,
                          struct sf_answer *);
};  /* compress NULL: a lane over its trigger keeps the slots_keep best by score, or, with score
       NULL, the newest; sinks and tail are kept first and count */

/* ---- 7. calibration and recipes -------------------------------------------------------------
 * `sheaf calibrate` runs made-up sequences through the exact model and shows what attention sees to
 * the method: chunk of rows by chunk, layer by layer, each KV head on the rank that holds it.  All
 * calls are host work, off line.  plan() and input() run on rank 0; choose() needs no model. */
enum sf_tap { SF_TAP_ATTN_IN, SF_TAP_Q, SF_TAP_K_PRE_ROPE, SF_TAP_K, SF_TAP_V, SF_TAP_ROW_LSE,
              SF_TAP_ATTN_OUT, SF_TAP_FFN_IN, SF_TAP_ROUTED, SF_TAP_EXPERT_OUT, SF_TAPS };
struct sf_calib_plan {
    uint32_t taps;                        /* 1u << enum sf_tap */
    int32_t passes, sequences, tokens;    /* tokens per sequence, at most setup->tokens_max */
};
struct sf_calib_vocab { const int32_t *ordinary; int32_t count; }; /* ids of text, ascending */
struct sf_taps {                          /* one KV head, some rows of a sequence; valid in feed */
    int32_t pass, sequence, layer, head_global;
    int32_t q_first, q_heads;             /* query heads of the model seen here; where the head has
                                             copies in the tensor group each rank sees its part */
    int32_t tokens, row_first, rows;      /* of the whole sequence; rows row_first and on are new */
    int32_t k_dim, v_dim;
    float scale;                          /* softmax: e^(scale * q.k - lse) is the weight */
    const float *q; size_t q_stride;      /* [rows], head j at j * k_dim; RoPE done; host, as all */
    const float *lse; size_t lse_stride;  /* [rows], head j at j */
    const float *k, *v;                   /* [row_first + rows][dim] as the cache holds them; v
                                             NULL where it was not asked for */
};
struct sf_calib_ranks {                   /* over all ranks, in their order: the same on each */
    sf_status (*sum)(const struct sf_calib_ranks *, double *value, size_t n);
};
/* Options of the method that stand in a profile; of the run and of the choice only calibrate reads
 * them.  RESULT: found out; RUN: what was run; CHOICE: how the result is chosen from the rows. */
enum sf_calib_kind { SF_CALIB_NONE, SF_CALIB_RESULT, SF_CALIB_RUN, SF_CALIB_CHOICE };
struct sf_calib_opt { const char *key; enum sf_calib_kind kind; };
struct sf_calib_ops {                     /* env->self holds what is learnt */
    const char *about;                    /* comment at the head of the profile: "# ...\n" */
    const struct sf_calib_opt *opts;      /* closed by a NULL key, as columns by NULL: */
    const char *const *columns;           /* lists of numbers in a row of the profile */
    /* required; plan() asks for what cfg says, or as much of it as fits */
    sf_status (*plan)(const struct sf_setup *, const struct sf_calib_vocab *,
                      struct sf_calib_plan *);
    sf_status (*input)(const struct sf_setup *, const struct sf_calib_vocab *, int32_t sequence,
                       int32_t tokens, int32_t *token_out);
    sf_status (*open)(struct sf_env *);
    void      (*close)(struct sf_env *);
    sf_status (*feed)(const struct sf_env *, const struct sf_taps *);
    sf_status (*reduce)(const struct sf_env *, const struct sf_calib_ranks *); /* after a pass */
    /* On rank 0: rows and notes of the profile, and what of cfg the run has settled. */
    sf_status (*write)(const struct sf_env *, void *cfg, int32_t tokens, struct sf_profile *);
    /* What the profile's rows, rounded as they are written, and cfg come to: sets it in cfg. */
    sf_status (*choose)(void *cfg, const struct sf_profile *);
};
struct sf_recipe_ops {                    /* offline; env->self: what calibration has learnt */
    sf_status (*shape)(const struct sf_env *, struct sf_model_desc *); /* self NULL: upper bound */
    sf_status (*convert)(const struct sf_env *, int32_t layer, struct sf_weights_out *);
};                                        /* layer -1: outside layers; unwritten tensors: copied */

/* ---- 8. registry and services --------------------------------------------------------------- */
struct sf_method {
    const char *name, *paper;
    const struct sf_opt *opts; size_t cfg_bytes; /* YAML keys, aliases, ranges, help, docs */
    const struct sf_policy_ops *policy;   /* NULL: offline only */
    const struct sf_calib_ops *calib;     /* NULL: nothing to learn */
    const struct sf_recipe_ops *recipe;   /* NULL: online only */
};
extern const struct sf_method *const sf_methods[]; /* closed by NULL; methods.c is the one list */

uint32_t       sf_codec_facts(const char *codec);                   /* enum sf_codec_can */
void          *sf_scratch(const struct sf_env *, size_t bytes);     /* host, until the hook ends */
struct sf_buf *sf_scratch_buf(const struct sf_env *, size_t bytes); /* device, likewise */
sf_status sf_lane_read(const struct sf_lane *, struct sf_list slots, int pre_rope,
                       struct sf_buf *k, struct sf_buf *v); /* f32; k or v may be NULL */
sf_status sf_inner_score(const struct sf_env *, const struct sf_span *, float *out);
/* In select(): query rows against all stored slots, folded to [slots], or, with fold NONE, the
 * probabilities [q head][row][slots]. */
sf_status sf_probe(const struct sf_span *, const struct sf_lane *, struct sf_list rows,
                   const struct sf_watch *how, struct sf_buf *out);
/* Deterministic: ties go to the lower index, results ascend; sums over ranks are integers. */
int32_t   sf_top_k(const float *score, int32_t n, int32_t k, int32_t *index_out);
int64_t   sf_fixed(double x);             /* 2^-32 units, saturating */
/* SUM or MAX over the tensor ranks, in place.  Only where all of them call it alike: in events that
 * follow from tokens (end or chunk of a prompt, interval), and for full lanes while all lanes of
 * the layer have the same slots.  Of copies of a lane, replica 0 alone adds to a sum. */
sf_status sf_reduce_i64(const struct sf_env *, int64_t *value, int32_t n, enum sf_fold);
/* `pool` units in proportion to need >= 0, by largest remainder, ties to the lower index; no need
 * at all: equal shares.  need[i] * pool fits. */
void      sf_share_out(const int64_t *need, int32_t n, int64_t pool, int64_t *share_out);
SF_C_END
#endif
