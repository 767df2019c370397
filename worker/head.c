/* worker/head.c: from the residual of the last stage to tokens.
 *
 * A device whose memory the host cannot touch chooses and scores by itself where it has all logits
 * of a row (device_chooses), and a step's answers come back in one copy.  Elsewhere each tensor
 * rank of the last stage has a slice of the output head's rows: plain greedy rows need only the
 * best of each slice (8 bytes a row and rank); rows whose choice looks at more (sample.h), that are
 * scored (score.h), compared or tapped, need all logits on tensor rank 0's host.  Random numbers
 * are counter based: (seed, record, token index), so a record's text does not depend on its
 * neighbours. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "worker/score.h"
#include "worker/state.h"

/* What a step's rows need, alike on all tensor ranks. */
struct wants {
    int32_t rows;                       /* that want logits: head_row, head_item */
    int whole;                          /* some need whole rows on tensor rank 0 */
    size_t scores, tops;                /* of the result, at most */
};

static void want_scores(struct wants *wants, const struct sf_worker_seq *seq, int32_t scores)
{
    wants->scores += (size_t)scores;
    wants->tops += (size_t)scores * (size_t)seq->sampling.tops;
    wants->whole = 1;
}

static struct wants collect(struct sf_worker *w, const struct sf_wire_step *step)
{
    struct wants wants = {.rows = 0};
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_wire_item *item = &step->item[i];
        int32_t first = item->logits & SF_LOGITS_ROWS ? 0 : item->rows - 1;
        int any = item->logits & (SF_LOGITS_SAMPLE | SF_LOGITS_ROWS | SF_LOGITS_LAST);
        for (int32_t r = first; r < item->rows && any; r++) {
            w->head_row[wants.rows] = w->item_row[i] + r;
            w->head_item[wants.rows] = i;
            wants.rows++;
        }
        const struct sf_worker_seq *seq = sf_seq_table_find(&w->seqs, item->seq);
        int sample = item->logits & SF_LOGITS_SAMPLE;
        if (sample && seq->needs_row) wants.whole = 1;
        if (sample && seq->sampling.scores) want_scores(&wants, seq, 1);
        if (item->logits & SF_LOGITS_ROWS) want_scores(&wants, seq, item->rows);
        else if (item->logits & SF_LOGITS_LAST) want_scores(&wants, seq, 1);
    }
    return wants;
}

/* Room for a step's scores: grows to the largest step's and stays. */
static sf_status make_room(struct sf_worker *w, const struct wants *wants)
{
    if (!sf_worker_samples(w) || wants->scores == 0) return SF_OK;
    SF_TRY(sf_grow((void **)&w->score, &w->score_room, wants->scores, sizeof *w->score));
    SF_TRY(sf_grow((void **)&w->top, &w->top_room, wants->tops, sizeof *w->top));
    return sf_grow((void **)&w->changed_row, &w->changed_room, (size_t)w->desc->vocab,
                   sizeof *w->changed_row);
}

/* What the host is to see of the logits of `rows` rows: it does after the next sync. */
static void ask_for(struct sf_worker *w, int32_t rows, int whole)
{
    size_t mine = (size_t)w->spec.share->vocab_count;
    if (mine == 0) return;
    w->device->k->argmax(w->device, rows, w->spec.share->vocab_count, w->logits, mine,
                         w->best_value, w->best_index);
    if (whole && w->logits_host != w->logits)
        w->device->k->fetch(w->device, w->logits_host, w->logits,
                            (size_t)rows * mine * sizeof(float));
}

/* Waits for what was asked of the device. */
static sf_status wait_for_rows(struct sf_worker *w)
{
    SF_TRY(sf_sums_settle(w));
    w->device->k->sync(w->device);      /* where a link has not waited for all of it */
    sf_phase(w, SF_PHASE_SAMPLE);
    return SF_OK;
}

