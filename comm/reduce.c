/* comm/reduce.c: the ordered sum of leaves over a tensor group (definition in reduce.h).
 *
 *   this rank's memory, in floats (a block is at most ceil(cols / p) columns):
 *     shared    window:  | leaf 0 [rows_max][cols] | leaf 1 | ... | sum of my block [rows][block] |
 *     exchange  private: | the same ... | out: my leaves, cut | in: their leaves | in: a sum |
 *     alone     private: | leaf 0 | leaf 1 | ...
 *
 *   shared:    leaves written - barrier - add up my block - barrier - x += everyone's sums
 *   exchange:  send everyone his columns of my leaves, receive mine of theirs, add up my block;
 *              send its sum to everyone, x += theirs as they come
 *
 * Two barriers are enough: leaves are written again only after the second one of the call before,
 * when they have been read; a sum is written again only after the first one of the next call, when
 * everyone has added it to his x.  All paths call the same add_up on the same leaves in the same
 * order, which starts from leaf 0 itself and not from zero (-0 stays -0). */
#include "comm/reduce.h"

#include <string.h>
#include "base/crew.h"
#include "base/memory.h"
#include "comm/backend.h"

enum { TILE = 256, WORK_PER_THREAD = 16 * 1024 };       /* floats */
enum { TAG_LEAVES = 8, TAG_SUM };

enum mode { ALONE, SHARED, EXCHANGE };

/* Part of a leaf, [rows][columns]; rows lie `stride` floats apart. */
struct source { const float *data; size_t stride; };

struct layout {
    size_t leaf, leaves, sum, out, in, sum_in;          /* floats; leaf: the stride */
    size_t sources, requests;                           /* counts */
};

struct sf_reduce {
    struct sf_comm *group;
    struct sf_reduce_spec spec;
    enum mode mode;
    struct layout layout;
    struct sf_window *window;           /* of SHARED, else NULL */
    float *memory;                      /* my leaves and what follows them */
    struct source *source;              /* [sources] */
    struct sf_request **request;        /* [requests] */
};

void sf_reduce_block(int32_t cols, int32_t ranks, int32_t rank, int32_t *first_out,
                     int32_t *count_out)
{
    int32_t first = (int32_t)((int64_t)cols * rank / ranks);
    *first_out = first;
    *count_out = (int32_t)((int64_t)cols * (rank + 1) / ranks) - first;
}

/* ---- adding ---------------------------------------------------------------------------------- */
/* total[c] = ((l0 + l1) + l2) + ... for c < count; four leaves for each pass over `total`. */
static void add_leaves(const struct source *source, int32_t leaves, int32_t row, size_t column,
                       int32_t count, float *restrict total)
{
    memcpy(total, source[0].data + (size_t)row * source[0].stride + column,
           (size_t)count * sizeof *total);
    int32_t i = 1;
    for (; i + 4 <= leaves; i += 4) {
        const float *a = source[i].data + (size_t)row * source[i].stride + column;
        const float *b = source[i + 1].data + (size_t)row * source[i + 1].stride + column;
        const float *c = source[i + 2].data + (size_t)row * source[i + 2].stride + column;
        const float *d = source[i + 3].data + (size_t)row * source[i + 3].stride + column;
#pragma omp simd
        for (int32_t k = 0; k < count; k++) total[k] = (((total[k] + a[k]) + b[k]) + c[k]) + d[k];
    }
    for (; i < leaves; i++) {
        const float *a = source[i].data + (size_t)row * source[i].stride + column;
#pragma omp simd
        for (int32_t k = 0; k < count; k++) total[k] += a[k];
    }
}

/* Shares out `count` things of so many floats in all. */
static void share(const struct sf_reduce *reduce, int64_t floats, int32_t count,
                  sf_crew_work *work, void *context)
{
    struct sf_crew *crew = floats / 2 < WORK_PER_THREAD ? NULL : reduce->spec.crew;
    sf_crew_run(crew, count, sf_crew_piece(crew, count), work, context);
}

/* out[r][c] = sum of the sources, or += with `onto`: in tiles of one row. */
struct sum {
    const struct source *source;
    int32_t count, leaves, tiles;
    int onto;
    float *out; size_t out_stride;
};

static void add_tiles(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct sum *sum = context;
    (void)thread;
    for (int32_t unit = first; unit < end; unit++) {
        int32_t row = unit / sum->tiles, column = unit % sum->tiles * TILE;
        int32_t width = sum->count - column < TILE ? sum->count - column : TILE;
        float *target = sum->out + (size_t)row * sum->out_stride + column;
        float total[TILE];
        add_leaves(sum->source, sum->leaves, row, (size_t)column, width, total);
        if (!sum->onto) {
            memcpy(target, total, (size_t)width * sizeof *target);
            continue;
        }
#pragma omp simd
        for (int32_t k = 0; k < width; k++) target[k] += total[k];
    }
}

