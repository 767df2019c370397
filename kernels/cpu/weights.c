/* kernels/cpu/weights.c: the memory of packed matrices.
 *
 * A product reads its weights once, from main memory, and a matrix of a small model is smaller than
 * a huge page: mapped by itself it lies in pages of 4 KiB, and a core that asks for the address of
 * each of them reaches two thirds of the memory's rate (docs/decisions/0014).  So matrices share
 * chunks, which lie on huge pages where there are any; large ones have mappings of their own.
 *
 *   chunk   | matrix | matrix  | matrix | not touched yet, so not there |
 *
 * A matrix goes to the first chunk with room for it, so what stays free at a chunk's end is smaller
 * than the smallest that came later.  Room is not given out twice: a chunk goes when its last
 * matrix does, hence what is given out holds zeros. */
#include <string.h>
#include "base/memory.h"
#include "kernels/cpu/cpu.h"

enum { CHUNK_BYTES = 64 << 20, OWN_BYTES = 16 << 20, LINE = 64 };

struct sf_weights_chunk {
    struct sf_weights_chunk *next;
    unsigned char *base;
    size_t used;
    int32_t matrices;
};

sf_status sf_cpu_weights_take(struct sf_device *device, size_t bytes, void **out)
{
    struct sf_cpu *cpu = sf_cpu_of(device);
    size_t rounded = (bytes + LINE - 1) / LINE * LINE;
    if (bytes >= OWN_BYTES) return sf_map(bytes, 0, "weights", out);
    struct sf_weights_chunk **link = &cpu->chunks, *chunk;
    while (*link && CHUNK_BYTES - (*link)->used < rounded) link = &(*link)->next;
    if (!*link) {
        void *base;
        SF_TRY(sf_alloc(sizeof *chunk, "chunk of weights", (void **)&chunk));
        sf_status status = sf_map(CHUNK_BYTES, 0, "weights", &base);
        if (status != SF_OK) {
            sf_free(chunk);
            return status;
        }
        *chunk = (struct sf_weights_chunk){ .base = base };
        *link = chunk;
    }
    chunk = *link;
    *out = chunk->base + chunk->used;
    chunk->used += rounded;
    chunk->matrices++;
    return SF_OK;
}

static void chunk_free(struct sf_weights_chunk **link)
{
    struct sf_weights_chunk *chunk = *link;
    *link = chunk->next;
    sf_unmap(chunk->base, CHUNK_BYTES);
    sf_free(chunk);
}

void sf_cpu_weights_give(struct sf_device *device, void *weights, size_t bytes)
{
    if (!weights) return;
    if (bytes >= OWN_BYTES) {
        sf_unmap(weights, bytes);
        return;
    }
    struct sf_weights_chunk **link = &sf_cpu_of(device)->chunks;
    uintptr_t at = (uintptr_t)weights;
    while (*link && at - (uintptr_t)(*link)->base >= CHUNK_BYTES) link = &(*link)->next;
    SF_ASSERT(*link && (*link)->matrices > 0);
    if (--(*link)->matrices == 0) chunk_free(link);
}

void sf_cpu_weights_close(struct sf_device *device)
{
    while (sf_cpu_of(device)->chunks) chunk_free(&sf_cpu_of(device)->chunks);
}
