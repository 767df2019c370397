/* worker/roof.c: the two rates that bound a step, by the device's own entries with this rank's
 * threads: how fast its memory is read, and how fast a large matrix is multiplied.
 *
 *   read   the greatest element of every row of a matrix that no cache holds
 *   flop   as many rows as a step may have times a square matrix of the run's own type; in int8
 *          these are operations on codes, and turning x into them counts */
#include "worker/roof.h"

#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "worker/state.h"

enum { SIDE = 1024, ROWS_MAX = 512, PASSES_MIN = 3 };
enum { PRODUCT_BYTES = 2 * 4 * SIDE * SIDE + 2 * 4 * ROWS_MAX * SIDE }; /* 12 MiB, at most */
static const double seconds_min = 0.2;

/* The time of the fastest of some passes. */
static sf_status fastest(struct sf_worker *w, void (*pass)(struct sf_worker *, void *), void *arg,
                         double *seconds_out)
{
    int64_t start = sf_now_ns();
    double best = 0;
    pass(w, arg);                       /* what happens only once has happened then */
    w->device->k->sync(w->device);
    for (int i = 0; i < PASSES_MIN || sf_seconds_since(start) < seconds_min; i++) {
        SF_TRY(sf_comm_beat(w->spec.world, "roof", i));
        int64_t begun = sf_now_ns();
        pass(w, arg);
        w->device->k->sync(w->device);
        double seconds = sf_seconds_since(begun);
        if (i == 0 || seconds < best) best = seconds;
    }
    *seconds_out = best;
    return SF_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */
struct reading { int32_t rows, *index; float *matrix, *value; };

int32_t sf_roof_rows(int64_t spare_bytes)
{
    int64_t rows = spare_bytes / (SF_ROOF_COLS * (int64_t)sizeof(float));
    if (rows > SF_ROOF_ROWS) rows = SF_ROOF_ROWS;
    return rows < SF_ROOF_ROWS_MIN ? 0 : (int32_t)rows;
}

static void too_little(const struct sf_worker *w, const char *what)
{
    sf_log(SF_LOG_WARN, "the rate of %s is not measured: the plan leaves %.1f MiB", what,
           (double)w->spec.spare_bytes / (1 << 20));
}

static void read_once(struct sf_worker *w, void *arg)
{
    const struct reading *r = arg;
    w->device->k->argmax(w->device, r->rows, SF_ROOF_COLS, r->matrix, SF_ROOF_COLS, r->value,
                         r->index);
}

static sf_status measure_reading(struct sf_worker *w, double *rate_out)
{
    const struct sf_kernels *k = w->device->k;
    float value[SF_ROOF_ROWS];
    int32_t index[SF_ROOF_ROWS];
    struct reading r = {sf_roof_rows(w->spec.spare_bytes), index, NULL, value};
    const size_t bytes = (size_t)r.rows * SF_ROOF_COLS * sizeof(float);
    void *block;
    double seconds;
    if (r.rows == 0) {
        too_little(w, "memory");
        return SF_OK;
    }
    if (k->alloc(w->device, bytes, "a matrix to be read", &block) != SF_OK) {
        sf_log(SF_LOG_WARN, "the rate of memory is not measured: %s", sf_error_text());
        return SF_OK;
    }
    r.matrix = block;
    /* Pages that were never written may all be one page of zeros. */
    w->device->k->add_leaves(w->device, r.rows, SF_ROOF_COLS, NULL, 0, 0, 0, 0, r.matrix,
                             SF_ROOF_COLS);
    sf_status status = fastest(w, read_once, &r, &seconds);
    k->free(w->device, block);
    if (status == SF_OK) *rate_out = (double)bytes / seconds;
    return status;
}

/* ---- products -------------------------------------------------------------------------------- */
struct product { struct sf_mat *mat; int32_t rows; void *x; float *y; };

static void multiply_once(struct sf_worker *w, void *arg)
{
    const struct product *p = arg;
    w->device->k->matmul(w->device, p->mat, p->rows, p->x, SIDE, p->y, SIDE);
}

/* Small numbers that all types hold. */
static float pattern(size_t i) { return (float)((int)(i % 7) - 3) / 64; }

static sf_status pack(struct sf_worker *w, struct product *p, float *host)
{
    const struct sf_kernels *k = w->device->k;
    for (size_t i = 0; i < (size_t)SIDE * SIDE; i++) host[i] = pattern(i);
    SF_TRY(k->mat_pack(w->device, p->mat, 0, 0, host));
    size_t count = (size_t)p->rows * SIDE, width = sf_dtype_bytes(w->spec.dtype);
    unsigned char *x = (unsigned char *)host;   /* the matrix is packed by now */
    for (size_t i = 0; i < count; i++) {
        float value = pattern(i);
        uint16_t half = w->spec.dtype == SF_BF16 ? sf_f32_to_bf16(value) : sf_f32_to_f16(value);
        memcpy(x + i * width, width == sizeof half ? (void *)&half : (void *)&value, width);
    }
    k->upload(w->device, p->x, x, count * width);
    k->sync(w->device);
    return SF_OK;
}

static sf_status multiply(struct sf_worker *w, struct product *p, double *rate_out)
{
    const struct sf_kernels *k = w->device->k;
    size_t elements = (size_t)p->rows * SIDE;
    void *x, *y = NULL, *host;
    double seconds = 0;
    SF_TRY(sf_alloc((size_t)SIDE * SIDE * sizeof(float), "a matrix to be multiplied", &host));
    sf_status status = k->alloc(w->device, elements * sizeof(float), "rows to be multiplied", &x);
    if (status == SF_OK) {
        status = k->alloc(w->device, elements * sizeof(float), "products", &y);
        p->x = x;
        p->y = y;
        if (status == SF_OK) status = pack(w, p, host);
        if (status == SF_OK) status = fastest(w, multiply_once, p, &seconds);
        if (status == SF_OK) *rate_out = 2.0 * (double)elements * SIDE / seconds;
        if (p->y != NULL) k->free(w->device, p->y);
        k->free(w->device, x);
    }
    sf_free(host);
    return status;
}

static sf_status measure_products(struct sf_worker *w, double *rate_out)
{
    struct product p = {.rows = w->ws.tile_rows < ROWS_MAX ? w->ws.tile_rows : ROWS_MAX};
    struct sf_mat_shape shape = {.cols = SIDE, .panel_cols = SIDE, .k_slice = SIDE, .slices = 1,
                                 .dtype = w->spec.dtype, .int8 = w->spec.int8, .rows_max = p.rows};
    if (w->spec.spare_bytes < PRODUCT_BYTES) {
        too_little(w, "products");
        return SF_OK;
    }
    SF_TRY(w->device->k->mat_create(w->device, &shape, &p.mat));
    sf_status status = multiply(w, &p, rate_out);
    w->device->k->mat_destroy(w->device, p.mat);
    return status;
}

sf_status sf_roof_measure(struct sf_worker *w, struct sf_roof *roof_out)
{
    *roof_out = (struct sf_roof){0};
    if (strcmp(w->spec.device, "cuda-emulated") == 0) return SF_OK;
    SF_TRY(measure_reading(w, &roof_out->read_rate));
    sf_status status = measure_products(w, &roof_out->flop_rate);
    if (status != SF_NO_MEMORY) return status;
    sf_log(SF_LOG_WARN, "the rate of products is not measured: %s", sf_error_text());
    return SF_OK;
}
