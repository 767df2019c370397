/* kernels/cpu/factor.c: low-rank factors by LAPACK (kernels/small.h) and blocked products.
 *
 * Products are oneDNN's, cut into blocks of fixed size whatever the threads, so the bits depend on
 * the job alone.
 *
 *   EXACT    x = u s v by xGESDD; v is b's rows, u a's columns, each with sqrt(s)
 *   GRAM     w = x^T x, its last eigenvectors are the rows of b, a = x b^T
 *   RANDOM   y = x omega; orthonormal q; power_iterations times z = x^T q, orthonormal, y = x z,
 *            orthonormal; c = q^T x.  With no oversampling a b = q c is the answer, else the small
 *            singular value decomposition of c is cut to the rank. */
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/product.h"
#include "kernels/small.h"

enum { BLOCK = 128 };

static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static size_t area(int32_t a, int32_t b) { return (size_t)a * (size_t)b; }

/* ---- products in fixed blocks --------------------------------------------------------------- */
struct matrix { float *at; int32_t rows, cols; size_t stride; }; /* [rows][stride] */

static struct matrix dense(float *at, int32_t rows, int32_t cols)
{
    return (struct matrix){ at, rows, cols, (size_t)cols };
}

/* out = x y, or x^T y. */
struct plain { int transposed; struct matrix x, y, out; };

static void multiply_blocks(void *context, int32_t begin, int32_t end, int32_t thread)
{
    const struct plain *p = context;
    (void)thread;
    for (int32_t block = begin; block < end; block++) {
        size_t first = (size_t)block * BLOCK;
        sf_product_plain(p->transposed, least(BLOCK, p->out.rows - block * BLOCK), p->y.cols,
                         p->y.rows, p->x.at + (p->transposed ? first : first * p->x.stride),
                         p->x.stride, p->y.at, p->y.stride, p->out.at + first * p->out.stride,
                         p->out.stride);
    }
}

static void multiply(struct sf_device *device, int transposed, struct matrix x, struct matrix y,
                     struct matrix out)
{
    struct plain p = { transposed, x, y, out };
    sf_cpu_share(device, (int64_t)area(x.rows, x.cols) * y.cols / 8, (out.rows + BLOCK - 1) / BLOCK,
                 1, multiply_blocks, &p);
}

void sf_cpu_product(struct sf_device *device, int turned, int32_t rows, int32_t cols,
                    int32_t inner, const float *x, size_t x_stride, const float *y,
                    size_t y_stride, float *out, size_t out_stride)
{
    struct matrix left = { (float *)(uintptr_t)x, turned ? inner : rows, turned ? rows : inner,
                           x_stride };
    struct matrix right = { (float *)(uintptr_t)y, inner, cols, y_stride };
    struct matrix to = { out, rows, cols, out_stride };
    for (int32_t r = 0; inner == 0 && r < rows; r++)
        memset(out + (size_t)r * out_stride, 0, (size_t)cols * sizeof *out);
    if (inner > 0) multiply(device, turned, left, right, to);
}

/* ---- orthonormal columns -------------------------------------------------------------------- */
struct ortho { struct sf_ortho small; float *other; };

static void ortho_take(struct sf_heap *heap, int32_t rows, int32_t cols, struct ortho *o)
{
    sf_ortho_take(heap, rows, cols, &o->small);
    o->other = sf_heap_floats(heap, area(rows, cols));
}

int sf_cpu_cholesky(struct sf_device *device, int32_t n, float shift, float *gram)
{
    (void)device;
    return sf_ortho_root(n, shift, gram);
}

/* y = y r^-1 with y^T y + shift_unit trace = r^T r; 0 if there is no such r. */
static int cholesky(struct sf_device *device, struct ortho *o, struct matrix y, double shift_unit,
                    int *near_out)
{
    struct matrix gram = dense(o->small.gram, y.cols, y.cols);
    multiply(device, 1, y, y, gram);
    if (!sf_ortho_invert(&o->small, y.cols, shift_unit, near_out)) return 0;
    memcpy(o->other, y.at, area(y.rows, y.cols) * sizeof *y.at);
    multiply(device, 0, dense(o->other, y.rows, y.cols), gram, y);
    return 1;
}

/* Shifted Cholesky QR and two passes without shift; between power iterations, where columns have
 * but to stay apart, the first alone.  Householder (y^T = l q) where a pass fails or the last one
 * still had work to do.  The paper's shift bounds the worst rounding of a Gram matrix and would
 * swamp it in f32; sums in blocks round like a handful of units. */
