/* tests/unit/worker/lab.c: the parts of a trace come together, and a rank that fails stops all.
 *
 * Ranks are threads.  Shown: on 1 to 5 ranks, with heads that do not divide and heads that are held
 * more than once, rank 0 gets every output once and each lane once, equal to a single rank's; where
 * one rank brings a failure, it keeps its words, all others are told to stop, and nobody waits. */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/opt.h"
#include "tests/check.h"
#include "worker/lab.h"

enum { RANKS_MAX = 5, LAYERS = 2, ROWS = 20, POOL_BYTES = 1 << 20 };

static const int32_t q_heads[LAYERS] = { 6, 10 }, kv_heads[LAYERS] = { 3, 2 };
static const int32_t k_dim = 8, v_dim = 6;
static struct sf_trace trace;

static void make_trace(void)
{
    char path[64], name[3 * LAYERS][24];
    struct sf_st_tensor tensor[3 * LAYERS];
    float *data[3 * LAYERS];
    unsigned draw = 1;
    snprintf(path, sizeof path, "/tmp/sheaf-test-lab-%ld", (long)getpid());
    for (int i = 0; i < 3 * LAYERS; i++) {
        int32_t heads = i % 3 == 0 ? q_heads[i / 3] : kv_heads[i / 3];
        int32_t dim = i % 3 == 2 ? v_dim : k_dim;
        size_t elements = (size_t)ROWS * (size_t)heads * (size_t)dim;
        snprintf(name[i], sizeof name[i], "layers.%d.%c", i / 3, "qkv"[i % 3]);
        data[i] = malloc(elements * sizeof *data[i]);
        for (size_t e = 0; e < elements; e++) {
            draw = draw * 1103515245u + 12345u;
            data[i][e] = (float)(draw >> 16 & 255) / 64 - 2;
        }
        tensor[i] = (struct sf_st_tensor){ .name = name[i], .type = SF_ST_F32, .n_dims = 3,
                                           .dims = { ROWS, heads, dim }, .data = data[i] };
    }
    const struct sf_st_meta meta[] = { { "prompt_tokens", "13" }, { "chunk_tokens", "5" },
                                       { "rope_theta", "1000" } };
    struct sf_st_content content = { tensor, 3 * LAYERS, meta, 3 };
    SF_CHECK_OK(sf_st_write(path, &content));
    SF_CHECK_OK(sf_trace_open(path, &trace));
    unlink(path);
    for (int i = 0; i < 3 * LAYERS; i++) free(data[i]);
}

struct rank {
    pthread_t thread;
    struct sf_comm *world;
    sf_status fails_with, status;       /* what it brings to the gathering; what it leaves with */
    char words[256];
    struct sf_trace_result result;
    struct sf_trace_counts counts;
};

static sf_status run_rank(struct rank *self)
{
    int32_t ranks = sf_comm_size(self->world), me = sf_comm_rank(self->world), heads[LAYERS];
    struct sf_share share;
    struct sf_setup setup;
    struct sf_stack stack = { 0 };
    struct sf_stack_entry *entry;
    struct sf_lab *lab;
    const struct sf_placing placing = { .rule = SF_PLACE_BALANCED };
    SF_TRY(sf_share_make(&trace.desc, &placing, ranks, me, 0, LAYERS, &share));
    for (int l = 0; l < LAYERS; l++) heads[l] = share.kv_ptr[l + 1] - share.kv_ptr[l];
    const struct sf_rank rank = { .layer_count = LAYERS, .tp_rank = me, .heads = heads };
    SF_TRY(sf_setup_make(&trace.desc, ranks, 16, ROWS, &setup));
    SF_TRY(sf_stack_add(&stack, "window", &entry));
    SF_TRY(sf_opt_set(sf_opt_find(entry->method->opts, "recent_tokens"), entry->cfg, "6"));
    SF_TRY(sf_stack_check(&stack, &setup));
    setup.rank = &rank;
    struct sf_lab_spec spec = { .trace = &trace, .share = &share, .stack = &stack,
                                .setup = &setup, .world = self->world,
                                .placing = placing, .dtype = SF_F32,
                                .kv_dtype = SF_F32, .page_slots = 16, .threads = 1,
                                .pool_bytes = POOL_BYTES, .device = "ref" };
    SF_TRY(sf_lab_open(&spec, &lab));
    sf_status status = sf_lab_run(lab);
    if (self->fails_with != SF_OK)
        status = SF_FAIL(self->fails_with, "a made failure of rank %d", me);
    status = sf_lab_gather(lab, status, &self->result, &self->counts);
    sf_lab_close(lab);
    sf_stack_free(&stack);
    sf_setup_free(&setup);
    sf_share_free(&share);
    return status;
}

