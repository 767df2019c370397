/* kernels/cpu/factor.c: low-rank factors by LAPACK and blocked products.
 *
 * Matrices lie row-major; to LAPACK, which counts by columns, x [rows][cols] is x^T.  Products are
 * cut into blocks of fixed size whatever the threads, so the bits depend on the job alone.  The
 * serial OpenBLAS below LAPACK keeps its buffers for one thread of the process: calls take turns
 * (ranks may be threads), and products are oneDNN's.
 *
 *   EXACT    x^T = v s u^T by xGESDD; LAPACK's `u` is then b's rows, its `vt` a's, both as they lie
 *   GRAM     w = x^T x, its last eigenvectors are the rows of b, a = x b^T
 *   RANDOM   y = x omega; orthonormal q; power_iterations times z = x^T q, orthonormal, y = x z,
 *            orthonormal; c = q^T x.  With no oversampling a b = q c is the answer, else the small
 *            singular value decomposition of c is cut to the rank. */
#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <string.h>

#include <lapacke.h>

#include "base/rng.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/product.h"

enum { BLOCK = 128 };

static pthread_mutex_t lapack_turn = PTHREAD_MUTEX_INITIALIZER;

/* info of a call of LAPACK, made alone. */
#define LAPACK(info, call)                                                                         \
    do {                                                                                           \
        pthread_mutex_lock(&lapack_turn);                                                          \
        (info) = (call);                                                                           \
        pthread_mutex_unlock(&lapack_turn);                                                        \
    } while (0)

static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static size_t area(int32_t a, int32_t b) { return (size_t)a * (size_t)b; }

/* Hands out the scratch in pieces; with base 0 it counts. */
struct heap { unsigned char *base; size_t used; };
static void *take(struct heap *heap, size_t bytes)
{
    void *block = heap->base != NULL ? heap->base + heap->used : NULL;
    heap->used += (bytes + 63) / 64 * 64;
    return block;
}
static float *floats(struct heap *heap, size_t count)
{
    return take(heap, count * sizeof(float));
}

/* The greatest lwork that LAPACK asks for, as it answers in a float. */
static int32_t work_count(float answer) { return (int32_t)((double)answer * 1.0001) + 64; }

/* ---- singular values of x, dense; to LAPACK that is cols x rows ------------------------------ */
struct svd {
    int32_t rows, cols, narrow, work_count;
    float *x;                           /* [rows][cols], lost */
    float *s, *v, *u;                   /* [narrow], [narrow][cols], [rows][narrow] */
    float *work;
    lapack_int *iwork;
};

static void svd_take(struct heap *heap, int32_t rows, int32_t cols, struct svd *svd)
{
    float answer = 0, none = 0;
    lapack_int whole = 0;
    svd->rows = rows, svd->cols = cols, svd->narrow = least(rows, cols);
    LAPACKE_sgesdd_work(LAPACK_COL_MAJOR, 'S', cols, rows, &none, cols, &none, &none, cols, &none,
                        svd->narrow, &answer, -1, &whole);
    svd->work_count = work_count(answer);
    svd->x = floats(heap, area(rows, cols));
    svd->s = floats(heap, (size_t)svd->narrow);
    svd->v = floats(heap, area(svd->narrow, cols));
    svd->u = floats(heap, area(rows, svd->narrow));
    svd->work = floats(heap, (size_t)svd->work_count);
    svd->iwork = take(heap, area(8, svd->narrow) * sizeof *svd->iwork);
}

static sf_status svd_run(struct svd *svd)
{
    lapack_int info;
    LAPACK(info, LAPACKE_sgesdd_work(LAPACK_COL_MAJOR, 'S', svd->cols, svd->rows, svd->x, svd->cols,
                                     svd->s, svd->v, svd->cols, svd->u, svd->narrow, svd->work,
                                     svd->work_count, svd->iwork));
    if (info != 0) return SF_FAIL(SF_INTERNAL, "singular values do not converge (%d)", (int)info);
    return SF_OK;
}

/* ---- products in fixed blocks --------------------------------------------------------------- */
struct matrix { float *at; int32_t rows, cols; size_t stride; }; /* [rows][stride] */

static struct matrix dense(float *at, int32_t rows, int32_t cols)
{
    return (struct matrix){ at, rows, cols, (size_t)cols };
}

