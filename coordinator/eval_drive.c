/* coordinator/eval_drive.c: the same tokens through all stacks, in step (eval_impl.h).
 *
 *   place 0: case 4  |prompt........|P|forced.. forced.. forced..|      place 1: case 5 ...
 *                     rows, unscored ^ its last row is scored: the first forced token
 *
 *   one step   items: (case 4, exact) (case 4, stack 1) ... (case 5, exact) (case 5, stack 1) ...
 *                     the same rows of tokens for each; exact first, since the others are compared
 *                     with its rows
 *
 * Stacks that leave a prompt alone until it has ended see the rows of the exact cache: these are
 * computed once and put into all their caches (SF_ROWS_BEFORE).
 *
 * Rows behind the prompt count as decode rows however many come at once: the cache cuts them where
 * a method acts, so what a method sees and what comes out is as if they came one by one.  A place
 * belongs to a micro-batch, each of which has one step under way; what comes back fills the sums of
 * the cases.  Receipts are asked for when a prompt has ended, and come once more with the end. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/engine.h"
#include "coordinator/eval_impl.h"

enum { PUSH_MS = 60000, WAIT_MS = 200, STACK_BITS = 8, PROMPT_CHUNK = 256, TELL_S = 10 };

struct place {
    int32_t number;                     /* of its case; -1: free */
    int32_t fed;                        /* rows of each stack */
    uint8_t asked, done;
};
struct flight { uint64_t step; int busy; };
struct drive {
    struct sf_eval *eval;
    const struct sf_desk *desk;
    int32_t stacks, ranks, places, batches, rows_max;
    int32_t *order;                     /* [stacks] the first `sharing` see a prompt alike */
    int32_t sharing;
    struct place *place;
    struct flight *flight;              /* [batches] */
    int32_t *likeliest;                 /* [longest case] by row: what the exact cache finds */
    uint8_t *told;                      /* [cases][stacks][ranks] receipts so far */
    int32_t next_case, cases_done;
    int64_t receipts_missing;
    uint64_t next_step;
    struct sf_wire_step step;           /* its arrays have room for the largest */
    struct sf_buffer packed, taken;
    struct sf_box box;
    int64_t scored, scores_all, start_ns, told_ns;
    uint8_t stopped;
};

static uint64_t name_of(int32_t number, int32_t stack)
{
    return ((uint64_t)number + 1) << STACK_BITS | (uint64_t)stack;
}

static struct eval_case *case_of(const struct drive *d, uint64_t seq, int32_t *number_out,
                                 int32_t *stack_out)
{
    uint64_t number = (seq >> STACK_BITS) - 1;
    *stack_out = (int32_t)(seq & ((1u << STACK_BITS) - 1));
    if (number >= (uint64_t)d->eval->case_count || *stack_out >= d->stacks) return NULL;
    *number_out = (int32_t)number;
    return &d->eval->cases[number];
}

/* ---- steps out ------------------------------------------------------------------------------- */
static void add_open(struct drive *d, struct place *place)
{
    place->number = d->next_case++;
    const struct eval_case *c = &d->eval->cases[place->number];
    for (int32_t s = 0; s < d->stacks; s++)
        d->step.open[d->step.opens++] =
            (struct sf_wire_open){.seq = name_of(place->number, s), .prompt = c->prompt,
                                  .tokens_max = c->tokens, .reused_first = -1, .stack = s,
                                  .against = s > 0 ? name_of(place->number, 0) : 0,
                                  .sampling = {.top_p = 1, .repetition = 1, .tops = 1}};
}

static void add_rows(struct drive *d, struct place *place, int32_t rows)
{
    struct sf_wire_step *step = &d->step;
    const struct eval_case *c = &d->eval->cases[place->number];
    int32_t end = place->fed + rows, first = step->tokens;
    uint8_t logits = place->fed >= c->prompt ? SF_LOGITS_ROWS
                     : end == c->prompt ? SF_LOGITS_LAST : SF_LOGITS_NONE;
    memcpy(step->token + first, c->token + place->fed, (size_t)rows * sizeof *step->token);
    step->tokens += rows;
    for (int32_t i = 0; i < d->stacks; i++) {
        uint8_t same = i > 0 && i < d->sharing && place->fed < c->prompt ? SF_ROWS_BEFORE : 0;
        step->item[step->items++] =
            (struct sf_wire_item){.seq = name_of(place->number, d->order[i]), .pos = place->fed,
                                  .rows = rows, .token_first = first, .logits = logits | same,
                                  .next = logits == SF_LOGITS_NONE ? -1 : c->token[end]};
    }
    place->fed = end;
    place->done = end == c->tokens - 1; /* the last token is only predicted */
}

