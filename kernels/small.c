/* kernels/small.c: calls of LAPACK.  Its `u` of x^T is v here, by rows, and its `vt` is u; both as
 * they lie. */
#include "kernels/small.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#include <lapacke.h>

_Static_assert(sizeof(lapack_int) == sizeof(int32_t), "LAPACK counts in 32 bits");

static pthread_mutex_t lapack_turn = PTHREAD_MUTEX_INITIALIZER;

/* info of a call of LAPACK, made alone. */
#define LAPACK(info, call)                                                                         \
    do {                                                                                           \
        pthread_mutex_lock(&lapack_turn);                                                          \
        (info) = (call);                                                                           \
        pthread_mutex_unlock(&lapack_turn);                                                        \
    } while (0)

static size_t area(int32_t a, int32_t b) { return (size_t)a * (size_t)b; }

/* The greatest lwork that LAPACK asks for, as it answers in a float. */
static int32_t work_count(float answer) { return (int32_t)((double)answer * 1.0001) + 64; }

static int is_finite(const float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

/* ---- singular values ------------------------------------------------------------------------ */
void sf_svd_take(struct sf_heap *heap, int32_t rows, int32_t cols, struct sf_svd *svd)
{
    float answer = 0, none = 0;
    lapack_int whole = 0;
    svd->rows = rows, svd->cols = cols, svd->narrow = rows < cols ? rows : cols;
    LAPACKE_sgesdd_work(LAPACK_COL_MAJOR, 'S', cols, rows, &none, cols, &none, &none, cols, &none,
                        svd->narrow, &answer, -1, &whole);
    svd->work_count = work_count(answer);
    svd->x = sf_heap_floats(heap, area(rows, cols));
    svd->s = sf_heap_floats(heap, (size_t)svd->narrow);
    svd->v = sf_heap_floats(heap, area(svd->narrow, cols));
    svd->u = sf_heap_floats(heap, area(rows, svd->narrow));
    svd->work = sf_heap_floats(heap, (size_t)svd->work_count);
    svd->iwork = sf_heap_take(heap, area(8, svd->narrow) * sizeof *svd->iwork);
}

sf_status sf_svd_run(struct sf_svd *svd)
{
    lapack_int info;
    if (!is_finite(svd->x, area(svd->rows, svd->cols)))
        return SF_FAIL(SF_INVALID, "a matrix overflows before its singular values are found");
    LAPACK(info, LAPACKE_sgesdd_work(LAPACK_COL_MAJOR, 'S', svd->cols, svd->rows, svd->x, svd->cols,
                                     svd->s, svd->v, svd->cols, svd->u, svd->narrow, svd->work,
                                     svd->work_count, svd->iwork));
    if (info != 0) return SF_FAIL(SF_INTERNAL, "singular values do not converge (%d)", (int)info);
    if (!is_finite(svd->s, (size_t)svd->narrow))
        return SF_FAIL(SF_INVALID, "the singular values of a matrix overflow");
    return SF_OK;
}

/* ---- eigenvectors --------------------------------------------------------------------------- */
void sf_eigen_take(struct sf_heap *heap, int32_t n, struct sf_eigen *eigen)
{
    float answer = 0, none = 0;
    lapack_int whole = 0;
    LAPACKE_ssyevd_work(LAPACK_COL_MAJOR, 'V', 'U', n, &none, n, &none, &answer, -1, &whole, -1);
    eigen->n = n;
    eigen->work_count = work_count(answer);
    eigen->iwork_count = whole;
    eigen->x = sf_heap_floats(heap, area(n, n));
    eigen->values = sf_heap_floats(heap, (size_t)n);
    eigen->work = sf_heap_floats(heap, (size_t)eigen->work_count);
    eigen->iwork = sf_heap_take(heap, (size_t)whole * sizeof *eigen->iwork);
}

sf_status sf_eigen_run(struct sf_eigen *eigen)
{
    lapack_int info;
    if (!is_finite(eigen->x, area(eigen->n, eigen->n)))
        return SF_FAIL(SF_INVALID, "a matrix overflows before its eigenvectors are found");
    LAPACK(info, LAPACKE_ssyevd_work(LAPACK_COL_MAJOR, 'V', 'U', eigen->n, eigen->x, eigen->n,
                                     eigen->values, eigen->work, eigen->work_count, eigen->iwork,
                                     eigen->iwork_count));
    if (info != 0) return SF_FAIL(SF_INTERNAL, "eigenvalues do not converge (%d)", (int)info);
    return SF_OK;
}

/* ---- orthonormal columns -------------------------------------------------------------------- */
void sf_ortho_take(struct sf_heap *heap, int32_t rows, int32_t cols, struct sf_ortho *o)
{
    float lq = 0, form = 0, none = 0;
    LAPACKE_sgelqf_work(LAPACK_COL_MAJOR, cols, rows, &none, cols, &none, &lq, -1);
    LAPACKE_sorglq_work(LAPACK_COL_MAJOR, cols, rows, cols, &none, cols, &none, &form, -1);
    o->work_count = work_count(lq > form ? lq : form);
    o->gram = sf_heap_floats(heap, area(cols, cols));
    o->tau = sf_heap_floats(heap, (size_t)cols);
    o->work = sf_heap_floats(heap, (size_t)o->work_count);
}

int sf_ortho_root(int32_t n, float shift, float *gram)
{
    for (int32_t i = 0; i < n; i++) gram[area(i, n + 1)] += shift;
    /* LAPACK's lower triangle is our upper one; below it the matrix is cleared. */
    lapack_int info;
    LAPACK(info, LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'L', n, gram, n));
    if (info != 0) return 0;
    LAPACK(info, LAPACKE_strtri_work(LAPACK_COL_MAJOR, 'L', 'N', n, gram, n));
    if (info != 0) return 0;
    for (int32_t i = 1; i < n; i++) memset(gram + area(i, n), 0, (size_t)i * sizeof *gram);
    return 1;
}

int sf_ortho_invert(struct sf_ortho *o, int32_t cols, double shift_unit, int *near_out)
{
    double trace = 0, off = 0;
    for (int32_t i = 0; i < cols; i++) {
        trace += (double)o->gram[area(i, cols + 1)];
        for (int32_t j = 0; j <= i; j++)
            off = fmax(off, fabs((double)o->gram[area(i, cols) + (size_t)j] - (i == j)));
    }
    *near_out = off < 0.01;
    if (!isfinite(trace)) return 0;
    return sf_ortho_root(cols, (float)(shift_unit * trace), o->gram);
}

/* y^T = l q. */
sf_status sf_ortho_householder(struct sf_ortho *o, float *y, int32_t rows, int32_t cols)
{
    if (!is_finite(y, area(rows, cols))) return SF_FAIL(SF_INVALID, "a basis overflows");
    lapack_int info;
    LAPACK(info, LAPACKE_sgelqf_work(LAPACK_COL_MAJOR, cols, rows, y, cols, o->tau, o->work,
                                     o->work_count));
    if (info == 0)
        LAPACK(info, LAPACKE_sorglq_work(LAPACK_COL_MAJOR, cols, rows, cols, y, cols, o->tau,
                                         o->work, o->work_count));
    if (info != 0) return SF_FAIL(SF_INTERNAL, "a basis cannot be made orthonormal");
    return SF_OK;
}
