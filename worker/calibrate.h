/* worker/calibrate.h: what one rank learns while the exact model runs: shows the rows that the
 * store has attended to a method's calibration (kvshard/policy.h, struct sf_calib_ops), then puts
 * the parts of all ranks together.
 *
 *   store: q, lse of new rows --+--> feed(KV head, rows) on the rank that holds the head
 *   cache: k, v of all so far --+                         reduce() over all ranks --> write() */
#ifndef SHEAF_WORKER_CALIBRATE_H
#define SHEAF_WORKER_CALIBRATE_H
#include <stdint.h>
#include "base/status.h"
#include "comm/comm.h"
#include "kvshard/policy.h"
#include "kvshard/store.h"
#include "model/desc.h"
#include "model/share.h"
SF_C_BEGIN

struct sf_calib;

struct sf_calib_spec {                  /* all pointers outlive it */
    const struct sf_method *method;     /* has a calib */
    const struct sf_setup *setup;       /* with the method's cfg and this rank's heads */
    uint32_t taps;                      /* of the method's plan */
    const struct sf_model_desc *desc;
    const struct sf_share *share;
    struct sf_comm *world;
    int32_t (*sequence_of)(int64_t seq_id);     /* number of a sequence of the store */
};

/* Whether feed() can be shown all of this; SF_UNSUPPORTED with the method's name. */
sf_status sf_calib_can(const struct sf_method *, const struct sf_calib_plan *);
sf_status sf_calib_open(const struct sf_calib_spec *, struct sf_calib **out);
/* For the store of this rank's worker. */
struct sf_store_tap sf_calib_tap(struct sf_calib *);
/* After the last row.  Collective over world; then every rank has learnt the same. */
sf_status sf_calib_reduce(struct sf_calib *);
/* The method's write(). */
sf_status sf_calib_write(const struct sf_calib *, void *cfg, int32_t tokens, struct sf_profile *);
void      sf_calib_close(struct sf_calib *);    /* NULL is fine */

SF_C_END
#endif
