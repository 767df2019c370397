/* kernels/cpu/mat.c: packed matrices and their products.
 *
 * A panel of the caller is cut into panels of `width` columns, and those are what threads take; a
 * tile is such a panel of one slice, packed in strips (product.h):
 *
 *   tiles   panel 0             panel 1                   last panel
 *         | slice 0 | slice 1 | slice 0 | slice 1 | ... | slice 0 | slice 1 |
 *
 * Columns of a tile are rounded up to 16 (fixed: to the whole width, so that every call has one
 * shape); columns that are not the matrix's hold zeros and their products are thrown away.
 *
 * Native: weights and x go to oneDNN as they are (f32; bf16 where the processor multiplies it).
 * Otherwise 16 bits are a storage type: a tile is kept in the order of an f32 tile, expanded chunk
 * by chunk of k into the thread's scratch, x likewise, and the product is one in f32.  Matrices of
 * 8-bit codes are int8.c's from end to end, those of bf16 pairs.c's where that pays.
 *
 * What a row's bits depend on, if the matrix is fixed: every product has SF_FIXED_ROWS rows, the
 * same columns, the same k and runs on one thread, so only the weights, the row itself and its
 * place among the 48 are left; that its place does not matter is a property of oneDNN's kernels
 * (rows are blocked, k is not), measured and tested.  Slices are added one after the other, in
 * f32. */
#include <string.h>
#include "base/memory.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/pairs.h"
#include "kernels/cpu/product.h"

enum { COLS_ALIGN = 16, WIDTH_MAX = 4096, CHUNK_MAX = 2048, ROWS_BLOCK_MAX = 256 };

/* Row counts that have a product of their own: any number up to 16, so that a small batch reads its
 * weights once; larger numbers are put together from a few of these. */
static const int32_t row_counts[] = { 256, 192, 128, 96, 64, 48, 32, 24, 16, 15, 14, 13, 12, 11, 10,
                                      9, 8, 7, 6, 5, 4, 3, 2, 1 };
enum { TAILS_MAX = 6 };                 /* so many suffice below 256 rows */

struct kind {                           /* full panels, and the last one */
    int32_t cols, cols_valid;           /* of a tile; of these, the matrix's */
    int32_t strip;
};
struct sf_mat {
    struct sf_mat_shape shape;
    int32_t width, panels;
    struct kind kind[2];
    int32_t chunk, chunks;              /* k of one product */
    int32_t native;
    unsigned char *tiles;
    size_t bytes;
    struct sf_int8 *int8;               /* one of these: then nothing else but the shape */
    struct sf_pairs *pairs;
};

/* ---- shapes ------------------------------------------------------------------------------------
 * */

/* 128 columns run best; 64 nearly as well, and make enough panels of a small matrix. */
static int32_t panel_width(const struct sf_mat_shape *shape)
{
    int deep = shape->slices > 1 && shape->k_slice > CHUNK_MAX;
    if (shape->panel_cols % 128 == 0 && shape->cols >= 2048 && !deep) return 128;
    return shape->panel_cols % 64 == 0 ? 64 : shape->panel_cols;
}

static int32_t round_up(int32_t count, int32_t to) { return (count + to - 1) / to * to; }

static int32_t last_cols(const struct sf_mat_shape *shape)
{
    int32_t width = panel_width(shape), rest = shape->cols % width;
    return round_up(rest == 0 || shape->fixed ? width : rest, COLS_ALIGN);
}

static int in_pairs(enum sf_isa isa, const struct sf_mat_shape *shape)
{
    return shape->dtype == SF_BF16 && !shape->int8 && sf_pairs_pay(isa);
}

static int64_t mat_bytes(const struct sf_mat_shape *shape)
{
    if (shape->int8) return sf_int8_bytes(shape);
    int32_t width = panel_width(shape), panels = (shape->cols + width - 1) / width;
    int64_t cols = (int64_t)(panels - 1) * round_up(width, COLS_ALIGN) + last_cols(shape);
    return cols * shape->k_slice * shape->slices * (int64_t)sf_dtype_bytes(shape->dtype);
}

/* Where pairs pay. */
static int64_t mat_bytes_pairs(const struct sf_mat_shape *shape)
{
    return shape->dtype == SF_BF16 && !shape->int8 ? sf_pairs_bytes(shape) : mat_bytes(shape);
}

