/* kernels/kernels.h: the maths that a backend provides, as one table of functions.
 *
 * All pointers are memory of the backend's device unless marked "host".  Work is queued in order on
 * the device's one compute stream; a backend that runs at once (the CPU) has finished on return.
 * Matrices are row-major; `stride` counts elements from one row to the next.  Accumulation is f32.
 *
 * ref/ defines every entry in plain loops; cpu/ and cuda/ are optimisations of it, tested against
 * it on one table of cases (tests/kernels).
 *
 * Determinism (design.md section 8): for every entry, what is computed for one row does not depend
 * on the other rows of the call, on its index among them, or on the number of threads; attention
 * always splits a lane at the same slots (SF_SPLIT_SLOTS).  Products promise it only for matrices
 * made with `fixed`, which are issued as calls of one shape (SF_FIXED_ROWS rows x a panel x a
 * slice), each single-threaded; there, all row buffers must be readable and writable up to the
 * next multiple of SF_FIXED_ROWS rows. */
#ifndef SHEAF_KERNELS_KERNELS_H
#define SHEAF_KERNELS_KERNELS_H
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "kernels/layout.h"
SF_C_BEGIN

struct sf_device;                       /* kernels/device.h */

enum { SF_FIXED_ROWS = 48, SF_SPLIT_SLOTS = 512 };

/* ---- packed matrices -------------------------------------------------------------------------
 * A matrix is W^T of a linear layer, k x cols, k = slices * k_slice, cut into tiles of
 * k_slice x panel_cols; the last panel may be narrower (it is padded inside).  A slice is a leaf of
 * a row-parallel sum (one query head, one FFN chunk) or all of k.
 *
 * int8: the k_slice elements v of a column of a slice of W, from f32, and of a row of a slice of x,
 * in every call, become codes of 8 bits with one scale:
 *
 *   m = max |v_i|,  scale = m / 127,  code_i = rint(v_i * (127 / m)), ties to even
 *   leaf = (f32(sum of code products) * scale of the column) * scale of the row
 *
 * each step rounded to f32 but for the sum, which is an integer.  So all backends give the same
 * bits, fixed or not.  m below 2^-100: codes and scale are 0; an m that is not finite (or a NaN
 * among v): the codes are 0 and the scale is NaN. */
enum { SF_INT8_K_MAX = 1 << 17 };       /* of a slice: 127 * 127 * k fits an int32 */
#define SF_INT8_LEAST 0x1p-100f
struct sf_mat;
struct sf_mat_shape {
    int32_t cols, panel_cols, k_slice, slices;
    enum sf_dtype dtype;                /* of the weights as stored, and of x */
    uint8_t fixed;                      /* 1: calls of one shape (deterministic) */
    int32_t rows_max;                   /* most rows of a call */
    uint8_t int8;                       /* 1: codes of 8 bits; not on a GPU */
};

/* ---- attention over the lanes of one layer -------------------------------------------------- */
/* What makes keys and values of a part whose slots are rows of a basis that several lanes share: of
 * slot j, a row a_k and a row a_v,
 *
 *   k_j = R(pos_j) (a_k b_k),  v_j = a_v b_v
 *
 * with b_k [rank_k][k_dim] and b_v [rank_v][v_dim] of the lane, and R the rotation of half-split
 * pairs.  Row i of both is slot i of the pages here.  With rank_v 0 there is no a_v and no b_v: v_j
 * lies as it is, in slot j of pages of the lane's own. */
struct sf_lane_factors {
    const struct sf_layout *layout;     /* host; its k_dim and v_dim are the job's; v_dim 0: rank_v
                                           is 0 */
    const int32_t *pages;               /* host */
    int32_t rank_k, rank_v;
    const float *turns;                 /* [positions][2][rope_dim / 2] cos, sin; not read for */
    int32_t rope_dim;                   /* rope_dim 0 */
    const struct sf_layout *value_layout; /* host; rank_v 0: k_dim 0, v_dim the job's */
    const int32_t *value_pages;         /* host */
};
/* Of the values that they stand for. */
static inline int32_t sf_lane_factors_v_dim(const struct sf_lane_factors *factors)
{
    return factors->rank_v > 0 ? factors->layout->v_dim : factors->value_layout->v_dim;
}
/* Slots of a lane that lie in pages of another layout (its k_dim and v_dim are the job's): they
 * come behind the lane's own in every sum, and each row sees all of them, but for holes and the
 * window. */
