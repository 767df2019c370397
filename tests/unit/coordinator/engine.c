/* tests/unit/coordinator/engine.c: sequences in, tokens out.
 *
 * The real engine against made-up workers (made_workers.h), which the test runs between polls, in
 * several shapes, over pools so small that sequences lose their place: every sequence gets its
 * tokens, right and in order, up to the one that ends it; nothing is sampled twice, and known
 * tokens not at all; scores come as they were asked for; receipts are summed over the ranks of the
 * last attempt alone, however late others come; no more is taken than sf_engine_room says.
 *
 * By hand: loads, stops, signals, failures of ranks, of the caller and of the ring; and messages
 * that lie: each ends with the status of a bad message, none with a crash. */
#include "coordinator/engine.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/rng.h"
#include "tests/check.h"
#include "tests/unit/coordinator/made_workers.h"

enum { RING = 4096, OWNERS = 240, LENGTH = 96, ROUNDS = 1000000 };
static const char small[] =
    "scheduler: {max_num_seqs: 8, max_num_batched_tokens: 32, max_model_len: 96}\n";
static const char unshared[] =
    "scheduler: {max_num_seqs: 8, max_num_batched_tokens: 32, max_model_len: 96, "
    "enable_prefix_caching: false}\n";
static const char fixed[] =
    "scheduler: {max_num_seqs: 8, max_num_batched_tokens: 32, max_model_len: 96}\n"
    "run: {deterministic: true}\n";

struct owner {                          /* a sequence as its owner sees it */
    int32_t prompt[LENGTH], answer[LENGTH];
    int32_t prompt_tokens, answer_max, known, end;      /* end: tokens of the answer */
    int32_t got, prompt_scored, answer_scored;
    struct sf_wire_sampling sampling;
    uint8_t score_prompt, closed;
};
struct made {
    struct made_job job;
    struct sf_ring *to, *from;
    struct workers *workers;
    struct workers_counts counts;
    struct sf_engine *engine;
    struct owner *owner;                /* [owners] */
    int32_t owners, added, closed;
    int64_t opened;
    int32_t signal, signal_rank;
    sf_status refuse;                   /* what on_token says */
    uint8_t careless;                   /* the owners take what comes */
};

/* ---- the owner ------------------------------------------------------------------------------- */
static void on_open(void *arg, void *owner)
{
    struct made *m = arg;
    struct owner *o = owner;
    SF_CHECK(!o->closed && o->got < o->end);
    m->opened++;
}

static sf_status on_token(void *arg, void *owner, const int32_t *token, int32_t prompt,
                          int32_t answer, int *end_out)
{
    struct made *m = arg;
    struct owner *o = owner;
    if (m->refuse != SF_OK) return SF_FAIL(m->refuse, "refused");
    if (m->careless) return SF_OK;
    SF_CHECK_INT(prompt, o->prompt_tokens);
    SF_CHECK_INT(answer, ++o->got);
    SF_CHECK(answer <= o->end);
    SF_CHECK(memcmp(token, o->prompt, (size_t)prompt * sizeof *token) == 0);
    SF_CHECK(memcmp(token + prompt, o->answer, (size_t)answer * sizeof *token) == 0);
    SF_CHECK_INT(o->answer_scored, o->sampling.scores ? answer - o->known : 0);
    *end_out = token[prompt + answer - 1] == MADE_EOS;
    return SF_OK;
}

