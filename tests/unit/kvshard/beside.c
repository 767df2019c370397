/* tests/unit/kvshard/beside.c: layer groups that are factored beside the layers behind them.
 *
 * Two stores are fed alike, one of which has a thread for factors.  Shown, for groups of every
 * size, exact values, landmarks, sealed answers and each way to factors, several sequences in one
 * event and prompts in pieces: what rows get, what lanes hold, pages and receipts are the same, bit
 * for bit.  Then, with a factorisation that waits until it is told to go on, when what is done: the
 * next layers do not wait, the next hook does.  What fails there fails the step, what is not finite
 * or has no pages ends as it does without a thread, and a sequence may close while it is factored.
 */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvshard/methods.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"

enum { PROMPT = 90, MORE = 40, TOKENS = PROMPT + MORE, DIM = 16, SEQS = 3, LANES = 2, LAYERS = 4 };

static struct rig_spec spec_of(const char *device, const char *size)
{
    struct rig_spec spec = rig_usual();
    const struct rig_option option[] = { { "group_size", size }, { "rank_k", "6" },
                                         { "rank_v", "9" }, { "num_sink_tokens", "2" },
                                         { "min_prompt_tokens", "1" } };
    spec.device = device;
    spec.layers = LAYERS;
    spec.lanes = LANES;
    spec.k_dim = spec.v_dim = spec.rope_dim = DIM;
    spec.page_slots = 32;
    spec.tokens_max = TOKENS;
    spec.method = sf_method_find("xkv");
    memcpy(spec.option, option, sizeof option);
    return spec;
}

static void set(struct rig_spec *spec, const char *key, const char *text)
{
    int i = 0;
    while (spec->option[i].key && strcmp(spec->option[i].key, key) != 0) i++;
    SF_ASSERT(i < RIG_OPTIONS);
    spec->option[i] = (struct rig_option){ key, text };
}

/* ---- two stores that are fed alike ---------------------------------------------------------- */
struct pair { struct rig rig[2]; struct sf_seq *seq[2][SEQS]; }; /* at once; beside */

static void open_pair(const struct rig_spec *spec, struct pair *pair)
{
    for (int i = 0; i < 2; i++) {
        struct rig_spec mine = *spec;
        mine.threads_beside = i;
        SF_MUST(rig_open(&mine, &pair->rig[i]));
        for (int s = 0; s < SEQS; s++)
            SF_MUST(sf_seq_open(pair->rig[i].store, s, PROMPT - s, TOKENS, &pair->seq[i][s]));
    }
    SF_CHECK_INT(pair->rig[0].store->beside.threads, 0);
    SF_CHECK_INT(pair->rig[1].store->beside.threads, 1);
}

static void check_outputs(const struct pair *pair, int32_t rows)
{
    size_t floats = (size_t)rows * LANES * 2 * DIM;
    for (int32_t l = 0; l < LAYERS; l++)
        SF_CHECK(memcmp(pair->rig[0].out[l], pair->rig[1].out[l], floats * sizeof(float)) == 0);
}

static void check_lanes(const struct pair *pair, int s)
{
    static float k[2][TOKENS * DIM], v[2][TOKENS * DIM], bias[2][TOKENS];
    static int32_t pos[2][TOKENS];
    static uint8_t tier[2][TOKENS];
    for (int32_t layer = 0; layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++) {
            int32_t slots[2];
            for (int i = 0; i < 2; i++) {
                const struct sf_store *store = pair->rig[i].store;
                const struct sf_seq *seq = pair->seq[i][s];
                slots[i] = sf_seq_lane_slots(store, seq, layer, l);
                SF_MUST(sf_seq_lane_read(store, seq, layer, l, k[i], v[i], pos[i], bias[i]));
                sf_seq_lane_tiers(store, seq, layer, l, tier[i]);
            }
            size_t n = (size_t)slots[0];
            SF_CHECK_INT(slots[1], slots[0]);
            SF_CHECK(memcmp(k[0], k[1], n * DIM * sizeof(float)) == 0);
            SF_CHECK(memcmp(v[0], v[1], n * DIM * sizeof(float)) == 0);
            SF_CHECK(memcmp(pos[0], pos[1], n * sizeof(int32_t)) == 0);
            SF_CHECK(memcmp(bias[0], bias[1], n * sizeof(float)) == 0);
            SF_CHECK(memcmp(tier[0], tier[1], n) == 0);
        }
}

