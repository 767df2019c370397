/* coordinator/answers.c: what the engine says becomes answers (job.h). */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/job.h"

static int is_eos(const struct job *job, int32_t token)
{
    const struct sf_model_desc *desc = sf_model_desc(job->spec->model);
    for (int32_t i = 0; i < desc->eos_count; i++)
        if (desc->eos[i] == token) return 1;
    return job->spec->tokenizer != NULL && sf_tokenizer_is_eos(job->spec->tokenizer, token);
}

sf_status job_push(struct job *job, struct choice *choice, int32_t token, int *end_out)
{
    const struct sf_record *request = &choice->record->request;
    /* The token that ends an answer is one of its tokens, but no part of its text. */
    choice->stopped = !request->ignore_eos && is_eos(job, token);
    if (!choice->stopped) {
        size_t old_bytes = choice->text.bytes;
        SF_TRY(sf_answer_text_push(&choice->text, job->spec->tokenizer, token));
        choice->stopped = (uint8_t)sf_answer_text_stop(&choice->text, old_bytes, request->stop,
                                                       request->stops);
    }
    *end_out = choice->stopped;
    return SF_OK;
}

/* The time that it took to be back where the earlier run was. */
static void end_replay(struct job *job, struct choice *choice)
{
    choice->replaying = 0;
    if (--job->replaying > 0) return;
    job->sum.replay_seconds = sf_seconds_since(job->started_ns);
    sf_log(SF_LOG_INFO, "%lld tokens of half-finished answers were replayed, %.1f s after the "
           "start all of them go on", (long long)job->sum.replayed_tokens,
           job->sum.replay_seconds);
}

/* Bytes from other ranks are not trusted with a place in the answer. */
static sf_status check_token(const struct job *job, const struct choice *choice, int32_t token,
                             int32_t answer)
{
    long long line = choice->record->request.line;
    const struct sf_scores *scores = &choice->scores;
    if (token >= job->limits.vocab)
        return SF_FAIL(SF_INTERNAL, "line %lld got token %d of a vocabulary of %d", line, token,
                       job->limits.vocab);
    if (choice->record->request.sampling.scores &&
        (scores->count != answer || scores->score[answer - 1].token != token))
        return SF_FAIL(SF_INTERNAL, "line %lld got token %d without its score", line, token);
    return SF_OK;
}

static sf_status on_token(void *arg, void *owner, const int32_t *token, int32_t prompt,
                          int32_t answer, int *end_out)
{
    struct job *job = arg;
    struct choice *choice = owner;
    SF_TRY(check_token(job, choice, token[prompt + answer - 1], answer));
    choice->token = token + prompt;
    choice->answer = answer;
    job->sum.sampled_tokens++;
    if (choice->replaying) end_replay(job, choice);
    return job_push(job, choice, choice->token[answer - 1], end_out);
}

static sf_status on_score(void *arg, void *owner, const struct sf_wire_score *score)
{
    struct job *job = arg;
    struct choice *choice = owner;
    const struct sf_record *request = &choice->record->request;
    int32_t prompt = (int32_t)request->prompt.count;
    struct sf_scores *scores = &choice->record->prompt_scores;
    int32_t index = score->pos - 1;     /* the first token of a prompt has no score */
    (void)job;
    if (score->pos >= prompt) {
        scores = &choice->scores;
        index = score->pos - prompt;
    } else if (score->token != request->prompt.id[score->pos]) {
        return SF_FAIL(SF_INTERNAL, "line %lld got the score of token %d at %d, which is %d",
                       (long long)request->line, score->token, score->pos,
                       request->prompt.id[score->pos]);
    }
    if (index > scores->count)
        return SF_FAIL(SF_INTERNAL, "line %lld got the score of position %d before that of %d",
                       (long long)request->line, score->pos,
                       score->pos - index + scores->count);
    return sf_scores_put(scores, index, score);
}

