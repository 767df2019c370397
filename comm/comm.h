/* comm/comm.h: one communicator for everything that ranks say to each other.
 *
 * Backends: mpi.c (processes under mpirun or srun) and loopback.c (ranks as threads of one process;
 * also the single rank).  Every rank uses its communicators from one thread.  Every call that may
 * wait has the communicator's deadline (sf_comm_options.timeout_ms); while waiting it calls the
 * progress function, shows that it is alive, and on rank 0 of the world watches the others.  Waits
 * end with SF_TIMEOUT naming the peer, or SF_LOST when the job is being ended.
 *
 * Who is stuck: each rank shows a sign of life to world rank 0 at least every beat_ms (or an eighth
 * of timeout_ms) while it is in any sf_comm call or calls sf_comm_beat, as the worker does between
 * layers.  Rank 0 ends the job when it has not heard from a rank for a while and says which, with
 * what it last did; the others give rank 0 a fifth of timeout_ms more (at most 5 s) before they end
 * it, so that it has ended within timeout_ms whichever rank is silent. */
#ifndef SHEAF_COMM_COMM_H
#define SHEAF_COMM_COMM_H
#include <stddef.h>
#include <stdint.h>
#include "base/memory.h"
#include "base/status.h"
SF_C_BEGIN

struct sf_comm;
struct sf_request;                      /* a message under way; owned by comm until waited for */
enum { SF_TAG_ANY = -1, SF_RANK_ANY = -1, SF_TAGS_MAX = 1 << 20 };

struct sf_comm_options { int64_t timeout_ms, beat_ms; };

/* ---- worlds ---------------------------------------------------------------------------------- */
/* Was this process started by mpirun, srun or a PMI(x) launcher? (environment only) */
int sf_comm_launched(void);
int sf_comm_has_mpi(void);              /* built with MPI */
const char *sf_comm_mpi_version(void);  /* library version text, "" without MPI */
/* MPI_Init and the world; SF_UNSUPPORTED in a build without MPI. */
sf_status sf_comm_mpi_world(const struct sf_comm_options *, struct sf_comm **world_out);
/* `size` ranks of this process: comms_out[size], one for each thread.  node_size: ranks that count
 * as one node for windows and sf_comm_node (0: all), so that tests can play several nodes. */
sf_status sf_comm_loopback_world(int32_t size, int32_t node_size, const struct sf_comm_options *,
                                 struct sf_comm **comms_out);
/* Ends a world (every rank calls it) or a split. */
void sf_comm_destroy(struct sf_comm *);

/* ---- facts ----------------------------------------------------------------------------------- */
int32_t sf_comm_rank(const struct sf_comm *);
int32_t sf_comm_size(const struct sf_comm *);
int32_t sf_comm_node(const struct sf_comm *, int32_t rank);   /* nodes are numbered from 0 */
const char *sf_comm_host(const struct sf_comm *, int32_t rank);
int64_t sf_comm_bytes_sent(const struct sf_comm *);           /* payload by this rank, all calls */
/* ---- groups, collective over comm: ranks of equal color, ordered by key; label for messages ---
 * */
sf_status sf_comm_split(struct sf_comm *, int32_t color, int32_t key, const char *label,
                        struct sf_comm **out);

/* ---- messages -------------------------------------------------------------------------------- */
/* Copies nothing: `data` stays valid until sf_comm_wait. */
sf_status sf_comm_isend(struct sf_comm *, int32_t to, int32_t tag, const void *data, size_t bytes,
                        struct sf_request **request_out);
/* Copies `data`, into memory that is kept; the send goes on by itself. For control messages. */
sf_status sf_comm_post(struct sf_comm *, int32_t to, int32_t tag, const void *data, size_t bytes);
sf_status sf_comm_wait(struct sf_comm *, struct sf_request *);          /* frees the request */
/* Blocking; exactly `bytes` must come (SF_FORMAT otherwise). */
sf_status sf_comm_recv(struct sf_comm *, int32_t from, int32_t tag, void *data, size_t bytes);
/* A message of unknown length, into the caller's buffer, which grows if it has to.  wait 0: SF_OK
 * with *from_out SF_RANK_ANY if nothing is there; wait 1: until the deadline; wait 2: for ever
 * while rank 0 (or, on rank 0, every rank) shows signs of life.  A failure may leave the buffer
 * without its memory.  from_out may be NULL with wait 1 and 2. */
sf_status sf_comm_take(struct sf_comm *, int32_t from, int32_t tag, int wait,
                       struct sf_buffer *into, int32_t *from_out);

/* ---- collectives, small or at launch --------------------------------------------------------- */
sf_status sf_comm_barrier(struct sf_comm *);
sf_status sf_comm_bcast(struct sf_comm *, int32_t root, void *data, size_t bytes);
sf_status sf_comm_allgather(struct sf_comm *, const void *mine, size_t bytes, void *all_out);

SF_C_END
#include "comm/life.h"
#include "comm/window.h"
#endif
