/* tests/unit/kvshard/edit.c: what an edit does to lanes, and every rule by which one is refused.
 *
 * A method under the test's control answers at the end of a prompt of 20 tokens (2 sinks, 3 newest
 * protected).  After a refusal all lanes are as before, also those whose own edits were fine.  Sums
 * are held against the same sums in f32, copies and order against a plain array. */
#include <math.h>
#include <stdlib.h>

#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"

enum { PROMPT = 20, SINKS = 2, TAIL = 3, LAYERS = 2, LANES = 2 };

static void script_start(uint32_t edits)
{
    script = (struct script){ .plan = { .whens = 1u << SF_AT_PREFILL_END, .edits = edits,
                                        .sink_tokens = SINKS, .tail_tokens = TAIL } };
}

/* ---- refusals ------------------------------------------------------------------------------- */
/* Feeds a prompt; the edit that script.act makes must be refused so, and leave no trace. */
static void refused(const char *file, int line, sf_status expected, const char *words)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    spec.method = &script_method;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, 64, &seq));
    check_refused(file, line, rig_feed(&rig, seq, 0, 0, PROMPT), expected, words);
    for (int32_t lane = 0; lane < LANES; lane++) {
        struct ref_lane ref;
        ref_open(&ref, &spec, 64);
        for (int32_t pos = 0; pos < PROMPT; pos++) ref_append(&ref, &spec, 0, 0, lane, pos);
        check_lane(&rig, seq, 0, lane, &ref);
        ref_close(&ref);
    }
    SF_CHECK_INT(sf_store_pages_free(rig.store), 256 - 2 * 2);
    sf_seq_close(rig.store, seq, &receipt);
    SF_CHECK_INT(receipt.edits + receipt.slots_evicted + receipt.slots_merged, 0);
    rig_close(&rig);
}
#define REFUSED(expected, words) refused(__FILE__, __LINE__, (expected), (words))

/* Lane 1 gets the list under test, after a keep of lane 0 that is fine; the status is swallowed. */
static int32_t ids[64], keeps;
static const int32_t *ids_given = ids;

static sf_status keep_second_lane(const struct sf_env *env, enum sf_when when,
                                  const struct sf_batch *batch, struct sf_answer *answer)
{
    static const int32_t fine[] = { 0, 1, 5, 17, 18, 19 };
    (void)env; (void)when;
    SF_CHECK_OK(sf_edit_keep(answer, &batch->span->lane[0], (struct sf_list){ fine, NULL, 6 }));
    SF_CHECK(sf_edit_keep(answer, &batch->span->lane[1],
                          (struct sf_list){ ids_given, NULL, keeps }) != SF_OK);
    return SF_OK;
}

static void try_keep(const char *file, int line, const char *list, sf_status status,
                     const char *words)
{
    char *end;
    for (keeps = 0; *list; list = *end ? end + 1 : end)
        ids[keeps++] = (int32_t)strtol(list, &end, 10);
    refused(file, line, status, words);
}
#define TRY_KEEP(list, words) try_keep(__FILE__, __LINE__, (list), SF_INVALID, (words))

static void test_keep_refusals(void)
{
    script_start(SF_EDITS_KEEP);
    script.act = keep_second_lane;
    TRY_KEEP("0,1,5,17,18,20", "script: keep of slot 20 of layer 0 head 1, which has 20");
    TRY_KEEP("-1,0,1,17,18,19", "keep of slot -1");
    TRY_KEEP("0,1,5,5,17,18,19", "does not ascend: slot 5 comes after 5");
    TRY_KEEP("0,1,6,5,17,18,19", "does not ascend: slot 5 comes after 6");
    TRY_KEEP("0,5,17,18,19", "drops position 1, which is protected (2 sinks, 3 newest of 20");
    TRY_KEEP("1,5,17,18,19", "drops position 0");
    TRY_KEEP("0,1,18,19", "drops position 17");
    TRY_KEEP("0,1,17,18", "drops position 19");
    TRY_KEEP("0,1", "drops position 17");
    TRY_KEEP("", "drops position 0");
    TRY_KEEP("0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20", "keep of 21 slots");
    keeps = -2;
    REFUSED(SF_INVALID, "keep of -2 slots");
    keeps = 4;
    ids_given = NULL;
    REFUSED(SF_UNSUPPORTED, "keep with a list on the device is not built yet");
    ids_given = ids;
    script.keep = 7;
    script.trigger = 20;
    TRY_KEEP("0,1,2,3,4,17,18,19", "leaves 8 of 20 slots, its budget is 7");
    keeps = -1;
    REFUSED(SF_INVALID, "leaves 20 of 20 slots, its budget is 7");
}

