/* The caller of the scheduler at random: it adds sequences, answers steps and ends answers, and a
 * model of the workers checks every step (sched_model.h).
 *
 * Each shape of a job is run twice, and each time until nobody is left: while sequences arrive,
 * first in, first out; and with the longest first at the end.  Nobody is forgotten: as long as
 * somebody is known, a step can be had or is in flight, and all of it is over in a bounded number
 * of steps.  After the first time a sequence that needs the whole pool drives every block out. */
#include <stdlib.h>

#include "tests/check.h"
#include "tests/unit/coordinator/sched_model.h"

static uint64_t random_state = 0x9e3779b97f4a7c15ull;

static int32_t random_below(int32_t bound)          /* xorshift64 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (int32_t)(random_state % (uint64_t)bound);
}

static void broken(struct model *m, int line, const char *words)
{
    if (m->bad++ == 0) sf_test_fail(__FILE__, line, "%s", words);
}

/* ---- sequences in ---------------------------------------------------------------------------- */
/* Prompts of few families begin alike, so far as they are common, and go on with few different
 * tokens, so that they meet again by chance. */
static void make_tokens(struct model *m, struct known *known)
{
    int32_t family = random_below(3), total = known->prompt + known->answer_max;
    int32_t common = random_below(2) ? known->prompt : random_below(known->prompt + 1);
    known->alone = random_below(4) == 0;
    known->token = malloc((size_t)total * sizeof *known->token);
    if (known->token == NULL) abort();
    for (int32_t i = 0; i < total; i++)
        known->token[i] = i >= known->prompt + known->sampled ? -1
                          : i < common && !known->alone ? family * 100 + i % 7
                                                        : random_below(2);
    if (known->alone) known->token[0] = 1000 + (int32_t)m->serial;
}

static struct sf_wire_sampling make_sampling(struct known *known)
{
    struct sf_wire_sampling sampling = {.temperature = 0.5, .top_p = 1, .repetition = 1,
                                        .rng_key = known->seq, .rng_stream = 7};
    if (random_below(3) == 0) sampling.repetition = 1.25;
    if (random_below(3) == 0) {
        known->bias = (struct sf_wire_bias){.token = 3, .value = 1};
        sampling.biases = 1;
        sampling.bias = &known->bias;
    }
    return sampling;
}

static int fits_somewhere(struct model *m, const struct known *known)
{
    int64_t need[RANKS];
    model_need(m, known->prompt, known->prompt + known->answer_max, 0, need);
    for (int32_t g = 0; g < m->shape.groups; g++) {
        int here = 1;
        for (int32_t r = 0; r < m->shape.ranks; r++)
            here = here && need[r] <= m->pages[g * m->shape.ranks + r];
        if (here) return 1;
    }
    return 0;
}

/* Adds it to the scheduler, which takes it exactly if it fits. */
static void add(struct model *m, struct known *known, int32_t likely)
{
    int fits = fits_somewhere(m, known);
    sf_status status = sf_sched_add(m->sched, &(struct sf_sched_seq){
        .seq = known->seq, .prompt = known->prompt, .answer_max = known->answer_max,
        .answer_known = known->sampled, .answer_likely = likely, .score_prompt = known->scored,
        .sampling = known->sampling, .token = known->token});
    if (status != (fits ? SF_OK : SF_NO_PAGES))
        broken(m, __LINE__, fits ? "refused what fits" : "took what never fits");
    known->state = status == SF_OK ? WAITING : FREE;
    m->added += status == SF_OK;
    if (status != SF_OK) free(known->token);
}

static uint64_t next_name(struct model *m, int32_t slot)
{
    return (uint64_t)++m->serial << SF_SEQ_SLOT_BITS | (uint64_t)slot;
}

static void add_one(struct model *m)
{
    int32_t slot = random_below(SLOTS);
    struct known *known = &m->known[slot];
    if (known->state != FREE) return;
    *known = (struct known){.seq = next_name(m, slot), .group = -1,
                            .prompt = 1 + random_below(m->shape.prompt),
                            .answer_max = 1 + random_below(m->shape.answer),
                            .scored = random_below(5) == 0};
    if (random_below(4) == 0) known->sampled = random_below(known->answer_max);
    known->answer = known->sampled + 1 + random_below(known->answer_max - known->sampled);
    known->sampling = make_sampling(known);
    make_tokens(m, known);
    add(m, known, 1 + random_below(known->answer_max));
}

