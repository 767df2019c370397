/* tests/unit/kvshard/rig.h: a store with made-up keys and values, and what its lanes should be.
 *
 * A rig is one rank that holds all heads of a small model.  Every number that enters it is a fixed
 * function of (what, sequence, layer, head, position, element), so a test can work out any row by
 * itself: struct ref_lane is a lane as plain arrays, and ref_attend the softmax over it in f64.
 * Nothing in here knows pages. */
#ifndef SHEAF_TESTS_UNIT_KVSHARD_RIG_H
#define SHEAF_TESTS_UNIT_KVSHARD_RIG_H
#include "kvshard/account.h"
#include "kvshard/policy.h"
#include "kvshard/stack.h"
#include "kvshard/store.h"
#include "model/desc.h"
#include "tests/check.h"

enum { RIG_LAYERS = 4, RIG_LANES = 8, RIG_ROWS = 512, RIG_SEQS = 16, RIG_OPTIONS = 16,
       RIG_FREQUENCIES = 16 };
enum rig_what { RIG_Q, RIG_K, RIG_V };

struct rig;
struct rig_spec {
    const char *device;                 /* "ref" or "cpu" */
    enum sf_dtype dtype;
    int32_t page_slots, layers, lanes, group; /* group: query heads of a lane */
    int32_t k_dim, v_dim, window;       /* window: the model's own, tokens; 0 = none */
    int32_t rope_dim;                   /* the rig's keys count as turned by rig_frequency; 0: no */
    int32_t pages, tokens_max;
    int32_t heads[RIG_LANES];           /* KV head of each lane; all 0: lane l is head l */
    int32_t replica[RIG_LANES];
    struct sf_comm *tensor;             /* NULL: a rank alone */
    const struct sf_method *method;     /* NULL: the exact cache */
    struct rig_option { const char *key, *text; } option[RIG_OPTIONS];
    const char *layers_text;            /* where it acts, as `layers:`; NULL: everywhere */
    const struct sf_method *also;       /* a second entry of the stack; NULL: none */
    struct rig_option also_option[RIG_OPTIONS];
    const char *also_layers;
    float scale;                        /* 0: k_dim^-0.5 */
    /* Whose numbers the row of a position has, so that sequences can begin alike; NULL: its own. */
    int32_t (*source)(int32_t number, int32_t pos);
    struct sf_store_tap tap;
    int32_t threads_beside;             /* of the store */
    void (*after_layer)(struct rig *, int32_t layer); /* of each step; NULL: nobody looks */
};
struct rig {
    struct rig_spec spec;
    struct sf_device *device;
    struct sf_setup setup;
    struct sf_model_desc model;         /* rope_dim and rope_inv_freq alone */
    float inv_freq[RIG_FREQUENCIES];
    struct sf_stack stack;
    struct sf_store *store;
    float *q, *k, *v;
    float *out[RIG_LAYERS];             /* [RIG_ROWS][lanes * group][v_dim] of the last rig_run */
};
struct rig_item { struct sf_seq *seq; int32_t number, pos_first, rows; };

/* The usual rig of this file: ref, 2 layers, 2 lanes, group 2, dims 8 and 6, f32, pages of 16. */
struct rig_spec rig_usual(void);
sf_status rig_open(const struct rig_spec *, struct rig *rig_out);
void      rig_close(struct rig *);
/* All layers of one step; rows of the items lie one after the other in out. */
sf_status rig_run(struct rig *, const struct rig_item *, int32_t items);
/* The same for one sequence, positions pos_first .. pos_first + rows - 1. */
sf_status rig_feed(struct rig *, struct sf_seq *, int32_t number, int32_t pos_first, int32_t rows);
float     rig_value(enum rig_what, int32_t number, int32_t layer, int32_t head, int32_t pos,
                    int32_t element);
int32_t   rig_head(const struct rig_spec *, int32_t lane);
/* Radians a position of pair i. */
float     rig_frequency(int32_t i);
const float *rig_out(const struct rig *, int32_t layer, int32_t row, int32_t q_head);

/* ---- what should be there ---- */
struct ref_lane {
    int32_t k_dim, v_dim, slots, room;
    int32_t *pos;
    float *bias, *k, *v;                /* [slots][k_dim], [slots][v_dim] as stored */
};
void ref_open(struct ref_lane *, const struct rig_spec *, int32_t room);
void ref_close(struct ref_lane *);
void ref_append(struct ref_lane *, const struct rig_spec *, int32_t number, int32_t layer,
                int32_t lane, int32_t pos);
void ref_keep(struct ref_lane *, const int32_t *ids, int32_t n);
/* The lane anew, by the definition of struct sf_mix: f32 sums in the order of src, rounded once. */
void ref_mix(struct ref_lane *, enum sf_dtype, const struct sf_mix *);
/* The attention of one query head over the slots that keep(pos) names (NULL: all), in f64. */
void ref_attend(const struct ref_lane *, const float *q, double scale,
                int (*sees)(int32_t pos, const void *context), const void *context, double *out);

/* ---- checks ---- */
/* Every query head of every lane: row `row` of the last run against `ref`. */
void check_row(const struct rig *, int32_t number, int32_t layer, int32_t lane, int32_t row,
               int32_t pos, const struct ref_lane *ref,
               int (*sees)(int32_t pos, const void *context), const void *context, double bound);
/* The lane's slots are those of ref, bit for bit. */
void check_lane(const struct rig *, const struct sf_seq *, int32_t layer, int32_t lane,
                const struct ref_lane *ref);
/* A call that must be refused, and words that the refusal must hold. */
void check_refused(const char *file, int line, sf_status status, sf_status expected,
                   const char *words);
#define CHECK_REFUSED(call, expected, words)                                                       \
    check_refused(__FILE__, __LINE__, (call), (expected), (words))

#endif
