/* coordinator/run.c: the coordinator's loop: records in, steps out, samples in, records out.
 *
 *   input -> request -> [slot] waiting -> running -> ended -> receipts of all ranks -> emit
 *
 * A record has a slot from being read to being emitted; slots are bounded, so memory does not grow
 * with the file.  A sequence's number is (use of the slot << 32 | slot). */
#include "coordinator/run.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/lines.h"
#include "base/log.h"
#include "base/memory.h"
#include "coordinator/answer_text.h"
#include "coordinator/dedup.h"
#include "coordinator/emit.h"
#include "coordinator/progress.h"
#include "coordinator/request.h"
#include "coordinator/sched.h"

enum { LINE_BYTES_MAX = 64 << 20, WAIT_MS = 200, PUSH_MS = 60000, FIXED_CHUNK = 256,
       FIXED_CHUNK_MIN = 16, PATH_BYTES = 4000 };

struct record {
    uint64_t seq;                       /* 0: the slot is free */
    struct sf_record request;
    int32_t *token, tokens;             /* the answer; room for answer_max */
    struct sf_answer_text text;
    int ended, stopped;
    int32_t receipts;
    struct sf_wire_receipt receipt;
};
struct job {
    const struct sf_run_spec *spec;
    struct sf_run_summary sum;
    struct sf_sched *sched;
    struct sf_emit *emit;
    struct sf_line_reader *reader;
    struct sf_progress progress;
    struct sf_record_limits limits;
    struct record *record; int32_t slots, active, ranks;    /* ranks: of one group */
    int64_t *pages;                     /* [ranks] of one sequence */
    uint64_t uses;
    struct sf_buffer packed;            /* the step being sent */
    struct sf_box unpacked;             /* the message being taken */
    int64_t first_step_ns;
    int input_done;
};

/* Makes the output and takes it away again: what stands against that is better known now than
 * after the weights were loaded. */
static sf_status check_output(const char *output)
{
    char folder[PATH_BYTES];
    struct stat info;
    if (snprintf(folder, sizeof folder, "%s.run", output) >= (int)sizeof folder)
        return SF_FAIL(SF_INVALID, "--output has a path of %zu bytes; at most %d are taken",
                       strlen(output), PATH_BYTES - 5);
    if (stat(folder, &info) == 0 && !S_ISDIR(info.st_mode))
        return SF_FAIL(SF_INVALID, "%s: must be a folder, or not be there", folder);
    int file = open(output, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file < 0 && errno == EEXIST)
        return SF_FAIL(SF_INVALID, "%s exists already; name another --output or remove it", output);
    if (file < 0)
        return SF_FAIL(SF_IO, "--output '%s' cannot be created: %s", output, strerror(errno));
    close(file);
    unlink(output);
    return SF_OK;
}

sf_status sf_run_check(const char *input, const char *output, int64_t *records_out)
{
    SF_TRY(check_output(output));
    return sf_dedup_scan(input, records_out);
}

/* ---- records in ---- */

static sf_status refuse(struct job *job, struct sf_record *request, const char *words)
{
    job->sum.errors++;
    sf_status status = sf_emit_error(job->emit, request, words);
    sf_record_free(request);
    return status;
}

static int32_t free_slot(const struct job *job)
{
    for (int32_t s = 0; s < job->slots; s++)
        if (job->record[s].seq == 0) return s;
    return -1;
}

