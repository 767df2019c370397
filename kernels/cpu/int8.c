/* kernels/cpu/int8.c: packed matrices of 8-bit codes and their products (int8.h).
 *
 * A call turns its rows into codes, as many at once as fit into the scratch, which all threads then
 * read; threads take (strip, group of rows).  A strip's sums are scaled as they leave the
 * registers: into y where there is nothing to add and no column too many, else into the thread's
 * scratch. */
#include "kernels/cpu/int8.h"
#include <string.h>
#include "base/memory.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/strips.h"

enum { STRIP = SF_STRIP, COLS_ALIGN = 16, ROWS_BLOCK_MAX = 1024, ROWS_GROUP = 12 };

struct sf_int8 {
    struct sf_mat_shape shape;
    int32_t k, cols;                    /* of a slice, rounded up to 4; rounded up to 16 */
    uint8_t *codes;
    float *scale;                       /* behind the codes */
    size_t bytes;
};

/* ---- shapes and packing ------------------------------------------------------------------------
 * */

static int32_t round_up(int32_t count, int32_t to) { return (count + to - 1) / to * to; }

static int64_t code_bytes(const struct sf_mat_shape *shape)
{
    return (int64_t)round_up(shape->cols, COLS_ALIGN) * round_up(shape->k_slice, 4) * shape->slices;
}

int64_t sf_int8_bytes(const struct sf_mat_shape *shape)
{
    return code_bytes(shape) + (int64_t)round_up(shape->cols, COLS_ALIGN) * shape->slices *
                                   (int64_t)sizeof(float);
}

/* Bytes of the codes of a row and of what is known of them. */
static size_t row_bytes(const struct sf_mat_shape *shape)
{
    return (size_t)shape->slices *
           ((size_t)round_up(shape->k_slice, 4) + sizeof(struct sf_int8_row));
}

sf_status sf_int8_create(struct sf_device *device, const struct sf_mat_shape *shape,
                         struct sf_int8 **out)
{
    struct sf_int8 *mat;
    void *block;
    if (shape->k_slice > SF_INT8_K_MAX || row_bytes(shape) > SF_WIDE_BYTES)
        return SF_FAIL(SF_UNSUPPORTED, "an int8 product of %d x %d inputs (at most %d x %d)",
                       shape->slices, shape->k_slice, SF_WIDE_BYTES / SF_INT8_K_MAX - 1,
                       SF_INT8_K_MAX);
    SF_TRY(sf_alloc(sizeof *mat, "matrix", (void **)&mat));
    mat->shape = *shape;
    mat->k = round_up(shape->k_slice, 4);
    mat->cols = round_up(shape->cols, COLS_ALIGN);
    mat->bytes = (size_t)sf_int8_bytes(shape);
    sf_status status = sf_cpu_weights_take(device, mat->bytes, &block);
    if (status != SF_OK) {
        sf_free(mat);
        return status;
    }
    mat->codes = block;
    mat->scale = (float *)(void *)(mat->codes + code_bytes(shape));
    *out = mat;
    return SF_OK;
}

void sf_int8_destroy(struct sf_device *device, struct sf_int8 *mat)
{
    if (!mat) return;
    sf_cpu_weights_give(device, mat->codes, mat->bytes);
    sf_free(mat);
}

static int32_t strip_cols(const struct sf_int8 *mat, int32_t strip)
{
    return sf_strip_cols(mat->cols, strip);
}

static uint8_t *tile_of(const struct sf_int8 *mat, int32_t strip, int32_t slice)
{
    return mat->codes + sf_strip_tile(mat->cols, mat->k, mat->shape.slices, strip, slice);
}

/* One column: its codes, four at a time. */
static void pack_column(const struct sf_cpu_isa *isa, struct sf_int8 *mat, int32_t column,
                        int32_t slice, const float *from)
{
    int32_t strip = column / STRIP, cols = strip_cols(mat, strip), count = mat->shape.k_slice;
    uint8_t *tile = tile_of(mat, strip, slice) + (size_t)(column % STRIP) * 4;
    int8_t codes[SF_INT8_K_MAX];
    struct sf_int8_row row;
    isa->quantise(SF_F32, from, (size_t)count, codes, &row);
    memset(codes + count, 0, (size_t)(mat->k - count));
    for (int32_t k = 0; k < mat->k; k += 4)
        for (int32_t i = 0; i < 4; i++)
            tile[(size_t)k * (size_t)cols + (size_t)i] = (uint8_t)(codes[k + i] + 128);
    mat->scale[(size_t)slice * (size_t)mat->cols + (size_t)column] = row.scale;
}

struct packing {
    const struct sf_cpu_isa *isa;
    struct sf_int8 *mat;
    int32_t first, slice;               /* column of the matrix */
    const float *tile;
};

static void pack_columns(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct packing *p = context;
    (void)thread;
    for (int32_t c = first; c < end; c++)
        pack_column(p->isa, p->mat, p->first + c, p->slice,
                    p->tile + (size_t)c * (size_t)p->mat->shape.k_slice);
}

void sf_int8_pack(struct sf_device *device, struct sf_int8 *mat, int32_t panel, int32_t slice,
                  const float *tile)
{
    const struct sf_cpu_isa *isa = sf_cpu_of(device)->isa;
    const struct sf_mat_shape *shape = &mat->shape;
    int32_t first = panel * shape->panel_cols, cols = shape->cols - first;
    SF_ASSERT(panel >= 0 && cols > 0 && slice >= 0 && slice < shape->slices);
    if (cols > shape->panel_cols) cols = shape->panel_cols;
    struct packing p = { isa, mat, first, slice, tile };
    sf_cpu_share(device, (int64_t)cols * shape->k_slice * 2, cols, 0, pack_columns, &p);
}

