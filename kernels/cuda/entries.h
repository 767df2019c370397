/* kernels/cuda/entries.h: what each file of the backend brings: how it fills the table, or the
 * entries themselves. */
#ifndef SHEAF_KERNELS_CUDA_ENTRIES_H
#define SHEAF_KERNELS_CUDA_ENTRIES_H
#include "kernels/cuda/cuda.h"
SF_C_BEGIN

void sf_cuda_rows_fill(struct sf_kernels *);        /* rmsnorm .. argmax */
void sf_cuda_mat_fill(struct sf_kernels *);         /* mat_bytes .. matmul_leaves */
void sf_cuda_cache_fill(struct sf_kernels *);       /* kv_clear .. kv_read */
void sf_cuda_rebuild_fill(struct sf_kernels *);     /* kv_rebuild, copy_columns */
void sf_cuda_factor_fill(struct sf_kernels *);      /* factor_bytes, factor */
/* Of attention, of one device: how its last job was cut (attend.cu). */
sf_status sf_cuda_cut_create(struct sf_cuda *);
void      sf_cuda_cut_destroy(struct sf_cuda *);
void sf_cuda_attend(struct sf_device *, const struct sf_attend_job *);
void sf_cuda_columns(struct sf_device *, const struct sf_columns_job *);
void sf_cuda_choose(struct sf_device *, const struct sf_choose_job *);
void sf_cuda_pick(struct sf_device *, const struct sf_pick_job *);

SF_C_END
#endif
