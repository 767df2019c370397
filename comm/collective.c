/* comm/collective.c: barrier, broadcast and allgather, for small data and at launch.
 *
 * Made of messages, so that each step of each waits for a rank that it knows by name.  Gathering
 * is done by the group's rank 0, from one rank after the other; handing out goes down a binomial
 * tree (rank numbers are relative to the root; a rank's parent is itself without its lowest bit):
 *
 *   0 -> 4, 2, 1     4 -> 6, 5     2 -> 3     6 -> 7 */
#include <string.h>
#include "base/memory.h"
#include "comm/backend.h"

enum { TAG_GATHER, TAG_BCAST };
enum { CHILDREN_MAX = 31 };

sf_status sf_comm_bcast(struct sf_comm *comm, int32_t root, void *data, size_t bytes)
{
    SF_ASSERT(root >= 0 && root < comm->size);
    uint32_t size = (uint32_t)comm->size;
    uint32_t self = ((uint32_t)comm->rank + size - (uint32_t)root) % size;
    uint32_t bit = 1;                   /* the lowest set bit; for the root the first beyond size */
    while (bit < size && !(self & bit)) bit <<= 1;
    if (self != 0) {
        int32_t parent = (int32_t)((self - bit + (uint32_t)root) % size);
        SF_TRY(sf_comm_receive(comm, SF_CHANNEL_GROUP, parent, TAG_BCAST, data, bytes));
    }
    struct sf_request *request[CHILDREN_MAX];
    int32_t requests = 0;
    sf_status status = SF_OK;
    for (bit >>= 1; bit > 0 && status == SF_OK; bit >>= 1) {
        if (self + bit >= size) continue;
        int32_t child = (int32_t)((self + bit + (uint32_t)root) % size);
        status = sf_comm_start(comm, SF_CHANNEL_GROUP, child, TAG_BCAST, data, bytes,
                               &request[requests]);
        if (status == SF_OK) requests++;
    }
    for (int32_t i = 0; i < requests; i++) {
        sf_status sent = sf_comm_wait(comm, request[i]);
        if (status == SF_OK) status = sent;
    }
    return status;
}

sf_status sf_comm_allgather(struct sf_comm *comm, const void *mine, size_t bytes, void *all_out)
{
    unsigned char *all = all_out;
    if (comm->rank == 0) {
        if (bytes > 0) memcpy(all, mine, bytes);
        for (int32_t r = 1; r < comm->size; r++)
            SF_TRY(sf_comm_receive(comm, SF_CHANNEL_GROUP, r, TAG_GATHER,
                                   bytes > 0 ? all + (size_t)r * bytes : NULL, bytes));
    } else {
        struct sf_request *request;
        SF_TRY(sf_comm_start(comm, SF_CHANNEL_GROUP, 0, TAG_GATHER, mine, bytes, &request));
        SF_TRY(sf_comm_wait(comm, request));
    }
    return sf_comm_bcast(comm, 0, all_out, bytes * (size_t)comm->size);
}

sf_status sf_comm_agree(struct sf_comm *comm, sf_status mine, const char *what)
{
    int32_t own = (int32_t)mine;
    void *block;
    if (sf_alloc((size_t)comm->size * sizeof own, "statuses of a group", &block) != SF_OK)
        return SF_LOST;
    int32_t *all = block;
    sf_status status = mine;
    if (sf_comm_allgather(comm, &own, sizeof own, all) != SF_OK) status = SF_LOST;
    for (int32_t r = 0; status == SF_OK && r < comm->size; r++)
        if (all[r] != SF_OK) status = SF_FAIL(SF_STOPPED, "%s %d could not start", what, r);
    sf_free(all);
    return status;
}

sf_status sf_comm_barrier(struct sf_comm *comm)
{
    return sf_comm_allgather(comm, NULL, 0, NULL);
}
