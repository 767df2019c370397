/* worker/step.c: one step, from the coordinator's message to results and receipts.
 *
 *   close -> drop blocks -> tighten -> open -> rows -> (embed | receive) -> layers
 *         -> (send | head, results) -> caches settle
 *
 * Every index in the message is checked here before anything is touched: the sequences exist, the
 * rows fit the buffers, positions are inside the sequence, token ids inside the vocabulary. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "worker/state.h"

static struct sf_wire_receipt receipt_of(const struct sf_worker_seq *seq,
                                         const struct sf_receipt *done)
{
    return (struct sf_wire_receipt){.seq = seq->id,
                                    .bytes_exact = done->bytes_exact,
                                    .bytes_stored = done->bytes_stored,
                                    .bytes_peak = done->bytes_peak,
                                    .slots_evicted = done->slots_evicted,
                                    .slots_merged = done->slots_merged,
                                    .slots_requantised = done->slots_requantised,
                                    .changed = done->changed};
}

/* What is asked for, of sequences that go on. */
static sf_status look_at_sequences(struct sf_worker *w, const struct sf_wire_step *step,
                                   struct sf_wire_receipt *receipt)
{
    for (int32_t i = 0; i < step->asks; i++) {
        const struct sf_worker_seq *seq = sf_seq_table_find(&w->seqs, step->ask[i]);
        if (seq == NULL)
            return SF_FAIL(SF_INTERNAL, "step %llu asks for sequence %llu, which is not open",
                           (unsigned long long)step->id, (unsigned long long)step->ask[i]);
        struct sf_receipt so_far;
        sf_seq_receipt(w->stores[seq->stack], seq->cache, &so_far);
        receipt[i] = receipt_of(seq, &so_far);
    }
    return SF_OK;
}

static sf_status close_sequences(struct sf_worker *w, const struct sf_wire_step *step,
                                 struct sf_wire_receipt *receipt)
{
    for (int32_t i = 0; i < step->closes; i++) {
        struct sf_worker_seq *seq = sf_seq_table_find(&w->seqs, step->close[i]);
        if (seq == NULL)
            return SF_FAIL(SF_INTERNAL, "step %llu closes sequence %llu, which is not open",
                           (unsigned long long)step->id, (unsigned long long)step->close[i]);
        struct sf_receipt done;
        sf_seq_close(w->stores[seq->stack], seq->cache, &done);
        receipt[i] = receipt_of(seq, &done);
        sf_seq_table_remove(&w->seqs, seq);
    }
    return SF_OK;
}

/* What the choice of its tokens needs, on the rank that chooses. */
static sf_status keep_choice(const struct sf_worker *w, const struct sf_wire_sampling *sampling,
                             struct sf_worker_seq *seq)
{
    seq->needs_row = (uint8_t)sf_choice_needs_row(sampling);
    seq->sampling = *sampling;
    seq->sampling.bias = NULL;
    seq->sampling.biases = 0;
    if (!sf_worker_samples(w)) return SF_OK;
    return sf_choice_open(sampling, seq->id, seq->prompt, seq->tokens_max, w->desc->vocab,
                          &seq->choice);
}

/* Blocks of the prefix cache take the place of its first rows; the ids of their tokens come along
 * where its sampling looks at them. */
static sf_status share_blocks(struct sf_worker *w, const struct sf_wire_step *step,
                              const struct sf_wire_open *open, struct sf_worker_seq *seq)
{
    struct sf_seq_share share = {.block = open->block, .blocks = open->blocks,
                                 .reused = open->reused};
    SF_TRY(sf_seq_share(w->stores[seq->stack], seq->cache, &share));
    int32_t tokens = open->reused * w->spec.page_slots;         /* less than the prompt */
    if (seq->choice.seen == NULL || tokens == 0) return SF_OK;
    if (open->reused_first < 0 || open->reused_first > step->tokens - tokens)
        return SF_FAIL(SF_INTERNAL, "sequence %llu reuses %d tokens, and their ids are not there",
                       (unsigned long long)open->seq, tokens);
    for (int32_t i = 0; i < tokens; i++) {
        int32_t token = step->token[open->reused_first + i];
        if (token >= w->desc->vocab)
            return SF_FAIL(SF_INTERNAL, "sequence %llu reuses token %d of a vocabulary of %d",
                           (unsigned long long)open->seq, token, w->desc->vocab);
        sf_choice_saw(&seq->choice, i, token);
    }
    return SF_OK;
}