struct sf_lane_part {
    const struct sf_layout *layout;     /* host */
    const int32_t *pages;               /* host */
    int32_t slots;                      /* physical */
    /* host; NULL: slots as they are.  Else the layout's k_dim and v_dim are the ranks, or more.  A
     * part with factors or picks, and its values, are not in int8. */
    const struct sf_lane_factors *factors;
    /* NULL: all of them are read.  Else device, [picks]: the numbers of those that are, in any
     * order, none twice; -1 stands for none.  A lane that leaves its logits has no such part. */
    const int32_t *pick; int32_t picks;
};
struct sf_lane_job {                    /* host; the rows of one sequence against one lane */
    const int32_t *pages;               /* host, [pages of the lane] page numbers in the pool */
    /* physical slots (holes count), this call's rows included */
    int32_t slots;
    int32_t row_first, rows;            /* rows of q and out; row r sees the first
                                           slots - rows + r + 1 physical slots of the lane */
    int32_t q_first, q_heads;           /* query heads (of this rank) that read the lane */
    const struct sf_lane_part *part; int32_t parts; /* host; usually none */
    /* A lane of one row, no part of which has factors, may have a place where attend leaves its
     * logits for columns, or NULL: [q_heads][logit_stride] f32 on the device, slots as
     * sf_lane_logit_first numbers them, -inf for one that the row does not see and up to the next
     * multiple of SF_BLOCK_SLOTS. */
    float *logit;
    size_t logit_stride;                /* a multiple of SF_BLOCK_SLOTS */
};
/* Where the logits of a part of a lane (-1: its own slots) begin; of `part` = parts: behind all. */
static inline size_t sf_lane_logit_first(const struct sf_lane_job *lane, int32_t part)
{
    size_t first = 0, block = SF_BLOCK_SLOTS;
    for (int32_t p = -1; p < part; p++)
        first += ((size_t)(p < 0 ? lane->slots : lane->part[p].slots) + block - 1) / block * block;
    return first;
}
struct sf_attend_job {
    struct sf_layout layout;
    const unsigned char *pool;          /* page p begins at pool + p * page_bytes */
    size_t page_bytes;
    const float *q;                     /* [rows][q_stride], head h at h * k_dim; after RoPE */
    size_t q_stride;
    void *out;                          /* [rows][out_stride], head h at h * out_head_stride */
    size_t out_stride, out_head_stride; /* elements of out_dtype */
    enum sf_dtype out_dtype;
    float scale;                        /* softmax scale, applied to q.k before bias */
    int32_t window;                     /* the model's sliding window in tokens; 0 = none: a slot is
                                           seen iff pos > row_pos - window */
    const int32_t *row_pos;             /* host, [rows] positions; only read if window != 0 */
    const struct sf_lane_job *lane;     /* host, [lanes] */
    int32_t lanes;
    float *lse;                         /* [rows][q heads] log-sum-exp of the logits, or NULL */
    size_t lse_stride;
};
/* Statistics of attention: what each slot of a lane is given by the rows of a call, from the same
 * queries and slots and the lse that attend has left for them.
 *
 *   w_hs = e^(l_hs - lse_h)      for a slot that the row sees, else 0
 *   l_hs = scale * q_h.k_s + bias_s, the logit of attend, rounded to f32
 *   w_s  = fold of w_hs over the lane's query heads, in their order
 *
 * Where a lane names the place where attend has left its logits, a backend may read them there
 * instead of the keys; one that does leaves those that it would make here, so the bits are the
 * same.  Or it leaves none, and looks at none.
 *
 * Then the rows, in their order, change the slot's mass; each step is rounded to f32, and a slot's
 * mass depends on nothing but itself and its rows.  So the bits are the same whether the rows come
 * in one call or in several, whatever the threads.
 *
 *   SUM         mass += w_s                       if the row sees the slot
 *   MAX         mass = max(mass, w_s)             if the row sees the slot
 *   DECAY       mass = mass * decay + w_s         if the slot is there for the row (window or not)
 *   BELOW_MEAN  mass += w_s < 1 / n ? 1 : 0       if the row sees the slot; n: slots it sees; a
 *                                                 weight of 1 / n up to rounding may be either
 *
 * Holes are never touched.  A head whose lse is -inf weighs 0, and a row of which all heads are so
 * changes nothing (but DECAY, where it passes as any other). */
