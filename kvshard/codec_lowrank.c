/* kvshard/codec_lowrank.c: the slots of the lanes of a layer group as rows of two bases that they
 * share, with factors of each lane (xKV).
 *
 *   X_K [n][m]  keys before RoPE of all lanes of the group here, side by side;  X_V the values
 *   X ~ A B     A [n][rank] the basis, one row a slot; B [rank][m], of which each lane has k_dim or
 *               v_dim columns, its factors
 *
 * Both lie in pages as slots of raw ones do (kernels/layout.h), only of other widths, so the pages
 * of the basis are read, marked and packed as any others:
 *
 *   basis      of the group    slot j: row j of A_K as its key, of A_V as its value; its pos
 *   factors    of each lane    slot i: row i of B_K as its key, of B_V as its value
 *
 * With rank_v 0 there is no A_V and no B_V, and the values stay exact, in kv_cache.dtype, in pages
 * of values alone:
 *
 *   values     of each lane    slot j: the value of the slot of which the basis has row j
 *
 * Of a cache in int8, whose scales are of whole vectors, basis and factors are bf16 unless their
 * type is named, and values that stay exact are refused.
 *
 * A rank that is odd has a column of zeros behind it, since keys in bf16 come in pairs.  Where the
 * two ranks differ, factors have rows of which one half is empty: room in pages, no stored bytes.
 *
 * A group of fewer or more lanes than `layers` whole layers has ranks in proportion.  Where
 * tensor ranks share the heads out, each has bases of its own for its own heads, of
 * ceil(rank / ranks) columns; or each has the bases of all of them, of `rank` columns.
 * Stored bytes of n slots, with e bytes an element:
 *
 *   n (rank_k + rank_v) e of the group,  (rank_k k_dim + rank_v v_dim) e + 8 n of each lane,
 *   and n v_dim elements of kv_cache.dtype of each lane if rank_v is 0 */
#include <string.h>

#include "kvshard/codec.h"
#include "model/desc.h"

_Static_assert(sizeof(struct sf_lowrank) <= sizeof(((struct sf_tier *)0)->codec_cfg),
               "the codec's options fit into a tier");

enum { VALUES_MAX = 1 << 20 };          /* of a page, whatever its bytes */

struct sf_tier sf_tier_lowrank(const struct sf_lowrank *cfg)
{
    struct sf_tier tier = { .codec = "lowrank" };
    memcpy(tier.codec_cfg, cfg, sizeof *cfg);
    return tier;
}

static int32_t up(int64_t a, int64_t b) { return (int32_t)((a + b - 1) / b); }

static int32_t least(int64_t a, int64_t b) { return (int32_t)(a < b ? a : b); }

/* A group's layers are neighbours: the first of them, and the one behind the last. */
static int32_t group_first(const struct sf_shape *shape, int32_t layer)
{
    while (layer > 0 && shape->layer_group[layer - 1] == shape->layer_group[layer]) layer--;
    return layer;
}

static int32_t group_end(const struct sf_setup *setup, const struct sf_shape *shape, int32_t layer)
{
    int16_t group = shape->layer_group[layer];
    while (layer < setup->layers && shape->layer_group[layer] == group) layer++;
    return layer;
}

int32_t sf_group_lanes(const struct sf_setup *setup, const struct sf_shape *shape, int32_t layer)
{
    if (shape->group_lanes != NULL) return shape->group_lanes[layer];
    int32_t lanes = 0, end = group_end(setup, shape, layer);
    for (int32_t l = group_first(shape, layer); l < end; l++)
        for (int32_t h = 0; h < setup->layer[l].groups; h++)
            lanes += shape->acts_on[setup->layer[l].lane_first + h];
    return lanes;
}

int32_t sf_group_lane(const struct sf_setup *setup, const struct sf_shape *shape, int32_t layer,
                      int32_t head_global)
{
    int32_t lanes = 0;
    for (int32_t l = group_first(shape, layer); l <= layer; l++)
        for (int32_t h = 0; h < (l < layer ? setup->layer[l].groups : head_global); h++)
            lanes += shape->acts_on[setup->layer[l].lane_first + h];
    return lanes;
}

int sf_lowrank_over_ranks(const struct sf_setup *setup, const struct sf_tier *tier)
{
    struct sf_lowrank cfg;
    memcpy(&cfg, tier->codec_cfg, sizeof cfg);
    return cfg.replicated && setup->tp_size > 1;
}

static enum sf_dtype dtype_of(const struct sf_lowrank *cfg, enum sf_dtype raw)
{
    if (cfg->dtype > 0) return (enum sf_dtype)(cfg->dtype - 1);
    return raw == SF_INT8 ? SF_BF16 : raw;
}

/* All layouts, with page_slots yet to be set. */
static void widths(enum sf_dtype dtype, const struct sf_layout *raw, struct sf_lowrank_size *size)
{
    size->basis = (struct sf_layout){ dtype, 0, (size->rank_k + 1) / 2 * 2, size->rank_v };
    size->factors = (struct sf_layout){ dtype, 0, raw->k_dim, size->rank_v > 0 ? raw->v_dim : 0 };
    size->values = (struct sf_layout){ raw->dtype, 0, 0, raw->v_dim };
}