/* Memory pressure: pages come free here, before a row of this step needs them. */
static sf_status tighten_sequences(struct sf_worker *w, const struct sf_wire_step *step)
{
    for (int32_t i = 0; i < step->tightens; i++) {
        const struct sf_wire_tighten *tighten = &step->tighten[i];
        const struct sf_worker_seq *seq = sf_seq_table_find(&w->seqs, tighten->seq);
        if (seq == NULL)
            return SF_FAIL(SF_INTERNAL, "step %llu tightens sequence %llu, which is not open",
                           (unsigned long long)step->id, (unsigned long long)tighten->seq);
        SF_TRY(sf_store_tighten(w->stores[seq->stack], seq->cache, tighten->tokens));
    }
    return SF_OK;
}

static sf_status open_sequences(struct sf_worker *w, const struct sf_wire_step *step)
{
    for (int32_t i = 0; i < step->opens; i++) {
        const struct sf_wire_open *open = &step->open[i];
        struct sf_worker_seq *seq;
        if (open->stack > w->spec.besides)
            return SF_FAIL(SF_INTERNAL, "step %llu opens sequence %llu in stack %d of %d",
                           (unsigned long long)step->id, (unsigned long long)open->seq,
                           open->stack, w->spec.besides + 1);
        SF_TRY(sf_seq_table_add(&w->seqs, open->seq, &seq));
        seq->stack = open->stack;
        seq->against = open->against;
        seq->prompt = open->prompt;
        seq->tokens_max = open->tokens_max;
        SF_TRY(sf_seq_open(w->stores[seq->stack], (int64_t)open->seq, open->prompt,
                           open->tokens_max, &seq->cache));
        SF_TRY(keep_choice(w, &open->sampling, seq));
        if (open->blocks > 0) SF_TRY(share_blocks(w, step, open, seq));
    }
    return SF_OK;
}

static sf_status check_item(const struct sf_worker *w, const struct sf_wire_step *step,
                            const struct sf_wire_item *item, const struct sf_worker_seq *seq)
{
    unsigned long long id = item->seq;
    if (seq == NULL)
        return SF_FAIL(SF_INTERNAL, "step %llu computes sequence %llu, which is not open",
                       (unsigned long long)step->id, id);
    if (item->rows < 1 || item->pos < 0 || item->pos > seq->tokens_max - item->rows)
        return SF_FAIL(SF_INTERNAL, "sequence %llu of at most %d tokens gets %d rows at %d", id,
                       seq->tokens_max, item->rows, item->pos);
    if (item->next >= 0 && item->logits & SF_LOGITS_SAMPLE)
        return SF_FAIL(SF_INTERNAL, "sequence %llu samples the token behind its last row, which is "
                       "known", id);
    if (item->next >= w->desc->vocab)
        return SF_FAIL(SF_INTERNAL, "sequence %llu is followed by token %d of a vocabulary of %d",
                       id, item->next, w->desc->vocab);
    if (item->token_first < 0) {
        if (item->rows != 1)
            return SF_FAIL(SF_INTERNAL, "sequence %llu feeds one sample to %d rows", id,
                           item->rows);
        return SF_OK;
    }
    if (item->token_first > step->tokens - item->rows)
        return SF_FAIL(SF_INTERNAL, "sequence %llu has tokens past the end of its step", id);
    for (int32_t r = 0; r < item->rows; r++) {
        int32_t token = step->token[item->token_first + r];
        if (token < 0 || token >= w->desc->vocab)
            return SF_FAIL(SF_INTERNAL, "sequence %llu has token %d of a vocabulary of %d", id,
                           token, w->desc->vocab);
    }
    return SF_OK;
}