static void *rank_thread(void *arg)
{
    struct rank *self = arg;
    self->status = run_rank(self);
    snprintf(self->words, sizeof self->words, "%.255s", sf_error_text());
    return NULL;
}

static void run_ranks(struct rank *rank, int32_t ranks)
{
    struct sf_comm_options options = { 0 };
    struct sf_comm *world[RANKS_MAX];
    SF_MUST(sf_comm_loopback_world(ranks, 0, &options, world));
    for (int32_t r = 0; r < ranks; r++) {
        rank[r].world = world[r];
        pthread_create(&rank[r].thread, NULL, rank_thread, &rank[r]);
    }
    for (int32_t r = 0; r < ranks; r++) pthread_join(rank[r].thread, NULL);
    for (int32_t r = 0; r < ranks; r++) sf_comm_destroy(world[r]);
}

static int same_floats(const float *a, const float *b, size_t count)
{
    return memcmp(a, b, count * sizeof *a) == 0;
}

/* The plain backend computes each head by itself, so equal means bit for bit. */
static void check_same(const struct rank *one, const struct rank *many)
{
    int32_t lane = 0;
    SF_CHECK(memcmp(&one->counts, &many->counts, sizeof one->counts) == 0);
    for (int32_t l = 0; l < LAYERS; l++) {
        SF_CHECK(same_floats(one->result.out[l], many->result.out[l],
                             (size_t)(ROWS * q_heads[l] * v_dim)));
        for (int32_t h = 0; h < kv_heads[l]; h++, lane++) {
            const struct sf_trace_lane *a = &one->result.lane[lane], *b = &many->result.lane[lane];
            SF_CHECK_INT(b->slots, 10);                 /* 4 sinks, 6 recent */
            if (a->slots != b->slots) continue;
            SF_CHECK(memcmp(a->pos, b->pos, (size_t)a->slots * sizeof *a->pos) == 0);
            SF_CHECK(same_floats(a->bias, b->bias, (size_t)a->slots));
            SF_CHECK(same_floats(a->k, b->k, (size_t)(a->slots * k_dim)));
            SF_CHECK(same_floats(a->v, b->v, (size_t)(a->slots * v_dim)));
        }
    }
}

static void test_gathers(void)
{
    struct rank one[1] = { { .status = SF_OK } };
    make_trace();
    run_ranks(one, 1);
    SF_CHECK_INT(one->status, SF_OK);
    SF_CHECK_INT(one->counts.slots_evicted, (3 + 2) * 10);
    SF_CHECK_INT(one->counts.bytes_stored, (3 + 2) * 10 * ((8 + 6) * 4 + 8));
    SF_CHECK_INT(one->counts.bytes_exact, (3 + 2) * 20 * ((8 + 6) * 4 + 8));
    for (int32_t ranks = 2; ranks <= RANKS_MAX; ranks++) {
        struct rank many[RANKS_MAX] = { { .status = SF_OK } };
        run_ranks(many, ranks);
        for (int32_t r = 0; r < ranks; r++) SF_CHECK_INT(many[r].status, SF_OK);
        if (many[0].status == SF_OK) check_same(one, many);
        sf_trace_result_free(&many[0].result);
    }
    sf_trace_result_free(&one->result);
    sf_trace_close(&trace);
}

static void test_stops(void)
{
    enum { RANKS = 3 };
    make_trace();
    for (int32_t bad = 0; bad < RANKS; bad++) {
        struct rank rank[RANKS] = { { .status = SF_OK } };
        char words[64];
        rank[bad].fails_with = SF_NO_PAGES;
        run_ranks(rank, RANKS);
        snprintf(words, sizeof words, "a made failure of rank %d", bad);
        for (int32_t r = 0; r < RANKS; r++)
            SF_CHECK_INT(rank[r].status, r == bad ? SF_NO_PAGES : SF_STOPPED);
        SF_CHECK_STR(rank[bad].words, words);
        SF_CHECK(rank[0].result.out == NULL);
    }
    sf_trace_close(&trace);
}

static const struct sf_test tests[] = { { "gathers", test_gathers }, { "stops", test_stops },
                                        { NULL, NULL } };
SF_TEST_MAIN("lab", tests)
