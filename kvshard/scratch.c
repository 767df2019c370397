/* kvshard/scratch.c: step memory in blocks that grow geometrically.  A reset after a step that
 * needed several blocks keeps the last, which is as large as all the others together, so that a
 * step of the same size finds it all in one piece after at most two more steps. */
#include "kvshard/scratch.h"

#include <string.h>

#include "base/memory.h"

static void scratch_free(struct sf_scratch_mem *mem, void *block)
{
    if (mem->device) mem->device->k->free(mem->device, block);
    else sf_free(block);
}

static sf_status scratch_alloc(struct sf_scratch_mem *mem, size_t bytes, void **out)
{
    if (mem->device)
        return mem->device->k->alloc(mem->device, bytes, "step scratch of the cache", out);
    return sf_alloc(bytes, "step scratch of the cache", out);
}

void sf_scratch_init(struct sf_scratch_mem *mem, struct sf_device *device)
{
    memset(mem, 0, sizeof *mem);
    mem->device = device;
}

void sf_scratch_destroy(struct sf_scratch_mem *mem)
{
    for (int32_t i = 0; i < mem->blocks; i++) scratch_free(mem, mem->block[i].base);
    mem->blocks = 0;
}

sf_status sf_scratch_take(struct sf_scratch_mem *mem, size_t bytes, void **out)
{
    if (bytes > SIZE_MAX / 4)
        return SF_FAIL(SF_NO_MEMORY, "step scratch of %zu B is more than there can be", bytes);
    size_t rounded = (bytes + SF_ALIGN - 1) / SF_ALIGN * SF_ALIGN;
    size_t have = mem->blocks ? mem->block[mem->blocks - 1].bytes : 0;
    if (mem->blocks == 0 || have - mem->used < rounded) {
        size_t total = 64 * 1024;
        for (int32_t i = 0; i < mem->blocks; i++) total += mem->block[i].bytes;
        if (total < rounded) total = rounded;
        SF_ASSERT(mem->blocks < SF_SCRATCH_BLOCKS);
        void *base;
        SF_TRY(scratch_alloc(mem, total, &base));
        mem->block[mem->blocks].base = base;
        mem->block[mem->blocks].bytes = total;
        mem->blocks++;
        mem->used = 0;
    }
    *out = mem->block[mem->blocks - 1].base + mem->used;
    mem->used += rounded;
    return SF_OK;
}

sf_status sf_scratch_items(struct sf_scratch_mem *mem, size_t count, size_t item_bytes, void *out)
{
    SF_ASSERT(item_bytes > 0);
    if (count > SIZE_MAX / item_bytes)
        return SF_FAIL(SF_NO_MEMORY, "step scratch of %zu items of %zu B", count, item_bytes);
    void *block;
    SF_TRY(sf_scratch_take(mem, count * item_bytes, &block));
    memcpy(out, &block, sizeof block);  /* `out` is the address of a typed pointer */
    return SF_OK;
}

void sf_scratch_reset(struct sf_scratch_mem *mem)
{
    while (mem->blocks > 1) {
        scratch_free(mem, mem->block[0].base);
        for (int32_t i = 1; i < mem->blocks; i++) mem->block[i - 1] = mem->block[i];
        mem->blocks--;
    }
    mem->used = 0;
}
