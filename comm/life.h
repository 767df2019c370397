/* comm/life.h: signs of life, progress while waiting, and the end of a job;
 * part of comm.h, which includes it. */
#ifndef SHEAF_COMM_LIFE_H
#define SHEAF_COMM_LIFE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN
struct sf_comm;
struct sf_request;

/* ---- life ------------------------------------------------------------------------------------ */
/* Called inside waits and by sf_comm_beat, on this rank's thread; must not wait itself. */
void sf_comm_set_progress(struct sf_comm *world, void (*progress)(void *), void *arg);
/* A sign of life between long computations; note: a static string, "layer", "load", with a number.
 * */
sf_status sf_comm_beat(struct sf_comm *world, const char *note, int64_t number);
/* Names a rank in messages: "stage 1, tensor rank 0". */
void sf_comm_describe(struct sf_comm *world, int32_t rank, const char *text);
/* Ends the whole job with this exit code; prints nothing.  Does not return under MPI; on loopback
 * every later call of every rank returns SF_LOST. */
void sf_comm_abort(struct sf_comm *world, int exit_code);
/* Gives up a send instead of waiting for it, on a rank that has failed; frees the request.  Ranks
 * as threads read its data no more; under MPI a transfer may, until the job has ended. */
void sf_comm_drop(struct sf_comm *, struct sf_request *);

/* Collective: whether every rank brings SF_OK.  A rank that does not keeps its own status and
 * words; the others get SF_STOPPED, "WHAT 2 could not start", or SF_LOST. */
sf_status sf_comm_agree(struct sf_comm *, sf_status mine, const char *what);

/* Bytes of the signs that one rank gives another within `ms`, with this timeout, at most. */
int64_t sf_comm_life_bytes(int64_t ms, int64_t timeout_ms);
void sf_comm_set_timeout(struct sf_comm *world, int64_t timeout_ms);   /* and of its splits */
SF_C_END
#endif