static void check_books(const struct pair *pair)
{
    const struct sf_store *at_once = pair->rig[0].store, *beside = pair->rig[1].store;
    SF_CHECK_INT(beside->encodings, 0);
    SF_CHECK_INT(beside->pool.used, at_once->pool.used);
    SF_CHECK_INT(beside->bytes_stored, at_once->bytes_stored);
    for (int s = 0; s < SEQS; s++) {
        struct sf_receipt a, b;
        sf_seq_receipt(at_once, pair->seq[0][s], &a);
        sf_seq_receipt(beside, pair->seq[1][s], &b);
        SF_CHECK_INT(b.bytes_stored, a.bytes_stored);
        SF_CHECK_INT(b.slots_requantised, a.slots_requantised);
        SF_CHECK_INT(b.edits, a.edits);
        SF_CHECK_INT(b.changed, a.changed);
        SF_CHECK_INT(pair->seq[1][s]->pages, pair->seq[0][s]->pages);
        SF_CHECK(b.bytes_peak >= a.bytes_peak);
    }
}

static void close_pair(struct pair *pair)
{
    for (int i = 0; i < 2; i++) {
        for (int s = 0; s < SEQS; s++) sf_seq_close(pair->rig[i].store, pair->seq[i][s], NULL);
        SF_CHECK_INT(pair->rig[i].store->pool.used, 0);
        SF_CHECK_INT(pair->rig[i].store->bytes_stored, 0);
        rig_close(&pair->rig[i]);
    }
}

/* All prompts end in one step; answers go on row by row. */
static void feed_pair(struct pair *pair)
{
    for (int32_t at = 0, rows; at < TOKENS; at += rows) {
        rows = at == 0 ? 50 : at < PROMPT ? PROMPT - at : 1;
        for (int i = 0; i < 2; i++) {
            struct rig_item item[SEQS];
            for (int s = 0; s < SEQS; s++)      /* each prompt is a row shorter than the last */
                item[s] = (struct rig_item){ pair->seq[i][s], s, at < PROMPT ? at : at - s,
                                             at > 0 && at < PROMPT ? rows - s : rows };
            SF_MUST(rig_run(&pair->rig[i], item, SEQS));
        }
        check_outputs(pair, SEQS * rows - (at > 0 && at < PROMPT ? 3 : 0));
        if (at < PROMPT || at == TOKENS - 1) {
            for (int s = 0; s < SEQS; s++) check_lanes(pair, s);
            check_books(pair);
        }
    }
    SF_CHECK(pair->seq[1][0]->edits > 0);
}

static void check_alike(const struct rig_spec *spec)
{
    static struct pair pair;
    open_pair(spec, &pair);
    feed_pair(&pair);
    struct sf_store_seconds a = sf_store_seconds(pair.rig[0].store);
    struct sf_store_seconds b = sf_store_seconds(pair.rig[1].store);
    SF_CHECK(a.factor > 0 && a.factor_wait == a.factor && a.edit > a.factor);
    SF_CHECK(b.factor > 0 && b.factor_wait > 0 && b.edit > b.factor_wait);
    close_pair(&pair);
}

static void test_alike(void)
{
    static const char *const sizes[] = { "1", "2", "3", "4" };
    static const char *const others[][2] = {
        { "rank_v", "0" }, { "svd.method", "exact" }, { "svd.method", "gram" },
        { "svd.oversample", "3" }, { "refactor_every", "11" }, { "layer_groups", "[0-0, 1-3]" },
        { "reconstruction", "selective" } };
    struct rig_spec spec = spec_of("ref", "2");
    check_alike(&spec);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        spec = spec_of("cpu", sizes[i]);
        check_alike(&spec);
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        spec = spec_of("cpu", "2");
        set(&spec, others[i][0], others[i][1]);
        if (strcmp(others[i][0], "reconstruction") == 0) {
            set(&spec, "chunk_size", "4");
            set(&spec, "budget_tokens", "16");
            set(&spec, "local_chunks", "1");
            set(&spec, "outlier_chunks", "3");
        }
        check_alike(&spec);
    }
}

