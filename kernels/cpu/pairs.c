/* kernels/cpu/pairs.c: packed matrices of bf16 and their products (pairs.h).
 *
 * Rows are taken in blocks that stay in the caches; x is read as it lies, y written as it is asked
 * for, so there is no scratch.  Threads take tasks of some tiles of rows times a strip, strip by
 * strip, so that what comes next is known. */
#include "kernels/cpu/pairs.h"
#include <string.h>
#include "base/memory.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/strips.h"

enum { STRIP = SF_STRIP, COLS_ALIGN = 16, TILE_ROWS = 6, K_CHUNK = 2048, X_BYTES = 512 << 10,
       ROWS_BLOCK_MIN = 96, PACK_K = 256 };

struct sf_pairs {
    struct sf_mat_shape shape;
    int32_t k, cols;                    /* of a slice, rounded up to 2; rounded up to 16 */
    uint16_t *weights;
    size_t bytes;
};

int sf_pairs_pay(enum sf_isa isa)
{
    return isa == SF_ISA_AVX512_BF16 && !sf_isa_amx();
}

/* ---- shapes and packing ------------------------------------------------------------------------
 * */

static int32_t round_up(int32_t count, int32_t to) { return (count + to - 1) / to * to; }

int64_t sf_pairs_bytes(const struct sf_mat_shape *shape)
{
    return (int64_t)round_up(shape->cols, COLS_ALIGN) * round_up(shape->k_slice, 2) *
           shape->slices * (int64_t)sizeof(uint16_t);
}

sf_status sf_pairs_create(struct sf_device *device, const struct sf_mat_shape *shape,
                          struct sf_pairs **out)
{
    struct sf_pairs *mat;
    SF_TRY(sf_alloc(sizeof *mat, "matrix", (void **)&mat));
    mat->shape = *shape;
    mat->k = round_up(shape->k_slice, 2);
    mat->cols = round_up(shape->cols, COLS_ALIGN);
    mat->bytes = (size_t)sf_pairs_bytes(shape);
    sf_status status = sf_cpu_weights_take(device, mat->bytes, (void **)&mat->weights);
    if (status != SF_OK) {
        sf_free(mat);
        return status;
    }
    *out = mat;
    return SF_OK;
}

void sf_pairs_destroy(struct sf_device *device, struct sf_pairs *mat)
{
    if (!mat) return;
    sf_cpu_weights_give(device, mat->weights, mat->bytes);
    sf_free(mat);
}

static int32_t strip_cols(const struct sf_pairs *mat, int32_t strip)
{
    return sf_strip_cols(mat->cols, strip);
}

static uint16_t *tile_of(const struct sf_pairs *mat, int32_t strip, int32_t slice)
{
    return mat->weights + sf_strip_tile(mat->cols, mat->k, mat->shape.slices, strip, slice);
}

/* Columns `first` .. `end` - 1 (at most COLS_ALIGN, of one strip) of a slice, `from` being the
 * first one's: some k of each to bf16, then pair by pair. */
static void pack_columns(const struct sf_cpu_isa *isa, struct sf_pairs *mat, int32_t first,
                         int32_t end, int32_t slice, const float *from)
{
    uint16_t some[COLS_ALIGN][PACK_K];
    int32_t strip = first / STRIP, k_slice = mat->shape.k_slice;
    size_t cols = (size_t)strip_cols(mat, strip);
    uint16_t *target = tile_of(mat, strip, slice) + (size_t)(first % STRIP) * 2;
    for (int32_t k = 0; k < k_slice; k += PACK_K) {
        int32_t count = k_slice - k < PACK_K ? k_slice - k : PACK_K;
        for (int32_t c = 0; c < end - first; c++) {
            isa->from_f32(SF_BF16, from + (size_t)c * (size_t)k_slice + (size_t)k, some[c],
                          (size_t)count);
            if (count % 2) some[c][count] = 0;
        }
        for (int32_t i = 0; i < count; i += 2, target += cols * 2)
            for (int32_t c = 0; c < end - first; c++)
                memcpy(target + 2 * c, &some[c][i], 2 * sizeof *target);
    }
}

struct packing {
    const struct sf_cpu_isa *isa;
    struct sf_pairs *mat;
    int32_t first, end, slice;          /* columns of the matrix */
    const float *tile;
};

/* Groups of COLS_ALIGN columns, counted from that of the first column. */
static void pack_groups(void *context, int32_t begin, int32_t stop, int32_t thread)
{
    const struct packing *p = context;
    (void)thread;
    for (int32_t group = begin; group < stop; group++) {
        int32_t from = (p->first / COLS_ALIGN + group) * COLS_ALIGN, to = from + COLS_ALIGN;
        if (from < p->first) from = p->first;
        pack_columns(p->isa, p->mat, from, to < p->end ? to : p->end, p->slice,
                     p->tile + (size_t)(from - p->first) * (size_t)p->mat->shape.k_slice);
    }
}

void sf_pairs_pack(struct sf_device *device, struct sf_pairs *mat, int32_t panel, int32_t slice,
                   const float *tile)
{
    const struct sf_cpu_isa *isa = sf_cpu_of(device)->isa;
    const struct sf_mat_shape *shape = &mat->shape;
    int32_t first = panel * shape->panel_cols, end = first + shape->panel_cols;
    SF_ASSERT(panel >= 0 && first < shape->cols && slice >= 0 && slice < shape->slices);
    if (end > shape->cols) end = shape->cols;
    struct packing p = { isa, mat, first, end, slice, tile };
    sf_cpu_share(device, (int64_t)(end - first) * shape->k_slice * 2,
                 (end - 1) / COLS_ALIGN - first / COLS_ALIGN + 1, 0, pack_groups, &p);
}

