/* tests/unit/kvshard/event.c: when hooks fall due, and what they may call.
 *
 * Events are written down as they come, for prompts in pieces and several decode rows a call: the
 * list must be the one that the rules give, token by token.  Services give what their words say,
 * or refuse; a refusal inside of a hook is the answer's. */
#include <float.h>
#include <stdlib.h>

#include "base/rng.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"

static const char when_letter[] = "ceFi";   /* chunk, end, full, interval */
static char events[512];

static sf_status note(const struct sf_env *env, enum sf_when when, const struct sf_batch *batch,
                      struct sf_answer *answer)
{
    (void)env; (void)answer;
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        size_t used = strlen(events);
        if (span->lane[0].layer != 0) continue;
        snprintf(events + used, sizeof events - used, "%c%d/%d ", when_letter[when], span->tokens,
                 span->lane[0].slots);
    }
    return SF_OK;
}

static sf_status note_and_cut(const struct sf_env *env, enum sf_when when,
                              const struct sf_batch *batch, struct sf_answer *answer)
{
    SF_TRY(note(env, when, batch, answer));
    for (int32_t i = 0; when == SF_AT_FULL && i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            int32_t ids[64];
            for (int32_t s = 0; s < 8; s++) ids[s] = lane->slots - 8 + s;
            SF_TRY(sf_edit_keep(answer, lane, (struct sf_list){ ids, NULL, 8 }));
        }
    return SF_OK;
}

/* Rows of the calls, closed by 0. */
static void check_events(const int32_t *calls, int32_t prompt, const char *expected)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    events[0] = 0;
    spec.method = &script_method;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, prompt, 128, &seq));
    for (int32_t at = 0; *calls; at += *calls++) SF_MUST(rig_feed(&rig, seq, 0, at, *calls));
    SF_CHECK_STR(events, expected);
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

static void test_due(void)
{
    static const int32_t whole[] = { 20, 1, 1, 1, 1, 1, 1, 1, 1, 0 };
    static const int32_t pieces[] = { 7, 7, 11, 3, 0 }; /* one goes over the prompt's end */
    static const int32_t odd[] = { 1, 15, 1, 3, 3, 2, 2, 1, 0 };
    static const int32_t *const calls[] = { whole, pieces, odd };
    for (int c = 0; c < 3; c++) {
        script = (struct script){ .act = note, .plan = { .edits = SF_EDITS_KEEP } };
        script.plan.whens = 1u << SF_AT_PREFILL_END;
        check_events(calls[c], 20, "e20/20 ");
        script.plan.whens = 1u << SF_AT_INTERVAL;
        script.plan.every_tokens = 3;
        check_events(calls[c], 20, "i21/21 i24/24 i27/27 ");
        script.plan.every_from_prompt = 1;
        check_events(calls[c], 20, "i23/23 i26/26 ");
        script.plan.whens = 1u << SF_AT_PREFILL_CHUNK | 1u << SF_AT_PREFILL_END;
        script.plan.chunk_tokens = 5;
        check_events(calls[c], 20, "c5/5 c10/10 c15/15 e20/20 ");
        script.plan.chunk_tokens = 6;
        check_events(calls[c], 20, "c6/6 c12/12 c18/18 e20/20 ");
        script.plan.whens = 1u << SF_AT_FULL;   /* a method that leaves it full is asked again */
        script.trigger = 26;
        check_events(calls[c], 20, "F26/26 F27/27 F28/28 ");
        script.trigger = 20;                    /* but not before it decodes */
        check_events(calls[c], 20,
                     "F21/21 F22/22 F23/23 F24/24 F25/25 F26/26 F27/27 F28/28 ");
        script.plan.whens = 1u << SF_AT_FULL | 1u << SF_AT_INTERVAL;
        script.plan.every_tokens = 2;
        script.act = note_and_cut;              /* the edit of one shows in the next */
        script.trigger = 26;
        script.keep = 8;
        check_events(calls[c], 20, "i22/22 i24/24 F26/26 i26/8 i28/10 ");
    }
}

/* ---- the default answer --------------------------------------------------------------------- */
static int score_kind;
static sf_status give_scores(const struct sf_env *env, const struct sf_span *span, float *out)
{
    (void)env;
    for (int32_t l = 0; l < span->lanes; l++)
        for (int32_t s = 0; s < span->lane[l].slots; s++, out++)
            if (score_kind == 1) *out = s % 2 ? NAN : -1e30f;
            else if (score_kind == 2) *out = s == 9 ? INFINITY : (float)-s;
            else if (score_kind == 3) *out = INFINITY;
    return SF_OK;
}

