/* kernels/cpu/tile.h: what attention (attend.c) and its column sums (columns.c) share: query
 * vectors of one lane in tiles, the list of the work of a call, and the scratch.
 *
 *   vector   one query head of one row; a lane of r rows and h heads has r h of them, row by row
 *   tile     vectors of one lane that share each key and value that is loaded
 *   unit     a tile and a part of what it has to read: what a thread takes, longest first
 *
 * All scratch is made when the device is opened; a call that has more tiles than fit is worked off
 * in several passes. */
#ifndef SHEAF_KERNELS_CPU_TILE_H
#define SHEAF_KERNELS_CPU_TILE_H
#include "kernels/cpu/cpu.h"

enum {
    SF_TILE_VECTORS = 24,               /* of a tile whose queries are gathered */
    SF_TILES_MAX = 8192,                /* of one pass */
    SF_UNITS_MAX = 2 * SF_TILES_MAX,
    SF_UNITS_PER_THREAD = 4,            /* aimed at where work is cut */
    SF_THREAD_FLOATS = 128 << 10,       /* of a thread: queries, logits, states */
    SF_KEPT_FLOATS = 256 << 10          /* per thread: what units leave for each other */
};

struct sf_tile {
    const struct sf_lane_job *lane;
    int32_t vector, vectors;            /* first of the lane, count */
    int32_t splits;                     /* of the lane up to the last slot that is seen, and of
                                           its parts behind them */
    int32_t part;                       /* columns: whose slots, -1: the lane's own */
    float *kept;                        /* attend: states of a cut tile, or NULL; columns: a mean
                                           for each row */
};
struct sf_unit {
    int32_t tile, first, end;           /* attend: splits; columns: slots */
    int64_t cost;
};
struct sf_attention {
    int32_t threads;
    struct sf_tile *tile;               /* [SF_TILES_MAX] */
    struct sf_unit *unit;               /* [SF_UNITS_MAX] */
    int32_t *order;                     /* [SF_UNITS_MAX] units, longest first */
    float *thread_floats;               /* [threads][SF_THREAD_FLOATS] */
    float *kept_floats;                 /* [threads][SF_KEPT_FLOATS] */
    int32_t tiles, units;               /* of this pass */
};

/* The queries of a tile and what each of its vectors may see. */
struct sf_gathered {
    float *q;                           /* [vectors][k_dim], times the softmax scale */
    int32_t seen[SF_TILE_VECTORS];      /* slots of the lane that a vector may see */
    int32_t end[SF_TILE_VECTORS];       /* the same, counted from the first listed slot */
    int32_t pos_min[SF_TILE_VECTORS];   /* only written if there is a window */
    int32_t seen_most, pos_least;       /* of the tile; pos_least INT32_MAX without a window */
};

static inline int32_t sf_tile_row(const struct sf_tile *tile, int32_t j)
{
    return (tile->vector + j) / tile->lane->q_heads;
}
static inline int32_t sf_tile_head(const struct sf_tile *tile, int32_t j)
{
    return tile->lane->q_first + (tile->vector + j) % tile->lane->q_heads;
}

/* Splits of so many slots. */
static inline int32_t sf_splits_of(int32_t slots)
{
    return slots <= 0 ? 0 : (slots + SF_SPLIT_SLOTS - 1) / SF_SPLIT_SLOTS;
}

sf_status sf_cpu_attention_create(int32_t threads, struct sf_attention **out);
void      sf_cpu_attention_destroy(struct sf_attention *);
int64_t   sf_cpu_attention_bytes(int32_t threads);
/* The part of the lane that split number *split of the tile is in, and its number there. */
int32_t sf_tile_part(const struct sf_tile *, int32_t *split);
/* Scales the tile's queries into gathered->q, which the caller has set. */
void sf_tile_gather(const struct sf_cpu_isa *, const struct sf_attend_job *, const struct sf_tile *,
                    struct sf_gathered *);
/* What a split has of its tile; nothing comes after its blocks (ahead.h). */
void sf_tile_split(const struct sf_attend_job *, const struct sf_tile *, struct sf_gathered *,
                   struct sf_split *);
/* Fills all of *split_out but logits and partial: the blocks of slots first .. end - 1 of the lane
 * (part -1) or of a part of it (at most SF_SPLIT_SLOTS, from a block's begin on) in which the tile
 * sees something. */
void sf_tile_blocks(const struct sf_attend_job *, const struct sf_tile *, int32_t part,
                    struct sf_gathered *, int32_t first, int32_t end, struct sf_split *split_out);
/* Sorts the pass's units by cost. */
void sf_units_order(struct sf_attention *);

#endif
