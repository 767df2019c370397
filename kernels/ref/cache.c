/* kernels/ref/cache.c: slots in raw pages (layout.h), element by element. */
#include <math.h>
#include <string.h>
#include "kernels/ref/ref.h"

/* One slot of a lane: its page and its number there. */
struct place {
    unsigned char *page;
    int32_t slot;
};

static struct place place_of(const struct sf_layout *layout, const unsigned char *pool,
                             size_t page_bytes, const int32_t *pages, int32_t slot)
{
    size_t page = (size_t)pages[slot / layout->page_slots];
    return (struct place){ (unsigned char *)pool + page * page_bytes, slot % layout->page_slots };
}

static float *bias_of(const struct sf_layout *layout, struct place at)
{
    return (float *)(void *)(at.page + sf_layout_bias_offset(layout)) + at.slot;
}

static int32_t *pos_of(const struct sf_layout *layout, struct place at)
{
    return (int32_t *)(void *)(at.page + sf_layout_pos_offset(layout)) + at.slot;
}

static void *values_of(const struct sf_layout *layout, struct place at)
{
    return at.page + sf_layout_v_offset(layout) +
           (size_t)at.slot * (size_t)layout->v_dim * sf_dtype_bytes(layout->dtype);
}

static void kv_clear(struct sf_device *device, const struct sf_layout *layout, unsigned char *page)
{
    (void)device;
    memset(page, 0, sf_layout_page_bytes(layout));
    for (int32_t s = 0; s < layout->page_slots && layout->k_dim > 0; s++) {
        *bias_of(layout, (struct place){ page, s }) = -INFINITY;
        *pos_of(layout, (struct place){ page, s }) = -1;
    }
}

/* One vector in int8, as layout.h writes it; stride: of its codes, in elements. */
static void put_int8(const float *x, int32_t n, unsigned char *page, size_t scale_offset,
                     int32_t slot, int8_t *code, size_t stride)
{
    float most = 0, *scale = (float *)(void *)(page + scale_offset) + slot;
    int nan = 0;
    for (int32_t e = 0; e < n; e++) {
        most = fmaxf(most, fminf(fabsf(x[e]), 0x1p127f));
        nan |= isnan(x[e]);
    }
    int none = nan || most < 0x1p-100f;
    *scale = nan ? NAN : none ? 0 : most / 127;
    for (int32_t e = 0; e < n; e++) {
        float inside = fmaxf(-0x1p127f, fminf(x[e], 0x1p127f));
        code[(size_t)e * stride] = none ? 0 : (int8_t)rintf(inside * (127 / most));
    }
}

static void put_slot_int8(const struct sf_layout *layout, struct place at, const float *k,
                          const float *v)
{
    size_t block = sf_layout_k_index(layout, at.slot, 0);
    if (layout->k_dim > 0)
        put_int8(k, layout->k_dim, at.page, sf_layout_k_scale_offset(layout), at.slot,
                 (int8_t *)at.page + block, SF_BLOCK_SLOTS);
    if (layout->v_dim > 0)
        put_int8(v, layout->v_dim, at.page, sf_layout_v_scale_offset(layout), at.slot,
                 values_of(layout, at), 1);
}

static double in_range(enum sf_dtype dtype, float value)
{
    if (dtype == SF_F16 && value > SF_F16_MAX) return (double)SF_F16_MAX;
    if (dtype == SF_F16 && value < -SF_F16_MAX) return (double)-SF_F16_MAX;
    return (double)value;
}