static sf_status keep_twice(const struct sf_env *env, enum sf_when when,
                            const struct sf_batch *batch, struct sf_answer *answer)
{
    struct sf_list all = { .n = -1 };
    (void)env; (void)when;
    SF_TRY(sf_edit_keep(answer, &batch->span->lane[0], all));
    return sf_edit_keep(answer, &batch->span->lane[0], all);
}
static sf_status keep_unseen(const struct sf_env *env, enum sf_when when,
                             const struct sf_batch *batch, struct sf_answer *answer)
{
    struct sf_lane copy = batch->span->lane[0];
    (void)env; (void)when;
    return sf_edit_keep(answer, &copy, (struct sf_list){ .n = -1 });
}
static sf_status mix_nothing(const struct sf_env *env, enum sf_when when,
                             const struct sf_batch *batch, struct sf_answer *answer)
{
    struct sf_mix mix = { .slots = 0 };
    (void)env; (void)when;
    return sf_edit_mix(answer, &batch->span->lane[0], &mix);
}
static sf_status own_error(const struct sf_env *env, enum sf_when when,
                           const struct sf_batch *batch, struct sf_answer *answer)
{
    static const int32_t fine[] = { 0, 1, 17, 18, 19 };
    (void)env; (void)when;
    SF_TRY(sf_edit_keep(answer, &batch->span->lane[0], (struct sf_list){ fine, NULL, 5 }));
    return SF_FAIL(SF_INTERNAL, "the method gives up");
}

static void test_other_refusals(void)
{
    script_start(SF_EDITS_KEEP);
    script.act = keep_twice;
    REFUSED(SF_INVALID, "second edit of layer 0 head 0 in one answer");
    script.act = keep_unseen;
    REFUSED(SF_INVALID, "edit of a lane that this event did not show");
    script.act = mix_nothing;
    REFUSED(SF_INVALID, "mix, which its plan does not declare");
    script.act = own_error;
    REFUSED(SF_INTERNAL, "the method gives up");
    script_start(SF_EDITS_MIX);
    script.act = keep_twice;
    REFUSED(SF_INVALID, "keep, which its plan does not declare");
    script.act = mix_nothing;
    REFUSED(SF_INVALID, "changes position 0, which is protected");
}

/* Two sequences in one answer: the second one's edit is refused, so the first one's is not done. */
static sf_status spoil_last(const struct sf_env *env, enum sf_when when,
                            const struct sf_batch *batch, struct sf_answer *answer)
{
    static const int32_t fine[] = { 0, 1, 17, 18, 19 };
    (void)env; (void)when;
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            struct sf_list list = { fine, NULL, i + 1 == batch->spans && l == LANES - 1 ? 4 : 5 };
            (void)sf_edit_keep(answer, &batch->span[i].lane[l], list);
        }
    return SF_OK;
}

static void test_all_or_none(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct rig_item item[2] = { { .number = 0, .rows = PROMPT }, { .number = 1, .rows = PROMPT } };
    script_start(SF_EDITS_KEEP);
    script.act = spoil_last;
    spec.method = &script_method;
    SF_MUST(rig_open(&spec, &rig));
    for (int s = 0; s < 2; s++) SF_MUST(sf_seq_open(rig.store, s, PROMPT, 64, &item[s].seq));
    CHECK_REFUSED(rig_run(&rig, item, 2), SF_INVALID, "layer 0 head 1 drops position 19");
    for (int s = 0; s < 2; s++)
        for (int32_t l = 0; l < LANES; l++)
            SF_CHECK_INT(sf_seq_lane_slots(rig.store, item[s].seq, 0, l), PROMPT);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 2 * LANES * PROMPT * (14 * 4 + 8));
    for (int s = 0; s < 2; s++) sf_seq_close(rig.store, item[s].seq, NULL);
    rig_close(&rig);
}

/* ---- mixes ---------------------------------------------------------------------------------- */
/* A mix as an author would build it: copies of the given slots, then what a test changes. */
static struct {
    int32_t ptr[65], src[256], pos[64];
    float k_weight[256], v_weight[256], bias[64];
    uint8_t tier[64];
    struct sf_mix mix;
} m;

