/* kernels/cpu/product.h: single-threaded products of one shape: oneDNN behind a cache of ready
 * primitives.  mat.c cuts matrices into such products; this and product.c are the only files that
 * know oneDNN.
 *
 * Weights of a product (k x cols) lie in strips, in the element order of oneDNN's blocked formats,
 * so that nothing is copied when one runs:
 *
 *     f32, strip 64     [cols / 64][k][64]            BA16a64b, k a multiple of 16
 *     bf16, strip 64    [cols / 64][k / 2][64][2]     BA16a64b2a, k a multiple of 32
 *     strip 0           [k][cols]                     any k; copied by the product where it must
 *
 * x [rows][k] and y [rows][cols] are dense: oneDNN's fast kernels take no other strides (2.6.3
 * answers a wider row with its reference loops, a hundred times slower). */
#ifndef SHEAF_KERNELS_CPU_PRODUCT_H
#define SHEAF_KERNELS_CPU_PRODUCT_H
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "kernels/device.h"

/* Keeps oneDNN to this instruction set; before it has made anything in this process. */
sf_status sf_products_limit(enum sf_isa);

struct sf_products;                     /* of one device */
struct sf_product;

struct sf_product_shape {
    int32_t rows, cols, k, strip;
    enum sf_dtype dtype;                /* of x and the weights: f32 or bf16; y is f32 */
};
/* A thread's buffers: expanded weights, converted x, and a product that is added or cut. */
enum { SF_WIDE_BYTES = 1 << 20, SF_X_BYTES = 1 << 20, SF_Y_BYTES = 1 << 20 };
struct sf_product_scratch { float *wide, *x, *y; };

sf_status sf_products_create(int32_t threads, struct sf_products **out);
void      sf_products_destroy(struct sf_products *);
int64_t   sf_products_bytes(int32_t threads);
void      sf_products_describe(char *text_out, size_t bytes);

/* Strip in which weights are best kept; 0: plain.  SF_UNSUPPORTED if oneDNN has nothing but its
 * reference loops for them here (for f32: nothing at all). */
sf_status sf_products_strip(struct sf_products *, enum sf_dtype, int32_t cols, int32_t k,
                            int32_t *strip_out);
/* From the cache, made where it is not there yet (up to a millisecond).  Not from two threads. */
sf_status sf_products_get(struct sf_products *, const struct sf_product_shape *,
                          struct sf_product **out);
/* y = x w on thread `thread` of the device, for different threads at once. */
void      sf_product_run(struct sf_products *, const struct sf_product *, int32_t thread,
                         const void *x, const void *weights, float *y);
struct sf_product_scratch sf_products_scratch(struct sf_products *, int32_t thread);
/* out [rows][cols] = x [rows][k] y [k][cols] in f32, or with x [k][rows] turned; any strides, on
 * the calling thread, for different threads at once. */
void      sf_product_plain(int turned, int32_t rows, int32_t cols, int32_t k, const float *x,
                           size_t x_stride, const float *y, size_t y_stride, float *out,
                           size_t out_stride);

#endif