static sf_status on_score(void *arg, void *owner, const struct sf_wire_score *score)
{
    struct made *m = arg;
    struct owner *o = owner;
    int32_t pos = score->pos;
    int prompt = pos < o->prompt_tokens;
    struct sf_wire_top top[20];
    if (m->careless) return SF_OK;
    SF_CHECK(prompt ? o->score_prompt : o->sampling.scores);
    SF_CHECK(pos >= 1 && pos <= o->prompt_tokens + o->got);
    if (pos < 1 || pos >= LENGTH) return SF_INTERNAL;
    int32_t token = prompt ? o->prompt[pos] : o->answer[pos - o->prompt_tokens];
    struct sf_wire_score right = made_score(o->prompt, prompt ? pos : o->prompt_tokens,
                                            prompt ? 0 : o->sampling.rng_stream, pos, token,
                                            o->sampling.tops, top);
    SF_CHECK_INT(score->token, token);
    SF_CHECK(score->logprob == right.logprob && score->rank == right.rank);
    SF_CHECK_INT(score->tops, right.tops);
    for (int32_t i = 0; i < score->tops && i < right.tops; i++)
        SF_CHECK(score->top[i].token == top[i].token && score->top[i].logprob == top[i].logprob);
    if (prompt && pos == o->prompt_scored + 1) o->prompt_scored++;  /* else it comes again */
    if (prompt) SF_CHECK(pos <= o->prompt_scored);
    else SF_CHECK_INT(pos, o->prompt_tokens + o->known + o->answer_scored++);
    return SF_OK;
}

/* The sum shows each rank once, and the rows of the last attempt: all tokens but the last one. */
static sf_status on_closed(void *arg, void *owner, const struct sf_wire_receipt *receipt)
{
    struct made *m = arg;
    struct owner *o = owner;
    if (m->careless) return SF_OK;
    int32_t ranks = m->job.plan.tensor * m->job.plan.pipeline;
    SF_CHECK(!o->closed);
    o->closed = 1;
    m->closed++;
    SF_CHECK_INT(o->got, o->end);
    SF_CHECK_INT(o->prompt_scored, o->score_prompt ? o->prompt_tokens - 1 : 0);
    SF_CHECK_INT(receipt->bytes_stored, ranks);
    SF_CHECK_INT(receipt->slots_evicted, (1 << ranks) - 1);
    SF_CHECK_INT(receipt->bytes_exact, o->prompt_tokens + o->end - 1);
    return SF_OK;
}

static sf_status on_signal(void *arg, int32_t rank, int signal)
{
    struct made *m = arg;
    m->signal = signal;
    m->signal_rank = rank;
    return SF_OK;
}

static uint64_t draw(uint64_t seed, int32_t owner, uint64_t what)
{
    return sf_rng_u64(seed, (uint64_t)owner + 1000, what);
}

/* Half of the prompts begin alike, with up to two blocks. */
static void make_owner(struct owner *o, uint64_t seed, int32_t number)
{
    memset(o, 0, sizeof *o);
    o->prompt_tokens = 1 + (int32_t)(draw(seed, number, 0) % 44);
    o->answer_max = 1 + (int32_t)(draw(seed, number, 1) % (uint64_t)(LENGTH - o->prompt_tokens));
    int32_t alike = draw(seed, number, 2) % 2 == 0 ? 34 : 0;
    for (int32_t i = 0; i < o->prompt_tokens; i++)
        o->prompt[i] = (int32_t)((i < alike ? sf_rng_u64(seed, 1, (uint64_t)i)
                                            : draw(seed, number, 100 + (uint64_t)i)) % MADE_VOCAB);
    o->sampling = (struct sf_wire_sampling){.top_p = 1, .repetition = 1,
                                            .rng_stream = draw(seed, number, 3)};
    if (draw(seed, number, 4) % 4 == 0) o->sampling.repetition = 1.5;
    if (draw(seed, number, 5) % 3 == 0) o->sampling.scores = 1;
    o->score_prompt = draw(seed, number, 6) % 4 == 0;
    if (o->score_prompt || o->sampling.scores)
        o->sampling.tops = (int32_t)(draw(seed, number, 7) % 4);
    for (o->end = 0; o->end < o->answer_max;) {
        int32_t token = made_token(o->prompt, o->prompt_tokens, o->sampling.rng_stream, o->end);
        o->answer[o->end++] = token;
        if (token == MADE_EOS) break;
    }
    if (draw(seed, number, 8) % 4 == 0)
        o->known = (int32_t)(draw(seed, number, 9) % (uint64_t)o->end);
    o->got = o->known;
}

static struct sf_engine_seq seq_of(struct owner *o)
{
    return (struct sf_engine_seq){.prompt = o->prompt, .prompt_tokens = o->prompt_tokens,
                                  .answer = o->answer, .answer_known = o->known,
                                  .answer_max = o->answer_max, .sampling = o->sampling,
                                  .score_prompt = o->score_prompt, .owner = o};
}