/* out = x y, or x^T y: blocks of the rows of out. */
static void multiply(struct sf_device *device, int transposed, struct matrix x, struct matrix y,
                     struct matrix out)
{
    int32_t blocks = (out.rows + BLOCK - 1) / BLOCK;
    int pays = sf_cpu_threads_pay(device, (int64_t)area(x.rows, x.cols) * y.cols / 8);
    int omp_threads = omp_get_max_threads();
    (void)pays;
    omp_set_num_threads(1);
#pragma omp parallel for num_threads(device->threads) if (pays) schedule(dynamic, 1)
    for (int32_t block = 0; block < blocks; block++) {
        size_t first = (size_t)block * BLOCK;
        sf_product_plain(transposed, least(BLOCK, out.rows - block * BLOCK), y.cols, y.rows,
                         x.at + (transposed ? first : first * x.stride), x.stride, y.at, y.stride,
                         out.at + first * out.stride, out.stride);
    }
    omp_set_num_threads(omp_threads);
}

/* ---- orthonormal columns -------------------------------------------------------------------- */
struct ortho { float *gram, *tau, *work, *other; int32_t work_count; };

static void ortho_take(struct heap *heap, int32_t rows, int32_t cols, struct ortho *o)
{
    float lq = 0, form = 0, none = 0;
    LAPACKE_sgelqf_work(LAPACK_COL_MAJOR, cols, rows, &none, cols, &none, &lq, -1);
    LAPACKE_sorglq_work(LAPACK_COL_MAJOR, cols, rows, cols, &none, cols, &none, &form, -1);
    o->work_count = work_count(lq > form ? lq : form);
    o->gram = floats(heap, area(cols, cols));
    o->tau = floats(heap, (size_t)cols);
    o->work = floats(heap, (size_t)o->work_count);
    o->other = floats(heap, area(rows, cols));
}

/* y = y r^-1 with y^T y + shift_unit trace = r^T r; 0 if there is no such r.  *near_out: y was
 * orthonormal already, but for rounding. */
static int cholesky(struct sf_device *device, struct ortho *o, struct matrix y, double shift_unit,
                    int *near_out)
{
    double trace = 0, off = 0;
    multiply(device, 1, y, y, dense(o->gram, y.cols, y.cols));
    for (int32_t i = 0; i < y.cols; i++) {
        trace += (double)o->gram[area(i, y.cols + 1)];
        for (int32_t j = 0; j <= i; j++)
            off = fmax(off, fabs((double)o->gram[area(i, y.cols) + (size_t)j] - (i == j)));
    }
    *near_out = off < 0.01;
    for (int32_t i = 0; i < y.cols; i++)
        o->gram[area(i, y.cols + 1)] += (float)(shift_unit * trace);
    /* LAPACK's lower triangle is our upper one; below it the matrix is cleared. */
    lapack_int info;
    LAPACK(info, LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'L', y.cols, o->gram, y.cols));
    if (info != 0) return 0;
    LAPACK(info, LAPACKE_strtri_work(LAPACK_COL_MAJOR, 'L', 'N', y.cols, o->gram, y.cols));
    if (info != 0) return 0;
    for (int32_t i = 1; i < y.cols; i++)
        memset(o->gram + area(i, y.cols), 0, (size_t)i * sizeof *o->gram);
    memcpy(o->other, y.at, area(y.rows, y.cols) * sizeof *y.at);
    multiply(device, 0, dense(o->other, y.rows, y.cols), dense(o->gram, y.cols, y.cols), y);
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
    for (size_t i = 0; i < area(y.rows, y.cols); i++)
        if (!isfinite(y.at[i])) return SF_FAIL(SF_INTERNAL, "a basis is not finite");
    lapack_int info;
    LAPACK(info, LAPACKE_sgelqf_work(LAPACK_COL_MAJOR, y.cols, y.rows, y.at, y.cols, o->tau,
                                     o->work, o->work_count));
    if (info == 0)
        LAPACK(info, LAPACKE_sorglq_work(LAPACK_COL_MAJOR, y.cols, y.rows, y.cols, y.at, y.cols,
                                         o->tau, o->work, o->work_count));
    if (info != 0) return SF_FAIL(SF_INTERNAL, "a basis cannot be made orthonormal");
    return SF_OK;
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
    struct svd svd;                     /* EXACT: of x; RANDOM with oversampling: of c */
    struct ortho ortho;
    float *gram, *values, *vectors;     /* GRAM: [cols][cols], [cols], [rank][cols] */
    float *omega, *y, *z, *c;           /* RANDOM: [cols][q], [rows][q], [cols][q], [q][cols] */
    float *work;
    lapack_int *iwork, iwork_count;
    int32_t work_count, q;
};

static void gram_take(struct heap *heap, const struct sf_factor_job *job, struct room *room)
{
    float answer = 0, none = 0;
    lapack_int whole = 0;
    LAPACKE_ssyevd_work(LAPACK_COL_MAJOR, 'V', 'U', job->cols, &none, job->cols, &none, &answer, -1,
                        &whole, -1);
    room->work_count = work_count(answer);
    room->iwork_count = whole;
    room->gram = floats(heap, area(job->cols, job->cols));
    room->values = floats(heap, (size_t)job->cols);
    room->y = floats(heap, (size_t)job->rows);
    room->work = floats(heap, (size_t)room->work_count);
    room->iwork = take(heap, (size_t)whole * sizeof *room->iwork);
}

