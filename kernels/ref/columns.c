/* kernels/ref/columns.c: attention statistics, defined (kernels.h has the formulas).  Row by row;
 * a weight is f64, a logit f32, a mass f32 after every row.  The logits are computed again wherever
 * they are needed, so that no scratch is, but for those that attend has left. */
#include <math.h>
#include "kernels/backend.h"
#include "kernels/ref/ref.h"

/* One row of a lane as the slots of one part of it meet it. */
struct row {
    const struct sf_columns_job *job;
    const struct sf_lane_job *lane;
    struct sf_ref_part as_seen, as_there;   /* with the window, without */
    const float *logit;                 /* of the part, first head, left by attend; or NULL */
    const float *q, *lse;               /* of the lane's first query head */
    int32_t number, pos;
    double mean;                        /* 1 / slots that the row sees, of all parts */
};

static void row_turn_to(struct row *row, int32_t part)
{
    struct sf_attend_job view = sf_columns_view(row->job);
    row->as_seen = sf_ref_part_of(&view, row->lane, part, row->number);
    row->as_there = row->as_seen;
    row->as_there.job.window = 0;
    row->logit = row->lane->logit ? row->lane->logit + sf_lane_logit_first(row->lane, part) : NULL;
}

/* l_hs, -inf where the row does not see the slot */
static float logit_of(const struct row *row, int32_t h, int32_t slot)
{
    const float *q = row->q + (size_t)h * (size_t)row->job->layout.k_dim;
    if (row->logit) return row->logit[(size_t)h * row->lane->logit_stride + (size_t)slot];
    return (float)sf_ref_logit(&row->as_seen.job, &row->as_seen.lane, slot, q, row->pos);
}

static int sees(const struct row *row, const struct sf_ref_part *as, int32_t slot)
{
    return sf_ref_logit(&as->job, &as->lane, slot, row->q, row->pos) > -INFINITY;
}

/* w_s */
static double weight_of(const struct row *row, int32_t slot)
{
    double folded = 0;
    for (int32_t h = 0; h < row->lane->q_heads; h++) {
        double logit = (double)logit_of(row, h, slot);
        double w = row->lse[h] == -INFINITY ? 0 : exp(logit - (double)row->lse[h]);
        folded = row->job->head_fold == SF_HEADS_MAX ? fmax(folded, w) : folded + w;
    }
    return row->job->head_fold == SF_HEADS_MEAN ? folded / row->lane->q_heads : folded;
}

static void slot_change(const struct row *row, int32_t slot, float *mass)
{
    const struct sf_columns_job *job = row->job;
    if (job->fold == SF_ROWS_DECAY) {
        if (sees(row, &row->as_there, slot))
            *mass = (float)((double)*mass * (double)job->decay + weight_of(row, slot));
        return;
    }
    if (!sees(row, &row->as_seen, slot)) return;
    double w = weight_of(row, slot);
    switch (job->fold) {
    case SF_ROWS_SUM: *mass = (float)((double)*mass + w); break;
    case SF_ROWS_MAX: *mass = (float)fmax((double)*mass, w); break;
    case SF_ROWS_BELOW_MEAN: *mass += w < row->mean ? 1 : 0; break;
    case SF_ROWS_DECAY: break;
    }
}

static void row_run(struct row *row)
{
    const struct sf_columns_job *job = row->job;
    int32_t mass_slots = job->mass_slots ? job->mass_slots : job->layout.page_slots;
    int32_t n = 0, live = 0;
    for (int32_t h = 0; h < row->lane->q_heads; h++) live += row->lse[h] > -INFINITY;
    if (live == 0 && job->fold != SF_ROWS_DECAY) return;
    for (int32_t p = -1; job->fold == SF_ROWS_BELOW_MEAN && p < row->lane->parts; p++) {
        row_turn_to(row, p);
        for (int32_t s = 0; s < row->as_seen.seen; s++) n += sees(row, &row->as_seen, s);
    }
    row->mean = n > 0 ? 1.0 / n : 0;
    for (int32_t p = -1; p < row->lane->parts; p++) {
        row_turn_to(row, p);
        int32_t page_slots = row->as_seen.job.layout.page_slots;
        for (int32_t s = 0; s < row->as_seen.seen; s++) {
            size_t page = (size_t)row->as_seen.lane.pages[s / page_slots];
            slot_change(row, s, job->mass + page * (size_t)mass_slots + s % page_slots);
        }
    }
}

void sf_ref_columns(struct sf_device *device, const struct sf_columns_job *job)
{
    (void)device;
    struct row row = { .job = job };
    for (int32_t i = 0; i < job->lanes; i++) {
        const struct sf_lane_job *lane = &job->lane[i];
        row.lane = lane;
        for (int32_t r = 0; r < lane->rows; r++) {
            size_t at = (size_t)(lane->row_first + r), head = (size_t)lane->q_first;
            row.q = job->q + at * job->q_stride + head * (size_t)job->layout.k_dim;
            row.lse = job->lse + at * job->lse_stride + head;
            row.pos = job->window != 0 ? job->row_pos[at] : 0;
            row.number = r;
            row_run(&row);
        }
    }
}