/* ---- making ---------------------------------------------------------------------------------- */
static int make(struct made *m, struct made_shape shape, const char *more, int64_t pages,
                int32_t owners, uint64_t seed)
{
    memset(m, 0, sizeof *m);
    m->owners = owners;
    m->owner = calloc((size_t)owners, sizeof *m->owner);
    if (m->owner == NULL) abort();
    for (int32_t i = 0; i < owners; i++) make_owner(&m->owner[i], seed, i);
    sf_status status = made_job_open(&m->job, shape, more, pages);
    if (status == SF_OK) status = sf_ring_create(RING, &m->to);
    if (status == SF_OK) status = sf_ring_create(RING, &m->from);
    if (status == SF_OK) {
        m->workers = workers_make(&m->job, seed, &m->counts);
        struct sf_engine_spec spec = {.config = &m->job.config, .plan = &m->job.plan,
                                      .to_workers = m->to, .from_workers = m->from,
                                      .events = {.on_open = on_open, .on_token = on_token,
                                                 .on_score = on_score, .on_closed = on_closed,
                                                 .on_signal = on_signal, .arg = m}};
        status = sf_engine_create(&spec, &m->engine);
    }
    SF_CHECK_OK(status);
    return status == SF_OK;
}

static void drop(struct made *m)
{
    SF_CHECK_STR(workers_fault(m->workers), "");
    sf_engine_destroy(m->engine);
    workers_free(m->workers);
    made_ring_empty(m->to);
    made_ring_empty(m->from);
    sf_ring_destroy(m->to);
    sf_ring_destroy(m->from);
    made_job_close(&m->job);
    free(m->owner);
}

/* What the workers do between two polls. */
static void work(struct made *m, int all)
{
    while (workers_take(m->workers, m->to, 0) == 1) continue;
    workers_send(m->workers, m->from, all);
}

static void add_some(struct made *m, int32_t most)
{
    for (int32_t i = 0; i < most && m->added < m->owners; i++) {
        int32_t room = sf_engine_room(m->engine);
        if (room == 0) return;
        struct sf_engine_seq seq = seq_of(&m->owner[m->added]);
        SF_CHECK_OK(sf_engine_add(m->engine, &seq));
        m->added++;
        SF_CHECK_INT(sf_engine_room(m->engine), room - 1);
        if (m->added == m->owners) sf_engine_last(m->engine);
    }
}

/* All of them, from the first to the last. */
static void run_all(struct made *m, uint64_t seed)
{
    int32_t places = m->job.plan.seqs_max * m->job.plan.data, rounds = 0;
    int32_t slots = sf_engine_slots(m->engine);
    while ((m->added < m->owners || !sf_engine_idle(m->engine)) && rounds++ < ROUNDS) {
        add_some(m, (int32_t)(sf_rng_u64(seed, 5, (uint64_t)rounds) % 12));
        SF_CHECK(m->added - m->closed <= slots);
        sf_status status = sf_engine_poll(m->engine, 0);
        SF_CHECK_OK(status);
        if (status != SF_OK || workers_fault(m->workers)[0] != '\0') return;
        SF_CHECK_INT(sf_engine_idle(m->engine), m->added == m->closed);
        SF_CHECK(sf_engine_load(m->engine).running <= places);
        work(m, 0);
    }
    SF_CHECK_INT(m->closed, m->owners);
}

/* ---- whole runs ------------------------------------------------------------------------------ */
static void check_counts(const struct made *m)
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
    SF_CHECK(counts.running_max > 1 && counts.running_max <= m->job.plan.seqs_max *
                                                                 m->job.plan.data);
    SF_CHECK_INT(load.running, 0);
    SF_CHECK_INT(load.waiting, 0);
    SF_CHECK(counts.full_seconds <= counts.fed_seconds && counts.schedule_seconds > 0);
}

