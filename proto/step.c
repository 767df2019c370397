/* proto/step.c: struct sf_wire_step to bytes and back.
 *
 *   struct sf_wire_step --check--> columns --protobuf--> bytes
 *                       <--check-- columns <--protobuf--
 *
 * One check serves both sides: what must not be sent is not accepted either. */
#include <math.h>

#include "proto/columns.h"
#include "proto/wire.h"
#include "sheaf.pb-c.h"

/* ---- what is which column -------------------------------------------------------------------- */
#define OPEN(field, member) SF_COLUMN(Sf__Step, field, struct sf_wire_open, member)
#define ITEM(field, member) SF_COLUMN(Sf__Step, field, struct sf_wire_item, member)
static const struct sf_column
    ask_columns[] = {SF_COLUMN_VALUE(Sf__Step, ask, uint64_t)},
    close_columns[] = {SF_COLUMN_VALUE(Sf__Step, close, uint64_t)},
    tighten_columns[] = {
        SF_COLUMN(Sf__Step, tighten_seq, struct sf_wire_tighten, seq),
        SF_COLUMN(Sf__Step, tighten_tokens, struct sf_wire_tighten, tokens)},
    drop_columns[] = {SF_COLUMN_VALUE(Sf__Step, drop, int32_t)},
    token_columns[] = {SF_COLUMN_VALUE(Sf__Step, token, int32_t)},
    open_columns[] = {
        OPEN(open_seq, seq), OPEN(open_prompt, prompt), OPEN(open_tokens_max, tokens_max),
        OPEN(open_reused, reused), OPEN(open_reused_first, reused_first),
        OPEN(open_temperature, sampling.temperature), OPEN(open_top_p, sampling.top_p),
        OPEN(open_min_p, sampling.min_p), OPEN(open_presence, sampling.presence),
        OPEN(open_frequency, sampling.frequency), OPEN(open_repetition, sampling.repetition),
        OPEN(open_top_k, sampling.top_k), OPEN(open_rng_key, sampling.rng_key),
        OPEN(open_rng_stream, sampling.rng_stream),
        SF_COLUMN_BYTE(Sf__Step, open_scores, struct sf_wire_open, sampling.scores),
        OPEN(open_tops, sampling.tops), OPEN(open_biases, sampling.biases),
        OPEN(open_blocks, blocks), OPEN(open_stack, stack), OPEN(open_against, against)},
    bias_columns[] = {SF_COLUMN(Sf__Step, bias_token, struct sf_wire_bias, token),
                      SF_COLUMN(Sf__Step, bias_value, struct sf_wire_bias, value)},
    block_columns[] = {SF_COLUMN_VALUE(Sf__Step, block, int32_t)},
    item_columns[] = {
        ITEM(item_seq, seq), ITEM(item_pos, pos), ITEM(item_rows, rows),
        ITEM(item_token_first, token_first), ITEM(item_next, next),
        SF_COLUMN_BYTE(Sf__Step, item_logits, struct sf_wire_item, logits)};

enum { SF_LOGITS_ALL = SF_LOGITS_SAMPLE | SF_LOGITS_ROWS | SF_LOGITS_LAST | SF_ROWS_BEFORE };
enum { LIST_OPEN };                     /* its place below: it owns lists */
static const struct sf_list list[] = {
    [LIST_OPEN] = SF_LIST("opened sequences", open_columns, struct sf_wire_open, -1,
                          struct sf_wire_step, open, opens),
    SF_LIST("biases", bias_columns, struct sf_wire_bias, LIST_OPEN, struct sf_wire_open,
            sampling.bias, sampling.biases),
    SF_LIST("blocks", block_columns, int32_t, LIST_OPEN, struct sf_wire_open, block, blocks),
    SF_LIST("asked sequences", ask_columns, uint64_t, -1, struct sf_wire_step, ask, asks),
    SF_LIST("closed sequences", close_columns, uint64_t, -1, struct sf_wire_step, close, closes),
    SF_LIST("dropped blocks", drop_columns, int32_t, -1, struct sf_wire_step, drop, drops),
    SF_LIST("tightened sequences", tighten_columns, struct sf_wire_tighten, -1,
            struct sf_wire_step, tighten, tightens),
    SF_LIST("items", item_columns, struct sf_wire_item, -1, struct sf_wire_step, item, items),
    SF_LIST("tokens", token_columns, int32_t, -1, struct sf_wire_step, token, tokens)};
