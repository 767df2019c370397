/* kernels/ref/attend.c: attention over paged lanes, defined.
 *
 *   l_s = scale * (q . k_s) + bias_s      for the slots s that the row sees, else nothing
 *   M   = max_s l_s,  Z = sum_s e^(l_s - M),  out = sum_s e^(l_s - M) v_s / Z,  lse = M + ln Z
 *
 * A row that sees no live slot gives out = 0 and lse = -inf.  The logits are computed again for
 * every pass over the slots, so that no scratch is needed; f64 throughout. */
#include <math.h>
#include "kernels/ref/ref.h"

enum { CHUNK = 64 };                    /* value elements accumulated at a time */

struct view {                           /* one slot as a query sees it */
    const unsigned char *page;
    int32_t slot;
};

static struct view view_of(const struct sf_attend_job *job, const struct sf_lane_job *lane,
                           int32_t slot)
{
    size_t page = (size_t)lane->pages[slot / job->layout.page_slots];
    return (struct view){ job->pool + page * job->page_bytes, slot % job->layout.page_slots };
}

double sf_ref_logit(const struct sf_attend_job *job, const struct sf_lane_job *lane, int32_t slot,
                    const float *q, int32_t row_pos)
{
    const struct sf_layout *layout = &job->layout;
    struct view at = view_of(job, lane, slot);
    const float *bias = (const float *)(const void *)(at.page + sf_layout_bias_offset(layout));
    const int32_t *pos = (const int32_t *)(const void *)(at.page + sf_layout_pos_offset(layout));
    if (job->window != 0 && (int64_t)pos[at.slot] <= (int64_t)row_pos - job->window)
        return -INFINITY;
    if (bias[at.slot] == -INFINITY) return -INFINITY;
    double dot = 0;
    for (int32_t e = 0; e < layout->k_dim; e++)
        dot += (double)q[e] * (double)sf_ref_get(layout->dtype, at.page,
                                                 sf_layout_k_index(layout, at.slot, e));
    return (double)job->scale * dot + (double)bias[at.slot];
}

/* out_e for CHUNK elements e from `first` on. */
static void weigh_values(const struct sf_attend_job *job, const struct sf_lane_job *lane,
                         int32_t seen, const float *q, int32_t row_pos, double max, double sum,
                         int32_t first, size_t out)
{
    const struct sf_layout *layout = &job->layout;
    size_t v_offset = sf_layout_v_offset(layout) / sf_dtype_bytes(layout->dtype);
    int32_t count = layout->v_dim - first < CHUNK ? layout->v_dim - first : CHUNK;
    double value[CHUNK] = { 0 };
    for (int32_t s = 0; sum > 0 && s < seen; s++) {
        struct view at = view_of(job, lane, s);
        double weight = exp(sf_ref_logit(job, lane, s, q, row_pos) - max);
        size_t i = v_offset + (size_t)at.slot * (size_t)layout->v_dim + (size_t)first;
        for (int32_t e = 0; weight > 0 && e < count; e++)
            value[e] += weight * (double)sf_ref_get(layout->dtype, at.page, i + (size_t)e);
    }
    for (int32_t e = 0; e < count; e++)
        sf_ref_set(job->out_dtype, job->out, out + (size_t)(first + e),
                   sum > 0 ? value[e] / sum : 0);
}

static void attend_one(const struct sf_attend_job *job, const struct sf_lane_job *lane,
                       int32_t seen, int32_t row, int32_t head)
{
    const struct sf_layout *layout = &job->layout;
    const float *q = job->q + (size_t)row * job->q_stride + (size_t)head * (size_t)layout->k_dim;
    size_t out = (size_t)row * job->out_stride + (size_t)head * job->out_head_stride;
    int32_t row_pos = job->window != 0 ? job->row_pos[row] : 0;
    double max = -INFINITY, sum = 0;
    for (int32_t s = 0; s < seen; s++)
        max = fmax(max, sf_ref_logit(job, lane, s, q, row_pos));
    for (int32_t s = 0; max > -INFINITY && s < seen; s++)
        sum += exp(sf_ref_logit(job, lane, s, q, row_pos) - max);
    for (int32_t first = 0; first < layout->v_dim; first += CHUNK)
        weigh_values(job, lane, seen, q, row_pos, max, sum, first, out);
    if (job->lse)
        job->lse[(size_t)row * job->lse_stride + (size_t)head] =
            sum > 0 ? (float)(max + log(sum)) : -INFINITY;
}

void sf_ref_attend(struct sf_device *device, const struct sf_attend_job *job)
{
    (void)device;
    for (int32_t i = 0; i < job->lanes; i++) {
        const struct sf_lane_job *lane = &job->lane[i];
        for (int32_t r = 0; r < lane->rows; r++)
            for (int32_t h = 0; h < lane->q_heads; h++)
                attend_one(job, lane, lane->slots - lane->rows + r + 1, lane->row_first + r,
                           lane->q_first + h);
    }
}
