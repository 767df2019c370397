/* tests/unit/coordinator/engine.c: sequences in, tokens out.
 *
 * The real engine against made-up workers (made_workers.h), which the test runs between polls, in
 * several shapes, over pools so small that sequences lose their place: every sequence gets its
 * tokens, right and in order, up to the one that ends it; nothing is sampled twice, and known
 * tokens not at all; scores come as they were asked for; receipts are summed over the ranks of the
 * last attempt alone, however late others come; no more is taken than sf_engine_room says.
 *
 * By hand: loads, stops, signals, failures of ranks, of the caller and of the ring.  Messages that
 * lie (engine_lies.c): each ends with the status of a bad message, none with a crash. */
#include <stdlib.h>

#include "base/log.h"
#include "base/rng.h"
#include "tests/check.h"
#include "tests/unit/coordinator/engine_rig.h"

enum { OWNERS = 240 };
static const char unshared[] =
    "scheduler: {max_num_seqs: 8, max_num_batched_tokens: 32, max_model_len: 96, "
    "enable_prefix_caching: false}\n";
static const char fixed[] =
    "scheduler: {max_num_seqs: 8, max_num_batched_tokens: 32, max_model_len: 96}\n"
    "run: {deterministic: true}\n";

/* ---- whole runs ------------------------------------------------------------------------------ */
static void check_counts(const struct rig *m)
{
    struct sf_engine_counts counts = sf_engine_counts(m->engine);
    struct sf_sched_load load = sf_engine_load(m->engine);
    int64_t fresh = 0;
    for (int32_t i = 0; i < m->owners; i++) fresh += m->owner[i].end - m->owner[i].known;
    SF_CHECK_INT(m->counts.samples, fresh);
    SF_CHECK_INT(counts.steps, m->counts.steps);
    SF_CHECK_INT(m->opened, m->counts.opens);
    SF_CHECK_INT(load.reused_tokens, m->counts.attached);
    SF_CHECK(counts.prompt_rows < counts.rows && counts.step_bytes > counts.steps);
    SF_CHECK(counts.running_max > 1);
    SF_CHECK(counts.running_max <= m->job.plan.seqs_max * m->job.plan.data);
    SF_CHECK_INT(load.running, 0);
    SF_CHECK_INT(load.waiting, 0);
    SF_CHECK(counts.full_seconds <= counts.fed_seconds && counts.schedule_seconds > 0);
}

static void answers(void)
{
    static const struct made_shape shapes[] = {{1, 1, 1}, {1, 1, 2}, {1, 2, 1}, {2, 1, 1},
                                               {2, 2, 2}, {1, 1, 4}};
    static const char *const configs[] = {rig_config, unshared, fixed};
    int64_t preempted = 0;
    for (uint64_t seed = 0; seed < 54; seed++) {
        struct rig m;
        struct made_shape shape = shapes[seed % 6];
        const char *config = configs[seed / 6 % 3];
        /* The pages of one sequence of the largest size, and a few. */
        int64_t pages = 6 * 4 / (shape.tensor * shape.pipeline) + 2 + (int64_t)(seed % 4) * 4;
        if (!rig_make(&m, shape, config, pages, OWNERS, seed)) return;
        rig_run(&m, seed);
        check_counts(&m);
        preempted += sf_engine_load(m.engine).preempted;
        SF_CHECK((m.counts.attached > 0) == (config != unshared));
        rig_drop(&m);
    }
    SF_CHECK(preempted > 100);
}

/* Engines that follow each other on the same workers, with fewer places than these have.  What is
 * heard late of the first one's sequences means nothing to the second. */
