/* proto/wire.c: proto/wire.h's structs to bytes and back, by protobuf-c.
 *
 * Packing turns each list of records into columns (see sheaf.proto); unpacking checks that the
 * columns are equally long, turns them back and then verifies the values.  One check function per
 * message serves both sides: what must not be sent is not accepted either.
 *
 *   struct sf_wire_step --columns--> Sf__Step --protobuf--> bytes
 *                       <-- check --          <-- bounds --
 */
#include "proto/wire.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheaf.pb-c.h"

/* A step holds at most some thousands of rows and a token takes up to five bytes, so these bounds
 * are far off in a sane run; they keep what a broken message can make us allocate finite. */
enum { MESSAGE_BYTES_MAX = 32 << 20, LIST_MAX = 4 << 20, BATCH_MAX = 1 << 16, TEXT_MAX = 4096 };

/* ---- columns: one block that a message's arrays are cut from --------------------------------- */
struct block { unsigned char *at, *end; void *base; };

static sf_status block_take(struct block *block, size_t bytes)
{
    block->base = malloc(bytes + 1);
    if (!block->base) return SF_FAIL(SF_NO_MEMORY, "no %zu bytes to pack a message", bytes);
    block->at = block->base;
    block->end = block->at + bytes;
    return SF_OK;
}

/* A list's columns are cut widest first and add up to a multiple of 8 bytes an entry, so the next
 * list starts aligned too. */
static void *block_cut(struct block *block, size_t bytes)
{
    void *cut = block->at;
    SF_ASSERT(bytes <= (size_t)(block->end - block->at));
    block->at += bytes;
    return cut;
}

static sf_status list_check(const char *what, int64_t count)
{
    if (count < 0 || count > LIST_MAX)
        return SF_FAIL(SF_FORMAT, "message holds %lld %s; 0 to %d are allowed", (long long)count,
                       what, LIST_MAX);
    return SF_OK;
}

static sf_status columns_equal(const char *what, const size_t *count, size_t columns)
{
    SF_TRY(list_check(what, count[0] > LIST_MAX ? (int64_t)LIST_MAX + 1 : (int64_t)count[0]));
    for (size_t i = 1; i < columns; i++)
        if (count[i] != count[0])
            return SF_FAIL(SF_FORMAT,
                    "message with unequal columns: %zu %s, but column %zu has %zu",
                           count[0], what, i, count[i]);
    return SF_OK;
}

static sf_status list_alloc(const char *what, size_t count, size_t item_bytes, void *array_out)
{
    void *list = NULL;
    if (count > 0) {
        list = malloc(count * item_bytes);
        if (!list) return SF_FAIL(SF_NO_MEMORY, "no memory for %zu %s of a message", count, what);
    }
    memcpy(array_out, &list, sizeof list);
    return SF_OK;
}

static sf_status message_pack(const ProtobufCMessage *message, void **bytes_out, size_t *count_out)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    if (bytes > MESSAGE_BYTES_MAX)
        return SF_FAIL(SF_FORMAT, "message of %zu bytes; at most %d fit", bytes, MESSAGE_BYTES_MAX);
    void *packed = malloc(bytes + 1);
    if (!packed) return SF_FAIL(SF_NO_MEMORY, "no %zu bytes to pack a message", bytes);
    size_t written = protobuf_c_message_pack(message, packed);
    SF_ASSERT(written == bytes);
    *bytes_out = packed;
    *count_out = bytes;
    return SF_OK;
}

/* *message_out is freed by protobuf_c_message_free_unpacked in any case that returns SF_OK. */
static sf_status message_unpack(const ProtobufCMessageDescriptor *descriptor, const void *bytes,
                                size_t count, ProtobufCMessage **message_out)
{
    static const unsigned char nothing[1];
    if (count > MESSAGE_BYTES_MAX)
        return SF_FAIL(SF_FORMAT, "message of %zu bytes; at most %d are allowed", count,
                       MESSAGE_BYTES_MAX);
    ProtobufCMessage *message =
        protobuf_c_message_unpack(descriptor, NULL, count, count > 0 ? bytes : nothing);
    if (!message)
        return SF_FAIL(SF_FORMAT, "%zu bytes that are no %s message", count,
                       descriptor->short_name);
    if (message->n_unknown_fields > 0) {
        protobuf_c_message_free_unpacked(message, NULL);
        return SF_FAIL(SF_FORMAT, "%s message with unknown fields: ranks of different versions?",
                       descriptor->short_name);
    }
    *message_out = message;
    return SF_OK;
}

