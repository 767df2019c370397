/* kvshard/group.h: layer groups of a store: lanes of adjacent layers that one edit encodes.
 * Internal to the store.
 *
 *   layer 0   lane 0: raw slots, factors --+
 *             lane 1: raw slots, factors --+--> a basis: one row for each slot that the lanes have
 *   layer 1   lane 0: raw slots, factors --+    lost to it
 *
 * Where values stay exact (rank_v 0), each lane has pages of values beside its factors, slot by
 * slot as the rows of the basis.
 *
 * A group's lanes are those of one method and layer group on this rank.  What one edit encodes is a
 * segment: a basis and factors of its own, lists of pages (lane.h) that are taken then and given
 * back when the sequence closes.  To the lanes all segments of their group are one tier: slot s of
 * it is slot s - slot_first of the last segment with slot_first <= s.  Stored bytes and pages of a
 * basis count with the first lane that is no copy. */
#ifndef SHEAF_KVSHARD_GROUP_H
#define SHEAF_KVSHARD_GROUP_H
#include "kvshard/codec.h"
#include "kvshard/lane.h"
#include "kvshard/stack.h"
SF_C_BEGIN

struct sf_store;
struct sf_seq;
struct sf_answer;
struct sf_held;

struct sf_store_group {
    int32_t method, tier;               /* of the stack; of its plan */
    int32_t layer_first, layer_last;    /* local; both have lanes of it */
    int32_t lanes, counted;             /* counted: number in the group of the lane with which the
                                           basis counts; -1: all are copies */
    size_t pick_first;                  /* of its lanes, among a sequence's picks */
};
struct sf_groups {                      /* of a store */
    struct sf_store_group *group;
    int32_t groups;
    int32_t *of_lane, *number;          /* [lanes] group of each lane of a sequence here, or -1; */
                                        /* its number among those of its group */
    float *turns;                       /* device [tokens_max][rope_dim], as kernels.h says */
    int32_t rope_dim;
    /* Taken at once, so that a sequence that opens or closes does not wait for the device. */
    int32_t *picks;                     /* device [seqs_max][picks_each]; NULL: nothing picks */
    size_t picks_each;                  /* of a sequence of tokens_max: all groups' lanes */
    int32_t *place, places;             /* [seqs_max] those of picks that are free, a stack */
};
struct sf_segment {
    int32_t slot_first;                 /* slots of the segments before it */
    struct sf_kv_lane basis;
    struct sf_lowrank_size size;
    struct sf_kv_lane *list;            /* [lanes] pages of their factors */
    struct sf_kv_lane *values;          /* [lanes] of their values where these stay exact, or NULL;
                                           behind list */
    struct sf_lane_factors *factors;    /* [lanes] as attention takes them */
};
struct sf_seq_group {                   /* of a sequence; without segments until it is encoded */
    struct sf_kv_lane tier;             /* what its lanes refer to */
    struct sf_segment *segment;         /* [segments_max], of which there are tier.segments */
    int32_t segments_max;
    struct sf_kv_lane *list;            /* [segments_max][lanes] */
    struct sf_kv_lane *values;          /* likewise, behind list, if values stay exact; or NULL */
    struct sf_lane_factors *factors;    /* likewise */
    struct sf_kv_lane *mark;            /* [lanes] pages of their landmarks; NULL: it has none */
    struct sf_layout mark_layout;
    int32_t *tables;                    /* page tables of all these lists */
    int32_t *pick;                      /* device [lanes][pick_slots], the store's; or NULL */
};

sf_status sf_groups_create(struct sf_store *, const struct sf_stack *);
void      sf_groups_destroy(struct sf_store *);
/* Group of a lane of this rank, or -1. */
int32_t   sf_group_of(const struct sf_store *, int32_t layer, int32_t lane);
/* Before the lanes of the sequence are laid out, and after its lanes are free. */
sf_status sf_groups_open(struct sf_store *, struct sf_seq *);
void      sf_groups_free(struct sf_store *, struct sf_seq *);
/* Gives back all their pages, and books that. */
void      sf_groups_close(struct sf_store *, struct sf_seq *);
/* What the lane's factors and exact values hold, and the basis where it counts with this lane. */
struct sf_held sf_group_held(const struct sf_store *, const struct sf_seq *, int32_t layer,
                             int32_t lane);
/* All that the group's lanes hold, copies not counted; books that it has changed from `before`. */
struct sf_held sf_group_total(const struct sf_store *, const struct sf_seq *, int32_t group);
void      sf_group_book(struct sf_store *, struct sf_seq *, int32_t group, struct sf_held before);
/* The segment in which a slot of a shared tier lies; sf_segment_of->basis has its pages. */
const struct sf_segment *sf_segment_of(const struct sf_kv_lane *tier, int32_t slot);
/* Of a segment of so many rows. */
struct sf_lowrank_ask sf_group_ask(const struct sf_store *, int32_t group, int32_t tokens);
sf_status sf_group_sizes(const struct sf_store *, int32_t group, int32_t tokens,
                         struct sf_lowrank_size *size_out);

/* ---- encode.c (encode.h) --------------------------------------------------------------------- */
struct sf_group_edit { int32_t *ids, n, tier; }; /* slots of every lane of a span; tier 0: none */
/* Landmarks of a lane; NULL: it is in no group, or the method has none. */
struct sf_kv_lane *sf_group_marks(const struct sf_store *, const struct sf_seq *, int32_t layer,
                                  int32_t lane);
/* All lanes of span `number` of the answer lose these slots to a basis: at once, or, where the rank
 * has threads for that, with the next sf_encodings_finish.  What holds anything that is not finite
 * stays as it is, with a warning. */
sf_status sf_group_encode(struct sf_answer *, int32_t number);

/* ---- loss.c --------------------------------------------------------------------------------- */
/* Of factors that are there, for each of `lanes` equal parts of the columns: the squares of x and
 * of x - a b, summed; sum [lanes][2].  Costs one product on the host. */
sf_status sf_factor_loss(struct sf_device *, const struct sf_factor_job *, int32_t lanes,
                         double *sum);

SF_C_END
#endif
