/* kernels/backend.h: what a backend hands to device.c; internal to kernels/. */
#ifndef SHEAF_KERNELS_BACKEND_H
#define SHEAF_KERNELS_BACKEND_H
#include "kernels/device.h"
SF_C_BEGIN

struct sf_backend {
    const char *name;
    /* Fills k, isa and impl; threads is set already. */
    sf_status (*open)(const struct sf_device_spec *, struct sf_device *);
    void (*close)(struct sf_device *);
    int64_t (*scratch_bytes)(const struct sf_device_spec *);    /* NULL: none */
    void (*describe)(char *text_out, size_t bytes);             /* NULL: nothing to say */
};

/* The job of attend that looks at what a job of columns looks at; it has no outputs. */
static inline struct sf_attend_job sf_columns_view(const struct sf_columns_job *job)
{
    return (struct sf_attend_job){
        .layout = job->layout, .pool = job->pool, .page_bytes = job->page_bytes, .q = job->q,
        .q_stride = job->q_stride, .scale = job->scale, .window = job->window,
        .row_pos = job->row_pos, .lane = job->lane, .lanes = job->lanes
    };
}

/* The slots of a lane that lie in one layout: its own (part -1) or those of a part. */
static inline struct sf_lane_part sf_lane_part_of(const struct sf_layout *layout,
                                                  const struct sf_lane_job *lane, int32_t part)
{
    if (part >= 0) return lane->part[part];
    return (struct sf_lane_part){ layout, lane->pages, lane->slots };
}
/* How many of them the row sees, from the first on. */
static inline int32_t sf_lane_part_seen(const struct sf_lane_job *lane, int32_t part, int32_t row)
{
    return part >= 0 ? lane->part[part].slots : lane->slots - lane->rows + row + 1;
}

extern const struct sf_backend sf_backend_ref, sf_backend_cpu;

SF_C_END
#endif
