/* worker/hub.h: see hub.c. */
#ifndef SHEAF_WORKER_HUB_H
#define SHEAF_WORKER_HUB_H
#include "worker/worker.h"

struct sf_hub;
/* ---- hub.c: rank 0's post office between the coordinator's rings and the communicator ---- */
sf_status sf_hub_create(struct sf_worker *, struct sf_hub **out);
void      sf_hub_destroy(struct sf_hub *);
/* Next step for this rank's own group, packed. */
sf_status sf_hub_next(struct sf_hub *, struct sf_buffer *out);
sf_status sf_hub_deliver(struct sf_hub *, int32_t from, int32_t tag, const void *bytes,
                         size_t count);
/* Until the coordinator has closed its ring and all it sent is on its way. */
sf_status sf_hub_finish(struct sf_hub *);
#endif
