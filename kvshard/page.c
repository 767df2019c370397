/* kvshard/page.c: pages are handed out last given, first taken, which keeps the ones in use warm
 * and makes the numbers a pure function of the history. */
#include "kvshard/page.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "kvshard/mass.h"

static size_t pool_map_bytes(const struct sf_page_pool *pool)
{
    return ((size_t)pool->pages + 1) * pool->page_bytes;
}

static size_t mirror_slots(const struct sf_page_pool *pool)
{
    return ((size_t)pool->pages + 1) * (size_t)pool->page_slots;
}

static sf_status mirror_create(struct sf_page_pool *pool, const struct sf_page_spec *spec)
{
    size_t slots = mirror_slots(pool);
    void *block;
    SF_TRY(sf_map(slots * sizeof(int32_t), 0, "slot positions of the page pool", &block));
    pool->pos = block;
    SF_TRY(sf_map(slots * sizeof(float), 0, "slot biases of the page pool", &block));
    pool->bias = block;
    if (pool->aux_bytes > 0) {
        SF_TRY(sf_map(slots * (size_t)pool->aux_bytes, 0, "method bytes of slots", &block));
        pool->aux = block;
    }
    for (int32_t w = 0; w < spec->masses; w++) {
        SF_TRY(sf_map(slots * sizeof(float), 0, "attention mass of slots", &block));
        pool->mass[w] = block;
        if (!spec->means[w]) continue;
        SF_TRY(sf_map(slots * sizeof(float), 0, "rows that saw the slots", &block));
        pool->seen[w] = block;
    }
    return SF_OK;
}

static sf_status pool_create(const struct sf_page_spec *spec, struct sf_page_pool *pool)
{
    void *block;
    struct sf_device *device = spec->device;
    if (device->host_memory)
        SF_TRY(sf_map(pool_map_bytes(pool), spec->populate, "the page pool", &block));
    else
        SF_TRY(device->k->alloc(device, pool_map_bytes(pool), "the page pool", &block));
    pool->base = block;
    SF_TRY(sf_alloc((size_t)pool->pages * sizeof(int32_t), "the list of free pages", &block));
    pool->free_page = block;
    SF_TRY(sf_alloc((size_t)pool->pages * sizeof(int32_t), "holders of pages", &block));
    pool->holders = block;
    SF_TRY(sf_alloc((size_t)pool->pages * sizeof(int32_t), "live slots of pages", &block));
    pool->live = block;
    if (spec->mirror) SF_TRY(mirror_create(pool, spec));
    if (spec->masses > 0 && !device->host_memory)
        SF_TRY(sf_masses_create(device, pool->pages + 1, pool->page_slots, spec->masses,
                                &pool->there));
    for (int32_t i = 0; i < pool->pages; i++) pool->free_page[i] = pool->pages - 1 - i;
    return SF_OK;
}

sf_status sf_pages_create(const struct sf_page_spec *spec, struct sf_page_pool *pool_out)
{
    SF_ASSERT(spec->page_bytes > 0 && spec->page_slots > 0 && spec->aux_bytes >= 0);
    SF_ASSERT(spec->masses >= 0 && spec->masses <= 2);
    int64_t pages = spec->pool_bytes / (int64_t)spec->page_bytes;
    if (pages < 1)
        return SF_FAIL(SF_INVALID, "a cache of %lld B has no room for one page of %zu B",
                       (long long)spec->pool_bytes, spec->page_bytes);
    if (pages > INT32_MAX / 2)
        return SF_FAIL(SF_INVALID, "a cache of %lld B has %lld pages, at most %d are possible",
                       (long long)spec->pool_bytes, (long long)pages, INT32_MAX / 2);
    struct sf_page_pool pool = { .device = spec->device, .page_bytes = spec->page_bytes,
                                 .pages = (int32_t)pages, .page_slots = spec->page_slots,
                                 .aux_bytes = spec->aux_bytes };
    sf_status status = pool_create(spec, &pool);
    if (status != SF_OK) {
        sf_pages_destroy(&pool);
        return status;
    }
    *pool_out = pool;
    return SF_OK;
}