/* ---- answers --------------------------------------------------------------------------------- */
static void take_sample(struct model *m, uint64_t seq, int32_t token)
{
    struct known *known = &m->known[sf_seq_slot(seq)];
    known->token[known->prompt + known->sampled++] = token;
    if (known->sampled < known->answer) return;
    known->state = ENDED;
    sf_sched_end(m->sched, known->seq);
    free(known->token);
    known->token = NULL;
}

/* Answers the step in flight of some micro-batch, if there is one, and ends the sequences whose
 * answer is complete. */
static void answer_one(struct model *m)
{
    int32_t g = random_below(m->shape.groups), b = random_below(m->shape.batches);
    struct flight *flight = &m->flight[g][b];
    if (!flight->busy) return;
    struct sf_wire_sample sample[SLOTS];
    for (int32_t i = 0; i < flight->samples; i++)
        sample[i] = (struct sf_wire_sample){.seq = flight->seq[i], .token = random_below(1000)};
    const struct sf_wire_result result = {.step = flight->step, .batch = b, .sample = sample,
                                          .samples = flight->samples};
    if (sf_sched_result(m->sched, g, &result) != SF_OK)
        broken(m, __LINE__, sf_error_text());
    model_result(m, g, b);
    flight->busy = 0;
    m->in_flight--;
    for (int32_t i = 0; i < flight->samples && m->bad == 0; i++)
        take_sample(m, flight->seq[i], sample[i].token);
}

/* One more step, if there is one. */
static int step_once(struct model *m)
{
    int32_t group;
    const struct sf_wire_step *step;
    struct sf_sched_load load;
    if (random_below(64) == 0) {
        group = random_below(m->shape.groups);
        model_take_empty(m, group, sf_sched_empty(m->sched, group));
    }
    if (sf_sched_next(m->sched, &group, &step)) {
        model_take(m, group, step);
        load = sf_sched_load(m->sched);
        if (load.waiting + load.running != m->added - m->closed ||
            load.in_flight != m->in_flight || load.preempted < m->preempted ||
            load.tightened != m->tightened ||
            load.reused_tokens != m->reused)
            broken(m, __LINE__, "the load is not what the steps say");
        return 1;
    }
    if (m->in_flight == 0 && m->closed < m->added)
        broken(m, __LINE__, "somebody is known, and there is nothing to do");
    return 0;
}

/* ---- runs ------------------------------------------------------------------------------------ */
static void some_events(struct model *m, int32_t adds)
{
    for (int32_t n = random_below(adds + 1); n > 0; n--) add_one(m);
    while (m->bad == 0 && random_below(4) > 0 && step_once(m)) { }
    for (int32_t n = random_below(5); n > 0 && m->bad == 0; n--) answer_one(m);
}

/* As many steps as SLOTS sequences can take that compute one row at a time and lose their place
 * again and again are enough for everybody. */
static void drain(struct model *m)
{
    int64_t bound = m->steps + (int64_t)SLOTS * (PROMPT + ANSWER) * 8;
    while (m->closed < m->added && m->bad == 0) {
        some_events(m, 0);
        if (m->steps > bound) broken(m, __LINE__, "somebody never ends");
    }
    while (m->in_flight > 0 && m->bad == 0) answer_one(m);
}

/* A sequence that needs all pages in each group; only the blocks are in their way. */
static void drive_out(struct model *m)
{
    m->flush = 1;
    for (int32_t g = 0; g < m->shape.groups; g++) {
        struct known *known = &m->known[g];
        *known = (struct known){.seq = next_name(m, g), .prompt = 1, .answer_max = 1,
                                .answer = 1};
        known->sampling = make_sampling(known);
        make_tokens(m, known);
        add(m, known, 1);
    }
    while (m->bad == 0 && step_once(m)) { }
    for (int32_t g = 0; g < m->shape.groups; g++) {
        SF_CHECK_INT(m->open[g], 1);
        SF_CHECK_INT(m->blocks[g], 0);
    }
    drain(m);
    m->flush = 0;
    SF_CHECK_NEAR(sf_sched_load(m->sched).kv_use, 0, 0);
}

