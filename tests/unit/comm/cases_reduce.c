/* The ordered sum (comm/reduce.h): x has the very bits of adding the leaves one after the other in
 * the model's order, whichever ranks hold them, by window and by exchange; shapes with ranks that
 * have no leaf, column blocks that are empty, no rows at all, and many calls one after the other,
 * so that no buffer is written while somebody still reads it.  The leaves differ in magnitude by up
 * to 2^20 and some are -0, so that another order of adding gives other bits. */
#include <stdlib.h>
#include <string.h>

#include "base/crew.h"
#include "comm/reduce.h"
#include "tests/unit/comm/cases.h"

/* How leaf i finds its owner. */
enum deal { IN_TURN, IN_BLOCKS, LAST_RANK, BACKWARDS, DEALS };

struct shape { int32_t rows_max, cols, leaves, pad, calls, threads; };
static const struct shape shapes[] = {
    { 1, 1, 1, 0, 3, 1 },           /* fewer columns and leaves than ranks */
    { 3, 5, 7, 2, 12, 1 },
    { 48, 64, 9, 0, 12, 1 },
    { 5, 576, 4, 3, 6, 1 },
    { 17, 301, 13, 1, 4, 1 },       /* wider than a tile, odd */
    { 32, 600, 11, 0, 2, 3 },       /* enough work for threads */
};

static float value_at(int32_t call, int32_t leaf, int32_t row, int32_t column)
{
    uint32_t x = (uint32_t)call * 7919u + (uint32_t)leaf * 104729u + (uint32_t)row * 1299709u +
                 (uint32_t)column * 15485863u;
    x ^= x >> 16;
    x *= 2246822519u;
    x ^= x >> 13;
    if (x % 11 == 0) return -0.0f;
    float fraction = (float)(x >> 8) / 8388608.0f - 1.0f;
    return fraction * (float)(1u << (x % 21));
}

static int32_t owner_of(enum deal deal, int32_t leaf, int32_t leaves, int32_t ranks)
{
    switch (deal) {
    case IN_TURN: return leaf % ranks;
    case IN_BLOCKS: return (int32_t)((int64_t)leaf * ranks / leaves);
    case LAST_RANK: return ranks - 1;
    case BACKWARDS:
    case DEALS: break;
    }
    return (leaves - 1 - leaf) * 3 % ranks;
}

/* Where the leaves are; the most that one rank has. */
static int32_t deal_leaves(enum deal deal, int32_t leaves, int32_t ranks, struct sf_leaf *leaf)
{
    int32_t have[64] = { 0 }, most = 1;
    for (int32_t i = 0; i < leaves; i++) {
        int32_t owner = owner_of(deal, i, leaves, ranks);
        leaf[i] = (struct sf_leaf){ .owner = owner, .local = have[owner]++ };
        if (have[owner] > most) most = have[owner];
    }
    return most;
}

/* The definition: leaf 0, plus leaf 1, plus ...; then onto x. */
static float sum_at(int32_t call, const struct shape *shape, int32_t row, int32_t column, float x)
{
    volatile float sum = value_at(call, 0, row, column);
    for (int32_t i = 1; i < shape->leaves; i++) sum = sum + value_at(call, i, row, column);
    return x + sum;
}

static void write_leaves(const struct sf_ranked *t, struct sf_reduce *reduce, int32_t call,
                         const struct shape *shape, int32_t rows, const struct sf_leaf *leaf)
{
    for (int32_t i = 0; i < shape->leaves; i++) {
        if (leaf[i].owner != t->rank) continue;
        float *at = sf_reduce_leaf(reduce, leaf[i].local);
        R_CHECK((struct sf_ranked *)t, at == sf_reduce_leaf(reduce, 0) +
                (size_t)leaf[i].local * sf_reduce_leaf_stride(reduce));
        for (int32_t r = 0; r < rows; r++)
            for (int32_t c = 0; c < shape->cols; c++)
                at[(size_t)r * (size_t)shape->cols + (size_t)c] = value_at(call, i, r, c);
    }
}

