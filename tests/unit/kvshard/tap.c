/* tests/unit/kvshard/tap.c: who looks on sees what attention saw.
 *
 * Sequences of several lengths in calls of several rows, with and without a method that edits.
 * Shown: every row of every sequence and layer comes once, in order, with the queries that were
 * handed in and the log-sum-exp of its logits, worked out from the definition in f64; the keys of
 * all rows so far lie in the lanes by then; outputs do not change because somebody looks; a look
 * that fails ends the call with its status. */
#include <stdlib.h>

#include "kvshard/methods.h"
#include "tests/unit/kvshard/rig.h"

enum { SEQS = 3, TOKENS = 60, LAYERS = 2 };

struct looker {
    struct rig *rig;
    const struct sf_seq *seq[SEQS];
    int32_t next[SEQS][LAYERS], calls;
    int edits;                          /* lanes lose slots: keys are not looked for */
    sf_status answer;
};

static double lse_of(const struct rig_spec *spec, int32_t number, int32_t layer, int32_t q_head,
                     int32_t pos)
{
    double sum = 0;
    for (int32_t s = 0; s <= pos; s++) {
        double dot = 0;
        for (int32_t e = 0; e < spec->k_dim; e++)
            dot += (double)rig_value(RIG_Q, number, layer, q_head, pos, e) *
                   (double)rig_value(RIG_K, number, layer, q_head / spec->group, s, e);
        sum += exp((double)spec->scale * dot);
    }
    return log(sum);
}

static void check_keys(const struct looker *looker, const struct sf_store_rows *rows,
                       int32_t number)
{
    const struct rig_spec *spec = &looker->rig->spec;
    int32_t seen = rows->pos_first + rows->rows, pos[TOKENS];
    float k[TOKENS * 8];
    for (int32_t l = 0; l < spec->lanes; l++) {
        SF_CHECK_INT(sf_seq_lane_slots(rows->store, rows->seq, rows->layer_local, l), seen);
        SF_MUST(sf_seq_lane_read(rows->store, rows->seq, rows->layer_local, l, k, NULL, pos,
                                 NULL));
        for (int32_t s = 0; s < seen; s++) {
            SF_CHECK_INT(pos[s], s);
            SF_CHECK_NEAR(k[s * spec->k_dim + 3],
                          rig_value(RIG_K, number, rows->layer_local, l, s, 3), 0);
        }
    }
}

static sf_status look(void *arg, const struct sf_store_rows *rows)
{
    struct looker *looker = arg;
    const struct rig_spec *spec = &looker->rig->spec;
    int32_t number = (int32_t)rows->seq_id, layer = rows->layer_local;
    looker->calls++;
    if (looker->answer != SF_OK) return SF_FAIL(looker->answer, "enough seen");
    SF_CHECK(rows->seq == looker->seq[number]);
    SF_CHECK_INT(rows->pos_first, looker->next[number][layer]);
    looker->next[number][layer] += rows->rows;
    for (int32_t r = 0; r < rows->rows; r++)
        for (int32_t h = 0; h < spec->lanes * spec->group; h++) {
            const float *q = rows->q + (size_t)r * rows->q_stride + (size_t)(h * spec->k_dim);
            int32_t pos = rows->pos_first + r;
            for (int32_t e = 0; e < spec->k_dim; e++)
                SF_CHECK_NEAR(q[e], rig_value(RIG_Q, number, layer, h, pos, e), 0);
            if (!looker->edits || pos < rows->prompt)
                SF_CHECK_NEAR(rows->lse[(size_t)r * rows->lse_stride + (size_t)h],
                              lse_of(spec, number, layer, h, pos), 1e-5);
        }
    if (!looker->edits) check_keys(looker, rows, number);
    return SF_OK;
}

/* Sums of all outputs, to compare by bits. */
static void run(struct rig *rig, struct looker *looker, double sum_out[LAYERS])
{
    static const int32_t prompt[SEQS] = { 31, 7, 44 }, piece[SEQS] = { 9, 3, 13 };
    struct sf_seq *seq[SEQS];
    int32_t at[SEQS] = { 0 }, width = rig->spec.lanes * rig->spec.group * rig->spec.v_dim;
    for (int i = 0; i < LAYERS; i++) sum_out[i] = 0;
    for (int32_t s = 0; s < SEQS; s++) {
        SF_MUST(sf_seq_open(rig->store, s, prompt[s], TOKENS, &seq[s]));
        if (looker != NULL) looker->seq[s] = seq[s];
    }
    for (;;) {
        struct rig_item item[SEQS];
        int32_t items = 0, rows = 0;
        for (int32_t s = 0; s < SEQS; s++) {
            int32_t end = at[s] < prompt[s] ? prompt[s] : TOKENS;
            int32_t n = end - at[s] < piece[s] ? end - at[s] : piece[s];
            if (n == 0) continue;
            item[items++] = (struct rig_item){ seq[s], s, at[s], n };
            at[s] += n;
            rows += n;
        }
        if (items == 0) break;
        SF_MUST(rig_run(rig, item, items));
        for (int l = 0; l < LAYERS; l++)
            for (int32_t i = 0; i < rows * width; i++) sum_out[l] += (double)rig->out[l][i];
    }
    for (int32_t s = 0; s < SEQS; s++) sf_seq_close(rig->store, seq[s], NULL);
}

static void check_case(const char *device, const char *method)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct looker looker = { .rig = &rig, .edits = method != NULL };
    double quiet[LAYERS], watched[LAYERS];
    spec.device = device;
    if (method != NULL) {
        spec.method = sf_method_find(method);
        spec.option[0].key = "recent_tokens";
        spec.option[0].text = "12";
    }
    SF_MUST(rig_open(&spec, &rig));
    run(&rig, NULL, quiet);
    rig_close(&rig);
    spec.tap = (struct sf_store_tap){ look, &looker };
    SF_MUST(rig_open(&spec, &rig));
    run(&rig, &looker, watched);
    rig_close(&rig);
    for (int l = 0; l < LAYERS; l++) {
        SF_CHECK_NEAR(watched[l], quiet[l], 0);
        for (int s = 0; s < SEQS; s++) SF_CHECK_INT(looker.next[s][l], TOKENS);
    }
}

static void sees_every_row(void)
{
    check_case("ref", NULL);
    check_case("cpu", NULL);
    check_case("cpu", "window");
}

static void a_failure_ends_the_call(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    struct looker looker = { .rig = &rig, .answer = SF_NO_MEMORY };
    spec.tap = (struct sf_store_tap){ look, &looker };
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, 20, 30, &seq));
    SF_CHECK_FAILS(rig_feed(&rig, seq, 0, 0, 20), SF_NO_MEMORY);
    SF_CHECK_INT(looker.calls, 1);
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

static const struct sf_test tests[] = {
    { "sees every row as attention did", sees_every_row },
    { "a failure ends the call", a_failure_ends_the_call },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_tap", tests)