static sf_status finish(struct job *job, struct record *record)
{
    size_t choices = (size_t)record->request.choices;
    if (record->request.score_prompt &&
        (size_t)record->prompt_scores.count + 1 != record->request.prompt.count)
        return SF_FAIL(SF_INTERNAL, "line %lld got %d scores of a prompt of %zu tokens",
                       (long long)record->request.line, record->prompt_scores.count,
                       record->request.prompt.count);
    struct sf_choice_out *out = calloc(choices, sizeof *out);
    if (out == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %zu choices", choices);
    sf_status status = SF_OK;
    for (size_t i = 0; i < choices && status == SF_OK; i++) {
        struct choice *choice = &record->choice[i];
        status = sf_answer_text_end(&choice->text);
        out[i] = (struct sf_choice_out){.text = choice->text.text,
                                        .text_bytes = choice->text.bytes,
                                        .token = choice->token,
                                        .tokens = record->request.no_answer ? 0
                                                                            : choice->answer,
                                        .stopped = choice->stopped,
                                        .scores = &choice->scores};
    }
    int64_t tokens = 0;
    for (size_t i = 0; i < choices; i++) tokens += out[i].tokens;
    struct sf_answer_out answer = {.request = &record->request,
                                   .number = (uint64_t)record->request.line,
                                   .choice = out,
                                   .choices = (int32_t)choices,
                                   .prompt_scores = &record->prompt_scores,
                                   .receipt = record->receipt,
                                   .tightened = record->tightened,
                                   .tightenings = record->tightenings};
    if (status == SF_OK) status = sf_emit_answer(job->emit, &answer);
    if (status == SF_OK)
        status = sf_idle_add(&job->idle, (int32_t)record->request.prompt.count,
                             sf_answer_cached(&answer), record->receipt.changed);
    free(out);
    SF_TRY(status);
    job->sum.answered++;
    job->sum.prompt_tokens += (int64_t)record->request.prompt.count;
    job->sum.output_tokens += tokens;
    job->sum.kv_bytes_exact += record->receipt.bytes_exact;
    job->sum.kv_bytes_stored += record->receipt.bytes_stored;
    job->sum.kv_bytes_peak += record->receipt.bytes_peak;
    job->sum.slots_evicted += record->receipt.slots_evicted;
    job->sum.slots_merged += record->receipt.slots_merged;
    job->sum.slots_requantised += record->receipt.slots_requantised;
    return SF_OK;
}

/* The engine's tokens go away with the sequence; a choice may have to wait for others. */
static sf_status on_closed(void *arg, void *owner, const struct sf_wire_receipt *receipt)
{
    struct job *job = arg;
    struct choice *choice = owner;
    struct record *record = choice->record;
    size_t bytes = (size_t)choice->answer * sizeof *choice->kept;
    choice->kept = malloc(bytes);
    if (choice->kept == NULL) {
        choice->saved = choice->answer;         /* there is nothing to save from any more */
        return SF_FAIL(SF_NO_MEMORY, "no memory for an answer");
    }
    memcpy(choice->kept, choice->token, bytes);
    choice->token = choice->kept;
    sf_wire_receipt_add(&record->receipt, receipt);
    if (++record->closed < record->request.choices) return SF_OK;
    sf_status status = finish(job, record);
    job_free_record(job, record);
    return status;
}

static sf_status on_tightened(void *arg, void *owner, int32_t tokens)
{
    struct record *record = ((struct choice *)owner)->record;
    size_t count = (size_t)record->tightenings + 1;
    int32_t *list = realloc(record->tightened, count * sizeof *list);
    (void)arg;
    if (list == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a receipt");
    list[record->tightenings++] = tokens;
    record->tightened = list;
    return SF_OK;
}

static sf_status on_signal(void *arg, int32_t rank, int signal)
{
    struct job *job = arg;
    if (signal == SF_WIRE_DUMP) {
        sf_engine_dump(job->engine);
    } else if (!job->draining) {
        sf_log(SF_LOG_INFO, "rank %d was told to stop: saving what is half finished", rank);
        job->draining = 1;
    }
    return SF_OK;
}

struct sf_engine_events job_events(struct job *job)
{
    return (struct sf_engine_events){.on_token = on_token, .on_score = on_score,
                                     .on_tightened = on_tightened,
                                     .on_closed = on_closed, .on_signal = on_signal, .arg = job};
}

/* ---- the journal ----------------------------------------------------------------------------- */
static sf_status save_choice(struct job *job, struct choice *choice)
{
    if (choice->answer <= choice->saved) return SF_OK;
    job->packed.count = 0;
    /* One score more: its token did not get here, for a failure that ends the job. */
    if (choice->scores.count > choice->answer) choice->scores.count = choice->answer;
    if (choice->record->request.sampling.scores)
        SF_TRY(sf_scores_pack(&choice->scores, choice->saved, &job->packed));
    struct sf_journal_tokens tokens = {.line = choice->record->request.line,
                                       .choice = choice->number,
                                       .first = choice->saved,
                                       .count = choice->answer - choice->saved,
                                       .token = choice->token + choice->saved,
                                       .extra = job->packed.bytes,
                                       .extra_bytes = job->packed.count};
    SF_TRY(sf_output_tokens(job->output, &tokens));
    choice->saved = choice->answer;
    return SF_OK;
}

sf_status job_save(struct job *job)
{
    for (int32_t r = 0; r < job->records; r++) {
        struct record *record = &job->record[r];
        if (record->request.line == 0) continue;
        for (int32_t c = 0; c < record->added; c++) SF_TRY(save_choice(job, &record->choice[c]));
    }
    job->saved_ns = sf_now_ns();
    return sf_output_sync(job->output);
}