/* Rows that are computed for each row of the place's next chunk. */
static int32_t copies_of(const struct drive *d, const struct place *place)
{
    int in_prompt = place->fed < d->eval->cases[place->number].prompt;
    return in_prompt ? d->stacks - d->sharing + 1 : d->stacks;
}

/* Rows of the place's next chunk, at most `room` of all stacks together. */
static int32_t chunk_of(const struct drive *d, const struct place *place, int32_t room)
{
    const struct eval_case *c = &d->eval->cases[place->number];
    int in_prompt = place->fed < c->prompt;
    room /= copies_of(d, place);
    int32_t left = (in_prompt ? c->prompt : c->tokens - 1) - place->fed;
    int32_t most = in_prompt ? PROMPT_CHUNK : EVAL_CHUNK;
    if (left > most) left = most;
    for (int32_t s = 0; s < d->stacks && !in_prompt; s++) {
        int32_t every = sf_stack_interval(&d->desk->launch[s].config.kv.stack);
        int32_t to_event = every > 0 ? every - (place->fed - c->prompt) % every : left;
        if (left > to_event) left = to_event;   /* layers are encoded together behind it */
    }
    return left < room ? left : room;
}

static void ask(struct drive *d, struct place *place)
{
    for (int32_t s = 0; s < d->stacks; s++)
        d->step.ask[d->step.asks++] = name_of(place->number, s);
    place->asked = 1;
}

static void close_place(struct drive *d, struct place *place)
{
    for (int32_t s = 0; s < d->stacks; s++)
        d->step.close[d->step.closes++] = name_of(place->number, s);
    *place = (struct place){.number = -1};
    d->cases_done++;
}

/* Whether the micro-batch has anything to do, and then its step.  Those that wait longest for rows
 * come first: the places are gone through from another one each time. */
static int build(struct drive *d, int32_t batch)
{
    struct sf_wire_step *step = &d->step;
    int32_t places = (d->places - batch + d->batches - 1) / d->batches, room = d->rows_max;
    step->asks = step->closes = step->opens = step->items = step->tokens = 0;
    for (int32_t i = 0; i < places; i++) {
        int32_t turn = (int32_t)((d->next_step / (uint64_t)d->batches + (uint64_t)i) %
                                 (uint64_t)places);
        struct place *place = &d->place[batch + turn * d->batches];
        int at_end = place->number >= 0 && place->fed >= d->eval->cases[place->number].prompt;
        if (at_end && !place->asked) ask(d, place);
        if (place->done) close_place(d, place);
        if (room < d->stacks) continue;
        if (place->number < 0 && d->next_case < d->eval->case_count) add_open(d, place);
        if (place->number < 0) continue;
        int32_t rows = chunk_of(d, place, room), copies = copies_of(d, place);
        SF_ASSERT(rows >= 1);
        add_rows(d, place, rows);
        room -= rows * copies;
    }
    return step->closes > 0 || step->items > 0;
}

static sf_status send(struct drive *d, int32_t batch)
{
    struct sf_envelope envelope = {.group = 0, .tag = SF_TAG_STEP};
    d->step.id = d->next_step++;
    d->step.batch = batch;
    SF_TRY(sf_wire_pack_step(&d->step, &d->packed));
    d->flight[batch] = (struct flight){.step = d->step.id, .busy = 1};
    return sf_ring_push(d->desk->to_workers, envelope, d->packed.bytes, d->packed.count, PUSH_MS);
}

static sf_status send_steps(struct drive *d)
{
    for (int32_t b = 0; b < d->batches && !d->stopped; b++)
        if (!d->flight[b].busy && build(d, b)) SF_TRY(send(d, b));
    return SF_OK;
}

/* ---- scores and receipts in ------------------------------------------------------------------ */
static sf_status take_score(struct drive *d, const struct sf_wire_score *score)
{
    int32_t number, stack;
    struct eval_case *c = case_of(d, score->seq, &number, &stack);
    if (c == NULL || score->pos < c->prompt || score->pos >= c->tokens ||
        score->token != c->token[score->pos] || score->tops != 1)
        return SF_FAIL(SF_INTERNAL, "a score of token %d at %d of sequence %llx, which was not "
                       "asked for", score->token, score->pos, (unsigned long long)score->seq);
    struct eval_sum *sum = &c->sum[stack * c->blocks + (score->pos - c->prompt) / EVAL_BLOCK];
    if (stack == 0) d->likeliest[score->pos] = score->top[0].token;
    sum->tokens++;
    sum->nll -= (double)score->logprob;
    sum->kl += (double)score->kl;
    sum->agree += score->top[0].token == d->likeliest[score->pos];
    sum->hits += score->rank == 1;
    d->scored++;
    return SF_OK;
}