/* All logits of `rows` rows on tensor rank 0; *all_out is NULL on the others. */
static sf_status gather(struct sf_worker *w, int32_t rows, float **all_out)
{
    const struct sf_share *share = w->spec.share;
    size_t mine = (size_t)share->vocab_count, vocab = (size_t)w->desc->vocab;
    *all_out = NULL;
    if (share->tp_size == 1) {
        *all_out = w->logits_host;
        return SF_OK;
    }
    if (share->tp_rank != 0) {
        if (mine == 0) return SF_OK;
        struct sf_request *request;
        SF_TRY(sf_comm_isend(w->spec.tensor, 0, SF_TAG_RESULT, w->logits_host,
                             (size_t)rows * mine * sizeof(float), &request));
        return sf_comm_wait(w->spec.tensor, request);
    }
    for (int32_t r = 0; r < share->tp_size; r++) {
        size_t first = (size_t)w->vocab_first[r], count = (size_t)w->vocab_first[r + 1] - first;
        const float *part = w->logits_host;
        if (r > 0 && count > 0) {       /* rank 0's own slice has been copied: its buffer is free */
            SF_ASSERT(count <= mine);   /* slices never grow with the rank */
            SF_TRY(sf_comm_recv(w->spec.tensor, r, SF_TAG_RESULT, w->logits_host,
                                (size_t)rows * count * sizeof(float)));
        }
        for (int32_t row = 0; row < rows; row++)
            memcpy(w->logits_all + (size_t)row * vocab + first, part + (size_t)row * count,
                   count * sizeof(float));
    }
    *all_out = w->logits_all;
    return SF_OK;
}

/* Best token of each row over all slices, ties to the lower token; on every tensor rank. */
static sf_status best_of(struct sf_worker *w, int32_t rows)
{
    const struct sf_share *share = w->spec.share;
    for (int32_t row = 0; row < rows; row++)
        w->best[row] = (struct sf_best){.value = -INFINITY, .index = -1};
    for (int32_t row = 0; row < rows && share->vocab_count > 0; row++)
        w->best[row] = (struct sf_best){.value = w->best_value[row],
                                        .index = share->vocab_first + w->best_index[row]};
    if (share->tp_size == 1) return SF_OK;
    SF_TRY(sf_comm_allgather(w->spec.tensor, w->best, (size_t)rows * sizeof *w->best, w->best_all));
    for (int32_t row = 0; row < rows; row++) {
        w->best[row] = w->best_all[row];
        for (int32_t r = 1; r < share->tp_size; r++) {
            const struct sf_best *other = &w->best_all[r * rows + row];
            if (isnan(other->value) || other->value > w->best[row].value) w->best[row] = *other;
        }
    }
    return SF_OK;
}

static sf_status not_finite(const struct sf_worker_seq *seq, int32_t pos)
{
    return SF_FAIL(SF_INTERNAL, "the logits of sequence %llu at position %d are not finite",
                   (unsigned long long)seq->id, pos);
}

/* The place of the next score, of the token behind the row at `pos`. */
static struct sf_wire_score *next_score(struct sf_worker *w, const struct sf_worker_seq *seq,
                                        int32_t pos, struct sf_wire_result *result)
{
    SF_ASSERT((size_t)result->scores < w->score_room);
    struct sf_wire_score *score = &w->score[result->scores];
    const struct sf_wire_score *before = result->scores > 0 ? score - 1 : NULL;
    *score = (struct sf_wire_score){.seq = seq->id, .pos = pos + 1, .top = w->top};
    if (before != NULL && before->top != NULL) score->top = before->top + before->tops;
    result->score = w->score;
    result->scores++;
    return score;
}

/* Adds the score of `token` under the row at `pos`, behind which it stands. */
static sf_status add_score(struct sf_worker *w, const struct sf_worker_seq *seq, int32_t pos,
                           int32_t token, const float *logits, struct sf_wire_result *result)
{
    if (!sf_score(logits, w->desc->vocab, token, seq->sampling.tops,
                  next_score(w, seq, pos, result)))
        return not_finite(seq, pos);
    return SF_OK;
}

/* What its cache has done to the row, on top of its score: rows of the first stack are kept for
 * those that come to be compared with them. */
static sf_status compare(struct sf_worker *w, const struct sf_worker_seq *seq, int32_t pos,
                         const float *logits, struct sf_wire_score *score)
{
    double kl = 0.0;
    if (w->spec.besides > 0 && seq->stack == 0)
        return sf_kept_rows_add(&w->kept, seq->id, pos, logits, w->desc->vocab);
    if (seq->against == 0) return SF_OK;
    SF_TRY(sf_kept_rows_kl(&w->kept, seq->against, pos, logits, &kl));
    score->kl = (float)kl;
    return SF_OK;
}

/* A token was chosen that stands at `pos`. */
static void remember(struct sf_worker_seq *seq, int32_t pos, int32_t token)
{
    if (token >= 0 && pos < seq->tokens_max) sf_choice_saw(&seq->choice, pos, token);
}

