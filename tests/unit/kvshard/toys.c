/* tests/unit/kvshard/toys.c: toys that the store serves.  What they keep is simple; how they ask
 * for it is what a real method of the family would do. */
#include "tests/unit/kvshard/toys.h"

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

/* Keys of a lane on the host, [slots][k_dim], in step memory; NULL when there is none. */
static const float *keys_of(const struct sf_env *env, const struct sf_lane *lane)
{
    int32_t k_dim = env->setup->layer[lane->layer].k_dim;
    size_t bytes = (size_t)lane->slots * (size_t)k_dim * sizeof(float);
    struct sf_buf *device = sf_scratch_buf(env, bytes);
    float *host = sf_scratch(env, bytes);
    if (!device || !host) return NULL;
    if (sf_lane_read(lane, (struct sf_list){ .n = -1 }, 0, device, NULL) != SF_OK) return NULL;
    env->k->download(env->device, host, device->data, bytes);
    env->k->sync(env->device);
    return host;
}

static float norm_of(const float *key, int32_t k_dim)
{
    float sum = 0;
    for (int32_t e = 0; e < k_dim; e++) {
        float square = key[e] * key[e];
        sum += square;
    }
    return sum;
}

static void slots_are(struct sf_foot *foot, int32_t lo, int32_t hi, int32_t trigger, int32_t keep)
{
    foot->slots_lo[0] = lo;
    foot->slots_hi[0] = hi;
    foot->slots_trigger = trigger;
    foot->slots_keep = keep;
}

static int32_t at_most(int32_t a, int32_t b) { return a < b ? a : b; }

/* ---- score and evict ------------------------------------------------------------------------ */
int32_t toy_norm_keep(int32_t head_global) { return 8 + 4 * head_global; }

static sf_status norm_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL;
    plan->edits = SF_EDITS_KEEP;
    plan->sink_tokens = TOY_SINKS;
    plan->tail_tokens = TOY_TAIL;
    plan->scratch_bytes = 16 * setup->tokens_max * setup->layer[0].k_dim * 8;
    return SF_OK;
}

static sf_status norm_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                struct sf_foot *foot)
{
    int32_t keep = toy_norm_keep(spot->head_global), trigger = keep + TOY_NORM_GROWTH;
    (void)setup;
    slots_are(foot, at_most(spot->tokens, keep), at_most(spot->tokens, trigger), trigger, keep);
    return SF_OK;
}

static sf_status norm_score(const struct sf_env *env, const struct sf_span *span, float *out)
{
    for (int32_t l = 0; l < span->lanes; l++) {
        const struct sf_lane *lane = &span->lane[l];
        int32_t k_dim = env->setup->layer[lane->layer].k_dim;
        const float *key = keys_of(env, lane);
        if (!key) return SF_FAIL(SF_NO_MEMORY, "toy_norm: no scratch");
        for (int32_t s = 0; s < lane->slots; s++) *out++ = norm_of(key + s * k_dim, k_dim);
    }
    return SF_OK;
}

static const struct sf_policy_ops norm_ops = { .plan = norm_plan, .footprint = norm_footprint,
                                               .score = norm_score };
const struct sf_method toy_norm = { .name = "toy_norm", .policy = &norm_ops };

/* ---- building a mix ------------------------------------------------------------------------- */
enum { MIX_SLOTS = 512 };
struct mix_room {
    int32_t ptr[MIX_SLOTS + 2], src[MIX_SLOTS], pos[MIX_SLOTS];
    float weight[MIX_SLOTS], bias[MIX_SLOTS];
    uint32_t aux[MIX_SLOTS];
    struct sf_mix mix;
};

static void mix_begin(struct mix_room *room, int flags)
{
    room->mix = (struct sf_mix){ .flags = flags, .ptr = room->ptr, .src = room->src,
                                 .k_weight = room->weight, .v_weight = room->weight,
                                 .pos = room->pos, .bias = room->bias };
    room->ptr[0] = room->ptr[1] = 0;
}