/* ---- step ------------------------------------------------------------------------------------ */
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
    SF_TRY(list_check("biases", p->biases));
    for (int32_t i = 0; i < p->biases; i++)
        if (p->bias[i].token < 0 || !isfinite(p->bias[i].value))
            return SF_FAIL(SF_FORMAT, "step opens sequence %llu with bias %g of token %d", seq,
                           (double)p->bias[i].value, p->bias[i].token);
    return SF_OK;
}

static sf_status open_check(const struct sf_wire_open *open)
{
    unsigned long long seq = open->seq;
    if (open->prompt < 1 || open->tokens_max < open->prompt)
        return SF_FAIL(SF_FORMAT, "step opens sequence %llu with %d prompt tokens of at most %d",
                       seq, open->prompt, open->tokens_max);
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
    if (item->logits > SF_LOGITS_ALL)
        return SF_FAIL(SF_FORMAT, "step item of sequence %llu asks for logits %d", seq,
                       item->logits);
    return SF_OK;
}

static sf_status step_check(const struct sf_wire_step *step)
{
    if (step->batch < 0 || step->batch > BATCH_MAX || step->stop > 1)
        return SF_FAIL(SF_FORMAT, "step %llu of micro-batch %d with stop %d",
                       (unsigned long long)step->id, step->batch, step->stop);
    SF_TRY(list_check("closed sequences", step->closes));
    SF_TRY(list_check("opened sequences", step->opens));
    SF_TRY(list_check("items", step->items));
    SF_TRY(list_check("tokens", step->tokens));
    for (int32_t i = 0; i < step->opens; i++) SF_TRY(open_check(&step->open[i]));
    for (int32_t i = 0; i < step->items; i++) SF_TRY(item_check(&step->item[i], step->tokens));
    for (int32_t i = 0; i < step->tokens; i++)
        if (step->token[i] < 0)
            return SF_FAIL(SF_FORMAT, "step %llu holds token id %d", (unsigned long long)step->id,
                           step->token[i]);
    return SF_OK;
}

static size_t biases_of(const struct sf_wire_step *step)
{
    size_t biases = 0;
    for (int32_t i = 0; i < step->opens; i++) biases += (size_t)step->open[i].sampling.biases;
    return biases;
}

static void step_sampling_columns(const struct sf_wire_step *step, struct block *block, Sf__Step *m)
{
    size_t n = (size_t)step->opens;
    double **real[] = {&m->open_temperature, &m->open_top_p, &m->open_min_p, &m->open_presence,
                       &m->open_frequency, &m->open_repetition};
    for (size_t i = 0; i < sizeof real / sizeof real[0]; i++) *real[i] = block_cut(block, n * 8);
    m->open_rng_key = block_cut(block, n * 8);
    m->open_rng_stream = block_cut(block, n * 8);
    m->open_top_k = block_cut(block, n * 4);
    m->open_biases = block_cut(block, n * 4);
    m->n_open_temperature = m->n_open_top_p = m->n_open_min_p = m->n_open_presence = n;
    m->n_open_frequency = m->n_open_repetition = m->n_open_rng_key = m->n_open_rng_stream = n;
    m->n_open_top_k = m->n_open_biases = n;
    m->bias_token = block_cut(block, biases_of(step) * 4);
    m->bias_value = block_cut(block, biases_of(step) * 4);
    for (size_t i = 0; i < n; i++) {
        const struct sf_wire_sampling *p = &step->open[i].sampling;
        m->open_temperature[i] = p->temperature;
        m->open_top_p[i] = p->top_p;
        m->open_min_p[i] = p->min_p;
        m->open_presence[i] = p->presence;
        m->open_frequency[i] = p->frequency;
        m->open_repetition[i] = p->repetition;
        m->open_rng_key[i] = p->rng_key;
        m->open_rng_stream[i] = p->rng_stream;
        m->open_top_k[i] = p->top_k;
        m->open_biases[i] = p->biases;
        for (int32_t b = 0; b < p->biases; b++) {
            m->bias_token[m->n_bias_token++] = p->bias[b].token;
            m->bias_value[m->n_bias_value++] = p->bias[b].value;
        }
    }
}

