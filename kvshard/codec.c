/* kvshard/codec.c: the list of codecs. */
#include "kvshard/codec.h"

#include <string.h>

static const struct sf_codec *const codecs[] = { &sf_codec_raw, NULL };

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