static void mix_add(struct mix_room *room, int32_t slot, float weight)
{
    int32_t j = room->ptr[room->mix.slots + 1]++;
    room->src[j] = slot;
    room->weight[j] = weight;
}

static void mix_end(struct mix_room *room, int32_t pos, float bias, uint32_t aux)
{
    int32_t i = room->mix.slots++;
    room->pos[i] = pos;
    room->bias[i] = bias;
    room->aux[i] = aux;
    room->ptr[i + 2] = room->ptr[i + 1];
}

static void mix_keep(struct mix_room *room, const struct sf_lane *lane, int32_t s, uint32_t aux)
{
    mix_add(room, s, 1);
    mix_end(room, lane->pos[s], lane->bias[s], aux);
}

/* ---- compensation --------------------------------------------------------------------------- */
static sf_status fold_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL;
    plan->edits = SF_EDITS_MIX;
    plan->sink_tokens = TOY_FOLD_SINKS;
    plan->tail_tokens = TOY_FOLD_RECENT;
    plan->scratch_bytes = 16 * (int64_t)sizeof(struct mix_room);
    return SF_OK;
}

static sf_status fold_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                struct sf_foot *foot)
{
    int32_t keep = TOY_FOLD_SINKS + 1 + TOY_FOLD_RECENT, trigger = keep + TOY_FOLD_TOKENS;
    (void)setup;
    slots_are(foot, at_most(spot->tokens, keep), at_most(spot->tokens, trigger), trigger, keep);
    return SF_OK;
}

static sf_status fold_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    for (int32_t l = 0; l < setup->layers; l++) {
        int32_t first = setup->layer[l].lane_first;
        for (int32_t h = 0; h < setup->layer[l].groups; h++)
            shape->head_class[first + h] = h == 0 && setup->layer[l].groups > 1
                                               ? SF_HEAD_RETRIEVAL : SF_HEAD_OTHER;
        if (shape->head_class[first] == SF_HEAD_RETRIEVAL) shape->acts_on[first] = 0;
    }
    return SF_OK;
}

/* k^ = sum n_j k_j / sum n_j over what lies between sinks and window; n_j is e^bias. */
static sf_status fold_lane(const struct sf_env *env, const struct sf_span *span,
                           const struct sf_lane *lane, struct sf_answer *answer)
{
    struct mix_room *room = sf_scratch(env, sizeof *room);
    int32_t from = TOY_FOLD_SINKS, to = 0;
    float tokens = 0;
    if (!room) return SF_FAIL(SF_NO_MEMORY, "toy_fold: no scratch");
    if (lane->head_class != SF_HEAD_OTHER || lane->slots <= lane->slots_keep) return SF_OK;
    while (to < lane->slots && lane->pos[to] < span->tokens - TOY_FOLD_RECENT) to++;
    for (int32_t s = from; s < to; s++) tokens += roundf(expf(lane->bias[s]));
    mix_begin(room, SF_MIX_FOLD);
    for (int32_t s = 0; s < from; s++) mix_keep(room, lane, s, 0);
    for (int32_t s = from; s < to; s++) mix_add(room, s, roundf(expf(lane->bias[s])) / tokens);
    mix_end(room, lane->pos[from], logf(tokens), 0);
    for (int32_t s = to; s < lane->slots; s++) mix_keep(room, lane, s, 0);
    return sf_edit_mix(answer, lane, &room->mix);
}

static sf_status fold_compress(const struct sf_env *env, enum sf_when when,
                               const struct sf_batch *batch, struct sf_answer *answer)
{
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            if (when == SF_AT_FULL && lane->slots < lane->slots_trigger) continue;
            SF_TRY(fold_lane(env, &batch->span[i], lane, answer));
        }
    return SF_OK;
}

static const struct sf_policy_ops fold_ops = { .plan = fold_plan, .footprint = fold_footprint,
                                               .shape = fold_shape, .compress = fold_compress };
const struct sf_method toy_fold = { .name = "toy_fold", .policy = &fold_ops };

