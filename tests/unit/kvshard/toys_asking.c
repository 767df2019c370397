/* tests/unit/kvshard/toys_asking.c: a toy for each method of the list, with its asks and calls. */
#include "tests/unit/kvshard/toys.h"

#include <string.h>

/* Each touches the calls that its method will need; what it decides is beside the point. */
static sf_status footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                           struct sf_foot *foot)
{
    (void)setup;
    foot->slots_hi[0] = spot->tokens;
    return SF_OK;
}

static const struct sf_list everything = { .n = -1 };

static void two_tiers(struct sf_plan *plan, const char *codec, int32_t block_slots)
{
    plan->tiers = 2;
    plan->tier[0].codec = "raw";
    plan->tier[1] = (struct sf_tier){ .codec = codec, .block_slots = block_slots };
}

/* ---- LoopServe: lines of the prompt, a working set, turns ----------------------------------- */
static sf_status loopserve_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->needs = SF_NEED_SELECT_PREFILL | SF_NEED_SELECT_DECODE;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_INTERVAL | 1u << SF_AT_TURN_END;
    plan->every_tokens = 16;
    plan->every_from_prompt = 1;
    plan->watch[0] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_SUM,
                                        .flags = SF_WATCH_STORED | SF_WATCH_RESET,
                                        .prompt_rows = 32, .decode_rows = 16 };
    plan->edits = SF_EDITS_KEEP;
    plan->tiers = 1;
    plan->tier[0] = (struct sf_tier){ .codec = "raw", .v_place = SF_ON_HOST };
    return SF_OK;
}
static sf_status loopserve_select(const struct sf_env *env, const struct sf_batch *batch,
                                  struct sf_answer *answer)
{
    struct sf_watch apart = { .fold = SF_FOLD_NONE, .head_fold = SF_FOLD_NONE };
    const struct sf_span *span = batch->span;
    int32_t rows[2] = { 0, span->rows - 1 }, lines[2] = { 0, 1 };
    struct sf_lines pick = { { lines, NULL, 2 }, { lines, NULL, 2 } };
    struct sf_buf *probe = sf_scratch_buf(env, 4096);
    SF_TRY(sf_probe(span, span->lane, (struct sf_list){ rows, NULL, 2 }, &apart, probe));
    return sf_pick_lines(answer, span->lane, 0, &pick);
}
static sf_status loopserve_compress(const struct sf_env *env, enum sf_when when,
                                    const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_lane *lane = batch->span->lane;
    int32_t ids[8], n = sf_top_k(lane->mass[0], lane->slots, 8, ids);
    (void)env;
    if (when == SF_AT_TURN_END && batch->span->turn > 0) return SF_OK;
    return sf_pick_slots(answer, lane, -1, (struct sf_list){ ids, NULL, n });
}

/* ---- KVCrush: refines a scorer -------------------------------------------------------------- */
static sf_status kvcrush_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    if (setup->inner) *plan = *setup->inner;
    plan->needs |= SF_NEED_INNER;
    plan->whens |= 1u << SF_AT_PREFILL_END;
    plan->edits = SF_EDITS_KEEP;
    plan->reduce_bytes = 1024;
    return SF_OK;
}
static sf_status kvcrush_compress(const struct sf_env *env, enum sf_when when,
                                  const struct sf_batch *batch, struct sf_answer *answer)
{
    float *score = sf_scratch(env, (size_t)batch->span->lane->slots * sizeof *score);
    int64_t distance[4] = { 0 };
    (void)when;
    SF_TRY(sf_inner_score(env, batch->span, score));
    SF_TRY(sf_reduce_i64(env, distance, 4, SF_FOLD_SUM));
    return sf_edit_keep(answer, batch->span->lane, everything);
}

/* ---- GEAR: blocks of a codec ---------------------------------------------------------------- */
static sf_status gear_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    two_tiers(plan, "gear", 64);
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_INTERVAL;
    plan->every_tokens = 64;
    plan->edits = SF_EDITS_TIER;
    return SF_OK;
}
static sf_status gear_compress(const struct sf_env *env, enum sf_when when,
                               const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)env; (void)when;
    return sf_edit_tier(answer, batch->span->lane, everything, 1);
}