static void print_shape(const struct shape *s)
{
    printf("  in {%d, %d, %d, %d, %d, %d, %lld, %d, %d, %d, %d, %d, %d, %d, %d, %d}\n", s->groups,
           s->batches, s->ranks, s->seqs, s->rows, s->chunk, (long long)s->pages, s->prompt,
           s->answer, (int)s->sharing, s->page_tokens, s->window, (int)s->pool, s->own,
           s->tightens, s->apart);
}

/* Only blocks are left, and all that happened is in the counts. */
static void check_end(const struct model *m)
{
    struct sf_sched_load load = sf_sched_load(m->sched);
    SF_CHECK_INT(load.waiting + load.running + load.in_flight, 0);
    SF_CHECK_INT(m->closed, m->added);
    SF_CHECK(m->settled >= m->closed);
    if (m->shape.pool == POOL_GENEROUS) SF_CHECK_INT(load.preempted, 0);
    if (m->shape.pool == POOL_GENEROUS) SF_CHECK_INT(load.tightened, 0);
    if (m->shape.pool == POOL_PRESSED)
        SF_CHECK(m->tightened > m->added / 100 && m->given_back > 0);
    if (m->shape.pool == POOL_TIGHT) SF_CHECK(m->preempted > m->added / 100);
    if (m->shape.sharing == SF_SHARE_NOTHING) SF_CHECK_INT(m->reused + m->dropped, 0);
    SF_CHECK(load.evicted_blocks >= m->dropped);
    for (int32_t g = 0; g < m->shape.groups; g++)
        for (int32_t r = 0; r < m->shape.ranks; r++)
            SF_CHECK_INT(m->held[g][r], (int64_t)m->blocks[g] * (r + 1));
}

static void run_shape(const struct shape *shape, int64_t steps)
{
    static struct model m;
    int64_t turns = 0;                  /* enough, however often there is nothing to do */
    SF_CHECK(model_make(&m, shape));
    while (m.steps < steps / 2 && m.bad == 0 && turns++ < steps * 8) some_events(&m, 3);
    drain(&m);
    if (shape->sharing != SF_SHARE_NOTHING && m.bad == 0) drive_out(&m);
    while (m.steps < steps && m.bad == 0 && turns++ < steps * 16) some_events(&m, 3);
    sf_sched_last(m.sched);
    m.last = 1;
    drain(&m);
    SF_CHECK_INT(m.bad, 0);
    if (m.bad) {                        /* its pieces are left as they are */
        print_shape(shape);
        return;
    }
    SF_CHECK(m.steps >= steps);
    check_end(&m);
    sf_sched_destroy(m.sched);
}

