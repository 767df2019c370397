/* The scheduler keeps its promises whatever comes.
 *
 * A model of the workers reads nothing but the steps and checks, at each of a million random steps
 * over several shapes of job: one step in flight for each micro-batch, ids rising by one in a
 * group, rows within rows_max, rows of a sequence in order without a gap, prompt ids and chunk
 * borders as they should be, decode before prompt, samples asked for exactly at the end of the
 * prompt and after it, sequences and pages of every rank never above what there is, each sequence
 * opened and closed exactly once and never moved to another micro-batch.  Every sequence that was
 * added is closed in the end.  Results come back in random order over micro-batches; answers end
 * at random lengths. Smaller tests show the rules one by one. */
#include <stdlib.h>

#include "coordinator/sched.h"
#include "tests/check.h"

static uint64_t random_state = 0x9e3779b97f4a7c15ull;

static int32_t random_below(int32_t bound)          /* xorshift64 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (int32_t)(random_state % (uint64_t)bound);
}

enum { GROUPS = 3, BATCHES = 4, RANKS = 3, SLOTS = 64, STEPS = 1000000, ITEMS = 64 };

struct shape { int32_t groups, batches, ranks, seqs, rows, chunk, pages, prompt, answer; };

struct known {                          /* what the model of the workers knows of a slot */
    uint64_t seq;
    enum { FREE, WAITING, OPEN, ENDED } state;
    int32_t group, batch, prompt, answer, answer_max, fed, sampled;
    int64_t pages[RANKS];
    int32_t token[200];
};
struct flight { int busy; uint64_t step; int32_t samples; uint64_t seq[ITEMS]; };
struct world {
    struct shape shape;
    struct sf_sched *sched;
    struct known known[SLOTS];
    struct flight flight[GROUPS][BATCHES];
    uint64_t next_step[GROUPS];
    int64_t pages[GROUPS * RANKS], held[GROUPS][RANKS];
    int32_t open[GROUPS], in_flight;
    int64_t added, closed, rejected;
    uint32_t serial;
    int bad;                            /* broken promises */
};

#define PROMISE(world, condition)                                                                  \
    do {                                                                                           \
        if (!(condition) && (world)->bad++ == 0)                                                   \
            sf_test_fail(__FILE__, __LINE__, "%s (group %d, step %llu)", #condition, g,            \
                         (unsigned long long)step->id);                                            \
    } while (0)

static int world_make(struct world *w, const struct shape *shape)
{
    *w = (struct world){.shape = *shape};
    for (int32_t i = 0; i < shape->groups * shape->ranks; i++)
        w->pages[i] = shape->pages + i % 3;
    const struct sf_sched_limits limits = {
        .groups = shape->groups, .micro_batches = shape->batches, .ranks = shape->ranks,
        .seqs_max = shape->seqs, .rows_max = shape->rows, .chunk_rows = shape->chunk,
        .slots_max = SLOTS, .pages = w->pages};
    return sf_sched_create(&limits, &w->sched) == SF_OK;
}

static void add_one(struct world *w)
{
    int32_t slot = random_below(SLOTS);
    struct known *known = &w->known[slot];
    if (known->state != FREE) return;
    *known = (struct known){.seq = (uint64_t)++w->serial << 32 | (uint32_t)slot, .group = -1,
                            .prompt = 1 + random_below(w->shape.prompt),
                            .answer_max = 1 + random_below(w->shape.answer)};
    known->answer = 1 + random_below(known->answer_max);
    for (int32_t i = 0; i < known->prompt; i++) known->token[i] = random_below(1000);
    int fits = 0;
    for (int32_t r = 0; r < w->shape.ranks; r++)
        known->pages[r] = 1 + (known->prompt + known->answer_max) / 16 * (r + 1);
    for (int32_t g = 0; g < w->shape.groups; g++) {
        int here = 1;
        for (int32_t r = 0; r < w->shape.ranks; r++)
            here = here && known->pages[r] <= w->pages[g * w->shape.ranks + r];
        fits = fits || here;
    }
    sf_status status = sf_sched_add(w->sched, &(struct sf_sched_seq){
        .seq = known->seq, .prompt = known->prompt, .answer_max = known->answer_max,
        .sampling = {.temperature = 0.5, .top_p = 1, .repetition = 1, .rng_key = known->seq,
                     .rng_stream = 7},
        .token = known->token, .pages = known->pages});
    if ((status == SF_OK) != fits || (status != SF_OK && status != SF_NO_PAGES)) {
        if (w->bad++ == 0) sf_test_fail(__FILE__, __LINE__, "added %d although fits %d", status,
                                        fits);
    }
    known->state = status == SF_OK ? WAITING : FREE;
    w->added += status == SF_OK;
    w->rejected += status != SF_OK;
}

