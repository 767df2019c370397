/* kvshard/factor_ranks.h: low-rank factors of a matrix whose columns lie on the tensor ranks.
 * Internal to the store. */
#ifndef SHEAF_KVSHARD_FACTOR_RANKS_H
#define SHEAF_KVSHARD_FACTOR_RANKS_H
#include "comm/comm.h"
#include "kernels/device.h"
SF_C_BEGIN

struct sf_factor_lane { int32_t number, copy; }; /* among all; copy: its columns count elsewhere */
struct sf_factor_ranks {
    struct sf_device *device;
    struct sf_comm *ranks;
    int32_t lanes, lanes_all, dim;      /* own ones, copies too; of all ranks, each once; columns */
    const struct sf_factor_lane *lane;  /* host, [lanes] */
    /* x and b: own columns, lane by lane, rows without gaps; rank: of all; a: in full.  x, a and b
     * are memory of the device, the scratch of sf_factor_ranks_bytes is the host's. */
    struct sf_factor_job job;
};
/* Pure.  factor_bytes: of the backend's table.  Rank 0, which factors for all, needs more than the
 * others: x of all ranks and what LAPACK takes.  Where the host cannot touch the device's memory
 * there is room for x, a and b as well; no device: it can. */
struct sf_factor_place { int32_t rank, ranks; };
size_t sf_factor_ranks_bytes(const struct sf_factor_ranks *, struct sf_factor_place,
                             size_t (*factor_bytes)(const struct sf_factor_job *));
/* Collective.  mine: how this rank has fared so far; if one of them fails, all do, and SF_INVALID
 * on all ranks means that x is not finite somewhere, or so large that its squares are not.  a is
 * the same on all ranks, bit for bit. */
sf_status sf_factor_ranks(const struct sf_factor_ranks *, sf_status mine);

SF_C_END
#endif
