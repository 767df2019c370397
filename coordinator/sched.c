/* coordinator/sched.c: the scheduler (sched.h).
 *
 *   struct seq [slots_max]   by the low 32 bits of a sequence's number
 *   waiting                  ring of slots, in order of arrival
 *   group [groups]           promised pages of every rank, the id of its next step
 *     batch [micro_batches]  lanes: slots in order of admission; expected: slots that the step in
 *                            flight samples, in the order of its items
 */
#include "coordinator/sched.h"

#include <stdlib.h>
#include <string.h>

enum seq_state { SEQ_FREE, SEQ_WAITING, SEQ_ADMITTED, SEQ_OPEN, SEQ_ENDED };
struct seq {
    uint64_t id;
    enum seq_state state;
    int32_t prompt, answer_max;
    int32_t fed, sampled;               /* rows computed so far (a step in flight counts); answer */
    struct sf_wire_sampling sampling;
    const int32_t *token;
};
struct batch {
    int32_t lanes_max, lanes, expects;
    int32_t *lane, *expected;           /* [lanes_max] */
    uint64_t step;                      /* in flight */
    uint8_t busy;
};
struct group { struct batch *batch; int64_t *promised; uint64_t next_step; int32_t lanes; };

struct sf_sched {
    struct sf_sched_limits limits;      /* its pages are the ones below */
    int64_t *pages;                     /* [groups][ranks] */
    struct seq *seq;
    int64_t *need;                      /* [slots_max][ranks] pages promised to a sequence */
    int32_t *waiting, waiting_first, waiting_count;
    struct group *group;
    int32_t cursor;                     /* micro-batches are served in turn */
    int32_t running, in_flight;
    struct sf_wire_step step;           /* the one handed out; its arrays have the largest sizes */
};

static void admit(struct sf_sched *s);
static void build(struct sf_sched *s, int32_t group, int32_t batch);

/* ---- events ---------------------------------------------------------------------------------- */
static struct seq *seq_of(const struct sf_sched *s, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    SF_ASSERT(slot < (uint32_t)s->limits.slots_max);
    return &s->seq[slot];
}

/* Whether every rank of the group has room for what the slot needs on top of `promised`. */
static int fits(const struct sf_sched *s, int32_t group, const int64_t *need,
                const int64_t *promised)
{
    const int64_t *pages = s->limits.pages + (size_t)group * (size_t)s->limits.ranks;
    for (int32_t r = 0; r < s->limits.ranks; r++)
        if (need[r] > pages[r] - (promised ? promised[r] : 0)) return 0;
    return 1;
}

static sf_status never_fits(const struct sf_sched *s, const struct sf_sched_seq *in)
{
    for (int32_t r = 0; r < s->limits.ranks; r++)
        if (in->pages[r] > s->limits.pages[r])
            return SF_FAIL(SF_NO_PAGES, "a prompt of %d tokens with an answer of up to %d needs "
                           "%lld KV pages on rank %d, which has %lld; lower max_tokens or raise "
                           "kv_cache.memory", in->prompt, in->answer_max, (long long)in->pages[r],
                           r, (long long)s->limits.pages[r]);
    return SF_FAIL(SF_NO_PAGES, "no data-parallel group has the KV pages for a prompt of %d tokens "
                   "with an answer of up to %d", in->prompt, in->answer_max);
}

sf_status sf_sched_add(struct sf_sched *s, const struct sf_sched_seq *in)
{
    struct seq *seq = seq_of(s, in->seq);
    SF_ASSERT(seq->state == SEQ_FREE && s->waiting_count < s->limits.slots_max);
    SF_ASSERT(in->prompt >= 1 && in->answer_max >= 1 && in->answer_max <= INT32_MAX - in->prompt);
    int32_t group = 0;
    while (group < s->limits.groups && !fits(s, group, in->pages, NULL)) group++;
    if (group == s->limits.groups) return never_fits(s, in);
    *seq = (struct seq){.id = in->seq, .state = SEQ_WAITING, .prompt = in->prompt,
                        .answer_max = in->answer_max, .sampling = in->sampling,
                        .token = in->token};
    int32_t slot = (int32_t)(seq - s->seq);
    memcpy(s->need + (size_t)slot * (size_t)s->limits.ranks, in->pages,
           (size_t)s->limits.ranks * sizeof *s->need);
    s->waiting[(s->waiting_first + s->waiting_count++) % s->limits.slots_max] = slot;
    return SF_OK;
}

