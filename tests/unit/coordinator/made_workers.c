/* The made-up workers (made_workers.h). */
#include "tests/unit/coordinator/made_workers.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { BLOCKS = 4096, BLOCK_TOKENS_MAX = 64, LATE_ONE_IN = 3, TOPS = 20 };

struct work_seq {
    int open;
    uint64_t seq;
    int32_t prompt, tokens_max, fed, batch;
    int32_t next;                       /* the token that must be fed next, as a step said; -1 */
    int32_t sampled;                    /* position of the last sample; -1 */
    int32_t *token;                     /* [tokens_max + 1] */
    int32_t blocks, filled, *block;
    struct sf_wire_sampling sampling;
};
struct work_block { int filled; int32_t token[BLOCK_TOKENS_MAX]; };
struct group {
    struct work_seq *seq;               /* [seqs_max] */
    struct work_block *block;           /* [BLOCKS] */
    uint64_t next_step;
    uint8_t *busy;                      /* [micro_batches] */
    int stopped;
};
struct mail {
    struct mail *next;
    struct sf_envelope envelope;
    struct sf_buffer bytes;
    int32_t samples, batch;
};
struct workers {
    const struct made_job *job;
    const struct sf_launch_plan *plan;
    struct workers_counts *counts;
    int32_t ranks;                      /* of one group */
    uint64_t seed, draws;
    struct group *group;
    struct mail **out;                  /* [ranks of the job] */
    struct sf_buffer taken;             /* the step that came last */
    struct sf_box box;
    struct sf_buffer buffer;
    struct sf_wire_result result;       /* being made; its arrays have the largest sizes */
    struct sf_wire_top *top;            /* TOPS for each score */
    void (*tamper)(struct sf_wire_result *);
    char fault[512];
};