static void step_open_columns(const struct sf_wire_step *step, struct block *block, Sf__Step *m)
{
    size_t n = (size_t)step->opens;
    m->n_open_seq = m->n_open_prompt = m->n_open_tokens_max = n;
    m->open_seq = block_cut(block, n * 8);
    m->open_prompt = block_cut(block, n * 4);
    m->open_tokens_max = block_cut(block, n * 4);
    for (size_t i = 0; i < n; i++) {
        m->open_seq[i] = step->open[i].seq;
        m->open_prompt[i] = step->open[i].prompt;
        m->open_tokens_max[i] = step->open[i].tokens_max;
    }
}

static void step_item_columns(const struct sf_wire_step *step, struct block *block, Sf__Step *m)
{
    size_t n = (size_t)step->items;
    m->n_item_seq = m->n_item_pos = m->n_item_rows = m->n_item_token_first = m->n_item_logits = n;
    m->item_seq = block_cut(block, n * 8);
    m->item_pos = block_cut(block, n * 4);
    m->item_rows = block_cut(block, n * 4);
    m->item_token_first = block_cut(block, n * 4);
    m->item_logits = block_cut(block, n * 4);
    for (size_t i = 0; i < n; i++) {
        const struct sf_wire_item *item = &step->item[i];
        m->item_seq[i] = item->seq;
        m->item_pos[i] = item->pos;
        m->item_rows[i] = item->rows;
        m->item_token_first[i] = item->token_first;
        m->item_logits[i] = item->logits;
    }
}

sf_status sf_wire_pack_step(const struct sf_wire_step *step, void **bytes_out, size_t *count_out)
{
    SF_TRY(step_check(step));
    Sf__Step m = SF__STEP__INIT;
    struct block block;
    SF_TRY(block_take(&block, (size_t)step->opens * 88 + biases_of(step) * 8 +
                                  (size_t)step->items * 24));
    step_open_columns(step, &block, &m);
    step_sampling_columns(step, &block, &m);
    step_item_columns(step, &block, &m);
    m.id = step->id;
    m.batch = step->batch;
    m.stop = step->stop;
    m.n_close = (size_t)step->closes;
    m.close = step->close;
    m.n_token = (size_t)step->tokens;
    m.token = step->token;
    sf_status status = message_pack(&m.base, bytes_out, count_out);
    free(block.base);
    return status;
}

/* Deals the biases out to the opens, which say how many each has. */
static sf_status biases_from_columns(const Sf__Step *m, struct sf_wire_step *step)
{
    const size_t biases[] = {m->n_bias_token, m->n_bias_value};
    size_t dealt = 0;
    SF_TRY(columns_equal("biases", biases, 2));
    SF_TRY(list_alloc("biases", biases[0], sizeof *step->biases, &step->biases));
    for (size_t i = 0; i < biases[0]; i++)
        step->biases[i] = (struct sf_wire_bias){m->bias_token[i], m->bias_value[i]};
    for (int32_t i = 0; i < step->opens; i++) {
        int32_t count = m->open_biases[i];
        if (count < 0 || (size_t)count > biases[0] - dealt)
            return SF_FAIL(SF_FORMAT, "step opens sequence %llu with %d biases; %zu are left",
                           (unsigned long long)step->open[i].seq, count, biases[0] - dealt);
        step->open[i].sampling.biases = count;
        step->open[i].sampling.bias = count > 0 ? step->biases + dealt : NULL;
        dealt += (size_t)count;
    }
    if (dealt != biases[0])
        return SF_FAIL(SF_FORMAT, "step with %zu biases, of which %zu belong to its sequences",
                       biases[0], dealt);
    return SF_OK;
}