sf_status sf_sched_result(struct sf_sched *s, int32_t group, const struct sf_wire_result *result)
{
    unsigned long long step = result->step;
    if (group < 0 || group >= s->limits.groups || result->batch < 0 ||
        result->batch >= s->limits.micro_batches)
        return SF_FAIL(SF_FORMAT, "result of step %llu is of group %d, micro-batch %d", step, group,
                       result->batch);
    struct batch *batch = &s->group[group].batch[result->batch];
    if (!batch->busy || batch->step != result->step)
        return SF_FAIL(SF_FORMAT,
                "result of step %llu of group %d, micro-batch %d, which is not in "
                       "flight", step, group, result->batch);
    if (result->samples != batch->expects)
        return SF_FAIL(SF_FORMAT, "result of step %llu of group %d has %d samples, expected %d",
                       step, group, result->samples, batch->expects);
    for (int32_t i = 0; i < batch->expects; i++)
        if (result->sample[i].seq != s->seq[batch->expected[i]].id)
            return SF_FAIL(SF_FORMAT, "result of step %llu of group %d: sample %d is of sequence "
                           "%llu, expected %llu", step, group, i,
                           (unsigned long long)result->sample[i].seq,
                           (unsigned long long)s->seq[batch->expected[i]].id);
    for (int32_t i = 0; i < batch->expects; i++) s->seq[batch->expected[i]].sampled++;
    batch->busy = 0;
    batch->expects = 0;
    s->in_flight--;
    return SF_OK;
}

void sf_sched_end(struct sf_sched *s, uint64_t id)
{
    struct seq *seq = seq_of(s, id);
    SF_ASSERT(seq->id == id && seq->state == SEQ_OPEN && seq->sampled >= 1);
    seq->state = SEQ_ENDED;
    seq->token = NULL;
}

/* ---- steps ----------------------------------------------------------------------------------- */
int sf_sched_next(struct sf_sched *s, int32_t *group_out, const struct sf_wire_step **step_out)
{
    int32_t groups = s->limits.groups, all = groups * s->limits.micro_batches;
    admit(s);
    for (int32_t i = 0; i < all; i++) {
        int32_t index = (s->cursor + i) % all, g = index % groups, b = index / groups;
        const struct batch *batch = &s->group[g].batch[b];
        if (batch->busy || batch->lanes == 0) continue;
        build(s, g, b);
        s->cursor = (index + 1) % all;
        *group_out = g;
        *step_out = &s->step;
        return 1;
    }
    return 0;
}

/* The micro-batch with the fewest sequences that has a place for the slot, in the group with the
 * fewest where that is equal; 0 if there is none. */
static int find_place(const struct sf_sched *s, const int64_t *need, int32_t *group_out,
                      int32_t *batch_out)
{
    int found = 0;
    int32_t best = 0, best_group = 0;
    for (int32_t g = 0; g < s->limits.groups; g++) {
        const struct group *group = &s->group[g];
        if (!fits(s, g, need, group->promised)) continue;
        for (int32_t b = 0; b < s->limits.micro_batches; b++) {
            const struct batch *batch = &group->batch[b];
            if (batch->lanes == batch->lanes_max) continue;
            if (found && (batch->lanes > best ||
                          (batch->lanes == best && group->lanes >= best_group)))
                continue;
            found = 1;
            best = batch->lanes;
            best_group = group->lanes;
            *group_out = g;
            *batch_out = b;
        }
    }
    return found;
}

/* Strictly first in, first out: who does not fit holds up those behind, so nobody starves. */
static void admit(struct sf_sched *s)
{
    while (s->waiting_count > 0) {
        int32_t slot = s->waiting[s->waiting_first], g, b;
        const int64_t *need = s->need + (size_t)slot * (size_t)s->limits.ranks;
        if (!find_place(s, need, &g, &b)) return;
        struct group *group = &s->group[g];
        struct batch *batch = &group->batch[b];
        SF_ASSERT(s->seq[slot].state == SEQ_WAITING);
        for (int32_t r = 0; r < s->limits.ranks; r++) group->promised[r] += need[r];
        batch->lane[batch->lanes++] = slot;
        group->lanes++;
        s->seq[slot].state = SEQ_ADMITTED;
        s->running++;
        s->waiting_first = (s->waiting_first + 1) % s->limits.slots_max;
        s->waiting_count--;
    }
}

/* What ended leaves: its pages are free for whoever is opened by this step or a later one, since
 * every rank of the group works through steps in the order of their making. */
