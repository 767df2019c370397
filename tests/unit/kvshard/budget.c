/* tests/unit/kvshard/budget.c: budgets that a method sets while it runs, and what it sets them by:
 * a lane's new trigger is the one that raises its events and its new budget the one that edits are
 * held to, lane by lane; what the footprint does not cover is refused; shares are those of the
 * largest remainder; sums and maxima over three ranks are the same on all. */
#include <pthread.h>

#include "comm/comm.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"

enum { PROMPT = 20, TOKENS = 60, LANES = 2, RANKS = 3 };

/* ---- events at own triggers ----------------------------------------------------------------- */
static const int32_t own_keep[LANES] = { 8, 14 }, own_trigger[LANES] = { 11, 19 };
static int32_t fired[LANES], outside;

static sf_status newest(struct sf_answer *answer, const struct sf_lane *lane, int32_t keep)
{
    int32_t ids[TOKENS];
    for (int32_t i = 0; i < keep; i++) ids[i] = lane->slots - keep + i;
    return sf_edit_keep(answer, lane, (struct sf_list){ .ids = ids, .n = keep });
}

static sf_status own_budgets(const struct sf_env *env, enum sf_when when,
                             const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)env;
    for (int32_t l = 0; l < batch->span->lanes; l++) {
        const struct sf_lane *lane = &batch->span->lane[l];
        if (when == SF_AT_PREFILL_END)
            SF_TRY(sf_edit_budget(answer, lane, own_keep[l], own_trigger[l]));
        outside += lane->slots_keep != own_keep[l] || lane->slots_trigger != own_trigger[l];
        if (when == SF_AT_FULL && lane->slots < own_trigger[l]) continue;
        if (when == SF_AT_FULL) outside += lane->slots != own_trigger[l];
        fired[l] += lane->layer == 0;
        SF_TRY(newest(answer, lane, own_keep[l]));
    }
    return SF_OK;
}

static sf_status run_prompt(int32_t tokens, int32_t decode)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq = NULL;
    spec.method = &script_method;
    SF_TRY(rig_open(&spec, &rig));
    sf_status status = sf_seq_open(rig.store, 0, PROMPT, TOKENS, &seq);
    if (status == SF_OK) status = rig_feed(&rig, seq, 0, 0, PROMPT);
    for (int32_t at = PROMPT, n; status == SF_OK && at < tokens; at += n) {
        n = tokens - at < decode ? tokens - at : decode;
        status = rig_feed(&rig, seq, 0, at, n);
    }
    for (int32_t l = 0; status == SF_OK && tokens > PROMPT && l < LANES; l++) {
        int32_t grown = (tokens - PROMPT) % (own_trigger[l] - own_keep[l]);
        SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 1, l), own_keep[l] + grown);
    }
    if (seq) sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
    return status;
}

static void script_start(sf_status (*act)(const struct sf_env *, enum sf_when,
                                          const struct sf_batch *, struct sf_answer *))
{
    script = (struct script){ .plan = { .whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL,
                                        .edits = SF_EDITS_KEEP, .reduce_bytes = 16 },
                              .trigger = 16, .keep = 12, .act = act };
}

static void own_triggers(void)
{
    script_start(own_budgets);
    for (int32_t decode = 1; decode <= 7; decode += 3) {
        outside = fired[0] = fired[1] = 0;
        SF_CHECK_OK(run_prompt(TOKENS - 2, decode));
        SF_CHECK_INT(outside, 0);
        for (int32_t l = 0; l < LANES; l++)
            SF_CHECK_INT(fired[l], 1 + (TOKENS - 2 - PROMPT) / (own_trigger[l] - own_keep[l]));
    }
}

/* ---- what is refused ------------------------------------------------------------------------ */
static struct { int32_t keep, trigger, slots, twice; } wrong;
static sf_status set_wrong(const struct sf_env *env, enum sf_when when,
                           const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_lane *lane = &batch->span->lane[1];
    (void)env; (void)when;
    if (wrong.twice) SF_TRY(newest(answer, lane, 10));
    (void)sf_edit_budget(answer, lane, wrong.keep, wrong.trigger); /* its status is dropped */
    return wrong.slots > 0 ? newest(answer, lane, wrong.slots) : SF_OK;
}