enum sf_row_fold { SF_ROWS_SUM, SF_ROWS_MAX, SF_ROWS_DECAY, SF_ROWS_BELOW_MEAN };
enum sf_head_fold { SF_HEADS_SUM, SF_HEADS_MEAN, SF_HEADS_MAX };
/* layout .. lanes: as in sf_attend_job, but a lane may name only the last of its rows there, and no
 * two lanes share a page. */
struct sf_columns_job {
    struct sf_layout layout;
    const unsigned char *pool;
    size_t page_bytes;
    const float *q;
    size_t q_stride;
    float scale;
    int32_t window;
    const int32_t *row_pos;             /* host */
    const struct sf_lane_job *lane;     /* host */
    int32_t lanes;
    const float *lse;                   /* [rows][q heads], of attend */
    size_t lse_stride;
    enum sf_row_fold fold;
    enum sf_head_fold head_fold;
    float decay;                        /* of a row, SF_ROWS_DECAY */
    float *mass;                        /* [pages of the pool][mass_slots], never negative */
    int32_t mass_slots;                 /* at least the page_slots of every layout; 0: layout's */
};
/* New slots of one lane from rows of k and v; `slot_first` is physical, pages are there already.
 * In f16 what lies beyond its range, infinities too, becomes its greatest number, 65,504, with the
 * sign: no slot is infinite, whose products with a weight of 0 would be NaN.  In int8 the slot's
 * key and value are rounded each with a scale of its own (layout.h). */
struct sf_append_lane {
    const int32_t *pages;               /* host */
    int32_t slot_first, row_first, rows;
    int32_t head;                       /* k at row * k_stride + head * k_dim, v likewise */
};
struct sf_append_job {
    struct sf_layout layout;
    unsigned char *pool;
    size_t page_bytes;
    const float *k, *v;                 /* [rows][k_stride], [rows][v_stride]; k after RoPE; */
    size_t k_stride, v_stride;          /* with k_dim or v_dim 0 that one is not read */
    const int32_t *pos;                 /* host, [rows]; like bias not read with k_dim 0 */
    const float *bias;                  /* host, [rows]; NULL = 0 */
    const struct sf_append_lane *lane;  /* host, [lanes] */
    int32_t lanes;
};
struct sf_slot_list {                   /* host; physical slots of one lane */
    const int32_t *pages, *slot; int32_t n;
};

/* ---- picks -----------------------------------------------------------------------------------
 * Which slots of a part attention is to read.  A lane's landmarks are keys that each stand for a
 * chunk of chunk_slots slots; they lie in pages, the number of the chunk as their pos.
 *
 *   p_hc = softmax over the landmarks c of scale * q_h . k_c      for each row and query head h
 *   s_c  = the greatest p_hc over rows and heads
 *
 * The `chunks` landmarks of greatest s, ties to the lower c, name the slots of their chunks:
 *
 *   slot_out[i][j] = pos of the i-th of them, c ascending, * chunk_slots + j
 *
 * Which ones they are does not depend on the other lanes of the call or on the threads. */
enum { SF_LANDMARKS_MAX = 1 << 15 };    /* of one lane */
struct sf_pick_lane {                   /* host */
    const int32_t *pages;               /* host */
    int32_t landmarks, chunks;          /* 0 <= chunks <= landmarks; no holes among them */
    int32_t row_first, rows, q_first, q_heads; /* at least one of each, as in sf_lane_job */
    int32_t *slot_out;                  /* device, [chunks][chunk_slots] */
};
struct sf_pick_job {
    struct sf_layout layout;            /* of the landmarks; v_dim is not looked at */
    const unsigned char *pool;
    size_t page_bytes;
    const float *q;                     /* [rows][q_stride], head h at h * k_dim; after RoPE */
    size_t q_stride;
    float scale;
    int32_t chunk_slots;
    const struct sf_pick_lane *lane;    /* host, [lanes] */
    int32_t lanes;
};

