/* kvshard/codec.c: the list of codecs. */
#include "kvshard/codec.h"

#include <string.h>

static const struct sf_codec *const codecs[] = { &sf_codec_raw, &sf_codec_lowrank, NULL };

const struct sf_codec *sf_codec_find(const char *name)
{
    if (name == NULL) return &sf_codec_raw;
    for (int i = 0; codecs[i] != NULL; i++)
        if (strcmp(codecs[i]->name, name) == 0) return codecs[i];
    return NULL;
}

uint32_t sf_codec_facts(const char *name)
{
    const struct sf_codec *codec = sf_codec_find(name);
    return codec != NULL ? codec->facts : 0;
}

int32_t sf_codec_group_tier(const struct sf_plan *plan)
{
    for (int32_t t = 1; t < plan->tiers; t++)
        if (sf_codec_facts(plan->tier[t].codec) & SF_CAN_GROUP) return t;
    return 0;
}

int32_t sf_codec_segments(const struct sf_plan *plan, int32_t tokens)
{
    if (sf_codec_group_tier(plan) == 0) return 0;
    return plan->whens & 1u << SF_AT_INTERVAL ? 1 + (tokens - 1) / plan->every_tokens : 1;
}

int32_t sf_codec_parts(const struct sf_plan *plan, int32_t tokens)
{
    int32_t segments = sf_codec_segments(plan, tokens);
    return plan->tiers > 1 ? plan->tiers - 1 - (segments > 0) + segments : 0;
}

int32_t sf_layout_slots(const struct sf_layout *like, size_t room, int32_t slots_max)
{
    struct sf_layout layout = *like;
    int32_t slots = 0;
    for (layout.page_slots = SF_BLOCK_SLOTS;
         layout.page_slots <= slots_max && sf_layout_page_bytes(&layout) <= room;
         layout.page_slots *= 2)
        slots = layout.page_slots;
    return slots;
}

sf_status sf_codec_layout(const struct sf_plan *plan, int32_t tier, const struct sf_layout *raw,
                          struct sf_layout *layout_out)
{
    SF_ASSERT(tier >= 0 && tier < SF_TIERS);
    if (tier == 0) {
        *layout_out = *raw;
        return SF_OK;
    }
    const struct sf_codec *codec = sf_codec_of(plan, tier);
    SF_ASSERT(codec != NULL);           /* stack.c has refused it */
    return codec->layout(&plan->tier[tier], raw, layout_out);
}
