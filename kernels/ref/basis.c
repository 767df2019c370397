/* kernels/ref/basis.c: slots that are rows of a basis, in the order in which kernels.h writes them:
 * every element is a sum over the rank, in f64. */
#include <string.h>
#include "kernels/ref/ref.h"

/* Element e of row i of b_k (values: of b_v). */
static double factor(const struct sf_ref_rebuilt *row, int32_t i, int32_t e, int values)
{
    const struct sf_layout *layout = row->factors->layout;
    int32_t slot = i % layout->page_slots;
    const unsigned char *page =
        row->pool + (size_t)row->factors->pages[i / layout->page_slots] * row->page_bytes;
    size_t at = values ? (size_t)slot * (size_t)layout->v_dim + (size_t)e
                       : sf_layout_k_index(layout, slot, e);
    return (double)sf_ref_get(layout->dtype, page + (values ? sf_layout_v_offset(layout) : 0), at);
}

/* The same before it is turned. */
static double still_key(const struct sf_ref_rebuilt *row, int32_t e)
{
    double sum = 0;
    for (int32_t i = 0; i < row->factors->rank_k; i++)
        sum += (double)sf_ref_get(row->layout->dtype, row->page,
                                  sf_layout_k_index(row->layout, row->slot, i)) *
               factor(row, i, e, 0);
    return sum;
}

double sf_ref_rebuilt_key(const struct sf_ref_rebuilt *row, int32_t e)
{
    int32_t rope_dim = row->factors->rope_dim, half = rope_dim / 2;
    if (e >= rope_dim) return still_key(row, e);
    const int32_t *pos =
        (const int32_t *)(const void *)(row->page + sf_layout_pos_offset(row->layout));
    const float *turn = row->factors->turns + (size_t)pos[row->slot] * (size_t)rope_dim;
    double cos = (double)turn[e % half], sin = (double)turn[half + e % half];
    return e < half ? still_key(row, e) * cos - still_key(row, e + half) * sin
                    : still_key(row, e) * cos + still_key(row, e - half) * sin;
}

/* Where the values are no rows of a basis. */
static double exact_value(const struct sf_ref_rebuilt *row, int32_t e)
{
    const struct sf_layout *layout = row->factors->value_layout;
    size_t page = (size_t)row->factors->value_pages[row->number / layout->page_slots];
    size_t slot = (size_t)(row->number % layout->page_slots);
    return (double)sf_ref_get(layout->dtype,
                              row->pool + page * row->page_bytes + sf_layout_v_offset(layout),
                              slot * (size_t)layout->v_dim + (size_t)e);
}

double sf_ref_rebuilt_value(const struct sf_ref_rebuilt *row, int32_t e)
{
    double sum = 0;
    if (row->factors->rank_v == 0) return exact_value(row, e);
    size_t first = (size_t)row->slot * (size_t)row->layout->v_dim;
    const unsigned char *values = row->page + sf_layout_v_offset(row->layout);
    for (int32_t i = 0; i < row->factors->rank_v; i++)
        sum += (double)sf_ref_get(row->layout->dtype, values, first + (size_t)i) *
               factor(row, i, e, 1);
    return sum;
}

void sf_ref_kv_rebuild(struct sf_device *device, const struct sf_lane_part *part,
                       const unsigned char *pool, size_t page_bytes,
                       const struct sf_slot_list *list, float *k, float *v)
{
    (void)device;
    const struct sf_layout *layout = part->factors->layout;
    int32_t v_dim = sf_lane_factors_v_dim(part->factors);
    for (int32_t i = 0; i < list->n; i++) {
        int32_t slot = list->slot[i];
        size_t page = (size_t)list->pages[slot / part->layout->page_slots];
        struct sf_ref_rebuilt row = { part->layout, part->factors, pool, pool + page * page_bytes,
                                      page_bytes, slot % part->layout->page_slots, slot };
        for (int32_t e = 0; k && e < layout->k_dim; e++)
            k[(size_t)i * (size_t)layout->k_dim + (size_t)e] = (float)sf_ref_rebuilt_key(&row, e);
        for (int32_t e = 0; v && e < v_dim; e++)
            v[(size_t)i * (size_t)v_dim + (size_t)e] = (float)sf_ref_rebuilt_value(&row, e);
    }
}

void sf_ref_copy_columns(struct sf_device *device, int32_t rows, int32_t x_cols, int32_t cols,
                         const float *x, size_t x_stride, float *y, size_t y_stride)
{
    (void)device;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < cols; c++)
            y[(size_t)r * y_stride + (size_t)c] = c < x_cols ? x[(size_t)r * x_stride + (size_t)c]
                                                             : 0;
}