/* ---- merging pairs -------------------------------------------------------------------------- */
static sf_status merge_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL;
    plan->edits = SF_EDITS_MIX;
    plan->sink_tokens = TOY_SINKS;
    plan->tail_tokens = TOY_TAIL;
    plan->aux_bytes = sizeof(uint32_t); /* tokens that the slot stands for; 0 is one */
    plan->scratch_bytes = 16 * (int64_t)sizeof(struct mix_room);
    return SF_OK;
}

static sf_status merge_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                 struct sf_foot *foot)
{
    int32_t trigger = TOY_MERGE_BUDGET + TOY_MERGE_GROWTH;
    (void)setup;
    slots_are(foot, at_most(spot->tokens, TOY_MERGE_BUDGET), at_most(spot->tokens, trigger),
              trigger, TOY_MERGE_BUDGET);
    return SF_OK;
}

/* The oldest slots behind the sinks merge into runs of `run`, until the lane fits. */
static sf_status merge_lane(const struct sf_env *env, const struct sf_lane *lane,
                            struct sf_answer *answer)
{
    struct mix_room *room = sf_scratch(env, sizeof *room);
    const uint32_t *count = lane->aux;
    int32_t over = lane->slots - lane->slots_keep, run = 2, s = TOY_SINKS;
    if (!room) return SF_FAIL(SF_NO_MEMORY, "toy_merge: no scratch");
    while ((lane->slots - TOY_SINKS - TOY_TAIL) / run * (run - 1) < over) run++;
    mix_begin(room, 0);
    for (int32_t i = 0; i < TOY_SINKS; i++) mix_keep(room, lane, i, count[i]);
    while (over > 0) {
        int32_t n = at_most(run, over + 1);
        uint32_t tokens = 0;
        for (int32_t j = 0; j < n; j++) tokens += count[s + j] ? count[s + j] : 1;
        for (int32_t j = 0; j < n; j++)
            mix_add(room, s + j, (float)(count[s + j] ? count[s + j] : 1) / (float)tokens);
        mix_end(room, lane->pos[s], logf((float)tokens), tokens);
        s += n;
        over -= n - 1;
    }
    for (; s < lane->slots; s++) mix_keep(room, lane, s, count[s]);
    room->mix.aux = room->aux;
    return sf_edit_mix(answer, lane, &room->mix);
}

static sf_status merge_compress(const struct sf_env *env, enum sf_when when,
                                const struct sf_batch *batch, struct sf_answer *answer)
{
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            if (when == SF_AT_FULL ? lane->slots >= lane->slots_trigger
                                   : lane->slots > lane->slots_trigger)
                SF_TRY(merge_lane(env, lane, answer));
        }
    return SF_OK;
}

static const struct sf_policy_ops merge_ops = { .plan = merge_plan, .footprint = merge_footprint,
                                                .compress = merge_compress };
const struct sf_method toy_merge = { .name = "toy_merge", .policy = &merge_ops };

/* ---- one choice for all heads --------------------------------------------------------------- */
static sf_status shared_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    plan->whens = 1u << SF_AT_INTERVAL;
    plan->edits = SF_EDITS_KEEP;
    plan->every_tokens = TOY_SHARED_EVERY;
    plan->every_from_prompt = 1;
    plan->tail_tokens = TOY_TAIL;
    plan->reduce_bytes = 8 * setup->tokens_max;
    plan->scratch_bytes = 16 * setup->tokens_max * (setup->layer[0].k_dim * 8 + 24);
    return SF_OK;
}

static sf_status shared_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                  struct sf_foot *foot)
{
    int32_t since = (spot->tokens - spot->prompt) % TOY_SHARED_EVERY;
    int32_t slots = spot->tokens - spot->prompt < TOY_SHARED_EVERY
                        ? spot->tokens : at_most(spot->tokens - since, TOY_SHARED_KEEP) + since;
    (void)setup;
    slots_are(foot, slots, slots, 0, 0);
    return SF_OK;
}