static sf_status orthonormalise(struct sf_device *device, struct ortho *o, struct matrix y,
                                int between)
{
    int near;
    if (cholesky(device, o, y, 8 * 0x1p-24, &near) &&
        (between || (cholesky(device, o, y, 0, &near) && cholesky(device, o, y, 0, &near) && near)))
        return SF_OK;
    return sf_ortho_householder(&o->small, y.at, y.rows, y.cols);
}

/* ---- what is kept --------------------------------------------------------------------------- */
/* a's column and b's row of direction r, scaled; b's greatest entry positive. */
static void put(const struct sf_factor_job *job, int32_t r, const float *left, size_t left_stride,
                const float *right, float left_scale, float right_scale)
{
    int32_t top = 0;
    for (int32_t c = 1; c < job->cols; c++)
        if (fabsf(right[c]) > fabsf(right[top])) top = c;
    float sign = right[top] < 0 ? -1 : 1;
    for (int32_t row = 0; row < job->rows; row++)
        job->a[(size_t)row * job->a_stride + (size_t)r] =
            sign * left_scale * left[(size_t)row * left_stride];
    float *b = job->b + (size_t)r * job->b_stride;
    for (int32_t c = 0; c < job->cols; c++) b[c] = sign * right_scale * right[c];
}

static void put_nothing(const struct sf_factor_job *job, int32_t from)
{
    for (int32_t r = from; r < job->rank; r++) {
        for (int32_t row = 0; row < job->rows; row++)
            job->a[(size_t)row * job->a_stride + (size_t)r] = 0;
        memset(job->b + (size_t)r * job->b_stride, 0, (size_t)job->cols * sizeof *job->b);
    }
}

/* ---- the three ways ------------------------------------------------------------------------- */
struct room {
    struct sf_svd svd;                  /* EXACT: of x; RANDOM with oversampling: of c */
    struct ortho ortho;
    struct sf_eigen eigen;              /* GRAM: of x^T x */
    float *omega, *y, *z, *c;           /* RANDOM: [cols][q], [rows][q], [cols][q], [q][cols] */
    int32_t q;
};

static void gram_take(struct sf_heap *heap, const struct sf_factor_job *job, struct room *room)
{
    sf_eigen_take(heap, job->cols, &room->eigen);
    room->y = sf_heap_floats(heap, (size_t)job->rows);
}

static void random_take(struct sf_heap *heap, const struct sf_factor_job *job, struct room *room)
{
    int32_t narrow = least(job->rows, job->cols);
    room->q = least(job->rank, narrow);
    room->q += least(job->oversample, narrow - room->q);
    ortho_take(heap, job->rows > job->cols ? job->rows : job->cols, room->q, &room->ortho);
    room->omega = sf_heap_floats(heap, area(job->cols, room->q));
    room->y = sf_heap_floats(heap, area(job->rows, room->q));
    if (job->oversample > 0) sf_svd_take(heap, room->q, job->cols, &room->svd);
    room->c = job->oversample > 0 ? room->svd.x : sf_heap_floats(heap, area(room->q, job->cols));
    if (job->oversample > 0)
        room->z = sf_heap_floats(heap, area(job->rows, least(job->rank, room->q)));
}

static void room_take(struct sf_heap *heap, const struct sf_factor_job *job, struct room *room)
{
    switch (job->how) {
    case SF_FACTOR_EXACT: sf_svd_take(heap, job->rows, job->cols, &room->svd); break;
    case SF_FACTOR_GRAM: gram_take(heap, job, room); break;
    case SF_FACTOR_RANDOM: random_take(heap, job, room); break;
    }
}

size_t sf_cpu_factor_bytes(const struct sf_factor_job *job)
{
    struct sf_heap heap = { 0 };
    struct room room = { 0 };
    room_take(&heap, job, &room);
    return heap.used;
}

static sf_status by_svd(const struct sf_factor_job *job, struct room *room)
{
    struct sf_svd *svd = &room->svd;
    for (int32_t row = 0; row < job->rows; row++)
        memcpy(svd->x + area(row, job->cols), job->x + (size_t)row * job->x_stride,
               (size_t)job->cols * sizeof *job->x);
    SF_TRY(sf_svd_run(svd));
    int32_t kept = least(job->rank, svd->narrow);
    for (int32_t r = 0; r < kept; r++) {
        float scale = sqrtf(svd->s[r]);
        put(job, r, svd->u + r, (size_t)svd->narrow, svd->v + area(r, job->cols), scale, scale);
    }
    put_nothing(job, kept);
    return SF_OK;
}