/* ---- choices ---------------------------------------------------------------------------------
 * From a row of logits l to a token.  In this order, each changed logit rounded to f32:
 *
 *   l_i += bias_i
 *   l_i  = l_i > 0 ? l_i / r : l_i r       tokens of prompt or answer  (repetition r)
 *   l_i -= f count_i + q [count_i > 0]     the same tokens; count_i in the answer   (f, q)
 *   temperature 0: the greatest l_i, ties to the lower token; else, with h the greatest,
 *   x_i  = (l_i - h) / temperature,  w_i = round(2^40 e^x_i)             (kernels/choice.h)
 *   keep x_i >= max(ln min_p, -27), then the top_k greatest l_i, then the fewest greatest that hold
 *   top_p of the weight of what top_k left; ties to the lower token
 *   the first kept token, in the order of the vocabulary, whose cumulative w exceeds u of the kept
 *
 * No token where a logit of the row is NaN or +inf, or all are -inf.
 *
 * A score is taken from the row as it comes.  With m = max_i l_i, at temperature 1:
 *
 *   sum    = sum_i w_i over x_i >= -27
 *   rank_t = 1 + tokens before t; i before j if l_i > l_j, or l_i = l_j and i < j; the tops are the
 *            first in this order, without those of -inf
 *
 * Every number of a choice and of a score is the same on all backends, for the same bits of l. */
enum { SF_CHOICE_TOPS_MAX = 32,
       SF_CHOICE_VOCAB_MAX = 5 << 16, SF_CHOICE_BIASES_MAX = 1 << 14 };
enum { SF_SCORE_NONE = -1, SF_SCORE_CHOSEN = -2 };
struct sf_choice_bias { int32_t token; float value; };
struct sf_choice_seen { int32_t token, count; }; /* count: in the answer */
struct sf_choose_row {                  /* host */
    int32_t row;                        /* of logits */
    int32_t sample;                     /* 0: no token is chosen, and what follows is not read but
                                           score and tops */
    double temperature, top_p, min_p;   /* as in proto/wire.h, like those that follow */
    double presence, frequency, repetition;
    double u;                           /* [0, 1) */
    int32_t top_k;
    int32_t biases, seen;               /* no token twice in either list */
    const struct sf_choice_bias *bias;  /* host, [biases] */
    const struct sf_choice_seen *token; /* host, [seen] tokens of prompt or answer */
    int32_t score;                      /* the token that is scored, or one of SF_SCORE_ */
    int32_t tops;                       /* likeliest tokens told with the score */
};
struct sf_choice {                      /* zeros where there is no score */
    int32_t token;                      /* -1: none */
    int32_t scored, rank, tops;
    float logit, highest;               /* of the token that is scored; m; never -0 */
    uint64_t sum;                       /* 0: the row has a NaN or +inf, or all are -inf */
};
struct sf_choice_top { int32_t token; float logit; };
struct sf_choose_job {
    int32_t rows, vocab;
    float *logits;                      /* as they were, on return */
    size_t stride;
    const struct sf_choose_row *row;    /* host, [rows]; no row of logits twice */
    struct sf_choice *choice;           /* device, [rows] */
    struct sf_choice_top *top;          /* device, [rows][SF_CHOICE_TOPS_MAX] */
};

/* ---- low rank --------------------------------------------------------------------------------
 * x [rows][cols] ~ a [rows][rank] b [rank][cols], with a b near the best product of that rank
 * (Eckart and Young).  EXACT is the best.  RANDOM is within some percent of it where the spectrum
 * falls: a randomised range finder (Halko, Martinsson and Tropp, SIAM Review 53 (2011), algorithm
 * 4.4), made orthonormal by shifted Cholesky QR (Fukaya et al., SIAM J. Sci. Comput. 42 (2020)).
 * GRAM takes the eigenvectors of x^T x, where singular values below 3e-4 of the greatest drown.
 * The singular values are split evenly over a and b; RANDOM without oversampling scales an
 * orthonormal basis by sqrt(rows) instead.  In every row of b the first of the greatest entries is
 * positive.  A rank above that of x is filled up with zeros or with directions that add nothing. */
enum sf_factor_how { SF_FACTOR_EXACT, SF_FACTOR_RANDOM, SF_FACTOR_GRAM };
struct sf_factor_job {
    int32_t rows, cols, rank;           /* >= 1 */
    enum sf_factor_how how;
    int32_t power_iterations, oversample; /* RANDOM */
    uint64_t seed;                      /* RANDOM */
    const float *x;
    size_t x_stride;
    float *a, *b;                       /* not x */
    size_t a_stride, b_stride;
    void *scratch;                      /* factor_bytes of this job, aligned to 64 */
};

struct sf_kernels {
    const char *name;                   /* "ref", "cpu-avx512", ... */

