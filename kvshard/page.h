/* kvshard/page.h: the pages of one rank, and the host's mirror of what their slots are.  page_slots
 * is the most that a page has in any tier (codec.h); one that has fewer uses the first places.
 *
 *   base  | page 0 | page 1 | ... | page pages-1 | spare |      page_bytes each, one mapping
 *   pos   | page_slots i32 each |                               host, -1: hole or never written
 *   bias  | page_slots f32 each |                               host
 *   aux   | page_slots x aux_bytes each |                       host, the methods' bytes
 *   mass  | page_slots f32 each |  once or twice                host, what attention gave the slot
 *   seen  | page_slots f32 each |  where mass is a mean         host, rows that saw the slot
 *
 * The mirror costs 8 + aux_bytes + 4 to 16 host bytes a slot, and only exists where a method edits.
 * It belongs to the page, so it moves and is freed with it. */
#ifndef SHEAF_KVSHARD_PAGE_H
#define SHEAF_KVSHARD_PAGE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "kernels/device.h"
SF_C_BEGIN

struct sf_masses;                       /* kvshard/mass.h */

struct sf_page_pool {
    struct sf_device *device;
    unsigned char *base;
    size_t page_bytes;
    int32_t pages, used, page_slots;
    int32_t *free_page;                 /* [pages] the first pages - used of them are free */
    int32_t *holders;                   /* [pages] lanes and blocks that have it; 0: free */
    int32_t *live;                      /* [pages] live slots; counted where there is a mirror */
    int32_t *pos;                       /* [pages + 1][page_slots]; NULL: no mirror */
    float *bias;
    unsigned char *aux;                 /* NULL if aux_bytes is 0 */
    int32_t aux_bytes;
    float *mass[2];                     /* NULL if no method watches so much */
    struct sf_masses *there;            /* where masses are on a device whose memory is not the
                                           host's, and mass may be old; else NULL */
    float *seen[2];                     /* rows behind a mass that is a mean; else NULL */
};
struct sf_page_spec {
    struct sf_device *device;
    size_t page_bytes;
    int64_t pool_bytes;                 /* rounded down to pages */
    int32_t page_slots, aux_bytes, masses;
    uint8_t mirror, populate, means[2]; /* means: of this mass a mean over rows is asked */
};

sf_status sf_pages_create(const struct sf_page_spec *, struct sf_page_pool *pool_out);
void      sf_pages_destroy(struct sf_page_pool *);
/* A page prepared for `layout`: zeros and holes.  SF_NO_PAGES when none is left. */
sf_status sf_page_take(struct sf_page_pool *, const struct sf_layout *, int32_t *page_out);
/* One holder less; the last one gives it back. */
void      sf_page_give(struct sf_page_pool *, int32_t page);
/* One holder more of a page that is taken.  Nobody writes to a page that has several. */
void      sf_page_share(struct sf_page_pool *, int32_t page);
/* What the mirror knows of n slots, to other places of it; they may overlap. */
void      sf_mirror_move(struct sf_page_pool *, size_t to, size_t from, size_t n);
/* A slot that has just been appended: bias 0, aux and mass zero. */
void      sf_mirror_begin(struct sf_page_pool *, size_t at, int32_t pos);
static inline int32_t sf_pages_free(const struct sf_page_pool *pool)
{
    return pool->pages - pool->used;
}
/* The page behind the last: a place to put one slot while slots change places. */
static inline int32_t sf_page_spare(const struct sf_page_pool *pool) { return pool->pages; }

SF_C_END
#endif
