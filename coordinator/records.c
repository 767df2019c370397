/* coordinator/records.c: lines of the input become records, and records sequences (job.h). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/job.h"

enum { TEXT_TOKENS = 1024,              /* of an answer's text that there is room for at once */
       /* A result that comes while records are read waits: so long, and for one record more.  At
        * the start no step is on its way, and a full one is worth waiting for, but not long. */
       READ_MS = 2, READ_FIRST_MS = 50 };

static sf_status refuse(struct job *job, struct sf_record *request, const char *words)
{
    job->sum.errors++;
    sf_status status = sf_emit_error(job->emit, request, words);
    sf_record_free(request);
    return status;
}

static void free_choice(struct choice *choice)
{
    free(choice->kept);
    free(choice->text.text);
    sf_scores_free(&choice->scores);
}

void job_free_record(struct job *job, struct record *record)
{
    for (int32_t i = 0; record->choice != NULL && i < record->request.choices; i++)
        free_choice(&record->choice[i]);
    free(record->choice);
    free(record->tightened);
    sf_scores_free(&record->prompt_scores);
    sf_record_free(&record->request);
    *record = (struct record){.next = job->free_record};
    job->free_record = record;
}

/* ---- what an earlier run has left ------------------------------------------------------------ */
/* Takes over tokens of the answer, up to the one that ends it: that one is sampled anew, so that
 * the sequence ends as sequences do. */
static sf_status restore(struct job *job, struct choice *choice,
                         const struct sf_resume_part *part)
{
    const struct sf_record *request = &choice->record->request;
    int32_t most = request->answer_max - 1, tokens = part->tokens < most ? part->tokens : most;
    if (request->sampling.scores) {
        sf_status status = sf_scores_unpack(&choice->scores, part->extra, part->extra_bytes);
        if (status == SF_NO_MEMORY) return status;
        if (status != SF_OK) return SF_OK;      /* what was not asked for then: from the start */
        if (choice->scores.count < tokens) tokens = choice->scores.count;
    }
    int32_t known = 0, end = 0;
    for (; known < tokens && !end; known++) {
        if (part->token[known] < 0 || part->token[known] >= job->limits.vocab) break;
        SF_TRY(job_push(job, choice, part->token[known], &end));
    }
    if (end) {                          /* only the tokens before it: their text anew */
        known--;
        choice->text.bytes = 0;
        choice->text.utf8 = (struct sf_utf8_stream){.count = 0};
        for (int32_t i = 0; i < known; i++) SF_TRY(job_push(job, choice, part->token[i], &end));
    }
    choice->stopped = 0;
    if (choice->scores.count > known) choice->scores.count = known;
    choice->restored = choice->saved = choice->answer = known;
    choice->token = part->token;
    return SF_OK;
}

/* ---- sequences ------------------------------------------------------------------------------- */
static sf_status add_choice(struct job *job, struct record *record, struct choice *choice)
{
    const struct sf_record *request = &record->request;
    struct sf_engine_seq seq = {.prompt = request->prompt.id,
                                .prompt_tokens = (int32_t)request->prompt.count,
                                .answer_max = request->answer_max,
                                .sampling = request->sampling,
                                .score_prompt = request->score_prompt && choice->number == 0,
                                .full = request->ignore_eos && request->stops == 0,
                                .owner = choice};
    /* Choices draw from streams of their own; the first has the record's. */
    seq.sampling.rng_stream += (uint64_t)choice->number * 0x9e3779b97f4a7c15u;
    const struct sf_resume_part *part =
        job->resume != NULL ? sf_resume_part_of(job->resume, request->line, choice->number) : NULL;
    if (part != NULL) SF_TRY(restore(job, choice, part));
    int32_t room = request->answer_max < TEXT_TOKENS ? request->answer_max : TEXT_TOKENS;
    SF_TRY(sf_answer_text_reserve(&choice->text, room));
    seq.answer = choice->token;
    seq.answer_known = choice->restored;
    SF_TRY(sf_engine_add(job->engine, &seq));
    if (choice->restored == 0) return SF_OK;
    choice->replaying = 1;
    job->replaying++;
    job->sum.replayed_tokens += choice->restored;
    return SF_OK;
}

/* Adds choices of the pending record while there is room. */
static sf_status add_pending(struct job *job)
{
    struct record *record = job->pending;
    while (record->added < record->request.choices && sf_engine_room(job->engine) > 0) {
        sf_status status = add_choice(job, record, &record->choice[record->added]);
        if (status == SF_NO_PAGES) {    /* the first one: all of them need the same */
            SF_ASSERT(record->added == 0);
            struct sf_record request = record->request;
            record->request = (struct sf_record){.choices = request.choices};
            job->pending = NULL;
            job_free_record(job, record);
            snprintf(request.code, sizeof request.code, "too_long");
            return refuse(job, &request, sf_error_text());
        }
        SF_TRY(status);
        record->added++;
    }
    if (record->added == record->request.choices) {
        if (job->resume != NULL) sf_resume_drop(job->resume, record->request.line);
        job->pending = NULL;
    }
    return SF_OK;
}

static sf_status take(struct job *job, struct sf_record *request)
{
    struct record *record = job->free_record;
    SF_ASSERT(record != NULL);
    struct choice *choice = calloc((size_t)request->choices, sizeof *choice);
    if (choice == NULL) {
        sf_status status = SF_FAIL(SF_NO_MEMORY, "no memory for %d choices", request->choices);
        sf_record_free(request);
        return status;
    }
    job->free_record = record->next;
    *record = (struct record){.request = *request, .choice = choice,
                              .prompt_scores = {.tops = request->sampling.tops}};
    for (int32_t i = 0; i < request->choices; i++)
        choice[i] = (struct choice){.record = record, .number = i,
                                    .scores = {.tops = request->sampling.tops}};
    job->pending = record;
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
    if (job->resume != NULL && sf_resume_is_finished(job->resume, line.number)) return SF_OK;
    struct sf_record request = {.line = line.number, .code = "invalid_json"};
    if (line.kind == SF_LINE_TOO_LONG)
        return refuse(job, &request, "the line is longer than 64 MiB");
    sf_status status =
        sf_record_parse(&job->limits, line.text, line.bytes, line.number, &request);
    if (status == SF_NO_MEMORY) {
        sf_record_free(&request);
        return status;
    }
    if (status != SF_OK) return refuse(job, &request, sf_error_text());
    return take(job, &request);
}

sf_status job_read(struct job *job)
{
    int64_t start = sf_now_ns();
    double most_s = (sf_engine_load(job->engine).in_flight > 0 ? READ_MS : READ_FIRST_MS) / 1e3;
    job->behind = 0;
    while (sf_engine_room(job->engine) > 0) {
        if (sf_seconds_since(start) >= most_s) {
            job->behind = 1;
            return SF_OK;
        }
        if (job->pending != NULL) SF_TRY(add_pending(job));
        else if (!job->input_done) SF_TRY(read_one(job));
        else break;
    }
    if (job->input_done && job->pending == NULL) sf_engine_last(job->engine);
    return SF_OK;
}

int64_t job_text_bytes_max(const struct sf_run_spec *spec)
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
