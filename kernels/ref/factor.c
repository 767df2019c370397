/* kernels/ref/factor.c: the best product of a rank, in plain loops and f64: one-sided Jacobi
 * (Hestenes) turns the columns of x, or of x^T where that is the narrower, until they are
 * orthogonal; their lengths are the singular values.  Every `how` is the exact one here. */
#include <math.h>
#include <string.h>
#include "kernels/ref/ref.h"

enum { SWEEPS_MAX = 60 };

/* x or x^T, long >= narrow: g = u s v^T, column by column. */
struct turn {
    int32_t length, narrow;
    double *g;                          /* [narrow][length] columns of x, turned: u_i s_i */
    double *v;                          /* [narrow][narrow] columns of v */
    double *s;                          /* [narrow] */
    int32_t *order;                     /* [narrow] s descending, ties by index */
    double nothing;                     /* squared length of a column that rounding left */
};

static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

static size_t ref_factor_bytes(const struct sf_factor_job *job)
{
    size_t narrow = (size_t)least(job->rows, job->cols);
    size_t length = (size_t)(job->rows + job->cols) - narrow;
    return (narrow * length + narrow * narrow + narrow) * sizeof(double) + narrow * sizeof(int32_t);
}

static double dot(const double *a, const double *b, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void rotate(double *a, double *b, int32_t n, double c, double s)
{
    for (int32_t i = 0; i < n; i++) {
        double x = a[i], y = b[i];
        a[i] = c * x - s * y;
        b[i] = s * x + c * y;
    }
}

/* Makes columns i and j orthogonal; whether they were not. */
static int turn_pair(struct turn *t, int32_t i, int32_t j)
{
    double *gi = t->g + (size_t)i * (size_t)t->length, *gj = t->g + (size_t)j * (size_t)t->length;
    double a = dot(gi, gi, t->length), b = dot(gj, gj, t->length), c = dot(gi, gj, t->length);
    if (fabs(c) <= 1e-15 * sqrt(a * b) || a <= t->nothing || b <= t->nothing) return 0;
    double zeta = (b - a) / (2 * c);
    double tangent = (zeta >= 0 ? 1 : -1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
    double cosine = 1 / sqrt(1 + tangent * tangent);
    rotate(gi, gj, t->length, cosine, cosine * tangent);
    rotate(t->v + (size_t)i * (size_t)t->narrow, t->v + (size_t)j * (size_t)t->narrow, t->narrow,
           cosine, cosine * tangent);
    return 1;
}

static sf_status turn_all(struct turn *t)
{
    int turned = 1;
    for (int sweep = 0; turned && sweep < SWEEPS_MAX; sweep++) {
        turned = 0;
        for (int32_t i = 0; i < t->narrow; i++)
            for (int32_t j = i + 1; j < t->narrow; j++) turned |= turn_pair(t, i, j);
    }
    if (turned) return SF_FAIL(SF_INTERNAL, "singular values do not converge");
    for (int32_t i = 0; i < t->narrow; i++) {
        const double *g = t->g + (size_t)i * (size_t)t->length;
        t->s[i] = sqrt(dot(g, g, t->length));
        int32_t place = i;
        for (; place > 0 && t->s[t->order[place - 1]] < t->s[i]; place--)
            t->order[place] = t->order[place - 1];
        t->order[place] = i;
    }
    return SF_OK;
}

/* The r-th direction: a's column and b's row, each with sqrt(s). */
static void direction_put(const struct sf_factor_job *job, const struct turn *t, int32_t r)
{
    int32_t i = t->order[r], wide = job->rows < job->cols;
    const double *u = t->g + (size_t)i * (size_t)t->length;
    const double *v = t->v + (size_t)i * (size_t)t->narrow;
    double s = t->s[i], u_scale = s > 0 ? 1 / sqrt(s) : 0, v_scale = sqrt(s);
    const double *left = wide ? v : u, *right = wide ? u : v;
    double left_scale = wide ? v_scale : u_scale, right_scale = wide ? u_scale : v_scale;
    int32_t top = 0;
    for (int32_t c = 1; c < job->cols; c++)
        if (fabs(right[c]) > fabs(right[top])) top = c;
    double sign = right[top] < 0 ? -1 : 1;
    for (int32_t row = 0; row < job->rows; row++)
        job->a[(size_t)row * job->a_stride + (size_t)r] = (float)(sign * left_scale * left[row]);
    for (int32_t c = 0; c < job->cols; c++)
        job->b[(size_t)r * job->b_stride + (size_t)c] = (float)(sign * right_scale * right[c]);
}

static sf_status ref_factor(struct sf_device *device, const struct sf_factor_job *job)
{
    (void)device;
    struct turn t = { .narrow = least(job->rows, job->cols) };
    t.length = job->rows + job->cols - t.narrow;
    t.g = job->scratch;
    t.v = t.g + (size_t)t.narrow * (size_t)t.length;
    t.s = t.v + (size_t)t.narrow * (size_t)t.narrow;
    t.order = (int32_t *)(void *)(t.s + t.narrow);
    t.nothing = 0;
    for (int32_t row = 0; row < job->rows; row++)
        for (int32_t c = 0; c < job->cols; c++) {
            double x = (double)job->x[(size_t)row * job->x_stride + (size_t)c];
            if (!isfinite(x)) return SF_FAIL(SF_INVALID, "row %d is not finite", row);
            t.nothing += 1e-28 * x * x;
            if (job->rows < job->cols) t.g[(size_t)row * (size_t)t.length + (size_t)c] = x;
            else t.g[(size_t)c * (size_t)t.length + (size_t)row] = x;
        }
    for (int32_t i = 0; i < t.narrow; i++)
        for (int32_t j = 0; j < t.narrow; j++)
            t.v[(size_t)i * (size_t)t.narrow + (size_t)j] = i == j;
    SF_TRY(turn_all(&t));
    for (int32_t r = 0; r < job->rank; r++) {
        if (r < t.narrow) {
            direction_put(job, &t, r);
            continue;
        }
        for (int32_t row = 0; row < job->rows; row++)
            job->a[(size_t)row * job->a_stride + (size_t)r] = 0;
        memset(job->b + (size_t)r * job->b_stride, 0, (size_t)job->cols * sizeof *job->b);
    }
    return SF_OK;
}

/* ---- steps ---------------------------------------------------------------------------------- */
static void ref_product(struct sf_device *device, int turned, int32_t rows, int32_t cols,
                        int32_t inner, const float *x, size_t x_stride, const float *y,
                        size_t y_stride, float *out, size_t out_stride)
{
    (void)device;
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t c = 0; c < (size_t)cols; c++) {
            double sum = 0;
            for (size_t i = 0; i < (size_t)inner; i++)
                sum += (double)x[turned ? i * x_stride + r : r * x_stride + i] *
                       (double)y[i * y_stride + c];
            out[r * out_stride + c] = (float)sum;
        }
}

/* r row by row: r_ij = (w_ij - sum over k < i of r_ki r_kj) / r_ii.  Then its inverse s column by
 * column, in place: s_jj = 1 / r_jj, s_ij = -s_jj sum over i <= k < j of s_ik r_kj. */
static int ref_cholesky(struct sf_device *device, int32_t count, float shift, float *gram)
{
    size_t n = (size_t)count;
    (void)device;
    for (size_t i = 0; i < n; i++)
        for (size_t j = i; j < n; j++) {
            double sum = (double)gram[i * n + j] + (i == j ? (double)shift : 0);
            for (size_t k = 0; k < i; k++) sum -= (double)gram[k * n + i] * (double)gram[k * n + j];
            if (i == j && !(sum > 0)) return 0;
            gram[i * n + j] = (float)(i == j ? sqrt(sum) : sum / (double)gram[i * n + i]);
        }
    for (size_t j = 0; j < n; j++) {
        gram[j * n + j] = 1 / gram[j * n + j];
        for (size_t i = 0; i < j; i++) {
            double sum = 0;
            for (size_t k = i; k < j; k++) sum += (double)gram[i * n + k] * (double)gram[k * n + j];
            gram[i * n + j] = (float)(-sum * (double)gram[j * n + j]);
            gram[j * n + i] = 0;
        }
    }
    return 1;
}

void sf_ref_factor_fill(struct sf_kernels *k)
{
    k->factor_bytes = ref_factor_bytes;
    k->factor = ref_factor;
    k->product = ref_product;
    k->cholesky = ref_cholesky;
}