static void in_turn(void)
{
    struct rig m;
    if (!rig_make(&m, (struct made_shape){1, 1, 4}, unshared, 26, OWNERS, 19)) return;
    struct owner *fresh = calloc(OWNERS, sizeof *fresh);
    if (fresh == NULL) abort();
    memcpy(fresh, m.owner, OWNERS * sizeof *fresh);
    sf_engine_destroy(m.engine);
    for (int32_t round = 0; round < 6; round++) {
        struct sf_engine_spec spec = rig_spec(&m);
        spec.serial = (uint64_t)(round * OWNERS);
        spec.seqs_max = 1 + round % 2;
        memcpy(m.owner, fresh, OWNERS * sizeof *fresh);
        m.added = m.closed = 0;
        m.engine = NULL;
        SF_MUST(sf_engine_create(&spec, &m.engine));
        SF_CHECK_INT(sf_engine_room(m.engine), 4 * spec.seqs_max);
        rig_run(&m, (uint64_t)round);
        SF_CHECK(sf_engine_counts(m.engine).running_max <= 4 * spec.seqs_max);
        sf_engine_destroy(m.engine);
    }
    m.engine = NULL;
    free(fresh);
    rig_drop(&m);
}

/* As many wait as there are places; more come in when some of them run.  Nobody is heard: what has
 * no place stays. */
static void room(void)
{
    struct rig m;
    if (!rig_make(&m, (struct made_shape){1, 1, 2}, rig_config, 0, OWNERS, 7)) return;
    int32_t places = m.job.plan.seqs_max * 2;
    SF_CHECK_INT(places, 8);
    SF_CHECK(sf_engine_slots(m.engine) > 2 * places);
    SF_CHECK_INT(sf_engine_room(m.engine), places);
    rig_add(&m, OWNERS);
    SF_CHECK_INT(m.added, places);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    rig_add(&m, OWNERS);
    SF_CHECK_INT(m.added, 2 * places);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    SF_CHECK_INT(sf_engine_room(m.engine), 0);
    SF_CHECK_INT(sf_engine_load(m.engine).running, places);
    SF_CHECK_INT(sf_engine_load(m.engine).waiting, places);
    SF_CHECK(!sf_engine_idle(m.engine));
    sf_log_setup(SF_LOG_ERROR, 0);
    sf_engine_dump(m.engine);
    rig_drop(&m);
}

static void never_fits(void)
{
    struct rig m;
    if (!rig_make(&m, (struct made_shape){1, 1, 1}, rig_config, 8, 1, 7)) return;
    struct owner *o = m.owner;
    o->prompt_tokens = 20;
    o->known = 0;
    o->answer_max = 13;                 /* 33 tokens: three pages in each of four lanes */
    struct sf_engine_seq seq = rig_seq(o);
    SF_CHECK_FAILS(sf_engine_add(m.engine, &seq), SF_NO_PAGES);
    SF_CHECK(strstr(sf_error_text(), "needs 12 KV pages on rank 0, which has 8") != NULL);
    SF_CHECK(sf_engine_idle(m.engine));
    SF_CHECK_INT(sf_engine_room(m.engine), m.job.plan.seqs_max);
    seq.answer_max = 12;
    SF_CHECK_OK(sf_engine_add(m.engine, &seq));
    rig_drop(&m);
}

/* ---- by hand --------------------------------------------------------------------------------- */
static void loads(void)
{
    struct rig m;
    if (!rig_make(&m, (struct made_shape){1, 2, 2}, rig_config, 0, OWNERS, 3)) return;
    rig_add(&m, 5);
    for (int round = 0; round < 3; round++) {
        SF_CHECK_OK(sf_engine_poll(m.engine, 0));
        SF_CHECK_OK(sf_engine_measure(m.engine, SF_MEASURE_LOAD));
        SF_CHECK(sf_engine_loads(m.engine) == NULL);
        const struct sf_wire_load *load = NULL;
        for (int i = 0; i < 1000 && load == NULL; i++) {
            rig_work(&m, 0);
            SF_CHECK_OK(sf_engine_poll(m.engine, 0));
            load = sf_engine_loads(m.engine);
        }
        SF_CHECK(load != NULL);
        for (int32_t r = 0; load != NULL && r < 4; r++) SF_CHECK_INT(load[r].rows, 100 + r);
        SF_CHECK_INT(sf_engine_kv(m.engine).bytes_stored, 10 + 20 + 30 + 40);
        SF_CHECK_INT(sf_engine_kv(m.engine).bytes_exact, 20 + 30 + 40 + 50);
    }
    rig_run(&m, 3);                     /* and it did no harm */
    rig_drop(&m);
}

