/* kernels/cpu/basis.c: attention over slots that are rows of a basis.
 *
 *   a split, PIECE slots at a time:   basis a_k [rank_k][16] --b_k--> keys [k_dim][16], turned
 *                                     keys and a_v as an ordinary split: sum of p_j a_v[j]
 *   at its end                        out = (sum of p_j a_v[j]) b_v
 *   Where values lie as they are, they take the place of a_v, and there is no product at the end.
 *
 * Keys must be rebuilt, since each is turned to its own position: 2 rank_k k_dim operations a slot,
 * nearly all that there is to do.  Values are weighed as rows of the basis; the product with b_v
 * comes once for each split, which is rank_v / 512 of a slot's price.  Pieces and splits are cut at
 * fixed slots and merge in order, so the bits are the same whatever the tiles and threads.
 *
 * Where a part names picks, pieces are cut from their list, and their slots are first laid side by
 * side (gather.c), keys of a basis as many elements of the rank as are unpacked of b_k at once. */
#include "kernels/cpu/basis.h"

#include <math.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/ahead.h"

enum { PIECE = 128, RANK_ROWS = 64,     /* slots; rows of b_k unpacked at once */
       VALUE_BYTES = 128 << 10 };       /* of picked values side by side, if they are not wider */

static size_t padded(int32_t width)
{
    return ((size_t)width + SF_OUT_ALIGN - 1) / SF_OUT_ALIGN * SF_OUT_ALIGN;
}

/* Whether its values are weighed as they lie, with no product behind. */
static int is_direct(const struct sf_lane_part *part)
{
    return !part->factors || part->factors->rank_v == 0;
}

/* How they lie. */
static const struct sf_layout *values_of(const struct sf_lane_part *part)
{
    return part->factors && is_direct(part) ? part->factors->value_layout : part->layout;
}

/* Slots of a piece. */
static int32_t piece_of(const struct sf_lane_part *part)
{
    int32_t piece = PIECE;
    size_t row = (size_t)values_of(part)->v_dim * sf_dtype_bytes(values_of(part)->dtype);
    if (!part->pick) return piece;
    while (piece > SF_BLOCK_SLOTS && (size_t)piece * row > VALUE_BYTES) piece /= 2;
    return piece;
}

/* Floats that the values of a piece of picks take, and what may be read behind them. */
static size_t value_floats(const struct sf_lane_part *part)
{
    size_t row = (size_t)values_of(part)->v_dim * sf_dtype_bytes(values_of(part)->dtype);
    return ((size_t)piece_of(part) * row + 3) / sizeof(float) + SF_OUT_ALIGN;
}

size_t sf_basis_vector_floats(const struct sf_lane_job *lane)
{
    size_t most = 0;
    for (int32_t p = 0; p < lane->parts; p++) {
        const struct sf_lane_part *part = &lane->part[p];
        if (!part->factors && !part->pick) continue;
        size_t floats = is_direct(part) ? padded(values_of(part)->v_dim) + 2
                                        : 2 * (padded(part->layout->v_dim) + 2);
        if (floats > most) most = floats;
    }
    return most;
}

size_t sf_basis_thread_floats(const struct sf_attend_job *job, const struct sf_lane_job *lane)
{
    size_t most = 0;
    for (int32_t p = 0; p < lane->parts; p++) {
        const struct sf_lane_part *part = &lane->part[p];
        size_t floats = (PIECE + RANK_ROWS) * (size_t)job->layout.k_dim + padded(job->layout.v_dim);
        if (!part->factors && !part->pick) continue;
        if (part->pick) floats += PIECE * (RANK_ROWS + 2) + value_floats(part);
        if (floats > most) most = floats;
    }
    return most;
}

/* Where block i / 16 of b's rows has its keys, or where row i has its value. */
static const unsigned char *row_at(const struct sf_attend_job *job,
                                   const struct sf_lane_factors *factors, int32_t i, int values)
{
    const struct sf_layout *layout = factors->layout;
    size_t inside = (size_t)(i % layout->page_slots), width = sf_dtype_bytes(layout->dtype);
    const unsigned char *page =
        job->pool + (size_t)factors->pages[i / layout->page_slots] * job->page_bytes;
    if (values) return page + sf_layout_v_offset(layout) + inside * (size_t)layout->v_dim * width;
    return page + inside * (size_t)layout->k_dim * width;
}

/* What a thread has for a piece. */
struct piece {
    float *keys, *b, *row;              /* rebuilt [PIECE][k_dim]; of b_k; of b_v */
    float *rank, *bias, *values;        /* of picks: keys of the basis, and so on */
    int32_t *pos;
};