static void mix_start(void)
{
    memset(&m, 0, sizeof m);
    m.mix = (struct sf_mix){ .ptr = m.ptr, .src = m.src, .k_weight = m.k_weight,
                             .v_weight = m.v_weight, .pos = m.pos, .bias = m.bias };
}
static void mix_source(int32_t slot, float k_weight, float v_weight)
{
    int32_t j = m.ptr[m.mix.slots + 1]++;
    m.src[j] = slot;
    m.k_weight[j] = k_weight;
    m.v_weight[j] = v_weight;
}
static void mix_close(int32_t pos, float bias)
{
    int32_t i = m.mix.slots++;
    m.pos[i] = pos;
    m.bias[i] = bias;
    m.ptr[i + 2] = m.ptr[i + 1];
}
static void mix_copy(int32_t slot, int32_t pos)
{
    mix_source(slot, 1, 1);
    mix_close(pos, 0);
}
/* [0] [1] [(2 + 3 + 4) / 3 at 3, ln 3] [17] [18] [19]: fine. */
static void mix_fine(void)
{
    mix_start();
    mix_copy(0, 0);
    mix_copy(1, 1);
    for (int32_t s = 2; s < 5; s++) mix_source(s, 1.0f / 3, 1.0f / 3);
    mix_close(3, logf(3));
    for (int32_t s = 17; s < 20; s++) mix_copy(s, s);
}

static sf_status mix_second_lane(const struct sf_env *env, enum sf_when when,
                                 const struct sf_batch *batch, struct sf_answer *answer)
{
    struct sf_mix fine = m.mix;
    (void)env; (void)when;
    static const int32_t keep[] = { 0, 1, 17, 18, 19 };
    SF_CHECK_OK(sf_edit_keep(answer, &batch->span->lane[0], (struct sf_list){ keep, NULL, 5 }));
    SF_CHECK(sf_edit_mix(answer, &batch->span->lane[1], &fine) != SF_OK);
    return SF_OK;
}

static void test_mix_refusals(void)
{
    struct sf_buf dense = { NULL, 0 };
    float mass[64] = { 0 };
    script_start(SF_EDITS_KEEP | SF_EDITS_MIX);
    script.act = mix_second_lane;
    mix_fine(); m.ptr[0] = 1;
    REFUSED(SF_INVALID, "the sources of a mix begin at 1, not 0");
    mix_fine(); m.ptr[3] = m.ptr[2];
    REFUSED(SF_INVALID, "new slot 2 of layer 0 head 1 has no source");
    mix_fine(); m.src[3] = 20;
    REFUSED(SF_INVALID, "has source 20 of 20");
    mix_fine(); m.src[3] = -1;
    REFUSED(SF_INVALID, "has source -1 of 20");
    mix_fine(); m.k_weight[3] = NAN;
    REFUSED(SF_INVALID, "new slot 2");
    mix_fine(); m.v_weight[3] = INFINITY;
    REFUSED(SF_INVALID, "with weights");
    mix_fine(); m.pos[2] = 20;
    REFUSED(SF_INVALID, "has position 20 of 20 tokens");
    mix_fine(); m.pos[2] = -1;
    REFUSED(SF_INVALID, "has position -1");
    mix_fine(); m.bias[2] = -INFINITY;
    REFUSED(SF_INVALID, "bias -inf");
    mix_fine(); m.tier[1] = 2; m.mix.tier = m.tier;
    REFUSED(SF_INVALID, "new slot 1 of layer 0 head 1 in tier 2, its plan has 0");
    mix_fine(); m.mix.flags = SF_MIX_ROTATE;
    REFUSED(SF_INVALID, "mix that rotates keys, which its plan does not declare");
    mix_fine(); m.mix.flags = 64;
    REFUSED(SF_INVALID, "mix with flags 64");
    mix_fine(); m.mix.dense = &dense; m.mix.dense_slots = 1;
    REFUSED(SF_UNSUPPORTED, "mix with a dense matrix");
    mix_fine(); m.mix.aux = mass;
    REFUSED(SF_INVALID, "mix with aux, but its plan has aux_bytes 0");
    mix_fine(); m.mix.mass[1] = mass;
    REFUSED(SF_INVALID, "mix with attention mass, but its plan watches none");
    mix_fine(); m.mix.bias = NULL;
    REFUSED(SF_INVALID, "mix without sources, weights, pos or bias");
    mix_fine(); m.mix.slots = 21;
    REFUSED(SF_INVALID, "mix makes 21 slots of the 20");
    mix_fine(); m.k_weight[1] = 0.5f;
    REFUSED(SF_INVALID, "changes position 1, which is protected (2 sinks, 3 newest of 20 tokens)");
    mix_fine(); m.v_weight[1] = 0.5f;
    REFUSED(SF_INVALID, "changes position 1");
    mix_fine(); m.pos[1] = 2;
    REFUSED(SF_INVALID, "changes position 1");
    mix_fine(); m.bias[4] = 0.5f;
    REFUSED(SF_INVALID, "changes position 18");
    mix_fine(); m.mix.slots--;
    REFUSED(SF_INVALID, "changes position 19");
    mix_fine(); script.trigger = script.keep = 5;
    REFUSED(SF_INVALID, "leaves 6 of 20 slots, its budget is 5");
}