/* x after a call: the sum's bits, and what lies between the rows untouched. */
static void check_sum(struct sf_ranked *t, int32_t call, const struct shape *shape, int32_t rows,
                      const float *x)
{
    size_t stride = (size_t)(shape->cols + shape->pad);
    for (int32_t r = 0; r < shape->rows_max; r++)
        for (int32_t c = 0; c < shape->cols + shape->pad; c++) {
            float before = value_at(call, -1, r, c), wanted = before;
            if (r < rows && c < shape->cols) wanted = sum_at(call, shape, r, c, before);
            if (memcmp(&x[(size_t)r * stride + (size_t)c], &wanted, sizeof wanted) == 0) continue;
            sf_ranked_fail(t, __FILE__, __LINE__, "call %d of %d x %d, %d leaves: x[%d][%d] is "
                           "%.9g, expected %.9g", call, rows, shape->cols, shape->leaves, r, c,
                           (double)x[(size_t)r * stride + (size_t)c], (double)wanted);
            return;
        }
}

static void reduce_shape(struct sf_ranked *t, const struct shape *shape, enum deal deal,
                         uint8_t exchange)
{
    struct sf_leaf leaf[16];
    struct sf_reduce_spec spec = { .rows_max = shape->rows_max, .cols = shape->cols,
                                   .exchange = exchange };
    spec.leaves_max = deal_leaves(deal, shape->leaves, t->size, leaf);
    if (shape->threads > 1) R_MUST(t, sf_crew_create(shape->threads, &spec.crew));
    size_t stride = (size_t)(shape->cols + shape->pad);
    float *x = malloc((size_t)shape->rows_max * stride * sizeof *x);
    struct sf_reduce *reduce;
    R_CHECK(t, x != NULL);
    if (x == NULL) return;
    R_MUST(t, sf_reduce_create(t->world, &spec, &reduce));
    for (int32_t call = 0; call < shape->calls; call++) {
        int32_t rows = shape->rows_max - call % 3;
        if (rows < 0) rows = 0;
        for (int32_t r = 0; r < shape->rows_max; r++)
            for (int32_t c = 0; c < (int32_t)stride; c++)
                x[(size_t)r * stride + (size_t)c] = value_at(call, -1, r, c);
        write_leaves(t, reduce, call, shape, rows, leaf);
        R_MUST(t, sf_reduce_add(reduce, rows, leaf, shape->leaves, x, stride));
        check_sum(t, call, shape, rows, x);
    }
    sf_reduce_destroy(reduce);
    sf_crew_destroy(spec.crew);
    free(x);
}

static void reduce_all(struct sf_ranked *t, uint8_t exchange)
{
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (enum deal deal = IN_TURN; deal < DEALS; deal++)
            if (t->failures == 0) reduce_shape(t, &shapes[s], deal, exchange);
}

static void case_shared(struct sf_ranked *t)
{
    reduce_all(t, 0);                   /* by window if all are on one node */
}

static void case_exchange(struct sf_ranked *t)
{
    reduce_all(t, 1);
}

/* The column blocks cut [0, cols) without a gap; the bytes foretold are more than the leaves. */
static void case_blocks(struct sf_ranked *t)
{
    static const int32_t widths[] = { 1, 2, 3, 7, 64, 576, 100003, 2147483647 };
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        int32_t next = 0, first, count;
        for (int32_t r = 0; r < t->size; r++) {
            sf_reduce_block(widths[i], t->size, r, &first, &count);
            R_INT(t, first, next);
            R_CHECK(t, count - widths[i] / t->size == 0 || count - widths[i] / t->size == 1);
            next = first + count;
        }
        R_INT(t, next, widths[i]);
    }
    struct sf_reduce_spec spec = { .rows_max = 48, .cols = 576, .leaves_max = 5 };
    int64_t leaves = (int64_t)48 * 576 * 5 * (int64_t)sizeof(float);
    for (int one_node = 0; one_node < 2; one_node++)
        R_CHECK(t, sf_reduce_bytes(&spec, t->size, one_node) >= leaves);
    if (t->size > 1)
        R_CHECK(t, sf_reduce_bytes(&spec, t->size, 1) < sf_reduce_bytes(&spec, t->size, 0));
}

const struct sf_case sf_cases_reduce[] = {
    { "reduce by window", 1, case_shared },
    { "reduce by exchange", 1, case_exchange },
    { "reduce blocks", 1, case_blocks },
    { NULL, 0, NULL }
};