static struct piece piece_room(const struct sf_attend_job *job, const struct sf_lane_part *part,
                               float **floats)
{
    struct piece piece = { .keys = *floats };
    piece.b = piece.keys + PIECE * (size_t)job->layout.k_dim;
    piece.row = piece.b + RANK_ROWS * (size_t)job->layout.k_dim;
    *floats = piece.row + padded(job->layout.v_dim);
    if (!part->pick) return piece;
    piece.rank = *floats;
    piece.bias = piece.rank + PIECE * RANK_ROWS;
    piece.pos = (int32_t *)(void *)(piece.bias + PIECE);
    piece.values = piece.bias + 2 * PIECE;
    *floats = piece.values + value_floats(part);
    return piece;
}

/* Lays the picks side by side; the split speaks of them as sf_tile_blocks would, but for keys. */
static void gather(const struct sf_attend_job *job, const struct sf_tile *tile,
                   const struct sf_picked *picked, const struct piece *piece,
                   struct sf_gathered *gathered, struct sf_split *split)
{
    const struct sf_layout *layout = picked->part->layout, *of = values_of(picked->part);
    const int32_t *pages = of == layout ? picked->part->pages : picked->part->factors->value_pages;
    size_t row = (size_t)of->v_dim * sf_dtype_bytes(of->dtype);
    unsigned char *values = (unsigned char *)(void *)piece->values;
    sf_gather_marks(picked, piece->bias, piece->pos);
    sf_gather_values(picked, of, pages, values);
    split->dtype = layout->dtype;
    split->v_dtype = of->dtype;
    split->k_dim = layout->k_dim;
    split->v_dim = of->v_dim;
    sf_tile_split(job, tile, gathered, split);
    split->blocks = (picked->n + SF_BLOCK_SLOTS - 1) / SF_BLOCK_SLOTS;
    for (int32_t j = 0; j < tile->vectors; j++) gathered->end[j] = picked->n;
    for (int32_t b = 0; b < split->blocks; b++) {
        split->bias[b] = piece->bias + b * SF_BLOCK_SLOTS;
        split->pos[b] = piece->pos + b * SF_BLOCK_SLOTS;
        split->values[b] = values + (size_t)b * SF_BLOCK_SLOTS * row;
        split->first[b] = b * SF_BLOCK_SLOTS;
    }
    if (!picked->part->factors)
        sf_gather_keys(picked, 0, layout->k_dim, (unsigned char *)(void *)piece->keys,
                       split->keys);
}

/* Keys of the listed blocks, f32, and the split then speaks of them. */
static void rebuild(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                    const struct sf_lane_part *part, const struct sf_picked *picked,
                    const struct piece *piece, struct sf_split *split)
{
    float *b = piece->b, *keys = piece->keys;
    const struct sf_lane_factors *factors = part->factors;
    const unsigned char *basis[SF_SPLIT_BLOCKS];
    size_t block = (size_t)job->layout.k_dim * SF_BLOCK_SLOTS;
    size_t row = SF_BLOCK_SLOTS * sf_dtype_bytes(part->layout->dtype);
    struct sf_rebuild r = { .dtype = part->layout->dtype, .k_dim = job->layout.k_dim,
                            .blocks = split->blocks, .basis = basis, .b = b, .keys = keys };
    SF_ASSERT(factors->layout->dtype == part->layout->dtype);
    for (int32_t i = 0; i < factors->rank_k; i += RANK_ROWS) {
        r.rank = factors->rank_k - i < RANK_ROWS ? factors->rank_k - i : RANK_ROWS;
        r.first = i == 0;
        for (int32_t at = 0; at < r.rank; at += SF_BLOCK_SLOTS)
            isa->to_f32(r.dtype, row_at(job, factors, i + at, 0),
                        b + (size_t)(at / SF_BLOCK_SLOTS) * block, block);
        if (picked)
            sf_gather_keys(picked, i, r.rank, (unsigned char *)(void *)piece->rank, basis);
        for (int32_t j = 0; !picked && j < split->blocks; j++)
            basis[j] = split->keys[j] + (size_t)i * row;
        isa->rebuild(&r);
    }
    for (int32_t j = 0; j < split->blocks; j++) {
        split->keys[j] = (const unsigned char *)(const void *)(keys + (size_t)j * block);
        if (factors->rope_dim > 0)
            isa->turn(keys + (size_t)j * block, split->pos[j], factors->turns, factors->rope_dim);
    }
    split->dtype = SF_F32;
    split->k_dim = job->layout.k_dim;
}

