/* kernels/ref/ref.h: the entries of the reference backend, by file.  Every function has the meaning
 * of the entry of kernels.h that bears its name. */
#ifndef SHEAF_KERNELS_REF_REF_H
#define SHEAF_KERNELS_REF_REF_H
#include "kernels/device.h"

void sf_ref_rows_fill(struct sf_kernels *);     /* rmsnorm .. argmax */
void sf_ref_mat_fill(struct sf_kernels *);      /* mat_bytes .. matmul_leaves */
void sf_ref_cache_fill(struct sf_kernels *);    /* kv_clear .. kv_read */
void sf_ref_factor_fill(struct sf_kernels *);   /* factor_bytes .. cholesky */
void sf_ref_attend(struct sf_device *, const struct sf_attend_job *);
void sf_ref_choose(struct sf_device *, const struct sf_choose_job *);
void sf_ref_pick(struct sf_device *, const struct sf_pick_job *);
void sf_ref_columns(struct sf_device *, const struct sf_columns_job *);
void sf_ref_kv_rebuild(struct sf_device *, const struct sf_lane_part *, const unsigned char *pool,
                       size_t page_bytes, const struct sf_slot_list *, float *k, float *v);
void sf_ref_copy_columns(struct sf_device *, int32_t rows, int32_t x_cols, int32_t cols,
                         const float *x, size_t x_stride, float *y, size_t y_stride);

/* The slots of one part of a lane (-1: its own), as an ordinary lane of an ordinary job. */
struct sf_ref_part {
    struct sf_attend_job job;
    struct sf_lane_job lane;
    int32_t seen;                       /* slots that the row sees, from the first on */
    const struct sf_lane_factors *factors; /* NULL: slots as they are */
    const int32_t *pick;                /* NULL: the slots seen are 0, 1 ..; else those listed */
};
static inline int32_t sf_ref_part_slot(const struct sf_ref_part *one, int32_t i)
{
    return one->pick ? one->pick[i] : i;
}
struct sf_ref_part sf_ref_part_of(const struct sf_attend_job *, const struct sf_lane_job *,
                                  int32_t part, int32_t row);

/* Element e of the key or the value that a slot's row of the basis stands for. */
struct sf_ref_rebuilt {
    const struct sf_layout *layout;     /* of the basis */
    const struct sf_lane_factors *factors;
    const unsigned char *pool, *page;   /* page and slot in it: of the row */
    size_t page_bytes;
    int32_t slot, number;               /* number: the slot's in the part */
};
double sf_ref_rebuilt_key(const struct sf_ref_rebuilt *, int32_t e);
double sf_ref_rebuilt_value(const struct sf_ref_rebuilt *, int32_t e);

/* The logit of a slot, or -inf where it is a hole or outside the window of a row at `row_pos`. */
double sf_ref_logit(const struct sf_attend_job *, const struct sf_lane_job *, int32_t slot,
                    const float *q, int32_t row_pos);

/* What an element of a slot's key (value) is to be multiplied with: its scale, or 1. */
static inline double sf_ref_scale(const struct sf_layout *layout, const unsigned char *page,
                                  int32_t slot, int value)
{
    size_t at = value ? sf_layout_v_scale_offset(layout) : sf_layout_k_scale_offset(layout);
    if (layout->dtype != SF_INT8) return 1;
    return (double)((const float *)(const void *)(page + at))[slot];
}

/* Element i of an array of `dtype`; of int8 the code, which the caller scales. */
static inline float sf_ref_get(enum sf_dtype dtype, const void *array, size_t i)
{
    if (dtype == SF_F32) return ((const float *)array)[i];
    if (dtype == SF_INT8) return (float)((const int8_t *)array)[i];
    uint16_t bits = ((const uint16_t *)array)[i];
    return dtype == SF_BF16 ? sf_bf16_to_f32(bits) : sf_f16_to_f32(bits);
}

static inline void sf_ref_set(enum sf_dtype dtype, void *array, size_t i, double value)
{
    if (dtype == SF_F32) ((float *)array)[i] = (float)value;
    else if (dtype == SF_BF16) ((uint16_t *)array)[i] = sf_f32_to_bf16((float)value);
    else ((uint16_t *)array)[i] = sf_f32_to_f16((float)value);
}

#endif