/* ---- what a mix does ------------------------------------------------------------------------ */
static sf_status mix_all_lanes(const struct sf_env *env, enum sf_when when,
                               const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)env; (void)when;
    for (int32_t l = 0; l < batch->span->lanes; l++)
        SF_TRY(sf_edit_mix(answer, &batch->span->lane[l], &m.mix));
    return SF_OK;
}

/* Runs a prompt whose end applies m, then decodes; every lane and row against the plain array. */
static void run_mix(const char *device, enum sf_dtype dtype, int64_t evicted, int64_t merged)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    struct ref_lane ref[LAYERS][LANES];
    struct sf_receipt receipt;
    spec.device = device;
    spec.dtype = dtype;
    spec.method = &script_method;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, 64, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, PROMPT));
    for (int32_t layer = 0; layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++) {
            struct ref_lane *lane = &ref[layer][l];
            ref_open(lane, &spec, 64);
            for (int32_t pos = 0; pos < PROMPT; pos++) ref_append(lane, &spec, 0, layer, l, pos);
            ref_mix(lane, dtype, &m.mix);
            check_lane(&rig, seq, layer, l, lane);
        }
    for (int32_t pos = PROMPT; pos < PROMPT + 20; pos++) {
        SF_MUST(rig_feed(&rig, seq, 0, pos, 1));
        for (int32_t layer = 0; layer < LAYERS; layer++)
            for (int32_t l = 0; l < LANES; l++) {
                ref_append(&ref[layer][l], &spec, 0, layer, l, pos);
                check_row(&rig, 0, layer, l, 0, pos, &ref[layer][l], NULL, NULL, 1e-5);
            }
    }
    for (int32_t layer = 0; layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++) {
            check_lane(&rig, seq, layer, l, &ref[layer][l]);
            ref_close(&ref[layer][l]);
        }
    sf_seq_close(rig.store, seq, &receipt);
    SF_CHECK_INT(receipt.slots_evicted, LAYERS * LANES * evicted);
    SF_CHECK_INT(receipt.slots_merged, LAYERS * LANES * merged);
    SF_CHECK_INT(receipt.edits, LAYERS * LANES);
    rig_close(&rig);
}

static void run_everywhere(int64_t evicted, int64_t merged)
{
    run_mix("ref", SF_F32, evicted, merged);
    run_mix("ref", SF_BF16, evicted, merged);
    run_mix("cpu", SF_F32, evicted, merged);
    run_mix("cpu", SF_F16, evicted, merged);
    run_mix("ref", SF_INT8, evicted, merged);
    run_mix("cpu", SF_INT8, evicted, merged);
}

static void test_mix(void)
{
    script_start(SF_EDITS_MIX);
    script.act = mix_all_lanes;
    mix_fine();                         /* 5 .. 16 go; 2 and 4 merge into 3 */
    run_everywhere(12, 2);
    m.mix.flags = SF_MIX_FOLD;          /* a compensation slot: all three count as evicted */
    run_everywhere(15, 0);
}

/* Keys and values with weights of their own, a slot that is in two sums and stays, a copy twice. */
static void test_mix_weights(void)
{
    script_start(SF_EDITS_MIX);
    script.act = mix_all_lanes;
    mix_start();
    mix_copy(0, 0);
    mix_copy(1, 1);
    mix_copy(7, 7);
    mix_copy(7, 7);
    mix_source(7, 0.25f, -2.0f);
    mix_source(9, 0.75f, 0.5f);
    mix_close(9, 0);
    mix_source(9, -1.0f, 0.125f);
    mix_source(3, 2.0f, 0.0f);
    mix_source(9, 0.5f, 1.0f);
    mix_close(12, logf(2.5f));
    mix_copy(5, 6);                     /* another position, another value: no copies of bytes */
    mix_source(6, 1, 0.5f);
    mix_close(6, 0);
    for (int32_t s = 17; s < 20; s++) mix_copy(s, s);
    run_everywhere(20 - 10, 1);         /* 3 merged; 7 is copied, 9 is its slot's centre */
}