static void add_up(const struct sf_reduce *reduce, int32_t rows, int32_t count, int32_t leaves,
                   int onto, float *out, size_t out_stride)
{
    struct sum sum = {reduce->source, count, leaves, (count + TILE - 1) / TILE, onto, out,
                      out_stride};
    share(reduce, (int64_t)rows * count * leaves, rows * sum.tiles, add_tiles, &sum);
}

/* x[r][first + c] += sum[r][c] for the column block of `rank`. */
struct onto { const float *sum; int32_t first, count; float *x; size_t x_stride; };

static void add_rows(void *context, int32_t begin, int32_t end, int32_t thread)
{
    const struct onto *onto = context;
    (void)thread;
    for (int32_t r = begin; r < end; r++) {
        const float *from = onto->sum + (size_t)r * (size_t)onto->count;
        float *to = onto->x + (size_t)r * onto->x_stride + onto->first;
#pragma omp simd
        for (int32_t k = 0; k < onto->count; k++) to[k] += from[k];
    }
}

static void add_block(const struct sf_reduce *reduce, int32_t rank, int32_t rows, const float *sum,
                      float *x, size_t x_stride)
{
    struct onto onto = {.sum = sum, .x = x, .x_stride = x_stride};
    sf_reduce_block(reduce->spec.cols, reduce->group->size, rank, &onto.first, &onto.count);
    share(reduce, (int64_t)rows * onto.count, rows, add_rows, &onto);
}

/* ---- the three ways -------------------------------------------------------------------------- */
static const float *leaf_of(const struct sf_reduce *reduce, struct sf_leaf leaf)
{
    const float *memory = reduce->memory;
    if (leaf.owner != reduce->group->rank)
        memory = (const float *)(const void *)reduce->window->base[leaf.owner];
    return memory + (size_t)leaf.local * reduce->layout.leaf;
}

static void add_alone(struct sf_reduce *reduce, int32_t rows, const struct sf_leaf *leaf,
                      int32_t leaves, float *x, size_t x_stride)
{
    size_t cols = (size_t)reduce->spec.cols;
    for (int32_t i = 0; i < leaves; i++)
        reduce->source[i] = (struct source){ leaf_of(reduce, leaf[i]), cols };
    add_up(reduce, rows, reduce->spec.cols, leaves, 1, x, x_stride);
}

static sf_status add_shared(struct sf_reduce *reduce, int32_t rows, const struct sf_leaf *leaf,
                            int32_t leaves, float *x, size_t x_stride)
{
    struct sf_comm *group = reduce->group;
    size_t cols = (size_t)reduce->spec.cols, sum_at = reduce->layout.leaves;
    int32_t first, count;
    sf_reduce_block(reduce->spec.cols, group->size, group->rank, &first, &count);
    for (int32_t i = 0; i < leaves; i++)
        reduce->source[i] = (struct source){ leaf_of(reduce, leaf[i]) + first, cols };
    SF_TRY(sf_comm_window_barrier(group, reduce->window));
    add_up(reduce, rows, count, leaves, 0, reduce->memory + sum_at, (size_t)count);
    SF_TRY(sf_comm_window_barrier(group, reduce->window));
    for (int32_t r = 0; r < group->size; r++) {
        const float *window = (const float *)(const void *)reduce->window->base[r];
        add_block(reduce, r, rows, window + sum_at, x, x_stride);
    }
    return SF_OK;
}

static int32_t leaves_of(const struct sf_leaf *leaf, int32_t leaves, int32_t owner)
{
    int32_t count = 0;
    for (int32_t i = 0; i < leaves; i++) count += leaf[i].owner == owner;
    return count;
}

/* Starts to send my leaves' columns to each rank that owns some; leaves in the order of the list.
 * */
static sf_status send_leaves(struct sf_reduce *reduce, int32_t rows, const struct sf_leaf *leaf,
                             int32_t leaves, int32_t *requests)
{
    struct sf_comm *group = reduce->group;
    float *out = reduce->memory + reduce->layout.leaves + reduce->layout.sum;
    for (int32_t r = 0; r < group->size; r++) {
        int32_t first, count;
        sf_reduce_block(reduce->spec.cols, group->size, r, &first, &count);
        if (r == group->rank || count == 0) continue;
        const float *begin = out;
        for (int32_t i = 0; i < leaves; i++) {
            if (leaf[i].owner != group->rank) continue;
            const float *from = leaf_of(reduce, leaf[i]) + first;
            for (int32_t row = 0; row < rows; row++, out += count)
                memcpy(out, from + (size_t)row * (size_t)reduce->spec.cols,
                       (size_t)count * sizeof *out);
        }
        if (out == begin) continue;
        SF_TRY(sf_comm_start(group, SF_CHANNEL_GROUP, r, TAG_LEAVES, begin,
                             (size_t)(out - begin) * sizeof *out, &reduce->request[*requests]));
        ++*requests;
    }
    return SF_OK;
}

