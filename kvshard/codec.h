/* kvshard/codec.h: how the slots of a tier are encoded in its pages.
 *
 *   codec_raw.c       numbers as they are, in kv_cache.dtype or another type
 *   codec_lowrank.c   rows of a basis that the lanes of a layer group share
 *
 * A codec is one file and one line in codec.c.  Pages of all tiers come from one pool and are of
 * one size, so a codec says how many slots it has in a page; attention reads what lies there
 * (layout.h), and everything else passes through encode and decode.  A tier's pages belong to one
 * lane alone, or, where the codec is for groups (SF_CAN_GROUP), to the group; such a codec has no
 * encode and no decode, and group.h does its work. */
#ifndef SHEAF_KVSHARD_CODEC_H
#define SHEAF_KVSHARD_CODEC_H
#include "kernels/device.h"
#include "kvshard/policy.h"
SF_C_BEGIN

/* Where slots of one tier of one lane are. */
struct sf_codec_at {
    struct sf_device *device;
    const struct sf_layout *layout;
    unsigned char *pool;
    size_t page_bytes;
};
struct sf_codec {
    const char *name;
    uint32_t facts;                     /* enum sf_codec_can */
    /* How a page no larger than one of `raw`, the layer's tier 0, holds slots of the tier, as many
     * as fit: 16 x 2^k.  SF_INVALID with the reason where that is none. */
    sf_status (*layout)(const struct sf_tier *, const struct sf_layout *raw,
                        struct sf_layout *layout_out);
    size_t (*slot_bytes)(const struct sf_layout *);     /* that a stored slot counts for */
    /* The slots of the list anew: k [n][k_dim], v [n][v_dim] f32 on the device, pos and bias [n] on
     * the host. */
    void (*encode)(const struct sf_codec_at *, const struct sf_slot_list *, const float *k,
                   const float *v, const int32_t *pos, const float *bias);
    /* What encode took, as far as it can be had back; k, v may be NULL. */
    void (*decode)(const struct sf_codec_at *, const struct sf_slot_list *, float *k, float *v);
};

/* NULL: there is none of that name.  A tier without a name is raw. */
const struct sf_codec *sf_codec_find(const char *name);
static inline const struct sf_codec *sf_codec_of(const struct sf_plan *plan, int32_t tier)
{
    return sf_codec_find(plan->tier[tier].codec);
}
/* The layout of a tier of the plan in a layer; tier 0: raw itself. */
sf_status sf_codec_layout(const struct sf_plan *, int32_t tier, const struct sf_layout *raw,
                          struct sf_layout *layout_out);

/* The greatest page_slots of at most `slots_max` with which a page takes no more than `room` bytes;
 * 0: none. */
int32_t sf_layout_slots(const struct sf_layout *, size_t room, int32_t slots_max);

/* ---- what methods put into their plans ------------------------------------------------------ */
struct sf_tier sf_tier_raw_f32(void);

struct sf_lowrank {                     /* codec lowrank; lies in codec_cfg */
    int32_t rank_k, rank_v;             /* of a group of `layers` whole layers; rank_v 0: values
                                           stay exact */
    int32_t layers, power_iterations, oversample; /* the last two: kernels.h */
    int32_t layers_most;                /* of the longest group, if above `layers` */
    uint8_t how;                        /* enum sf_factor_how */
    uint8_t dtype;                      /* 0: kv_cache.dtype, or bf16 where that is int8; else
                                           1 + enum sf_dtype */
    uint8_t replicated;                 /* 1: one basis of all tensor ranks' heads, on each */
    int64_t seed;
};
struct sf_tier sf_tier_lowrank(const struct sf_lowrank *);

/* The tier of a plan that is for layer groups; 0: it has none. */
int32_t sf_codec_group_tier(const struct sf_plan *);
/* Most segments of a group (group.h), one for the prompt's end and one for each interval, of a
 * sequence of so many tokens; and parts of a lane beside its own slots (kernels.h). */
int32_t sf_codec_segments(const struct sf_plan *, int32_t tokens);
int32_t sf_codec_parts(const struct sf_plan *, int32_t tokens);