static void check_kept(int kind, int32_t trigger, const int32_t *expected, int32_t n)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    int32_t pos[64];
    score_kind = kind;
    script = (struct script){ .plan = { .whens = 1u << SF_AT_PREFILL_END, .sink_tokens = 1,
                                        .tail_tokens = 2, .edits = SF_EDITS_KEEP },
                              .trigger = trigger, .keep = 6, .score = give_scores };
    spec.method = &script_scorer;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, 20, 64, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, 20));
    SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 0, 1), n);
    SF_MUST(sf_seq_lane_read(rig.store, seq, 0, 1, NULL, NULL, pos, NULL));
    for (int32_t i = 0; i < n; i++) SF_CHECK_INT(pos[i], expected[i]);
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

static void test_default(void)
{
    static const int32_t ties[] = { 0, 1, 2, 3, 18, 19 };      /* the lower index */
    static const int32_t numbers[] = { 0, 2, 4, 6, 18, 19 };   /* NaN is below everything */
    static const int32_t infinite[] = { 0, 1, 2, 9, 18, 19 };  /* protected ones all the same */
    static const int32_t all[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,
                                   18, 19 };
    check_kept(0, 0, ties, 6);
    check_kept(0, 19, ties, 6);
    check_kept(0, 20, all, 20);         /* at the prompt's end only what is over the trigger */
    check_kept(1, 0, numbers, 6);
    check_kept(2, 0, infinite, 6);
    check_kept(3, 0, ties, 6);
}

/* ---- services ------------------------------------------------------------------------------- */
static int by_value(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x - y;
}

static void test_top_k(void)
{
    enum { N = 300 };
    for (uint64_t round = 0; round < 200; round++) {
        float score[N];
        int32_t n = (int32_t)(sf_rng_u64(1, round, 0) % N);
        int32_t k = (int32_t)(sf_rng_u64(1, round, 1) % N);
        int32_t is[N], best[N], taken = 0;
        uint8_t used[N] = { 0 };
        for (int32_t i = 0; i < n; i++) {
            uint64_t bits = sf_rng_u64(2, round, (uint64_t)i);
            score[i] = (float)((int)(bits % 7) - 3) * (round % 2 ? 1e-39f : 1e30f);
            if (bits % 31 == 0) score[i] = INFINITY;
            if (bits % 37 == 0) score[i] = -INFINITY;
            if (score[i] == 0.0f && bits & 64) score[i] = -0.0f;
        }
        for (; taken < k && taken < n; taken++) {
            int32_t at = -1;
            for (int32_t i = 0; i < n; i++)
                if (!used[i] && (at < 0 || score[i] > score[at])) at = i;
            used[at] = 1;
            best[taken] = at;
        }
        qsort(best, (size_t)taken, sizeof *best, by_value);
        SF_CHECK_INT(sf_top_k(score, n, k, is), taken);
        SF_CHECK(memcmp(is, best, (size_t)taken * sizeof *is) == 0);
    }
}

static void test_fixed(void)
{
    SF_CHECK_INT(sf_fixed(1.0), INT64_C(4294967296));
    SF_CHECK_INT(sf_fixed(-0.5), -INT64_C(2147483648));
    SF_CHECK_INT(sf_fixed(1e30), INT64_MAX);
    SF_CHECK_INT(sf_fixed(-1e30), INT64_MIN);
    SF_CHECK_INT(sf_fixed(NAN), 0);
    SF_CHECK_INT(sf_fixed(ldexp(1, -34)), 0);
    SF_CHECK_INT(sf_fixed(ldexp(3, -34)), 1);
    SF_CHECK_INT(sf_codec_facts("raw"), SF_CAN_DROP | SF_CAN_MIX | SF_CAN_RECODE);
    SF_CHECK_INT(sf_codec_facts("gear"), 0);
}

