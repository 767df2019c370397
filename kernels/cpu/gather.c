/* kernels/cpu/gather.c: the picked slots of a part, side by side in blocks of 16 as a page has
 * them, so that everything behind takes them for a lane that has no others.
 *
 *   picks    40 41 42 43 44 45 46 47 | 8 9 10 ...        runs of neighbours inside one block
 *   page     keys [element][16 slots]: a run is some bytes of every row; values: whole rows
 *
 * Chunks of 8 or 16 slots that begin at their multiples are one run each.  A place without a slot
 * has key and value 0, bias -inf and pos -1. */
#include <math.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/basis.h"

/* Places first .. first + n - 1 of the picks are the slots from `slot` on; -1: of none. */
struct run { int32_t slot, n; };

static struct run run_at(const struct sf_picked *picked, int32_t first)
{
    struct run run = { first < picked->n ? picked->pick[first] : -1, 1 };
    int32_t most = SF_BLOCK_SLOTS - first % SF_BLOCK_SLOTS;
    if (run.slot >= 0 && most > SF_BLOCK_SLOTS - run.slot % SF_BLOCK_SLOTS)
        most = SF_BLOCK_SLOTS - run.slot % SF_BLOCK_SLOTS;
    for (; run.n < most; run.n++) {
        int32_t next = first + run.n < picked->n ? picked->pick[first + run.n] : -1;
        if (run.slot < 0 ? next >= 0 : next != run.slot + run.n) break;
    }
    SF_ASSERT(run.slot < picked->part->slots);
    return run;
}

static const unsigned char *page_of(const struct sf_picked *picked, int32_t slot)
{
    return picked->pool +
           (size_t)picked->part->pages[slot / picked->part->layout->page_slots] *
               picked->page_bytes;
}

static int32_t blocks_of(const struct sf_picked *picked)
{
    return (picked->n + SF_BLOCK_SLOTS - 1) / SF_BLOCK_SLOTS;
}

/* `rows` pieces of `bytes`, all `step` apart in both. */
static void copy_rows(unsigned char *to, const unsigned char *from, int32_t rows, size_t step,
                      size_t bytes)
{
    switch (bytes) {
    case 16: for (int32_t i = 0; i < rows; i++) memcpy(to + i * step, from + i * step, 16); break;
    case 32: for (int32_t i = 0; i < rows; i++) memcpy(to + i * step, from + i * step, 32); break;
    case 64: for (int32_t i = 0; i < rows; i++) memcpy(to + i * step, from + i * step, 64); break;
    default:
        for (int32_t i = 0; i < rows; i++) memcpy(to + i * step, from + i * step, bytes);
        break;
    }
}

void sf_gather_keys(const struct sf_picked *picked, int32_t first, int32_t elements,
                    unsigned char *out, const unsigned char **block_out)
{
    const struct sf_layout *layout = picked->part->layout;
    size_t width = sf_dtype_bytes(layout->dtype), unit = width, step;
    int32_t rows = elements;
    if (layout->dtype == SF_BF16) {     /* elements lie in pairs */
        rows = (elements + 1) / 2;
        unit = 2 * width;
    }
    step = SF_BLOCK_SLOTS * unit;
    for (int32_t b = 0; b < blocks_of(picked); b++) {
        unsigned char *to = out + (size_t)b * (size_t)rows * step;
        block_out[b] = to;
        for (int32_t d = 0; d < SF_BLOCK_SLOTS;) {
            struct run run = run_at(picked, b * SF_BLOCK_SLOTS + d);
            if (run.slot < 0) {
                for (int32_t i = 0; i < rows; i++)
                    memset(to + (size_t)i * step + (size_t)d * unit, 0, (size_t)run.n * unit);
            } else {
                int32_t inside = run.slot % layout->page_slots / SF_BLOCK_SLOTS * SF_BLOCK_SLOTS;
                const unsigned char *from =
                    page_of(picked, run.slot) + (size_t)inside * (size_t)layout->k_dim * width +
                    (size_t)first * SF_BLOCK_SLOTS * width +
                    (size_t)(run.slot % SF_BLOCK_SLOTS) * unit;
                copy_rows(to + (size_t)d * unit, from, rows, step, (size_t)run.n * unit);
            }
            d += run.n;
        }
    }
}

void sf_gather_marks(const struct sf_picked *picked, float *bias, int32_t *pos)
{
    const struct sf_layout *layout = picked->part->layout;
    for (int32_t i = 0; i < blocks_of(picked) * SF_BLOCK_SLOTS;) {
        struct run run = run_at(picked, i);
        size_t bytes = (size_t)run.n * sizeof(float);
        if (run.slot >= 0) {
            size_t at = (size_t)(run.slot % layout->page_slots) * sizeof(float);
            const unsigned char *page = page_of(picked, run.slot);
            memcpy(bias + i, page + sf_layout_bias_offset(layout) + at, bytes);
            memcpy(pos + i, page + sf_layout_pos_offset(layout) + at, bytes);
        }
        for (int32_t j = i; run.slot < 0 && j < i + run.n; j++) {
            bias[j] = -INFINITY;
            pos[j] = -1;
        }
        i += run.n;
    }
}

void sf_gather_values(const struct sf_picked *picked, const struct sf_layout *layout,
                      const int32_t *pages, unsigned char *out)
{
    size_t row = (size_t)layout->v_dim * sf_dtype_bytes(layout->dtype);
    for (int32_t i = 0; i < blocks_of(picked) * SF_BLOCK_SLOTS;) {
        struct run run = run_at(picked, i);
        size_t bytes = (size_t)run.n * row;
        if (run.slot < 0) memset(out + (size_t)i * row, 0, bytes);
        else
            memcpy(out + (size_t)i * row,
                   picked->pool +
                       (size_t)pages[run.slot / layout->page_slots] * picked->page_bytes +
                       sf_layout_v_offset(layout) + (size_t)(run.slot % layout->page_slots) * row,
                   bytes);
        i += run.n;
    }
}