/* Hands a request to the scheduler; one that can never fit is an error of its own. */
static sf_status admit(struct job *job, struct sf_record *request)
{
    const struct sf_launch_plan *plan = job->spec->plan;
    int32_t slot = free_slot(job), prompt = (int32_t)request->prompt.count;
    SF_ASSERT(slot >= 0);
    for (int32_t r = 0; r < job->ranks; r++) {
        struct sf_cost cost;
        SF_TRY(sf_account_sequence(&plan->setup, &job->spec->config->kv.stack,
                                   &plan->rank[r].lanes, plan->kv_dtype, prompt,
                                   prompt + request->answer_max, &cost));
        job->pages[r] = cost.pages_peak;
    }
    struct record *record = &job->record[slot];
    int32_t *token = calloc((size_t)request->answer_max, sizeof *token);
    if (token == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d tokens", request->answer_max);
    uint64_t seq = (++job->uses << 32) | (uint64_t)slot;
    struct sf_sched_seq add = {.seq = seq,
                               .prompt = prompt,
                               .answer_max = request->answer_max,
                               .sampling = request->sampling,
                               .token = request->prompt.id,
                               .pages = job->pages};
    sf_status status = sf_sched_add(job->sched, &add);
    if (status != SF_OK) free(token);
    if (status == SF_NO_PAGES) {
        snprintf(request->code, sizeof request->code, "too_long");
        return refuse(job, request, sf_error_text());
    }
    SF_TRY(status);
    *record = (struct record){.seq = seq, .request = *request, .token = token};
    job->active++;
    return SF_OK;
}

static sf_status read_one(struct job *job)
{
    struct sf_line line;
    SF_TRY(sf_line_reader_next(job->reader, &line));
    if (line.kind == SF_LINE_END) {
        job->input_done = 1;
        return SF_OK;
    }
    if (sf_record_is_blank(&line)) return SF_OK;
    job->sum.records++;
    struct sf_record request = {.line = line.number, .code = "invalid_json"};
    if (line.kind == SF_LINE_TOO_LONG)
        return refuse(job, &request, "the line is longer than 64 MiB");
    sf_status status =
        sf_record_parse(&job->limits, line.text, line.bytes, line.number, &request);
    if (status == SF_NO_MEMORY) return status;
    if (status != SF_OK) return refuse(job, &request, sf_error_text());
    return admit(job, &request);
}

/* ---- steps out ---- */

static sf_status send(struct job *job, int32_t group, const struct sf_wire_step *step)
{
    SF_TRY(sf_wire_pack_step(step, &job->packed));
    size_t count = job->packed.count;
    struct sf_envelope *envelope = malloc(sizeof *envelope + count);
    if (envelope == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a step of %zu B", count);
    *envelope = (struct sf_envelope){.group = group, .tag = SF_TAG_STEP, .bytes = count};
    memcpy(envelope->data, job->packed.bytes, count);
    sf_status status = sf_ring_push(job->spec->to_workers, envelope, PUSH_MS);
    if (status != SF_OK) free(envelope);
    return status;
}

static sf_status send_steps(struct job *job)
{
    int32_t group;
    const struct sf_wire_step *step;
    while (sf_sched_next(job->sched, &group, &step)) {
        if (job->first_step_ns == 0) job->first_step_ns = sf_now_ns();
        SF_TRY(send(job, group, step));
    }
    struct sf_sched_load load = sf_sched_load(job->sched);
    if (load.running > job->sum.batch_max) job->sum.batch_max = load.running;
    return SF_OK;
}

/* ---- samples and receipts in ---- */

static struct record *record_of(struct job *job, uint64_t seq)
{
    uint64_t slot = seq & 0xffffffffu;
    if (slot >= (uint64_t)job->slots || job->record[slot].seq != seq || seq == 0) return NULL;
    return &job->record[slot];
}

static int is_eos(const struct job *job, int32_t token)
{
    const struct sf_model_desc *desc = sf_model_desc(job->spec->model);
    for (int32_t i = 0; i < desc->eos_count; i++)
        if (desc->eos[i] == token) return 1;
    return job->spec->tokenizer != NULL && sf_tokenizer_is_eos(job->spec->tokenizer, token);
}

static sf_status take_sample(struct job *job, const struct sf_wire_sample *sample)
{
    struct record *record = record_of(job, sample->seq);
    if (record == NULL || record->ended)
        return SF_FAIL(SF_INTERNAL, "a sample for sequence %llx, which is not running",
                       (unsigned long long)sample->seq);
    /* The token that ends an answer is one of its tokens, but no part of its text. */
    record->token[record->tokens++] = sample->token;
    job->sum.output_tokens++;
    record->stopped = !record->request.ignore_eos && is_eos(job, sample->token);
    if (!record->stopped) {
        size_t old_bytes = record->text.bytes;
        SF_TRY(sf_answer_text_push(&record->text, job->spec->tokenizer, sample->token));
        record->stopped = sf_answer_text_stop(&record->text, old_bytes, record->request.stop,
                                              record->request.stops);
    }
    if (!record->stopped && record->tokens < record->request.answer_max) return SF_OK;
    record->ended = 1;
    sf_sched_end(job->sched, record->seq);
    return SF_OK;
}

static sf_status finish(struct job *job, struct record *record)
{
    SF_TRY(sf_answer_text_end(&record->text));
    struct sf_answer_out answer = {.request = &record->request,
                                   .number = record->seq >> 32,
                                   .text = record->text.text,
                                   .text_bytes = record->text.bytes,
                                   .token = record->token,
                                   .tokens = record->tokens,
                                   .stopped = record->stopped,
                                   .receipt = record->receipt};
    SF_TRY(sf_emit_answer(job->emit, &answer));
    job->sum.answered++;
    job->sum.prompt_tokens += (int64_t)record->request.prompt.count;
    job->sum.kv_bytes_exact += record->receipt.bytes_exact;
    job->sum.kv_bytes_stored += record->receipt.bytes_stored;
    job->sum.kv_bytes_peak += record->receipt.bytes_peak;
    job->sum.slots_evicted += record->receipt.slots_evicted;
    return SF_OK;
}

static void free_record(struct record *record)
{
    sf_record_free(&record->request);
    free(record->token);
    free(record->text.text);
    memset(record, 0, sizeof *record);
}

static sf_status take_receipt(struct job *job, const struct sf_wire_receipt *receipt)
{
    struct record *record = record_of(job, receipt->seq);
    if (record == NULL || !record->ended)
        return SF_FAIL(SF_INTERNAL, "a receipt for sequence %llx, which has not ended",
                       (unsigned long long)receipt->seq);
    record->receipt.bytes_exact += receipt->bytes_exact;
    record->receipt.bytes_stored += receipt->bytes_stored;
    record->receipt.bytes_peak += receipt->bytes_peak;
    record->receipt.slots_evicted += receipt->slots_evicted;
    record->receipt.slots_merged += receipt->slots_merged;
    record->receipt.slots_requantised += receipt->slots_requantised;
    if (++record->receipts < job->ranks) return SF_OK;
    sf_status status = finish(job, record);
    free_record(record);
    job->active--;
    return status;
}

static sf_status take_result(struct job *job, const struct sf_envelope *envelope)
{
    struct sf_wire_result result;
    SF_TRY(sf_wire_unpack_result(envelope->data, envelope->bytes, &job->unpacked, &result));
    sf_status status = sf_sched_result(job->sched, envelope->group / job->ranks, &result);
    for (int32_t i = 0; i < result.samples && status == SF_OK; i++)
        status = take_sample(job, &result.sample[i]);
    return status;
}

static sf_status take_report(struct job *job, const struct sf_envelope *envelope)
{
    struct sf_wire_report report;
    SF_TRY(sf_wire_unpack_report(envelope->data, envelope->bytes, &job->unpacked, &report));
    sf_status status = SF_OK;
    if (report.status != SF_OK)
        status = SF_FAIL((sf_status)report.status, "rank %d: %s", report.rank, report.text);
    for (int32_t i = 0; i < report.receipts && status == SF_OK; i++)
        status = take_receipt(job, &report.receipt[i]);
    return status;
}

/* Waits for one message, a little, and takes it. */
static sf_status take_message(struct job *job)
{
    void *item;
    sf_status status = sf_ring_pop(job->spec->from_workers, WAIT_MS, &item);
    if (status == SF_TIMEOUT) return SF_OK;     /* the worker's thread has the deadlines */
    SF_TRY(status);
    struct sf_envelope *envelope = item;
    status = envelope->tag == SF_TAG_RESULT ? take_result(job, envelope)
                                            : take_report(job, envelope);
    free(envelope);
    return status;
}

/* ---- the loop ---- */

static sf_status loop(struct job *job)
{
    const struct sf_launch_plan *plan = job->spec->plan;
    for (;;) {
        while (!job->input_done && job->active < job->slots &&
               sf_sched_load(job->sched).waiting < plan->seqs_max * plan->data)
            SF_TRY(read_one(job));
        SF_TRY(send_steps(job));
        if (job->active == 0 && job->input_done) return SF_OK;
        if (job->active > 0) SF_TRY(take_message(job));
        struct sf_sched_load load = sf_sched_load(job->sched);
        sf_progress_show(&job->progress, &job->sum, load.running, load.kv_use);
    }
}

/* A text with more bytes has more than tokens_max tokens, whatever they are. */
static int64_t text_bytes_max(const struct sf_run_spec *spec)
{
    size_t longest = 1;
    int32_t vocab = spec->tokenizer != NULL ? sf_tokenizer_vocab(spec->tokenizer) : 0;
    for (int32_t id = 0; id < vocab; id++) {
        size_t bytes = 0;
        if (sf_tokenizer_bytes(spec->tokenizer, id, 1, &bytes) != NULL && bytes > longest)
            longest = bytes;
    }
    return (int64_t)longest * spec->plan->tokens_max;
}

/* Rows of a prompt chunk under run.deterministic: a function of the configuration alone.  At most
 * half a step, so that prompts get on while others decode. */
static int32_t fixed_chunk(int32_t rows_max)
{
    int32_t rows = FIXED_CHUNK;
    while (rows > rows_max / 2 && rows > FIXED_CHUNK_MIN) rows /= 2;
    return rows < rows_max ? rows : rows_max;
}

static sf_status open_job(struct job *job)
{
    const struct sf_run_spec *spec = job->spec;
    const struct sf_launch_plan *plan = spec->plan;
    job->ranks = plan->tensor * plan->pipeline;
    job->slots = 3 * plan->seqs_max * plan->data;
    job->record = calloc((size_t)job->slots, sizeof *job->record);
    job->pages = calloc((size_t)plan->ranks, sizeof *job->pages);
    if (job->record == NULL || job->pages == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d records", job->slots);
    for (int32_t r = 0; r < plan->ranks; r++) job->pages[r] = plan->rank[r].pages;
    struct sf_sched_limits limits = {.groups = plan->data,
                                     .micro_batches = plan->micro_batches,
                                     .ranks = job->ranks,
                                     .seqs_max = plan->seqs_max,
                                     .rows_max = plan->rows_max,
                                     .chunk_rows = plan->fixed ? fixed_chunk(plan->rows_max) : 0,
                                     .slots_max = job->slots,
                                     .pages = job->pages};
    SF_TRY(sf_sched_create(&limits, &job->sched));
    job->limits = (struct sf_record_limits){.tokenizer = spec->tokenizer,
                                             .vocab = sf_model_desc(spec->model)->vocab,
                                             .tokens_max = plan->tokens_max,
                                             .text_bytes_max = text_bytes_max(spec),
                                             .temperature = spec->config->sampling.temperature,
                                             .seed = spec->config->sampling.seed};
    SF_TRY(sf_line_reader_open(spec->input, LINE_BYTES_MAX, &job->reader));
    SF_TRY(sf_emit_open(spec, &job->emit));
    sf_progress_start(&job->progress, spec->records);
    return SF_OK;
}

static void close_job(struct job *job)
{
    for (int32_t s = 0; job->record != NULL && s < job->slots; s++) free_record(&job->record[s]);
    free(job->record);
    free(job->pages);
    if (job->sched != NULL) sf_sched_destroy(job->sched);
    sf_line_reader_close(job->reader);
    sf_emit_close(job->emit);
    sf_buffer_free(&job->packed);
    sf_box_free(&job->unpacked);
}

/* A method that was configured and did nothing is worth a word. */
static void warn_if_idle(const struct job *job)
{
    const struct sf_stack *stack = &job->spec->config->kv.stack;
    for (int32_t i = 0; i < stack->entries; i++)
        if (stack->entry[i].plan.edits != 0 && job->sum.slots_evicted == 0 &&
            job->sum.answered > 0)
            sf_log(SF_LOG_WARN, "method %s did nothing: no sequence grew past what it keeps",
                   stack->entry[i].method->name);
}

sf_status sf_run(const struct sf_run_spec *spec, struct sf_run_summary *summary_out,
                 int *exit_code_out)
{
    struct job job = {.spec = spec};
    sf_status status = open_job(&job);
    if (status == SF_OK) status = loop(&job);
    if (job.first_step_ns != 0) job.sum.seconds = sf_seconds_since(job.first_step_ns);
    if (status == SF_OK) status = sf_emit_finish(job.emit, &job.sum);
    char words[1024];
    snprintf(words, sizeof words, "%s", sf_error_text());
    if (status != SF_OK) sf_progress_clear(&job.progress);
    struct sf_wire_step stop = {.stop = 1};
    for (int32_t g = 0; g < spec->plan->data; g++) {
        const struct sf_wire_step *last =
            job.sched != NULL ? sf_sched_stop(job.sched, g) : &stop;
        sf_status sent = send(&job, g, last);
        if (status == SF_OK) status = sent;
    }
    if (status == SF_OK) {
        sf_progress_end(&job.progress, &job.sum);
        warn_if_idle(&job);
        *summary_out = job.sum;
        *exit_code_out = job.sum.errors > 0 ? 3 : 0;
    }
    close_job(&job);
    return status == SF_OK ? SF_OK : SF_FAIL(status, "%s", words);
}