/* ---- multiplying -------------------------------------------------------------------------------
 * */

/* Some rows of a call, and how they are dealt: task (part, group of tiles), part by part. */
struct block {
    const struct sf_pairs *mat;
    const struct sf_mat_call *call;
    int32_t first, rows;                /* of the call's */
    int32_t width, parts;               /* columns of a part: a strip, or some of one */
    int32_t tiles, groups;
    int32_t threads;
};

static const uint16_t *part_weights(const struct block *b, int32_t part, int32_t slice)
{
    int32_t col = part * b->width;
    return tile_of(b->mat, col / STRIP, slice) + (size_t)(col % STRIP) * 2;
}

/* Rows `from` to `end` of a block times one part; `next` is the part that this thread is likely to
 * have after that. */
static void part_run(const struct block *b, int32_t part, int32_t next, int32_t from, int32_t end)
{
    const struct sf_pairs *mat = b->mat;
    const struct sf_mat_call *call = b->call;
    int32_t col = part * b->width, left = mat->shape.cols - col, slices = mat->shape.slices;
    int32_t k_slice = mat->shape.k_slice, w_cols = strip_cols(mat, col / STRIP);
    size_t row = (size_t)(b->first + from);
    for (int32_t s = 0; s < slices; s++) {
        int first = s == 0 || call->leaves, cut = first && end - from > TILE_ROWS;
        int32_t chunk = cut ? K_CHUNK : k_slice;
        for (int32_t k = 0; k < k_slice; k += chunk) {
            struct sf_pairs_tile tile = {
                .x = (const uint16_t *)call->x + row * call->x_stride + (size_t)(s * k_slice + k),
                .x_stride = call->x_stride,
                .w = part_weights(b, part, s) + (size_t)k * (size_t)w_cols,
                .w_cols = w_cols, .rows = end - from,
                .k = k_slice - k < chunk ? k_slice - k : chunk,
                .cols = left < b->width ? left : b->width,
                .out = call->y + row * call->y_stride + (size_t)col, .out_stride = call->y_stride,
                .how = k > 0 ? SF_PAIRS_GO_ON : first ? SF_PAIRS_STORE : SF_PAIRS_ADD
            };
            if (call->leaves) tile.out += (size_t)s * call->leaf_stride;
            if (k + chunk < k_slice) tile.ahead = tile.w + (size_t)chunk * (size_t)w_cols;
            else if (s + 1 < slices) tile.ahead = part_weights(b, part, s + 1);
            else if (next < b->parts) tile.ahead = part_weights(b, next, 0);
            else tile.ahead = tile.w;
            sf_pairs_dot(&tile);
        }
    }
}

/* Several tasks a thread, so that one that starts late or is held up holds up nobody: rows are cut
 * into groups of tiles first, strips into parts where there are not rows enough. */
static void deal(struct block *b)
{
    int32_t wanted = b->threads == 1 ? 1 : 8 * b->threads;
    b->tiles = (b->rows + TILE_ROWS - 1) / TILE_ROWS;
    for (b->width = STRIP;; b->width /= 2) {
        b->parts = (b->mat->cols + b->width - 1) / b->width;
        b->groups = (wanted + b->parts - 1) / b->parts;
        if (b->groups > b->tiles) b->groups = b->tiles;
        if (b->width == COLS_ALIGN || b->parts * b->groups >= wanted / 2) return;
    }
}

static int32_t row_of(const struct block *b, int32_t group)
{
    int32_t tile = (int32_t)((int64_t)b->tiles * group / b->groups);
    return (int32_t)((int64_t)b->rows * tile / b->tiles);
}

static void tasks_run(void *context, int32_t begin, int32_t end, int32_t thread)
{
    const struct block *b = context;
    (void)thread;
    for (int32_t task = begin; task < end; task++) {
        int32_t part = task / b->groups, group = task % b->groups;
        int32_t next = (task + b->threads) / b->groups;
        part_run(b, part, next, row_of(b, group), row_of(b, group + 1));
    }
}

static void block_run(struct sf_device *device, struct block *b)
{
    const struct sf_mat_shape *shape = &b->mat->shape;
    int64_t operations = (int64_t)shape->k_slice * shape->slices * b->rows * shape->cols / 8;
    b->threads = sf_cpu_threads_pay(device, operations) ? device->threads : 1;
    deal(b);
    sf_cpu_share(device, operations, b->parts * b->groups, 1, tasks_run, b);
}

void sf_pairs_multiply(struct sf_device *device, const struct sf_pairs *mat,
                       const struct sf_mat_call *call)
{
    int64_t row_bytes = (int64_t)mat->k * mat->shape.slices * (int64_t)sizeof(uint16_t);
    int32_t most = (int32_t)(X_BYTES / row_bytes);
    if (most < ROWS_BLOCK_MIN) most = ROWS_BLOCK_MIN;
    for (int32_t first = 0; first < call->rows; first += most) {
        struct block b = { .mat = mat, .call = call, .first = first, .rows = call->rows - first };
        if (b.rows > most) b.rows = most;
        block_run(device, &b);
    }
}
