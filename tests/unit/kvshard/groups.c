/* tests/unit/kvshard/groups.c: sequences whose layers share a basis, in the store.
 *
 * - With rank_v 0 the values of an encoded prompt are those of the exact cache, bit for bit, in
 *   every element type, and pages are saved as bytes are; the pages come back at the end.
 * - What a decoded row gets is the softmax, in f64, over the keys and values that a lane shows:
 *   the order in which attention works on a basis changes nothing.
 * - A prompt that holds a key that is not finite stays as it is, and others are encoded.  Where its
 *   pages are missing afterwards, the words say so. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvshard/methods.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"

enum { PROMPT = 200, MORE = 3, TOKENS = PROMPT + MORE, DIM = 32, LAYERS = 2, LANES = 2 };

static struct rig_spec spec_of(const char *device, enum sf_dtype dtype, const char *rank_v)
{
    struct rig_spec spec = rig_usual();
    spec.device = device;
    spec.dtype = dtype;
    spec.k_dim = spec.v_dim = spec.rope_dim = DIM;
    spec.page_slots = 32;
    if (rank_v == NULL) return spec;
    const struct rig_option option[] = { { "group_size", "2" }, { "rank_k", "12" },
                                         { "rank_v", rank_v }, { "num_sink_tokens", "2" },
                                         { "min_prompt_tokens", "1" } };
    spec.method = sf_method_find("xkv");
    memcpy(spec.option, option, sizeof option);
    return spec;
}

/* A prompt in two parts, and rows behind it. */
static void feed(struct rig *rig, const struct rig_spec *spec, struct sf_seq **seq)
{
    SF_MUST(rig_open(spec, rig));
    SF_MUST(sf_seq_open(rig->store, 1, PROMPT, TOKENS, seq));
    SF_MUST(rig_feed(rig, *seq, 1, 0, 77));
    SF_MUST(rig_feed(rig, *seq, 1, 77, PROMPT - 77));
}

static void read_lane(const struct rig *rig, const struct sf_seq *seq, int32_t layer, int32_t lane,
                      struct ref_lane *out)
{
    ref_open(out, &rig->spec, TOKENS);
    out->slots = sf_seq_lane_slots(rig->store, seq, layer, lane);
    SF_MUST(sf_seq_lane_read(rig->store, seq, layer, lane, out->k, out->v, out->pos, out->bias));
}

static void check_decode(struct rig *rig, struct sf_seq *seq)
{
    for (int32_t pos = PROMPT; pos < TOKENS; pos++) {
        SF_MUST(rig_feed(rig, seq, 1, pos, 1));
        for (int32_t layer = 0; layer < LAYERS; layer++)
            for (int32_t l = 0; l < LANES; l++) {
                struct ref_lane lane;
                read_lane(rig, seq, layer, l, &lane);
                SF_CHECK_INT(lane.slots, pos + 1);
                check_row(rig, 1, layer, l, 0, pos, &lane, NULL, NULL, 2e-5);
                ref_close(&lane);
            }
    }
}

static void check_values(const char *device, enum sf_dtype dtype)
{
    struct rig_spec spec = spec_of(device, dtype, "0"), plain = spec_of(device, dtype, NULL);
    struct rig rig, exact;
    struct sf_seq *seq, *same;
    feed(&rig, &spec, &seq);
    feed(&exact, &plain, &same);
    for (int32_t layer = 0; layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++) {
            struct ref_lane mine, theirs;
            read_lane(&rig, seq, layer, l, &mine);
            read_lane(&exact, same, layer, l, &theirs);
            SF_CHECK_INT(mine.slots, PROMPT);
            SF_CHECK(memcmp(mine.pos, theirs.pos, PROMPT * sizeof *mine.pos) == 0);
            SF_CHECK(memcmp(mine.v, theirs.v, PROMPT * DIM * sizeof(float)) == 0);
            SF_CHECK(memcmp(mine.k, theirs.k, 2 * DIM * sizeof(float)) == 0);
            SF_CHECK(memcmp(mine.k, theirs.k, PROMPT * DIM * sizeof(float)) != 0);
            ref_close(&mine);
            ref_close(&theirs);
        }
    /* Of 28 raw pages: 4 for sinks and what follows, 7 of the basis, 4 of factors, 16 of values. */
    SF_CHECK(sf_store_bytes_stored(rig.store) < sf_store_bytes_stored(exact.store) * 3 / 4);
    SF_CHECK_INT(exact.store->pool.used, LAYERS * LANES * 7);
    const struct sf_segment *one = &seq->group[0].segment[0];
    SF_CHECK_INT(one->values[0].pages, 4);
    SF_CHECK_INT(rig.store->pool.used, LAYERS * LANES * (1 + 1 + 4) + one->basis.pages);
    check_decode(&rig, seq);
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(rig.store->pool.used, 0);
    sf_seq_close(exact.store, same, NULL);
    rig_close(&rig);
    rig_close(&exact);
}

