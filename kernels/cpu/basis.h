/* kernels/cpu/basis.h: parts of lanes whose slots are rows of a basis (kernels.h: sf_lane_factors),
 * or of which only picked slots are read, for attend.c. */
#ifndef SHEAF_KERNELS_CPU_BASIS_H
#define SHEAF_KERNELS_CPU_BASIS_H
#include "kernels/cpu/tile.h"

/* Floats that one vector of a tile needs for such parts of the lane, beside those of the others,
 * and those of the thread.  0: the lane has none. */
size_t sf_basis_vector_floats(const struct sf_lane_job *);
size_t sf_basis_thread_floats(const struct sf_attend_job *, const struct sf_lane_job *);
/* The state of the tile over slots (or picks) first .. end - 1 of one split of such a part. */
void sf_basis_split(const struct sf_cpu_isa *, const struct sf_attend_job *, const struct sf_tile *,
                    int32_t part, struct sf_gathered *, int32_t first, int32_t end, float *logits,
                    float *floats, struct sf_partial into);

/* ---- gather.c ------------------------------------------------------------------------------- */
struct sf_picked {                      /* some picks of a part */
    const struct sf_lane_part *part;
    const unsigned char *pool;
    size_t page_bytes;
    const int32_t *pick; int32_t n;
};
/* Elements first .. first + elements - 1 of their keys as blocks of a page have them, one behind
 * the other; `first` is even. */
void sf_gather_keys(const struct sf_picked *, int32_t first, int32_t elements, unsigned char *out,
                    const unsigned char **block_out);
/* Their values, which lie in these pages, one row behind the other, and biases and positions, up
 * to a whole block. */
void sf_gather_values(const struct sf_picked *, const struct sf_layout *, const int32_t *pages,
                      unsigned char *out);
void sf_gather_marks(const struct sf_picked *, float *bias, int32_t *pos);

#endif
