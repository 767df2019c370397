/* coordinator/engine.c: steps out, results and reports in (engine.h).
 *
 *   slot [slots]   the sequences that the engine knows; token: [prompt + answer_max] of each, which
 *                  is what the scheduler feeds from when an answer has to be fed again
 *   rank [ranks]   what each rank of the job said last
 *   flight [groups][micro_batches]   the step of each that is on its way
 */
#include "coordinator/engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

enum { PUSH_MS = 60000, FIXED_CHUNK = 256, FIXED_CHUNK_MIN = 16, SLOTS_PER_PLACE = 3,
       ENDED_BEFORE_GUESSING = 16, TAKE_MAX = 64 };

struct slot {
    uint64_t seq;                       /* 0: free */
    void *owner;
    int32_t *token;
    int32_t prompt, answer, answer_max;
    uint8_t ended;                      /* and the step that closes it was sent */
    int32_t receipts;
    struct sf_wire_receipt receipt;
};
struct rank {
    int64_t pages_free, pages;
    struct sf_engine_kv kv;
    uint64_t step;
};
struct flight { int64_t sent_ns; int32_t rows, prompt_rows; };
struct sf_engine {
    struct sf_engine_spec spec;
    struct sf_sched *sched;
    struct slot *slot; int32_t slots, used, group_ranks;
    int32_t *free_slot;                 /* [slots] the first slots - used of them are free */
    int32_t seqs_max;                   /* running ones of one group */
    struct rank *rank;
    struct flight *flight;
    int64_t *result_ns;                 /* [groups] when the last one came; 0: none has */
    struct sf_wire_load *load;          /* [ranks] as last measured */
    int32_t loads_missing;
    uint64_t serial;
    struct sf_stack_sharing sharing;
    int64_t ended_tokens, ended_max, ended;     /* of answers that ended: as long as, at most */
    struct sf_buffer buffer, taken;     /* the step being sent, the message being taken */
    struct sf_box box;
    struct sf_engine_counts counts;
    int64_t looked_ns;                  /* when `seen` was true */
    struct sf_sched_load seen;
};

/* ---- pages ----------------------------------------------------------------------------------- */
static void need(void *arg, int32_t prompt, int32_t tokens, int settled, int64_t *pages_out)
{
    const struct sf_engine *e = arg;
    const struct sf_launch_plan *plan = e->spec.plan;
    for (int32_t r = 0; r < e->group_ranks; r++) {
        const struct sf_spot at = {.prompt = prompt, .tokens = tokens,
                                   .tightened = settled > 1 ? settled - 1 : 0};
        struct sf_cost cost;
        sf_status status = sf_account_tightened(&plan->setup, &e->spec.config->kv.stack,
                                                &plan->rank[r].lanes, plan->kv_dtype, &at, &cost);
        SF_ASSERT(status == SF_OK);     /* the plan has asked for longer ones */
        pages_out[r] = settled ? cost.pages_after : cost.pages_peak;
    }
}

/* Prompts may share blocks where every method of the stack says so.  What no method edits is held
 * once; of the rest each holder may come to need a copy. */
static enum sf_sharing sharing_of(struct sf_engine *e)
{
    const struct sf_config *config = e->spec.config;
    e->sharing = sf_stack_sharing(&config->kv.stack);
    if (!config->scheduler.prefix_caching) return SF_SHARE_NOTHING;
    if (e->sharing.withheld_by != NULL) {
        sf_log(SF_LOG_INFO, "prompts share no cache: method %s does not allow it",
               e->sharing.withheld_by->name);
        return SF_SHARE_NOTHING;
    }
    return e->sharing.kept ? SF_SHARE_KEPT : SF_SHARE_COPIED;
}

static int32_t attach(void *arg, int32_t prompt, int32_t blocks)
{
    const struct sf_engine *e = arg;
    return sf_share_most(&e->sharing, prompt, e->spec.plan->page_slots, blocks);
}