/* ---- MiKV: demotion, a balancer from queries ------------------------------------------------ */
static sf_status mikv_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    SF_TRY(gear_plan(setup, plan));
    plan->tier[1].codec = "quant";
    plan->every_tokens = 1;
    plan->needs = SF_NEED_Q_MAX;
    plan->watch[0] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_SUM };
    return SF_OK;
}
static sf_status mikv_compress(const struct sf_env *env, enum sf_when when,
                               const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_lane *lane = batch->span->lane;
    struct sf_buf *beta = sf_scratch_buf(env, 256);
    int32_t worst = 0;
    for (int32_t s = 1; s < lane->slots; s++)
        if (lane->tier[s] == 0 && lane->mass[0][s] < lane->mass[0][worst]) worst = s;
    if (when == SF_AT_PREFILL_END && lane->q_max[0] > 0)
        SF_TRY(sf_edit_side(answer, lane, 1, beta));
    return sf_edit_tier(answer, lane, (struct sf_list){ &worst, NULL, 1 }, 1);
}

/* ---- MiniCache and xKV: layers in a group --------------------------------------------------- */
static sf_status pairs_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    for (int32_t l = 1; l < setup->layers; l += 2) {
        if (setup->stage != NULL && setup->stage[l] != setup->stage[l - 1]) continue;
        shape->layer_group[l - 1] = shape->layer_group[l] = (int16_t)(l / 2);
    }
    return SF_OK;
}
static sf_status minicache_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    two_tiers(plan, "pair", 64);
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_INTERVAL;
    plan->every_tokens = 64;
    plan->every_from_prompt = 1;
    plan->edits = SF_EDITS_GROUP;
    return SF_OK;
}
static sf_status group_compress(const struct sf_env *env, enum sf_when when,
                                const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)env; (void)when;
    return sf_edit_group(answer, batch->span, everything, 1, NULL);
}
static sf_status xkv_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    SF_TRY(minicache_plan(setup, plan));
    plan->tier[1].codec = "lowrank";
    plan->needs = SF_NEED_PRE_ROPE | SF_NEED_SELECT_DECODE;
    plan->mark_slots = 8;
    plan->pick_slots = 16;
    return SF_OK;
}
static sf_status xkv_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                               struct sf_foot *foot)
{
    foot->slots_hi[0] = spot->tokens - spot->prompt;
    foot->slots_hi[1] = spot->prompt;
    foot->extra_bytes = spot->prompt / 8 * setup->layer[spot->layer].k_dim * 4;
    return SF_OK;
}
static sf_status xkv_select(const struct sf_env *env, const struct sf_batch *batch,
                            struct sf_answer *answer)
{
    const struct sf_lane *lane = batch->span->lane;
    struct sf_buf *keys = sf_scratch_buf(env, 1024);
    SF_TRY(sf_lane_read(lane, everything, 1, keys, NULL));
    if (lane->state->bytes == 0) return SF_OK;
    return sf_pick_slots(answer, lane, -1, (struct sf_list){ NULL, keys, 16 });
}

/* ---- RazorAttention, LoCoCo: profiles ------------------------------------------------------- */
static sf_status razor_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    two_tiers(plan, "raw", 0);
    plan->needs = SF_NEED_PROFILE;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL;
    plan->edits = SF_EDITS_MIX;
    return SF_OK;
}
static sf_status razor_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    memset(shape->head_class, setup->profile ? SF_HEAD_RETRIEVAL : SF_HEAD_OTHER,
           (size_t)setup->lanes);
    return SF_OK;
}
static sf_status keep_all(const struct sf_env *env, enum sf_when when,
                          const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)env; (void)when;
    return sf_edit_keep(answer, batch->span->lane, everything);
}
static sf_status lococo_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_CHUNK | 1u << SF_AT_FULL;
    plan->chunk_tokens = 512;
    plan->edits = SF_EDITS_MIX | SF_EDITS_DENSE;
    plan->watch[0] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_SUM,
                                        .flags = SF_WATCH_RESET };
    return SF_OK;
}
static sf_status lococo_compress(const struct sf_env *env, enum sf_when when,
                                 const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_lane *lane = batch->span->lane;
    int32_t ptr[2] = { 0, 0 }, pos[1] = { 0 };
    float bias[1] = { 0 };
    struct sf_mix mix = { .slots = 1, .ptr = ptr, .pos = pos, .bias = bias, .dense_slots = 1,
                          .dense = sf_scratch_buf(env, (size_t)lane->slots * 4),
                          .dense_src = everything };
    (void)when;
    return sf_edit_mix(answer, lane, &mix);
}
static sf_status feed(const struct sf_env *env, const struct sf_taps *taps)
{
    (void)env;
    return taps->q ? SF_OK : SF_FAIL(SF_INVALID, "no queries");
}
static sf_status calib_plan(const struct sf_setup *setup, const struct sf_calib_vocab *vocab,
                            struct sf_calib_plan *plan)
{
    (void)setup, (void)vocab;
    plan->taps = 1u << SF_TAP_Q | 1u << SF_TAP_K | 1u << SF_TAP_V | 1u << SF_TAP_EXPERT_OUT;
    plan->passes = 2;
    return SF_OK;
}
static const struct sf_calib_ops calib = { .plan = calib_plan, .feed = feed };