static void random_take(struct heap *heap, const struct sf_factor_job *job, struct room *room)
{
    int32_t narrow = least(job->rows, job->cols);
    room->q = least(job->rank, narrow);
    room->q += least(job->oversample, narrow - room->q);
    ortho_take(heap, job->rows > job->cols ? job->rows : job->cols, room->q, &room->ortho);
    room->omega = floats(heap, area(job->cols, room->q));
    room->y = floats(heap, area(job->rows, room->q));
    if (job->oversample > 0) svd_take(heap, room->q, job->cols, &room->svd);
    room->c = job->oversample > 0 ? room->svd.x : floats(heap, area(room->q, job->cols));
    room->z = job->oversample > 0 ? floats(heap, area(job->rows, least(job->rank, room->q))) : NULL;
}

static void room_take(struct heap *heap, const struct sf_factor_job *job, struct room *room)
{
    switch (job->how) {
    case SF_FACTOR_EXACT: svd_take(heap, job->rows, job->cols, &room->svd); break;
    case SF_FACTOR_GRAM: gram_take(heap, job, room); break;
    case SF_FACTOR_RANDOM: random_take(heap, job, room); break;
    }
}

size_t sf_cpu_factor_bytes(const struct sf_factor_job *job)
{
    struct heap heap = { 0 };
    struct room room = { 0 };
    room_take(&heap, job, &room);
    return heap.used;
}

static sf_status by_svd(const struct sf_factor_job *job, struct room *room)
{
    struct svd *svd = &room->svd;
    for (int32_t row = 0; row < job->rows; row++)
        memcpy(svd->x + area(row, job->cols), job->x + (size_t)row * job->x_stride,
               (size_t)job->cols * sizeof *job->x);
    SF_TRY(svd_run(svd));
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
    multiply(device, 1, x, x, dense(room->gram, job->cols, job->cols));
    lapack_int info;
    LAPACK(info, LAPACKE_ssyevd_work(LAPACK_COL_MAJOR, 'V', 'U', job->cols, room->gram, job->cols,
                                     room->values, room->work, room->work_count, room->iwork,
                                     room->iwork_count));
    if (info != 0) return SF_FAIL(SF_INTERNAL, "eigenvalues do not converge (%d)", (int)info);
    int32_t kept = least(job->rank, least(job->rows, job->cols));
    for (int32_t r = 0; r < kept; r++) {        /* values ascend */
        struct matrix v = dense(room->gram + area(job->cols - 1 - r, job->cols), job->cols, 1);
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

/* Standard normal, by Box and Muller. */
static void omega_fill(const struct sf_factor_job *job, float *omega, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double u = 1 - sf_rng_uniform(job->seed, 0, 2 * i);
        double angle = 2 * acos(-1) * sf_rng_uniform(job->seed, 0, 2 * i + 1);
        omega[i] = (float)(sqrt(-2 * log(u)) * cos(angle));
    }
}

static sf_status range_find(struct sf_device *device, const struct sf_factor_job *job,
                            struct room *room)
{
    struct matrix x = { (float *)(uintptr_t)job->x, job->rows, job->cols, job->x_stride };
    struct matrix z = dense(room->omega, job->cols, room->q);
    struct matrix y = dense(room->y, job->rows, room->q);
    omega_fill(job, room->omega, area(job->cols, room->q));
    multiply(device, 0, x, z, y);
    for (int32_t i = 0; i < job->power_iterations; i++) {
        SF_TRY(orthonormalise(device, &room->ortho, y, 1));
        multiply(device, 1, x, y, z);
        SF_TRY(orthonormalise(device, &room->ortho, z, 1));
        multiply(device, 0, x, z, y);
    }
    SF_TRY(orthonormalise(device, &room->ortho, y, 0));
    multiply(device, 1, y, x, dense(room->c, room->q, job->cols));
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
    struct svd *svd = &room->svd;
    SF_TRY(svd_run(svd));                       /* of c, which it holds */
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
    struct heap heap = { job->scratch, 0 };
    struct room room = { 0 };
    room_take(&heap, job, &room);
    switch (job->how) {
    case SF_FACTOR_EXACT: return by_svd(job, &room);
    case SF_FACTOR_GRAM: return by_gram(device, job, &room);
    case SF_FACTOR_RANDOM: return by_range(device, job, &room);
    }
    return SF_FAIL(SF_INTERNAL, "no way %d to factor", (int)job->how);
}