static void take_closes(struct world *w, int32_t g, const struct sf_wire_step *step)
{
    for (int32_t i = 0; i < step->closes; i++) {
        struct known *known = &w->known[(uint32_t)step->close[i] % SLOTS];
        PROMISE(w, known->seq == step->close[i] && known->state == ENDED);
        PROMISE(w, known->group == g && known->batch == step->batch);
        for (int32_t r = 0; r < w->shape.ranks; r++) w->held[g][r] -= known->pages[r];
        w->open[g]--;
        w->closed++;
        known->state = FREE;
    }
}

static void take_opens(struct world *w, int32_t g, const struct sf_wire_step *step)
{
    int32_t places = w->shape.seqs / w->shape.batches +
                     (step->batch < w->shape.seqs % w->shape.batches), here = 0;
    for (int32_t i = 0; i < step->opens; i++) {
        const struct sf_wire_open *open = &step->open[i];
        struct known *known = &w->known[(uint32_t)open->seq % SLOTS];
        PROMISE(w, known->seq == open->seq && known->state == WAITING);
        PROMISE(w, open->prompt == known->prompt && open->sampling.rng_key == known->seq &&
                       open->sampling.rng_stream == 7 && open->sampling.temperature == 0.5 &&
                       open->tokens_max == known->prompt + known->answer_max);
        known->state = OPEN;
        known->group = g;
        known->batch = step->batch;
        for (int32_t r = 0; r < w->shape.ranks; r++) {
            w->held[g][r] += known->pages[r];
            PROMISE(w, w->held[g][r] <= w->pages[g * w->shape.ranks + r]);
        }
        w->open[g]++;
    }
    PROMISE(w, w->open[g] <= w->shape.seqs);
    for (int32_t i = 0; i < SLOTS; i++)
        here += (w->known[i].state == OPEN || w->known[i].state == ENDED) &&
                w->known[i].group == g && w->known[i].batch == step->batch;
    PROMISE(w, here <= places);
}

static void take_items(struct world *w, int32_t g, const struct sf_wire_step *step)
{
    struct flight *flight = &w->flight[g][step->batch];
    int32_t rows = 0, tokens = 0, prompts = 0;
    flight->samples = 0;
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_wire_item *item = &step->item[i];
        struct known *known = &w->known[(uint32_t)item->seq % SLOTS];
        int32_t chunk = w->shape.chunk, end = item->pos + item->rows;
        PROMISE(w, known->seq == item->seq && known->state == OPEN);
        PROMISE(w, known->group == g && known->batch == step->batch && item->pos == known->fed);
        PROMISE(w, ((item->logits & SF_LOGITS_SAMPLE) != 0) == (end >= known->prompt));
        if (item->pos < known->prompt) {
            PROMISE(w, end <= known->prompt && item->token_first == tokens);
            PROMISE(w, memcmp(step->token + tokens, known->token + item->pos,
                              (size_t)item->rows * sizeof *step->token) == 0);
            if (chunk > 0)
                PROMISE(w, item->pos % chunk == 0 &&
                               (item->rows == chunk || end == known->prompt));
            tokens += item->rows;
            prompts++;
        } else {
            PROMISE(w, item->rows == 1 && item->token_first == -1 && prompts == 0);
            PROMISE(w, known->sampled >= 1 && known->sampled < known->answer_max);
        }
        for (int32_t j = 0; j < i; j++) PROMISE(w, step->item[j].seq != item->seq);
        known->fed = end;
        rows += item->rows;
        if (item->logits & SF_LOGITS_SAMPLE) flight->seq[flight->samples++] = item->seq;
    }
    PROMISE(w, rows <= w->shape.rows && tokens == step->tokens);
    PROMISE(w, rows > 0 || step->closes > 0);
}