static sf_status by_gram(struct sf_device *device, const struct sf_factor_job *job,
                         struct room *room)
{
    struct matrix x = { (float *)(uintptr_t)job->x, job->rows, job->cols, job->x_stride };
    float *gram = room->eigen.x;
    multiply(device, 1, x, x, dense(gram, job->cols, job->cols));
    SF_TRY(sf_eigen_run(&room->eigen));
    int32_t kept = least(job->rank, least(job->rows, job->cols));
    for (int32_t r = 0; r < kept; r++) {        /* values ascend */
        struct matrix v = dense(gram + area(job->cols - 1 - r, job->cols), job->cols, 1);
        multiply(device, 0, x, v, dense(room->y, job->rows, 1));
        double sum = 0;
        for (int32_t row = 0; row < job->rows; row++)
            sum += (double)room->y[row] * (double)room->y[row];
        float scale = (float)sqrt(sqrt(sum));
        put(job, r, room->y, 1, v.at, scale > 0 ? 1 / scale : 0, scale);
    }
    put_nothing(job, kept);
    return SF_OK;
}

static sf_status range_find(struct sf_device *device, const struct sf_factor_job *job,
                            struct room *room)
{
    struct matrix x = { (float *)(uintptr_t)job->x, job->rows, job->cols, job->x_stride };
    struct matrix z = dense(room->omega, job->cols, room->q);
    struct matrix y = dense(room->y, job->rows, room->q);
    for (size_t i = 0; i < area(job->cols, room->q); i++)
        room->omega[i] = (float)sf_rng_normal(job->seed, 0, i);
    multiply(device, 0, x, z, y);
    for (int32_t i = 0; i < job->power_iterations; i++) {
        SF_TRY(orthonormalise(device, &room->ortho, y, 1));
        multiply(device, 1, x, y, z);
        SF_TRY(orthonormalise(device, &room->ortho, z, 1));
        multiply(device, 0, x, z, y);
    }
    SF_TRY(orthonormalise(device, &room->ortho, y, 0));
    multiply(device, 1, y, x, dense(room->c, room->q, job->cols));
    for (size_t i = 0; i < area(room->q, job->cols); i++)
        if (!isfinite(room->c[i])) return SF_FAIL(SF_INVALID, "sums of keys or values overflow");
    return SF_OK;
}

static sf_status by_range(struct sf_device *device, const struct sf_factor_job *job,
                          struct room *room)
{
    SF_TRY(range_find(device, job, room));
    int32_t kept = least(job->rank, room->q);
    if (job->oversample == 0) {
        float root = (float)sqrt(job->rows);
        for (int32_t r = 0; r < kept; r++)
            put(job, r, room->y + r, (size_t)room->q, room->c + area(r, job->cols), root, 1 / root);
        put_nothing(job, kept);
        return SF_OK;
    }
    struct sf_svd *svd = &room->svd;
    SF_TRY(sf_svd_run(svd));                       /* of c, which it holds */
    struct matrix u = { svd->u, room->q, kept, (size_t)svd->narrow };
    multiply(device, 0, dense(room->y, job->rows, room->q), u, dense(room->z, job->rows, kept));
    for (int32_t r = 0; r < kept; r++) {
        float scale = sqrtf(svd->s[r]);
        put(job, r, room->z + r, (size_t)kept, svd->v + area(r, job->cols), scale, scale);
    }
    put_nothing(job, kept);
    return SF_OK;
}

sf_status sf_cpu_factor(struct sf_device *device, const struct sf_factor_job *job)
{
    for (int32_t row = 0; row < job->rows; row++) {
        float sum = 0;                          /* 0 x inf and 0 x NaN are NaN */
        for (int32_t c = 0; c < job->cols; c++) sum += 0 * job->x[(size_t)row * job->x_stride +
                                                                 (size_t)c];
        if (sum != 0) return SF_FAIL(SF_INVALID, "row %d is not finite", row);
    }
    struct sf_heap heap = { job->scratch, 0 };
    struct room room = { 0 };
    room_take(&heap, job, &room);
    switch (job->how) {
    case SF_FACTOR_EXACT: return by_svd(job, &room);
    case SF_FACTOR_GRAM: return by_gram(device, job, &room);
    case SF_FACTOR_RANDOM: return by_range(device, job, &room);
    }
    return SF_FAIL(SF_INTERNAL, "no way %d to factor", (int)job->how);
}
