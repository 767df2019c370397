/* kvshard/mass.c: attention's masses on a device whose memory is not the host's.
 *
 *   mirror, host    | page 0 | page 1 | page 2 | ...        what methods are shown and change
 *   mass, device    | page 0 | page 1 | page 2 | ...        what columns adds to, step by step
 *   ahead           |   0    |   1    |   1    |            whose is the right one
 *
 * A page goes to the device when its rows first count (push) and stays there: a step that decodes
 * adds to it and nobody on the host looks.  An event needs the masses of the lanes that it shows;
 * these come back together, by one wait (pull, arrive), may be changed, and go to the device again
 * with the next rows.  A slot that is appended to a page on the device finds 0 there: what lies
 * behind the lane's last slot is cleared before its page goes. */
#include "kvshard/mass.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/backend.h"
#include "kvshard/lane.h"

static sf_status masses_take(struct sf_masses *m)
{
    size_t all = (size_t)m->watches * (size_t)m->pages, slots = (size_t)m->page_slots;
    size_t room = (size_t)m->rows_max * slots * sizeof(float);
    const struct sf_kernels *k = m->device->k;
    void *block;
    SF_TRY(k->alloc(m->device, all * slots * sizeof(float), "attention mass of slots", &block));
    m->mass = block;
    SF_TRY(k->alloc(m->device, room, "attention mass on its way", &block));
    m->gathered = block;
    SF_TRY(k->host_alloc(m->device, room, "attention mass on its way", &block));
    m->came = block;
    SF_TRY(sf_alloc(all, "pages with mass on the device", &block));
    m->ahead = block;
    SF_TRY(sf_alloc((size_t)m->rows_max * sizeof *m->row, "pages on their way", &block));
    m->row = block;
    return SF_OK;
}

sf_status sf_masses_create(struct sf_device *device, int32_t pages, int32_t page_slots,
                           int32_t watches, struct sf_masses **out)
{
    void *block;
    SF_ASSERT(!device->host_memory && pages <= INT32_MAX / watches);
    SF_TRY(sf_alloc(sizeof(struct sf_masses), "masses on the device", &block));
    struct sf_masses *m = block;
    int32_t most = pages * watches;
    *m = (struct sf_masses){ .device = device, .pages = pages, .page_slots = page_slots,
                             .watches = watches,
                             .rows_max = most < SF_MASSES_AT_ONCE ? most : SF_MASSES_AT_ONCE };
    sf_status status = masses_take(m);
    if (status != SF_OK) {
        sf_masses_destroy(m);
        return status;
    }
    *out = m;
    return SF_OK;
}

void sf_masses_destroy(struct sf_masses *m)
{
    if (!m) return;
    sf_free(m->row);
    sf_free(m->ahead);
    if (m->came) m->device->k->host_free(m->device, m->came);
    if (m->gathered) m->device->k->free(m->device, m->gathered);
    if (m->mass) m->device->k->free(m->device, m->mass);
    sf_free(m);
}

void sf_masses_forget(struct sf_masses *m, int32_t page)
{
    for (int32_t w = 0; m && w < m->watches; w++) m->ahead[(size_t)w * (size_t)m->pages +
                                                           (size_t)page] = 0;
}

/* ---- to the device --------------------------------------------------------------------------- */
static void send(struct sf_page_pool *pool, int w, float *device)
{
    struct sf_masses *m = pool->there;
    size_t slots = (size_t)m->page_slots;
    m->device->k->put_rows(m->device, m->rows, m->page_slots, m->row, pool->mass[w], slots, device,
                           slots);
    m->rows = 0;
}

static void push_part(struct sf_page_pool *pool, const struct sf_lane_part *part, int w,
                      float *device)
{
    struct sf_masses *m = pool->there;
    uint8_t *ahead = m->ahead + (size_t)w * (size_t)m->pages;
    int32_t page_slots = part->layout->page_slots;
    SF_ASSERT(page_slots <= m->page_slots);
    for (int32_t first = 0; first < part->slots; first += page_slots) {
        int32_t page = part->pages[first / page_slots], left = part->slots - first;
        if (ahead[page]) continue;
        if (left < m->page_slots)
            memset(pool->mass[w] + (size_t)page * (size_t)m->page_slots + left, 0,
                   (size_t)(m->page_slots - left) * sizeof(float));
        ahead[page] = 1;
        m->row[m->rows++] = page;
        if (m->rows == m->rows_max) send(pool, w, device);
    }
}

float *sf_masses_push(struct sf_page_pool *pool, const struct sf_columns_job *job, int w)
{
    struct sf_masses *m = pool->there;
    float *device = m->mass + (size_t)w * (size_t)m->pages * (size_t)m->page_slots;
    SF_ASSERT(m->rows == 0 && w < m->watches);
    for (int32_t i = 0; i < job->lanes; i++)
        for (int32_t p = -1; p < job->lane[i].parts; p++) {
            struct sf_lane_part part = sf_lane_part_of(&job->layout, &job->lane[i], p);
            push_part(pool, &part, w, device);
        }
    if (m->rows > 0) send(pool, w, device);
    return device;
}

/* ---- back ------------------------------------------------------------------------------------ */
void sf_masses_arrive(struct sf_page_pool *pool)
{
    struct sf_masses *m = pool->there;
    if (!m || m->rows == 0) return;
    const struct sf_kernels *k = m->device->k;
    size_t slots = (size_t)m->page_slots;
    k->copy_rows(m->device, m->rows, m->page_slots, m->row, m->mass, slots, m->gathered, slots);
    k->fetch(m->device, m->came, m->gathered, (size_t)m->rows * slots * sizeof(float));
    k->sync(m->device);
    for (int32_t r = 0; r < m->rows; r++) {
        int32_t w = m->row[r] / m->pages, page = m->row[r] % m->pages;
        memcpy(pool->mass[w] + (size_t)page * slots, m->came + (size_t)r * slots,
               slots * sizeof(float));
    }
    m->rows = 0;
}

static void pull_list(struct sf_page_pool *pool, const struct sf_kv_lane *list)
{
    struct sf_masses *m = pool->there;
    for (int32_t p = 0; p < list->pages; p++)
        for (int32_t w = 0; w < m->watches && list->page[p] >= 0; w++) {
            int32_t row = w * m->pages + list->page[p];
            if (!m->ahead[row]) continue;
            m->ahead[row] = 0;
            m->row[m->rows++] = row;
            if (m->rows == m->rows_max) sf_masses_arrive(pool);
        }
}

void sf_masses_pull(struct sf_page_pool *pool, const struct sf_kv_lane *lane)
{
    for (int32_t t = 0; pool->there && t < lane->tiers; t++)
        pull_list(pool, sf_lane_tier_of(lane, t));
}