static void stops(void)
{
    struct rig m;
    if (!rig_make(&m, (struct made_shape){1, 1, 2}, rig_config, 0, OWNERS, 4)) return;
    rig_add(&m, 3);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    rig_work(&m, 0);
    SF_CHECK(!workers_are_stopped(m.workers));
    SF_CHECK_OK(sf_engine_stop(m.to, 2));
    sf_engine_destroy(m.engine);
    m.engine = NULL;
    rig_work(&m, 1);
    SF_CHECK(workers_are_stopped(m.workers));
    rig_drop(&m);
    if (!rig_make(&m, (struct made_shape){1, 1, 2}, rig_config, 0, 1, 4)) return;
    sf_engine_destroy(m.engine);        /* and where there never was one */
    m.engine = NULL;
    SF_CHECK_OK(sf_engine_stop(m.to, 2));
    rig_work(&m, 1);
    SF_CHECK(workers_are_stopped(m.workers));
    sf_ring_close(m.to);
    SF_CHECK_FAILS(sf_engine_stop(m.to, 2), SF_STOPPED);
    rig_drop(&m);
}

static void what_ranks_say(void)
{
    struct rig m;
    if (!rig_make(&m, (struct made_shape){2, 1, 2}, rig_config, 0, OWNERS, 5)) return;
    workers_report(m.workers, &(struct sf_wire_report){.rank = 3, .signal = SF_WIRE_DRAIN});
    rig_work(&m, 1);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    SF_CHECK_INT(m.signal, SF_WIRE_DRAIN);
    SF_CHECK_INT(m.signal_rank, 3);
    char words[] = "tensor blk.0.attn_q.weight is not there";
    workers_report(m.workers, &(struct sf_wire_report){.rank = 1, .status = SF_FORMAT,
                                                       .text = words});
    rig_work(&m, 1);
    SF_CHECK_FAILS(sf_engine_poll(m.engine, 0), SF_FORMAT);
    SF_CHECK_STR(sf_error_text(), "rank 1: tensor blk.0.attn_q.weight is not there");
    rig_drop(&m);
}

/* The caller's own status comes back; a ring that is closed gives out what is in it first. */
static void ends(void)
{
    struct rig m;
    if (!rig_make(&m, (struct made_shape){1, 1, 1}, rig_config, 0, OWNERS, 6)) return;
    rig_add(&m, 3);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    rig_work(&m, 1);
    m.refuse = SF_NO_MEMORY;
    sf_status status = SF_OK;
    for (int i = 0; i < 10 && status == SF_OK; i++) {
        status = sf_engine_poll(m.engine, 0);
        rig_work(&m, 1);
    }
    SF_CHECK_INT(status, SF_NO_MEMORY);
    rig_drop(&m);
    if (!rig_make(&m, (struct made_shape){1, 1, 1}, rig_config, 0, OWNERS, 6)) return;
    rig_add(&m, 3);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    rig_work(&m, 1);
    workers_report(m.workers, &(struct sf_wire_report){.rank = 0, .signal = SF_WIRE_DUMP});
    rig_work(&m, 1);
    sf_ring_close(m.from);
    SF_CHECK_FAILS(sf_engine_poll(m.engine, 1000), SF_STOPPED);
    SF_CHECK_INT(m.signal, SF_WIRE_DUMP);
    rig_drop(&m);
}

static const struct sf_test tests[] = {
    {"answers", answers},
    {"in turn", in_turn},
    {"room", room},
    {"never fits", never_fits},
    {"loads", loads},
    {"stops", stops},
    {"what ranks say", what_ranks_say},
    {"ends", ends},
    {"lying results", lying_results},
    {"lying reports", lying_reports},
    {"noise", noise},
    {NULL, NULL}};
SF_TEST_MAIN("engine", tests)