static int calls;
static sf_status use_services(const struct sf_env *env, enum sf_when when,
                              const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_lane *lane = &batch->span->lane[1];
    static const int32_t some[] = { 7, 0, 19, 7 };
    static const int32_t out_of[] = { 0, 20 };
    struct sf_lane copy = *lane;
    float host[4 * 14];
    int64_t number = 5;
    struct sf_list list = { some, NULL, 4 };
    (void)when; (void)answer;
    calls++;
    struct sf_buf *k = sf_scratch_buf(env, 4 * 8 * sizeof(float));
    struct sf_buf *v = sf_scratch_buf(env, 4 * 6 * sizeof(float));
    SF_CHECK(k && v);
    SF_CHECK_OK(sf_lane_read(lane, list, 0, k, v));
    env->k->download(env->device, host, k->data, k->bytes);
    env->k->download(env->device, host + 32, v->data, v->bytes);
    for (int i = 0; i < 4; i++)
        for (int e = 0; e < 8; e++) {
            SF_CHECK_NEAR(host[i * 8 + e], rig_value(RIG_K, 0, lane->layer, 1, some[i], e), 0);
            if (e < 6)
                SF_CHECK_NEAR(host[32 + i * 6 + e],
                              rig_value(RIG_V, 0, lane->layer, 1, some[i], e), 0);
        }
    list.n = 5;
    CHECK_REFUSED(sf_lane_read(lane, list, 0, k, NULL), SF_INVALID, "no room for the keys of 5");
    CHECK_REFUSED(sf_lane_read(lane, list, 0, NULL, v), SF_INVALID, "no room for the values of 5");
    list = (struct sf_list){ out_of, NULL, 2 };
    CHECK_REFUSED(sf_lane_read(lane, list, 0, k, NULL), SF_INVALID, "read of slot 20");
    CHECK_REFUSED(sf_lane_read(lane, list, 1, k, NULL), SF_INVALID, "before RoPE, which its plan");
    list.ids = NULL;
    CHECK_REFUSED(sf_lane_read(lane, list, 0, k, NULL), SF_UNSUPPORTED, "list on the device");
    CHECK_REFUSED(sf_lane_read(&copy, list, 0, k, NULL), SF_INVALID, "no running hook was shown");
    CHECK_REFUSED(sf_inner_score(env, batch->span, host), SF_UNSUPPORTED, "refines no other");
    CHECK_REFUSED(sf_probe(batch->span, lane, list, NULL, k), SF_UNSUPPORTED, "probing");
    CHECK_REFUSED(sf_reduce_i64(env, &number, 1, SF_FOLD_SUM), SF_INVALID, "does not declare");
    SF_CHECK(sf_scratch(env, 200));     /* 424 of 512 bytes are gone */
    SF_CHECK(!sf_scratch(env, 89));
    SF_CHECK(sf_scratch(env, 88));
    SF_CHECK(!sf_scratch_buf(env, 1));
    return SF_OK;
}

static sf_status reduce_one(const struct sf_env *env, enum sf_when when,
                            const struct sf_batch *batch, struct sf_answer *answer)
{
    int64_t number[2] = { 5, -7 };
    (void)when; (void)batch; (void)answer;
    SF_TRY(sf_reduce_i64(env, number, 2, SF_FOLD_SUM));
    SF_CHECK(number[0] == 5 && number[1] == -7); /* one rank: the sum is the number */
    calls++;
    return SF_OK;
}

/* A refused call's status is dropped by the method; the answer fails all the same. */
static int not_built;
static sf_status ask_anyway(const struct sf_env *env, enum sf_when when,
                            const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_span *span = batch->span;
    struct sf_list all = { .n = -1 };
    struct sf_lines lines = { all, all };
    (void)env; (void)when;
    switch (not_built) {
    case 0: (void)sf_edit_side(answer, span->lane, 1, NULL); break;
    case 1: (void)sf_edit_group(answer, span, all, 1, NULL); break;
    case 2: (void)sf_pick_slots(answer, span->lane, -1, all); break;
    case 3: (void)sf_pick_lines(answer, span->lane, 0, &lines); break;
    default: (void)sf_pick_rows(answer, span, all);
    }
    return SF_OK;
}

static sf_status run_prompt(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq = NULL;
    spec.method = &script_method;
    SF_TRY(rig_open(&spec, &rig));
    sf_status status = sf_seq_open(rig.store, 0, 20, 64, &seq);
    if (status == SF_OK) status = rig_feed(&rig, seq, 0, 0, 20);
    if (status == SF_OK) status = rig_feed(&rig, seq, 0, 20, 1);
    if (seq) sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
    return status;
}

static void test_services(void)
{
    static const char *const words[] = { "codec's side data", "group, which its plan does not",
                                         "a pick of slots", "a pick of lines", "a pick of rows" };
    script = (struct script){ .plan = { .whens = 1u << SF_AT_PREFILL_END, .scratch_bytes = 512,
                                        .edits = SF_EDITS_KEEP }, .act = use_services };
    calls = 0;
    SF_CHECK_OK(run_prompt());
    SF_CHECK_INT(calls, 2);
    script.plan.reduce_bytes = 16;
    script.act = reduce_one;
    SF_CHECK_OK(run_prompt());
    SF_CHECK_INT(calls, 4);
    script.act = ask_anyway;
    for (not_built = 0; not_built < 5; not_built++)
        CHECK_REFUSED(run_prompt(), not_built == 1 ? SF_INVALID : SF_UNSUPPORTED,
                      words[not_built]);
}

static const struct sf_test tests[] = {
    { "what falls due", test_due },
    { "the default answer", test_default },
    { "the k best", test_top_k },
    { "fixed point, codecs", test_fixed },
    { "what a hook may call", test_services },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_event", tests)