/* A new order: reversed where it may be, so that bytes change places in cycles. */
static void test_mix_order(void)
{
    script_start(SF_EDITS_MIX);
    script.act = mix_all_lanes;
    mix_start();
    for (int32_t s = 19; s >= 0; s--) mix_copy(s, s);
    run_everywhere(0, 0);
    mix_start();
    for (int32_t i = 0; i < 20; i++) mix_copy((i * 7 + 3) % 20, (i * 7 + 3) % 20);
    run_everywhere(0, 0);
    mix_start();                        /* rotated by a page and a sum in the middle */
    for (int32_t i = 0; i < 10; i++) mix_copy((i + 16) % 20, (i + 16) % 20);
    mix_source(8, 0.5f, 0.5f);
    mix_source(9, 0.5f, 0.5f);
    mix_close(8, logf(2));
    run_everywhere(8, 1);
}

/* Long sums are read in pieces of 256; nothing is lost at their borders. */
static sf_status mix_long(const struct sf_env *env, enum sf_when when,
                          const struct sf_batch *batch, struct sf_answer *answer)
{
    static int32_t ptr[2] = { 0, 300 }, src[300], pos[1] = { 0 };
    static float weight[300], bias[1];
    struct sf_mix mix = { .slots = 1, .ptr = ptr, .src = src, .k_weight = weight,
                          .v_weight = weight, .pos = pos, .bias = bias };
    (void)env; (void)when;
    for (int32_t j = 0; j < 300; j++) {
        src[j] = j;
        weight[j] = 1.0f / 256;
    }
    bias[0] = logf(300);
    for (int32_t l = 0; l < batch->span->lanes; l++)
        SF_TRY(sf_edit_mix(answer, &batch->span->lane[l], &mix));
    return SF_OK;
}

static void test_mix_long(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    script_start(SF_EDITS_MIX);
    script.plan.sink_tokens = script.plan.tail_tokens = 0;
    script.act = mix_long;
    spec.method = &script_method;
    spec.tokens_max = 512;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, 300, 300, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, 300));
    float k[8], bias, expected = 0;
    SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 1, 1), 1);
    SF_MUST(sf_seq_lane_read(rig.store, seq, 1, 1, k, NULL, NULL, &bias));
    for (int32_t pos = 0; pos < 300; pos++) {
        float term = rig_value(RIG_K, 0, 1, 1, pos, 5) * (1.0f / 256);
        expected += term;
    }
    SF_CHECK_NEAR(k[5], expected, 0);
    SF_CHECK_NEAR(bias, logf(300), 0);
    SF_CHECK_INT(sf_store_pages_free(rig.store), 256 - 4);
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

/* What is dropped at the end of a lane is written over, so it costs no page. */
static sf_status drop_the_end(const struct sf_env *env, enum sf_when when,
                              const struct sf_batch *batch, struct sf_answer *answer)
{
    int32_t first[64];
    (void)env; (void)when;
    for (int32_t s = 0; s < 15; s++) first[s] = s;
    for (int32_t l = 0; l < batch->span->lanes; l++)
        SF_TRY(sf_edit_keep(answer, &batch->span->lane[l], (struct sf_list){ first, NULL, 15 }));
    return SF_OK;
}

static void test_end_is_used(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    struct ref_lane ref;
    script_start(SF_EDITS_KEEP);
    script.plan.tail_tokens = 0;
    script.act = drop_the_end;
    spec.method = &script_method;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, 64, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, PROMPT));
    SF_CHECK_INT(sf_store_pages_free(rig.store), 256 - LAYERS * LANES);
    SF_MUST(rig_feed(&rig, seq, 0, PROMPT, 17));    /* 15 + 17 = 32 slots: two pages */
    SF_CHECK_INT(sf_store_pages_free(rig.store), 256 - 2 * LAYERS * LANES);
    ref_open(&ref, &spec, 64);
    for (int32_t pos = 0; pos < PROMPT + 17; pos++)
        if (pos < 15 || pos >= PROMPT) ref_append(&ref, &spec, 0, 1, 0, pos);
    check_lane(&rig, seq, 1, 0, &ref);
    check_row(&rig, 0, 1, 0, 16, PROMPT + 16, &ref, NULL, NULL, 1e-5);
    ref_close(&ref);
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

