/* kernels/layout.h: how a raw page holds the slots of one lane.
 *
 * A page has `page_slots` slots (16 x 2^k), in blocks of 16.  Keys are interleaved so that one
 * vector register holds one element of 16 slots: no horizontal sums, and all query heads of a group
 * share each load.  Values lie slot by slot.
 *
 *   raw page, page_slots = 16, k_dim = v_dim = 64, bf16; 4,224 B
 *     byte 0            2048             4096          4160         4224
 *          | keys        | values         | bias f32[16]| pos i32[16]|
 *     keys, bf16     : [block][k_dim / 2][16 slots][2 elements]     (k_dim is even)
 *     keys, others   : [block][k_dim][16 slots]
 *     values         : [page_slots][v_dim]
 *     bias           : added to the logit of the slot; -inf marks a hole (a slot that is gone)
 *     pos            : position of the token, -1 in a hole
 *
 * With k_dim 0 a page holds values alone, and no bias and no pos: those stand where the keys do.
 *
 * In int8 an element is its code times a scale, one of the slot's key and one of its value; scales
 * stand before the bias, those of keys (of values) only if k_dim (v_dim) is not 0.
 *
 *   raw page, page_slots = 16, k_dim = v_dim = 64, int8; 2,304 B
 *     byte 0         1024         2048             2112             2176         2240         2304
 *          | keys     | values     | k_scale f32[16]| v_scale f32[16]| bias f32[16]| pos i32[16]|
 *
 *   m = the greatest |x_e| of the vector;  scale = m / 127;  code_e = x_e * (127 / m), to nearest,
 *   ties to even; every operation rounds to f32.  What lies beyond 2^127, infinities too, counts as
 *   2^127 with its sign.  With m below 2^-100 scale and codes are 0.  With a NaN among the x_e
 *   the scale is NaN and the codes are 0, so all of the vector reads as NaN.
 *
 * Scales are f32 and not f16, whose least number and whose rounding would be a second rule for 4 of
 * 144 B a slot.
 *
 * A page that is taken from the pool is prepared once (kv_clear): all bytes zero, bias -inf,
 * pos -1, so that a kernel may read whole blocks and never meets a NaN that nobody wrote. */
#ifndef SHEAF_KERNELS_LAYOUT_H
#define SHEAF_KERNELS_LAYOUT_H
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
SF_C_BEGIN

enum { SF_BLOCK_SLOTS = 16 };

struct sf_layout {
    enum sf_dtype dtype;
    int32_t page_slots, k_dim, v_dim;
};

static inline size_t sf_layout_v_offset(const struct sf_layout *layout)
{
    return (size_t)layout->page_slots * (size_t)layout->k_dim * sf_dtype_bytes(layout->dtype);
}
/* int8: of the scales of keys and of values, [page_slots] each. */
static inline size_t sf_layout_k_scale_offset(const struct sf_layout *layout)
{
    return (size_t)layout->page_slots * (size_t)(layout->k_dim + layout->v_dim) *
           sf_dtype_bytes(layout->dtype);
}
static inline size_t sf_layout_v_scale_offset(const struct sf_layout *layout)
{
    size_t scales = layout->dtype == SF_INT8 && layout->k_dim > 0;
    return sf_layout_k_scale_offset(layout) + scales * (size_t)layout->page_slots * sizeof(float);
}
static inline size_t sf_layout_bias_offset(const struct sf_layout *layout)
{
    size_t scales = layout->dtype == SF_INT8 && layout->v_dim > 0;
    return sf_layout_v_scale_offset(layout) + scales * (size_t)layout->page_slots * sizeof(float);
}
static inline size_t sf_layout_pos_offset(const struct sf_layout *layout)
{
    return sf_layout_bias_offset(layout) + (size_t)layout->page_slots * sizeof(float);
}
/* Bytes of a page: for any page_slots that is a multiple of 16, a multiple of 64 if k_dim + v_dim
 * is even (it is in every model), in int8 if it is a multiple of 4; else of 32, in int8 of 16. */
static inline size_t sf_layout_page_bytes(const struct sf_layout *layout)
{
    if (layout->k_dim == 0) return sf_layout_bias_offset(layout);
    return sf_layout_pos_offset(layout) + (size_t)layout->page_slots * sizeof(int32_t);
}
/* Bytes that a stored slot counts for: payload, its scales with it, and 8 bytes for pos and bias
 * (interface.md 4). */
static inline size_t sf_layout_slot_bytes(const struct sf_layout *layout)
{
    size_t scales = layout->dtype == SF_INT8 ? (layout->k_dim > 0) + (layout->v_dim > 0) : 0;
    return (size_t)(layout->k_dim + layout->v_dim) * sf_dtype_bytes(layout->dtype) +
           scales * sizeof(float) + 8;
}
/* Index of key element `e` of slot `s` (within its page), in elements from the page's start. */
static inline size_t sf_layout_k_index(const struct sf_layout *layout, int32_t s, int32_t e)
{
    size_t block = (size_t)(s / SF_BLOCK_SLOTS) * SF_BLOCK_SLOTS * (size_t)layout->k_dim;
    size_t lane = (size_t)(s % SF_BLOCK_SLOTS);
    if (layout->dtype == SF_BF16)
        return block + ((size_t)(e / 2) * SF_BLOCK_SLOTS + lane) * 2 + (size_t)(e % 2);
    return block + (size_t)e * SF_BLOCK_SLOTS + lane;
}

SF_C_END
#endif
