/* kvshard/codec.h: how the slots of a tier are encoded in its pages.
 *
 *   codec_raw.c   numbers as they are, in kv_cache.dtype or another type
 *
 * A codec is one file and one line in codec.c.  Pages of all tiers come from one pool and are of
 * one size, so a codec says how many slots it has in a page; attention reads what lies there
 * (layout.h), and everything else passes through encode and decode.  A tier's pages belong to one
 * lane alone. */
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

/* ---- what methods put into their plans ------------------------------------------------------ */
struct sf_tier sf_tier_raw_f32(void);

extern const struct sf_codec sf_codec_raw;

SF_C_END
#endif