/* ---- promises -------------------------------------------------------------------------------- */
static int broken(struct workers *w, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static int broken(struct workers *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (w->fault[0] == '\0') vsnprintf(w->fault, sizeof w->fault, format, args);
    va_end(args);
    return 0;
}
#define PROMISE(w, condition, step)                                                                \
    ((condition) ? 1 : broken((w), "step %llu: %s does not hold (line %d)",                        \
                              (unsigned long long)(step)->id, #condition, __LINE__))

const char *workers_fault(const struct workers *w) { return w->fault; }

static struct work_seq *find(struct workers *w, struct group *group, uint64_t id)
{
    for (int32_t i = 0; i < w->plan->seqs_max; i++)
        if (group->seq[i].open && group->seq[i].seq == id) return &group->seq[i];
    return NULL;
}

/* Pages that the open sequences have come to need, where none are shared. */
static void check_pages(struct workers *w, int32_t g, const struct sf_wire_step *step)
{
    const struct sf_launch_plan *plan = w->plan;
    for (int32_t r = 0; r < w->ranks && !w->job->config.scheduler.prefix_caching; r++) {
        const struct sf_plan_rank *rank = &plan->rank[g * w->ranks + r];
        int64_t pages = 0;
        for (int32_t i = 0; i < plan->seqs_max; i++) {
            const struct work_seq *seq = &w->group[g].seq[i];
            int32_t prompt = seq->fed < seq->prompt ? seq->fed : seq->prompt;
            struct sf_cost cost = {0};
            if (seq->open && seq->fed > 0 &&
                sf_account_sequence(&plan->setup, &w->job->config.kv.stack, &rank->lanes,
                                    plan->kv_dtype, prompt, seq->fed, &cost) == SF_OK)
                pages += cost.pages_peak;
        }
        PROMISE(w, pages <= rank->pages, step);
    }
}

/* ---- what ranks say -------------------------------------------------------------------------- */
static void post(struct workers *w, int32_t rank, int32_t tag, int32_t samples, int32_t batch)
{
    struct mail *mail = calloc(1, sizeof *mail), **place = &w->out[rank];
    if (mail == NULL) abort();
    if (sf_buffer_reserve(&mail->bytes, w->buffer.count) != SF_OK) abort();
    mail->envelope = (struct sf_envelope){.group = rank, .tag = tag};
    mail->bytes.count = w->buffer.count;
    if (w->buffer.count > 0) memcpy(mail->bytes.bytes, w->buffer.bytes, w->buffer.count);
    mail->samples = samples;
    mail->batch = batch;
    while (*place != NULL) place = &(*place)->next;
    *place = mail;
}

void workers_report(struct workers *w, const struct sf_wire_report *report)
{
    struct sf_wire_report told = *report;
    told.kv_bytes_stored = 10 * (report->rank + 1);     /* known to who asks sf_engine_kv */
    told.kv_bytes_exact = 10 * (report->rank + 2);
    if (sf_wire_pack_report(&told, &w->buffer) != SF_OK) abort();
    post(w, report->rank, SF_TAG_REPORT, 0, -1);
}

int workers_have_mail(const struct workers *w)
{
    for (int32_t r = 0; r < w->plan->ranks; r++)
        if (w->out[r] != NULL) return 1;
    return 0;
}

static void send_one(struct workers *w, int32_t rank, struct sf_ring *ring)
{
    struct mail *mail = w->out[rank];
    w->out[rank] = mail->next;
    w->counts->samples += mail->samples;
    if (mail->batch >= 0) w->group[rank / w->ranks].busy[mail->batch] = 0;
    (void)sf_ring_push(ring, mail->envelope, mail->bytes.bytes, mail->bytes.count, 0);
    sf_buffer_free(&mail->bytes);
    free(mail);
}

void workers_send(struct workers *w, struct sf_ring *from_workers, int all)
{
    for (int32_t r = 0; r < w->plan->ranks; r++) {
        int late = sf_rng_u64(w->seed, 1, (uint64_t)r) % LATE_ONE_IN == 0;
        while (w->out[r] != NULL &&
               (all || sf_rng_u64(w->seed, 2, w->draws++) % 8 < (late ? 1 : 6)))
            send_one(w, r, from_workers);
    }
}

/* ---- steps ----------------------------------------------------------------------------------- */
static void close_sequences(struct workers *w, int32_t g, const struct sf_wire_step *step)
{
    if (step->closes == 0) return;
    struct sf_wire_receipt *receipt = calloc((size_t)step->closes, sizeof *receipt);
    if (receipt == NULL) abort();
    for (int32_t i = 0; i < step->closes; i++) {
        struct work_seq *seq = find(w, &w->group[g], step->close[i]);
        if (!PROMISE(w, seq != NULL, step)) continue;
        PROMISE(w, seq->batch == step->batch, step);
        receipt[i] = (struct sf_wire_receipt){.seq = seq->seq, .bytes_exact = seq->fed,
                                              .bytes_stored = 1, .slots_evicted = 1};
        free(seq->token);
        free(seq->block);
        *seq = (struct work_seq){.open = 0};
    }
    for (int32_t r = 0; r < w->ranks; r++) {
        workers_report(w, &(struct sf_wire_report){.rank = g * w->ranks + r, .step = step->id,
                                                   .receipt = receipt, .receipts = step->closes});
        for (int32_t i = 0; i < step->closes; i++) {
            receipt[i].bytes_exact = 0;
            receipt[i].slots_evicted *= 2;
        }
    }
    free(receipt);
}

static int32_t *copy(const int32_t *from, int32_t count, int32_t room)
{
    int32_t *to = calloc((size_t)room + 1, sizeof *to);
    if (to == NULL) abort();
    if (count > 0) memcpy(to, from, (size_t)count * sizeof *to);
    return to;
}

/* Attached blocks are there and stand for their tokens; the others are to be filled. */
static void attach(struct workers *w, struct group *group, const struct sf_wire_step *step,
                   const struct sf_wire_open *open, struct work_seq *seq)
{
    int32_t size = w->plan->page_slots;
    PROMISE(w, open->blocks * size <= open->prompt && open->reused * size < open->prompt, step);
    for (int32_t b = 0; b < open->blocks; b++) {
        if (!PROMISE(w, open->block[b] < BLOCKS && size <= BLOCK_TOKENS_MAX, step)) return;
        const struct work_block *block = &group->block[open->block[b]];
        PROMISE(w, block->filled == (b < open->reused), step);
        if (b < open->reused)
            memcpy(seq->token + b * size, block->token, (size_t)size * sizeof *seq->token);
    }
    seq->fed = open->reused * size;
    seq->filled = open->reused;
    w->counts->attached += seq->fed;
    if (!sf_wire_looks_back(&open->sampling) || seq->fed == 0) {
        PROMISE(w, open->reused_first == -1, step);
        return;
    }
    if (!PROMISE(w, open->reused_first >= 0 && open->reused_first + seq->fed <= step->tokens,
                 step))
        return;
    PROMISE(w, memcmp(step->token + open->reused_first, seq->token,
                      (size_t)seq->fed * sizeof *seq->token) == 0, step);
}

static void open_sequences(struct workers *w, int32_t g, const struct sf_wire_step *step)
{
    for (int32_t i = 0; i < step->opens; i++) {
        const struct sf_wire_open *open = &step->open[i];
        struct work_seq *seq = w->group[g].seq, *end = seq + w->plan->seqs_max;
        while (seq < end && seq->open) seq++;
        if (!PROMISE(w, seq < end && find(w, &w->group[g], open->seq) == NULL, step)) return;
        PROMISE(w, open->tokens_max <= w->plan->tokens_max, step);
        *seq = (struct work_seq){.open = 1, .seq = open->seq, .prompt = open->prompt,
                                 .tokens_max = open->tokens_max, .batch = step->batch,
                                 .next = -1, .sampled = -1, .blocks = open->blocks,
                                 .sampling = open->sampling};
        seq->token = copy(NULL, 0, open->tokens_max);
        seq->block = copy(open->block, open->blocks, open->blocks);
        attach(w, &w->group[g], step, open, seq);
        w->counts->opens++;
    }
}

/* Of a prompt's token: by what stands before it. */
static void score(struct workers *w, const struct work_seq *seq, int32_t pos, int32_t token)
{
    struct sf_wire_top *top = w->top + (size_t)w->result.scores * TOPS;
    int prompt = pos < seq->prompt;
    struct sf_wire_score *out = &w->result.score[w->result.scores++];
    *out = made_score(seq->token, prompt ? pos : seq->prompt,
                      prompt ? 0 : seq->sampling.rng_stream, pos, token, seq->sampling.tops, top);
    out->seq = seq->seq;
}

/* Tokens of an answer that are fed again are the ones that were sampled. */
static int feed(struct workers *w, const struct sf_wire_step *step, struct work_seq *seq,
                int32_t token)
{
    if (!PROMISE(w, seq->fed < seq->tokens_max, step)) return 0;
    if (seq->next >= 0) PROMISE(w, token == seq->next, step);
    if (seq->fed >= seq->prompt)
        PROMISE(w, token == made_token(seq->token, seq->prompt, seq->sampling.rng_stream,
                                       seq->fed - seq->prompt), step);
    seq->next = -1;
    seq->token[seq->fed++] = token;
    return 1;
}

static void fill_blocks(const struct workers *w, struct group *group, struct work_seq *seq)
{
    int32_t size = w->plan->page_slots;
    for (; seq->filled < seq->blocks && seq->fed >= (seq->filled + 1) * size; seq->filled++) {
        struct work_block *block = &group->block[seq->block[seq->filled]];
        block->filled = 1;
        memcpy(block->token, seq->token + seq->filled * size, (size_t)size * sizeof *seq->token);
    }
}

static void sample(struct workers *w, const struct sf_wire_step *step, struct work_seq *seq)
{
    int32_t index = seq->fed - seq->prompt;
    if (!PROMISE(w, index >= 0 && seq->fed < seq->tokens_max, step)) return;
    int32_t token = made_token(seq->token, seq->prompt, seq->sampling.rng_stream, index);
    w->result.sample[w->result.samples++] =
        (struct sf_wire_sample){.seq = seq->seq, .token = token};
    if (seq->sampling.scores) score(w, seq, seq->fed, token);
    seq->sampled = seq->fed;
    seq->token[seq->fed] = token;
}

static void run_item(struct workers *w, struct group *group, const struct sf_wire_step *step,
                     const struct sf_wire_item *item)
{
    struct work_seq *seq = find(w, group, item->seq);
    if (!PROMISE(w, seq != NULL && seq->batch == step->batch && seq->fed == item->pos, step))
        return;
    if (item->token_first < 0) PROMISE(w, seq->sampled == seq->fed, step);
    for (int32_t r = 0; r < item->rows; r++) {
        int32_t token = item->token_first < 0 ? seq->token[seq->fed]
                                              : step->token[item->token_first + r];
        if (!feed(w, step, seq, token)) return;
        if (!(item->logits & SF_LOGITS_ROWS)) continue;
        int32_t next = r + 1 < item->rows ? step->token[item->token_first + r + 1] : item->next;
        PROMISE(w, (next >= 0) == (seq->fed < seq->prompt), step);
        seq->next = next;
        if (next >= 0) score(w, seq, seq->fed, next);
    }
    fill_blocks(w, group, seq);
    if (item->logits & SF_LOGITS_SAMPLE) sample(w, step, seq);
}

static void check_step(struct workers *w, int32_t g, const struct sf_wire_step *step)
{
    struct group *group = &w->group[g];
    int32_t rows = 0;
    int32_t open = 0;
    for (int32_t i = 0; i < w->plan->seqs_max; i++) open += group->seq[i].open;
    /* An engine that follows another one begins anew. */
    PROMISE(w, step->id == group->next_step || (step->id == 0 && open == 0), step);
    PROMISE(w, !group->stopped, step);
    group->next_step = step->id + 1;
    PROMISE(w, step->items <= w->plan->seqs_max, step);
    for (int32_t i = 0; i < step->items; i++) rows += step->item[i].rows;
    PROMISE(w, rows <= w->plan->rows_max, step);
    for (int32_t i = 0; i < step->drops; i++) {
        if (!PROMISE(w, step->drop[i] < BLOCKS && group->block[step->drop[i]].filled, step))
            continue;
        group->block[step->drop[i]].filled = 0;
    }
}

static void measure(struct workers *w, int32_t g, const struct sf_wire_step *step)
{
    PROMISE(w, step->items == 0 && step->opens == 0 && step->closes == 0, step);
    for (int32_t r = g * w->ranks; r < (g + 1) * w->ranks; r++)
        workers_report(w, &(struct sf_wire_report){.rank = r, .step = step->id, .measured = 1,
                                                   .load = {.steps = w->counts->steps,
                                                            .rows = 100 + r}});
}

static void run_step(struct workers *w, int32_t g, const struct sf_wire_step *step)
{
    struct group *group = &w->group[g];
    if (step->stop) {
        PROMISE(w, !group->stopped, step);
        group->stopped = 1;
        return;
    }
    close_sequences(w, g, step);
    check_step(w, g, step);
    if (step->measure) {
        measure(w, g, step);
        return;
    }
    if (!PROMISE(w, step->batch < w->plan->micro_batches && !group->busy[step->batch], step))
        return;
    group->busy[step->batch] = 1;
    w->counts->steps++;
    open_sequences(w, g, step);
    w->result.step = step->id;
    w->result.batch = step->batch;
    w->result.samples = w->result.scores = 0;
    for (int32_t i = 0; i < step->items; i++) run_item(w, group, step, &step->item[i]);
    check_pages(w, g, step);
    if (w->tamper != NULL) w->tamper(&w->result);
    if (sf_wire_pack_result(&w->result, &w->buffer) != SF_OK) broken(w, "%s", sf_error_text());
    int32_t last = g * w->ranks + w->ranks - w->plan->tensor;   /* tensor rank 0, last stage */
    post(w, last, SF_TAG_RESULT, w->result.samples, step->batch);
}

void workers_tamper(struct workers *w, void (*tamper)(struct sf_wire_result *))
{
    w->tamper = tamper;
}

int workers_take(struct workers *w, struct sf_ring *ring, int64_t wait_ms)
{
    struct sf_envelope envelope;
    struct sf_wire_step step;
    sf_status status = sf_ring_pop(ring, wait_ms, &envelope, &w->taken);
    if (status != SF_OK) return status == SF_STOPPED ? -1 : 0;
    int32_t g = envelope.group;
    if (envelope.tag != SF_TAG_STEP || g < 0 || g >= w->plan->data)
        broken(w, "a message with tag %d for group %d", envelope.tag, g);
    else if (sf_wire_unpack_step(w->taken.bytes, w->taken.count, &w->box, &step) != SF_OK)
        broken(w, "%s", sf_error_text());
    else
        run_step(w, g, &step);
    return 1;
}

int workers_are_stopped(const struct workers *w)
{
    for (int32_t g = 0; g < w->plan->data; g++)
        if (!w->group[g].stopped) return 0;
    return 1;
}

/* ---- life ------------------------------------------------------------------------------------ */
static void *take(size_t count, size_t bytes)
{
    void *array = calloc(count, bytes);
    if (array == NULL) abort();
    return array;
}

struct workers *workers_make(const struct made_job *job, uint64_t seed,
                             struct workers_counts *counts)
{
    const struct sf_launch_plan *plan = &job->plan;
    struct workers *w = take(1, sizeof *w);
    size_t scores = (size_t)plan->rows_max + (size_t)plan->seqs_max;
    w->job = job;
    w->plan = plan;
    w->counts = counts;
    w->seed = seed;
    w->ranks = plan->tensor * plan->pipeline;
    w->group = take((size_t)plan->data, sizeof *w->group);
    w->out = take((size_t)plan->ranks, sizeof(struct mail *));
    w->result.sample = take((size_t)plan->seqs_max, sizeof *w->result.sample);
    w->result.score = take(scores, sizeof *w->result.score);
    w->top = take(scores * TOPS, sizeof *w->top);
    for (int32_t g = 0; g < plan->data; g++) {
        w->group[g].seq = take((size_t)plan->seqs_max, sizeof *w->group[g].seq);
        w->group[g].block = take(BLOCKS, sizeof *w->group[g].block);
        w->group[g].busy = take((size_t)plan->micro_batches, 1);
    }
    return w;
}

void workers_free(struct workers *w)
{
    for (int32_t r = 0; r < w->plan->ranks; r++)
        for (struct mail *mail = w->out[r], *next; mail != NULL; mail = next) {
            next = mail->next;
            sf_buffer_free(&mail->bytes);
            free(mail);
        }
    for (int32_t g = 0; g < w->plan->data; g++) {
        for (int32_t i = 0; i < w->plan->seqs_max; i++) {
            free(w->group[g].seq[i].token);
            free(w->group[g].seq[i].block);
        }
        free(w->group[g].seq);
        free(w->group[g].block);
        free(w->group[g].busy);
    }
    free(w->group);
    free(w->out);
    free(w->result.sample);
    free(w->result.score);
    free(w->top);
    sf_box_free(&w->box);
    sf_buffer_free(&w->buffer);
    sf_buffer_free(&w->taken);
    free(w);
}

void made_ring_empty(struct sf_ring *ring)
{
    struct sf_envelope envelope;
    struct sf_buffer bytes = {0};
    while (sf_ring_pop(ring, 0, &envelope, &bytes) == SF_OK) continue;
    sf_buffer_free(&bytes);
}