static sf_status step_from_columns(const Sf__Step *m, struct sf_wire_step *step)
{
    const size_t opens[] = {m->n_open_seq, m->n_open_prompt, m->n_open_tokens_max,
                            m->n_open_temperature, m->n_open_rng_key, m->n_open_rng_stream,
                            m->n_open_top_p, m->n_open_min_p, m->n_open_presence,
                            m->n_open_frequency, m->n_open_repetition, m->n_open_top_k,
                            m->n_open_biases};
    const size_t items[] = {m->n_item_seq, m->n_item_pos, m->n_item_rows, m->n_item_token_first,
                            m->n_item_logits};
    SF_TRY(columns_equal("closed sequences", &m->n_close, 1));
    SF_TRY(columns_equal("opened sequences", opens, sizeof opens / sizeof opens[0]));
    SF_TRY(columns_equal("items", items, 5));
    SF_TRY(columns_equal("tokens", &m->n_token, 1));
    SF_TRY(list_alloc("closed sequences", m->n_close, sizeof *step->close, &step->close));
    SF_TRY(list_alloc("opened sequences", opens[0], sizeof *step->open, &step->open));
    SF_TRY(list_alloc("items", items[0], sizeof *step->item, &step->item));
    SF_TRY(list_alloc("tokens", m->n_token, sizeof *step->token, &step->token));
    step->id = m->id;
    step->batch = m->batch;
    step->stop = m->stop ? 1 : 0;
    step->closes = (int32_t)m->n_close;
    step->opens = (int32_t)opens[0];
    step->items = (int32_t)items[0];
    step->tokens = (int32_t)m->n_token;
    if (m->n_close > 0) memcpy(step->close, m->close, m->n_close * sizeof *step->close);
    if (m->n_token > 0) memcpy(step->token, m->token, m->n_token * sizeof *step->token);
    for (size_t i = 0; i < opens[0]; i++)
        step->open[i] = (struct sf_wire_open){
            .seq = m->open_seq[i], .prompt = m->open_prompt[i],
            .tokens_max = m->open_tokens_max[i],
            .sampling = {.temperature = m->open_temperature[i], .top_p = m->open_top_p[i],
                         .min_p = m->open_min_p[i], .presence = m->open_presence[i],
                         .frequency = m->open_frequency[i], .repetition = m->open_repetition[i],
                         .top_k = m->open_top_k[i], .rng_key = m->open_rng_key[i],
                         .rng_stream = m->open_rng_stream[i]}};
    SF_TRY(biases_from_columns(m, step));
    for (size_t i = 0; i < items[0]; i++)
        step->item[i] = (struct sf_wire_item){
            .seq = m->item_seq[i], .pos = m->item_pos[i], .rows = m->item_rows[i],
            .token_first = m->item_token_first[i],
            .logits = m->item_logits[i] > UINT8_MAX ? UINT8_MAX : (uint8_t)m->item_logits[i]};
    return step_check(step);
}

sf_status sf_wire_unpack_step(const void *bytes, size_t count, struct sf_wire_step *step_out)
{
    ProtobufCMessage *message = NULL;
    SF_TRY(message_unpack(&sf__step__descriptor, bytes, count, &message));
    struct sf_wire_step step = {0};
    sf_status status = step_from_columns((const Sf__Step *)message, &step);
    protobuf_c_message_free_unpacked(message, NULL);
    if (status != SF_OK) sf_wire_step_free(&step);
    else *step_out = step;
    return status;
}

void sf_wire_step_free(struct sf_wire_step *step)
{
    free(step->close);
    free(step->open);
    free(step->item);
    free(step->token);
    free(step->biases);
    *step = (struct sf_wire_step){0};
}

/* ---- result ---------------------------------------------------------------------------------- */
static sf_status result_check(const struct sf_wire_result *result)
{
    unsigned long long step = result->step;
    if (result->batch < 0 || result->batch > BATCH_MAX)
        return SF_FAIL(SF_FORMAT, "result of step %llu is of micro-batch %d", step, result->batch);
    SF_TRY(list_check("samples", result->samples));
    for (int32_t i = 0; i < result->samples; i++) {
        const struct sf_wire_sample *sample = &result->sample[i];
        if (sample->token < 0 || !isfinite(sample->logprob))
            return SF_FAIL(SF_FORMAT,
                    "result of step %llu: sequence %llu sampled token %d with log "
                           "probability %g", step, (unsigned long long)sample->seq, sample->token,
                           (double)sample->logprob);
    }
    return SF_OK;
}

