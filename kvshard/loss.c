/* kvshard/loss.c: what factors leave of the matrix that they stand for, found from the product
 * itself and not from singular values, so that it holds whichever way they were made. */
#include <string.h>

#include "base/memory.h"
#include "kernels/device.h"
#include "kvshard/group.h"

enum { BLOCK_ROWS = 32 };

struct block { float *b, *x, *a, *left; };  /* host: all of b; so many rows of x and a; one row */

static void add_row(const struct sf_factor_job *job, const struct block *block, const float *x,
                    const float *a, int32_t lanes, double *sum)
{
    int32_t dim = job->cols / lanes;
    memcpy(block->left, x, (size_t)job->cols * sizeof *x);
    for (int32_t r = 0; r < job->rank; r++) {
        const float *b = block->b + (size_t)r * job->b_stride, factor = a[r];
        for (int32_t c = 0; c < job->cols; c++) block->left[c] -= factor * b[c];
    }
    for (int32_t c = 0; c < job->cols; c++) {
        sum[2 * (c / dim)] += (double)x[c] * x[c];
        sum[2 * (c / dim) + 1] += (double)block->left[c] * block->left[c];
    }
}

sf_status sf_factor_loss(struct sf_device *device, const struct sf_factor_job *job, int32_t lanes,
                         double *sum)
{
    const struct sf_kernels *k = device->k;
    size_t b_all = (size_t)(job->rank - 1) * job->b_stride + (size_t)job->cols;
    size_t x_all = BLOCK_ROWS * job->x_stride, a_all = BLOCK_ROWS * job->a_stride;
    void *room;
    SF_ASSERT(lanes > 0 && job->cols % lanes == 0);
    memset(sum, 0, 2 * (size_t)lanes * sizeof *sum);
    SF_TRY(sf_alloc((b_all + x_all + a_all + (size_t)job->cols) * sizeof(float),
                    "a look at factors", &room));
    struct block block = { .b = room };
    block.x = block.b + b_all;
    block.a = block.x + x_all;
    block.left = block.a + a_all;
    k->download(device, block.b, job->b, b_all * sizeof(float));
    for (int32_t first = 0; first < job->rows; first += BLOCK_ROWS) {
        int32_t rows = job->rows - first < BLOCK_ROWS ? job->rows - first : BLOCK_ROWS;
        size_t before = (size_t)(rows - 1);
        k->download(device, block.x, job->x + (size_t)first * job->x_stride,
                    (before * job->x_stride + (size_t)job->cols) * sizeof(float));
        k->download(device, block.a, job->a + (size_t)first * job->a_stride,
                    (before * job->a_stride + (size_t)job->rank) * sizeof(float));
        for (int32_t r = 0; r < rows; r++)
            add_row(job, &block, block.x + (size_t)r * job->x_stride,
                    block.a + (size_t)r * job->a_stride, lanes, sum);
    }
    sf_free(room);
    return SF_OK;
}
