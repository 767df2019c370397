/* kvshard/methods/xkv.c: adjacent layers share one low-rank token basis.
 *
 * Paper      Chang et al., xKV: Cross-Layer KV-Cache Compression (arXiv 2503.18893)
 * Kept       of a prompt of n tokens, for each group of group_size adjacent layers, the token bases
 *            A_K [n][rank_k] and A_V [n][rank_v], and of each lane its factors B_K [rank_k][k_dim]
 *            and B_V [rank_v][v_dim].  What is generated stays raw; with refactor_every, only the
 *            newest of it
 * Equations  X_K = keys before RoPE of all lanes of the group side by side, X_K ~ A_K B_K; X_V
 *            likewise.  A query at any position then meets
 *                k_j = RoPE_j(A_K[j] B_K),  s_j = q k_j / sqrt(d),  o = (sum_j p_j A_V[j]) B_V
 *            in one softmax with the raw slots: keys are rebuilt, values stay low-rank to the end
 * Selective  with reconstruction: selective a step reads what is raw, and of the basis the slots of
 *            budget_tokens / chunk_size chunks, per lane.  The tokens behind the sinks are cut into
 *            chunks; the last local_chunks and what is left over stay out of the basis.  With keys
 *            after RoPE,
 *                m_c = mean key of chunk c,  e_c = min over its keys of cos(k, m_c)
 *            the outlier_chunks of least e_c stay raw in this lane as well (their rows of the basis
 *            serve the other lanes), and m_c of the others are kept, as landmarks.  Each step reads
 *            the chunks of greatest max over query heads h of softmax_c(q_h m_c / sqrt(d)).  A
 *            prompt of fewer chunks than outliers and budget need is dense, and so are segments of
 *            the answer
 * When       at the end of the prompt, group by group, as soon as the group's last layer has run;
 *            the prompt itself is attended exactly.  Prompts shorter than min_prompt_tokens stay
 *            exact; `auto` is where the factors take as many bytes as what they replace:
 *                n (M_K + M_V - r_K - r_V) >= M_K r_K + M_V r_V,  M columns of X
 *            With rank_v 0 values stay exact: A_V and B_V go, M_V with them, and each lane keeps
 *            its n values in pages of their own.  A prompt of c chunks of s tokens that is read by
 *            chunks, o of which are outliers, has landmarks and raw slots to pay as well; values
 *            count for these though rank_v is 0:
 *                c s (M_K + M_V - r_K - r_V) >= M_K r_K + M_V r_V + o s (M_K + M_V) + (c - o) M_K
 *            With refactor_every, each time that so many tokens more have been generated, they are
 *            sealed: a segment with a basis and factors of its own, read as one more part of the
 *            same softmax and never factorised again, whether or not the prompt was.  What begins
 *            before the last sink stays raw
 * Crosses    heads and layers of a group, so a group lies inside one pipeline stage: groups are
 *            counted from the first layer of each, or listed in layer_groups, and one of fewer or
 *            more layers than group_size has ceil(rank * layers / group_size) columns.
 *            local_heads: nothing crosses ranks, each factorises its own heads with
 *            ceil(rank / ranks) columns.  replicated_basis: one basis of all heads, of which each
 *            tensor rank has a full copy beside the factors of its own heads; p copies have to pay:
 *                n (M_K + M_V - p (r_K + r_V)) >= M_K r_K + M_V r_V
 * State      landmarks of each lane, of k_dim elements and 8 bytes; the numbers of the slots that
 *            its next step reads, of 4 bytes
 * Ratio      group_size 4, ranks 384 and 576, Llama-3.1-8B (32 layers, 8 heads of 128): 1 / 7.59 at
 *            32,768 tokens, without the 8 bytes of each slot; selective 1 / 5.35 at 65,536 as the
 *            paper counts, without outliers and local chunks (ours has them)
 * Differs    the default reading is dense.  Singular values are split evenly over A and B, or A is
 *            scaled by sqrt(n), so that 16 bits hold it.  The random numbers are the same for every
 *            sequence.  Layers with a window or a latent stay exact.  Values are never rebuilt,
 *            picked ones neither.  Copies of a lane on several tensor ranks each pick by their own
 *            query heads.  refactor_every is not in the paper, which leaves what is generated raw.
 *            Not built: factors in integers, selective reading of what was generated, and on GPUs
 *            selective reading and replicated_basis */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/opt.h"
#include "kernels/kernels.h"
#include "kvshard/codec.h"
#include "kvshard/policy.h"
#include "model/desc.h"