static const struct kind *kind_of(const struct sf_mat *mat, int32_t panel)
{
    return &mat->kind[panel == mat->panels - 1];
}

static unsigned char *tile_of(const struct sf_mat *mat, int32_t panel, int32_t slice)
{
    size_t width = sf_dtype_bytes(mat->shape.dtype), k = (size_t)mat->shape.k_slice;
    size_t before = (size_t)panel * (size_t)mat->shape.slices * (size_t)mat->kind[0].cols * k;
    return mat->tiles +
           (before + (size_t)slice * (size_t)kind_of(mat, panel)->cols * k) * width;
}

static int32_t chunk_k(const struct sf_mat *mat, int32_t chunk)
{
    int32_t left = mat->shape.k_slice - chunk * mat->chunk;
    return left < mat->chunk ? left : mat->chunk;
}

/* ---- making ------------------------------------------------------------------------------------
 * */

/* The last chunk decides: where there are several, the others are a multiple of 32 anyhow. */
static sf_status strips_choose(struct sf_products *products, struct sf_mat *mat)
{
    enum sf_dtype dtype = mat->native ? mat->shape.dtype : SF_F32;
    for (int i = 0; i < 2; i++)
        SF_TRY(sf_products_strip(products, dtype, mat->kind[i].cols,
                                 chunk_k(mat, mat->chunks - 1), &mat->kind[i].strip));
    return SF_OK;
}

/* Cuts k so that an expanded chunk fits into a thread's scratch.  A slice of several is a leaf of a
 * sum and is not cut, so that it has one way to be computed. */
static sf_status chunks_choose(struct sf_mat *mat)
{
    int32_t k = mat->shape.k_slice, cols = mat->kind[0].cols;
    int32_t fits = (int32_t)(SF_WIDE_BYTES / sizeof(float)) / cols / 32 * 32;
    if (fits > CHUNK_MAX && mat->shape.slices == 1) fits = CHUNK_MAX;
    if (k > fits && mat->shape.slices > 1)
        return SF_FAIL(SF_UNSUPPORTED,
                       "a slice of %d x %d columns in %s does not fit into %d bytes of scratch", k,
                       cols, sf_dtype_name(mat->shape.dtype), SF_WIDE_BYTES);
    mat->chunks = (k + fits - 1) / fits;
    mat->chunk = mat->chunks == 1 ? k : round_up((k + mat->chunks - 1) / mat->chunks, 32);
    return SF_OK;
}

/* The rows of a leaf are gathered, SF_FIXED_ROWS at once; what does not fit is refused here and not
 * found out by the first call. */
static sf_status gather_fits(const struct sf_mat *mat)
{
    const struct sf_mat_shape *shape = &mat->shape;
    size_t width = mat->native ? sf_dtype_bytes(shape->dtype) : sizeof(float);
    size_t most = SF_X_BYTES / width / SF_FIXED_ROWS;
    if (!shape->fixed || shape->slices == 1 || (size_t)mat->chunk <= most) return SF_OK;
    return SF_FAIL(SF_UNSUPPORTED, "leaves of %d inputs in a fixed product (at most %zu in %s)",
                   shape->k_slice, most, sf_dtype_name(shape->dtype));
}

static sf_status mat_fill(struct sf_device *device, struct sf_mat *mat)
{
    const struct sf_mat_shape *shape = &mat->shape;
    struct sf_products *products = sf_cpu_of(device)->products;
    if (shape->int8) return sf_int8_create(device, shape, &mat->int8);
    if (in_pairs(device->isa, shape)) return sf_pairs_create(device, shape, &mat->pairs);
    mat->width = panel_width(shape);
    if (mat->width > WIDTH_MAX)
        return SF_FAIL(SF_UNSUPPORTED, "panels of %d columns (multiples of 64, or at most %d)",
                       shape->panel_cols, WIDTH_MAX);
    mat->panels = (shape->cols + mat->width - 1) / mat->width;
    mat->kind[0] = (struct kind){ round_up(mat->width, COLS_ALIGN), mat->width, 0 };
    mat->kind[1] = (struct kind){ last_cols(shape), shape->cols - (mat->panels - 1) * mat->width,
            0 };
    mat->chunk = shape->k_slice;
    mat->chunks = 1;
    mat->native = sf_isa_multiplies(device->isa, shape->dtype);
    sf_status status = mat->native ? strips_choose(products, mat) : SF_UNSUPPORTED;
    if (status == SF_UNSUPPORTED && shape->dtype != SF_F32) {
        mat->native = 0;
        SF_TRY(chunks_choose(mat));
        status = strips_choose(products, mat);
    }
    SF_TRY(status);
    SF_TRY(gather_fits(mat));
    mat->bytes = (size_t)mat_bytes(shape);
    return sf_cpu_weights_take(device, mat->bytes, (void **)&mat->tiles);
}

