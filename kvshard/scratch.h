/* kvshard/scratch.h: step memory that is handed out by moving a pointer and taken back all at once.
 *
 * It begins empty and grows to the largest step that it has seen; from then on a step allocates
 * nothing.  One lives on the host and one on the device. */
#ifndef SHEAF_KVSHARD_SCRATCH_H
#define SHEAF_KVSHARD_SCRATCH_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "kernels/device.h"
SF_C_BEGIN

enum { SF_SCRATCH_BLOCKS = 40 };        /* each at least as large as all before it */
struct sf_scratch_mem {
    struct sf_device *device;           /* NULL: host memory */
    struct { unsigned char *base; size_t bytes; } block[SF_SCRATCH_BLOCKS];
    int32_t blocks;                     /* the last one is being used up */
    size_t used;                        /* of the last block */
};

void sf_scratch_init(struct sf_scratch_mem *, struct sf_device *device);
void sf_scratch_destroy(struct sf_scratch_mem *);
/* Aligned to SF_ALIGN, not zeroed, valid until the reset.  SF_NO_MEMORY. */
sf_status sf_scratch_take(struct sf_scratch_mem *, size_t bytes, void **out);
/* `count` items of `item_bytes` each; SF_NO_MEMORY also when the product overflows. */
sf_status sf_scratch_items(struct sf_scratch_mem *, size_t count, size_t item_bytes, void *out);
void sf_scratch_reset(struct sf_scratch_mem *);
/* What is taken between the two is free for what is queued from then on; where a block more was
 * needed in between, only at the reset. */
struct sf_scratch_mark { int32_t blocks; size_t used; };
static inline struct sf_scratch_mark sf_scratch_mark(const struct sf_scratch_mem *mem)
{
    return (struct sf_scratch_mark){ mem->blocks, mem->used };
}
static inline void sf_scratch_back(struct sf_scratch_mem *mem, struct sf_scratch_mark mark)
{
    if (mem->blocks == mark.blocks) mem->used = mark.used;
}

SF_C_END
#endif