/* An item whose rows are those of the one before it: another stack's, and the same ones. */
static sf_status check_before(const struct sf_worker *w, const struct sf_wire_step *step, int32_t i)
{
    const struct sf_wire_item *item = &step->item[i], *before = i > 0 ? item - 1 : NULL;
    if (before == NULL || before->pos != item->pos || before->rows != item->rows ||
        item->token_first < 0 || before->token_first != item->token_first ||
        sf_seq_table_find(&w->seqs, before->seq)->stack ==
            sf_seq_table_find(&w->seqs, item->seq)->stack)
        return SF_FAIL(SF_INTERNAL, "sequence %llu shares rows that are not there",
                       (unsigned long long)item->seq);
    return SF_OK;
}

/* The rows' cache items, stack by stack; within one in the order of the step. */
static void sort_items(struct sf_worker *w, const struct sf_wire_step *step)
{
    int32_t n = 0;
    for (int32_t s = 0; s <= w->spec.besides; s++) {
        w->kv_first[s] = n;
        for (int32_t i = 0; i < step->items; i++) {
            const struct sf_wire_item *item = &step->item[i];
            const struct sf_worker_seq *seq = sf_seq_table_find(&w->seqs, item->seq);
            if (seq->stack == s)
                w->kv_item[n++] = (struct sf_kv_item){.seq = seq->cache,
                                                      .row_first = w->item_row[i],
                                                      .rows = item->rows, .pos_first = item->pos};
        }
    }
    w->kv_first[w->spec.besides + 1] = n;
    SF_ASSERT(n == step->items);
}

/* Positions, token ids and cache items of the step's rows. */
static sf_status lay_out_rows(struct sf_worker *w, const struct sf_wire_step *step,
                              struct sf_rows *rows_out)
{
    int32_t rows = 0;
    if (step->items > w->spec.seqs_max)
        return SF_FAIL(SF_INTERNAL, "step %llu has %d items for %d sequences",
                       (unsigned long long)step->id, step->items, w->spec.seqs_max);
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_wire_item *item = &step->item[i];
        struct sf_worker_seq *seq = sf_seq_table_find(&w->seqs, item->seq);
        SF_TRY(check_item(w, step, item, seq));
        w->item_row[i] = rows;
        if (item->logits & SF_ROWS_BEFORE) {
            SF_TRY(check_before(w, step, i));
            w->item_row[i] = w->item_row[i - 1];
            continue;
        }
        if (item->rows > w->ws.rows_max - rows)
            return SF_FAIL(SF_INTERNAL, "step %llu has more than %d rows",
                           (unsigned long long)step->id, w->ws.rows_max);
        for (int32_t r = 0; r < item->rows && item->token_first >= 0; r++)
            sf_choice_saw(&seq->choice, item->pos + r, step->token[item->token_first + r]);
        for (int32_t r = 0; r < item->rows; r++) {
            w->row_pos[rows + r] = item->pos + r;
            w->row_token[rows + r] = item->token_first < 0 ? -1 :
                    step->token[item->token_first + r];
        }
        rows += item->rows;
    }
    sort_items(w, step);
    *rows_out = (struct sf_rows){.rows = rows, .item = w->kv_item};
    return SF_OK;
}