/* The split speaks of the values of the listed blocks as they lie; it begins with slot `first`. */
static void take_values(const struct sf_attend_job *job, const struct sf_lane_factors *factors,
                        int32_t first, struct sf_split *split)
{
    const struct sf_layout *layout = factors->value_layout;
    size_t row = (size_t)layout->v_dim * sf_dtype_bytes(layout->dtype);
    for (int32_t j = 0; j < split->blocks; j++) {
        int32_t slot = first + split->first[j];
        size_t page = (size_t)factors->value_pages[slot / layout->page_slots];
        split->values[j] = job->pool + page * job->page_bytes + sf_layout_v_offset(layout) +
                           (size_t)(slot % layout->page_slots) * row;
    }
    split->v_dtype = layout->dtype;
    split->v_dim = layout->v_dim;
}

/* out [v_dim] = latent [rank_v] b_v */
static void to_values(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                      const struct sf_lane_factors *factors, int32_t vectors, const float *latent,
                      size_t latent_width, float *row, float *out)
{
    size_t width = padded(job->layout.v_dim);
    memset(out, 0, (size_t)vectors * width * sizeof *out);
    for (int32_t i = 0; i < factors->rank_v; i++) {
        isa->to_f32(factors->layout->dtype, row_at(job, factors, i, 1), row,
                    (size_t)job->layout.v_dim);
        for (int32_t j = 0; j < vectors; j++) {
            float weight = latent[(size_t)j * latent_width + (size_t)i];
            float *into = out + (size_t)j * width;
            for (int32_t e = 0; e < job->layout.v_dim; e++) into[e] += weight * row[e];
        }
    }
}

/* The state over a split whose slots are as they are: no product behind it. */
static struct sf_partial whole_of(const struct sf_lane_part *part, size_t n, size_t width,
                                  struct sf_partial into, float *floats)
{
    struct sf_partial whole = { is_direct(part) ? into.out : floats, into.max, into.sum };
    memset(whole.out, 0, n * width * sizeof *whole.out);
    for (size_t j = 0; j < n; j++) {
        into.max[j] = -INFINITY;
        into.sum[j] = 0;
    }
    return whole;
}

void sf_basis_split(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                    const struct sf_tile *tile, int32_t part_index, struct sf_gathered *gathered,
                    int32_t first, int32_t end, float *logits, float *floats,
                    struct sf_partial into)
{
    const struct sf_lane_part *part = &tile->lane->part[part_index];
    size_t n = (size_t)tile->vectors, width = padded(values_of(part)->v_dim);
    int32_t most = sf_lane_part_seen(tile->lane, part_index, 0), step = piece_of(part);
    struct piece piece = piece_room(job, part, &floats);
    struct sf_partial whole = whole_of(part, n, width, into, floats);
    float *one = is_direct(part) ? floats : floats + n * width;
    struct sf_split split;
    struct sf_ahead ahead;
    split.logits = logits;
    split.left = NULL;                  /* no logits are asked for where a lane has such a part */
    split.partial = (struct sf_partial){ one, one + n * width, one + n * width + n };
    SF_ASSERT(part->layout->dtype != SF_INT8 && values_of(part)->dtype != SF_INT8);
    if (end > most) end = most;
    for (; first < end; first += step) {
        int32_t slots = end - first < step ? end - first : step;
        struct sf_picked picked = { part, job->pool, job->page_bytes,
                                    part->pick ? part->pick + first : NULL, slots };
        if (part->pick) gather(job, tile, &picked, &piece, gathered, &split);
        else sf_tile_blocks(job, tile, part_index, gathered, first, first + slots, &split);
        if (!part->pick && is_direct(part)) take_values(job, part->factors, first, &split);
        if (part->factors)
            rebuild(isa, job, part, part->pick ? &picked : NULL, &piece, &split);
        sf_ahead_within(&ahead, &split);
        isa->split(&split);
        isa->merge(tile->vectors, (int32_t)width, whole, split.partial);
    }
    if (!is_direct(part))
        to_values(isa, job, part->factors, tile->vectors, whole.out, width, piece.row, into.out);
}

/* ---- reading and copying -------------------------------------------------------------------- */
/* Element e of the key in slot s of a page. */
static float key_element(const struct sf_cpu_isa *isa, const struct sf_layout *layout,
                         const unsigned char *page, int32_t s, int32_t e)
{
    float value;
    isa->to_f32(layout->dtype,
                page + sf_layout_k_index(layout, s, e) * sf_dtype_bytes(layout->dtype), &value, 1);
    return value;
}

static void turn_key(const struct sf_lane_factors *factors, int32_t pos, float *k)
{
    int32_t half = factors->rope_dim / 2;
    const float *turn = factors->turns + (size_t)pos * (size_t)factors->rope_dim;
    for (int32_t i = 0; i < half; i++) {
        float low = k[i], high = k[i + half];
        k[i] = low * turn[i] - high * turn[i + half];
        k[i + half] = high * turn[i] + low * turn[i + half];
    }
}

