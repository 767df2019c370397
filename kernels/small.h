/* kernels/small.h: the small dense problems that low-rank factors come down to, by LAPACK, on the
 * host: what a backend's products have made small is solved here, whatever the backend.
 *
 * Matrices lie row-major; to LAPACK, which counts by columns, x [rows][cols] is x^T.  Room comes
 * from the caller's heap, taken once and used by each run.  The serial OpenBLAS below LAPACK keeps
 * its buffers for one thread of the process: calls take turns (ranks may be threads).  SF_INVALID
 * where what came in has overflowed, SF_INTERNAL where LAPACK finds nothing. */
#ifndef SHEAF_KERNELS_SMALL_H
#define SHEAF_KERNELS_SMALL_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

/* Hands out memory of the caller in pieces of 64 bytes; with base NULL it counts. */
struct sf_heap { unsigned char *base; size_t used; };
static inline void *sf_heap_take(struct sf_heap *heap, size_t bytes)
{
    unsigned char *block = heap->base != NULL ? heap->base + heap->used : NULL;
    heap->used += (bytes + 63) / 64 * 64;
    return block;
}
static inline float *sf_heap_floats(struct sf_heap *heap, size_t count)
{
    return (float *)sf_heap_take(heap, count * sizeof(float));
}

/* x = u diag(s) v; narrow = min(rows, cols). */
struct sf_svd {
    int32_t rows, cols, narrow, work_count;
    float *x;                           /* [rows][cols], lost */
    float *s, *v, *u;                   /* [narrow], [narrow][cols], [rows][narrow] */
    float *work;
    int32_t *iwork;
};
void      sf_svd_take(struct sf_heap *, int32_t rows, int32_t cols, struct sf_svd *);
sf_status sf_svd_run(struct sf_svd *);

/* Eigenvectors of a symmetric x [n][n], its rows afterwards, by ascending eigenvalue. */
struct sf_eigen {
    int32_t n, work_count, iwork_count;
    float *x, *values, *work;
    int32_t *iwork;
};
void      sf_eigen_take(struct sf_heap *, int32_t n, struct sf_eigen *);
sf_status sf_eigen_run(struct sf_eigen *);

/* Orthonormal columns of y [rows][cols], two ways: y r^-1 with y^T y = r^T r, or Householder. */
struct sf_ortho { float *gram, *tau, *work; int32_t work_count; };
void sf_ortho_take(struct sf_heap *, int32_t rows, int32_t cols, struct sf_ortho *);
/* gram [n][n] becomes r^-1, upper, zeros below, of gram + shift I = r^T r; 0 if there is no r. */
int  sf_ortho_root(int32_t n, float shift, float *gram);
/* The same of gram [cols][cols] = y^T y, with a shift of shift_unit traces.  *near_out: y was
 * orthonormal already, but for rounding. */
int  sf_ortho_invert(struct sf_ortho *, int32_t cols, double shift_unit, int *near_out);
sf_status sf_ortho_householder(struct sf_ortho *, float *y, int32_t rows, int32_t cols);

SF_C_END
#endif