static sf_status fit(struct sf_layout *layout, const struct sf_layout *raw, int32_t slots_max,
                     const char *what)
{
    size_t room = sf_layout_page_bytes(raw);
    layout->page_slots = sf_layout_slots(layout, room, slots_max);
    if (layout->page_slots > 0) return SF_OK;
    layout->page_slots = SF_BLOCK_SLOTS;
    return SF_FAIL(SF_INVALID, "kv_cache.block_size %d is too small for %s of %d and %d elements in"
                   " %s: a page of %d rows takes %zu B, one of the cache has %zu; double it",
                   raw->page_slots, what, layout->k_dim, layout->v_dim,
                   sf_dtype_name(layout->dtype), SF_BLOCK_SLOTS, sf_layout_page_bytes(layout),
                   room);
}

enum sf_dtype sf_lowrank_ranks(const struct sf_lowrank_ask *ask, int32_t *rank_k_out,
                               int32_t *rank_v_out)
{
    struct sf_lowrank cfg;
    memcpy(&cfg, ask->tier->codec_cfg, sizeof cfg);
    int64_t full = (int64_t)cfg.layers * ask->setup->layer[ask->layer].groups;
    int64_t lanes = sf_group_lanes(ask->setup, ask->shape, ask->layer);
    SF_ASSERT(full > 0 && ask->ranks > 0 && ask->lanes > 0 && ask->tokens > 0);
    int64_t here = cfg.replicated ? lanes : ask->lanes;
    int32_t ranks = cfg.replicated ? 1 : ask->ranks;
    int32_t rank_k = up(up(cfg.rank_k * lanes, full), ranks);
    int32_t rank_v = up(up(cfg.rank_v * lanes, full), ranks);
    *rank_k_out = least(least(rank_k, ask->tokens), here * ask->raw.k_dim);
    *rank_v_out = least(least(rank_v, ask->tokens), here * ask->raw.v_dim);
    return dtype_of(&cfg, ask->raw.dtype);
}

sf_status sf_lowrank_sizes(const struct sf_lowrank_ask *ask, struct sf_lowrank_size *out)
{
    struct sf_lowrank_size size;
    enum sf_dtype dtype = sf_lowrank_ranks(ask, &size.rank_k, &size.rank_v);
    if (size.rank_k > SF_LOWRANK_RANK_MAX || size.rank_v > SF_LOWRANK_RANK_MAX)
        return SF_FAIL(SF_INVALID, "a basis of %d columns for keys and %d for values on a rank:"
                       " attention takes at most %d; lower rank_k and rank_v, or put fewer layers"
                       " into a group", size.rank_k, size.rank_v, SF_LOWRANK_RANK_MAX);
    widths(dtype, &ask->raw, &size);
    SF_TRY(fit(&size.basis, &ask->raw, ask->raw.page_slots, "rows of a basis"));
    SF_TRY(fit(&size.factors, &ask->raw, ask->raw.page_slots, "rows of factors"));
    SF_TRY(fit(&size.values, &ask->raw, VALUES_MAX, "values"));
    int64_t element = (int64_t)sf_dtype_bytes(size.basis.dtype);
    int32_t rows = size.rank_k > size.rank_v ? size.rank_k : size.rank_v;
    size.basis_bytes = (int64_t)ask->tokens * (size.rank_k + size.rank_v) * element;
    size.factor_bytes = ((int64_t)size.rank_k * ask->raw.k_dim +
                         (int64_t)size.rank_v * ask->raw.v_dim) * element;
    size.basis_pages = up(ask->tokens, size.basis.page_slots);
    size.factor_pages = up(rows, size.factors.page_slots);
    size.value_bytes = size.rank_v > 0 ? 0 : ask->tokens * (int64_t)ask->raw.v_dim *
                                                 (int64_t)sf_dtype_bytes(ask->raw.dtype);
    size.value_pages = size.rank_v > 0 ? 0 : up(ask->tokens, size.values.page_slots);
    *out = size;
    return SF_OK;
}

/* ---- the codec ------------------------------------------------------------------------------ */
/* Of the widest basis that the tier can have: what fits that, fits every group. */
static sf_status lowrank_layout(const struct sf_tier *tier, const struct sf_layout *raw,
                                struct sf_layout *layout_out)
{
    struct sf_lowrank cfg;
    struct sf_lowrank_size size;
    memcpy(&cfg, tier->codec_cfg, sizeof cfg);
    if (cfg.rank_v == 0 && raw->dtype == SF_INT8)
        return SF_FAIL(SF_UNSUPPORTED, "rank_v: 0 leaves values in kv_cache.dtype beside a basis of"
                       " keys, which int8 is not built for; take bf16, or a rank_v");
    int32_t layers = cfg.layers_most > cfg.layers ? cfg.layers_most : cfg.layers;
    size.rank_k = up((int64_t)cfg.rank_k * layers, cfg.layers);
    size.rank_v = up((int64_t)cfg.rank_v * layers, cfg.layers);
    widths(dtype_of(&cfg, raw->dtype), raw, &size);
    SF_TRY(fit(&size.factors, raw, raw->page_slots, "rows of factors"));
    SF_TRY(fit(&size.basis, raw, raw->page_slots, "rows of a basis"));
    *layout_out = size.basis;
    return SF_OK;
}

/* Of a lane: pos and bias.  The rest is the group's (sf_lowrank_sizes). */
static size_t lowrank_slot_bytes(const struct sf_layout *layout)
{
    (void)layout;
    return 8;
}

const struct sf_codec sf_codec_lowrank = { .name = "lowrank", .facts = SF_CAN_GROUP,
                                           .layout = lowrank_layout,
                                           .slot_bytes = lowrank_slot_bytes };