/* ---- codec lowrank: sizes ------------------------------------------------------------------- */
struct sf_lowrank_ask {
    const struct sf_setup *setup; const struct sf_shape *shape; const struct sf_tier *tier;
    struct sf_layout raw;               /* of the cache's pages */
    int32_t layer, ranks;               /* any layer of the group; that share its heads out */
    int32_t rank;                       /* this one, for what encoding takes */
    int32_t lanes, tokens;              /* of the group on one of them; rows of the basis */
};
enum { SF_LOWRANK_RANK_MAX = 3072 };    /* columns of a basis on one rank: what attention takes */
struct sf_lowrank_size {
    int32_t rank_k, rank_v;             /* of one rank: ceil(the group's / ranks), or, of a basis of
                                           all ranks, the group's; at most tokens */
    struct sf_layout basis, factors;    /* and all elements of a row */
    struct sf_layout values;            /* of pages of values alone, for rank_v 0 */
    int64_t basis_bytes, factor_bytes;  /* stored: by the group; by each of its lanes */
    int32_t basis_pages, factor_pages;  /* likewise */
    int64_t value_bytes; int32_t value_pages; /* of each lane; 0 unless rank_v is 0 */
};
/* The ranks alone, for which only the dims of `raw` matter; returns the type of basis and factors
 * beside its own. */
enum sf_dtype sf_lowrank_ranks(const struct sf_lowrank_ask *, int32_t *rank_k_out,
                               int32_t *rank_v_out);
/* SF_INVALID with the reason where rows do not fit into a page, or ranks are above the maximum. */
sf_status sf_lowrank_sizes(const struct sf_lowrank_ask *, struct sf_lowrank_size *out);
/* Lanes of the layer's group in the whole model. */
int32_t sf_group_lanes(const struct sf_setup *, const struct sf_shape *, int32_t layer);
/* How many of them come before this one. */
int32_t sf_group_lane(const struct sf_setup *, const struct sf_shape *, int32_t layer,
                      int32_t head_global);
/* Whether the tier's bases are of several tensor ranks. */
int     sf_lowrank_over_ranks(const struct sf_setup *, const struct sf_tier *);

/* ---- landmarks of lanes whose slots a group shares ------------------------------------------
 * Keys that each stand for a chunk of plan->mark_slots slots of the group's tier: chunk c for those
 * that were entries c * mark_slots and on of the group edit, so mostly tokens in a row.  They are
 * stored in kv_cache.dtype, in pages like all slots, and count as slots without a value. */
struct sf_marks {
    int32_t n; const int32_t *chunk;    /* [n] ascending */
    const float *key;                   /* [n][k_dim] on the host, after RoPE */
};
/* Beside a group edit of the same answer, of a lane that has none yet. */
sf_status sf_edit_marks(struct sf_answer *, const struct sf_lane *, const struct sf_marks *);
/* select(), in decode: the slots of the `chunks` landmarks that the lane's query heads give most
 * (kernels.h: sf_pick_job), found on the device for a whole batch in one call behind select().
 * Slots that a group edit left raw as well must not be in them. */
sf_status sf_pick_chunks(struct sf_answer *, const struct sf_lane *, int32_t chunks);

/* Their pages, where a raw page is as `raw`. */
static inline struct sf_layout sf_marks_layout(const struct sf_layout *raw)
{
    return (struct sf_layout){ raw->dtype, raw->page_slots, raw->k_dim, 0 };
}
/* Most landmarks of a lane of so many tokens. */
static inline int32_t sf_marks_most(const struct sf_plan *plan, int32_t tokens)
{
    return plan->mark_slots > 0 ? tokens / plan->mark_slots : 0;
}
static inline int32_t sf_marks_pages(const struct sf_plan *plan, const struct sf_layout *marks,
                                     int32_t tokens)
{
    return (sf_marks_most(plan, tokens) + marks->page_slots - 1) / marks->page_slots;
}
/* Most slots that a pick of such a lane names. */
static inline int32_t sf_picks_most(const struct sf_plan *plan, int32_t tokens)
{
    return plan->pick_slots < tokens ? plan->pick_slots : tokens;
}
extern const struct sf_codec sf_codec_raw, sf_codec_lowrank;

SF_C_END
#endif