void random_steps(void)
{
    static const struct shape shapes[] = {
        /* groups, batches, ranks, seqs, rows, chunk, pages, longest prompt, longest answer,
         * sharing, tokens of a page, window, pool, own rows, whether sequences are tightened, what
         * is kept apart */
        {1, 1, 1, 1, 1, 0, 12, 20, 10, SF_SHARE_KEPT, 4, 0, POOL_GENEROUS, 0, 0, 0},
        {1, 1, 2, 8, 64, 0, 24, 100, 60, SF_SHARE_KEPT, 8, 0, POOL_TIGHT, 0, 0, 0},
        {2, 2, 3, 9, 32, 0, 40, 150, 60, SF_SHARE_KEPT, 8, 0, POOL_TIGHT, 0, 0, 0},
        {1, 3, 1, 12, 40, 16, 60, 150, 60, SF_SHARE_KEPT, 8, 0, POOL_TIGHT, 0, 0, 0},
        {3, 4, 2, 16, 48, 16, 30, 150, 60, SF_SHARE_COPIED, 16, 0, POOL_TIGHT, 0, 0, 0},
        {2, 3, 1, 6, 40, 0, 15, 120, 60, SF_SHARE_COPIED, 8, 9, POOL_TIGHT, 0, 0, 0},
        {1, 2, 3, 10, 24, 8, 17, 120, 64, SF_SHARE_COPIED, 8, 12, POOL_TIGHT, 0, 0, 0},
        {1, 4, 3, 64, 8, 8, 40, 60, 40, SF_SHARE_NOTHING, 4, 0, POOL_TIGHT, 0, 0, 0},
        {3, 2, 3, 20, 100, 32, 24, 199, 60, SF_SHARE_NOTHING, 16, 8, POOL_ANY, 0, 0, 0},
        {2, 1, 2, 5, 33, 0, 15, 100, 60, SF_SHARE_NOTHING, 16, 0, POOL_TIGHT, 0, 0, 0},
        {1, 1, 1, 8, 64, 0, 17, 60, 60, SF_SHARE_NOTHING, 4, 12, POOL_PRESSED, 0, 1, 0},
        {2, 3, 3, 24, 60, 0, 26, 40, 64, SF_SHARE_NOTHING, 4, 16, POOL_PRESSED, 0, 1, 0},
        {1, 1, 2, 10, 40, 16, 20, 60, 64, SF_SHARE_COPIED, 8, 14, POOL_PRESSED, 0, 1, 0},
        {1, 4, 3, 40, 50, 0, 34, 60, 64, SF_SHARE_NOTHING, 4, 0, POOL_PRESSED, 0, 1, 0},
        {1, 2, 2, 8, 40, 0, 4000, 100, 64, SF_SHARE_NOTHING, 4, 14, POOL_GENEROUS, 0, 1, 0},
        {1, 2, 1, 7, 7, 4, 2000, 199, 60, SF_SHARE_KEPT, 4, 0, POOL_GENEROUS, 0, 0, 0},
        {2, 2, 2, 16, 50, 0, 4000, 150, 64, SF_SHARE_COPIED, 4, 0, POOL_GENEROUS, 0, 0, 0},
        {1, 4, 2, 40, 60, 16, 4000, 150, 30, SF_SHARE_NOTHING, 4, 20, POOL_GENEROUS, 0, 0, 0},
        {2, 3, 1, 6, 40, 0, 15, 120, 60, SF_SHARE_COPIED, 8, 9, POOL_TIGHT, 20, 0, 0},
        {1, 2, 2, 16, 50, 16, 4000, 150, 64, SF_SHARE_COPIED, 4, 0, POOL_GENEROUS, 7, 0, 0},
        {2, 2, 3, 9, 32, 0, 40, 150, 60, SF_SHARE_COPIED, 8, 0, POOL_TIGHT, 0, 0, 7},
        {1, 2, 2, 10, 24, 8, 20, 120, 64, SF_SHARE_COPIED, 8, 0, POOL_TIGHT, 0, 0, 20}};
    enum { STEPS = 50000, SHAPES = sizeof shapes / sizeof shapes[0] };
    for (int32_t i = 0; i < SHAPES; i++) run_shape(&shapes[i], STEPS);
}

void random_shapes(void)
{
    for (int32_t i = 0; i < 150; i++) {
        struct shape shape = {.groups = 1 + random_below(GROUPS),
                              .batches = 1 + random_below(BATCHES),
                              .ranks = 1 + random_below(RANKS), .seqs = 1 + random_below(40),
                              .rows = 1 + random_below(80), .prompt = 1 + random_below(PROMPT),
                              .answer = 1 + random_below(ANSWER),
                              .sharing = (enum sf_sharing)random_below(3),
                              .page_tokens = 4 << random_below(3)};
        int32_t most = (shape.prompt + shape.answer) / shape.page_tokens + 1;
        int32_t chunk = 4 << random_below(4);
        if (random_below(2) && chunk <= shape.rows) shape.chunk = chunk;
        if (random_below(2) && shape.sharing != SF_SHARE_KEPT)
            shape.window = 1 + random_below(most);
        if (random_below(2) && shape.sharing == SF_SHARE_COPIED) shape.own = 1 + random_below(40);
        if (random_below(2) && shape.sharing != SF_SHARE_KEPT) shape.tightens = 1;
        shape.pages = most + random_below(3 * most);
        shape.apart = i % 3 == 0 ? 1 + i % 23 : 0;
        run_shape(&shape, 5000);
    }
}