enum { BASIS_TIER = 1 };
enum { DENSE, SELECTIVE };
enum { LOCAL_HEADS, REPLICATED_BASIS };
enum { AUTO_DTYPE, INT8 = 4, INT4 };
struct xkv_cfg {
    int32_t group_size, start_layer, end_layer, rank_k, rank_v, min_prompt_tokens, num_sink_tokens;
    int32_t how, power_iterations, oversample, factor_dtype, reconstruction, tp_mode;
    int32_t budget_tokens, chunk_size, local_chunks, outlier_chunks, refactor_every;
    int64_t seed;
    double tolerance;
    struct sf_opt_ranges groups;
};

static const char *const hows[] = { "randomized", "exact", "gram", NULL };
static const uint8_t how_of[] = { SF_FACTOR_RANDOM, SF_FACTOR_EXACT, SF_FACTOR_GRAM };
static const char *const dtypes[] = { "auto", "f32", "f16", "bf16", "int8", "int4", NULL };
static const uint8_t dtype_of[] = { 0, 1 + SF_F32, 1 + SF_F16, 1 + SF_BF16 };
static const char *const reconstructions[] = { "dense", "selective", NULL };
static const char *const tp_modes[] = { "local_heads", "replicated_basis", NULL };
#define PLACE(field) .offset = offsetof(struct xkv_cfg, field)
#define AT(field) PLACE(field), .built = 1
static const struct sf_opt xkv_opts[] = {
    { .key = "group_size", .type = SF_OPT_INT32, AT(group_size), .fallback = "4", .min = 1,
      .max = 1024, .unit = "layers", .help = "adjacent layers of one stage that share a basis" },
    { .key = "start_layer", .type = SF_OPT_INT32, AT(start_layer), .fallback = "0", .min = 0,
      .max = 100000, .help = "layers before it stay exact" },
    { .key = "end_layer", .type = SF_OPT_INT32, AT(end_layer), .fallback = "-1", .min = -1,
      .max = 100000, .help = "the last one; layers behind it stay exact; -1: all are taken" },
    { .key = "layer_groups", .type = SF_OPT_RANGES, AT(groups), .fallback = "auto",
      .allow_auto = 1, .min = 0, .max = 100000, .unit = "layers", .help = "the groups themselves,"
      " which no stage may cut; others stay exact; a group of l layers has l / group_size of the"
      " ranks" },
    { .key = "rank_k", .type = SF_OPT_INT32, AT(rank_k), .fallback = "384", .min = 1,
      .max = 1 << 20, .help = "columns of the keys' basis, of a group of group_size layers" },
    { .key = "rank_v", .type = SF_OPT_INT32, AT(rank_v), .fallback = "576", .min = 0,
      .max = 1 << 20, .help = "and of the values'; 0: these stay exact" },
    { .key = "svd.method", .type = SF_OPT_ENUM, AT(how), .fallback = "randomized",
      .choices = hows, .help = "how the factors are found" },
    { .key = "svd.power_iterations", .type = SF_OPT_INT32, AT(power_iterations), .fallback = "2",
      .min = 0, .max = 100, .help = "of the randomized way" },
    { .key = "svd.oversample", .type = SF_OPT_INT32, AT(oversample), .fallback = "0", .min = 0,
      .max = 1 << 16, .unit = "columns", .help = "of the randomized way, cut off at its end" },
    { .key = "svd.seed", .type = SF_OPT_INT64, AT(seed), .fallback = "1234",
      .help = "of the randomized way" },
    { .key = "min_prompt_tokens", .type = SF_OPT_INT32, AT(min_prompt_tokens), .fallback = "auto",
      .allow_auto = 1, .min = 1, .max = 1 << 24, .unit = "tokens",
      .help = "shorter prompts stay exact; auto: those that would take more bytes, raw chunks"
      " and landmarks counted" },
    { .key = "num_sink_tokens", .type = SF_OPT_INT32, AT(num_sink_tokens), .fallback = "0",
      .min = 0, .max = 1024, .aliases = "sink_tokens exact_first_tokens", .unit = "tokens",
      .help = "first tokens, which stay raw and outside of the basis; 0 is the paper's, 4 loses"
      " much less where attention rests on the first token (docs/quality.md)" },
    { .key = "factor_dtype", .type = SF_OPT_ENUM, AT(factor_dtype), .fallback = "auto",
      .choices = dtypes, .help = "of basis and factors; auto: kv_cache.dtype, bf16 where that"
      " is int8; integers are not built yet" },
    { .key = "reconstruction", .type = SF_OPT_ENUM, AT(reconstruction), .fallback = "dense",
      .choices = reconstructions, .help = "what a step reads of the basis: all, or the chunks"
      " that the query wants" },
    { .key = "pp_imbalance_tolerance", .type = SF_OPT_FLOAT, AT(tolerance), .fallback = "0.25",
      .min = 0, .max = 100, .help = "stages are cut between groups while the dearest is above the"
      " mean by no more than this part" },
    { .key = "tp_mode", .type = SF_OPT_ENUM, AT(tp_mode), .fallback = "local_heads",
      .choices = tp_modes, .help = "tensor ranks have bases of their own, or each a copy of one"
      " of all heads, which seldom pays beyond two ranks" },
    { .key = "refactor_every", .type = SF_OPT_INT32, AT(refactor_every), .fallback = "0",
      .min = 0, .max = 1 << 24, .unit = "tokens", .help = "so many generated tokens get a basis and"
      " factors of their own, each time they have come; 0: what is generated stays raw" },
    { .key = "budget_tokens", .type = SF_OPT_INT32, AT(budget_tokens), .fallback = "2048",
      .min = 1, .max = 1 << 24, .aliases = "token_budget cache_size sparse_budget",
      .unit = "tokens", .help = "selective: rebuilt in each step" },
    { .key = "chunk_size", .type = SF_OPT_INT32, AT(chunk_size), .fallback = "8", .min = 1,
      .max = 4096, .unit = "tokens", .help = "selective: chosen together" },
    { .key = "local_chunks", .type = SF_OPT_INT32, AT(local_chunks), .fallback = "4", .min = 0,
      .max = 1 << 20, .help = "selective: last chunks of the prompt, which stay exact" },
    { .key = "outlier_chunks", .type = SF_OPT_INT32, AT(outlier_chunks), .fallback = "48",
      .min = 0, .max = 1 << 20, .help = "selective: chunks that their mean tells least of, which"
      " stay exact" },
    { .key = NULL }
};