/* ---- ZipVL: rows of the prompt, two precisions, a shared count ------------------------------ */
static sf_status zipvl_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    SF_TRY(gear_plan(setup, plan));
    plan->tiers = 3;
    plan->tier[2] = plan->tier[1];
    plan->needs = SF_NEED_SELECT_PREFILL;
    plan->aux_bytes = 1;
    plan->reduce_bytes = 8 * setup->tokens_max;
    return SF_OK;
}
static sf_status zipvl_select(const struct sf_env *env, const struct sf_batch *batch,
                              struct sf_answer *answer)
{
    struct sf_watch folded = { .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MEAN };
    const struct sf_span *span = batch->span;
    SF_TRY(sf_probe(span, span->lane, everything, &folded, sf_scratch_buf(env, 64)));
    SF_TRY(sf_pick_rows(answer, span, everything));
    ((uint8_t *)span->lane->aux)[0] = 1;
    return sf_pick_slots(answer, span->lane, -1, everything);
}

/* ---- Scissorhands: counts below the mean; EMS: two watches, rotated merges ------------------ */
static sf_status scissorhands_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL;
    plan->edits = SF_EDITS_KEEP;
    plan->watch[0] = (struct sf_watch){ .fold = SF_FOLD_BELOW_MEAN, .head_fold = SF_FOLD_MEAN,
                                        .flags = SF_WATCH_RESET, .prompt_rows = 400,
                                        .decode_rows = 400 };
    return SF_OK;
}
static sf_status by_mass(const struct sf_env *env, const struct sf_span *span, float *out)
{
    (void)env;
    for (int32_t l = 0; l < span->lanes; l++)
        for (int32_t s = 0; s < span->lane[l].slots; s++) *out++ = -span->lane[l].mass[0][s];
    return SF_OK;
}
static sf_status ems_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    SF_TRY(scissorhands_plan(setup, plan));
    memset(plan->watch, 0, sizeof plan->watch);
    plan->edits = SF_EDITS_MIX | SF_EDITS_ROTATE;
    plan->aux_bytes = 4;
    return SF_OK;
}
static sf_status ems_compress(const struct sf_env *env, enum sf_when when,
                              const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_lane *lane = batch->span->lane;
    int32_t ptr[2] = { 0, 2 }, src[2] = { 0, 1 }, pos[1] = { lane->pos[0] };
    float weight[2] = { 0.5f, 0.5f }, bias[1] = { 0 };
    float mass = lane->mass[0][0] + lane->mass[0][1];
    struct sf_mix mix = { .slots = 1, .flags = SF_MIX_ROTATE, .ptr = ptr, .src = src,
                          .k_weight = weight, .v_weight = weight, .pos = pos, .bias = bias,
                          .mass = { &mass, NULL } };
    (void)env; (void)when;
    return sf_edit_mix(answer, lane, &mix);
}

/* ---- drafts: SpecKV, SpecPC; Sigma; SentenceKV ---------------------------------------------- */
static sf_status speckv_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    SF_TRY(scissorhands_plan(setup, plan));
    memset(plan->watch, 0, sizeof plan->watch);
    plan->draft.lookahead = 32;
    return SF_OK;
}
static sf_status speckv_admit(const struct sf_setup *setup, const struct sf_prompt *prompt,
                              struct sf_admit *admit)
{
    (void)setup;
    admit->ghosts = prompt->draft_tokens;
    for (int32_t i = 0; i < admit->ghosts; i++) admit->ghost[i] = prompt->draft_token[i];
    admit->replay_last = 1;
    return SF_OK;
}
static sf_status specpc_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->draft = (struct sf_draft_ask){ .window = 64, .first_layer = 8, .fold = SF_FOLD_MAX,
                                         .row_ramp = 1 };
    return SF_OK;
}
static sf_status specpc_admit(const struct sf_setup *setup, const struct sf_prompt *prompt,
                              struct sf_admit *admit)
{
    (void)setup;
    admit->keeps = sf_top_k(prompt->draft_mass, prompt->tokens, 1024, admit->keep);
    return SF_OK;
}
static sf_status sigma_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->v_top = (struct sf_v_top){ .slots = 100, .min_slots = 512 };
    return SF_OK;
}
static sf_status sentencekv_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    two_tiers(plan, "raw", 0);
    plan->tier[1].k_place = plan->tier[1].v_place = SF_ON_HOST;
    plan->needs = SF_NEED_TOKENS | SF_NEED_SENTENCES | SF_NEED_SELECT_DECODE;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_SENTENCE_END;
    plan->edits = SF_EDITS_KEEP | SF_EDITS_TIER;
    plan->watch[0] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_SUM,
                                        .prompt_rows = 32, .decode_rows = -1 };
    plan->span_state_bytes = 64;
    return SF_OK;
}
static sf_status sentencekv_compress(const struct sf_env *env, enum sf_when when,
                                     const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_span *span = batch->span;
    int32_t *seen = span->state;
    (void)env; (void)when;
    *seen = span->sentence_end[span->sentences - 1] + span->token[0];
    SF_TRY(sf_edit_tier(answer, span->lane, everything, 1));
    return sf_edit_keep(answer, span->lane, everything);
}