static void take_step(struct world *w, int32_t g, const struct sf_wire_step *step)
{
    struct flight *flight = &w->flight[g][step->batch];
    static struct sf_buffer packed;     /* of the whole program */
    PROMISE(w, !flight->busy && !step->stop && step->id == w->next_step[g]++);
    PROMISE(w, sf_wire_pack_step(step, &packed) == SF_OK);
    take_closes(w, g, step);
    take_opens(w, g, step);
    take_items(w, g, step);
    flight->busy = 1;
    flight->step = step->id;
    w->in_flight++;
    double use = sf_sched_load(w->sched).kv_use;        /* admitted ones count before they open */
    PROMISE(w, use <= 1.0);
    for (int32_t r = 0; r < w->shape.ranks; r++)
        PROMISE(w, use * (double)w->pages[g * w->shape.ranks + r] >= (double)w->held[g][r] - 1e-6);
    /* Nobody that decodes is left out. */
    for (int32_t i = 0; i < SLOTS; i++) {
        const struct known *known = &w->known[i];
        if (known->state == OPEN && known->group == g && known->batch == step->batch)
            PROMISE(w, known->sampled == 0 || known->fed == known->prompt + known->sampled);
    }
}

/* Answers one step in flight, if there is one, and ends the sequences whose answer is complete. */
static void answer_one(struct world *w)
{
    static const struct sf_wire_step none;
    const struct sf_wire_step *step = &none;
    int32_t g = random_below(w->shape.groups), b = random_below(w->shape.batches);
    struct flight *flight = &w->flight[g][b];
    if (!flight->busy) return;
    struct sf_wire_sample sample[ITEMS];
    for (int32_t i = 0; i < flight->samples; i++)
        sample[i] = (struct sf_wire_sample){.seq = flight->seq[i], .token = 5};
    const struct sf_wire_result result = {.step = flight->step, .batch = b, .sample = sample,
                                          .samples = flight->samples};
    PROMISE(w, sf_sched_result(w->sched, g, &result) == SF_OK);
    flight->busy = 0;
    w->in_flight--;
    for (int32_t i = 0; i < flight->samples; i++) {
        struct known *known = &w->known[(uint32_t)flight->seq[i] % SLOTS];
        if (++known->sampled < known->answer) continue;
        known->state = ENDED;
        sf_sched_end(w->sched, known->seq);
    }
}

static void random_steps(void)
{
    static const struct shape shapes[] = {
        /* groups, batches, ranks, seqs, rows, chunk, pages, longest prompt, longest answer */
        {1, 1, 1, 1, 1, 0, 40, 20, 10},     {1, 1, 2, 8, 64, 0, 60, 100, 20},
        {2, 2, 3, 9, 32, 0, 50, 150, 30},   {3, 4, 2, 16, 48, 16, 40, 150, 12},
        {2, 3, 1, 2, 40, 0, 12, 120, 40},   {1, 4, 3, 64, 8, 8, 200, 60, 40},
        {3, 2, 3, 20, 100, 32, 30, 199, 1}, {1, 2, 1, 7, 7, 4, 1000, 199, 60}};
    static struct world w;
    int32_t share = STEPS / (int32_t)(sizeof shapes / sizeof shapes[0]);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        SF_CHECK(world_make(&w, &shapes[i]));
        int64_t steps = 0, idle = 0;
        int filling = 1;
        while ((filling || w.closed < w.added) && w.bad == 0 && idle < 100000) {
            filling = steps < share;
            for (int32_t n = random_below(4); n > 0 && filling; n--) add_one(&w);
            int32_t group;
            const struct sf_wire_step *step;
            idle++;
            while (random_below(4) > 0 && sf_sched_next(w.sched, &group, &step)) {
                take_step(&w, group, step);
                steps++;
                idle = 0;
            }
            for (int32_t n = random_below(5); n > 0; n--) answer_one(&w);
        }
        SF_CHECK_INT(w.bad, 0);
        SF_CHECK(steps >= share);
        SF_CHECK_INT(w.closed, w.added);
        SF_CHECK(w.added > 100);
        while (w.in_flight > 0) answer_one(&w);
        struct sf_sched_load load = sf_sched_load(w.sched);
        SF_CHECK_INT(load.waiting + load.running + load.in_flight, 0);
        SF_CHECK_NEAR(load.kv_use, 0, 0);
        sf_sched_destroy(w.sched);
    }
}