/* ---- groups --------------------------------------------------------------------------------- */
static int takes_part(const struct sf_setup *setup, const struct sf_shape *shape, int32_t l)
{
    const struct xkv_cfg *cfg = setup->cfg;
    const struct sf_layer *layer = &setup->layer[l];
    int acts = 0;
    for (int32_t h = 0; h < layer->groups; h++) acts |= shape->acts_on[layer->lane_first + h];
    return acts && l >= cfg->start_layer && (cfg->end_layer < 0 || l <= cfg->end_layer) &&
           layer->window == 0 && !layer->v_is_k_prefix && layer->k_per_group == 1 &&
           layer->v_per_group == 1;
}

/* Layer l and the one before it: of one geometry; in one stage. */
static int is_alike(const struct sf_setup *setup, int32_t l)
{
    const struct sf_layer *before = &setup->layer[l - 1], *layer = &setup->layer[l];
    return before->k_dim == layer->k_dim && before->v_dim == layer->v_dim &&
           before->rope_dim == layer->rope_dim;
}

static int is_together(const struct sf_setup *setup, int32_t l)
{
    return setup->stage == NULL || setup->stage[l - 1] == setup->stage[l];
}

static void leave_exact(const struct sf_setup *setup, struct sf_shape *shape, int32_t l)
{
    for (int32_t h = 0; h < setup->layer[l].groups; h++)
        shape->acts_on[setup->layer[l].lane_first + h] = 0;
}

/* ---- groups that are listed ----------------------------------------------------------------- */
static sf_status wrong(const struct sf_setup *setup, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static sf_status wrong(const struct sf_setup *setup, const char *format, ...)
{
    const struct sf_opt *row = sf_opt_find(xkv_opts, "layer_groups");
    const char *place = setup->place ? setup->place[row - xkv_opts] : NULL;
    char words[512];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    return SF_FAIL(SF_INVALID, "%s%smethod xkv: layer_groups %s", place ? place : "",
                   place ? ": error: " : "", words);
}

/* Why layer l cannot be in a group; NULL: it can. */
static const char *unfit(const struct sf_setup *setup, const struct sf_shape *shape, int32_t l)
{
    const struct sf_layer *layer = &setup->layer[l];
    int acts = 0;
    for (int32_t h = 0; h < layer->groups; h++) acts |= shape->acts_on[layer->lane_first + h];
    if (!acts) return "is not among the `layers:` of the entry";
    if (layer->window > 0) return "has a sliding window";
    return takes_part(setup, shape, l) ? NULL : "has attention of another kind";
}

static sf_status listed_group(const struct sf_setup *setup, struct sf_shape *shape, int16_t number,
                              int32_t first, int32_t last)
{
    if (last >= setup->layers)
        return wrong(setup, "has %d-%d, but the model has layers 0 to %d", first, last,
                     setup->layers - 1);
    for (int32_t l = first; l <= last; l++) {
        const char *why = unfit(setup, shape, l);
        if (why) return wrong(setup, "has %d-%d, but layer %d %s", first, last, l, why);
        if (l > first && !is_alike(setup, l))
            return wrong(setup, "has %d-%d, but the heads of layers %d and %d differ in size or"
                         " rotation", first, last, l - 1, l);
        if (l > first && !is_together(setup, l))
            return wrong(setup, "has %d-%d, but pipeline stages %d and %d meet between layers %d"
                         " and %d; list %d-%d and %d-%d, or change parallel.pipeline_layers", first,
                         last, setup->stage[l - 1], setup->stage[l], l - 1, l, first, l - 1, l,
                         last);
        shape->layer_group[l] = number;
    }
    return SF_OK;
}

static sf_status listed_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    const struct xkv_cfg *cfg = setup->cfg;
    if (cfg->groups.count == 0) return wrong(setup, "has no group, so nothing would be encoded");
    if (cfg->start_layer != 0 || cfg->end_layer != -1)
        return wrong(setup, "names the layers, so start_layer and end_layer have no say beside it");
    shape->imbalance_max = INFINITY;    /* else the layout would be refused */
    for (int32_t i = 0; i < cfg->groups.count; i++)
        SF_TRY(listed_group(setup, shape, (int16_t)i, cfg->groups.value[i].first,
                            cfg->groups.value[i].last));
    for (int32_t l = 0; l < setup->layers; l++)
        if (shape->layer_group[l] < 0) leave_exact(setup, shape, l);
    return SF_OK;
}