static void answers(void)
{
    static const struct made_shape shapes[] = {{1, 1, 1}, {1, 1, 2}, {1, 2, 1}, {2, 1, 1},
                                               {2, 2, 2}, {1, 1, 4}};
    static const char *const configs[] = {small, unshared, fixed};
    int64_t preempted = 0;
    for (uint64_t seed = 0; seed < 54; seed++) {
        struct made m;
        struct made_shape shape = shapes[seed % 6];
        const char *config = configs[seed / 6 % 3];
        /* The pages of one sequence of the largest size, and a few. */
        int64_t pages = 6 * 4 / (shape.tensor * shape.pipeline) + 2 + (int64_t)(seed % 4) * 4;
        if (!make(&m, shape, config, pages, OWNERS, seed)) return;
        run_all(&m, seed);
        check_counts(&m);
        preempted += sf_engine_load(m.engine).preempted;
        SF_CHECK((m.counts.attached > 0) == (config != unshared));
        drop(&m);
    }
    SF_CHECK(preempted > 100);
}

/* As many wait as there are places; more come in when some of them run.  Nobody is heard: what has
 * no place stays. */
static void room(void)
{
    struct made m;
    if (!make(&m, (struct made_shape){1, 1, 2}, small, 0, OWNERS, 7)) return;
    int32_t places = m.job.plan.seqs_max * 2;
    SF_CHECK_INT(places, 8);
    SF_CHECK(sf_engine_slots(m.engine) > 2 * places);
    SF_CHECK_INT(sf_engine_room(m.engine), places);
    add_some(&m, OWNERS);
    SF_CHECK_INT(m.added, places);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    add_some(&m, OWNERS);
    SF_CHECK_INT(m.added, 2 * places);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    SF_CHECK_INT(sf_engine_room(m.engine), 0);
    SF_CHECK_INT(sf_engine_load(m.engine).running, places);
    SF_CHECK_INT(sf_engine_load(m.engine).waiting, places);
    SF_CHECK(!sf_engine_idle(m.engine));
    sf_log_setup(SF_LOG_ERROR, 0);
    sf_engine_dump(m.engine);
    drop(&m);
}

static void never_fits(void)
{
    struct made m;
    if (!make(&m, (struct made_shape){1, 1, 1}, small, 8, 1, 7)) return;
    struct owner *o = m.owner;
    o->prompt_tokens = 20;
    o->known = 0;
    o->answer_max = 13;                 /* 33 tokens: three pages in each of four lanes */
    struct sf_engine_seq seq = seq_of(o);
    SF_CHECK_FAILS(sf_engine_add(m.engine, &seq), SF_NO_PAGES);
    SF_CHECK(strstr(sf_error_text(), "needs 12 KV pages on rank 0, which has 8") != NULL);
    SF_CHECK(sf_engine_idle(m.engine));
    SF_CHECK_INT(sf_engine_room(m.engine), m.job.plan.seqs_max);
    seq.answer_max = 12;
    SF_CHECK_OK(sf_engine_add(m.engine, &seq));
    drop(&m);
}

/* ---- by hand --------------------------------------------------------------------------------- */
static void loads(void)
{
    struct made m;
    if (!make(&m, (struct made_shape){1, 2, 2}, small, 0, OWNERS, 3)) return;
    add_some(&m, 5);
    for (int round = 0; round < 3; round++) {
        SF_CHECK_OK(sf_engine_poll(m.engine, 0));
        SF_CHECK_OK(sf_engine_measure(m.engine));
        SF_CHECK(sf_engine_loads(m.engine) == NULL);
        const struct sf_wire_load *load = NULL;
        for (int i = 0; i < 1000 && load == NULL; i++) {
            work(&m, 0);
            SF_CHECK_OK(sf_engine_poll(m.engine, 0));
            load = sf_engine_loads(m.engine);
        }
        SF_CHECK(load != NULL);
        for (int32_t r = 0; load != NULL && r < 4; r++) SF_CHECK_INT(load[r].rows, 100 + r);
    }
    run_all(&m, 3);                     /* and it did no harm */
    drop(&m);
}