/* ---- the rules one by one -------------------------------------------------------------------- */
static struct sf_sched *small(int32_t batches, int32_t seqs, int32_t rows, int32_t chunk,
                              int64_t pages)
{
    struct sf_sched *sched = NULL;
    const struct sf_sched_limits limits = {.groups = 1, .micro_batches = batches, .ranks = 1,
                                           .seqs_max = seqs, .rows_max = rows, .chunk_rows = chunk,
                                           .slots_max = 16, .pages = &pages};
    if (sf_sched_create(&limits, &sched) != SF_OK) abort();
    return sched;
}

static sf_status add(struct sf_sched *sched, uint64_t seq, int32_t prompt, int64_t pages)
{
    static const int32_t token[1000];
    return sf_sched_add(sched, &(struct sf_sched_seq){.seq = seq, .prompt = prompt,
                                                      .answer_max = 8, .token = token,
                                                      .pages = &pages});
}

static sf_status answer(struct sf_sched *sched, const struct sf_wire_step *step)
{
    struct sf_wire_sample sample[16];
    struct sf_wire_result result = {.step = step->id, .batch = step->batch, .sample = sample};
    for (int32_t i = 0; i < step->items; i++)
        if (step->item[i].logits & SF_LOGITS_SAMPLE)
            sample[result.samples++] = (struct sf_wire_sample){.seq = step->item[i].seq};
    return sf_sched_result(sched, 0, &result);
}

/* Four sequences over two micro-batches: two each, and no third step before a result. */
static void spread_over_batches(void)
{
    struct sf_sched *sched = small(2, 4, 64, 0, 100);
    const struct sf_wire_step *step;
    int32_t group;
    for (uint64_t i = 0; i < 4; i++) SF_MUST(add(sched, i, 10, 1));
    SF_CHECK(sf_sched_next(sched, &group, &step));
    SF_CHECK_INT(step->batch, 0);
    SF_CHECK_INT(step->opens, 2);
    SF_CHECK_INT(step->open[0].seq, 0);
    SF_CHECK_INT(step->open[1].seq, 2);
    SF_CHECK(sf_sched_next(sched, &group, &step));
    SF_CHECK_INT(step->batch, 1);
    SF_CHECK_INT(step->items, 2);
    SF_CHECK(!sf_sched_next(sched, &group, &step));
    SF_MUST(answer(sched, step));
    SF_CHECK(sf_sched_next(sched, &group, &step));
    SF_CHECK_INT(step->batch, 1);
    SF_CHECK_INT(step->items, 2);
    SF_CHECK_INT(step->item[0].token_first, -1);
    SF_CHECK_INT(step->item[0].pos, 10);
    sf_sched_destroy(sched);
}

/* Who waits for pages holds up those behind; a close lets it in within the same step. */
static void first_in_first_out(void)
{
    struct sf_sched *sched = small(1, 4, 64, 0, 10);
    const struct sf_wire_step *step;
    int32_t group;
    SF_MUST(add(sched, 0, 4, 8));
    SF_MUST(add(sched, 1, 4, 5));
    SF_MUST(add(sched, 2, 4, 1));
    SF_CHECK(sf_sched_next(sched, &group, &step));
    SF_CHECK_INT(step->opens, 1);
    SF_CHECK_INT(sf_sched_load(sched).waiting, 2);
    SF_MUST(answer(sched, step));
    sf_sched_end(sched, 0);
    SF_CHECK(sf_sched_next(sched, &group, &step));
    SF_CHECK_INT(step->closes, 1);
    SF_CHECK_INT(step->opens, 2);
    SF_CHECK_INT(step->open[0].seq, 1);
    SF_CHECK_FAILS(add(sched, 3, 4, 11), SF_NO_PAGES);
    SF_CHECK(strstr(sf_error_text(), "11 KV pages on rank 0, which has 10") != NULL);
    sf_sched_destroy(sched);
}