/* ---- multiplying -------------------------------------------------------------------------------
 * */

/* Some rows of a call, as codes. */
struct block {
    const struct sf_cpu *cpu;
    const struct sf_int8 *mat;
    const struct sf_mat_call *call;
    int32_t first, rows;                /* of the call's */
    int32_t group, groups;              /* rows of a group, groups */
    int8_t *codes;                      /* [rows][slices * k] */
    struct sf_int8_row *row;            /* [slices][rows] */
};

static void row_quantise(const struct sf_cpu_isa *isa, const struct block *b, int32_t r)
{
    const struct sf_mat_shape *shape = &b->mat->shape;
    size_t width = sf_dtype_bytes(shape->dtype), k = (size_t)b->mat->k;
    size_t count = (size_t)shape->k_slice, slices = (size_t)shape->slices;
    const unsigned char *x = (const unsigned char *)b->call->x +
                             (size_t)(b->first + r) * b->call->x_stride * width;
    for (size_t s = 0; s < slices; s++) {
        int8_t *codes = b->codes + ((size_t)r * slices + s) * k;
        isa->quantise(shape->dtype, x + s * count * width, count, codes,
                      &b->row[s * (size_t)b->rows + (size_t)r]);
        memset(codes + count, 0, k - count);
    }
}

static void out_store(const struct sf_cpu_isa *isa, const struct sf_int8_tile *tile, int32_t cols,
                      int first, float *y, size_t y_stride)
{
    for (size_t r = 0; r < (size_t)tile->rows; r++) {
        const float *from = tile->out + r * tile->out_stride;
        if (first) memcpy(y + r * y_stride, from, (size_t)cols * sizeof *y);
        else isa->add((size_t)cols, from, y + r * y_stride);
    }
}

/* Rows `from` to `end` of a block times one strip. */
static void strip_run(const struct sf_cpu *cpu, const struct block *b, int32_t strip, int32_t from,
                      int32_t end, int32_t thread)
{
    const struct sf_int8 *mat = b->mat;
    const struct sf_mat_call *call = b->call;
    float *scratch = sf_products_scratch(cpu->products, thread).y;
    int32_t left = mat->shape.cols - strip * STRIP, valid = left < STRIP ? left : STRIP;
    size_t row_codes = (size_t)mat->shape.slices * (size_t)mat->k;
    for (int32_t s = 0; s < mat->shape.slices; s++) {
        float *y = call->y + (size_t)(b->first + from) * call->y_stride + (size_t)strip * STRIP;
        if (call->leaves) y += (size_t)s * call->leaf_stride;
        struct sf_int8_tile tile = {
            .x = b->codes + (size_t)from * row_codes + (size_t)s * (size_t)mat->k,
            .x_stride = row_codes, .row = b->row + (size_t)s * (size_t)b->rows + (size_t)from,
            .w = tile_of(mat, strip, s),
            .scale = mat->scale + (size_t)s * (size_t)mat->cols + (size_t)strip * STRIP,
            .rows = end - from, .k = mat->k, .cols = strip_cols(mat, strip),
            .out = y, .out_stride = call->y_stride
        };
        int first = s == 0 || call->leaves, direct = first && valid == tile.cols;
        if (!direct) {
            tile.out = scratch;
            tile.out_stride = STRIP;
        }
        cpu->int8_dot(&tile);
        if (!direct) out_store(cpu->isa, &tile, valid, first, y, call->y_stride);
    }
}

static void rows_quantise(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct block *b = context;
    (void)thread;
    for (int32_t r = first; r < end; r++) row_quantise(b->cpu->isa, b, r);
}

/* Tasks are (strip, group of rows). */
static void tasks_run(void *context, int32_t begin, int32_t end, int32_t thread)
{
    const struct block *b = context;
    for (int32_t task = begin; task < end; task++) {
        int32_t first = task % b->groups * b->group, last = first + b->group;
        strip_run(b->cpu, b, task / b->groups, first, last < b->rows ? last : b->rows, thread);
    }
}

/* Rows are cut into groups only where there are too few strips to keep the threads level. */
static void block_run(struct sf_device *device, struct block *b)
{
    const struct sf_mat_shape *shape = &b->mat->shape;
    int32_t threads = device->threads, strips = (b->mat->cols + STRIP - 1) / STRIP;
    int32_t groups = threads == 1 ? 1 : (4 * threads + strips - 1) / strips;
    b->group = round_up((b->rows + groups - 1) / groups, ROWS_GROUP);
    b->groups = (b->rows + b->group - 1) / b->group;
    int64_t operations = (int64_t)shape->k_slice * shape->slices * b->rows * shape->cols / 16;
    sf_cpu_share(device, operations, b->rows, 0, rows_quantise, b);
    sf_cpu_share(device, operations, strips * b->groups, 1, tasks_run, b);
}

void sf_int8_multiply(struct sf_device *device, const struct sf_int8 *mat,
                      const struct sf_mat_call *call)
{
    const struct sf_cpu *cpu = sf_cpu_of(device);
    void *shared = sf_products_scratch(cpu->products, 0).wide;
    int32_t most = (int32_t)(SF_WIDE_BYTES / row_bytes(&mat->shape));
    if (most > ROWS_BLOCK_MAX) most = ROWS_BLOCK_MAX;
    for (int32_t first = 0; first < call->rows; first += most) {
        struct block b = { .cpu = cpu, .mat = mat, .call = call, .first = first,
                           .rows = call->rows - first };
        if (b.rows > most) b.rows = most;
        b.row = shared;
        b.codes = (int8_t *)(b.row + (size_t)b.rows * (size_t)mat->shape.slices);
        block_run(device, &b);
    }
}
