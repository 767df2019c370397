/* kernels/cpu/basis.h: parts of lanes whose slots are rows of a basis (kernels.h: sf_lane_factors),
 * for attend.c. */
#ifndef SHEAF_KERNELS_CPU_BASIS_H
#define SHEAF_KERNELS_CPU_BASIS_H
#include "kernels/cpu/tile.h"

/* Floats that one vector of a tile needs for such parts of the lane, beside those of the others,
 * and those of the thread.  0: the lane has none. */
size_t sf_basis_vector_floats(const struct sf_lane_job *);
size_t sf_basis_thread_floats(const struct sf_attend_job *, const struct sf_lane_job *);
/* The state of the tile over slots first .. end - 1 (of one split) of a part with factors. */
void sf_basis_split(const struct sf_cpu_isa *, const struct sf_attend_job *, const struct sf_tile *,
                    int32_t part, struct sf_gathered *, int32_t first, int32_t end, float *logits,
                    float *floats, struct sf_partial into);

#endif