void sf_pages_destroy(struct sf_page_pool *pool)
{
    size_t slots = mirror_slots(pool);
    for (int w = 0; w < 2; w++) {
        if (pool->seen[w]) sf_unmap(pool->seen[w], slots * sizeof(float));
        if (pool->mass[w]) sf_unmap(pool->mass[w], slots * sizeof(float));
    }
    if (pool->aux) sf_unmap(pool->aux, slots * (size_t)pool->aux_bytes);
    if (pool->bias) sf_unmap(pool->bias, slots * sizeof(float));
    if (pool->pos) sf_unmap(pool->pos, slots * sizeof(int32_t));
    sf_free(pool->live);
    sf_free(pool->holders);
    sf_free(pool->free_page);
    sf_masses_destroy(pool->there);
    if (pool->base && pool->device->host_memory) sf_unmap(pool->base, pool_map_bytes(pool));
    else if (pool->base) pool->device->k->free(pool->device, pool->base);
    memset(pool, 0, sizeof *pool);
}

sf_status sf_page_take(struct sf_page_pool *pool, const struct sf_layout *layout, int32_t *page_out)
{
    SF_ASSERT(pool->used <= pool->pages);
    SF_ASSERT(sf_layout_page_bytes(layout) <= pool->page_bytes);
    if (pool->used == pool->pages)
        return SF_FAIL(SF_NO_PAGES, "the pool of %d pages is full", pool->pages);
    int32_t page = pool->free_page[pool->pages - pool->used - 1];
    SF_ASSERT(page >= 0 && page < pool->pages && pool->holders[page] == 0);
    pool->used++;
    pool->holders[page] = 1;
    pool->live[page] = 0;
    sf_masses_forget(pool->there, page);
    pool->device->k->kv_clear(pool->device, layout, pool->base + (size_t)page * pool->page_bytes);
    if (pool->pos) {
        size_t first = (size_t)page * (size_t)pool->page_slots;
        for (size_t i = first; i < first + (size_t)pool->page_slots; i++) {
            pool->pos[i] = -1;
            pool->bias[i] = -INFINITY;
        }
        if (pool->aux)
            memset(pool->aux + first * (size_t)pool->aux_bytes, 0,
                   (size_t)pool->page_slots * (size_t)pool->aux_bytes);
    }
    *page_out = page;
    return SF_OK;
}

void sf_mirror_move(struct sf_page_pool *pool, size_t to, size_t from, size_t n)
{
    size_t aux_bytes = (size_t)pool->aux_bytes;
    memmove(pool->pos + to, pool->pos + from, n * sizeof *pool->pos);
    memmove(pool->bias + to, pool->bias + from, n * sizeof *pool->bias);
    if (pool->aux) memmove(pool->aux + to * aux_bytes, pool->aux + from * aux_bytes, n * aux_bytes);
    for (int w = 0; w < 2; w++) {
        if (pool->mass[w])
            memmove(pool->mass[w] + to, pool->mass[w] + from, n * sizeof *pool->mass[w]);
        if (pool->seen[w])
            memmove(pool->seen[w] + to, pool->seen[w] + from, n * sizeof *pool->seen[w]);
    }
}

void sf_mirror_begin(struct sf_page_pool *pool, size_t at, int32_t pos)
{
    size_t aux_bytes = (size_t)pool->aux_bytes;
    pool->pos[at] = pos;
    pool->bias[at] = 0.0f;
    if (pool->aux) memset(pool->aux + at * aux_bytes, 0, aux_bytes);
    for (int w = 0; w < 2; w++) {
        if (pool->mass[w]) pool->mass[w][at] = 0.0f;
        if (pool->seen[w]) pool->seen[w][at] = 0.0f;
    }
}

void sf_page_give(struct sf_page_pool *pool, int32_t page)
{
    SF_ASSERT(page >= 0 && page < pool->pages && pool->used > 0);
    SF_ASSERT(pool->holders[page] > 0);
    if (--pool->holders[page] > 0) return;
    pool->free_page[pool->pages - pool->used] = page;
    pool->used--;
}

void sf_page_share(struct sf_page_pool *pool, int32_t page)
{
    SF_ASSERT(page >= 0 && page < pool->pages && pool->holders[page] > 0);
    pool->holders[page]++;
}