static sf_status xkv_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    const struct xkv_cfg *cfg = setup->cfg;
    int32_t last = cfg->end_layer < 0 ? setup->layers - 1 : cfg->end_layer, run = 0;
    int16_t groups = 0;
    if (last >= setup->layers || cfg->start_layer > last)
        return SF_FAIL(SF_INVALID, "method xkv takes layers %d to %d of a model that has %d",
                       cfg->start_layer, last, setup->layers);
    shape->imbalance_max = cfg->tolerance;
    if (cfg->groups.count != SF_OPT_AUTO) return listed_shape(setup, shape);
    for (int32_t l = 0; l < setup->layers; l++) {
        if (!takes_part(setup, shape, l)) {
            leave_exact(setup, shape, l);
            run = 0;
            continue;
        }
        if (run == 0 || run == cfg->group_size || !is_alike(setup, l) || !is_together(setup, l)) {
            SF_ASSERT(groups < INT16_MAX);
            groups++;
            run = 0;
        }
        shape->layer_group[l] = (int16_t)(groups - 1);
        run++;
    }
    return SF_OK;
}

/* ---- plan ----------------------------------------------------------------------------------- */
/* Layers of the longest group that is listed; 0: none is. */
static int32_t longest_listed(const struct xkv_cfg *cfg)
{
    int32_t most = 0;
    for (int32_t i = 0; i < cfg->groups.count; i++) {
        int32_t layers = cfg->groups.value[i].last - cfg->groups.value[i].first + 1;
        if (layers > most) most = layers;
    }
    return most;
}

static struct sf_tier tier_of(const struct sf_setup *setup)
{
    const struct xkv_cfg *cfg = setup->cfg;
    struct sf_lowrank lowrank = { .rank_k = cfg->rank_k, .rank_v = cfg->rank_v,
                                  .layers = cfg->group_size,
                                  .layers_most = longest_listed(cfg), .how = how_of[cfg->how],
                                  .dtype = dtype_of[cfg->factor_dtype], .seed = cfg->seed,
                                  .power_iterations = cfg->power_iterations,
                                  .oversample = cfg->oversample,
                                  .replicated = cfg->tp_mode == REPLICATED_BASIS };
    int64_t most_k = 0, most_v = 0;     /* columns of a whole group */
    for (int32_t l = 0; l < setup->layers; l++) {
        const struct sf_layer *layer = &setup->layer[l];
        int64_t lanes = (int64_t)layer->groups * cfg->group_size;
        if (lanes * layer->k_dim > most_k) most_k = lanes * layer->k_dim;
        if (lanes * layer->v_dim > most_v) most_v = lanes * layer->v_dim;
    }
    if (lowrank.rank_k > most_k) lowrank.rank_k = (int32_t)most_k;
    if (lowrank.rank_v > most_v) lowrank.rank_v = (int32_t)most_v;
    return sf_tier_lowrank(&lowrank);
}

/* Bytes of the layer's group, of it on one rank whatever the tensor ranks, or with all copies of
 * the basis: m of a token raw, and of these what factors replace; width of its rows of the basis;
 * factors.  What each slot has besides, in raw pages and in the basis, counts for nothing. */
struct price { int64_t m_k, m_v, replaced, width, factors; };