/* Sources of my block: my leaves where they lie, those of the others as they are received. */
static sf_status receive_leaves(struct sf_reduce *reduce, int32_t rows, const struct sf_leaf *leaf,
                                int32_t leaves)
{
    struct sf_comm *group = reduce->group;
    const struct layout *layout = &reduce->layout;
    float *in = reduce->memory + layout->leaves + layout->sum + layout->out;
    int32_t first, count;
    sf_reduce_block(reduce->spec.cols, group->size, group->rank, &first, &count);
    size_t part = (size_t)rows * (size_t)count;
    for (int32_t r = 0; r < group->size; r++) {
        if (r != group->rank) {
            size_t floats = (size_t)leaves_of(leaf, leaves, r) * part;
            if (floats == 0) continue;
            SF_TRY(sf_comm_receive(group, SF_CHANNEL_GROUP, r, TAG_LEAVES, in,
                                   floats * sizeof *in));
        }
        for (int32_t i = 0; i < leaves; i++) {
            if (leaf[i].owner != r) continue;
            if (r == group->rank) {
                reduce->source[i] = (struct source){ leaf_of(reduce, leaf[i]) + first,
                                                     (size_t)reduce->spec.cols };
                continue;
            }
            reduce->source[i] = (struct source){ in, (size_t)count };
            in += part;
        }
    }
    return SF_OK;
}

static sf_status exchange(struct sf_reduce *reduce, int32_t rows, const struct sf_leaf *leaf,
                          int32_t leaves, float *x, size_t x_stride, int32_t *requests)
{
    struct sf_comm *group = reduce->group;
    const struct layout *layout = &reduce->layout;
    float *sum = reduce->memory + layout->leaves;
    float *sum_in = sum + layout->sum + layout->out + layout->in;
    int32_t first, count;
    sf_reduce_block(reduce->spec.cols, group->size, group->rank, &first, &count);
    SF_TRY(send_leaves(reduce, rows, leaf, leaves, requests));
    SF_TRY(receive_leaves(reduce, rows, leaf, leaves));
    add_up(reduce, rows, count, leaves, 0, sum, (size_t)count);
    size_t bytes = (size_t)rows * (size_t)count * sizeof *sum;
    for (int32_t r = 0; r < group->size && bytes > 0; r++) {
        if (r == group->rank) continue;
        SF_TRY(sf_comm_start(group, SF_CHANNEL_GROUP, r, TAG_SUM, sum, bytes,
                             &reduce->request[*requests]));
        ++*requests;
    }
    add_block(reduce, group->rank, rows, sum, x, x_stride);
    for (int32_t r = 0; r < group->size; r++) {
        sf_reduce_block(reduce->spec.cols, group->size, r, &first, &count);
        if (r == group->rank || count == 0 || rows == 0) continue;
        SF_TRY(sf_comm_receive(group, SF_CHANNEL_GROUP, r, TAG_SUM, sum_in,
                               (size_t)rows * (size_t)count * sizeof *sum_in));
        add_block(reduce, r, rows, sum_in, x, x_stride);
    }
    return SF_OK;
}

sf_status sf_reduce_add(struct sf_reduce *reduce, int32_t rows, const struct sf_leaf *leaf,
                        int32_t leaves, float *x, size_t x_stride)
{
    SF_ASSERT(rows >= 0 && rows <= reduce->spec.rows_max);
    SF_ASSERT(leaves > 0 && (size_t)leaves <= reduce->layout.sources);
    SF_ASSERT(x_stride >= (size_t)reduce->spec.cols);
    for (int32_t i = 0; i < leaves; i++)
        SF_ASSERT(leaf[i].owner >= 0 && leaf[i].owner < reduce->group->size &&
                  leaf[i].local >= 0 && leaf[i].local < reduce->spec.leaves_max);
    if (reduce->mode == SHARED) return add_shared(reduce, rows, leaf, leaves, x, x_stride);
    if (reduce->mode == ALONE) {
        add_alone(reduce, rows, leaf, leaves, x, x_stride);
        return SF_OK;
    }
    int32_t requests = 0;
    sf_status status = exchange(reduce, rows, leaf, leaves, x, x_stride, &requests);
    for (int32_t i = 0; i < requests; i++) {
        sf_status sent = sf_comm_wait(reduce->group, reduce->request[i]);
        if (status == SF_OK) status = sent;
    }
    return status;
}