static void add_closes(struct sf_sched *s, struct group *group, struct batch *batch)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < batch->lanes; i++) {
        int32_t slot = batch->lane[i];
        struct seq *seq = &s->seq[slot];
        if (seq->state != SEQ_ENDED) {
            batch->lane[kept++] = slot;
            continue;
        }
        const int64_t *need = s->need + (size_t)slot * (size_t)s->limits.ranks;
        for (int32_t r = 0; r < s->limits.ranks; r++) {
            group->promised[r] -= need[r];
            SF_ASSERT(group->promised[r] >= 0);
        }
        s->step.close[s->step.closes++] = seq->id;
        seq->state = SEQ_FREE;
        group->lanes--;
        s->running--;
    }
    batch->lanes = kept;
}

static void add_item(struct sf_sched *s, struct seq *seq, struct batch *batch, int32_t rows)
{
    struct sf_wire_step *step = &s->step;
    int in_prompt = seq->fed < seq->prompt, last = seq->fed + rows >= seq->prompt;
    struct sf_wire_item *item = &step->item[step->items++];
    *item = (struct sf_wire_item){.seq = seq->id, .pos = seq->fed, .rows = rows, .token_first = -1,
                                  .next = -1,
                                  .logits = last ? SF_LOGITS_SAMPLE : SF_LOGITS_NONE};
    if (in_prompt) {
        SF_ASSERT(rows <= seq->prompt - seq->fed);
        item->token_first = step->tokens;
        memcpy(step->token + step->tokens, seq->token + seq->fed,
               (size_t)rows * sizeof *step->token);
        step->tokens += rows;
    } else {
        /* The answer's last token is never fed, so this row is inside what was promised. */
        SF_ASSERT(rows == 1 && seq->sampled < seq->answer_max &&
                  seq->fed == seq->prompt + seq->sampled - 1);
    }
    if (last) batch->expected[batch->expects++] = (int32_t)(seq - s->seq);
    seq->fed += rows;
}

/* Rows of the next chunk of a prompt; 0 if it has to wait for a step with more room. */
static int32_t chunk_of(const struct sf_sched *s, const struct seq *seq, int32_t room)
{
    int32_t rows = seq->prompt - seq->fed, chunk = s->limits.chunk_rows;
    if (chunk == 0) return rows < room ? rows : room;
    int32_t to_border = chunk - seq->fed % chunk;
    if (rows > to_border) rows = to_border;
    return rows <= room ? rows : 0;
}

static void build(struct sf_sched *s, int32_t g, int32_t b)
{
    struct group *group = &s->group[g];
    struct batch *batch = &group->batch[b];
    struct sf_wire_step *step = &s->step;
    step->id = group->next_step++;
    step->batch = b;
    step->stop = 0;
    step->closes = step->opens = step->items = step->tokens = 0;
    add_closes(s, group, batch);
    admit(s);
    int32_t room = s->limits.rows_max;
    for (int32_t i = 0; i < batch->lanes; i++) {
        struct seq *seq = &s->seq[batch->lane[i]];
        if (seq->state == SEQ_ADMITTED) {
            step->open[step->opens++] = (struct sf_wire_open){
                .seq = seq->id, .prompt = seq->prompt, .tokens_max = seq->prompt + seq->answer_max,
                .sampling = seq->sampling, .reused_first = -1};
            seq->state = SEQ_OPEN;
        }
        if (seq->fed < seq->prompt) continue;
        add_item(s, seq, batch, 1);
        room--;
    }
    SF_ASSERT(room >= 0);
    for (int32_t i = 0; i < batch->lanes && room > 0; i++) {
        struct seq *seq = &s->seq[batch->lane[i]];
        if (seq->fed >= seq->prompt) continue;
        int32_t rows = chunk_of(s, seq, room);
        if (rows == 0) break;           /* the oldest first: a younger, shorter one does not pass */
        add_item(s, seq, batch, rows);
        room -= rows;
    }
    batch->busy = 1;
    batch->step = step->id;
    s->in_flight++;
}

const struct sf_wire_step *sf_sched_stop(struct sf_sched *s, int32_t group)
{
    SF_ASSERT(group >= 0 && group < s->limits.groups);
    s->step.id = s->group[group].next_step++;
    s->step.batch = 0;
    s->step.stop = 1;
    s->step.closes = s->step.opens = s->step.items = s->step.tokens = 0;
    return &s->step;
}