/* ---- recipes: X-EcoMLA, KV heads, Sub-MoE --------------------------------------------------- */
static sf_status recipe_shape(const struct sf_env *env, struct sf_model_desc *desc)
{
    (void)env; (void)desc;
    return SF_OK;
}
static sf_status recipe_convert(const struct sf_env *env, int32_t layer, struct sf_weights_out *out)
{
    (void)env; (void)layer; (void)out;
    return SF_OK;
}
static const struct sf_recipe_ops recipe = { recipe_shape, recipe_convert };

/* ---- the list ------------------------------------------------------------------------------- */
#define TOY(toy, ...)                                                                              \
    static const struct sf_policy_ops toy##_ops = { .plan = toy##_plan, __VA_ARGS__ };             \
    static const struct sf_method toy_##toy = { .name = #toy, .policy = &toy##_ops }
#define RECIPE(toy)                                                                                \
    static const struct sf_method toy_##toy = { .name = #toy, .calib = &calib, .recipe = &recipe }

TOY(loopserve, .footprint = footprint, .select = loopserve_select, .compress = loopserve_compress);
TOY(kvcrush, .footprint = footprint, .compress = kvcrush_compress);
TOY(gear, .footprint = footprint, .compress = gear_compress);
TOY(mikv, .footprint = footprint, .compress = mikv_compress);
TOY(minicache, .footprint = footprint, .shape = pairs_shape, .compress = group_compress);
TOY(xkv, .footprint = xkv_footprint, .shape = pairs_shape, .select = xkv_select,
    .compress = group_compress);
TOY(razor, .footprint = footprint, .shape = razor_shape, .compress = keep_all);
TOY(zipvl, .footprint = footprint, .select = zipvl_select, .compress = gear_compress);
TOY(scissorhands, .footprint = footprint, .score = by_mass);
TOY(ems, .footprint = footprint, .compress = ems_compress);
TOY(speckv, .footprint = footprint, .admit = speckv_admit, .score = by_mass);
TOY(specpc, .footprint = footprint, .admit = specpc_admit);
TOY(sigma, .footprint = footprint);
TOY(sentencekv, .footprint = footprint, .compress = sentencekv_compress);
static const struct sf_policy_ops lococo_ops = { .plan = lococo_plan, .footprint = footprint,
                                                 .compress = lococo_compress };
static const struct sf_method toy_lococo = { .name = "lococo", .policy = &lococo_ops,
                                             .calib = &calib };
RECIPE(x_ecomla);
RECIPE(kv_heads);
RECIPE(sub_moe);

const struct toy_asking toys_asking[] = {
    { &toy_loopserve, "method loopserve needs picks in the prompt" },
    { &toy_x_ecomla, "method x_ecomla converts models" },
    { &toy_kvcrush, "method kvcrush needs a method to refine" },
    { &toy_gear, "method gear needs the codec gear" },
    { &toy_mikv, "method mikv needs the largest queries of the prompt" },
    { &toy_minicache, "method minicache needs the codec pair" },
    { &toy_razor, "method razor needs a calibration profile" },
    { &toy_lococo, "method lococo needs mixes by a dense matrix" },
    { &toy_zipvl, "method zipvl needs picks in the prompt" },
    { &toy_scissorhands, NULL },
    { &toy_kv_heads, "method kv_heads converts models" },
    { &toy_speckv, "method speckv needs rewritten prompts" },
    { &toy_specpc, "method specpc needs rewritten prompts" },
    { &toy_sigma, "method sigma needs reading only the best values" },
    { &toy_ems, NULL },
    { &toy_xkv, "method xkv needs slots that one edit must encode together" },
    { &toy_sub_moe, "method sub_moe converts models" },
    { &toy_sentencekv, "method sentencekv needs token ids on every stage" },
    { NULL, NULL }
};