static struct price price_of(const struct sf_setup *setup, int32_t layer)
{
    const struct xkv_cfg *cfg = setup->cfg;
    const struct sf_layer *of = &setup->layer[layer];
    struct sf_tier tier = tier_of(setup);
    struct sf_lowrank_ask ask = { .setup = setup, .shape = setup->shape, .tier = &tier,
                                  .raw = { .dtype = setup->kv_dtype, .k_dim = of->k_dim,
                                           .v_dim = of->v_dim },
                                  .layer = layer, .ranks = 1, .tokens = INT32_MAX,
                                  .lanes = sf_group_lanes(setup, setup->shape, layer) };
    int32_t rank_k, rank_v;
    int64_t factor = (int64_t)sf_dtype_bytes(sf_lowrank_ranks(&ask, &rank_k, &rank_v));
    int64_t lanes = ask.lanes, raw = (int64_t)sf_dtype_bytes(setup->kv_dtype);
    int64_t scale = setup->kv_dtype == SF_INT8 ? (int64_t)sizeof(float) : 0;
    struct price price = { .m_k = lanes * (of->k_dim * raw + scale),
                           .m_v = lanes * (of->v_dim * raw + scale),
                           .width = ((int64_t)rank_k + rank_v) * factor };
    price.replaced = price.m_k + (rank_v > 0 ? price.m_v : 0);
    price.factors = lanes * (of->k_dim * (int64_t)rank_k + of->v_dim * (int64_t)rank_v) * factor;
    if (cfg->tp_mode == REPLICATED_BASIS)
        price.width *= of->groups < setup->tp_size ? of->groups : setup->tp_size;
    return price;
}

/* How often what is saved each time has to come; INT32_MAX: it never makes up for the price. */
static int32_t times(int64_t price, int64_t saved)
{
    return saved > 0 && price / saved < INT32_MAX ? (int32_t)((price + saved - 1) / saved)
                                                  : INT32_MAX;
}

/* The fewest tokens that have no more bytes with a basis than without. */
static int32_t least_tokens(const struct sf_setup *setup, int32_t layer)
{
    struct price price = price_of(setup, layer);
    return times(price.factors, price.replaced - price.width);
}

/* The fewest chunks of the basis, where it is read by chunks. */
static int32_t least_chunks(const struct sf_setup *setup, int32_t layer)
{
    const struct xkv_cfg *cfg = setup->cfg;
    struct price price = price_of(setup, layer);
    int64_t size = cfg->chunk_size, raw = size * (price.m_k + price.m_v);
    return times(price.factors + cfg->outlier_chunks * (raw - price.m_k),
                 size * (price.replaced - price.width) - price.m_k);
}

/* What is sealed has to pay as a prompt has to, in every group. */
static sf_status check_refactor(const struct sf_setup *setup)
{
    const struct xkv_cfg *cfg = setup->cfg;
    int32_t least = 0, worst = 0;
    if (cfg->refactor_every == 0 || cfg->min_prompt_tokens != SF_OPT_AUTO) return SF_OK;
    for (int32_t l = 0; l < setup->layers; l++) {
        int32_t of = setup->shape->layer_group[l] < 0 ? 0 : least_tokens(setup, l);
        if (of <= least) continue;
        least = of;
        worst = l;
    }
    if (cfg->refactor_every >= least) return SF_OK;
    if (least == INT32_MAX)
        return SF_FAIL(SF_INVALID, "method xkv: refactor_every %d, but with ranks %d and %d basis"
                       " and factors of layer %d never take less than what they replace",
                       cfg->refactor_every, cfg->rank_k, cfg->rank_v, worst);
    return SF_FAIL(SF_INVALID, "method xkv: refactor_every %d seals so few tokens that their basis"
                   " and factors would take more in layer %d; from %d on they do not (with"
                   " min_prompt_tokens set, any number is taken)", cfg->refactor_every, worst,
                   least);
}

static sf_status lacks(const char *what)
{
    return SF_FAIL(SF_UNSUPPORTED, "method xkv: %s is not built yet", what);
}

/* ---- selective: which chunks stay raw ------------------------------------------------------- */
/* Of one lane at the prompt's end; `exact` of all lanes of a group. */
struct room {
    struct sf_buf *device;              /* keys [tokens][k_dim] */
    float *key, *mark, *even;           /* the same on the host; [chunks][k_dim]; [chunks] */
    int32_t *outlier, *marked, *exact;  /* [chunks] each; [lanes][outliers][chunk_size] */
    struct sf_list *list;               /* [lanes] */
};

static int32_t most_lanes(const struct sf_setup *setup)
{
    const struct xkv_cfg *cfg = setup->cfg;
    int32_t most = 0, listed = longest_listed(cfg);
    int32_t layers = listed > 0 ? listed : cfg->group_size;
    for (int32_t l = 0; l < setup->layers; l++)
        if (setup->layer[l].groups > most) most = setup->layer[l].groups;
    return most * (layers < setup->layers ? layers : setup->layers);
}