sf_status sf_wire_pack_result(const struct sf_wire_result *result, void **bytes_out,
                              size_t *count_out)
{
    SF_TRY(result_check(result));
    Sf__Result m = SF__RESULT__INIT;
    struct block block;
    size_t n = (size_t)result->samples;
    SF_TRY(block_take(&block, n * 16));
    m.step = result->step;
    m.batch = result->batch;
    m.n_sample_seq = m.n_sample_token = m.n_sample_logprob = n;
    m.sample_seq = block_cut(&block, n * 8);
    m.sample_token = block_cut(&block, n * 4);
    m.sample_logprob = block_cut(&block, n * 4);
    for (size_t i = 0; i < n; i++) {
        m.sample_seq[i] = result->sample[i].seq;
        m.sample_token[i] = result->sample[i].token;
        m.sample_logprob[i] = result->sample[i].logprob;
    }
    sf_status status = message_pack(&m.base, bytes_out, count_out);
    free(block.base);
    return status;
}

static sf_status result_from_columns(const Sf__Result *m, struct sf_wire_result *result)
{
    const size_t samples[] = {m->n_sample_seq, m->n_sample_token, m->n_sample_logprob};
    SF_TRY(columns_equal("samples", samples, 3));
    SF_TRY(list_alloc("samples", samples[0], sizeof *result->sample, &result->sample));
    result->step = m->step;
    result->batch = m->batch;
    result->samples = (int32_t)samples[0];
    for (size_t i = 0; i < samples[0]; i++)
        result->sample[i] = (struct sf_wire_sample){
            .seq = m->sample_seq[i], .token = m->sample_token[i], .logprob = m->sample_logprob[i]};
    return result_check(result);
}

sf_status sf_wire_unpack_result(const void *bytes, size_t count, struct sf_wire_result *out)
{
    ProtobufCMessage *message = NULL;
    SF_TRY(message_unpack(&sf__result__descriptor, bytes, count, &message));
    struct sf_wire_result result = {0};
    sf_status status = result_from_columns((const Sf__Result *)message, &result);
    protobuf_c_message_free_unpacked(message, NULL);
    if (status != SF_OK) sf_wire_result_free(&result);
    else *out = result;
    return status;
}

void sf_wire_result_free(struct sf_wire_result *result)
{
    free(result->sample);
    *result = (struct sf_wire_result){0};
}

/* ---- report ---------------------------------------------------------------------------------- */
static sf_status report_check(const struct sf_wire_report *report)
{
    if (report->rank < 0 || report->status < SF_OK || report->status > SF_INTERNAL)
        return SF_FAIL(SF_FORMAT, "report of rank %d with status %d", report->rank,
                       report->status);
    if (report->pages_free < 0 || report->pages < report->pages_free)
        return SF_FAIL(SF_FORMAT, "report of rank %d: %lld of %lld pages free", report->rank,
                       (long long)report->pages_free, (long long)report->pages);
    SF_TRY(list_check("receipts", report->receipts));
    for (int32_t i = 0; i < report->receipts; i++) {
        const struct sf_wire_receipt *receipt = &report->receipt[i];
        if (receipt->bytes_exact < 0 || receipt->bytes_stored < 0 || receipt->bytes_peak < 0 ||
            receipt->slots_evicted < 0 || receipt->slots_merged < 0 ||
            receipt->slots_requantised < 0)
            return SF_FAIL(SF_FORMAT, "report of rank %d: receipt of sequence %llu is negative",
                           report->rank, (unsigned long long)receipt->seq);
    }
    return SF_OK;
}

