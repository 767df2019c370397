/* coordinator/sched.c: the scheduler's events and its making (sched.h, sched_impl.h). */
#include <stdlib.h>

#include "coordinator/sched_impl.h"

/* ---- events ---------------------------------------------------------------------------------- */
static struct seq *seq_of(const struct sf_sched *s, uint64_t id)
{
    int32_t slot = sf_seq_slot(id);
    SF_ASSERT(slot < s->limits.slots_max);
    return &s->seq[slot];
}

static sf_status never_fits(const struct sf_sched *s, const struct sf_sched_seq *in,
                            const int64_t *need)
{
    for (int32_t r = 0; r < s->limits.ranks; r++)
        if (need[r] > s->pages[r])
            return SF_FAIL(SF_NO_PAGES, "a prompt of %d tokens with an answer of up to %d needs "
                           "%lld KV pages on rank %d, which has %lld; lower max_tokens or raise "
                           "kv_cache.memory", in->prompt, in->answer_max, (long long)need[r], r,
                           (long long)s->pages[r]);
    return SF_FAIL(SF_NO_PAGES, "no data-parallel group has the KV pages for a prompt of %d tokens "
                   "with an answer of up to %d", in->prompt, in->answer_max);
}

/* The ids of attached tokens travel with the open of a sequence whose sampling looks at them; so
 * many of those may open in one step. */
static sf_status reserve_tokens(struct sf_sched *s, const struct sf_sched_seq *in)
{
    if (!sf_wire_looks_back(&in->sampling) || s->limits.sharing == SF_SHARE_NOTHING) return SF_OK;
    size_t needed = (size_t)s->limits.rows_max + (size_t)s->looking_back + (size_t)in->prompt;
    if (needed > s->token_places) {
        int32_t *token = realloc(s->step.token, 2 * needed * sizeof *token);
        if (token == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a step of %zu tokens",
                                          2 * needed);
        s->step.token = token;
        s->token_places = 2 * needed;
    }
    s->looking_back += in->prompt;
    return SF_OK;
}

sf_status sf_sched_add(struct sf_sched *s, const struct sf_sched_seq *in)
{
    struct seq *seq = seq_of(s, in->seq);
    SF_ASSERT(seq->state == SEQ_FREE && s->waiting_count < s->limits.slots_max && !s->last);
    SF_ASSERT(in->prompt >= 1 && in->answer_max >= 1 && in->answer_max <= INT32_MAX - in->prompt);
    SF_ASSERT(in->answer_known >= 0 && in->answer_known < in->answer_max);
    SF_ASSERT(in->answer_likely >= 1 && in->answer_likely <= in->answer_max);
    int32_t likely = in->answer_likely > in->answer_known ? in->answer_likely
                                                          : in->answer_known + 1;
    s->limits.need(s->limits.need_arg, in->prompt, in->prompt + in->answer_max, 0, s->more);
    if (!sched_fits_alone(s, s->more)) return never_fits(s, in, s->more);
    SF_TRY(reserve_tokens(s, in));
    *seq = (struct seq){.id = in->seq, .prompt = in->prompt, .answer_max = in->answer_max,
                        .known = in->prompt + in->answer_known, .sampled = in->answer_known,
                        .score_prompt = in->score_prompt, .sampling = in->sampling,
                        .token = in->token};
    sched_wait(s, seq, in->prompt + likely, 0);
    return SF_OK;
}

void sf_sched_last(struct sf_sched *s) { s->last = 1; }

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
    sched_settle(s, &s->group[group], batch);
    batch->busy = 0;
    batch->expects = 0;
    s->in_flight--;
    return SF_OK;
}

void sf_sched_end(struct sf_sched *s, uint64_t id)
{
    struct seq *seq = seq_of(s, id);
    SF_ASSERT(sf_seq_name(seq->id) == sf_seq_name(id) && seq->state == SEQ_OPEN);
    SF_ASSERT(seq->sampled >= 1);
    seq->state = SEQ_ENDED;
    seq->token = NULL;
    if (sf_wire_looks_back(&seq->sampling) && s->limits.sharing != SF_SHARE_NOTHING)
        s->looking_back -= seq->prompt;
}

/* ---- steps ----------------------------------------------------------------------------------- */
int sf_sched_next(struct sf_sched *s, int32_t *group_out, const struct sf_wire_step **step_out)
{
    int32_t groups = s->limits.groups, all = groups * s->limits.micro_batches;
    sched_admit(s);
    for (int32_t i = 0; i < all; i++) {
        int32_t index = (s->cursor + i) % all, g = index % groups, b = index / groups;
        struct batch *batch = &s->group[g].batch[b];
        if (batch->busy || !sched_has_work(s, &s->group[g], batch)) continue;
        sched_build(s, &s->group[g], batch);
        s->cursor = (index + 1) % all;
        *group_out = g;
        *step_out = &s->step;
        return 1;
    }
    return 0;
}