static int32_t most_dim(const struct sf_setup *setup)
{
    int32_t most = 0;
    for (int32_t l = 0; l < setup->layers; l++)
        if (setup->layer[l].k_dim > most) most = setup->layer[l].k_dim;
    return most;
}

/* Slots of the outliers of one lane. */
static int64_t outlier_slots(const struct xkv_cfg *cfg, int32_t tokens)
{
    int64_t slots = (int64_t)cfg->outlier_chunks * cfg->chunk_size;
    return slots < tokens ? slots : tokens;
}

static int64_t room_bytes(const struct sf_setup *setup, int64_t lanes, int32_t tokens)
{
    const struct xkv_cfg *cfg = setup->cfg;
    int64_t chunks = tokens / cfg->chunk_size + 1, dim = most_dim(setup);
    return 4 * (2 * tokens * dim + chunks * (dim + 3) + lanes * outlier_slots(cfg, tokens)) +
           lanes * (int64_t)sizeof(struct sf_list);
}

static sf_status take_room(const struct sf_env *env, struct room *room)
{
    const struct sf_setup *setup = env->setup;
    const struct xkv_cfg *cfg = setup->cfg;
    size_t tokens = (size_t)setup->tokens_max, dim = (size_t)most_dim(setup);
    size_t chunks = tokens / (size_t)cfg->chunk_size + 1, lanes = (size_t)most_lanes(setup);
    room->device = sf_scratch_buf(env, tokens * dim * sizeof(float));
    room->key = sf_scratch(env, tokens * dim * sizeof(float));
    room->mark = sf_scratch(env, chunks * dim * sizeof(float));
    room->even = sf_scratch(env, chunks * sizeof(float));
    room->outlier = sf_scratch(env, chunks * sizeof(int32_t));
    room->marked = sf_scratch(env, chunks * sizeof(int32_t));
    room->exact = sf_scratch(env, lanes * (size_t)outlier_slots(cfg, setup->tokens_max) *
                                      sizeof(int32_t));
    room->list = sf_scratch(env, lanes * sizeof *room->list);
    if (!room->device || !room->key || !room->mark || !room->even || !room->outlier ||
        !room->marked || !room->exact || !room->list)
        return SF_FAIL(SF_NO_MEMORY, "no memory for the keys of %d slots", setup->tokens_max);
    return SF_OK;
}

/* The mean key of a chunk, and the least cosine that a key of it has with that. */
static float landmark(const float *key, int32_t keys, int32_t dim, float *mean)
{
    double least = 1;
    for (int32_t e = 0; e < dim; e++) {
        double sum = 0;
        for (int32_t j = 0; j < keys; j++) sum += (double)key[j * dim + e];
        mean[e] = (float)(sum / keys);
    }
    for (int32_t j = 0; j < keys; j++) {
        double dot = 0, mine = 0, theirs = 0;
        for (int32_t e = 0; e < dim; e++) {
            double k = (double)key[j * dim + e], m = (double)mean[e];
            dot += k * m;
            mine += k * k;
            theirs += m * m;
        }
        double cosine = mine > 0 && theirs > 0 ? dot / sqrt(mine * theirs) : 0;
        if (!(cosine >= least)) least = cosine;
    }
    return (float)least;
}

/* Chunks of the lane that its landmarks tell least of stay raw, the others have landmarks. */
static sf_status mark_lane(const struct sf_env *env, const struct sf_lane *lane,
                           struct sf_list slots, const struct room *room, int32_t *exact,
                           struct sf_list *exact_out, struct sf_answer *answer)
{
    const struct xkv_cfg *cfg = env->setup->cfg;
    int32_t dim = env->setup->layer[lane->layer].k_dim, size = cfg->chunk_size;
    int32_t chunks = slots.n / size, n = 0, marks = 0;
    size_t floats = (size_t)slots.n * (size_t)dim;
    SF_TRY(sf_lane_read(lane, slots, 0, room->device, NULL));
    env->k->download(env->device, room->key, room->device->data, floats * sizeof(float));
    for (int32_t c = 0; c < chunks; c++)
        room->even[c] = -landmark(room->key + (size_t)c * (size_t)(size * dim), size, dim,
                                  room->mark + (size_t)c * (size_t)dim);
    int32_t outliers = sf_top_k(room->even, chunks, cfg->outlier_chunks, room->outlier);
    for (int32_t c = 0, i = 0; c < chunks; c++) {
        if (i < outliers && room->outlier[i] == c) {
            for (int32_t j = 0; j < size; j++) exact[n++] = slots.ids[c * size + j];
            i++;
            continue;
        }
        memmove(room->mark + (size_t)marks * (size_t)dim, room->mark + (size_t)c * (size_t)dim,
                (size_t)dim * sizeof(float));
        room->marked[marks++] = c;
    }
    *exact_out = (struct sf_list){ .ids = exact, .n = n };
    return sf_edit_marks(answer, lane, &(struct sf_marks){ marks, room->marked, room->mark });
}