/* Chunk borders of a prompt are the same alone and beside others. */
static void fixed_chunks(void)
{
    for (int32_t others = 0; others < 6; others++) {
        struct sf_sched *sched = small(1, 8, 20, 16, 1000);
        const struct sf_wire_step *step;
        int32_t group, seen = 0;
        for (int32_t i = 0; i < others; i++) SF_MUST(add(sched, (uint64_t)i + 1, 7 * i + 1, 1));
        SF_MUST(add(sched, 0, 50, 1));
        static const int32_t border[] = {16, 32, 48, 50};
        for (int32_t n = 0; n < 200 && seen < 4; n++) {
            SF_CHECK(sf_sched_next(sched, &group, &step));
            uint64_t ended[16];
            int32_t ends = 0;
            for (int32_t i = 0; i < step->items; i++) {
                if (step->item[i].seq == 0 && seen < 4)
                    SF_CHECK_INT(step->item[i].pos + step->item[i].rows, border[seen++]);
                if (step->item[i].seq != 0 && step->item[i].token_first == -1)
                    ended[ends++] = step->item[i].seq;
            }
            SF_MUST(answer(sched, step));
            for (int32_t i = 0; i < ends; i++) sf_sched_end(sched, ended[i]);
        }
        SF_CHECK_INT(seen, 4);
        sf_sched_destroy(sched);
    }
}

/* A result must be the answer to the step in flight, sample by sample. */
static void results_are_checked(void)
{
    struct sf_sched *sched = small(2, 4, 64, 0, 100);
    const struct sf_wire_step *step;
    int32_t group;
    SF_MUST(add(sched, 7, 3, 1));
    SF_CHECK(sf_sched_next(sched, &group, &step));
    struct sf_wire_sample sample = {.seq = 7, .token = 1};
    struct sf_wire_result good = {.step = 0, .batch = 0, .sample = &sample, .samples = 1}, bad;
    bad = good, bad.step = 1;
    SF_CHECK_FAILS(sf_sched_result(sched, 0, &bad), SF_FORMAT);
    bad = good, bad.batch = 1;
    SF_CHECK_FAILS(sf_sched_result(sched, 0, &bad), SF_FORMAT);
    bad = good, bad.batch = 2;
    SF_CHECK_FAILS(sf_sched_result(sched, 0, &bad), SF_FORMAT);
    bad = good, bad.samples = 0;
    SF_CHECK_FAILS(sf_sched_result(sched, 0, &bad), SF_FORMAT);
    SF_CHECK_FAILS(sf_sched_result(sched, 1, &good), SF_FORMAT);
    sample.seq = 8;
    SF_CHECK_FAILS(sf_sched_result(sched, 0, &good), SF_FORMAT);
    sample.seq = 7;
    SF_CHECK_OK(sf_sched_result(sched, 0, &good));
    SF_CHECK_FAILS(sf_sched_result(sched, 0, &good), SF_FORMAT);
    sf_sched_destroy(sched);
}

/* The last sequence leaves with a step of its own; then there is nothing to do, and stop is next.
 * */
static void last_close(void)
{
    struct sf_sched *sched = small(1, 4, 64, 0, 100);
    const struct sf_wire_step *step;
    int32_t group;
    SF_MUST(add(sched, 7, 3, 1));
    SF_CHECK(sf_sched_next(sched, &group, &step));
    SF_MUST(answer(sched, step));
    sf_sched_end(sched, 7);
    SF_CHECK(sf_sched_next(sched, &group, &step));
    SF_CHECK_INT(step->closes, 1);
    SF_CHECK_INT(step->close[0], 7);
    SF_CHECK_INT(step->items, 0);
    SF_MUST(answer(sched, step));
    SF_CHECK(!sf_sched_next(sched, &group, &step));
    step = sf_sched_stop(sched, 0);
    SF_CHECK_INT(step->id, 2);
    SF_CHECK_INT(step->stop, 1);
    sf_sched_destroy(sched);
}

static const struct sf_test tests[] = {
    {"a million random steps", random_steps},
    {"sequences spread over micro-batches", spread_over_batches},
    {"first in, first out", first_in_first_out},
    {"fixed chunk borders", fixed_chunks},
    {"results are checked", results_are_checked},
    {"the last close", last_close},
    {NULL, NULL}};
SF_TEST_MAIN("sched", tests)