static sf_status shared_compress(const struct sf_env *env, enum sf_when when,
                                 const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)when;
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        int32_t slots = span->lane[0].slots, keep = at_most(slots, TOY_SHARED_KEEP);
        int64_t *sum = sf_scratch(env, (size_t)slots * sizeof *sum);
        float *score = sf_scratch(env, (size_t)slots * sizeof *score);
        int32_t *ids = sf_scratch(env, (size_t)slots * sizeof *ids);
        if (!sum || !score || !ids) return SF_FAIL(SF_NO_MEMORY, "toy_shared: no scratch");
        memset(sum, 0, (size_t)slots * sizeof *sum);
        for (int32_t l = 0; l < span->lanes; l++) {
            int32_t k_dim = env->setup->layer[span->lane[l].layer].k_dim;
            const float *key = keys_of(env, &span->lane[l]);
            if (!key) return SF_FAIL(SF_NO_MEMORY, "toy_shared: no scratch");
            for (int32_t s = 0; s < slots && span->lane[l].replica == 0; s++)
                sum[s] += sf_fixed((double)norm_of(key + s * k_dim, k_dim));
        }
        SF_TRY(sf_reduce_i64(env, sum, slots, SF_FOLD_SUM));
        for (int32_t s = 0; s < slots; s++)
            score[s] = span->lane[0].pos[s] >= span->tokens - TOY_TAIL ? INFINITY : (float)sum[s];
        struct sf_list list = { .ids = ids, .n = sf_top_k(score, slots, keep, ids) };
        for (int32_t l = 0; l < span->lanes; l++)
            SF_TRY(sf_edit_keep(answer, &span->lane[l], list));
    }
    return SF_OK;
}

static const struct sf_policy_ops shared_ops = { .plan = shared_plan,
                                                 .footprint = shared_footprint,
                                                 .compress = shared_compress };
const struct sf_method toy_shared = { .name = "toy_shared", .policy = &shared_ops };

/* ---- at every prompt chunk ------------------------------------------------------------------ */
static sf_status chunks_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    SF_TRY(merge_plan(setup, plan));
    plan->whens = 1u << SF_AT_PREFILL_CHUNK | 1u << SF_AT_PREFILL_END;
    plan->chunk_tokens = TOY_CHUNK;
    return SF_OK;
}

static sf_status chunks_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                  struct sf_foot *foot)
{
    int32_t end = at_most(spot->prompt, TOY_CHUNK_KEEP);
    (void)setup;
    slots_are(foot, end + spot->tokens - spot->prompt, end + spot->tokens - spot->prompt, 0,
              TOY_CHUNK_KEEP);
    foot->slots_peak = at_most(spot->prompt, TOY_CHUNK_KEEP + TOY_CHUNK);
    return SF_OK;
}

static sf_status chunks_compress(const struct sf_env *env, enum sf_when when,
                                 const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)when;
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            if (lane->slots > lane->slots_keep) SF_TRY(merge_lane(env, lane, answer));
        }
    return SF_OK;
}

static const struct sf_policy_ops chunks_ops = { .plan = chunks_plan,
                                                 .footprint = chunks_footprint,
                                                 .compress = chunks_compress };
const struct sf_method toy_chunks = { .name = "toy_chunks", .policy = &chunks_ops };

/* ---- the newest, fewer under pressure -------------------------------------------------------- */
static sf_status recent_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL | 1u << SF_AT_PRESSURE;
    plan->edits = SF_EDITS_KEEP;
    plan->sink_tokens = TOY_SINKS;
    plan->tail_tokens = TOY_TAIL;
    plan->prefix = SF_PREFIX_KV;
    return SF_OK;
}

static sf_status recent_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                  struct sf_foot *foot)
{
    int32_t keep = TOY_RECENT_KEEP >> (spot->tightened < 4 ? spot->tightened : 4);
    (void)setup;
    if (keep < TOY_SINKS + TOY_TAIL) keep = TOY_SINKS + TOY_TAIL;
    int32_t trigger = keep + TOY_RECENT_GROWTH;
    slots_are(foot, at_most(spot->tokens, keep), at_most(spot->tokens, trigger), trigger, keep);
    return SF_OK;
}

static const struct sf_policy_ops recent_ops = { .plan = recent_plan,
                                                 .footprint = recent_footprint };
const struct sf_method toy_recent = { .name = "toy_recent", .policy = &recent_ops };