static sf_status take_result(struct drive *d)
{
    struct sf_wire_result result;
    SF_TRY(sf_wire_unpack_result(d->taken.bytes, d->taken.count, &d->box, &result));
    if (result.batch >= d->batches || !d->flight[result.batch].busy ||
        d->flight[result.batch].step != result.step)
        return SF_FAIL(SF_FORMAT, "result of step %llu of micro-batch %d, which is not in flight",
                       (unsigned long long)result.step, result.batch);
    d->flight[result.batch].busy = 0;
    for (int32_t i = 0; i < result.scores; i++) SF_TRY(take_score(d, &result.score[i]));
    return SF_OK;
}

/* The first one of a rank is of the end of the prompt, the second of the last token. */
static sf_status take_receipt(struct drive *d, int32_t rank, const struct sf_wire_receipt *receipt)
{
    int32_t number, stack;
    struct eval_case *c = case_of(d, receipt->seq, &number, &stack);
    uint8_t *told = c == NULL ? NULL
                    : &d->told[((size_t)number * (size_t)d->stacks + (size_t)stack) *
                               (size_t)d->ranks + (size_t)rank];
    if (told == NULL || *told >= 2)
        return SF_FAIL(SF_INTERNAL, "a receipt of sequence %llx, which was not asked for",
                       (unsigned long long)receipt->seq);
    struct eval_bytes *bytes = (*told)++ == 0 ? &c->at_prompt[stack] : &c->at_end[stack];
    bytes->exact += receipt->bytes_exact;
    bytes->stored += receipt->bytes_stored;
    bytes->changed |= receipt->changed;
    d->receipts_missing--;
    return SF_OK;
}

static sf_status take_report(struct drive *d)
{
    struct sf_wire_report report;
    SF_TRY(sf_wire_unpack_report(d->taken.bytes, d->taken.count, &d->box, &report));
    if (report.status != SF_OK)
        return SF_FAIL((sf_status)report.status, "rank %d: %s", report.rank, report.text);
    if (report.rank >= d->ranks)
        return SF_FAIL(SF_INTERNAL, "a report of rank %d of %d", report.rank, d->ranks);
    if (report.signal == SF_WIRE_DRAIN) {
        if (!d->stopped) sf_log(SF_LOG_WARN, "rank %d was told to stop", report.rank);
        d->stopped = 1;
    }
    for (int32_t i = 0; i < report.receipts; i++)
        SF_TRY(take_receipt(d, report.rank, &report.receipt[i]));
    return SF_OK;
}

static void tell(struct drive *d, int asked)
{
    double seconds = sf_seconds_since(d->start_ns);
    if (!asked && sf_seconds_since(d->told_ns) < TELL_S) return;
    d->told_ns = sf_now_ns();
    sf_log(SF_LOG_INFO, "%d of %d sequences, %.0f %% of the tokens scored, %.0f tok/s, %.0f s",
           d->cases_done, d->eval->case_count, 100.0 * (double)d->scored / (double)d->scores_all,
           (double)d->scored / seconds, seconds);
}

static int is_done(const struct drive *d)
{
    int busy = 0;
    for (int32_t b = 0; b < d->batches; b++) busy |= d->flight[b].busy;
    return !busy && (d->stopped || (d->cases_done == d->eval->case_count &&
                                    d->receipts_missing == 0));
}

static sf_status run_all(struct drive *d)
{
    d->start_ns = d->told_ns = sf_now_ns();
    SF_TRY(send_steps(d));
    while (!is_done(d)) {
        struct sf_envelope envelope;
        sf_status status = sf_ring_pop(d->desk->from_workers, WAIT_MS, &envelope, &d->taken);
        tell(d, 0);
        if (status == SF_TIMEOUT) continue;     /* the worker's thread has the deadlines */
        SF_TRY(status);
        SF_TRY(envelope.tag == SF_TAG_RESULT ? take_result(d) : take_report(d));
        SF_TRY(send_steps(d));
    }
    tell(d, 1);
    if (!d->stopped && d->scored != d->scores_all)
        return SF_FAIL(SF_INTERNAL, "%lld scores came, and %lld were asked for",
                       (long long)d->scored, (long long)d->scores_all);
    return SF_OK;
}

