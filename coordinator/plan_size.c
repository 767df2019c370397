/* coordinator/plan_size.c: bytes of one rank: weights, buffers, pages. */
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"
#include "comm/reduce.h"
#include "coordinator/plan_impl.h"
#include "kernels/device.h"

/* Share of what weights and buffers leave that an automatic pool takes: the rest is for the system,
 * the launcher, and file pages that loading passes through. */
static const double pool_share = 0.6;

static int64_t load_bytes(const struct sf_sizing *, const struct sf_share *);

static sf_status size_share(const struct sf_sizing *, int one_node, struct sf_plan_rank *rank);

sf_status sf_size_group(const struct sf_sizing *sizing, int32_t tp_size, int32_t layer_first,
                        int32_t layer_count, int one_node, struct sf_plan_rank *rank)
{
    struct sf_share *share = calloc((size_t)tp_size, sizeof *share);
    if (share == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d shares", tp_size);
    sf_status status = sf_share_make_group(sf_model_desc(sizing->model), &sizing->placing,
                                           tp_size, layer_first, layer_count, share);
    for (int32_t t = 0; t < tp_size; t++) rank[t].share = share[t];
    free(share);
    for (int32_t t = 0; t < tp_size && status == SF_OK; t++)
        status = size_share(sizing, one_node, &rank[t]);
    return status;
}

static sf_status size_share(const struct sf_sizing *sizing, int one_node,
                            struct sf_plan_rank *rank)
{
    const struct sf_model_desc *desc = sf_model_desc(sizing->model);
    const struct sf_share *share = &rank->share;
    const int32_t tp_size = share->tp_size;
    SF_TRY(sf_rank_lanes_make(share, &rank->lanes));
    sf_workspace_make(desc, share, sizing->dtype, sizing->fixed, sizing->rows_max,
                      &rank->workspace);
    const struct sf_workspace *ws = &rank->workspace;
    struct sf_reduce_spec reduce = {
        .rows_max = ws->tile_rows, .cols = desc->d_model, .leaves_max = ws->leaves_max
    };
    /* Elsewhere the device has the leaves and nothing else: those of a rank that is alone. */
    struct sf_device_spec device = {
        .name = sizing->device, .threads = sizing->threads, .isa_max = sizing->isa_max,
        .rows_max = ws->tile_rows
    };
    rank->workspace_bytes = ws->total
                            + (sizing->host_memory ? sf_reduce_bytes(&reduce, tp_size, one_node)
                                                   : sf_reduce_bytes(&reduce, 1, 1) + ws->choices)
                            + sf_device_scratch_bytes(&device);
    int staged = share->layer_first > 0 || !share->last_stage;      /* another stage to talk to */
    rank->library_bytes = sf_device_library_bytes(sizing->device, (tp_size > 1) + staged);
    rank->workspace_bytes += rank->library_bytes;
    const struct sf_mat_shape like = { .dtype = sizing->dtype, .int8 = sizing->int8,
                                       .fixed = sizing->fixed != 0, .rows_max = ws->tile_rows };
    rank->weight_bytes = sf_share_weight_bytes(desc, share, &like, sizing->mat_bytes);
    rank->load_bytes = load_bytes(sizing, share);
    return SF_OK;
}

void sf_size_free(struct sf_plan_rank *rank)
{
    sf_share_free(&rank->share);
    sf_rank_lanes_free(&rank->lanes);
    memset(rank, 0, sizeof *rank);
}

/* Loading passes one tensor at a time through the page cache and one tile of it through f32. */
static int64_t load_bytes(const struct sf_sizing *sizing, const struct sf_share *share)
{
    const struct sf_model_desc *desc = sf_model_desc(sizing->model);
    int64_t file = 0, tile = 0;
    for (int32_t i = 0; i < share->layer_count; i++) {
        for (int role = SF_W_ATTN_NORM; role < SF_ROLES; role++) {
            int64_t bytes = sf_model_weight_bytes(sizing->model, (enum sf_role)role,
                                                  share->layer_first + i);
            if (bytes > file) file = bytes;
        }
    }
    int64_t head = sf_model_weight_bytes(sizing->model, SF_W_OUT, -1);
    if (share->last_stage && head > file) file = head;
    for (int kind = SF_MAT_QKV; kind <= SF_MAT_HEAD; kind++) {
        struct sf_mat_shape shape;
        if (kind == SF_MAT_HEAD && !share->last_stage) continue;
        sf_share_mat(desc, share, (enum sf_mat_kind)kind, 0, sizing->dtype, sizing->fixed,
                     SF_FIXED_ROWS, &shape);
        int64_t bytes = (int64_t)shape.panel_cols * shape.k_slice * (int64_t)sizeof(float);
        if (bytes > tile) tile = bytes;
    }
    return file + tile;
}

/* ---- pages ----------------------------------------------------------------------------------- */
int64_t sf_size_left(const struct sf_sizing *sizing, const struct sf_plan_rank *rank)
{
    int64_t memory = sizing->cluster->memory_per_rank;
    if (memory <= 0) return INT64_MAX;
    return memory - rank->weight_bytes - rank->workspace_bytes;
}

int64_t sf_plan_spare_bytes(const struct sf_plan_rank *rank, const struct sf_cluster *cluster)
{
    if (cluster->memory_per_rank <= 0) return INT64_MAX;
    int64_t spare = cluster->memory_per_rank - rank->weight_bytes - rank->workspace_bytes -
                    rank->pool_bytes - sf_cache_bytes_sum(&rank->cache);
    return spare > 0 ? spare : 0;
}

static int64_t exact_bytes_per_token(const struct sf_setup *setup,
                                     const struct sf_rank_lanes *lanes, enum sf_dtype kv_dtype)
{
    int64_t bytes = 0;
    for (int32_t i = 0; i < lanes->layers; i++) {
        const struct sf_layer *layer = &setup->layer[lanes->layer_first + i];
        struct sf_layout layout = { kv_dtype, setup->page_slots, layer->k_dim, layer->v_dim };
        bytes += (int64_t)(lanes->lane_ptr[i + 1] - lanes->lane_ptr[i])
                 * (int64_t)sf_layout_slot_bytes(&layout);
    }
    return bytes;
}

/* What the cache takes beside a pool of so many bytes, for sequences of `tokens`. */
static sf_status cache_beside(const struct sf_sizing *sizing, const struct sf_setup *setup,
                              const struct sf_stack *stack, const struct sf_plan_rank *rank,
                              int64_t pool, int32_t tokens, struct sf_cache_bytes *out)
{
    int64_t page_bytes = sf_account_page_bytes(setup, &rank->lanes, sizing->kv_dtype);
    struct sf_cache_room room = { .dtype = sizing->kv_dtype, .pages = pool / page_bytes,
                                  .seqs_max = sizing->seqs_max, .rows_max = sizing->rows_max,
                                  .tokens_max = tokens, .threads_beside = sizing->threads_beside,
                                  .hosted = !sizing->host_memory,
                                  .factor_bytes = sizing->factor_bytes };
    if (room.pages > INT32_MAX) room.pages = INT32_MAX; /* page numbers are int32 */
    return sf_account_cache(setup, stack, &rank->share, &room, out);
}

sf_status sf_size_need(const struct sf_sizing *sizing, const struct sf_setup *setup,
                       const struct sf_stack *stack, const struct sf_plan_rank *rank,
                       int32_t tokens, struct sf_plan_need *out)
{
    struct sf_cost cost;
    SF_TRY(sf_account_sequence(setup, stack, &rank->lanes, sizing->kv_dtype, tokens, tokens,
                               &cost));
    int64_t pool = sizing->kv_memory != SF_OPT_AUTO && sizing->kv_memory > cost.bytes_peak
                   ? sizing->kv_memory : cost.bytes_peak;
    struct sf_cache_bytes beside;
    SF_TRY(cache_beside(sizing, setup, stack, rank, pool, tokens, &beside));
    int64_t running = rank->workspace_bytes + pool + sf_cache_bytes_sum(&beside);
    *out = (struct sf_plan_need){
        .total = rank->weight_bytes + (running > rank->load_bytes ? running : rank->load_bytes),
        .pages = cost.bytes_peak, .beside = sf_cache_bytes_sum(&beside)
    };
    return SF_OK;
}

/* All that the sequences could use, or a share of what is left, whatever the cache takes beside it
 * being part of that share; `peak`: of one sequence. */
static sf_status auto_pool(const struct sf_sizing *sizing, const struct sf_setup *setup,
                           const struct sf_stack *stack, const struct sf_plan_rank *rank,
                           int64_t peak, int64_t *pool_out)
{
    int64_t left = sf_size_left(sizing, rank), pool;
    struct sf_cache_bytes beside;
    if (__builtin_mul_overflow(peak, (int64_t)sizing->seqs_max, &pool)) pool = INT64_MAX;
    if (left != INT64_MAX) {
        int64_t share = (int64_t)(pool_share * (double)left);
        if (pool > share) pool = share;
        if (pool < 0) pool = 0;
        /* A smaller pool has less beside it. */
        SF_TRY(cache_beside(sizing, setup, stack, rank, pool, sizing->tokens_max, &beside));
        if (pool > share - sf_cache_bytes_sum(&beside)) pool = share - sf_cache_bytes_sum(&beside);
        /* One whole sequence, if that is all there is room for. */
        SF_TRY(cache_beside(sizing, setup, stack, rank, peak, sizing->tokens_max, &beside));
        left -= sf_cache_bytes_sum(&beside);
    }
    if (pool < peak) pool = left < peak ? left : peak;
    *pool_out = pool < 0 ? 0 : pool;
    return SF_OK;
}

sf_status sf_size_pool(const struct sf_sizing *sizing, const struct sf_setup *setup,
                       const struct sf_stack *stack, struct sf_plan_rank *rank)
{
    struct sf_cost cost;
    SF_TRY(sf_account_sequence(setup, stack, &rank->lanes, sizing->kv_dtype, sizing->tokens_max,
                               sizing->tokens_max, &cost));
    rank->page_bytes = sf_account_page_bytes(setup, &rank->lanes, sizing->kv_dtype);
    SF_ASSERT(rank->page_bytes > 0);

    int64_t pool = sizing->kv_memory;
    if (pool == SF_OPT_AUTO) SF_TRY(auto_pool(sizing, setup, stack, rank, cost.bytes_peak, &pool));
    rank->pages = pool / rank->page_bytes;
    if (rank->pages > INT32_MAX) rank->pages = INT32_MAX;       /* page numbers are int32 */
    rank->pool_bytes = rank->pages * rank->page_bytes;
    SF_TRY(cache_beside(sizing, setup, stack, rank, rank->pool_bytes, sizing->tokens_max,
                        &rank->cache));
    rank->kv_bytes_per_token = exact_bytes_per_token(setup, &rank->lanes, sizing->kv_dtype);
    int32_t lanes = rank->lanes.lane_ptr[rank->lanes.layers];
    if (lanes > 0) rank->max_kv_tokens = rank->pages / lanes * setup->page_slots;
    return SF_OK;
}