sf_status sf_wire_pack_report(const struct sf_wire_report *report, void **bytes_out,
                              size_t *count_out)
{
    SF_TRY(report_check(report));
    Sf__Report m = SF__REPORT__INIT;
    struct block block;
    size_t n = (size_t)report->receipts;
    char text[TEXT_MAX + 1];            /* longer words are cut: an error must get through */
    SF_TRY(block_take(&block, n * 56));
    text[0] = '\0';
    if (report->text) {
        size_t length = strnlen(report->text, TEXT_MAX);
        memcpy(text, report->text, length);
        text[length] = '\0';
    }
    m.rank = report->rank;
    m.status = report->status;
    m.text = text;
    m.step = report->step;
    m.pages_free = report->pages_free;
    m.pages = report->pages;
    m.n_receipt_seq = m.n_receipt_bytes_exact = m.n_receipt_bytes_stored = n;
    m.n_receipt_bytes_peak = m.n_receipt_slots_evicted = m.n_receipt_slots_merged = n;
    m.n_receipt_slots_requantised = n;
    m.receipt_seq = block_cut(&block, n * 8);
    m.receipt_bytes_exact = block_cut(&block, n * 8);
    m.receipt_bytes_stored = block_cut(&block, n * 8);
    m.receipt_bytes_peak = block_cut(&block, n * 8);
    m.receipt_slots_evicted = block_cut(&block, n * 8);
    m.receipt_slots_merged = block_cut(&block, n * 8);
    m.receipt_slots_requantised = block_cut(&block, n * 8);
    for (size_t i = 0; i < n; i++) {
        const struct sf_wire_receipt *receipt = &report->receipt[i];
        m.receipt_seq[i] = receipt->seq;
        m.receipt_bytes_exact[i] = receipt->bytes_exact;
        m.receipt_bytes_stored[i] = receipt->bytes_stored;
        m.receipt_bytes_peak[i] = receipt->bytes_peak;
        m.receipt_slots_evicted[i] = receipt->slots_evicted;
        m.receipt_slots_merged[i] = receipt->slots_merged;
        m.receipt_slots_requantised[i] = receipt->slots_requantised;
    }
    sf_status status = message_pack(&m.base, bytes_out, count_out);
    free(block.base);
    return status;
}

static sf_status report_from_columns(const Sf__Report *m, struct sf_wire_report *report)
{
    const size_t receipts[] = {m->n_receipt_seq, m->n_receipt_bytes_exact,
                               m->n_receipt_bytes_stored, m->n_receipt_bytes_peak,
                               m->n_receipt_slots_evicted, m->n_receipt_slots_merged,
                               m->n_receipt_slots_requantised};
    size_t n = receipts[0], text = strlen(m->text);
    SF_TRY(columns_equal("receipts", receipts, 7));
    if (text > TEXT_MAX)
        return SF_FAIL(SF_FORMAT, "report of rank %d with %zu bytes of words", m->rank, text);
    SF_TRY(list_alloc("bytes of words", text + 1, 1, &report->text));
    memcpy(report->text, m->text, text + 1);
    SF_TRY(list_alloc("receipts", n, sizeof *report->receipt, &report->receipt));
    report->rank = m->rank;
    report->status = m->status;
    report->step = m->step;
    report->pages_free = m->pages_free;
    report->pages = m->pages;
    report->receipts = (int32_t)n;
    for (size_t i = 0; i < n; i++)
        report->receipt[i] = (struct sf_wire_receipt){
            .seq = m->receipt_seq[i], .bytes_exact = m->receipt_bytes_exact[i],
            .bytes_stored = m->receipt_bytes_stored[i], .bytes_peak = m->receipt_bytes_peak[i],
            .slots_evicted = m->receipt_slots_evicted[i],
            .slots_merged = m->receipt_slots_merged[i],
            .slots_requantised = m->receipt_slots_requantised[i]};
    return report_check(report);
}

sf_status sf_wire_unpack_report(const void *bytes, size_t count, struct sf_wire_report *out)
{
    ProtobufCMessage *message = NULL;
    SF_TRY(message_unpack(&sf__report__descriptor, bytes, count, &message));
    struct sf_wire_report report = {0};
    sf_status status = report_from_columns((const Sf__Report *)message, &report);
    protobuf_c_message_free_unpacked(message, NULL);
    if (status != SF_OK) sf_wire_report_free(&report);
    else *out = report;
    return status;
}

void sf_wire_report_free(struct sf_wire_report *report)
{
    free(report->text);
    free(report->receipt);
    *report = (struct sf_wire_report){0};
}
