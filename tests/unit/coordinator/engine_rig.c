/* The engine's rig: owners and workers (engine_rig.h). */
#include "tests/unit/coordinator/engine_rig.h"

#include <stdlib.h>

#include "base/rng.h"
#include "tests/check.h"

enum { RING = 4096, ROUNDS = 1000000 };
const char rig_config[] =
    "scheduler: {max_num_seqs: 8, max_num_batched_tokens: 32, max_model_len: 96}\n";

/* ---- the owner ------------------------------------------------------------------------------- */
static void on_open(void *arg, void *owner)
{
    struct rig *m = arg;
    struct owner *o = owner;
    SF_CHECK(!o->closed && o->got < o->end);
    m->opened++;
}

static sf_status on_token(void *arg, void *owner, const int32_t *token, int32_t prompt,
                          int32_t answer, int *end_out)
{
    struct rig *m = arg;
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
    struct rig *m = arg;
    struct owner *o = owner;
    int32_t pos = score->pos;
    int prompt = pos < o->prompt_tokens;
    struct sf_wire_top top[20];
    if (m->careless) return SF_OK;
    SF_CHECK(prompt ? o->score_prompt : o->sampling.scores);
    SF_CHECK(pos >= 1 && pos <= o->prompt_tokens + o->got);
    if (pos < 1 || pos >= RIG_LENGTH) return SF_INTERNAL;
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
    struct rig *m = arg;
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
    struct rig *m = arg;
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
    int32_t left = RIG_LENGTH - o->prompt_tokens;
    o->answer_max = 1 + (int32_t)(draw(seed, number, 1) % (uint64_t)left);
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

struct sf_engine_seq rig_seq(struct owner *o)
{
    return (struct sf_engine_seq){.prompt = o->prompt, .prompt_tokens = o->prompt_tokens,
                                  .answer = o->answer, .answer_known = o->known,
                                  .answer_max = o->answer_max, .sampling = o->sampling,
                                  .score_prompt = o->score_prompt, .owner = o};
}

/* ---- making ---------------------------------------------------------------------------------- */
struct sf_engine_spec rig_spec(struct rig *m)
{
    return (struct sf_engine_spec){.config = &m->job.config, .plan = &m->job.plan,
                                   .to_workers = m->to, .from_workers = m->from,
                                   .events = {.on_open = on_open, .on_token = on_token,
                                              .on_score = on_score, .on_closed = on_closed,
                                              .on_signal = on_signal, .arg = m}};
}

int rig_make(struct rig *m, struct made_shape shape, const char *more, int64_t pages,
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
        struct sf_engine_spec spec = rig_spec(m);
        status = sf_engine_create(&spec, &m->engine);
    }
    SF_CHECK_OK(status);
    return status == SF_OK;
}

void rig_drop(struct rig *m)
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
void rig_work(struct rig *m, int all)
{
    while (workers_take(m->workers, m->to, 0) == 1) continue;
    workers_send(m->workers, m->from, all);
}

void rig_add(struct rig *m, int32_t most)
{
    for (int32_t i = 0; i < most && m->added < m->owners; i++) {
        int32_t room = sf_engine_room(m->engine);
        if (room == 0) return;
        struct sf_engine_seq seq = rig_seq(&m->owner[m->added]);
        SF_CHECK_OK(sf_engine_add(m->engine, &seq));
        m->added++;
        SF_CHECK_INT(sf_engine_room(m->engine), room - 1);
        if (m->added == m->owners) sf_engine_last(m->engine);
    }
}

/* All of them, from the first to the last. */
void rig_run(struct rig *m, uint64_t seed)
{
    int32_t places = m->job.plan.seqs_max * m->job.plan.data, rounds = 0;
    int32_t slots = sf_engine_slots(m->engine);
    while ((m->added < m->owners || !sf_engine_idle(m->engine)) && rounds++ < ROUNDS) {
        rig_add(m, (int32_t)(sf_rng_u64(seed, 5, (uint64_t)rounds) % 12));
        SF_CHECK(m->added - m->closed <= slots);
        sf_status status = sf_engine_poll(m->engine, 0);
        SF_CHECK_OK(status);
        if (status != SF_OK || workers_fault(m->workers)[0] != '\0') return;
        SF_CHECK_INT(sf_engine_idle(m->engine), m->added == m->closed);
        SF_CHECK(sf_engine_load(m->engine).running <= places);
        rig_work(m, 0);
    }
    SF_CHECK_INT(m->closed, m->owners);
}