const struct sf_wire_step *sf_sched_empty(struct sf_sched *s, int32_t group)
{
    SF_ASSERT(group >= 0 && group < s->limits.groups);
    s->step = (struct sf_wire_step){.id = s->group[group].next_step++, .close = s->step.close,
                                    .open = s->step.open, .item = s->step.item,
                                    .tighten = s->step.tighten,
                                    .token = s->step.token};
    return &s->step;
}

struct sf_sched_load sf_sched_load(const struct sf_sched *s)
{
    struct sf_sched_load load = {.waiting = s->waiting_count, .running = s->running,
                                 .in_flight = s->in_flight, .reused_tokens = s->reused_tokens,
                                 .preempted = s->preempted, .tightened = s->tightened,
                                 .evicted_blocks = s->evicted_blocks};
    for (int32_t g = 0; g < s->limits.groups; g++) {
        const struct group *group = &s->group[g];
        int64_t unheld = group->prefix != NULL ? sf_prefix_unheld(group->prefix) : 0;
        for (int32_t r = 0; r < s->limits.ranks; r++) {
            int64_t pages = s->pages[(size_t)g * (size_t)s->limits.ranks + (size_t)r];
            int64_t busy = group->promised[r] - unheld * s->block_pages[r];
            if (pages == 0) continue;
            double use = (double)group->promised[r] / (double)pages;
            if (use > load.kv_use) load.kv_use = use;
            use = (double)busy / (double)pages;
            if (use > load.kv_busy) load.kv_busy = use;
        }
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
    if (limits->sharing != SF_SHARE_NOTHING) {
        SF_TRY(sf_prefix_create(limits->blocks_max, limits->block_tokens, &group->prefix));
        SF_TRY(take((size_t)limits->blocks_max, sizeof *group->drop, &group->drop));
    }
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
    SF_TRY(take((size_t)limits->ranks, sizeof *s->block_pages, &s->block_pages));
    if (limits->sharing != SF_SHARE_NOTHING)
        memcpy(s->block_pages, limits->block_pages,
               (size_t)limits->ranks * sizeof *s->block_pages);
    s->limits.block_pages = s->block_pages;
    SF_TRY(take((size_t)limits->ranks, sizeof *s->more, &s->more));
    SF_TRY(take(2 * (size_t)limits->ranks, sizeof *s->saved, &s->saved));
    SF_TRY(take(slots, sizeof *s->seq, &s->seq));
    SF_TRY(take(slots * (size_t)limits->ranks, sizeof *s->need, &s->need));
    SF_TRY(take(slots, sizeof *s->waiting, &s->waiting));
    SF_TRY(take(lanes, sizeof *s->step.close, &s->step.close));
    SF_TRY(take(lanes, sizeof *s->step.tighten, &s->step.tighten));
    SF_TRY(take(lanes, sizeof *s->step.open, &s->step.open));
    SF_TRY(take(lanes, sizeof *s->step.item, &s->step.item));
    SF_TRY(take((size_t)limits->rows_max, sizeof *s->step.token, &s->step.token));
    s->token_places = (size_t)limits->rows_max;
    SF_TRY(take((size_t)limits->groups, sizeof *s->group, &s->group));
    for (int32_t g = 0; g < limits->groups; g++) SF_TRY(make_group(limits, &s->group[g]));
    return SF_OK;
}

sf_status sf_sched_create(const struct sf_sched_limits *limits, struct sf_sched **out)
{
    SF_ASSERT(limits->groups >= 1 && limits->micro_batches >= 1 && limits->ranks >= 1);
    SF_ASSERT(limits->seqs_max >= 1 && limits->rows_max >= 1 && limits->slots_max >= 1);
    SF_ASSERT(limits->chunk_rows >= 0 && limits->chunk_rows <= limits->rows_max);
    SF_ASSERT(!limits->tightens || limits->sharing != SF_SHARE_KEPT);
    SF_ASSERT(limits->need != NULL && limits->slots_max <= 1 << SF_SEQ_SLOT_BITS);
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
        free(s->group[g].drop);
        sf_prefix_destroy(s->group[g].prefix);
    }
    for (int32_t i = 0; s->seq && i < s->limits.slots_max; i++) free(s->seq[i].block);
    free(s->group);
    free(s->pages);
    free(s->block_pages);
    free(s->more);
    free(s->saved);
    free(s->seq);
    free(s->need);
    free(s->waiting);
    free(s->step.close);
    free(s->step.tighten);
    free(s->step.open);
    free(s->step.item);
    free(s->step.token);
    free(s);
}