struct reading {
    const struct sf_cpu_isa *isa;
    const struct sf_lane_part *part;
    const unsigned char *pool;
    size_t page_bytes;
};

/* The value of a slot of the part, where values lie as they are. */
static void read_value(const struct reading *r, int32_t number, float *out)
{
    const struct sf_lane_factors *factors = r->part->factors;
    const struct sf_layout *layout = factors->value_layout;
    size_t page = (size_t)factors->value_pages[number / layout->page_slots];
    size_t slot = (size_t)(number % layout->page_slots), n = (size_t)layout->v_dim;
    r->isa->to_f32(layout->dtype, r->pool + page * r->page_bytes + sf_layout_v_offset(layout) +
                   slot * n * sf_dtype_bytes(layout->dtype), out, n);
}

/* One slot; `out` k (values 0) or v. */
static void read_one(const struct reading *r, const unsigned char *page, int32_t slot, int values,
                     float *out)
{
    const struct sf_layout *layout = r->part->layout, *of = r->part->factors->layout;
    size_t width = sf_dtype_bytes(layout->dtype);
    int32_t rank = values ? r->part->factors->rank_v : r->part->factors->rank_k;
    int32_t dim = values ? of->v_dim : of->k_dim;
    memset(out, 0, (size_t)dim * sizeof *out);
    for (int32_t i = 0; i < rank; i++) {
        const unsigned char *b =
            r->pool + (size_t)r->part->factors->pages[i / of->page_slots] * r->page_bytes;
        int32_t s = i % of->page_slots;
        float a, factor;
        if (values)
            r->isa->to_f32(layout->dtype, page + sf_layout_v_offset(layout) +
                           ((size_t)slot * (size_t)layout->v_dim + (size_t)i) * width, &a, 1);
        else
            a = key_element(r->isa, layout, page, slot, i);
        for (int32_t e = 0; e < dim; e++) {
            if (values)
                r->isa->to_f32(of->dtype, b + sf_layout_v_offset(of) +
                               ((size_t)s * (size_t)dim + (size_t)e) * width, &factor, 1);
            else
                factor = key_element(r->isa, of, b, s, e);
            out[e] += a * factor;
        }
    }
}

struct rebuilding {
    struct reading r;
    const struct sf_slot_list *list;
    float *k, *v;
};

static void rebuild_slots(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct rebuilding *all = context;
    const struct reading *r = &all->r;
    const struct sf_lane_part *part = r->part;
    const struct sf_layout *layout = part->layout;
    size_t k_dim = (size_t)part->factors->layout->k_dim;
    size_t v_dim = (size_t)sf_lane_factors_v_dim(part->factors);
    (void)thread;
    for (int32_t i = first; i < end; i++) {
        int32_t at = all->list->slot[i], slot = at % layout->page_slots;
        const unsigned char *page =
            r->pool + (size_t)all->list->pages[at / layout->page_slots] * r->page_bytes;
        const int32_t *pos = (const int32_t *)(const void *)(page + sf_layout_pos_offset(layout));
        float *v = all->v ? all->v + (size_t)i * v_dim : NULL;
        if (v && part->factors->rank_v > 0) read_one(r, page, slot, 1, v);
        else if (v) read_value(r, at, v);
        if (!all->k) continue;
        float *key = all->k + (size_t)i * k_dim;
        read_one(r, page, slot, 0, key);
        if (part->factors->rope_dim > 0) turn_key(part->factors, pos[slot], key);
    }
}

void sf_cpu_kv_rebuild(struct sf_device *device, const struct sf_lane_part *part,
                       const unsigned char *pool, size_t page_bytes,
                       const struct sf_slot_list *list, float *k, float *v)
{
    struct rebuilding all = { { sf_cpu_of(device)->isa, part, pool, page_bytes }, list, k, v };
    sf_cpu_share(device,
                 (int64_t)list->n * part->layout->k_dim * part->factors->layout->k_dim, list->n, 0,
                 rebuild_slots, &all);
}

void sf_cpu_copy_columns(struct sf_device *device, int32_t rows, int32_t x_cols, int32_t cols,
                         const float *x, size_t x_stride, float *y, size_t y_stride)
{
    (void)device;
    int32_t copied = x_cols < cols ? x_cols : cols;
    for (int32_t r = 0; r < rows; r++) {
        float *row = y + (size_t)r * y_stride;
        if (copied > 0)
            memcpy(row, x + (size_t)r * x_stride, (size_t)copied * sizeof *row);
        memset(row + copied, 0, (size_t)(cols - copied) * sizeof *row);
    }
}
