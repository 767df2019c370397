/* kernels/ref/pick.c: which chunks of a lane its queries want, as kernels.h writes it: every s in
 * f64 and rounded once; then, chunk by chunk, how many are ahead of it.  The softmax of a landmark
 * is worked out anew wherever it is looked at, so that only its maximum and sum are kept. */
#include <math.h>
#include <stdlib.h>

#include "kernels/backend.h"
#include "kernels/ref/ref.h"

static double logit(const struct sf_pick_job *job, const struct sf_pick_lane *lane, int32_t vector,
                    int32_t c)
{
    const struct sf_layout *layout = &job->layout;
    const unsigned char *page =
        job->pool + (size_t)lane->pages[c / layout->page_slots] * job->page_bytes;
    int32_t row = lane->row_first + vector / lane->q_heads;
    int32_t head = lane->q_first + vector % lane->q_heads;
    const float *q = job->q + (size_t)row * job->q_stride + (size_t)head * (size_t)layout->k_dim;
    double dot = 0;
    for (int32_t e = 0; e < layout->k_dim; e++)
        dot += (double)q[e] * (double)sf_ref_get(layout->dtype, page,
                                                 sf_layout_k_index(layout, c % layout->page_slots,
                                                                   e));
    dot *= sf_ref_scale(layout, page, c % layout->page_slots, 0);
    return (double)job->scale * dot;
}

struct softmax { double max, sum; };    /* of one vector: a query head of a row */

static float share_of(const struct sf_pick_job *job, const struct sf_pick_lane *lane,
                      const struct softmax *of, int32_t c)
{
    double s = 0;
    for (int32_t v = 0; v < lane->rows * lane->q_heads; v++)
        s = fmax(s, exp(logit(job, lane, v, c) - of[v].max) / of[v].sum);
    return (float)s;
}

static void pick_lane(const struct sf_pick_job *job, const struct sf_pick_lane *lane)
{
    int32_t vectors = lane->rows * lane->q_heads, *out = lane->slot_out;
    struct softmax *of = malloc((size_t)vectors * sizeof *of);
    SF_ASSERT(of != NULL && lane->landmarks <= SF_LANDMARKS_MAX);
    for (int32_t v = 0; v < vectors; v++) {
        of[v] = (struct softmax){ -INFINITY, 0 };
        for (int32_t c = 0; c < lane->landmarks; c++)
            of[v].max = fmax(of[v].max, logit(job, lane, v, c));
        for (int32_t c = 0; c < lane->landmarks; c++)
            of[v].sum += exp(logit(job, lane, v, c) - of[v].max);
    }
    for (int32_t c = 0; c < lane->landmarks; c++) {
        float s = share_of(job, lane, of, c);
        int32_t ahead = 0;
        for (int32_t d = 0; d < lane->landmarks && ahead < lane->chunks; d++) {
            float other = share_of(job, lane, of, d);
            ahead += other > s || (other == s && d < c);
        }
        if (ahead >= lane->chunks) continue;
        const struct sf_layout *layout = &job->layout;
        const unsigned char *page =
            job->pool + (size_t)lane->pages[c / layout->page_slots] * job->page_bytes;
        const int32_t *pos = (const int32_t *)(const void *)(page + sf_layout_pos_offset(layout));
        for (int32_t j = 0; j < job->chunk_slots; j++)
            *out++ = pos[c % layout->page_slots] * job->chunk_slots + j;
    }
    free(of);
}

void sf_ref_pick(struct sf_device *device, const struct sf_pick_job *job)
{
    (void)device;
    for (int32_t l = 0; l < job->lanes; l++) pick_lane(job, &job->lane[l]);
}
