/* kernels/ref/attend.c: attention over paged lanes, defined.
 *
 *   l_s = scale * (q . k_s) + bias_s      for the slots s that the row sees, else nothing
 *   (those of the lane's parts behind its own, each read in its layout)
 *   M   = max_s l_s,  Z = sum_s e^(l_s - M),  out = sum_s e^(l_s - M) v_s / Z,  lse = M + ln Z
 *
 * A row that sees no live slot gives out = 0 and lse = -inf.  Where a lane of one row wants its
 * logits left, they are the l_s, rounded to f32, and -inf for all other slots.  The logits are
 * computed again for every pass over the slots, so that no scratch is needed; f64 throughout. */
#include <math.h>
#include "kernels/backend.h"
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

struct sf_ref_part sf_ref_part_of(const struct sf_attend_job *job, const struct sf_lane_job *lane,
                                  int32_t part, int32_t row)
{
    struct sf_lane_part from = sf_lane_part_of(&job->layout, lane, part);
    struct sf_ref_part one = { *job, *lane, sf_lane_part_seen(lane, part, row), from.factors,
                               from.pick };
    one.job.layout = *from.layout;
    one.lane.pages = from.pages;
    one.lane.slots = from.slots;
    return one;
}

/* The slot's bias, or -inf where the row does not see it. */
static double bias_of(const struct sf_attend_job *job, struct view at, int32_t row_pos)
{
    const struct sf_layout *layout = &job->layout;
    const float *bias = (const float *)(const void *)(at.page + sf_layout_bias_offset(layout));
    const int32_t *pos = (const int32_t *)(const void *)(at.page + sf_layout_pos_offset(layout));
    if (job->window != 0 && (int64_t)pos[at.slot] <= (int64_t)row_pos - job->window)
        return -INFINITY;
    return (double)bias[at.slot];
}

double sf_ref_logit(const struct sf_attend_job *job, const struct sf_lane_job *lane, int32_t slot,
                    const float *q, int32_t row_pos)
{
    const struct sf_layout *layout = &job->layout;
    struct view at = view_of(job, lane, slot);
    double bias = bias_of(job, at, row_pos), dot = 0;
    if (bias == -INFINITY) return -INFINITY;
    for (int32_t e = 0; e < layout->k_dim; e++)
        dot += (double)q[e] * (double)sf_ref_get(layout->dtype, at.page,
                                                 sf_layout_k_index(layout, at.slot, e));
    dot *= sf_ref_scale(layout, at.page, at.slot, 0);
    return (double)job->scale * dot + bias;
}

static struct sf_ref_rebuilt rebuilt_of(const struct sf_ref_part *one, int32_t slot)
{
    struct view at = view_of(&one->job, &one->lane, slot);
    return (struct sf_ref_rebuilt){ &one->job.layout, one->factors, one->job.pool, at.page,
                                    one->job.page_bytes, at.slot, slot };
}

/* As sf_ref_logit, of slot number i that the row sees of any part. */
static double part_logit(const struct sf_ref_part *one, int32_t i, const float *q, int32_t row_pos)
{
    int32_t slot = sf_ref_part_slot(one, i);
    if (slot < 0) return -INFINITY;
    if (!one->factors) return sf_ref_logit(&one->job, &one->lane, slot, q, row_pos);
    struct sf_ref_rebuilt row = rebuilt_of(one, slot);
    double bias = bias_of(&one->job, view_of(&one->job, &one->lane, slot), row_pos), dot = 0;
    for (int32_t e = 0; bias > -INFINITY && e < one->factors->layout->k_dim; e++)
        dot += (double)q[e] * sf_ref_rebuilt_key(&row, e);
    return (double)one->job.scale * dot + bias;
}