/* ---- creation -------------------------------------------------------------------------------- */
static struct layout layout_of(const struct sf_reduce_spec *spec, int32_t ranks, enum mode mode)
{
    SF_ASSERT(spec->rows_max > 0 && spec->cols > 0 && spec->leaves_max > 0 && ranks > 0);
    size_t rows = (size_t)spec->rows_max, cols = (size_t)spec->cols;
    size_t most = (size_t)spec->leaves_max, others = (size_t)ranks - 1;
    size_t line = SF_ALIGN / sizeof(float);
    size_t block = rows * ((cols + others) / (size_t)ranks);
    struct layout layout = { .leaf = (rows * cols + line - 1) / line * line,
                             .sources = most * (size_t)ranks };
    layout.leaves = most * layout.leaf;
    if (mode == ALONE) return layout;
    layout.sum = block;
    if (mode == SHARED) return layout;
    layout.out = most * rows * cols;
    layout.in = others * most * block;
    layout.sum_in = block;
    layout.requests = 2 * others;
    return layout;
}

static size_t layout_floats(const struct layout *layout)
{
    return layout->leaves + layout->sum + layout->out + layout->in + layout->sum_in;
}

int64_t sf_reduce_bytes(const struct sf_reduce_spec *spec, int32_t group_size, int one_node)
{
    enum mode mode = group_size == 1 ? ALONE : one_node && !spec->exchange ? SHARED : EXCHANGE;
    struct layout layout = layout_of(spec, group_size, mode);
    size_t memory = layout_floats(&layout) * sizeof(float);
    if (mode == SHARED) memory = sf_window_segment(memory);
    return (int64_t)(memory + layout.sources * sizeof(struct source) +
                     layout.requests * sizeof(struct sf_request *));
}

static sf_status take_memory(struct sf_reduce *reduce)
{
    const struct layout *layout = &reduce->layout;
    size_t bytes = layout_floats(layout) * sizeof(float);
    void *block;
    SF_TRY(sf_alloc(layout->sources * sizeof *reduce->source, "reduction sources", &block));
    reduce->source = block;
    if (layout->requests > 0) {
        SF_TRY(sf_alloc(layout->requests * sizeof *reduce->request, "reduction requests", &block));
        reduce->request = block;
    }
    if (reduce->mode == SHARED) {
        SF_TRY(sf_comm_window_create(reduce->group, bytes, &reduce->window));
        reduce->memory = (float *)(void *)reduce->window->base[reduce->group->rank];
    } else {
        SF_TRY(sf_alloc(bytes, "reduction leaves", &block));
        reduce->memory = block;
    }
    return SF_OK;
}

static int on_one_node(const struct sf_comm *group)
{
    for (int32_t r = 1; r < group->size; r++)
        if (sf_comm_node(group, r) != sf_comm_node(group, 0)) return 0;
    return 1;
}

sf_status sf_reduce_create(struct sf_comm *group, const struct sf_reduce_spec *spec,
                           struct sf_reduce **out)
{
    void *block;
    SF_TRY(sf_alloc(sizeof(struct sf_reduce), "reduction", &block));
    struct sf_reduce *reduce = block;
    reduce->group = group;
    reduce->spec = *spec;
    reduce->mode = group->size == 1 ? ALONE
                 : on_one_node(group) && !spec->exchange ? SHARED : EXCHANGE;
    reduce->layout = layout_of(spec, group->size, reduce->mode);
    sf_status status = take_memory(reduce);
    if (status != SF_OK) {
        sf_reduce_destroy(reduce);
        return status;
    }
    *out = reduce;
    return SF_OK;
}

void sf_reduce_destroy(struct sf_reduce *reduce)
{
    if (reduce == NULL) return;
    if (reduce->mode == SHARED) sf_comm_window_destroy(reduce->group, reduce->window);
    else sf_free(reduce->memory);
    sf_free(reduce->source);
    sf_free(reduce->request);
    sf_free(reduce);
}

float *sf_reduce_leaf(struct sf_reduce *reduce, int32_t local)
{
    SF_ASSERT(local >= 0 && local < reduce->spec.leaves_max);
    return reduce->memory + (size_t)local * reduce->layout.leaf;
}

size_t sf_reduce_leaf_stride(const struct sf_reduce *reduce)
{
    return reduce->layout.leaf;
}