static void stops(void)
{
    struct made m;
    if (!make(&m, (struct made_shape){1, 1, 2}, small, 0, OWNERS, 4)) return;
    add_some(&m, 3);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    work(&m, 0);
    SF_CHECK(!workers_are_stopped(m.workers));
    SF_CHECK_OK(sf_engine_stop(m.to, 2));
    sf_engine_destroy(m.engine);
    m.engine = NULL;
    work(&m, 1);
    SF_CHECK(workers_are_stopped(m.workers));
    drop(&m);
    if (!make(&m, (struct made_shape){1, 1, 2}, small, 0, 1, 4)) return;
    sf_engine_destroy(m.engine);        /* and where there never was one */
    m.engine = NULL;
    SF_CHECK_OK(sf_engine_stop(m.to, 2));
    work(&m, 1);
    SF_CHECK(workers_are_stopped(m.workers));
    sf_ring_close(m.to);
    SF_CHECK_FAILS(sf_engine_stop(m.to, 2), SF_STOPPED);
    drop(&m);
}

static void what_ranks_say(void)
{
    struct made m;
    if (!make(&m, (struct made_shape){2, 1, 2}, small, 0, OWNERS, 5)) return;
    workers_report(m.workers, &(struct sf_wire_report){.rank = 3, .signal = SF_WIRE_DRAIN});
    work(&m, 1);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    SF_CHECK_INT(m.signal, SF_WIRE_DRAIN);
    SF_CHECK_INT(m.signal_rank, 3);
    char words[] = "tensor blk.0.attn_q.weight is not there";
    workers_report(m.workers, &(struct sf_wire_report){.rank = 1, .status = SF_FORMAT,
                                                       .text = words});
    work(&m, 1);
    SF_CHECK_FAILS(sf_engine_poll(m.engine, 0), SF_FORMAT);
    SF_CHECK_STR(sf_error_text(), "rank 1: tensor blk.0.attn_q.weight is not there");
    drop(&m);
}

/* The caller's own status comes back; a ring that is closed gives out what is in it first. */
static void ends(void)
{
    struct made m;
    if (!make(&m, (struct made_shape){1, 1, 1}, small, 0, OWNERS, 6)) return;
    add_some(&m, 3);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    work(&m, 1);
    m.refuse = SF_NO_MEMORY;
    sf_status status = SF_OK;
    for (int i = 0; i < 10 && status == SF_OK; i++) {
        status = sf_engine_poll(m.engine, 0);
        work(&m, 1);
    }
    SF_CHECK_INT(status, SF_NO_MEMORY);
    drop(&m);
    if (!make(&m, (struct made_shape){1, 1, 1}, small, 0, OWNERS, 6)) return;
    add_some(&m, 3);
    SF_CHECK_OK(sf_engine_poll(m.engine, 0));
    work(&m, 1);
    workers_report(m.workers, &(struct sf_wire_report){.rank = 0, .signal = SF_WIRE_DUMP});
    work(&m, 1);
    sf_ring_close(m.from);
    SF_CHECK_FAILS(sf_engine_poll(m.engine, 1000), SF_STOPPED);
    SF_CHECK_INT(m.signal, SF_WIRE_DUMP);
    drop(&m);
}

/* ---- messages that lie ----------------------------------------------------------------------- */
/* Two sequences are in the first step, which samples both; their prompts have 5 tokens, the first
 * asks for all scores. */
struct lie {
    struct made made;
    struct sf_wire_result right;        /* what should come */
    struct sf_box box;
};

static int make_lie(struct lie *lie)
{
    struct made *m = &lie->made;
    *lie = (struct lie){.right = {.step = 0}};
    if (!make(m, (struct made_shape){1, 1, 1}, small, 0, 2, 8)) return 0;
    for (int i = 0; i < 2; i++) {
        struct owner *o = &m->owner[i];
        o->prompt_tokens = 5;
        o->known = o->got = 0;
        o->answer_max = 3;
        o->end = 3;
        o->sampling.tops = 2;
        o->sampling.repetition = 1;
        o->score_prompt = o->sampling.scores = i == 0;
        for (int t = 0; t < 3; t++)
            o->answer[t] = made_token(o->prompt, 5, o->sampling.rng_stream, t);
    }
    add_some(m, 2);
    SF_CHECK_OK(sf_engine_poll(m->engine, 0));
    work(m, 1);
    struct sf_envelope envelope;
    struct sf_buffer bytes = {0};
    int found = sf_ring_pop(m->from, 0, &envelope, &bytes) == SF_OK;
    SF_CHECK(found);
    if (!found) return 0;
    SF_CHECK_OK(sf_wire_unpack_result(bytes.bytes, bytes.count, &lie->box, &lie->right));
    sf_buffer_free(&bytes);
    SF_CHECK(lie->right.samples == 2 && lie->right.scores == 5);
    return lie->right.samples == 2 && lie->right.scores == 5;
}

