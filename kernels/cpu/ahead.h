/* kernels/cpu/ahead.h: what a thread reads next.  For attend.c, basis.c and pick.c.
 *
 * A tile of few vectors reads its slots from memory, and from pages that lie anywhere, so that the
 * processor's own prefetch stops every few KiB.  So it sends for the block that comes SF_AHEAD
 * blocks after the one that it works on, whether that is of this split, of the next or of another
 * unit (isa.h: key_next).  A thread therefore takes units before it works on them, as long as there
 * is one left for every thread: what is taken and not begun, no other thread can have. */
#ifndef SHEAF_KERNELS_CPU_AHEAD_H
#define SHEAF_KERNELS_CPU_AHEAD_H
#include "kernels/cpu/tile.h"

enum {
    SF_AHEAD = 8,                       /* blocks: 32 KiB of 64 elements in 16 bits */
    SF_UNITS_AHEAD = 3                  /* taken at most, and where lanes are shorter than that */
};

/* Units that a thread has taken: first the one that it works on. */
struct sf_queue {
    const struct sf_unit *unit[1 + SF_UNITS_AHEAD];
    int32_t count;
};

/* Takes units in their order: the first if there is none, and more while less than SF_AHEAD blocks
 * wait behind it and there are enough.  *taken is of all threads: how many they have. */
void sf_queue_fill(const struct sf_attention *, int32_t *taken, struct sf_queue *);
void sf_queue_drop(struct sf_queue *); /* the first */
/* Sends for the first blocks of the first unit: nobody did before. */
void sf_queue_begin(const struct sf_attend_job *, const struct sf_attention *,
                    const struct sf_queue *);

/* The blocks behind a split: [0, SF_SPLIT_BLOCKS) are for its key_next and value_next. */
struct sf_ahead { const unsigned char *keys[SF_SPLIT_BLOCKS], *values[SF_SPLIT_BLOCKS]; };

/* Points the split to what comes after its blocks in itself.  *ahead has to live as long as it. */
void sf_ahead_within(struct sf_ahead *ahead, struct sf_split *);
/* The same, and to what comes after it, if the tile is of few vectors: the split is number `split`
 * of the first unit's tile. */
void sf_ahead_point(const struct sf_attend_job *, const struct sf_attention *,
                    const struct sf_queue *, int32_t split, struct sf_ahead *ahead,
                    struct sf_split *);

#endif
