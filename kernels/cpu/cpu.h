/* kernels/cpu/cpu.h: the parts of the CPU backend, by file.  Functions with an entry's name have
 * its meaning (kernels.h). */
#ifndef SHEAF_KERNELS_CPU_CPU_H
#define SHEAF_KERNELS_CPU_CPU_H
#include "base/crew.h"
#include "kernels/cpu/isa.h"
#include "kernels/device.h"

struct sf_products;                     /* product.h */
struct sf_attention;                    /* tile.h */
struct sf_weights_chunk;                /* weights.c */

struct sf_cpu {
    const struct sf_cpu_isa *isa;
    void (*int8_dot)(const struct sf_int8_tile *);      /* isa's, or the one for VNNI */
    struct sf_products *products;
    struct sf_attention *attention;
    struct sf_weights_chunk *chunks;
};
static inline struct sf_cpu *sf_cpu_of(const struct sf_device *device) { return device->impl; }

/* matmul, or matmul_leaves where `leaves`, as mat.c hands it on to int8.c and pairs.c. */
struct sf_mat_call {
    const void *x; size_t x_stride;
    float *y; size_t y_stride, leaf_stride;
    int32_t rows;
    int leaves;
};

/* Whether work of about `operations` elementary steps is worth the threads' while. */
static inline int sf_cpu_threads_pay(const struct sf_device *device, int64_t operations)
{
    return device->threads > 1 && operations > 1 << 16;
}

/* sf_crew_run on the device's threads if so many operations pay; piece 0: a few a thread. */
static inline void sf_cpu_share(const struct sf_device *device, int64_t operations, int32_t count,
                                int32_t piece, sf_crew_work *work, void *context)
{
    struct sf_crew *crew = sf_cpu_threads_pay(device, operations) ? device->crew : NULL;
    sf_crew_run(crew, count, piece > 0 ? piece : sf_crew_piece(crew, count), work, context);
}

void sf_cpu_rows_fill(struct sf_kernels *);     /* rmsnorm .. argmax */
void sf_cpu_mat_fill(struct sf_kernels *, enum sf_isa);  /* mat_bytes .. matmul_leaves */
void sf_cpu_cache_fill(struct sf_kernels *);    /* kv_clear .. kv_read */
void sf_cpu_attend(struct sf_device *, const struct sf_attend_job *);
void sf_cpu_columns(struct sf_device *, const struct sf_columns_job *);
void sf_cpu_pick(struct sf_device *, const struct sf_pick_job *);
void sf_cpu_kv_rebuild(struct sf_device *, const struct sf_lane_part *, const unsigned char *pool,
                       size_t page_bytes, const struct sf_slot_list *, float *k, float *v);
void sf_cpu_copy_columns(struct sf_device *, int32_t rows, int32_t x_cols, int32_t cols,
                         const float *x, size_t x_stride, float *y, size_t y_stride);
size_t sf_cpu_factor_bytes(const struct sf_factor_job *);
sf_status sf_cpu_factor(struct sf_device *, const struct sf_factor_job *);
void sf_cpu_product(struct sf_device *, int turned, int32_t rows, int32_t cols, int32_t inner,
                    const float *x, size_t x_stride, const float *y, size_t y_stride, float *out,
                    size_t out_stride);
int sf_cpu_cholesky(struct sf_device *, int32_t n, float shift, float *gram);

/* Memory of a packed matrix: zeros, on huge pages with others.  Not from two threads at once. */
sf_status sf_cpu_weights_take(struct sf_device *, size_t bytes, void **out);
void      sf_cpu_weights_give(struct sf_device *, void *weights, size_t bytes);
void      sf_cpu_weights_close(struct sf_device *);

#endif