static sf_status mat_create(struct sf_device *device, const struct sf_mat_shape *shape,
                            struct sf_mat **out)
{
    SF_ASSERT(shape->cols > 0 && shape->panel_cols > 0 && shape->k_slice > 0 && shape->slices > 0);
    struct sf_mat *mat;
    SF_TRY(sf_alloc(sizeof *mat, "matrix", (void **)&mat));
    mat->shape = *shape;
    sf_status status = mat_fill(device, mat);
    if (status != SF_OK) {
        sf_free(mat);
        return status;
    }
    *out = mat;
    return SF_OK;
}

static void mat_destroy(struct sf_device *device, struct sf_mat *mat)
{
    if (!mat) return;
    sf_int8_destroy(device, mat->int8);
    sf_pairs_destroy(device, mat->pairs);
    sf_cpu_weights_give(device, mat->tiles, mat->bytes);
    sf_free(mat);
}

/* ---- packing -----------------------------------------------------------------------------------
 * */

enum { PACK_K = 32, PACK_COLS = 64 };

/* PACK_K rows of k (from `i`, inside chunk `c`) of one tile: gathered in f32 in the order of the
 * strip, then converted in one go.  `source` is [columns][k_slice]. */
static void pack_rows(const struct sf_cpu_isa *isa, const struct sf_mat *mat,
                      const struct kind *kind, const float *source, int32_t columns, int32_t c,
                      int32_t i, unsigned char *tile)
{
    float gathered[PACK_K * PACK_COLS];
    enum sf_dtype dtype = mat->shape.dtype;
    size_t k_slice = (size_t)mat->shape.k_slice, width = sf_dtype_bytes(dtype);
    int32_t k = chunk_k(mat, c), rows = k - i < PACK_K ? k - i : PACK_K;
    int32_t strip = kind->strip > 0 ? kind->strip : kind->cols;
    size_t pair = mat->native && dtype == SF_BF16 && kind->strip > 0 ? 2 : 1;
    unsigned char *chunk = tile + (size_t)c * (size_t)mat->chunk * (size_t)kind->cols * width;
    for (int32_t first = 0; first < kind->cols; first += strip) {
        unsigned char *target = chunk + ((size_t)first * (size_t)k + (size_t)i * (size_t)strip)
                * width;
        /* A plain strip may be wider than the buffer; only then is there more than one turn. */
        for (int32_t part = 0; part < strip; part += PACK_COLS) {
            int32_t cols = strip - part < PACK_COLS ? strip - part : PACK_COLS;
            for (int32_t n = 0; n < cols; n++) {
                int32_t column = first + part + n;
                const float *from = source + (size_t)column * k_slice +
                                    (size_t)c * (size_t)mat->chunk + (size_t)i;
                for (size_t r = 0; r < (size_t)rows; r++)
                    gathered[(r / pair * (size_t)cols + (size_t)n) * pair + r % pair] =
                        column < columns ? from[r] : 0;
            }
            if (cols == strip) {
                isa->from_f32(dtype, gathered, target, (size_t)rows * (size_t)strip);
                continue;
            }
            for (size_t r = 0; r < (size_t)rows; r++)
                isa->from_f32(dtype, gathered + r * (size_t)cols,
                              target + (r * (size_t)strip + (size_t)part) * width, (size_t)cols);
        }
    }
}

/* A tile's columns of one panel of ours, and how many steps of PACK_K each of its chunks takes. */
struct packing {
    const struct sf_cpu_isa *isa;
    const struct sf_mat *mat;
    const struct kind *kind;
    const float *source;
    unsigned char *target;
    int32_t steps;
};

