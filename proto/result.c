/* proto/result.c: struct sf_wire_result to bytes and back; built as step.c is. */
#include <math.h>

#include "proto/columns.h"
#include "proto/wire.h"
#include "sheaf.pb-c.h"

/* A log probability is at most 0, but for the rounding of the sum of a whole vocabulary. */
static const float logprob_max = 1e-3f;

/* ---- what is which column -------------------------------------------------------------------- */
#define SCORE(field, member) SF_COLUMN(Sf__Result, field, struct sf_wire_score, member)
static const struct sf_column
    sample_columns[] = {SF_COLUMN(Sf__Result, sample_seq, struct sf_wire_sample, seq),
                        SF_COLUMN(Sf__Result, sample_token, struct sf_wire_sample, token)},
    score_columns[] = {SCORE(score_seq, seq), SCORE(score_pos, pos), SCORE(score_token, token),
                       SCORE(score_logprob, logprob), SCORE(score_rank, rank),
                       SCORE(score_kl, kl), SCORE(score_tops, tops)},
    top_columns[] = {SF_COLUMN(Sf__Result, top_token, struct sf_wire_top, token),
                     SF_COLUMN(Sf__Result, top_logprob, struct sf_wire_top, logprob)};

enum { LIST_SCORE };                    /* its place below: it owns a list */
static const struct sf_list list[] = {
    [LIST_SCORE] = SF_LIST("scores", score_columns, struct sf_wire_score, -1,
                           struct sf_wire_result, score, scores),
    SF_LIST("likeliest tokens", top_columns, struct sf_wire_top, LIST_SCORE, struct sf_wire_score,
            top, tops),
    SF_LIST("samples", sample_columns, struct sf_wire_sample, -1, struct sf_wire_result, sample,
            samples)};
static const struct sf_lists lists = {&sf__result__descriptor, list,
                                      sizeof list / sizeof list[0]};

/* ---- what is allowed ------------------------------------------------------------------------- */
static int is_logprob(float value) { return isfinite(value) && value <= logprob_max; }

static sf_status score_check(unsigned long long step, const struct sf_wire_score *score)
{
    unsigned long long seq = score->seq;
    if (score->pos < 0 || score->token < 0 || !is_logprob(score->logprob) || score->rank < 1)
        return SF_FAIL(SF_FORMAT, "result of step %llu: sequence %llu has token %d at %d with log "
                       "probability %g, rank %d", step, seq, score->token, score->pos,
                       (double)score->logprob, score->rank);
    if (!isfinite(score->kl) || score->kl < 0)
        return SF_FAIL(SF_FORMAT, "result of step %llu: sequence %llu has a divergence of %g at "
                       "%d", step, seq, (double)score->kl, score->pos);
    if (score->tops < 0 || score->tops > SF_WIRE_TOPS_MAX)
        return SF_FAIL(SF_FORMAT, "result of step %llu: sequence %llu has %d likeliest tokens; at "
                       "most %d are allowed", step, seq, score->tops, SF_WIRE_TOPS_MAX);
    for (int32_t i = 0; i < score->tops; i++)
        if (score->top[i].token < 0 || !is_logprob(score->top[i].logprob))
            return SF_FAIL(SF_FORMAT, "result of step %llu: sequence %llu has likely token %d with "
                           "log probability %g", step, seq, score->top[i].token,
                           (double)score->top[i].logprob);
    return SF_OK;
}

static sf_status result_check(const struct sf_wire_result *result)
{
    unsigned long long step = result->step;
    if (result->batch < 0 || result->batch > SF_WIRE_BATCH_MAX)
        return SF_FAIL(SF_FORMAT, "result of step %llu is of micro-batch %d", step, result->batch);
    SF_TRY(sf_columns_count_check("samples", result->samples));
    SF_TRY(sf_columns_count_check("scores", result->scores));
    for (int32_t i = 0; i < result->samples; i++)
        if (result->sample[i].token < 0)
            return SF_FAIL(SF_FORMAT, "result of step %llu: sequence %llu sampled token %d", step,
                           (unsigned long long)result->sample[i].seq, result->sample[i].token);
    for (int32_t i = 0; i < result->scores; i++) SF_TRY(score_check(step, &result->score[i]));
    return SF_OK;
}

/* ---- both directions ------------------------------------------------------------------------- */
sf_status sf_wire_pack_result(const struct sf_wire_result *result, struct sf_buffer *out)
{
    SF_TRY(result_check(result));
    Sf__Result m = SF__RESULT__INIT;
    m.step = result->step;
    m.batch = result->batch;
    return sf_columns_pack(&lists, result, &m.base, out);
}

sf_status sf_wire_unpack_result(const void *bytes, size_t count, struct sf_box *box,
                                struct sf_wire_result *result_out)
{
    ProtobufCMessage *message;
    SF_TRY(sf_columns_parse(&lists, bytes, count, box, &message));
    const Sf__Result *m = (const Sf__Result *)message;
    struct sf_wire_result result = {.step = m->step, .batch = m->batch};
    SF_TRY(sf_columns_unpack(&lists, message, box, &result));
    SF_TRY(result_check(&result));
    *result_out = result;
    return SF_OK;
}