    /* ---- memory, required ----
     * On return from upload its source is the caller's again, from download its target is there. */
    sf_status (*alloc)(struct sf_device *, size_t bytes, const char *what, void **out); /* zeroed */
    void (*free)(struct sf_device *, void *block);
    void (*upload)(struct sf_device *, void *device_dst, const void *host_src, size_t bytes);
    void (*download)(struct sf_device *, void *host_dst, const void *device_src, size_t bytes);
    void (*sync)(struct sf_device *);   /* waits until all queued work is done */

    /* ---- memory, of a device whose own the host cannot touch; NULL in the other backends ---- */
    /* Host memory, zeroed, that fetch and argmax fill without holding up the host. */
    sf_status (*host_alloc)(struct sf_device *, size_t bytes, const char *what, void **out);
    void (*host_free)(struct sf_device *, void *block);
    /* A download that is only queued: host_dst, of host_alloc, holds it after the next sync. */
    void (*fetch)(struct sf_device *, void *host_dst, const void *device_src, size_t bytes);
    /* y[at[r]] = x[at[r]], r < rows, `cols` elements of each; at, x: host, the caller's again on
     * return.  No row is named twice. */
    void (*put_rows)(struct sf_device *, int32_t rows, int32_t cols, const int32_t *at,
                     const float *x, size_t x_stride, float *y, size_t y_stride);

    /* ---- rows, required ---- */
    /* out = x / sqrt(mean(x^2) + eps) * weight; out in out_dtype. */
    void (*rmsnorm)(struct sf_device *, int32_t rows, int32_t dim, const float *x, size_t x_stride,
                    const float *weight, float eps, void *out, size_t out_stride,
                    enum sf_dtype out_dtype);
    /* cos and sin of pos * inv_freq[i]: table [rows][2][half]. pos: host; inv_freq is not. */
    void (*rope_table)(struct sf_device *, int32_t rows, const int32_t *pos, const float *inv_freq,
                       int32_t half, float *table);
    /* In place, half-split pairs (i, i + rope_dim/2): heads of `head_dim`, the first rope_dim
     * elements of each turn. x [rows][x_stride]. */
    void (*rope)(struct sf_device *, int32_t rows, int32_t heads, int32_t head_dim,
                 int32_t rope_dim, const float *table, float *x, size_t x_stride);
    /* out[r][c] = silu(gate[r][c]) * up[r][c], c < cols; out in out_dtype. */
    void (*swiglu)(struct sf_device *, int32_t rows, int32_t cols, const float *gate,
                   size_t gate_stride, const float *up, size_t up_stride, void *out,
                   size_t out_stride, enum sf_dtype out_dtype);
    /* x[r][c] += bias[c]. */
    void (*add_bias)(struct sf_device *, int32_t rows, int32_t cols, const float *bias, float *x,
                     size_t x_stride);
    /* x[r][c] = the sum of the leaves' [r][c] in their order, or += it where `onto`; no leaves: 0.
     * Leaf l at leaves + l * leaf_stride.  x may be the first leaf, if their strides are equal. */
    void (*add_leaves)(struct sf_device *, int32_t rows, int32_t cols, const float *leaf,
                       int32_t leaves, size_t leaf_stride, size_t row_stride, int onto, float *x,
                       size_t x_stride);
    /* out[r] = x[from[r]], `cols` elements of each; from: host, [rows], NULL: row r. */
    void (*copy_rows)(struct sf_device *, int32_t rows, int32_t cols, const int32_t *from,
                      const float *x, size_t x_stride, float *out, size_t out_stride);
    /* Greatest value of each row and its index, ties to the lower index; NaN and 0 where one is in
     * it.  Outputs: host, there after the next sync. */
    void (*argmax)(struct sf_device *, int32_t rows, int32_t cols, const float *x, size_t x_stride,
                   float *value_out, int32_t *index_out);