static void pack_steps(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct packing *p = context;
    (void)thread;
    for (int32_t j = first; j < end; j++) {
        int32_t c = j / p->steps, i = j % p->steps * PACK_K;
        if (i < chunk_k(p->mat, c))
            pack_rows(p->isa, p->mat, p->kind, p->source, p->kind->cols_valid, c, i, p->target);
    }
}

static sf_status mat_pack(struct sf_device *device, struct sf_mat *mat, int32_t panel,
                          int32_t slice, const float *tile)
{
    const struct sf_cpu_isa *isa = sf_cpu_of(device)->isa;
    const struct sf_mat_shape *shape = &mat->shape;
    int32_t first = panel * shape->panel_cols, steps = round_up(mat->chunk, PACK_K) / PACK_K;
    SF_ASSERT(panel >= 0 && first < shape->cols && slice >= 0 && slice < shape->slices);
    if (mat->int8) {
        sf_int8_pack(device, mat->int8, panel, slice, tile);
        return SF_OK;
    }
    if (mat->pairs) {
        sf_pairs_pack(device, mat->pairs, panel, slice, tile);
        return SF_OK;
    }
    for (int32_t column = 0; column < shape->panel_cols && first + column < shape->cols;
         column += mat->width) {
        int32_t inner = (first + column) / mat->width;
        struct packing p = { isa, mat, kind_of(mat, inner),
                             tile + (size_t)column * (size_t)shape->k_slice,
                             tile_of(mat, inner, slice), steps };
        sf_cpu_share(device, (int64_t)p.kind->cols * shape->k_slice * 2, mat->chunks * steps, 0,
                     pack_steps, &p);
    }
    return SF_OK;
}

/* ---- multiplying -------------------------------------------------------------------------------
 * */

/* A call: its rows are cut into parts, `blocks` of equal size and then the tails. */
struct call {
    struct sf_device *device;
    const struct sf_mat *mat;
    const unsigned char *x;
    size_t x_stride;
    float *y;
    size_t y_stride, leaf_stride;
    int leaves;                         /* slices are not added but kept apart */
    int32_t block, blocks, tail[TAILS_MAX], tails;
    int32_t groups;                     /* of parts, by which threads take them */
    /* By number of rows (0: a block, 1 + i: tail i), kind of panel, and whether it is the last
     * chunk of k. */
    struct sf_product *product[1 + TAILS_MAX][2][2];
};

static int32_t bucket_below(int64_t rows)
{
    size_t i = 0;
    while (row_counts[i] > rows && row_counts[i] > 1) i++;
    return row_counts[i];
}

/* Whether the rows of x can be handed to a product as they lie. */
static int takes_x(const struct call *call)
{
    return call->mat->native && call->x_stride == (size_t)call->mat->chunk;
}

/* Rows of one product: as many as leave x and the sums in the caches (and in the scratch). */
static int32_t block_rows(const struct call *call)
{
    const struct sf_mat *mat = call->mat;
    int64_t width = mat->native ? (int64_t)sf_dtype_bytes(mat->shape.dtype) : 4;
    int64_t rows = (512 << 10) / (mat->chunk * width), fits = SF_Y_BYTES / 4 / mat->kind[0].cols;
    int64_t x_fits = takes_x(call) ? rows : SF_X_BYTES / width / mat->chunk;
    if (mat->shape.fixed) {
        /* A wider product takes x as it lies or not at all; nothing has rows that wide. */
        SF_ASSERT(takes_x(call) || x_fits >= SF_FIXED_ROWS);
        return SF_FIXED_ROWS;
    }
    if (rows < 48) rows = 48;
    if (!takes_x(call) && x_fits < rows) rows = x_fits;
    SF_ASSERT(rows > 0);
    return bucket_below(rows < fits ? rows : fits);
}

static void rows_cut(struct call *call, int32_t rows)
{
    call->block = block_rows(call);
    if (call->mat->shape.fixed) {
        call->blocks = (rows + call->block - 1) / call->block;
        return;
    }
    call->blocks = rows / call->block;
    for (int32_t left = rows % call->block; left > 0; left -= call->tail[call->tails - 1]) {
        SF_ASSERT(call->tails < TAILS_MAX);
        call->tail[call->tails++] = bucket_below(left);
    }
}

