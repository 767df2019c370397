/* kernels/cuda/lanes.cu: the host side of lanes.h. */
#include "kernels/cuda/lanes.h"

static int32_t pages_of(const struct sf_layout *layout, const struct sf_lane_job *lane)
{
    return (lane->slots + layout->page_slots - 1) / layout->page_slots;
}

/* Positions that a job brings: up to its last row. */
static size_t rows_of(const struct sf_attend_job *job)
{
    size_t rows = 0;
    for (int32_t i = 0; job->window != 0 && i < job->lanes; i++) {
        size_t end = (size_t)(job->lane[i].row_first + job->lane[i].rows);
        if (job->lane[i].rows > 0 && end > rows) rows = end;
    }
    return rows;
}

/*     lanes [][6] | pages [] | row_pos [] | extra           each part aligned to 16 bytes */
void sf_cuda_pack(struct sf_cuda *cuda, const struct sf_attend_job *job, size_t extra,
                  struct sf_cuda_packed *out)
{
    size_t pages = 0, rows = rows_of(job);
    for (int32_t i = 0; i < job->lanes; i++)
        if (job->lane[i].rows > 0) pages += (size_t)pages_of(&job->layout, &job->lane[i]);
    size_t pages_at = sf_cuda_part((size_t)job->lanes * sizeof(struct sf_cuda_lane));
    size_t rows_at = pages_at + sf_cuda_part(pages * sizeof(int32_t));
    out->extra_at = rows_at + sf_cuda_part(rows * sizeof(int32_t));
    out->block = sf_cuda_stage(cuda, out->extra_at + extra);
    struct sf_cuda_lane *lanes = (struct sf_cuda_lane *)(void *)out->block.host;
    int32_t *page = (int32_t *)(void *)(out->block.host + pages_at), used = 0;
    for (int32_t i = 0; i < job->lanes; i++) {
        const struct sf_lane_job *lane = &job->lane[i];
        SF_ASSERT(lane->parts == 0);    /* not built here yet */
        lanes[i] = { used, lane->slots, lane->row_first, lane->rows, lane->q_first,
                     lane->q_heads };
        for (int32_t p = 0; lane->rows > 0 && p < pages_of(&job->layout, lane); p++)
            page[used++] = lane->pages[p];
    }
    if (rows > 0) memcpy(out->block.host + rows_at, job->row_pos, rows * sizeof(int32_t));
    const unsigned char *twin = out->block.device;
    out->view = { job->layout, job->pool, job->page_bytes, job->q, job->q_stride, job->scale,
                  job->window, (const int32_t *)(const void *)twin,
                  (const int32_t *)(const void *)(twin + pages_at),
                  (const int32_t *)(const void *)(twin + rows_at) };
}