    /* ---- products, required ---- */
    /* Bytes that the packed matrix will take; pure. */
    int64_t (*mat_bytes)(const struct sf_mat_shape *);
    sf_status (*mat_create)(struct sf_device *, const struct sf_mat_shape *, struct sf_mat **out);
    void (*mat_destroy)(struct sf_device *, struct sf_mat *);
    /* Packs one tile from host f32 rows tile[panel column][k_slice] (out-major, as checkpoints
     * lie); columns past the matrix are not read. */
    sf_status (*mat_pack)(struct sf_device *, struct sf_mat *, int32_t panel, int32_t slice,
                          const float *tile);
    /* y[r][c] = sum over slices, in order, of the slice's product.
     * x [rows][x_stride] of the matrix's dtype, slice s at s * k_slice. */
    void (*matmul)(struct sf_device *, const struct sf_mat *, int32_t rows, const void *x,
                   size_t x_stride, float *y, size_t y_stride);
    /* The same without the sum: leaf[s][r][c], leaf s at leaves + s * leaf_stride. */
    void (*matmul_leaves)(struct sf_device *, const struct sf_mat *, int32_t rows, const void *x,
                          size_t x_stride, float *leaves, size_t leaf_stride, size_t row_stride);

    /* ---- cache, required ---- */
    void (*kv_clear)(struct sf_device *, const struct sf_layout *, unsigned char *page);
    void (*kv_append)(struct sf_device *, const struct sf_append_job *);
    /* Of the three that follow only kv_read takes a layout with k_dim 0, and leaves bias and pos
     * out.  Slots of a lane move to other physical slots of it (or of another lane of the same
     * layout), bit for bit, in the order of the list: source i is read before target i is written,
     * and a target never is a later source. */
    void (*kv_move)(struct sf_device *, const struct sf_layout *, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *from,
                    const struct sf_slot_list *to);
    /* Marks slots as holes: bias -inf, pos -1. */
    void (*kv_drop)(struct sf_device *, const struct sf_layout *, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *);
    /* Decoded slots: k [n][k_dim], v [n][v_dim] f32; bias and pos to host; any may be NULL. */
    void (*kv_read)(struct sf_device *, const struct sf_layout *, const unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *, float *k, float *v,
                    float *bias_host, int32_t *pos_host);
    void (*attend)(struct sf_device *, const struct sf_attend_job *);
    void (*columns)(struct sf_device *, const struct sf_columns_job *);

    /* ---- low rank; all four NULL in a backend that has none, whose attend then takes no part with
     * factors, as columns never does ---- */
    /* Slots of a part with factors: k [n][k_dim], v [n][v_dim] f32 as attention takes them; either
     * may be NULL.  The list's pages are the part's. */
    void (*kv_rebuild)(struct sf_device *, const struct sf_lane_part *, const unsigned char *pool,
                       size_t page_bytes, const struct sf_slot_list *, float *k, float *v);
    /* Columns of a matrix to columns of another: y[r][c] = x[r][c], and 0 from x_cols on. */
    void (*copy_columns)(struct sf_device *, int32_t rows, int32_t x_cols, int32_t cols,
                         const float *x, size_t x_stride, float *y, size_t y_stride);
    /* Bytes of scratch; looks at rows, cols, rank, how and oversample alone. */
    size_t (*factor_bytes)(const struct sf_factor_job *);
    /* SF_INVALID if x holds what is not finite, SF_INTERNAL if the library does not converge; a and
     * b are then not to be used.  Of a device whose memory the host can touch it takes `threads`
     * and nothing else: another thread may call it beside all other entries, with a copy of the
     * device that has threads of its own. */
    sf_status (*factor)(struct sf_device *, const struct sf_factor_job *);
    /* Steps of RANDOM, for an x whose columns lie on several ranks; NULL in a backend whose memory
     * the host cannot touch.  product: out [rows][cols] = x [rows][inner] y [inner][cols], or with
     * x [inner][rows] turned; rows and inner may be 0.  cholesky: gram [n][n], symmetric, becomes
     * r^-1, upper with zeros below, where gram + shift 1 = r^T r; 0, and lost, if there is none. */
    void (*product)(struct sf_device *, int turned, int32_t rows, int32_t cols, int32_t inner,
                    const float *x, size_t x_stride, const float *y, size_t y_stride, float *out,
                    size_t out_stride);
    int (*cholesky)(struct sf_device *, int32_t n, float shift, float *gram);

    /* ---- picks; NULL in a backend that has none, whose attend takes no part with picks ---- */
    void (*pick)(struct sf_device *, const struct sf_pick_job *);

    /* ---- choices; may be NULL in a backend whose memory the host can touch, and is in `cpu`:
     * there worker/sample.c and score.c do it ---- */
    void (*choose)(struct sf_device *, const struct sf_choose_job *);
};

SF_C_END
#endif
