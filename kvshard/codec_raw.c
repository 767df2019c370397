/* kvshard/codec_raw.c: slots as they are, in raw pages (kernels/layout.h).
 *
 *   codec_cfg[0]   0: elements of kv_cache.dtype; else 1 + the enum sf_dtype that they have
 *
 * A page holds 16 x 2^k slots, so a tier of one f32 slot takes a page of, say, 32 where the raw
 * tier has 64 in bf16: one page of a lane, whatever the context. */
#include "kvshard/codec.h"

enum { AT_ONCE = 64 };                  /* slots encoded by one call */

struct sf_tier sf_tier_raw_f32(void)
{
    return (struct sf_tier){ .codec = "raw", .codec_cfg = { 1 + SF_F32 } };
}

static sf_status raw_layout(const struct sf_tier *tier, const struct sf_layout *raw,
                            struct sf_layout *layout_out)
{
    struct sf_layout layout = *raw, more;
    if (tier->codec_cfg[0] < 0 || tier->codec_cfg[0] > 1 + SF_INT8)
        return SF_FAIL(SF_INVALID, "codec raw has no element type %lld",
                       (long long)tier->codec_cfg[0]);
    if (tier->codec_cfg[0] > 0) layout.dtype = (enum sf_dtype)(tier->codec_cfg[0] - 1);
    if (layout.dtype == SF_BF16 && layout.k_dim % 2 != 0)
        return SF_FAIL(SF_INVALID, "keys of %d elements in bf16", layout.k_dim);
    size_t room = sf_layout_page_bytes(raw);
    layout.page_slots = SF_BLOCK_SLOTS;
    if (sf_layout_page_bytes(&layout) > room)
        return SF_FAIL(SF_INVALID, "kv_cache.block_size %d is too small for slots that are kept in"
                       " %s: a page of %d of them takes %zu B, one of the cache has %zu; double it",
                       raw->page_slots, sf_dtype_name(layout.dtype), layout.page_slots,
                       sf_layout_page_bytes(&layout), room);
    for (more = layout; sf_layout_page_bytes(&more) <= room; more.page_slots *= 2) layout = more;
    *layout_out = layout;
    return SF_OK;
}

static void raw_encode(const struct sf_codec_at *at, const struct sf_slot_list *list,
                       const float *k, const float *v, const int32_t *pos, const float *bias)
{
    struct sf_append_lane lane[AT_ONCE];
    size_t k_dim = (size_t)at->layout->k_dim, v_dim = (size_t)at->layout->v_dim;
    for (int32_t first = 0; first < list->n; first += AT_ONCE) {
        int32_t n = list->n - first < AT_ONCE ? list->n - first : AT_ONCE;
        for (int32_t i = 0; i < n; i++)
            lane[i] = (struct sf_append_lane){ .pages = list->pages,
                                               .slot_first = list->slot[first + i],
                                               .row_first = i, .rows = 1 };
        struct sf_append_job job = { .layout = *at->layout, .pool = at->pool,
                                     .page_bytes = at->page_bytes,
                                     .k = k + (size_t)first * k_dim, .v = v + (size_t)first * v_dim,
                                     .k_stride = k_dim, .v_stride = v_dim, .pos = pos + first,
                                     .bias = bias + first, .lane = lane, .lanes = n };
        at->device->k->kv_append(at->device, &job);
    }
}

static void raw_decode(const struct sf_codec_at *at, const struct sf_slot_list *list, float *k,
                       float *v)
{
    at->device->k->kv_read(at->device, at->layout, at->pool, at->page_bytes, list, k, v, NULL,
                           NULL);
}

const struct sf_codec sf_codec_raw = { .name = "raw",
                                       .facts = SF_CAN_DROP | SF_CAN_MIX | SF_CAN_RECODE,
                                       .layout = raw_layout, .slot_bytes = sf_layout_slot_bytes,
                                       .encode = raw_encode, .decode = raw_decode };
