/* worker/pipe.c: what passes between stages.
 *
 * Activations: every tensor rank of a stage holds the whole residual, so each sends only its block
 * of columns to its neighbour in the next stage, and the neighbours put the blocks together over
 * their own node: a token crosses a stage border once, as d_model floats, whatever the tensor size.
 *
 * Tokens: the last stage's tensor rank 0 sends each step's samples straight to all ranks of the
 * first stage (which feed them with the next step of that micro-batch), and to the coordinator
 * beside that.  Steps run in one order on all ranks of a group, so plain message order suffices. */
#include <string.h>

#include "worker/state.h"

int32_t sf_worker_rank_of(const struct sf_worker *w, int32_t stage, int32_t tensor_rank)
{
    int32_t tensor_size = w->spec.share->tp_size;
    return tensor_rank + tensor_size * (stage + w->spec.stages * w->spec.group);
}

static void my_block(const struct sf_worker *w, int32_t *first_out, int32_t *count_out)
{
    sf_reduce_block(w->desc->d_model, w->spec.share->tp_size, w->spec.share->tp_rank, first_out,
                    count_out);
}

/* The same blocks by links, from device to device; all are equally wide. */
static sf_status link_send(struct sf_worker *w, int32_t rows)
{
    struct sf_device *device = w->device;
    int32_t first, count = sf_sums_block(w, w->spec.share->tp_rank, &first);
    device->k->copy_rows(device, rows, count, NULL, w->residual + first,
                         (size_t)w->desc->d_model, w->transfer, (size_t)count);
    return sf_link_send(w->pipe_link, w->spec.stage + 1, w->transfer,
                        (size_t)rows * (size_t)count * sizeof(float));
}

/* One tile of rows from the packed blocks of all tensor ranks; the leaves' room is free here. */
static sf_status link_spread(struct sf_worker *w, const float *packed, int32_t tile, int32_t rows)
{
    struct sf_device *device = w->device;
    size_t d_model = (size_t)w->desc->d_model;
    int32_t first, count = sf_sums_block(w, 0, &first);
    size_t block = (size_t)rows * (size_t)count;
    float *x = w->residual + (size_t)tile * d_model;
    SF_TRY(sf_link_all_gather(w->sum_link, packed, block * sizeof(float), w->leaves));
    for (int32_t r = 0; r < w->spec.share->tp_size; r++) {
        sf_sums_block(w, r, &first);
        device->k->copy_rows(device, rows, count, NULL, w->leaves + (size_t)r * block,
                             (size_t)count, x + first, d_model);
    }
    return SF_OK;
}

sf_status sf_pipe_send(struct sf_worker *w, int32_t rows)
{
    int32_t first, count;
    sf_phase(w, SF_PHASE_COMM);
    if (w->pipe_link != NULL) return link_send(w, rows);
    my_block(w, &first, &count);
    if (w->sending != NULL) {           /* the buffer still belongs to the step before */
        struct sf_request *sending = w->sending;
        w->sending = NULL;
        SF_TRY(sf_comm_wait(w->spec.world, sending));
    }
    size_t d_model = (size_t)w->desc->d_model, block = (size_t)count;
    for (int32_t row = 0; row < rows; row++)
        memcpy(w->transfer + (size_t)row * block, w->residual + (size_t)row * d_model + first,
               block * sizeof(float));
    int32_t next = sf_worker_rank_of(w, w->spec.stage + 1, w->spec.share->tp_rank);
    return sf_comm_isend(w->spec.world, next, SF_TAG_ACTIVATION, w->transfer,
                         (size_t)rows * block * sizeof(float), &w->sending);
}

/* Rows [first, first + rows) of x from the blocks of all tensor ranks: each contributes a leaf that
 * is zero outside its own block, so the sum is a plain copy. */
static sf_status spread(struct sf_worker *w, const float *block, int32_t first, int32_t rows)
{
    int32_t column, count, ranks = w->spec.share->tp_size;
    my_block(w, &column, &count);
    size_t d_model = (size_t)w->desc->d_model;
    float *leaf = sf_reduce_leaf(w->reduce, 0), *x = w->residual + (size_t)first * d_model;
    memset(leaf, 0, (size_t)rows * d_model * sizeof(float));
    for (int32_t row = 0; row < rows; row++)
        memcpy(leaf + (size_t)row * d_model + column, block + (size_t)row * (size_t)count,
               (size_t)count * sizeof(float));
    memset(x, 0, (size_t)rows * d_model * sizeof(float));
    return sf_reduce_add(w->reduce, rows, w->block_leaf, ranks, x, d_model);
}