static const struct sf_lists lists = {&sf__step__descriptor, list, sizeof list / sizeof list[0]};

/* ---- what is allowed ------------------------------------------------------------------------- */
static sf_status sampling_check(unsigned long long seq, const struct sf_wire_sampling *p)
{
    if (!isfinite(p->temperature) || p->temperature < 0)
        return SF_FAIL(SF_FORMAT, "step opens sequence %llu with temperature %g", seq,
                       p->temperature);
    if (!(p->top_p > 0 && p->top_p <= 1) || !(p->min_p >= 0 && p->min_p <= 1) || p->top_k < 0)
        return SF_FAIL(SF_FORMAT, "step opens sequence %llu with top_p %g, min_p %g, top_k %d", seq,
                       p->top_p, p->min_p, p->top_k);
    if (!isfinite(p->presence) || !isfinite(p->frequency) || !isfinite(p->repetition) ||
        p->repetition <= 0)
        return SF_FAIL(SF_FORMAT, "step opens sequence %llu with penalties %g, %g, %g", seq,
                       p->presence, p->frequency, p->repetition);
    if (p->scores > 1 || p->tops < 0 || p->tops > SF_WIRE_TOPS_MAX)
        return SF_FAIL(SF_FORMAT, "step opens sequence %llu with scores %d of %d tokens", seq,
                       p->scores, p->tops);
    SF_TRY(sf_columns_count_check("biases", p->biases));
    for (int32_t i = 0; i < p->biases; i++)
        if (p->bias[i].token < 0 || !isfinite(p->bias[i].value))
            return SF_FAIL(SF_FORMAT, "step opens sequence %llu with bias %g of token %d", seq,
                           (double)p->bias[i].value, p->bias[i].token);
    return SF_OK;
}

/* How many tokens a block has is not known here; it has at least one. */
static sf_status open_check(const struct sf_wire_open *open, int32_t tokens)
{
    unsigned long long seq = open->seq;
    if (open->prompt < 1 || open->tokens_max < open->prompt)
        return SF_FAIL(SF_FORMAT, "step opens sequence %llu with %d prompt tokens of at most %d",
                       seq, open->prompt, open->tokens_max);
    if (open->blocks < 0 || open->blocks > open->prompt || open->reused < 0 ||
        open->reused > open->blocks)
        return SF_FAIL(SF_FORMAT, "step opens sequence %llu of %d tokens with %d of %d blocks", seq,
                       open->prompt, open->reused, open->blocks);
    if (open->reused_first != -1 &&
        (open->reused_first < 0 || open->reused_first >= tokens || open->reused == 0))
        return SF_FAIL(SF_FORMAT, "step opens sequence %llu with the tokens of %d reused blocks "
                       "from token %d of %d", seq, open->reused, open->reused_first, tokens);
    if (open->stack < 0 || open->against == seq)
        return SF_FAIL(SF_FORMAT, "step opens sequence %llu in stack %d, compared with %llu", seq,
                       open->stack, (unsigned long long)open->against);
    SF_TRY(sf_columns_count_check("blocks", open->blocks));
    for (int32_t i = 0; i < open->blocks; i++)
        if (open->block[i] < 0)
            return SF_FAIL(SF_FORMAT, "step opens sequence %llu with block %d", seq,
                           open->block[i]);
    return sampling_check(seq, &open->sampling);
}