/* Whether a product may write to y itself: nothing to add, and the columns are all of the row. */
static int writes_y(const struct call *call, const struct kind *kind)
{
    int32_t addends = call->mat->chunks * (call->leaves ? 1 : call->mat->shape.slices);
    return addends == 1 && kind->cols == kind->cols_valid && call->y_stride == (size_t)kind->cols;
}

static sf_status products_find(struct call *call)
{
    const struct sf_mat *mat = call->mat;
    struct sf_products *products = sf_cpu_of(call->device)->products;
    for (int i = call->blocks > 0 ? 0 : 1; i < 1 + call->tails; i++)
        for (int j = mat->panels > 1 ? 0 : 1; j < 2; j++)
            for (int last = mat->chunks > 1 ? 0 : 1; last < 2; last++) {
                const struct kind *kind = &mat->kind[j];
                struct sf_product_shape shape = {
                    .rows = i == 0 ? call->block : call->tail[i - 1], .cols = kind->cols,
                    .k = last ? chunk_k(mat, mat->chunks - 1) : mat->chunk, .strip = kind->strip,
                    .dtype = mat->native ? mat->shape.dtype : SF_F32
                };
                SF_TRY(sf_products_get(products, &shape, &call->product[i][j][last]));
            }
    return SF_OK;
}

static void sums_store(const struct sf_cpu_isa *isa, const float *sums, size_t sums_stride,
                       int32_t rows, int32_t cols, int first, float *y, size_t y_stride)
{
    for (size_t r = 0; r < (size_t)rows; r++) {
        if (first) memcpy(y + r * y_stride, sums + r * sums_stride, (size_t)cols * sizeof *y);
        else isa->add((size_t)cols, sums + r * sums_stride, y + r * y_stride);
    }
}

/* Rows of k elements, one behind the other, in the type of the product. */
static void x_gather(const struct sf_cpu_isa *isa, const struct sf_mat *mat, const unsigned char *x,
                     size_t x_stride, int32_t rows, size_t k, float *dense)
{
    size_t width = sf_dtype_bytes(mat->shape.dtype);
    for (size_t r = 0; r < (size_t)rows; r++) {
        const unsigned char *from = x + r * x_stride * width;
        if (mat->native) memcpy((unsigned char *)dense + r * k * width, from, k * width);
        else isa->to_f32(mat->shape.dtype, from, dense + r * k, k);
    }
}

/* Part `part` of the rows times chunk `c` of one tile. */
static void part_run(const struct call *call, int32_t panel, int32_t slice, int32_t c, int32_t part,
                     const void *weights, int32_t thread)
{
    const struct sf_mat *mat = call->mat;
    const struct sf_cpu *cpu = sf_cpu_of(call->device);
    const struct kind *kind = kind_of(mat, panel);
    int32_t tail = part - call->blocks, row = part * call->block, rows = call->block;
    if (tail >= 0) {
        row = call->blocks * call->block;
        for (int32_t i = 0; i < tail; i++) row += call->tail[i];
        rows = call->tail[tail];
    }
    size_t width = sf_dtype_bytes(mat->shape.dtype), k = (size_t)chunk_k(mat, c);
    size_t at = (size_t)slice * (size_t)mat->shape.k_slice + (size_t)c * (size_t)mat->chunk;
    const unsigned char *x = call->x + ((size_t)row * call->x_stride + at) * width;
    struct sf_product_scratch scratch = sf_products_scratch(cpu->products, thread);
    if (!takes_x(call)) {
        x_gather(cpu->isa, mat, x, call->x_stride, rows, k, scratch.x);
        x = (const unsigned char *)scratch.x;
    }
    float *y = call->y + (size_t)row * call->y_stride + (size_t)panel * (size_t)mat->width;
    if (call->leaves) y += (size_t)slice * call->leaf_stride;
    int direct = writes_y(call, kind), first = c == 0 && (call->leaves || slice == 0);
    sf_product_run(cpu->products,
                   call->product[tail < 0 ? 0 : 1 + tail][kind == &mat->kind[1]]
                                [c == mat->chunks - 1],
                   thread, x, weights, direct ? y : scratch.y);
    if (!direct)
        sums_store(cpu->isa, scratch.y, (size_t)kind->cols, rows, kind->cols_valid, first, y,
                   call->y_stride);
}