/* ---- life ------------------------------------------------------------------------------------ */
static sf_status take(size_t count, size_t bytes, void *array_out)
{
    void *array = calloc(count > 0 ? count : 1, bytes);
    if (array == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the steps of an eval");
    memcpy(array_out, &array, sizeof array);
    return SF_OK;
}

/* Whether a prompt's rows are those of the exact cache up to its end: nothing is picked, encoded or
 * edited before all of them have attended to all that came before. */
static int is_exact_before(const struct sf_stack *stack)
{
    for (int32_t i = 0; i < stack->entries; i++) {
        const struct sf_plan *plan = &stack->entry[i].plan;
        const struct sf_policy_ops *policy = stack->entry[i].method->policy;
        if (policy->admit != NULL || policy->select != NULL || plan->v_top.slots > 0 ||
            plan->draft.lookahead != 0 || plan->tiers > 1 ||
            plan->whens & 1u << SF_AT_PREFILL_CHUNK)
            return 0;
    }
    return 1;
}

/* The exact cache comes first, then those that see a prompt as it does. */
static void set_order(struct drive *d)
{
    const struct sf_launch *launch = d->desk->launch;
    for (int same = 1, n = 0; same >= 0; same--)
        for (int32_t s = 0; s < d->stacks; s++) {
            int alike = s == 0 || (launch[s].plan.kv_dtype == launch[0].plan.kv_dtype &&
                                   is_exact_before(&launch[s].config.kv.stack));
            if (alike != same) continue;
            d->order[n++] = s;
            d->sharing += same;
        }
}

static sf_status make(struct drive *d)
{
    const struct sf_eval *eval = d->eval;
    const struct sf_launch_plan *plan = &d->desk->launch->plan;
    size_t stacks = (size_t)eval->list.stacks, cases = (size_t)eval->case_count;
    d->stacks = eval->list.stacks;
    d->ranks = plan->ranks;
    d->rows_max = plan->rows_max;
    d->places = eval->at_once;
    d->batches = plan->micro_batches < d->places ? plan->micro_batches : d->places;
    size_t seqs = (size_t)d->places * stacks;
    int32_t longest = 0;
    for (int32_t i = 0; i < eval->case_count; i++) {
        const struct eval_case *c = &eval->cases[i];
        if (c->tokens > longest) longest = c->tokens;
        d->scores_all += (int64_t)eval_scored(c) * d->stacks;
    }
    d->receipts_missing = 2 * (int64_t)cases * d->stacks * d->ranks;
    SF_TRY(take(stacks, sizeof *d->order, &d->order));
    set_order(d);
    SF_TRY(take((size_t)d->places, sizeof *d->place, &d->place));
    SF_TRY(take((size_t)d->batches, sizeof *d->flight, &d->flight));
    SF_TRY(take((size_t)longest, sizeof *d->likeliest, &d->likeliest));
    SF_TRY(take(cases * stacks * (size_t)d->ranks, 1, &d->told));
    SF_TRY(take(seqs, sizeof *d->step.ask, &d->step.ask));
    SF_TRY(take(seqs, sizeof *d->step.close, &d->step.close));
    SF_TRY(take(seqs, sizeof *d->step.open, &d->step.open));
    SF_TRY(take(seqs, sizeof *d->step.item, &d->step.item));
    SF_TRY(take((size_t)d->rows_max, sizeof *d->step.token, &d->step.token));
    for (int32_t i = 0; i < d->places; i++) d->place[i].number = -1;
    return SF_OK;
}

static void destroy(struct drive *d)
{
    free(d->order);
    free(d->place);
    free(d->flight);
    free(d->likeliest);
    free(d->told);
    free(d->step.ask);
    free(d->step.close);
    free(d->step.open);
    free(d->step.item);
    free(d->step.token);
    sf_buffer_free(&d->packed);
    sf_buffer_free(&d->taken);
    sf_box_free(&d->box);
}

sf_status eval_drive(struct sf_eval *eval, const struct sf_desk *desk, int *stopped_out)
{
    struct drive d = {.eval = eval, .desk = desk};
    sf_status status = make(&d);
    if (status == SF_OK) status = run_all(&d);
    eval->seconds = sf_seconds_since(d.start_ns);
    *stopped_out = d.stopped;
    destroy(&d);
    return status;
}