static sf_status mark_span(const struct sf_env *env, const struct sf_span *span,
                           struct sf_list slots, struct room *room, struct sf_answer *answer)
{
    const struct xkv_cfg *cfg = env->setup->cfg;
    int32_t each = cfg->outlier_chunks * cfg->chunk_size;
    for (int32_t l = 0; l < span->lanes; l++)
        SF_TRY(mark_lane(env, &span->lane[l], slots, room, room->exact + (size_t)l * (size_t)each,
                         &room->list[l], answer));
    return SF_OK;
}

static sf_status xkv_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    const struct xkv_cfg *cfg = setup->cfg;
    if (cfg->factor_dtype >= INT8) return lacks(cfg->factor_dtype == INT8 ? "factor_dtype: int8"
                                                                          : "factor_dtype: int4");
    SF_TRY(check_refactor(setup));
    plan->whens = 1u << SF_AT_PREFILL_END;
    if (cfg->refactor_every > 0) plan->whens |= 1u << SF_AT_INTERVAL;
    plan->every_tokens = cfg->refactor_every;
    plan->every_from_prompt = 1;
    plan->edits = SF_EDITS_GROUP;
    plan->tiers = BASIS_TIER + 1;
    plan->tier[BASIS_TIER] = tier_of(setup);
    plan->sink_tokens = cfg->num_sink_tokens;
    plan->prefix = SF_PREFIX_KV;
    plan->scratch_bytes = (int64_t)setup->tokens_max * (int64_t)sizeof(int32_t);
    if (cfg->reconstruction != SELECTIVE) return SF_OK;
    if (cfg->budget_tokens < cfg->chunk_size)
        return SF_FAIL(SF_INVALID, "method xkv: budget_tokens %d is less than a chunk_size of %d",
                       cfg->budget_tokens, cfg->chunk_size);
    if (setup->tokens_max / cfg->chunk_size > SF_LANDMARKS_MAX)
        return SF_FAIL(SF_INVALID, "method xkv: %d tokens in chunks of %d are more than %d"
                       " landmarks; double chunk_size", setup->tokens_max, cfg->chunk_size,
                       SF_LANDMARKS_MAX);
    plan->needs = SF_NEED_SELECT_DECODE;
    plan->mark_slots = cfg->chunk_size;
    plan->pick_slots = cfg->budget_tokens / cfg->chunk_size * cfg->chunk_size;
    plan->scratch_bytes += room_bytes(setup, most_lanes(setup), setup->tokens_max);
    return SF_OK;
}

/* Chunks of the basis where it is read by chunks; 0: as it is.  What is behind them stays raw. */
static int32_t chunks_of(const struct xkv_cfg *cfg, int32_t encoded_tokens)
{
    int32_t chunks = encoded_tokens / cfg->chunk_size - cfg->local_chunks;
    int64_t least = (int64_t)cfg->outlier_chunks + cfg->budget_tokens / cfg->chunk_size;
    return cfg->reconstruction == SELECTIVE && chunks >= least ? chunks : 0;
}

/* Tokens of a prompt that come into the basis of the layer's group: the same on every rank, so the
 * length at which it pays is that of the group on one rank, or of all copies of its basis (ranks
 * that share a head are as dear as one). */
static int32_t encoded(const struct sf_setup *setup, int32_t layer, int32_t prompt)
{
    const struct xkv_cfg *cfg = setup->cfg;
    int32_t tokens = prompt - cfg->num_sink_tokens, least = cfg->min_prompt_tokens;
    if (tokens < 1) return 0;
    int32_t chunks = chunks_of(cfg, tokens);
    if (least == SF_OPT_AUTO && chunks > 0)
        return chunks >= least_chunks(setup, layer) ? tokens : 0;
    if (least == SF_OPT_AUTO) least = least_tokens(setup, layer);
    return prompt >= least ? tokens : 0;
}

/* Generated tokens that have been sealed by now.  An interval that begins before the last sink, in
 * a prompt shorter than those, never is. */
static int32_t sealed(const struct xkv_cfg *cfg, int32_t prompt, int32_t tokens)
{
    int32_t every = cfg->refactor_every, sinks = cfg->num_sink_tokens;
    if (every == 0 || tokens <= prompt) return 0;
    int32_t left_out = prompt < sinks ? (sinks - prompt + every - 1) / every : 0;
    int32_t intervals = (tokens - prompt) / every - left_out;
    return intervals > 0 ? intervals * every : 0;
}