/* One panel times the parts first .. end - 1: each tile is expanded once and used for all. */
static void panel_run(const struct call *call, int32_t panel, int32_t first, int32_t end,
                      int32_t thread)
{
    const struct sf_mat *mat = call->mat;
    const struct sf_cpu *cpu = sf_cpu_of(call->device);
    size_t cols = (size_t)kind_of(mat, panel)->cols, width = sf_dtype_bytes(mat->shape.dtype);
    for (int32_t slice = 0; slice < mat->shape.slices; slice++)
        for (int32_t c = 0; c < mat->chunks; c++) {
            const void *weights =
                tile_of(mat, panel, slice) + (size_t)c * (size_t)mat->chunk * cols * width;
            if (!mat->native) {
                float *wide = sf_products_scratch(cpu->products, thread).wide;
                cpu->isa->to_f32(mat->shape.dtype, weights, wide, (size_t)chunk_k(mat, c) * cols);
                weights = wide;
            }
            for (int32_t part = first; part < end; part++)
                part_run(call, panel, slice, c, part, weights, thread);
        }
}

/* Tasks are (panel, group of row parts). */
static void tasks_run(void *context, int32_t begin, int32_t end, int32_t thread)
{
    const struct call *call = context;
    int32_t parts = call->blocks + call->tails, groups = call->groups;
    for (int32_t task = begin; task < end; task++) {
        int32_t group = task % groups;
        panel_run(call, task / groups, (int32_t)((int64_t)group * parts / groups),
                  (int32_t)((int64_t)(group + 1) * parts / groups), thread);
    }
}

/* Rows are cut into groups only where there are too few panels to keep the threads level. */
static void call_run(struct call *call, int32_t rows)
{
    const struct sf_mat *mat = call->mat;
    int32_t threads = call->device->threads, panels = mat->panels;
    if (rows <= 0) return;
    rows_cut(call, rows);
    sf_status status = products_find(call);
    SF_ASSERT(status == SF_OK);
    int32_t parts = call->blocks + call->tails, groups = (4 * threads + panels - 1) / panels;
    call->groups = threads == 1 ? 1 : groups < parts ? groups : parts;
    int64_t k = (int64_t)mat->shape.k_slice * mat->shape.slices;
    sf_cpu_share(call->device, rows * k * mat->shape.cols / 8, panels * call->groups, 1, tasks_run,
                 call);
}

static void multiply(struct sf_device *device, const struct sf_mat *mat,
                     const struct sf_mat_call *asked)
{
    struct call call = { .device = device, .mat = mat, .x = asked->x, .x_stride = asked->x_stride,
                         .y = asked->y, .y_stride = asked->y_stride,
                         .leaf_stride = asked->leaf_stride, .leaves = asked->leaves };
    if (mat->int8) sf_int8_multiply(device, mat->int8, asked);
    else if (mat->pairs) sf_pairs_multiply(device, mat->pairs, asked);
    else call_run(&call, asked->rows);
}

static void matmul(struct sf_device *device, const struct sf_mat *mat, int32_t rows, const void *x,
                   size_t x_stride, float *y, size_t y_stride)
{
    multiply(device, mat, &(struct sf_mat_call){ .x = x, .x_stride = x_stride, .y = y,
                                                 .y_stride = y_stride, .rows = rows });
}

static void matmul_leaves(struct sf_device *device, const struct sf_mat *mat, int32_t rows,
                          const void *x, size_t x_stride, float *leaves, size_t leaf_stride,
                          size_t row_stride)
{
    multiply(device, mat, &(struct sf_mat_call){ .x = x, .x_stride = x_stride, .y = leaves,
                                                 .y_stride = row_stride,
                                                 .leaf_stride = leaf_stride, .rows = rows,
                                                 .leaves = 1 });
}

void sf_cpu_mat_fill(struct sf_kernels *k, enum sf_isa isa)
{
    k->mat_bytes = sf_pairs_pay(isa) ? mat_bytes_pairs : mat_bytes;
    k->mat_create = mat_create;
    k->mat_destroy = mat_destroy;
    k->mat_pack = mat_pack;
    k->matmul = matmul;
    k->matmul_leaves = matmul_leaves;
}