/* The token of the item's last row.  Biases and penalties change the row, which a score still has
 * to be taken from: then a copy is chosen from, else the row itself. */
static int32_t choose(struct sf_worker *w, const struct sf_wire_item *item,
                      struct sf_worker_seq *seq, float *logits)
{
    int32_t tokens = item->pos + item->rows;            /* so many are known, this one is next */
    struct sf_choose_row row = sf_choice_row(&seq->choice, &seq->sampling, tokens);
    if (seq->sampling.scores && row.biases + row.seen > 0) {
        memcpy(w->changed_row, logits, (size_t)w->desc->vocab * sizeof *logits);
        logits = w->changed_row;
    }
    int32_t token = sf_sample(w->sampler, &row, logits);
    remember(seq, tokens, token);
    return token;
}

/* One of the rows that want logits. */
struct wanted {
    const struct sf_wire_item *item;
    struct sf_worker_seq *seq;
    int32_t pos, next;                  /* next: the token behind the row that is scored; -1 */
    int sample;                         /* a token is chosen here */
};

static struct wanted wanted_row(const struct sf_worker *w, const struct sf_wire_step *step,
                                int32_t wanted)
{
    int32_t at = w->head_row[wanted];
    struct wanted row = {.item = &step->item[w->head_item[wanted]], .next = -1};
    row.pos = w->row_pos[at];
    row.seq = sf_seq_table_find(&w->seqs, row.item->seq);
    int last = row.pos == row.item->pos + row.item->rows - 1;
    if (row.item->logits & SF_LOGITS_ROWS) row.next = last ? row.item->next : w->row_token[at + 1];
    else if (row.item->logits & SF_LOGITS_LAST && last) row.next = row.item->next;
    row.sample = last && row.item->logits & SF_LOGITS_SAMPLE;
    return row;
}

static void add_sample(const struct wanted *row, int32_t token, struct sf_wire_result *result)
{
    result->sample[result->samples++] = (struct sf_wire_sample){.seq = row->item->seq,
                                                                .token = token};
}

static sf_status finish_row(struct sf_worker *w, const struct sf_wire_step *step, int32_t wanted,
                            int32_t row, float *all, struct sf_wire_result *result)
{
    struct wanted want = wanted_row(w, step, wanted);
    struct sf_worker_seq *seq = want.seq;
    float *logits = all == NULL ? NULL : all + (size_t)row * (size_t)w->desc->vocab;
    if (w->spec.tap.row != NULL && logits != NULL)
        w->spec.tap.row(w->spec.tap.arg, seq->id, want.pos, logits, w->desc->vocab);
    if (want.next >= 0 && sf_worker_samples(w)) {
        SF_TRY(add_score(w, seq, want.pos, want.next, logits, result));
        SF_TRY(compare(w, seq, want.pos, logits, &w->score[result->scores - 1]));
    }
    if (!want.sample) return SF_OK;
    int32_t token = isfinite(w->best[row].value) ? w->best[row].index : -1;
    if (token >= 0 && seq->needs_row) {
        if (!sf_worker_samples(w)) return SF_OK;
        token = choose(w, want.item, seq, logits);
    }
    if (token < 0) return not_finite(seq, want.pos);
    if (seq->sampling.scores && sf_worker_samples(w))
        SF_TRY(add_score(w, seq, want.pos, token, logits, result));
    add_sample(&want, token, result);
    return SF_OK;
}

/* ---- choices on the device ---- */

/* Whether it has whole rows and nobody on the host looks at them. */
static int device_chooses(const struct sf_worker *w)
{
    return w->choice != NULL && w->device->k->choose != NULL && w->spec.tap.row == NULL &&
           w->spec.besides == 0 && w->desc->vocab <= SF_CHOICE_VOCAB_MAX;
}

