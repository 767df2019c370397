/* worker/sums.c: how the leaves of a row-parallel layer come together, and what else a worker needs
 * where the host cannot touch the device's memory.
 *
 *   host memory    leaves in comm/reduce's windows, added up there
 *   else           leaves on the device; own ones are added up by a kernel, in their order, and
 *                  the ranks' sums by a link (comm/link.h), all of it queued:
 *
 *     | leaf 0 [tile_rows][d_model] | leaf 1 | ...   own leaves; leaf 0 becomes their sum, then
 *                                                    the sum of all ranks, then is added to x
 *
 * What such a sum gives depends on the layout: a rerun of one layout gives the same bits. */
#include <string.h>

#include "base/memory.h"
#include "worker/state.h"

/* Columns that a rank passes to the next stage; the last blocks may begin a column early, so that
 * all are as wide. */
int32_t sf_sums_block(const struct sf_worker *w, int32_t tensor_rank, int32_t *first_out)
{
    int32_t cols = w->desc->d_model, ranks = w->spec.share->tp_size, count;
    int32_t width = (cols + ranks - 1) / ranks;
    sf_reduce_block(cols, ranks, tensor_rank, first_out, &count);
    if (*first_out > cols - width) *first_out = cols - width;
    return width;
}

static size_t leaf_floats(const struct sf_worker *w)
{
    return (size_t)w->ws.tile_rows * (size_t)w->desc->d_model;
}

/* A gather of blocks uses the leaves' room. */
static size_t room_floats(const struct sf_worker *w)
{
    int32_t first, width = sf_sums_block(w, 0, &first);
    size_t leaves = leaf_floats(w) * (size_t)w->ws.leaves_max;
    size_t blocks = (size_t)w->spec.share->tp_size * (size_t)width * (size_t)w->ws.tile_rows;
    return leaves > blocks ? leaves : blocks;
}

/* Memory of a worker whose device the host cannot touch; before anything collective. */
sf_status sf_sums_take(struct sf_worker *w)
{
    struct sf_device *device = w->device;
    size_t d_model = (size_t)w->desc->d_model, half = (size_t)w->desc->rope_dim / 2;
    size_t head = (size_t)w->ws.head_rows * (size_t)w->spec.share->vocab_count;
    void *block;
    w->embedded = w->residual;
    w->logits_host = w->logits;
    w->inv_freq = w->desc->rope_inv_freq;
    if (device->host_memory) return SF_OK;
    w->embedded = w->logits_host = NULL;
    w->inv_freq = NULL;
    SF_TRY(device->k->alloc(device, room_floats(w) * sizeof(float), "leaves of sums", &block));
    w->leaves = block;
    w->stats.workspace_bytes += (int64_t)(room_floats(w) * sizeof(float));
    SF_TRY(device->k->alloc(device, half * sizeof(float), "frequencies of rotation", &block));
    w->inv_freq = block;
    device->k->upload(device, block, w->desc->rope_inv_freq, half * sizeof(float));
    if (sf_worker_is_first(w)) {
        SF_TRY(sf_alloc((size_t)w->ws.rows_pad * d_model * sizeof(float), "embeddings", &block));
        w->embedded = block;
    }
    if (sf_worker_is_last(w) && head > 0) {
        SF_TRY(device->k->host_alloc(device, head * sizeof(float), "logits for the host", &block));
        w->logits_host = block;
    }
    return SF_OK;
}

void sf_sums_give(struct sf_worker *w)
{
    if (w->device == NULL || w->device->host_memory) return;
    w->device->k->free(w->device, w->leaves);
    w->device->k->free(w->device, (void *)w->inv_freq);
    sf_free(w->embedded);
    w->device->k->host_free(w->device, w->logits_host);
}

static sf_status open_links(struct sf_worker *w)
{
    int32_t first, width = sf_sums_block(w, 0, &first);
    struct sf_link_spec spec = {.device = w->device,
                                .bytes_max = leaf_floats(w) * sizeof(float),
                                .timeout_ms = w->spec.timeout_ms};
    if (w->spec.share->tp_size > 1) SF_TRY(sf_link_open(w->spec.tensor, &spec, &w->sum_link));
    if (w->spec.stages == 1) return SF_OK;
    spec.bytes_max = (size_t)w->ws.rows_pad * (size_t)width * sizeof(float);
    return sf_link_open(w->spec.column, &spec, &w->pipe_link);
}

sf_status sf_sums_open(struct sf_worker *w, sf_status mine)
{
    const struct sf_worker_spec *spec = &w->spec;
    sf_status status = sf_comm_agree(spec->tensor, mine, "tensor rank");
    if (spec->column != NULL) status = sf_comm_agree(spec->column, status, "stage");
    SF_TRY(status);
    if (w->device->host_memory) {
        struct sf_reduce_spec reduce = {.rows_max = w->ws.tile_rows,
                                        .cols = w->desc->d_model,
                                        .leaves_max = w->ws.leaves_max,
                                        .exchange = spec->exchange,
                                        .crew = w->device->crew};
        return sf_reduce_create(spec->tensor, &reduce, &w->reduce);
    }
    SF_TRY(open_links(w));
    sf_link_show_life(spec->world, w->device);
    return SF_OK;
}

void sf_sums_close(struct sf_worker *w, int failed)
{
    if (failed) sf_link_give_up(w->sum_link);
    if (failed) sf_link_give_up(w->pipe_link);
    sf_link_close(w->sum_link);
    sf_link_close(w->pipe_link);
    if (w->reduce != NULL) sf_reduce_destroy(w->reduce);
}

/* A link asks after the device's other one, too. */
sf_status sf_sums_settle(struct sf_worker *w)
{
    if (w->sum_link != NULL) return sf_link_settle(w->sum_link);
    if (w->pipe_link != NULL) return sf_link_settle(w->pipe_link);
    w->device->k->sync(w->device);
    return SF_OK;
}

float *sf_sums_leaf(struct sf_worker *w)
{
    return w->reduce != NULL ? sf_reduce_leaf(w->reduce, 0) : w->leaves;
}

size_t sf_sums_leaf_stride(const struct sf_worker *w)
{
    return w->reduce != NULL ? sf_reduce_leaf_stride(w->reduce) : leaf_floats(w);
}

sf_status sf_sums_add(struct sf_worker *w, int32_t rows, const struct sf_leaf *leaf,
                      int32_t leaves, float *x)
{
    struct sf_device *device = w->device;
    const struct sf_kernels *k = device->k;
    int32_t cols = w->desc->d_model, own = 0;
    size_t d_model = (size_t)cols, stride = leaf_floats(w);
    if (w->reduce != NULL) {
        k->sync(device);
        return sf_reduce_add(w->reduce, rows, leaf, leaves, x, d_model);
    }
    for (int32_t i = 0; i < leaves; i++) own += leaf[i].owner == w->spec.share->tp_rank;
    if (w->sum_link == NULL) {
        k->add_leaves(device, rows, cols, w->leaves, own, stride, d_model, 1, x, d_model);
        return SF_OK;
    }
    k->add_leaves(device, rows, cols, w->leaves, own, stride, d_model, 0, w->leaves, d_model);
    SF_TRY(sf_link_sum(w->sum_link, w->leaves, (size_t)rows * d_model));
    k->add_leaves(device, rows, cols, w->leaves, 1, stride, d_model, 1, x, d_model);
    return SF_OK;
}