/* ---- aux and the order of a lane ------------------------------------------------------------ */
/* Event 1 marks each slot with 100 + its position and mixes; later ones see marks follow slots. */
static int event, marks_wrong;

static sf_status mark_and_edit(const struct sf_env *env, enum sf_when when,
                               const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_span *span = batch->span;
    int32_t given[64];
    (void)env;
    for (int32_t l = 0; l < span->lanes; l++) {
        const struct sf_lane *lane = &span->lane[l];
        int32_t *mark = lane->aux, kept[64], n = 0;
        for (int32_t s = 0; s < lane->slots; s++) {
            if (when == SF_AT_PREFILL_END) {
                marks_wrong += mark[s] != 0;
                mark[s] = 100 + lane->pos[s];
            } else {
                int32_t old = lane->pos[s] < PROMPT + 4 * (event - 1);
                marks_wrong += mark[s] != (old ? 100 + lane->pos[s] : 0);
                mark[s] = 100 + lane->pos[s];
            }
            if (lane->pos[s] % 5 != 4 || lane->pos[s] >= span->tokens - TAIL) kept[n++] = s;
        }
        if (when == SF_AT_PREFILL_END) {
            for (int32_t i = 0; i < m.mix.slots; i++) given[i] = 100 + m.pos[i];
            m.mix.aux = l == 0 ? given : NULL; /* NULL: as the first source */
            SF_TRY(sf_edit_mix(answer, lane, &m.mix));
        } else {
            SF_TRY(sf_edit_keep(answer, lane, (struct sf_list){ kept, NULL, n }));
        }
    }
    return SF_OK;
}

static void test_aux_and_order(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    struct ref_lane ref;
    script_start(SF_EDITS_KEEP | SF_EDITS_MIX);
    script.plan.whens |= 1u << SF_AT_INTERVAL;
    script.plan.every_tokens = 4;
    script.plan.aux_bytes = 4;
    script.act = mark_and_edit;
    mix_start();
    for (int32_t s = 19; s >= 12; s--) mix_copy(s, s);
    mix_source(6, 0.5f, 0.5f);
    mix_source(7, 0.5f, 0.5f);
    mix_close(6, logf(2));
    mix_copy(1, 1);
    mix_copy(0, 0);
    spec.method = &script_method;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, 64, &seq));
    ref_open(&ref, &spec, 64);
    marks_wrong = 0;
    for (int32_t pos = 0; pos < PROMPT; pos++) ref_append(&ref, &spec, 0, 1, 1, pos);
    ref_mix(&ref, SF_F32, &m.mix);
    event = 0;
    SF_MUST(rig_feed(&rig, seq, 0, 0, PROMPT));
    for (int32_t pos = PROMPT; pos < 60; pos++) {
        event = 1 + (pos - PROMPT) / 4;
        SF_MUST(rig_feed(&rig, seq, 0, pos, 1));
        ref_append(&ref, &spec, 0, 1, 1, pos);
        if ((pos + 1) % 4 == 0) {
            int32_t kept[64], n = 0;
            for (int32_t s = 0; s < ref.slots; s++)
                if (ref.pos[s] % 5 != 4 || ref.pos[s] >= pos + 1 - TAIL) kept[n++] = s;
            ref_keep(&ref, kept, n);
        }
        check_lane(&rig, seq, 1, 1, &ref);
    }
    SF_CHECK_INT(marks_wrong, 0);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 4 * ref.slots * (14 * 4 + 8 + 4));
    ref_close(&ref);
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

static const struct sf_test tests[] = {
    { "keeps that are refused", test_keep_refusals },
    { "other refusals", test_other_refusals },
    { "all or none, over sequences", test_all_or_none },
    { "mixes that are refused", test_mix_refusals },
    { "a mix: sums, bias, counts", test_mix },
    { "a mix: weights", test_mix_weights },
    { "a mix: order", test_mix_order },
    { "a mix: long sums", test_mix_long },
    { "the end of a lane is used again", test_end_is_used },
    { "aux follows slots, a lane keeps its order", test_aux_and_order },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_edit", tests)