static sf_status xkv_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                               struct sf_foot *foot)
{
    const struct xkv_cfg *cfg = setup->cfg;
    int32_t gone = encoded(setup, spot->layer, spot->prompt), chunks = chunks_of(cfg, gone);
    int32_t outliers = 0;
    if (chunks > 0) {
        gone = chunks * cfg->chunk_size;
        outliers = cfg->outlier_chunks * cfg->chunk_size;
        foot->marks = chunks - cfg->outlier_chunks;
    }
    gone += sealed(cfg, spot->prompt, spot->tokens);
    foot->slots_lo[0] = foot->slots_hi[0] = spot->tokens - gone + outliers;
    foot->slots_lo[BASIS_TIER] = foot->slots_hi[BASIS_TIER] = gone;
    return SF_OK;
}

/* The prompt's tokens behind the sinks; of a prompt that is read by chunks, those of whole ones. */
static sf_status compress_prompt(const struct sf_env *env, const struct sf_span *span,
                                 int32_t *ids, struct room *room, struct sf_answer *answer)
{
    const struct xkv_cfg *cfg = env->setup->cfg;
    const struct sf_lane *lane = &span->lane[0];
    int32_t most = encoded(env->setup, lane->layer, span->prompt), n = 0;
    int32_t chunks = chunks_of(cfg, most);
    if (most == 0) return SF_OK;
    if (chunks > 0) most = chunks * cfg->chunk_size;
    for (int32_t s = 0; s < lane->slots && n < most; s++)
        if (lane->pos[s] >= cfg->num_sink_tokens) ids[n++] = s;
    struct sf_list slots = { .ids = ids, .n = n };
    if (chunks > 0 && !room->list) SF_TRY(take_room(env, room));
    if (chunks > 0) SF_TRY(mark_span(env, span, slots, room, answer));
    return sf_edit_group(answer, span, slots, BASIS_TIER, chunks > 0 ? room->list : NULL);
}

/* The newest interval of the answer. */
static sf_status seal(const struct sf_env *env, const struct sf_span *span, int32_t *ids,
                      struct sf_answer *answer)
{
    const struct xkv_cfg *cfg = env->setup->cfg;
    const struct sf_lane *lane = &span->lane[0];
    int32_t first = span->tokens - cfg->refactor_every, n = 0;
    if (first < cfg->num_sink_tokens) return SF_OK;
    for (int32_t s = 0; s < lane->slots; s++)
        if (lane->pos[s] >= first) ids[n++] = s;
    struct sf_list slots = { .ids = ids, .n = n };
    return sf_edit_group(answer, span, slots, BASIS_TIER, NULL);
}

static sf_status xkv_compress(const struct sf_env *env, enum sf_when when,
                              const struct sf_batch *batch, struct sf_answer *answer)
{
    int32_t *ids = sf_scratch(env, (size_t)env->setup->tokens_max * sizeof *ids);
    if (ids == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d slots", env->setup->tokens_max);
    struct room room = { 0 };
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        if (when == SF_AT_INTERVAL) SF_TRY(seal(env, span, ids, answer));
        else SF_TRY(compress_prompt(env, span, ids, &room, answer));
    }
    return SF_OK;
}

/* The chunks that the queries give most, of every lane that has landmarks. */
static sf_status xkv_select(const struct sf_env *env, const struct sf_batch *batch,
                            struct sf_answer *answer)
{
    const struct xkv_cfg *cfg = env->setup->cfg;
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            if (lane->marks > 0)
                SF_TRY(sf_pick_chunks(answer, lane, cfg->budget_tokens / cfg->chunk_size));
        }
    return SF_OK;
}

static const char *xkv_idle(const struct sf_setup *setup, const struct sf_spot *spot)
{
    const struct xkv_cfg *cfg = setup->cfg;
    int by_hand = cfg->min_prompt_tokens != SF_OPT_AUTO;
    if (encoded(setup, spot->layer, spot->prompt) > 0) return NULL;
    if (sealed(cfg, spot->prompt, spot->tokens) > 0) return NULL;
    if (cfg->refactor_every > 0)
        return by_hand ? "prompts shorter than min_prompt_tokens, answers than refactor_every"
                       : "prompts so short that a basis and its factors would take more, and"
                         " answers shorter than refactor_every";
    return by_hand ? "prompts shorter than min_prompt_tokens"
                   : "prompts so short that a basis and its factors would take more";
}

static const struct sf_policy_ops xkv_policy = {
    .plan = xkv_plan, .footprint = xkv_footprint, .shape = xkv_shape, .idle = xkv_idle,
    .select = xkv_select, .compress = xkv_compress };

extern const struct sf_method sf_method_xkv;
const struct sf_method sf_method_xkv = {
    .name = "xkv", .paper = "Chang et al., 2025 (arXiv 2503.18893)", .opts = xkv_opts,
    .cfg_bytes = sizeof(struct xkv_cfg), .policy = &xkv_policy };