static void refusals(void)
{
    script_start(set_wrong);
    wrong.keep = 0, wrong.trigger = 9, wrong.slots = wrong.twice = 0;
    CHECK_REFUSED(run_prompt(PROMPT, 1), SF_INVALID, "head 1: keep 0, trigger 9");
    wrong.keep = 10;
    CHECK_REFUSED(run_prompt(PROMPT, 1), SF_INVALID, "keep 10, trigger 9");
    wrong.trigger = 12, wrong.slots = 11;
    CHECK_REFUSED(run_prompt(PROMPT, 1), SF_INVALID, "leaves 11 of 20 slots, its budget is 10");
    wrong.slots = 10;
    SF_CHECK_OK(run_prompt(PROMPT, 1));
    wrong.twice = 1, wrong.slots = 0;
    CHECK_REFUSED(run_prompt(PROMPT, 1), SF_INVALID, "second edit of layer 0 head 1");
}

/* ---- shares --------------------------------------------------------------------------------- */
static void shares(void)
{
    static const struct { int64_t need[4]; int32_t n; int64_t pool, share[4]; } cases[] = {
        { { 10, 30, 5 }, 3, 63, { 14, 42, 7 } }, { { 1, 3 }, 2, 42, { 11, 31 } },
        { { 2, 3 }, 2, 42, { 17, 25 } }, { { 3, 2 }, 2, 42, { 25, 17 } },
        { { 0, 0, 0 }, 3, 8, { 3, 3, 2 } }, { { 1, 1, 1, 1 }, 4, 6, { 2, 2, 1, 1 } },
        { { 0, 7 }, 2, 5, { 0, 5 } }, { { 9, 1 }, 2, 0, { 0, 0 } } };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int64_t share[4] = { 0 };
        sf_share_out(cases[c].need, cases[c].n, cases[c].pool, share);
        for (int32_t i = 0; i < cases[c].n; i++) SF_CHECK_INT(share[i], cases[c].share[i]);
    }
}

/* ---- three ranks ---------------------------------------------------------------------------- */
struct rank { struct sf_comm *comm; sf_status status; };
static _Thread_local int32_t rank_here, right;

static sf_status reduce_all(const struct sf_env *env, enum sf_when when,
                            const struct sf_batch *batch, struct sf_answer *answer)
{
    int64_t sum[2] = { rank_here + 1, -rank_here }, most[2] = { rank_here + 1, -rank_here };
    int64_t many[3] = { 0 };
    (void)when; (void)batch; (void)answer;
    SF_TRY(sf_reduce_i64(env, sum, 2, SF_FOLD_SUM));
    SF_TRY(sf_reduce_i64(env, most, 2, SF_FOLD_MAX));
    right += sum[0] == 6 && sum[1] == -3 && most[0] == 3 && most[1] == 0;
    right += sf_reduce_i64(env, many, 3, SF_FOLD_SUM) == SF_INVALID;
    right += sf_reduce_i64(env, many, 1, SF_FOLD_MEAN) == SF_INVALID;
    return SF_OK;
}

static void *run_rank(void *arg)
{
    struct rank *rank = arg;
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq = NULL;
    rank_here = sf_comm_rank(rank->comm);
    spec.method = &script_method;
    spec.tensor = rank->comm;
    rank->status = rig_open(&spec, &rig);
    if (rank->status == SF_OK) {
        rank->status = sf_seq_open(rig.store, 0, PROMPT, TOKENS, &seq);
        if (rank->status == SF_OK) rank->status = rig_feed(&rig, seq, 0, 0, PROMPT);
        if (seq) sf_seq_close(rig.store, seq, NULL);
        rig_close(&rig);
    }
    if (rank->status == SF_OK && right != 3 * 2) rank->status = SF_INTERNAL; /* 2 layers */
    sf_comm_destroy(rank->comm);
    return NULL;
}

static void reductions(void)
{
    struct sf_comm_options options = { 0 };
    struct sf_comm *comm[RANKS];
    struct rank rank[RANKS];
    pthread_t thread[RANKS];
    script_start(reduce_all);
    SF_MUST(sf_comm_loopback_world(RANKS, 0, &options, comm));
    for (int r = 0; r < RANKS; r++) {
        rank[r] = (struct rank){ .comm = comm[r] };
        SF_CHECK(pthread_create(&thread[r], NULL, run_rank, &rank[r]) == 0);
    }
    for (int r = 0; r < RANKS; r++) pthread_join(thread[r], NULL);
    for (int r = 0; r < RANKS; r++) SF_CHECK_OK(rank[r].status);
}

static const struct sf_test tests[] = {
    { "events at the lanes' own triggers", own_triggers },
    { "budgets beyond the footprint, or after an edit", refusals },
    { "shares by the largest remainder", shares },
    { "sums and maxima over three ranks", reductions },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_budget", tests)