static void drop_lie(struct lie *lie)
{
    sf_box_free(&lie->box);
    drop(&lie->made);
}

static sf_status hear(struct lie *lie, int32_t rank, int32_t tag, const void *bytes, size_t count)
{
    struct sf_envelope envelope = {.group = rank, .tag = tag};
    SF_CHECK_OK(sf_ring_push(lie->made.from, envelope, bytes, count, 0));
    return sf_engine_poll(lie->made.engine, 0);
}

static sf_status hear_result(struct lie *lie, int32_t rank, const struct sf_wire_result *result)
{
    struct sf_buffer buffer = {0};
    SF_CHECK_OK(sf_wire_pack_result(result, &buffer));
    sf_status status = hear(lie, rank, SF_TAG_RESULT, buffer.bytes, buffer.count);
    sf_buffer_free(&buffer);
    return status;
}

static sf_status hear_receipt(struct lie *lie, int32_t rank, uint64_t seq)
{
    struct sf_buffer buffer = {0};
    struct sf_wire_receipt receipt = {.seq = seq, .bytes_exact = 5, .bytes_stored = 1,
                                      .slots_evicted = 1};
    SF_CHECK_OK(sf_wire_pack_report(&(struct sf_wire_report){.rank = rank, .receipts = 1,
                                                             .receipt = &receipt}, &buffer));
    sf_status status = hear(lie, rank, SF_TAG_REPORT, buffer.bytes, buffer.count);
    sf_buffer_free(&buffer);
    return status;
}

static const struct {
    const char *what;
    int32_t rank;
    sf_status status;
} lies[] = {{"the truth", 0, SF_OK}, {"of another group", 3, SF_FORMAT},
            {"of no group", -2, SF_FORMAT}, {"of another step", 0, SF_FORMAT},
            {"of another micro-batch", 0, SF_FORMAT}, {"a sample less", 0, SF_FORMAT},
            {"a sample twice", 0, SF_FORMAT}, {"of an unknown sequence", 0, SF_FORMAT},
            {"of another attempt", 0, SF_FORMAT}, {"a score of an unknown slot", 0, SF_INTERNAL},
            {"a score of a free slot", 0, SF_INTERNAL}, {"a score before the prompt", 0,
            SF_INTERNAL}, {"a score behind the answer", 0, SF_INTERNAL}};

static void tell(struct lie *lie, size_t which)
{
    struct sf_wire_result *r = &lie->right;
    switch (which) {
    case 3: r->step++; break;
    case 4: r->batch++; break;
    case 5: r->samples--; break;
    case 6: r->sample[1] = r->sample[0]; break;
    case 7: r->sample[1].seq += UINT64_C(9) << SF_SEQ_SLOT_BITS; break;
    case 8: r->sample[0].seq += UINT64_C(1) << SF_SEQ_ATTEMPT_BIT; break;
    case 9: r->score[0].seq |= (1u << SF_SEQ_SLOT_BITS) - 1; break;
    case 10: r->score[0].seq += 3; break;
    case 11: r->score[0].pos = 0; break;
    case 12: r->score[4].pos = 6; break;
    default: break;
    }
}

static void lying_results(void)
{
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct lie lie;
        if (!make_lie(&lie)) return;
        tell(&lie, i);
        sf_status status = hear_result(&lie, lies[i].rank, &lie.right);
        if (status != lies[i].status)
            sf_test_fail(__FILE__, __LINE__, "%s: %s", lies[i].what, sf_status_name(status));
        if (i == 0) SF_CHECK_FAILS(hear_result(&lie, 0, &lie.right), SF_FORMAT);  /* once more */
        drop_lie(&lie);
    }
}