sf_status sf_pipe_receive(struct sf_worker *w, int32_t rows)
{
    int32_t column, count;
    my_block(w, &column, &count);
    if (w->pipe_link != NULL) count = sf_sums_block(w, w->spec.share->tp_rank, &column);
    int32_t before = sf_worker_rank_of(w, w->spec.stage - 1, w->spec.share->tp_rank);
    float *packed = w->residual;
    sf_phase(w, SF_PHASE_WAIT);         /* for the stage before: the pipeline's bubble */
    size_t bytes = (size_t)rows * (size_t)count * sizeof(float);
    SF_TRY(w->pipe_link != NULL ? sf_link_recv(w->pipe_link, w->spec.stage - 1, packed, bytes)
           : sf_comm_recv(w->spec.world, before, SF_TAG_ACTIVATION, packed, bytes));
    sf_phase(w, SF_PHASE_COMM);
    if (w->spec.share->tp_size == 1) return SF_OK;
    /* Packed rows are shorter than whole ones and lie at the start of the same buffer: from the
     * last tile to the first, no tile overwrites one that is still packed. */
    int32_t tile = w->ws.tile_rows, tiles = (rows + tile - 1) / tile;
    for (int32_t t = tiles - 1; t >= 0; t--) {
        int32_t first = t * tile, most = rows - first < tile ? rows - first : tile;
        const float *block = packed + (size_t)first * (size_t)count;
        SF_TRY(w->pipe_link != NULL ? link_spread(w, block, first, most)
                                    : spread(w, block, first, most));
    }
    return SF_OK;
}

static void note_tokens(struct sf_worker *w, const struct sf_wire_result *result)
{
    for (int32_t i = 0; i < result->samples; i++) {
        struct sf_worker_seq *seq = sf_seq_table_find(&w->seqs, result->sample[i].seq);
        if (seq != NULL) seq->next_token = result->sample[i].token;    /* else it has left since */
    }
}

sf_status sf_worker_send(struct sf_worker *w, int32_t tag, const void *bytes, size_t count)
{
    if (w->hub != NULL)
        return sf_hub_deliver(w->hub, sf_comm_rank(w->spec.world), tag, bytes, count);
    return sf_comm_post(w->spec.world, 0, tag, bytes, count);
}

sf_status sf_pipe_results(struct sf_worker *w, const struct sf_wire_result *result)
{
    if (w->spec.share->tp_rank != 0) return SF_OK;
    struct sf_wire_result tokens = *result;     /* what is fed needs no scores */
    tokens.scores = 0;
    SF_TRY(sf_wire_pack_result(&tokens, &w->packed));
    int32_t self = sf_comm_rank(w->spec.world);
    for (int32_t r = 0; r < w->spec.share->tp_size && result->samples > 0; r++) {
        int32_t to = sf_worker_rank_of(w, 0, r);
        if (to == self) note_tokens(w, result);
        else
            SF_TRY(sf_comm_post(w->spec.world, to, SF_TAG_TOKENS, w->packed.bytes,
                                w->packed.count));
    }
    if (result->scores > 0) SF_TRY(sf_wire_pack_result(result, &w->packed));
    return sf_worker_send(w, SF_TAG_RESULT, w->packed.bytes, w->packed.count);
}

static sf_status take_tokens(struct sf_worker *w)
{
    SF_ASSERT(w->tokens_expected > 0);
    int32_t last = sf_worker_rank_of(w, w->spec.stages - 1, 0);
    sf_phase(w, SF_PHASE_WAIT);
    SF_TRY(sf_comm_take(w->spec.world, last, SF_TAG_TOKENS, 1, &w->taken, NULL));
    sf_phase(w, SF_PHASE_OTHER);
    struct sf_wire_result result;
    SF_TRY(sf_wire_unpack_result(w->taken.bytes, w->taken.count, &w->tokens_box, &result));
    note_tokens(w, &result);
    w->tokens_expected--;
    return SF_OK;
}

sf_status sf_pipe_tokens(struct sf_worker *w, const struct sf_wire_step *step)
{
    for (int32_t i = 0; i < step->items; i++) {
        if (step->item[i].token_first >= 0) continue;
        const struct sf_worker_seq *seq = sf_seq_table_find(&w->seqs, step->item[i].seq);
        SF_ASSERT(seq != NULL);
        while (seq->next_token < 0) {
            if (w->tokens_expected == 0)
                return SF_FAIL(SF_INTERNAL,
                        "step %llu feeds sequence %llu, which was never sampled",
                               (unsigned long long)step->id, (unsigned long long)seq->id);
            SF_TRY(take_tokens(w));
        }
    }
    return SF_OK;
}

sf_status sf_pipe_drain(struct sf_worker *w)
{
    while (w->tokens_expected > 0) SF_TRY(take_tokens(w));
    if (w->sum_link != NULL) SF_TRY(sf_link_settle(w->sum_link));
    if (w->pipe_link != NULL) SF_TRY(sf_link_settle(w->pipe_link));
    if (w->sending == NULL) return SF_OK;
    struct sf_request *sending = w->sending;
    w->sending = NULL;
    return sf_comm_wait(w->spec.world, sending);
}
