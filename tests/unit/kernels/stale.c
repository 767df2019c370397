/* tests/unit/kernels/stale.c: two shared objects for plugin.c, whose probe would succeed.
 * SHEAF_OLDER: of a time when a plugin did not tell its layout; SHEAF_FEWER: one entry of the table
 * of kernels fewer. */
#include "kernels/backend.h"

static sf_status probe(int32_t local_rank, struct sf_device_facts *out)
{
    (void)local_rank;
    out->count = 1;
    return SF_OK;
}

extern const struct sf_backend sf_backend_plugin;
const struct sf_backend sf_backend_plugin = { .name = "stale", .probe = probe };

#if defined(SHEAF_FEWER)
struct fewer { char byte[sizeof(struct sf_kernels) - sizeof(void *)]; };
#define sf_kernels fewer
extern const uint32_t sf_backend_layout[SF_BACKEND_WORDS];
const uint32_t sf_backend_layout[SF_BACKEND_WORDS] = SF_BACKEND_LAYOUT;
#endif
