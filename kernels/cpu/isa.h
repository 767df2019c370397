/* kernels/cpu/isa.h: what is compiled once per instruction set (attend.inc, basis.inc, columns.inc,
 * int8.inc, rows.inc), as a table that is chosen when a device is opened.  Everything here is
 * single-threaded and allocates nothing. */
#ifndef SHEAF_KERNELS_CPU_ISA_H
#define SHEAF_KERNELS_CPU_ISA_H
#include "kernels/cpu/int8.h"
#include "kernels/kernels.h"

enum {
    SF_SPLIT_BLOCKS = SF_SPLIT_SLOTS / SF_BLOCK_SLOTS,
    SF_FEW_VECTORS = 6                  /* of a tile whose slots come from memory (ahead.h) */
};

/* The softmax state of some query vectors over some slots: out not yet divided by sum, and relative
 * to max.  Rows of `out` are v_dim rounded up to SF_OUT_ALIGN elements; what lies behind v_dim is
 * never looked at. */
enum { SF_OUT_ALIGN = 32 };
struct sf_partial {
    float *out, *max, *sum;             /* [vectors][width], [vectors], [vectors] */
};

/* One tile of query vectors against one split of a lane, cut into blocks of 16 slots.  Only blocks
 * in which some vector sees a live slot are listed. */
struct sf_split {
    enum sf_dtype dtype, v_dtype;       /* of keys, of values */
    int32_t k_dim, v_dim, vectors, blocks;
    const float *q;                     /* [vectors][k_dim], times the softmax scale */
    const unsigned char *keys[SF_SPLIT_BLOCKS], *values[SF_SPLIT_BLOCKS];
    const float *bias[SF_SPLIT_BLOCKS];
    /* Of blocks in int8: what a slot's codes are to be multiplied with. */
    const float *k_scale[SF_SPLIT_BLOCKS], *v_scale[SF_SPLIT_BLOCKS];
    const int32_t *pos[SF_SPLIT_BLOCKS];
    /* What is read after this split, to be sent for while block i is worked on: keys with its
     * keys, values with its values, byte by byte as those lie; `keys` and `values`: nothing. */
    const unsigned char *const *key_next, *const *value_next;  /* [SF_SPLIT_BLOCKS] */
    int32_t first[SF_SPLIT_BLOCKS];     /* the block's first slot, counted within the split */
    const int32_t *end;                 /* [vectors] a slot is seen iff first + i < end ... */
    const int32_t *pos_min;             /* [vectors] ... and its pos >= pos_min; NULL: any pos */
    float *logits;                      /* scratch [vectors][SF_SPLIT_SLOTS] */
    float *left; size_t left_stride;    /* [vectors][left_stride] logits from the split's first slot
                                           on, for others to read; NULL */
    struct sf_partial partial;          /* written */
};

/* Keys of some blocks, from some elements of the rank on which the basis has its rows. */
struct sf_rebuild {
    enum sf_dtype dtype;                /* of the basis */
    int32_t k_dim, rank, blocks;        /* rank: elements here, from an even one on */
    uint8_t first;                      /* else they add to the keys that are there */
    const unsigned char *const *basis;  /* [blocks] the first of them in each block */
    const float *b;                     /* its rows' key blocks as they lie (layout.h), but f32 */
    float *keys;                        /* [blocks][k_dim][SF_BLOCK_SLOTS] */
};

/* How a tile changes the mass of the blocks of a split.  It holds whole rows, or, where a lane has
 * more query heads than a tile, some heads of one row; such tiles come in the heads' order. */
struct sf_columns {
    enum sf_row_fold fold;
    enum sf_head_fold head_fold;
    float decay;
    int32_t q_heads, head;              /* of a row; the tile's first vector is the row's head */
    const float *lse;                   /* [vectors], +inf for a head that weighs 0 */
    const float *mean;                  /* BELOW_MEAN: [rows] what a weight has to be below */
    float *weight;                      /* [SF_SPLIT_SLOTS], kept from tile to tile of one row */
    uint8_t left;                       /* logits are there: in the split's `left`, all its blocks
                                           listed */
    float *mass[SF_SPLIT_BLOCKS];       /* of the split's blocks, [SF_BLOCK_SLOTS] each */
};

struct sf_cpu_isa {
    const char *name;                   /* of the table of functions: "cpu-avx2" */

    /* ---- attention ---- */
    void (*split)(struct sf_split *);
    /* The logits alone, of the listed blocks. */
    void (*logits)(struct sf_split *);
    /* into = into + from, as softmax states; an empty one adds nothing, bit for bit. */
    void (*merge)(int32_t vectors, int32_t width, struct sf_partial into, struct sf_partial from);
    /* out / sum of one vector as v_dim elements of `dtype` at `target`; 0 if it saw nothing. */
    void (*finish)(int32_t v_dim, const float *out, float sum, enum sf_dtype dtype, void *target);

    /* ---- slots that are rows of a basis ---- */
    void (*rebuild)(const struct sf_rebuild *);
    void (*turn)(float *key, const int32_t *pos, const float *turns, int32_t rope_dim);

    /* ---- its column sums ---- */
    void (*columns)(struct sf_split *, const struct sf_columns *);  /* no values, no partial */
    /* How many of `slots` slots are no holes and at pos_min or later. */
    int32_t (*live)(int32_t slots, const float *bias, const int32_t *pos, int32_t pos_min);

    /* ---- rows ---- */
    void (*rmsnorm)(int32_t dim, const float *x, const float *weight, float eps, void *out,
                    enum sf_dtype out_dtype);
    void (*rope)(int32_t heads, int32_t head_dim, int32_t half, const float *table, float *x);
    void (*swiglu)(int32_t cols, const float *gate, const float *up, void *out,
                   enum sf_dtype out_dtype);
    void (*add)(size_t count, const float *a, float *into);
    int32_t (*argmax)(int32_t cols, const float *x, float *value_out);
    void (*scale)(size_t count, float factor, const float *x, float *out);
    void (*to_f32)(enum sf_dtype, const void *source, float *target, size_t count);
    void (*from_f32)(enum sf_dtype, const float *source, void *target, size_t count);

    /* ---- int8 (int8.h) ---- */
    void (*quantise)(enum sf_dtype, const void *x, size_t count, int8_t *codes,
                     struct sf_int8_row *row_out);
    void (*int8_dot)(const struct sf_int8_tile *);
};

extern const struct sf_cpu_isa sf_cpu_isa_generic;
#if defined(__x86_64__)
extern const struct sf_cpu_isa sf_cpu_isa_avx2, sf_cpu_isa_avx512;
/* Name, split, logits and columns alone; the other entries are those for AVX-512. */
extern const struct sf_cpu_isa sf_cpu_isa_avx512_vnni, sf_cpu_isa_avx512_bf16;
#endif

#endif