/* Receipts and scores of a sequence that is running, has ended, is gone. */
static void lying_reports(void)
{
    struct lie lie;
    struct sf_buffer buffer = {0};
    if (!make_lie(&lie)) return;
    struct made *m = &lie.made;
    struct sf_wire_score *last = &lie.right.score[4];
    uint64_t seq = lie.right.sample[0].seq, attempt = UINT64_C(1) << SF_SEQ_ATTEMPT_BIT;
    uint64_t other = lie.right.sample[1].seq, slot = UINT64_C(1) << SF_SEQ_SLOT_BITS;
    m->owner[0].end = 1;                /* ends with the first token */
    m->owner[0].answer[0] = lie.right.sample[0].token = last->token = MADE_EOS;
    SF_CHECK_OK(hear_receipt(&lie, 0, seq));            /* of an attempt before, it may be */
    SF_CHECK_FAILS(hear_receipt(&lie, 0, other + slot), SF_INTERNAL);
    SF_CHECK_OK(hear_result(&lie, 0, &lie.right));      /* its close went out with this poll */
    SF_CHECK_OK(hear_receipt(&lie, 0, seq + attempt));
    SF_CHECK_OK(hear_receipt(&lie, 0, other));
    SF_CHECK_INT(m->closed, 0);
    struct sf_wire_sample sample = {.seq = other, .token = m->owner[1].answer[1]};
    struct sf_wire_result next = {.step = lie.right.step + 1, .sample = &sample, .samples = 1,
                                  .score = last, .scores = 1};
    last->pos = 6;
    SF_CHECK_FAILS(hear_result(&lie, 0, &next), SF_INTERNAL);
    SF_CHECK_OK(hear_receipt(&lie, 0, seq));
    SF_CHECK_INT(m->closed, 1);
    SF_CHECK_OK(hear_receipt(&lie, 0, seq));            /* as from another group, late */
    SF_CHECK_INT(m->closed, 1);
    SF_CHECK_OK(sf_wire_pack_report(&(struct sf_wire_report){.rank = 1, .measured = 1},
                                    &buffer));
    SF_CHECK_FAILS(hear(&lie, 0, SF_TAG_REPORT, buffer.bytes, buffer.count), SF_INTERNAL);
    SF_CHECK_FAILS(hear(&lie, 0, SF_TAG_RESULT, "\xff\xff\xff", 3), SF_FORMAT);
    SF_CHECK_FAILS(hear(&lie, 0, SF_TAG_TOKENS, "\xff\xff\xff", 3), SF_FORMAT);
    sf_buffer_free(&buffer);
    drop_lie(&lie);
}

/* Bytes turned around in a message that was right: any answer will do, if it is one. */
static void noise(void)
{
    for (uint64_t round = 0; round < 400; round++) {
        struct lie lie;
        struct sf_buffer buffer = {0};
        if (!make_lie(&lie)) return;
        lie.made.careless = 1;
        struct sf_wire_receipt receipt = {.seq = lie.right.sample[0].seq, .bytes_exact = 7};
        int result = round % 2 == 0;
        if (result) SF_CHECK_OK(sf_wire_pack_result(&lie.right, &buffer));
        else SF_CHECK_OK(sf_wire_pack_report(&(struct sf_wire_report){
                             .rank = 0, .receipt = &receipt, .receipts = 1}, &buffer));
        for (uint64_t i = 0; i <= round % 3; i++)
            buffer.bytes[sf_rng_u64(9, round, i) % buffer.count] ^=
                (unsigned char)(1u << sf_rng_u64(9, round, 10 + i) % 8);
        (void)hear(&lie, 0, result ? SF_TAG_RESULT : SF_TAG_REPORT, buffer.bytes, buffer.count);
        sf_buffer_free(&buffer);
        drop_lie(&lie);
    }
}

static const struct sf_test tests[] = {
    {"answers", answers},
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