/* value_e += sum_s e^(l_s - M) v_s over one part, for `count` elements e from `first` on. */
static void weigh_values(const struct sf_ref_part *one, const float *q, int32_t row_pos,
                         double max, int32_t first, int32_t count, double *value)
{
    const struct sf_layout *layout = &one->job.layout;
    size_t v_offset = sf_layout_v_offset(layout) / sf_dtype_bytes(layout->dtype);
    for (int32_t s = 0; s < one->seen; s++) {
        double weight = exp(part_logit(one, s, q, row_pos) - max);
        if (weight == 0) continue;
        struct view at = view_of(&one->job, &one->lane, sf_ref_part_slot(one, s));
        struct sf_ref_rebuilt row = rebuilt_of(one, sf_ref_part_slot(one, s));
        if (!one->factors) weight *= sf_ref_scale(layout, at.page, at.slot, 1);
        size_t i = v_offset + (size_t)at.slot * (size_t)layout->v_dim + (size_t)first;
        for (int32_t e = 0; e < count; e++)
            value[e] += weight * (one->factors
                                      ? sf_ref_rebuilt_value(&row, first + e)
                                      : (double)sf_ref_get(layout->dtype, at.page, i + (size_t)e));
    }
}

static void leave_logits(const struct sf_attend_job *job, const struct sf_lane_job *lane, int32_t h,
                         const float *q, int32_t row_pos)
{
    float *to = lane->logit + (size_t)h * lane->logit_stride;
    size_t all = sf_lane_logit_first(lane, lane->parts);
    SF_ASSERT(lane->rows == 1 && all <= lane->logit_stride);
    for (size_t i = 0; i < all; i++) to[i] = -INFINITY;
    for (int32_t p = -1; p < lane->parts; p++) {
        struct sf_ref_part one = sf_ref_part_of(job, lane, p, 0);
        SF_ASSERT(!one.factors && !one.pick); /* columns takes no such part */
        for (int32_t s = 0; s < one.seen; s++)
            to[sf_lane_logit_first(lane, p) + (size_t)s] =
                (float)sf_ref_logit(&one.job, &one.lane, s, q, row_pos);
    }
}

static void attend_one(const struct sf_attend_job *job, const struct sf_lane_job *lane, int32_t r,
                       int32_t h)
{
    const struct sf_layout *layout = &job->layout;
    int32_t row = lane->row_first + r, head = lane->q_first + h;
    const float *q = job->q + (size_t)row * job->q_stride + (size_t)head * (size_t)layout->k_dim;
    size_t out = (size_t)row * job->out_stride + (size_t)head * job->out_head_stride;
    int32_t row_pos = job->window != 0 ? job->row_pos[row] : 0;
    double max = -INFINITY, sum = 0;
    if (lane->logit) leave_logits(job, lane, h, q, row_pos);
    for (int32_t p = -1; p < lane->parts; p++) {
        struct sf_ref_part one = sf_ref_part_of(job, lane, p, r);
        for (int32_t s = 0; s < one.seen; s++)
            max = fmax(max, part_logit(&one, s, q, row_pos));
    }
    for (int32_t p = -1; max > -INFINITY && p < lane->parts; p++) {
        struct sf_ref_part one = sf_ref_part_of(job, lane, p, r);
        for (int32_t s = 0; s < one.seen; s++)
            sum += exp(part_logit(&one, s, q, row_pos) - max);
    }
    for (int32_t first = 0; first < layout->v_dim; first += CHUNK) {
        double value[CHUNK] = { 0 };
        int32_t count = layout->v_dim - first < CHUNK ? layout->v_dim - first : CHUNK;
        for (int32_t p = -1; sum > 0 && p < lane->parts; p++) {
            struct sf_ref_part one = sf_ref_part_of(job, lane, p, r);
            weigh_values(&one, q, row_pos, max, first, count, value);
        }
        for (int32_t e = 0; e < count; e++)
            sf_ref_set(job->out_dtype, job->out, out + (size_t)(first + e),
                       sum > 0 ? value[e] / sum : 0);
    }
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
                attend_one(job, lane, r, h);
    }
}
