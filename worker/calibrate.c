/* worker/calibrate.c: rows of the store to feed(), head by head; sums over the ranks. */
#include "worker/calibrate.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/device.h"

enum { SUM_VALUES = 4096 };             /* at a time */
enum { TAPS = 1u << SF_TAP_Q | 1u << SF_TAP_K | 1u << SF_TAP_V | 1u << SF_TAP_ROW_LSE };

struct sf_calib {
    struct sf_calib_spec spec;
    struct sf_env env;
    struct sf_calib_ranks ranks;
    struct sf_buffer q, lse, k, v;      /* on the host; as large as the largest so far */
};

sf_status sf_calib_can(const struct sf_method *method, const struct sf_calib_plan *plan)
{
    if (plan->passes != 1)
        return SF_FAIL(SF_UNSUPPORTED, "method %s is calibrated in %d passes, and more or fewer"
                       " than one is not built yet", method->name, plan->passes);
    if ((plan->taps & ~(uint32_t)TAPS) != 0)
        return SF_FAIL(SF_UNSUPPORTED, "method %s is calibrated by more than queries, keys, values"
                       " and sums of attention, which is not built yet", method->name);
    SF_ASSERT(plan->sequences >= 1 && plan->tokens >= 1);
    return SF_OK;
}

/* ---- sums over the ranks -------------------------------------------------------------------- */
static sf_status sum(const struct sf_calib_ranks *ranks, double *value, size_t n)
{
    const struct sf_calib *calib = (const struct sf_calib *)((const char *)ranks -
                                                             offsetof(struct sf_calib, ranks));
    struct sf_comm *world = calib->spec.world;
    size_t size = (size_t)sf_comm_size(world), most = n < SUM_VALUES ? n : SUM_VALUES;
    double *all = malloc((most > 0 ? most : 1) * size * sizeof *all);
    sf_status status = SF_OK;
    if (all == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the scores of %zu ranks", size);
    for (size_t first = 0; first < n && status == SF_OK; first += most) {
        size_t count = n - first < most ? n - first : most;
        status = sf_comm_allgather(world, value + first, count * sizeof *all, all);
        for (size_t i = 0; i < count && status == SF_OK; i++) {
            double total = 0;
            for (size_t r = 0; r < size; r++) total += all[r * count + i];
            value[first + i] = total;
        }
    }
    free(all);
    return status;
}

/* ---- life ----------------------------------------------------------------------------------- */
sf_status sf_calib_open(const struct sf_calib_spec *spec, struct sf_calib **out)
{
    struct sf_calib *calib = calloc(1, sizeof *calib);
    if (calib == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a calibration");
    calib->spec = *spec;
    calib->env.setup = spec->setup;
    calib->ranks.sum = sum;
    sf_status status = spec->method->calib->open(&calib->env);
    if (status == SF_OK) *out = calib;
    else free(calib);
    return status;
}

void sf_calib_close(struct sf_calib *calib)
{
    if (calib == NULL) return;
    calib->spec.method->calib->close(&calib->env);
    sf_buffer_free(&calib->q);
    sf_buffer_free(&calib->lse);
    sf_buffer_free(&calib->k);
    sf_buffer_free(&calib->v);
    free(calib);
}

/* ---- rows ----------------------------------------------------------------------------------- */
static float *floats(struct sf_buffer *buffer) { return (float *)(void *)buffer->bytes; }

static sf_status reserve(struct sf_buffer *buffer, size_t values)
{
    return sf_buffer_reserve(buffer, (values > 0 ? values : 1) * sizeof(float));
}

/* Rows of a matrix on the device; of the last row only what belongs to it. */
static sf_status fetch(const struct sf_store_rows *rows, const float *from, size_t stride,
                       size_t cols, struct sf_buffer *to)
{
    size_t values = (size_t)(rows->rows - 1) * stride + cols;
    SF_TRY(reserve(to, values));
    rows->device->k->download(rows->device, floats(to), from, values * sizeof(float));
    return SF_OK;
}

static sf_status feed_head(struct sf_calib *calib, const struct sf_store_rows *rows, int32_t number,
                           int32_t q_here)
{
    const struct sf_share *share = calib->spec.share;
    int32_t layer = share->layer_first + rows->layer_local;
    const struct sf_layer_desc *desc = &calib->spec.desc->layer[layer];
    const struct sf_kv_share *kv = &share->kv[share->kv_ptr[rows->layer_local] + number];
    size_t seen = (size_t)rows->pos_first + (size_t)rows->rows;
    int with_v = (calib->spec.taps & 1u << SF_TAP_V) != 0;
    int32_t slots = sf_seq_lane_slots(rows->store, rows->seq, rows->layer_local, number);
    if ((size_t)slots != seen)          /* a method has edited it; calibration runs without */
        return SF_FAIL(SF_INTERNAL, "layer %d head %d holds %d of %zu tokens", layer, kv->kv_head,
                       slots, seen);
    SF_TRY(reserve(&calib->k, seen * (size_t)desc->k_dim));
    SF_TRY(reserve(&calib->v, with_v ? seen * (size_t)desc->v_dim : 0));
    SF_TRY(sf_seq_lane_read(rows->store, rows->seq, rows->layer_local, number, floats(&calib->k),
                            with_v ? floats(&calib->v) : NULL, NULL, NULL));
    const struct sf_taps taps = {
        .sequence = calib->spec.sequence_of(rows->seq_id), .layer = layer,
        .head_global = kv->kv_head, .q_first = kv->q_first, .q_heads = kv->q_count,
        .tokens = rows->prompt, .row_first = rows->pos_first, .rows = rows->rows,
        .k_dim = desc->k_dim, .v_dim = desc->v_dim, .scale = calib->spec.desc->attn_scale,
        .q = floats(&calib->q) + (size_t)q_here * (size_t)desc->k_dim, .q_stride = rows->q_stride,
        .lse = floats(&calib->lse) + q_here, .lse_stride = rows->lse_stride,
        .k = floats(&calib->k), .v = with_v ? floats(&calib->v) : NULL };
    return calib->spec.method->calib->feed(&calib->env, &taps);
}

static sf_status see_rows(void *arg, const struct sf_store_rows *rows)
{
    struct sf_calib *calib = arg;
    const struct sf_share *share = calib->spec.share;
    int32_t local = rows->layer_local, q_heads = sf_share_q_heads(share, local), q_here = 0;
    int32_t k_dim = calib->spec.desc->layer[share->layer_first + local].k_dim;
    if (rows->pos_first >= rows->prompt) return SF_OK;          /* not of what is to be seen */
    SF_TRY(fetch(rows, rows->q, rows->q_stride, (size_t)q_heads * (size_t)k_dim, &calib->q));
    SF_TRY(fetch(rows, rows->lse, rows->lse_stride, (size_t)q_heads, &calib->lse));
    rows->device->k->sync(rows->device);
    for (int32_t n = 0; n < share->kv_ptr[local + 1] - share->kv_ptr[local]; n++) {
        SF_TRY(feed_head(calib, rows, n, q_here));
        q_here += share->kv[share->kv_ptr[local] + n].q_count;
    }
    return SF_OK;
}

struct sf_store_tap sf_calib_tap(struct sf_calib *calib)
{
    return (struct sf_store_tap){ .rows = see_rows, .arg = calib };
}

sf_status sf_calib_reduce(struct sf_calib *calib)
{
    return calib->spec.method->calib->reduce(&calib->env, &calib->ranks);
}

sf_status sf_calib_write(const struct sf_calib *calib, void *cfg, int32_t tokens,
                         struct sf_profile *profile)
{
    return calib->spec.method->calib->write(&calib->env, cfg, tokens, profile);
}
