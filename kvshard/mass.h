/* kvshard/mass.h: attention's masses where the host cannot touch the device's memory (mass.c).
 * Internal to the store. */
#ifndef SHEAF_KVSHARD_MASS_H
#define SHEAF_KVSHARD_MASS_H
#include "kvshard/page.h"
SF_C_BEGIN

struct sf_kv_lane;

struct sf_masses {
    struct sf_device *device;
    int32_t pages, page_slots, watches;
    float *mass;                        /* device [watches][pages][page_slots] */
    uint8_t *ahead;                     /* [watches][pages] 1: the device's are the masses, and what
                                           the pool's mirror has is old */
    int32_t *row, rows, rows_max;       /* [rows_max] pages of `mass` that are on their way */
    float *gathered, *came;             /* device; host, of host_alloc: [rows_max][page_slots] */
};

/* pages: with the spare one. */
sf_status sf_masses_create(struct sf_device *, int32_t pages, int32_t page_slots, int32_t watches,
                           struct sf_masses **out);
void      sf_masses_destroy(struct sf_masses *);
/* The page is taken: what the device has of it is nobody's. */
void      sf_masses_forget(struct sf_masses *, int32_t page);
/* Every page of the job has its masses of watch w on the device from here on: [pages][page_slots]
 * there.  Waits for nothing. */
float    *sf_masses_push(struct sf_page_pool *, const struct sf_columns_job *, int w);
/* All masses of a lane, in every tier, come back to the mirror by the next sf_masses_arrive, which
 * waits for the device, once for as many as SF_MASSES_AT_ONCE pages.  Where the host's memory is
 * the device's there is nothing to do. */
enum { SF_MASSES_AT_ONCE = 4096 };
void      sf_masses_pull(struct sf_page_pool *, const struct sf_kv_lane *);
void      sf_masses_arrive(struct sf_page_pool *);
/* Whether the mirror has the mass of this slot. */
static inline int sf_mass_is_here(const struct sf_page_pool *pool, int w, size_t at)
{
    const struct sf_masses *there = pool->there;
    return !there || !there->ahead[(size_t)w * (size_t)there->pages +
                                   at / (size_t)there->page_slots];
}

SF_C_END
#endif