/* First stage: the residual of each row is its token's embedding, read from the mapped file. */
static sf_status embed(struct sf_worker *w, const struct sf_wire_step *step, int32_t rows)
{
    size_t d_model = (size_t)w->desc->d_model;
    SF_TRY(sf_pipe_tokens(w, step));
    const struct sf_weight *table = sf_model_weight(w->spec.model, SF_W_EMBED, -1);
    for (int32_t i = 0; i < step->items; i++) {
        if (step->item[i].logits & SF_ROWS_BEFORE) continue;
        for (int32_t r = 0; r < step->item[i].rows; r++) {
            int32_t row = w->item_row[i] + r, token = w->row_token[row];
            if (token < 0) {
                struct sf_worker_seq *seq = sf_seq_table_find(&w->seqs, step->item[i].seq);
                token = seq->next_token;
                seq->next_token = -1;
                if (token < 0 || token >= w->desc->vocab)   /* it came from another rank */
                    return SF_FAIL(SF_INTERNAL, "sequence %llu feeds sample %d of a vocabulary of "
                                   "%d", (unsigned long long)seq->id, token, w->desc->vocab);
            }
            SF_TRY(sf_weight_read_finite(table, token, 0, w->desc->d_model,
                                         w->embedded + (size_t)row * d_model));
        }
    }
    if (w->embedded != w->residual)
        w->device->k->upload(w->device, w->residual, w->embedded,
                             (size_t)rows * d_model * sizeof(float));
    return SF_OK;
}

static int samples_any(const struct sf_wire_step *step)
{
    for (int32_t i = 0; i < step->items; i++)
        if (step->item[i].logits & SF_LOGITS_SAMPLE) return 1;
    return 0;
}

/* What caches have put off, once nobody waits for this rank. */
static sf_status settle(struct sf_worker *w)
{
    sf_phase(w, SF_PHASE_ATTENTION);
    for (int32_t s = 0; s <= w->spec.besides; s++) SF_TRY(sf_store_settle(w->stores[s]));
    sf_phase(w, SF_PHASE_OTHER);
    return SF_OK;
}

static sf_status compute(struct sf_worker *w, const struct sf_wire_step *step)
{
    struct sf_rows rows;
    SF_TRY(lay_out_rows(w, step, &rows));
    if (rows.rows > 0) {
        SF_TRY(sf_worker_is_first(w) ? embed(w, step, rows.rows) : sf_pipe_receive(w, rows.rows));
        SF_TRY(sf_forward_layers(w, &rows));
    }
    w->stats.rows += rows.rows;
    if (sf_worker_is_last(w)) {
        struct sf_wire_result result = {.step = step->id, .batch = step->batch,
                                        .sample = w->sample};
        if (rows.rows > 0) SF_TRY(sf_head(w, step, &result));
        SF_TRY(sf_pipe_results(w, &result));
    } else if (rows.rows > 0) {
        SF_TRY(sf_pipe_send(w, rows.rows));
    }
    if (sf_worker_is_first(w) && !sf_worker_samples(w) && samples_any(step)) w->tokens_expected++;
    return settle(w);
}

sf_status sf_worker_step(struct sf_worker *w, const struct sf_wire_step *step)
{
    int64_t start = sf_now_ns();
    struct sf_wire_receipt *receipt = NULL;
    if (step->measure) return sf_report_load(w, step);
    int32_t receipts = step->closes > step->asks ? step->closes : step->asks;
    if (receipts > 0) {
        receipt = calloc((size_t)receipts, sizeof *receipt);
        if (receipt == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d receipts", receipts);
    }
    sf_status status = look_at_sequences(w, step, receipt);
    if (status == SF_OK && step->asks > 0)
        status = sf_report_receipts(w, step->id, receipt, step->asks);
    if (status == SF_OK) status = close_sequences(w, step, receipt);
    if (status == SF_OK && step->closes > 0)
        status = sf_report_receipts(w, step->id, receipt, step->closes);
    free(receipt);
    SF_TRY(status);
    for (int32_t i = 0; i < step->drops; i++) SF_TRY(sf_block_drop(w->store, step->drop[i]));
    SF_TRY(tighten_sequences(w, step));
    SF_TRY(open_sequences(w, step));
    SF_TRY(compute(w, step));
    w->stats.steps++;
    w->stats.seconds_step += sf_seconds_since(start);
    return SF_OK;
}
