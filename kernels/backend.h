/* kernels/backend.h: what a backend hands to device.c; internal to kernels/. */
#ifndef SHEAF_KERNELS_BACKEND_H
#define SHEAF_KERNELS_BACKEND_H
#include <string.h>
#include "kernels/device.h"
SF_C_BEGIN

struct sf_backend {
    const char *name;
    /* Fills k, isa and impl; threads is set already. */
    sf_status (*open)(const struct sf_device_spec *, struct sf_device *);
    void (*close)(struct sf_device *);
    int64_t (*scratch_bytes)(const struct sf_device_spec *);    /* NULL: none */
    void (*describe)(char *text_out, size_t bytes);             /* NULL: nothing to say */
    /* Of a plugin, required there: SF_UNSUPPORTED without a GPU. */
    sf_status (*probe)(int32_t local_rank, struct sf_device_facts *out);
};

/* The job of attend that looks at what a job of columns looks at; it has no outputs. */
static inline struct sf_attend_job sf_columns_view(const struct sf_columns_job *job)
{
    struct sf_attend_job view;
    memset(&view, 0, sizeof view);
    view.layout = job->layout;
    view.pool = job->pool;
    view.page_bytes = job->page_bytes;
    view.q = job->q;
    view.q_stride = job->q_stride;
    view.scale = job->scale;
    view.window = job->window;
    view.row_pos = job->row_pos;
    view.lane = job->lane;
    view.lanes = job->lanes;
    return view;
}

/* The slots of a lane that lie in one layout: its own (part -1) or those of a part. */
static inline struct sf_lane_part sf_lane_part_of(const struct sf_layout *layout,
                                                  const struct sf_lane_job *lane, int32_t part)
{
    if (part >= 0) return lane->part[part];
    return (struct sf_lane_part){ layout, lane->pages, lane->slots, NULL, NULL, 0 };
}
/* How many of them the row sees, from the first on, or as many picks. */
static inline int32_t sf_lane_part_seen(const struct sf_lane_job *lane, int32_t part, int32_t row)
{
    if (part < 0) return lane->slots - lane->rows + row + 1;
    return lane->part[part].pick ? lane->part[part].picks : lane->part[part].slots;
}

/* What the program and a plugin know of each other's memory, by its sizes: a plugin has its own
 * under the name sf_backend_layout, [SF_BACKEND_WORDS].  A change that leaves all of them as they
 * are, such as two entries of the table that change places, needs another version. */
enum { SF_BACKEND_VERSION = 1, SF_BACKEND_WORDS = 21 };
#define SF_BACKEND_LAYOUT                                                                          \
    { SF_BACKEND_VERSION, sizeof(struct sf_backend), sizeof(struct sf_kernels),                    \
      sizeof(struct sf_device), sizeof(struct sf_device_spec), sizeof(struct sf_device_facts),     \
      sizeof(struct sf_layout), sizeof(struct sf_mat_shape), sizeof(struct sf_lane_factors),       \
      sizeof(struct sf_lane_part), sizeof(struct sf_lane_job), sizeof(struct sf_attend_job),       \
      sizeof(struct sf_columns_job), sizeof(struct sf_append_job), sizeof(struct sf_slot_list),    \
      sizeof(struct sf_pick_lane), sizeof(struct sf_pick_job), sizeof(struct sf_choose_row),       \
      sizeof(struct sf_choice), sizeof(struct sf_choose_job), sizeof(struct sf_factor_job) }

extern const struct sf_backend sf_backend_ref, sf_backend_cpu;

/* The entry `factor` for a backend that leaves a job to the host: no scratch (hosted.c). */
sf_status sf_hosted_factor(struct sf_device *, const struct sf_factor_job *);
extern sf_status (*const sf_backend_hosted_factor)(struct sf_device *,
                                                   const struct sf_factor_job *);

/* The backend of a shared object, libsheaf_NAME.so with '_' for '-', which has it under the name
 * sf_backend_plugin.  It is searched beside the program, in the folder above, in lib/ there, and
 * where the system's loader searches.  It stays loaded; what it shares with the program (status,
 * memory) it finds in the program.  SF_UNSUPPORTED if it is not to be had, or was built with other
 * structs than this program. */
sf_status sf_backend_load(const char *name, const struct sf_backend **backend_out);
/* What its shared object has under this name; NULL for a backend of the program itself. */
const void *sf_backend_symbol(const struct sf_backend *, const char *name);

SF_C_END
#endif