static void test_values(void)
{
    for (int cpu = 0; cpu < 2; cpu++) {
        check_values(cpu ? "cpu" : "ref", SF_F32);
        check_values(cpu ? "cpu" : "ref", SF_F16);
        check_values(cpu ? "cpu" : "ref", SF_BF16);
    }
}

static void test_fused(void)
{
    for (int cpu = 0; cpu < 2; cpu++) {
        struct rig_spec spec = spec_of(cpu ? "cpu" : "ref", SF_F32, "20");
        struct rig rig;
        struct sf_seq *seq;
        feed(&rig, &spec, &seq);
        SF_CHECK(seq->group[0].values == NULL && seq->group[0].tier.live == PROMPT - 2);
        check_decode(&rig, seq);
        sf_seq_close(rig.store, seq, NULL);
        rig_close(&rig);
    }
}

/* Slot 5 of a lane gets a key that is no number, while the prompt runs. */
static void spoil(struct rig *rig, const struct sf_seq *seq)
{
    const struct sf_kv_lane *lane = sf_store_lane_of(rig->store, seq, 1, 0);
    float k[DIM], v[DIM] = { 0 };
    int32_t pos = 5;
    for (int i = 0; i < DIM; i++) k[i] = i == 3 ? NAN : 1;
    struct sf_append_lane at = { .pages = lane->page, .slot_first = 5, .rows = 1 };
    struct sf_append_job job = { .layout = rig->store->layer[1].layout,
                                 .pool = rig->store->pool.base,
                                 .page_bytes = rig->store->pool.page_bytes, .k = k, .v = v,
                                 .k_stride = DIM, .v_stride = DIM, .pos = &pos, .lane = &at,
                                 .lanes = 1 };
    rig->device->k->kv_append(rig->device, &job);
}

static void test_not_finite(void)
{
    struct rig_spec spec = spec_of("cpu", SF_F32, "20");
    struct rig rig;
    struct sf_seq *bad, *good;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, 50, 60, &bad));
    SF_MUST(sf_seq_open(rig.store, 2, 50, 100, &good));
    SF_MUST(rig_feed(&rig, bad, 1, 0, 20));
    SF_MUST(rig_feed(&rig, good, 2, 0, 50));
    spoil(&rig, bad);
    int64_t before = sf_store_bytes_stored(rig.store);
    SF_MUST(rig_feed(&rig, bad, 1, 20, 30));
    SF_CHECK_INT(bad->group[0].tier.live, 0);
    SF_CHECK_INT(good->group[0].tier.live, 48);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store) - before,
                 INT64_C(30) * LAYERS * LANES * (2 * DIM * 4 + 8));
    SF_CHECK_INT(sf_seq_lane_slots(rig.store, bad, 1, 0), 50);
    int32_t pages = rig.store->pool.pages;
    rig.store->pool.pages = rig.store->pool.used;
    SF_CHECK_FAILS(rig_feed(&rig, good, 2, 50, 40), SF_NO_PAGES);
    SF_CHECK(strstr(sf_error_text(), "not finite, 1 of them, hold more than was planned") != NULL);
    rig.store->pool.pages = pages;
    sf_seq_close(rig.store, bad, NULL);
    SF_CHECK_INT(rig.store->left_raw, 0);
    sf_seq_close(rig.store, good, NULL);
    SF_CHECK_INT(rig.store->pool.used, 0);
    rig_close(&rig);
}

static const struct sf_test tests[] = {
    { "exact values", test_values }, { "what a row gets", test_fused },
    { "not finite", test_not_finite }, { NULL, NULL }
};
SF_TEST_MAIN("kvshard_groups", tests)