struct sf_sched_load sf_sched_load(const struct sf_sched *s)
{
    struct sf_sched_load load = {.waiting = s->waiting_count, .running = s->running,
                                 .in_flight = s->in_flight};
    for (int32_t g = 0; g < s->limits.groups; g++)
        for (int32_t r = 0; r < s->limits.ranks; r++) {
            int64_t pages = s->pages[(size_t)g * (size_t)s->limits.ranks + (size_t)r];
            double use = pages > 0 ? (double)s->group[g].promised[r] / (double)pages : 0.0;
            if (use > load.kv_use) load.kv_use = use;
        }
    return load;
}

/* ---- making ---------------------------------------------------------------------------------- */
static sf_status take(size_t count, size_t bytes, void *array_out)
{
    void *array = calloc(count > 0 ? count : 1, bytes);
    if (!array) return SF_FAIL(SF_NO_MEMORY, "no memory for the scheduler: %zu x %zu B", count,
                               bytes);
    memcpy(array_out, &array, sizeof array);
    return SF_OK;
}

/* The places of a group are dealt out evenly; a batch never has more lanes than a step has rows, so
 * that each decoding sequence gets its row in every step. */
static sf_status make_group(const struct sf_sched_limits *limits, struct group *group)
{
    SF_TRY(take((size_t)limits->micro_batches, sizeof *group->batch, &group->batch));
    SF_TRY(take((size_t)limits->ranks, sizeof *group->promised, &group->promised));
    for (int32_t b = 0; b < limits->micro_batches; b++) {
        struct batch *batch = &group->batch[b];
        batch->lanes_max = limits->seqs_max / limits->micro_batches +
                           (b < limits->seqs_max % limits->micro_batches);
        if (batch->lanes_max > limits->rows_max) batch->lanes_max = limits->rows_max;
        SF_TRY(take((size_t)batch->lanes_max, sizeof *batch->lane, &batch->lane));
        SF_TRY(take((size_t)batch->lanes_max, sizeof *batch->expected, &batch->expected));
    }
    return SF_OK;
}

static sf_status make(struct sf_sched *s, const struct sf_sched_limits *limits)
{
    size_t slots = (size_t)limits->slots_max, lanes = (size_t)limits->seqs_max;
    size_t pages = (size_t)limits->groups * (size_t)limits->ranks;
    s->limits = *limits;
    SF_TRY(take(pages, sizeof *s->pages, &s->pages));
    memcpy(s->pages, limits->pages, pages * sizeof *s->pages);
    s->limits.pages = s->pages;
    SF_TRY(take(slots, sizeof *s->seq, &s->seq));
    SF_TRY(take(slots * (size_t)limits->ranks, sizeof *s->need, &s->need));
    SF_TRY(take(slots, sizeof *s->waiting, &s->waiting));
    SF_TRY(take(lanes, sizeof *s->step.close, &s->step.close));
    SF_TRY(take(lanes, sizeof *s->step.open, &s->step.open));
    SF_TRY(take(lanes, sizeof *s->step.item, &s->step.item));
    SF_TRY(take((size_t)limits->rows_max, sizeof *s->step.token, &s->step.token));
    SF_TRY(take((size_t)limits->groups, sizeof *s->group, &s->group));
    for (int32_t g = 0; g < limits->groups; g++) SF_TRY(make_group(limits, &s->group[g]));
    return SF_OK;
}

sf_status sf_sched_create(const struct sf_sched_limits *limits, struct sf_sched **out)
{
    SF_ASSERT(limits->groups >= 1 && limits->micro_batches >= 1 && limits->ranks >= 1);
    SF_ASSERT(limits->seqs_max >= 1 && limits->rows_max >= 1 && limits->slots_max >= 1);
    SF_ASSERT(limits->chunk_rows >= 0 && limits->chunk_rows <= limits->rows_max);
    struct sf_sched *s = calloc(1, sizeof *s);
    if (!s) return SF_FAIL(SF_NO_MEMORY, "no memory for the scheduler");
    sf_status status = make(s, limits);
    if (status != SF_OK) sf_sched_destroy(s);
    else *out = s;
    return status;
}

void sf_sched_destroy(struct sf_sched *s)
{
    if (!s) return;
    for (int32_t g = 0; s->group && g < s->limits.groups; g++) {
        for (int32_t b = 0; s->group[g].batch && b < s->limits.micro_batches; b++) {
            free(s->group[g].batch[b].lane);
            free(s->group[g].batch[b].expected);
        }
        free(s->group[g].batch);
        free(s->group[g].promised);
    }
    free(s->group);
    free(s->pages);
    free(s->seq);
    free(s->need);
    free(s->waiting);
    free(s->step.close);
    free(s->step.open);
    free(s->step.item);
    free(s->step.token);
    free(s);
}