/* Rows of a prompt chunk under run.deterministic: a function of the configuration alone.  At most
 * half a step, so that prompts get on while others decode. */
static int32_t fixed_chunk(int32_t rows_max)
{
    int32_t rows = FIXED_CHUNK;
    while (rows > rows_max / 2 && rows > FIXED_CHUNK_MIN) rows /= 2;
    return rows < rows_max ? rows : rows_max;
}

static sf_status make_sched(struct sf_engine *e)
{
    const struct sf_launch_plan *plan = e->spec.plan;
    size_t ranks = (size_t)plan->ranks;
    int64_t *pages = calloc(2 * ranks, sizeof *pages), *block_pages = pages + ranks;
    if (pages == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d ranks", plan->ranks);
    struct sf_sched_limits limits = {.groups = plan->data,
                                     .stages = plan->pipeline,
                                     .micro_batches = plan->micro_batches,
                                     .ranks = e->group_ranks,
                                     .seqs_max = e->seqs_max,
                                     .rows_max = plan->rows_max,
                                     .chunk_rows = plan->fixed ? fixed_chunk(plan->rows_max) : 0,
                                     /* layers are encoded together at its end */
                                     .prompt_apart =
                                         sf_stack_grouped(&e->spec.config->kv.stack) != NULL,
                                     .answer_apart = sf_stack_interval(&e->spec.config->kv.stack),
                                     .slots_max = e->slots,
                                     .pages = pages,
                                     .need = need,
                                     .need_arg = e,
                                     .tightens = !plan->fixed &&
                                                 sf_stack_tightens(&e->spec.config->kv.stack),
                                     .sharing = sharing_of(e),
                                     .attach = attach, .attach_arg = e,
                                     .block_tokens = plan->page_slots,
                                     .blocks_max = INT32_MAX,
                                     .block_pages = block_pages};
    for (int32_t r = 0; r < plan->ranks; r++) {
        pages[r] = plan->rank[r].pages;
        int32_t lanes = plan->rank[r].lanes.lane_ptr[plan->rank[r].lanes.layers];
        if (r < e->group_ranks) block_pages[r] = lanes;
        if (lanes > 0 && pages[r] / lanes < limits.blocks_max)
            limits.blocks_max = (int32_t)(pages[r] / lanes);
    }
    if (limits.blocks_max == 0 || limits.blocks_max == INT32_MAX)
        limits.sharing = SF_SHARE_NOTHING;
    sf_status status = sf_sched_create(&limits, &e->sched);
    free(pages);
    return status;
}

static sf_status make(struct sf_engine *e)
{
    const struct sf_launch_plan *plan = e->spec.plan;
    size_t ranks = (size_t)plan->ranks, groups = (size_t)plan->data;
    e->group_ranks = plan->tensor * plan->pipeline;
    e->seqs_max = e->spec.seqs_max > 0 ? e->spec.seqs_max : plan->seqs_max;
    e->serial = e->spec.serial;
    SF_ASSERT(e->seqs_max <= plan->seqs_max);   /* the workers have no more places */
    e->slots = SLOTS_PER_PLACE * e->seqs_max * plan->data;
    e->slot = calloc((size_t)e->slots, sizeof *e->slot);
    e->free_slot = calloc((size_t)e->slots, sizeof *e->free_slot);
    e->rank = calloc(ranks, sizeof *e->rank);
    e->load = calloc(ranks, sizeof *e->load);
    e->flight = calloc(groups * (size_t)plan->micro_batches, sizeof *e->flight);
    e->result_ns = calloc(groups, sizeof *e->result_ns);
    if (!e->slot || !e->free_slot || !e->rank || !e->load || !e->flight || !e->result_ns)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d sequences", e->slots);
    for (int32_t i = 0; i < e->slots; i++) e->free_slot[i] = e->slots - 1 - i;
    return make_sched(e);
}

sf_status sf_engine_create(const struct sf_engine_spec *spec, struct sf_engine **out)
{
    struct sf_engine *e = calloc(1, sizeof *e);
    if (e == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the engine");
    e->spec = *spec;
    sf_status status = make(e);
    if (status != SF_OK) sf_engine_destroy(e);
    else *out = e;
    return status;
}

void sf_engine_destroy(struct sf_engine *e)
{
    if (e == NULL) return;
    sf_sched_destroy(e->sched);
    for (int32_t i = 0; e->slot != NULL && i < e->slots; i++) free(e->slot[i].token);
    free(e->slot);
    free(e->free_slot);
    free(e->rank);
    free(e->load);
    free(e->flight);
    free(e->result_ns);
    sf_buffer_free(&e->buffer);
    sf_buffer_free(&e->taken);
    sf_box_free(&e->box);
    free(e);
}

/* ---- sequences in ---------------------------------------------------------------------------- */
int32_t sf_engine_slots(const struct sf_engine *e) { return e->slots; }

int32_t sf_engine_room(const struct sf_engine *e)
{
    int32_t slots = e->slots - e->used;
    int32_t waiting = e->seqs_max * e->spec.plan->data - sf_sched_load(e->sched).waiting;
    return waiting < 0 ? 0 : slots < waiting ? slots : waiting;
}

/* How long an answer will probably be: as the ones so far, with a quarter on top. */
static int32_t likely(const struct sf_engine *e, const struct sf_engine_seq *in)
{
    if (in->full || e->ended < ENDED_BEFORE_GUESSING) return in->answer_max;
    double share = 1.25 * (double)e->ended_tokens / (double)e->ended_max;
    double tokens = share * in->answer_max + 1;
    return tokens < in->answer_max ? (int32_t)tokens : in->answer_max;
}

sf_status sf_engine_add(struct sf_engine *e, const struct sf_engine_seq *in)
{
    SF_ASSERT(e->used < e->slots && in->answer_known < in->answer_max);
    int32_t number = e->free_slot[e->slots - e->used - 1];
    size_t prompt = (size_t)in->prompt_tokens, known = (size_t)in->answer_known;
    struct slot *slot = &e->slot[number];
    int32_t *token = malloc((prompt + (size_t)in->answer_max) * sizeof *token);
    if (token == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d tokens",
                       in->prompt_tokens + in->answer_max);
    memcpy(token, in->prompt, prompt * sizeof *token);
    if (known > 0) memcpy(token + prompt, in->answer, known * sizeof *token);
    uint64_t seq = sf_seq_name(++e->serial << SF_SEQ_SLOT_BITS | (uint64_t)number);
    struct sf_sched_seq add = {.seq = seq,
                               .prompt = in->prompt_tokens,
                               .answer_max = in->answer_max,
                               .answer_known = in->answer_known,
                               .answer_likely = likely(e, in),
                               .score_prompt = in->score_prompt,
                               .sampling = in->sampling,
                               .token = token};
    sf_status status = sf_sched_add(e->sched, &add);
    if (status != SF_OK) {
        free(token);
        return status;
    }
    *slot = (struct slot){.seq = seq, .owner = in->owner, .token = token,
                          .prompt = in->prompt_tokens, .answer = in->answer_known,
                          .answer_max = in->answer_max};
    e->used++;
    return SF_OK;
}

void sf_engine_last(struct sf_engine *e) { sf_sched_last(e->sched); }
int sf_engine_idle(const struct sf_engine *e) { return e->used == 0; }

/* ---- steps out ------------------------------------------------------------------------------- */
static sf_status push(struct sf_ring *ring, int32_t group, const struct sf_buffer *packed)
{
    struct sf_envelope envelope = {.group = group, .tag = SF_TAG_STEP};
    return sf_ring_push(ring, envelope, packed->bytes, packed->count, PUSH_MS);
}

static sf_status send(struct sf_engine *e, int32_t group, const struct sf_wire_step *step)
{
    SF_TRY(sf_wire_pack_step(step, &e->buffer));
    e->counts.steps++;
    e->counts.step_bytes += (int64_t)e->buffer.count;
    return push(e->spec.to_workers, group, &e->buffer);
}

/* How full the batch is while there is more to do: what was seen holds until the next look. */
static void look(struct sf_engine *e)
{
    const struct sf_sched_load seen = e->seen;
    int64_t now = sf_now_ns();
    double seconds = (double)(now - e->looked_ns) / 1e9;
    double places = (double)e->seqs_max * e->spec.plan->data;
    e->looked_ns = now;
    e->seen = sf_sched_load(e->sched);
    if (e->seen.running > e->counts.running_max) e->counts.running_max = e->seen.running;
    if (seen.waiting == 0) return;
    e->counts.fed_seconds += seconds;
    e->counts.full_seconds += seconds * seen.running / places;
}

static struct flight *flight_of(const struct sf_engine *e, int32_t group, int32_t batch)
{
    return &e->flight[group * e->spec.plan->micro_batches + batch];
}

static sf_status note_step(struct sf_engine *e, int32_t group, const struct sf_wire_step *step)
{
    struct flight flight = {.sent_ns = sf_now_ns()};
    for (int32_t i = 0; i < step->items; i++) {
        flight.rows += step->item[i].rows;
        if (step->item[i].token_first >= 0) flight.prompt_rows += step->item[i].rows;
    }
    e->counts.rows += flight.rows;
    e->counts.prompt_rows += flight.prompt_rows;
    *flight_of(e, group, step->batch) = flight;
    for (int32_t i = 0; e->spec.events.on_open != NULL && i < step->opens; i++)
        e->spec.events.on_open(e->spec.events.arg,
                               e->slot[sf_seq_slot(step->open[i].seq)].owner);
    for (int32_t i = 0; e->spec.events.on_tightened != NULL && i < step->tightens; i++)
        SF_TRY(e->spec.events.on_tightened(e->spec.events.arg,
                                           e->slot[sf_seq_slot(step->tighten[i].seq)].owner,
                                           step->tighten[i].tokens));
    return SF_OK;
}

/* The step's time goes to its rows. */
static void note_result(struct sf_engine *e, int32_t group, int32_t batch)
{
    const struct flight *flight = flight_of(e, group, batch);
    int64_t now = sf_now_ns(), *before = &e->result_ns[group];
    double seconds = (double)(now - (*before > flight->sent_ns ? *before : flight->sent_ns)) / 1e9;
    *before = now;
    if (flight->rows == 0) return;
    double share = seconds / flight->rows;
    e->counts.prompt_seconds += share * flight->prompt_rows;
    e->counts.decode_seconds += share * (flight->rows - flight->prompt_rows);
    if (flight->prompt_rows > 0) return;
    e->counts.decode_steps++;
    e->counts.decode_step_seconds += seconds;
}

static sf_status send_steps(struct sf_engine *e)
{
    int32_t group;
    const struct sf_wire_step *step;
    int64_t start = sf_now_ns();
    sf_status status = SF_OK;
    while (status == SF_OK && sf_sched_next(e->sched, &group, &step)) {
        status = note_step(e, group, step);
        if (status == SF_OK) status = send(e, group, step);
    }
    e->counts.schedule_seconds += sf_seconds_since(start);
    look(e);
    return status;
}

sf_status sf_engine_measure(struct sf_engine *e, enum sf_wire_measure what)
{
    e->loads_missing = e->spec.plan->ranks;
    for (int32_t g = 0; g < e->spec.plan->data; g++) {
        struct sf_wire_step step = *sf_sched_empty(e->sched, g);
        step.measure = (uint8_t)what;
        SF_TRY(send(e, g, &step));
    }
    return SF_OK;
}

const struct sf_wire_load *sf_engine_loads(const struct sf_engine *e)
{
    return e->loads_missing == 0 ? e->load : NULL;
}

sf_status sf_engine_stop(struct sf_ring *to_workers, int32_t groups)
{
    const struct sf_wire_step step = {.stop = 1};
    struct sf_buffer packed = {0};
    sf_status status = sf_wire_pack_step(&step, &packed);
    for (int32_t g = 0; g < groups && status == SF_OK; g++)
        status = push(to_workers, g, &packed);
    sf_buffer_free(&packed);
    return status;
}

/* ---- results and reports in ------------------------------------------------------------------ */
static struct slot *slot_of(struct sf_engine *e, uint64_t seq)
{
    int32_t number = sf_seq_slot(seq);
    if (number >= e->slots || e->slot[number].seq == 0) return NULL;
    struct slot *slot = &e->slot[number];
    return sf_seq_name(slot->seq) == sf_seq_name(seq) ? slot : NULL;
}

static sf_status take_score(struct sf_engine *e, const struct sf_wire_score *score)
{
    struct slot *slot = slot_of(e, score->seq);
    if (slot == NULL || slot->ended || score->pos < 1 || score->pos > slot->prompt + slot->answer)
        return SF_FAIL(SF_INTERNAL, "a score of position %d of sequence %llx, which has none",
                       score->pos, (unsigned long long)score->seq);
    return e->spec.events.on_score(e->spec.events.arg, slot->owner, score);
}

static sf_status take_sample(struct sf_engine *e, const struct sf_wire_sample *sample)
{
    struct slot *slot = slot_of(e, sample->seq);
    if (slot == NULL || slot->ended)
        return SF_FAIL(SF_INTERNAL, "a sample for sequence %llx, which is not running",
                       (unsigned long long)sample->seq);
    slot->seq = sample->seq;            /* with the attempt that it is of */
    slot->token[slot->prompt + slot->answer++] = sample->token;
    int end = 0;
    SF_TRY(e->spec.events.on_token(e->spec.events.arg, slot->owner, slot->token, slot->prompt,
                                   slot->answer, &end));
    if (!end && slot->answer < slot->answer_max) return SF_OK;
    slot->ended = 1;
    e->ended++;
    e->ended_tokens += slot->answer;
    e->ended_max += slot->answer_max;
    sf_sched_end(e->sched, slot->seq);
    return SF_OK;
}

static sf_status take_result(struct sf_engine *e, int32_t rank)
{
    int64_t start = sf_now_ns();
    struct sf_wire_result result;
    SF_TRY(sf_wire_unpack_result(e->taken.bytes, e->taken.count, &e->box, &result));
    SF_TRY(sf_sched_result(e->sched, rank / e->group_ranks, &result));
    note_result(e, rank / e->group_ranks, result.batch);
    e->counts.schedule_seconds += sf_seconds_since(start);
    for (int32_t i = 0; i < result.scores; i++) SF_TRY(take_score(e, &result.score[i]));
    for (int32_t i = 0; i < result.samples; i++) SF_TRY(take_sample(e, &result.sample[i]));
    return SF_OK;
}

/* Of a sequence that has ended; what an attempt leaves that was preempted counts for nothing, since
 * all of it is done again.  That may come when the sequence is long gone, where it has ended in
 * another group. */
static sf_status take_receipt(struct sf_engine *e, const struct sf_wire_receipt *receipt)
{
    struct slot *slot = slot_of(e, receipt->seq);
    if (sf_seq_name(receipt->seq) >> SF_SEQ_SLOT_BITS > e->serial)
        return SF_FAIL(SF_INTERNAL, "a receipt for sequence %llx, which there never was",
                       (unsigned long long)receipt->seq);
    if (slot == NULL || !slot->ended || receipt->seq != slot->seq) return SF_OK;
    sf_wire_receipt_add(&slot->receipt, receipt);
    if (++slot->receipts < e->group_ranks) return SF_OK;
    void *owner = slot->owner;
    int32_t *token = slot->token;
    struct sf_wire_receipt sum = slot->receipt;
    *slot = (struct slot){0};
    e->free_slot[e->slots - e->used] = (int32_t)(slot - e->slot);
    e->used--;
    sf_status status = e->spec.events.on_closed(e->spec.events.arg, owner, &sum);
    free(token);                        /* the owner could still look at them */
    return status;
}

static sf_status take_report(struct sf_engine *e)
{
    struct sf_wire_report report;
    SF_TRY(sf_wire_unpack_report(e->taken.bytes, e->taken.count, &e->box, &report));
    if (report.status != SF_OK)
        return SF_FAIL((sf_status)report.status, "rank %d: %s", report.rank, report.text);
    if (report.rank >= e->spec.plan->ranks)
        return SF_FAIL(SF_INTERNAL, "a report of rank %d of %d", report.rank,
                       e->spec.plan->ranks);
    if (report.signal != SF_WIRE_NO_SIGNAL)
        return e->spec.events.on_signal(e->spec.events.arg, report.rank, report.signal);
    struct rank *rank = &e->rank[report.rank];
    *rank = (struct rank){.pages_free = report.pages_free, .pages = report.pages,
                          .kv = {report.kv_bytes_stored, report.kv_bytes_exact},
                          .step = report.step};
    if (report.measured) {
        e->load[report.rank] = report.load;
        if (e->loads_missing > 0) e->loads_missing--;
    }
    for (int32_t i = 0; i < report.receipts; i++) SF_TRY(take_receipt(e, &report.receipt[i]));
    return SF_OK;
}

sf_status sf_engine_poll(struct sf_engine *e, int64_t wait_ms)
{
    SF_TRY(send_steps(e));
    for (int32_t i = 0; i < TAKE_MAX; i++) {
        struct sf_envelope envelope;
        sf_status status =
            sf_ring_pop(e->spec.from_workers, i == 0 ? wait_ms : 0, &envelope, &e->taken);
        if (status == SF_TIMEOUT) return SF_OK; /* the worker's thread has the deadlines */
        SF_TRY(status);
        SF_TRY(envelope.tag == SF_TAG_RESULT ? take_result(e, envelope.group) : take_report(e));
        SF_TRY(send_steps(e));
    }
    return SF_OK;
}

/* ---- looking in ------------------------------------------------------------------------------ */
struct sf_sched_load sf_engine_load(const struct sf_engine *e) { return sf_sched_load(e->sched); }
struct sf_engine_counts sf_engine_counts(const struct sf_engine *e) { return e->counts; }
struct sf_engine_kv sf_engine_kv(const struct sf_engine *e)
{
    struct sf_engine_kv sum = {0, 0};
    for (int32_t r = 0; r < e->spec.plan->ranks; r++) {
        sum.bytes_stored += e->rank[r].kv.bytes_stored;
        sum.bytes_exact += e->rank[r].kv.bytes_exact;
    }
    return sum;
}

void sf_engine_dump(const struct sf_engine *e)
{
    struct sf_sched_load load = sf_sched_load(e->sched);
    sf_log(SF_LOG_INFO, "state: %d running, %d waiting, %d steps in flight, KV %.0f %% promised, "
           "%lld preempted, %lld tightened, %lld prompt tokens reused, %lld blocks evicted",
           load.running, load.waiting, load.in_flight, 100 * load.kv_busy,
           (long long)load.preempted, (long long)load.tightened, (long long)load.reused_tokens,
           (long long)load.evicted_blocks);
    for (int32_t r = 0; r < e->spec.plan->ranks; r++)
        sf_log(SF_LOG_INFO, "state: rank %d at step %llu had %lld of %lld pages free", r,
               (unsigned long long)e->rank[r].step, (long long)e->rank[r].pages_free,
               (long long)e->rank[r].pages);
    for (int32_t i = 0; i < e->slots; i++)
        if (e->slot[i].seq != 0)
            sf_log(SF_LOG_DEBUG, "state: sequence %llx: prompt of %d, answer %d of at most %d%s",
                   (unsigned long long)e->slot[i].seq, e->slot[i].prompt, e->slot[i].answer,
                   e->slot[i].answer_max, e->slot[i].ended ? ", ended" : "");
}