/* Queues the choices and scores of a tile's rows; those of the step so far are `done`. */
static int32_t choose_rows(struct sf_worker *w, const struct sf_wire_step *step, int32_t first,
                           int32_t rows, int32_t done)
{
    struct sf_choose_job job = {.vocab = w->desc->vocab,
                                .logits = w->logits,
                                .stride = (size_t)w->spec.share->vocab_count,
                                .row = w->choose_row,
                                .choice = w->choice + done,
                                .top = w->choice_top + (size_t)done * SF_CHOICE_TOPS_MAX};
    for (int32_t r = 0; r < rows; r++) {
        struct wanted want = wanted_row(w, step, first + r);
        struct sf_choose_row row = {.score = want.next};
        if (want.sample)
            row = sf_choice_row(&want.seq->choice, &want.seq->sampling, want.pos + 1);
        if (want.sample && want.seq->sampling.scores) row.score = SF_SCORE_CHOSEN;
        if (!want.sample && want.next < 0) continue;
        row.row = r;
        row.tops = want.seq->sampling.tops;
        w->choose_row[job.rows++] = row;
    }
    if (job.rows > 0) w->device->k->choose(w->device, &job);
    return job.rows;
}

/* Brings the answers of `done` rows to the host, the step's one wait for the device, and adds them
 * to the result, in the step's order. */
static sf_status take_choices(struct sf_worker *w, const struct sf_wire_step *step,
                              const struct wants *wants, int32_t done,
                              struct sf_wire_result *result)
{
    const struct sf_kernels *k = w->device->k;
    size_t rows = (size_t)done, tops = rows * SF_CHOICE_TOPS_MAX;
    int32_t at = 0;
    k->fetch(w->device, w->choice_host, w->choice, rows * sizeof *w->choice);
    if (wants->tops > 0)
        k->fetch(w->device, w->choice_top_host, w->choice_top, tops * sizeof *w->choice_top);
    SF_TRY(wait_for_rows(w));
    for (int32_t i = 0; i < wants->rows; i++) {
        struct wanted want = wanted_row(w, step, i);
        if (!want.sample && want.next < 0) continue;
        const struct sf_choice *choice = &w->choice_host[at];
        const struct sf_choice_top *top = w->choice_top_host + (size_t)at * SF_CHOICE_TOPS_MAX;
        at++;
        if (want.sample && choice->token < 0) return not_finite(want.seq, want.pos);
        if ((want.next >= 0 || want.seq->sampling.scores) &&
            !sf_score_of(choice, top, next_score(w, want.seq, want.pos, result)))
            return not_finite(want.seq, want.pos);
        if (!want.sample) continue;
        remember(want.seq, want.pos + 1, choice->token);
        add_sample(&want, choice->token, result);
    }
    SF_ASSERT(at == done);
    return SF_OK;
}

sf_status sf_head(struct sf_worker *w, const struct sf_wire_step *step,
                  struct sf_wire_result *result)
{
    struct sf_device *device = w->device;
    const struct sf_kernels *k = device->k;
    size_t d_model = (size_t)w->desc->d_model;
    struct wants wants = collect(w, step);
    int32_t wanted = wants.rows, done = 0;
    int here = device_chooses(w), whole = wants.whole || w->spec.tap.row != NULL;
    w->stats.logit_rows += wanted;
    sf_kept_rows_restart(&w->kept);
    SF_TRY(make_room(w, &wants));
    for (int32_t first = 0; first < wanted; first += w->ws.head_rows) {
        int32_t rows = wanted - first < w->ws.head_rows ? wanted - first : w->ws.head_rows;
        k->copy_rows(device, rows, w->desc->d_model, w->head_row + first, w->residual, d_model,
                     w->head_rows_in, d_model);
        sf_phase(w, SF_PHASE_GEMM);
        k->rmsnorm(device, rows, w->desc->d_model, w->head_rows_in, d_model, w->weights.out_norm,
                   w->desc->norm_eps, w->normed, d_model, w->spec.dtype);
        if (w->weights.head != NULL)
            k->matmul(device, w->weights.head, rows, w->normed, d_model, w->logits,
                      (size_t)w->spec.share->vocab_count);
        if (device->host_memory) sf_phase(w, SF_PHASE_SAMPLE);  /* the products are there */
        if (here) {                     /* nothing is waited for before all tiles are queued */
            done += choose_rows(w, step, first, rows, done);
            continue;
        }
        ask_for(w, rows, whole);
        SF_TRY(wait_for_rows(w));
        SF_TRY(best_of(w, rows));
        float *all = NULL;
        if (whole) SF_TRY(gather(w, rows, &all));
        for (int32_t row = 0; row < rows; row++)
            SF_TRY(finish_row(w, step, first + row, row, all, result));
        SF_TRY(sf_comm_beat(w->spec.world, "head", first));
    }
    if (done > 0) SF_TRY(take_choices(w, step, &wants, done, result));
    return SF_OK;
}