static sf_status item_check(const struct sf_wire_item *item, int32_t tokens)
{
    unsigned long long seq = item->seq;
    if (item->pos < 0 || item->rows < 1 || item->rows > INT32_MAX - item->pos)
        return SF_FAIL(SF_FORMAT, "step item of sequence %llu has %d rows at position %d", seq,
                       item->rows, item->pos);
    if (item->token_first == -1 ? item->rows != 1
                                : item->token_first < 0 || item->rows > tokens ||
                                      item->token_first > tokens - item->rows)
        return SF_FAIL(SF_FORMAT, "step item of sequence %llu: %d rows from token %d of %d", seq,
                       item->rows, item->token_first, tokens);
    if (item->logits > SF_LOGITS_ALL || item->next < -1)
        return SF_FAIL(SF_FORMAT, "step item of sequence %llu asks for logits %d, next token %d",
                       seq, item->logits, item->next);
    return SF_OK;
}

static sf_status ids_check(const struct sf_wire_step *step, const char *what, const int32_t *ids,
                           int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        if (ids[i] < 0)
            return SF_FAIL(SF_FORMAT, "step %llu holds %s id %d", (unsigned long long)step->id,
                           what, ids[i]);
    return SF_OK;
}

static sf_status step_check(const struct sf_wire_step *step)
{
    if (step->batch < 0 || step->batch > SF_WIRE_BATCH_MAX || step->stop > 1 ||
        step->measure > SF_MEASURE_ROOF)
        return SF_FAIL(SF_FORMAT, "step %llu of micro-batch %d with stop %d, measure %d",
                       (unsigned long long)step->id, step->batch, step->stop, step->measure);
    SF_TRY(sf_columns_count_check("asked sequences", step->asks));
    SF_TRY(sf_columns_count_check("closed sequences", step->closes));
    SF_TRY(sf_columns_count_check("dropped blocks", step->drops));
    SF_TRY(sf_columns_count_check("tightened sequences", step->tightens));
    SF_TRY(sf_columns_count_check("opened sequences", step->opens));
    SF_TRY(sf_columns_count_check("items", step->items));
    SF_TRY(sf_columns_count_check("tokens", step->tokens));
    SF_TRY(ids_check(step, "block", step->drop, step->drops));
    SF_TRY(ids_check(step, "token", step->token, step->tokens));
    for (int32_t i = 0; i < step->tightens; i++)
        if (step->tighten[i].tokens < 1)
            return SF_FAIL(SF_FORMAT, "step %llu tightens sequence %llu at %d tokens",
                           (unsigned long long)step->id,
                           (unsigned long long)step->tighten[i].seq, step->tighten[i].tokens);
    for (int32_t i = 0; i < step->opens; i++) SF_TRY(open_check(&step->open[i], step->tokens));
    for (int32_t i = 0; i < step->items; i++) SF_TRY(item_check(&step->item[i], step->tokens));
    return SF_OK;
}

/* ---- both directions ------------------------------------------------------------------------- */
sf_status sf_wire_pack_step(const struct sf_wire_step *step, struct sf_buffer *out)
{
    SF_TRY(step_check(step));
    Sf__Step m = SF__STEP__INIT;
    m.id = step->id;
    m.batch = step->batch;
    m.stop = step->stop;
    m.measure = step->measure;
    return sf_columns_pack(&lists, step, &m.base, out);
}

sf_status sf_wire_unpack_step(const void *bytes, size_t count, struct sf_box *box,
                              struct sf_wire_step *step_out)
{
    ProtobufCMessage *message;
    SF_TRY(sf_columns_parse(&lists, bytes, count, box, &message));
    const Sf__Step *m = (const Sf__Step *)message;
    struct sf_wire_step step = {.id = m->id, .batch = m->batch, .stop = m->stop != 0,
                                .measure = m->measure > UINT8_MAX ? UINT8_MAX :
                                           (uint8_t)m->measure};
    SF_TRY(sf_columns_unpack(&lists, message, box, &step));
    SF_TRY(step_check(&step));
    *step_out = step;
    return SF_OK;
}