static void kv_append(struct sf_device *device, const struct sf_append_job *job)
{
    (void)device;
    const struct sf_layout *layout = &job->layout;
    for (int32_t i = 0; i < job->lanes; i++) {
        const struct sf_append_lane *lane = &job->lane[i];
        for (int32_t r = 0; r < lane->rows; r++) {
            size_t row = (size_t)lane->row_first + (size_t)r, head = (size_t)lane->head;
            const float *k = job->k + row * job->k_stride + head * (size_t)layout->k_dim;
            const float *v = job->v + row * job->v_stride + head * (size_t)layout->v_dim;
            struct place at = place_of(layout, job->pool, job->page_bytes, lane->pages,
                                       lane->slot_first + r);
            if (layout->dtype == SF_INT8) put_slot_int8(layout, at, k, v);
            for (int32_t e = 0; layout->dtype != SF_INT8 && e < layout->k_dim; e++)
                sf_ref_set(layout->dtype, at.page, sf_layout_k_index(layout, at.slot, e),
                           in_range(layout->dtype, k[e]));
            for (int32_t e = 0; layout->dtype != SF_INT8 && e < layout->v_dim; e++)
                sf_ref_set(layout->dtype, values_of(layout, at), (size_t)e,
                           in_range(layout->dtype, v[e]));
            if (layout->k_dim == 0) continue;
            *bias_of(layout, at) = job->bias ? job->bias[row] : 0;
            *pos_of(layout, at) = job->pos[row];
        }
    }
}

static void kv_move(struct sf_device *device, const struct sf_layout *layout, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *from,
                    const struct sf_slot_list *to)
{
    (void)device;
    SF_ASSERT(from->n == to->n && layout->k_dim > 0);
    size_t width = sf_dtype_bytes(layout->dtype);
    for (int32_t i = 0; i < from->n; i++) {
        struct place a = place_of(layout, pool, page_bytes, from->pages, from->slot[i]);
        struct place b = place_of(layout, pool, page_bytes, to->pages, to->slot[i]);
        if (a.page == b.page && a.slot == b.slot) continue;
        for (int32_t e = 0; e < layout->k_dim; e++)
            memcpy(b.page + sf_layout_k_index(layout, b.slot, e) * width,
                   a.page + sf_layout_k_index(layout, a.slot, e) * width, width);
        memcpy(values_of(layout, b), values_of(layout, a), (size_t)layout->v_dim * width);
        for (size_t at = sf_layout_k_scale_offset(layout); at < sf_layout_bias_offset(layout);
             at += (size_t)layout->page_slots * sizeof(float))
            memcpy(b.page + at + (size_t)b.slot * sizeof(float),
                   a.page + at + (size_t)a.slot * sizeof(float), sizeof(float));
        *bias_of(layout, b) = *bias_of(layout, a);
        *pos_of(layout, b) = *pos_of(layout, a);
    }
}

static void kv_drop(struct sf_device *device, const struct sf_layout *layout, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *list)
{
    (void)device;
    SF_ASSERT(layout->k_dim > 0);
    for (int32_t i = 0; i < list->n; i++) {
        struct place at = place_of(layout, pool, page_bytes, list->pages, list->slot[i]);
        *bias_of(layout, at) = -INFINITY;
        *pos_of(layout, at) = -1;
    }
}

static void kv_read(struct sf_device *device, const struct sf_layout *layout,
                    const unsigned char *pool, size_t page_bytes, const struct sf_slot_list *list,
                    float *k, float *v, float *bias_host, int32_t *pos_host)
{
    (void)device;
    size_t k_dim = (size_t)layout->k_dim, v_dim = (size_t)layout->v_dim;
    for (size_t i = 0; i < (size_t)list->n; i++) {
        struct place at = place_of(layout, pool, page_bytes, list->pages, list->slot[i]);
        float k_scale = (float)sf_ref_scale(layout, at.page, at.slot, 0);
        float v_scale = (float)sf_ref_scale(layout, at.page, at.slot, 1);
        for (size_t e = 0; k && e < k_dim; e++)
            k[i * k_dim + e] = k_scale * sf_ref_get(layout->dtype, at.page,
                                                    sf_layout_k_index(layout, at.slot, (int32_t)e));
        for (size_t e = 0; v && e < v_dim; e++)
            v[i * v_dim + e] = v_scale * sf_ref_get(layout->dtype, values_of(layout, at), e);
        if (bias_host) bias_host[i] = *bias_of(layout, at);
        if (pos_host) pos_host[i] = *pos_of(layout, at);
    }
}

void sf_ref_cache_fill(struct sf_kernels *k)
{
    k->kv_clear = kv_clear;
    k->kv_append = kv_append;
    k->kv_move = kv_move;
    k->kv_drop = kv_drop;
    k->kv_read = kv_read;
}