/* Less room than the sequences of an event want together: each waits for those before it; less
 * than one wants: it is done at once. */
static void test_little_room(void)
{
    struct rig_spec spec = spec_of("cpu", "2");
    static struct pair pair;
    for (int tiny = 0; tiny < 2; tiny++) {
        open_pair(&spec, &pair);
        if (tiny) pair.rig[1].store->beside.room_bytes = 64;
        feed_pair(&pair);
        struct sf_store_seconds b = sf_store_seconds(pair.rig[1].store);
        SF_CHECK(!tiny || b.factor_wait == b.factor);
        close_pair(&pair);
    }
}

/* ---- a factorisation that waits to be told -------------------------------------------------- */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int allowed, begun;
static sf_status answers;
static const struct sf_kernels *real;
static struct sf_kernels slow;

static void allow(int more)
{
    pthread_mutex_lock(&lock);
    allowed += more;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void await_begun(int count)
{
    pthread_mutex_lock(&lock);
    while (begun < count) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static sf_status slow_factor(struct sf_device *device, const struct sf_factor_job *job)
{
    pthread_mutex_lock(&lock);
    begun++;
    pthread_cond_broadcast(&changed);
    while (allowed == 0) pthread_cond_wait(&changed, &lock);
    allowed--;
    sf_status status = answers;
    pthread_mutex_unlock(&lock);
    if (status != SF_OK) return SF_FAIL(status, "the test says no");
    return real->factor(device, job);
}

static void open_slow(const struct rig_spec *spec, struct rig *rig, struct sf_seq **seq)
{
    struct rig_spec mine = *spec;
    mine.threads_beside = 1;
    SF_MUST(rig_open(&mine, rig));
    real = rig->store->beside.device.k;
    slow = *real;
    slow.factor = slow_factor;
    rig->store->beside.device.k = &slow;
    allowed = begun = 0;
    answers = SF_OK;
    SF_MUST(sf_seq_open(rig->store, 7, PROMPT, TOKENS, seq));
}

static struct sf_seq *looked_at;
static int32_t live(int32_t group) { return looked_at->group[group].tier.live; }

/* Groups 0-1 and 2-3: the first is factored while layer 2 runs, and finished before the hook of
 * layer 3 sees anything; the second is finished with the step. */
static void look(struct rig *rig, int32_t layer)
{
    if (layer == 0) SF_CHECK_INT(rig->store->encodings, 0);
    if (layer == 1 || layer == 2) {
        if (layer == 1) await_begun(1);
        SF_CHECK_INT(rig->store->encodings, 1);
        SF_CHECK_INT(live(0), 0);
        SF_CHECK_INT(sf_store_lane_of(rig->store, looked_at, 0, 0)->live, PROMPT);
    }
    if (layer == 2) allow(2);
    if (layer == 3) {
        SF_CHECK_INT(rig->store->encodings, 1);
        SF_CHECK_INT(live(0), PROMPT - 2);
        SF_CHECK_INT(live(1), 0);
        allow(2);
    }
}

static void test_order(void)
{
    struct rig_spec spec = spec_of("ref", "2");
    struct rig rig;
    spec.after_layer = look;
    open_slow(&spec, &rig, &looked_at);
    SF_MUST(rig_feed(&rig, looked_at, 1, 0, PROMPT));
    SF_CHECK_INT(begun, 4);
    SF_CHECK_INT(rig.store->encodings, 0);
    SF_CHECK_INT(live(0), PROMPT - 2);
    SF_CHECK_INT(live(1), PROMPT - 2);
    sf_seq_close(rig.store, looked_at, NULL);
    rig_close(&rig);
}

/* A step of which the first layers run and no more. */
static void run_layers(struct rig *rig, struct sf_seq *seq, int32_t layers)
{
    static float q[PROMPT * LANES * 2 * DIM], kv[PROMPT * LANES * DIM],
        out[PROMPT * LANES * 2 * DIM];
    struct sf_kv_item item = { .seq = seq, .rows = PROMPT };
    struct sf_kv_step step = { .item = &item, .items = 1, .q = q, .k = kv, .v = kv,
                               .q_stride = LANES * 2 * DIM, .k_stride = LANES * DIM,
                               .v_stride = LANES * DIM, .out = out,
                               .out_stride = LANES * 2 * DIM, .out_head_stride = DIM,
                               .out_dtype = SF_F32 };
    for (size_t i = 0; i < sizeof kv / sizeof *kv; i++) kv[i] = (float)(i * 37 % 101) / 50 - 1;
    for (int32_t l = 0; l < layers; l++) SF_MUST(sf_store_layer(rig->store, l, &step));
}

static void *allow_soon(void *unused)
{
    (void)unused;
    await_begun(1);
    allow(2);                           /* keys and values */
    return NULL;
}

/* The job has failed elsewhere: the sequence goes while its group is being factored. */
static void test_close(void)
{
    struct rig_spec spec = spec_of("ref", "2");
    struct rig rig;
    struct sf_seq *seq;
    pthread_t thread;
    open_slow(&spec, &rig, &seq);
    run_layers(&rig, seq, 3);
    SF_CHECK_INT(rig.store->encodings, 1);
    SF_CHECK_INT(pthread_create(&thread, NULL, allow_soon, NULL), 0);
    struct sf_receipt receipt;
    sf_seq_close(rig.store, seq, &receipt);
    pthread_join(thread, NULL);
    SF_CHECK_INT(receipt.slots_requantised, 0);
    SF_CHECK_INT(rig.store->pool.used, 0);
    SF_CHECK_INT(rig.store->encodings, 0);
    rig_close(&rig);
}

/* Goes on when the list has been cut to the job that is under way. */
static void *allow_when_cut(void *arg)
{
    struct sf_beside *beside = arg;
    for (int cut = 0; !cut; usleep(1000)) {
        pthread_mutex_lock(&beside->lock);
        cut = beside->jobs == 1;
        pthread_mutex_unlock(&beside->lock);
    }
    allow(1);
    return NULL;
}

/* Two jobs, of which the second waits for the first: it is never begun. */
static void test_drop(void)
{
    struct sf_beside beside;
    struct sf_beside_job job[2] = { { .kinds = 1 }, { .kinds = 1 } };
    struct sf_device_spec spec = { .name = "ref", .threads = 1, .rows_max = 64 };
    struct sf_device *device;
    float x[4] = { 1, 2, 3, 4 }, a[2], b[2];
    pthread_t thread;
    SF_MUST(sf_device_open(&spec, &device));
    job[0].kind[0] = (struct sf_factor_job){ .rows = 2, .cols = 2, .rank = 1, .x = x,
                                             .x_stride = 2, .a = a, .a_stride = 1, .b = b,
                                             .b_stride = 2 };
    job[0].kind[0].scratch = calloc(1, device->k->factor_bytes(&job[0].kind[0]));
    job[1].kind[0] = job[0].kind[0];
    job[1].status = SF_STOPPED;         /* as nobody leaves it */
    SF_MUST(sf_beside_create(device, 1, 4096, &beside));
    real = beside.device.k;
    slow = *real;
    slow.factor = slow_factor;
    beside.device.k = &slow;
    allowed = begun = 0;
    answers = SF_OK;
    sf_beside_begin(&beside, &job[0]);
    sf_beside_begin(&beside, &job[1]);
    await_begun(1);
    SF_CHECK_INT(pthread_create(&thread, NULL, allow_when_cut, &beside), 0);
    sf_beside_drop(&beside);
    pthread_join(thread, NULL);
    sf_beside_destroy(&beside);
    SF_CHECK_INT(job[0].status, SF_OK);
    SF_CHECK_INT(job[1].status, SF_STOPPED);
    SF_CHECK_INT(begun, 1);
    free(job[0].kind[0].scratch);
    sf_device_close(device);
}

/* ---- what goes wrong ------------------------------------------------------------------------ */
static void test_failure(void)
{
    struct rig_spec spec = spec_of("ref", "4");
    struct rig rig;
    struct sf_seq *seq;
    open_slow(&spec, &rig, &seq);
    answers = SF_INTERNAL;
    allowed = 1;
    CHECK_REFUSED(rig_feed(&rig, seq, 1, 0, PROMPT), SF_INTERNAL, "the test says no");
    SF_CHECK_INT(rig.store->encodings, 0);
    SF_CHECK_INT(seq->group[0].tier.live, 0);
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(rig.store->pool.used, 0);
    rig_close(&rig);
}

/* A key of layer 2 that is no number, while the prompt runs: in the middle of a group, or in the
 * last layer of one. */
static void spoil(struct rig *rig, const struct sf_seq *seq)
{
    const struct sf_kv_lane *lane = sf_store_lane_of(rig->store, seq, 2, 0);
    float k[DIM], v[DIM] = { 0 };
    int32_t pos = 5;
    for (int i = 0; i < DIM; i++) k[i] = i == 3 ? NAN : 1;
    struct sf_append_lane at = { .pages = lane->page, .slot_first = 5, .rows = 1 };
    struct sf_append_job job = { .layout = rig->store->layer[2].layout,
                                 .pool = rig->store->pool.base,
                                 .page_bytes = rig->store->pool.page_bytes, .k = k, .v = v,
                                 .k_stride = DIM, .v_stride = DIM, .pos = &pos, .lane = &at,
                                 .lanes = 1 };
    rig->device->k->kv_append(rig->device, &job);
}

static void test_not_finite(void)
{
    struct rig_spec spec = spec_of("cpu", "2");
    static struct pair pair;
    open_pair(&spec, &pair);
    for (int i = 0; i < 2; i++) {
        struct rig_item item[SEQS];
        for (int s = 0; s < SEQS; s++)
            item[s] = (struct rig_item){ pair.seq[i][s], s, 0, 40 };
        SF_MUST(rig_run(&pair.rig[i], item, SEQS));
        spoil(&pair.rig[i], pair.seq[i][1]);
        for (int s = 0; s < SEQS; s++)
            item[s] = (struct rig_item){ pair.seq[i][s], s, 40, PROMPT - s - 40 };
        SF_MUST(rig_run(&pair.rig[i], item, SEQS));
        for (int s = 0; s < SEQS; s++) {
            SF_CHECK_INT(pair.seq[i][s]->group[0].tier.live, PROMPT - s - 2);
            SF_CHECK_INT(pair.seq[i][s]->group[1].tier.live, s == 1 ? 0 : PROMPT - s - 2);
        }
    }
    check_books(&pair);
    close_pair(&pair);
}

/* Pages for the raw prompt and nothing beside it. */
static void test_no_pages(void)
{
    for (int32_t beside = 0; beside < 2; beside++) {
        struct rig_spec spec = spec_of("ref", "2");
        struct rig rig;
        struct sf_seq *seq;
        spec.threads_beside = beside;
        spec.pages = LAYERS * LANES * 3;
        SF_MUST(rig_open(&spec, &rig));
        SF_MUST(sf_seq_open(rig.store, 1, PROMPT, TOKENS, &seq));
        SF_MUST(rig_feed(&rig, seq, 1, 0, 70));
        CHECK_REFUSED(rig_feed(&rig, seq, 1, 70, PROMPT - 70), SF_NO_PAGES, "a layer group needs");
        SF_CHECK_INT(rig.store->encodings, 0);
        SF_CHECK_INT(seq->group[0].tier.live, 0);
        sf_seq_close(rig.store, seq, NULL);
        SF_CHECK_INT(rig.store->pool.used, 0);
        rig_close(&rig);
    }
}

static const struct sf_test tests[] = {
    { "the same as at once", test_alike }, { "little room", test_little_room },
    { "what is done when", test_order }, { "closed while it is factored", test_close },
    { "jobs that never begin", test_drop }, { "a factorisation that fails", test_failure },
    { "not finite", test_not_finite }, { "no pages", test_no_pages }, { NULL, NULL }
};
SF_TEST_MAIN("kvshard_beside", tests)
