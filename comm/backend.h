/* comm/backend.h: what the files of comm/ share; nothing outside comm/ and its tests includes it.
 *
 * A backend moves messages and maps shared memory, without ever waiting.  Everything that waits is
 * written once, above it, as a loop around sf_comm_pause():
 *
 *   comm.c        worlds, facts, groups
 *   message.c     isend, post, wait, recv, take    \
 *   collective.c  barrier, bcast, allgather         > loops of   match, sent, landed   (backend)
 *   window.c      shared memory and its barrier    /        and  sf_comm_pause         (life.c)
 *   life.c        pause: posts, progress, signs of life, the watchdog, deadlines, backing off
 *
 * A process (or thread, on loopback) has one struct sf_world; its communicators, the world's own
 * and those of the splits, point to it.  Messages of the caller, of the collectives and of the
 * watchdog go through separate channels, so that they cannot match each other. */
#ifndef SHEAF_COMM_BACKEND_H
#define SHEAF_COMM_BACKEND_H
#include <stddef.h>
#include <stdint.h>
#include "comm/comm.h"
SF_C_BEGIN

enum sf_channel { SF_CHANNEL_USER, SF_CHANNEL_GROUP, SF_CHANNEL_LIFE, SF_CHANNELS };
enum { SF_HOST_MAX = 64, SF_DESCRIBE_MAX = 96, SF_NOTE_MAX = 24, SF_LABEL_MAX = 24,
       SF_SIGN_BYTES = SF_NOTE_MAX + 16, SF_POSTS_MAX = 1024 };

struct sf_world;

struct sf_comm {
    struct sf_world *world;
    void *backend;                      /* the backend's side of this group */
    int32_t rank, size;
    int32_t *world_rank;                /* [size] */
    int64_t bytes_sent;
    char label[SF_LABEL_MAX];
};

/* A send under way.  Recycled through the world's free list, with its copy's memory. */
struct sf_request {
    struct sf_comm *comm;               /* a post may outlive it */
    enum sf_channel channel;
    int32_t to, to_world, tag;
    const void *data;
    size_t bytes;
    struct sf_buffer copy;              /* of a posted message */
    struct sf_request *next;
    union { max_align_t align; unsigned char bytes[128]; } backend;
};

/* A message, or a piece of one, that has been matched and not yet landed. */
struct sf_incoming {
    int32_t from, tag;
    size_t bytes;
    int more;                           /* another piece from the same rank with this tag follows */
    union { max_align_t align; unsigned char bytes[32]; } backend;
};

/* All entries are required except `map`'s pair being used only on one node.  None of them waits,
 * but for open, map and leave, which all ranks enter together. */
struct sf_comm_ops {
    /* A number that the new group's ranks take from the parent's rank 0. */
    uint64_t  (*token)(struct sf_world *);
    /* group: rank, size and world_rank are set; sets group->backend. */
    sf_status (*open)(struct sf_comm *parent, int32_t color, int32_t key, uint64_t token,
                      struct sf_comm *group);
    void      (*close)(struct sf_comm *group);
    void      (*leave)(struct sf_world *);              /* the last call */

    sf_status (*send)(struct sf_request *);
    sf_status (*sent)(struct sf_request *, int *done_out);
    /* Gives up a send that will not be waited for.  orphan: it is a post and goes on if it can; 1
     * comes back if the backend has taken the request over, 0 if it is the caller's to recycle. */
    int       (*drop)(struct sf_world *, struct sf_request *, int orphan);
    sf_status (*match)(struct sf_comm *, enum sf_channel, int32_t from, int32_t tag,
                       struct sf_incoming *, int *found_out);
    /* data NULL: the message is lost. */
    sf_status (*land)(struct sf_comm *, struct sf_incoming *, void *data);
    sf_status (*landed)(struct sf_comm *, struct sf_incoming *, int *done_out);

    void      (*idle)(struct sf_world *, int64_t us);   /* sleeps; may wake early on a message */
    int       (*ended)(struct sf_world *, int *exit_code_out);
    void      (*end)(struct sf_world *, int exit_code);

    /* `bytes` for each rank, 64-aligned, zeroed; segment_out [size]. */
    sf_status (*map)(struct sf_comm *, size_t bytes, unsigned char **segment_out, void **map_out);
    void      (*unmap)(struct sf_comm *, void *map);
};

/* What this rank knows of another. */
struct sf_peer {
    int32_t node;
    char host[SF_HOST_MAX], describe[SF_DESCRIBE_MAX];
    int64_t heard_ns;                   /* last sign of life; kept by rank 0 of all, else of 0 */
    char note[SF_NOTE_MAX];
    int64_t number;
    int left;                           /* said goodbye */
    struct sf_request *sign;            /* our last sign to it, NULL when it has gone out */
};

struct sf_world {
    const struct sf_comm_ops *ops;
    void *backend;
    struct sf_comm *root;               /* the world's communicator */
    int32_t rank, size;
    /* what was asked for, less the grace: what other ranks give rank 0 beyond it */
    int64_t timeout_ns, grace_ns;
    int64_t beat_ns, beat_asked_ns;     /* as used: short beside the timeout; as given */
    void (*progress)(void *);
    void *progress_arg;
    int in_progress;
    int leaving;                        /* no more signs of life from here */
    int broken;                         /* a wait has failed: leaving does not wait for others */
    int spin;                           /* polls before the first yield; 0 if ranks share cores */
    char note[SF_NOTE_MAX];
    int64_t number;
    int64_t signed_ns, looked_ns;       /* last sign sent; last look at the others' signs */
    int64_t judged_ns;                  /* last verdict of rank 0 */
    int64_t judge_ns;                   /* no verdict before: this rank itself was away */
    struct sf_peer *peer;               /* [size] */
    struct sf_request *post;            /* posts under way, oldest first */
    struct sf_request **post_last;
    int32_t posts;
    struct sf_request *spare;           /* recycled requests */
    int32_t requests;                   /* made so far */
};

/* ---- comm.c ---------------------------------------------------------------------------------- */
/* A world over `ops`; backend, rank, size given.  Afterwards sf_world_meet, collectively. */
sf_status sf_world_create(const struct sf_comm_ops *ops, void *backend, int32_t rank, int32_t size,
                          const struct sf_comm_options *options, struct sf_comm **root_out);
void sf_world_free(struct sf_comm *root);

/* ---- message.c ------------------------------------------------------------------------------- */
sf_status sf_comm_start(struct sf_comm *, enum sf_channel, int32_t to, int32_t tag,
                        const void *data, size_t bytes, struct sf_request **request_out);
/* The same with a copy of `data` in the request. */
sf_status sf_comm_start_copy(struct sf_comm *, enum sf_channel, int32_t to, int32_t tag,
                             const void *data, size_t bytes, struct sf_request **request_out);
sf_status sf_comm_receive(struct sf_comm *, enum sf_channel, int32_t from, int32_t tag, void *data,
                          size_t bytes);
void sf_request_recycle(struct sf_world *, struct sf_request *);
void sf_request_free(struct sf_request *);
sf_status sf_comm_poll_posts(struct sf_world *);

/* ---- life.c ---------------------------------------------------------------------------------- */
struct sf_wait {
    struct sf_comm *comm;
    const char *what;                   /* "receive", "send", "take", "window barrier" */
    int32_t peer;                       /* rank in comm, or SF_RANK_ANY */
    int forever;                        /* no deadline while rank 0 lives */
    int64_t waited_ns, last_ns;
    int32_t rounds;
};
struct sf_wait sf_wait_begin(struct sf_comm *, const char *what, int32_t peer, int forever);
/* One round of a wait: everything that goes on meanwhile, then the deadline.  pause also spins,
 * yields or sleeps; check does not. */
sf_status sf_comm_check(struct sf_wait *);
sf_status sf_comm_pause(struct sf_wait *);
/* What goes on in every call: posts, progress, signs of life, watchdog. */
sf_status sf_world_tick(struct sf_world *, int64_t now_ns);
/* Says goodbye and waits until everybody concerned has; after it no sign of life is under way. */
sf_status sf_world_goodbye(struct sf_world *);
/* The same without waiting, for a backend that delivers the messages of a rank that has left. */
void sf_world_wave(struct sf_world *);

/* The layout of a window as it is mapped: two lines of bookkeeping before each rank's bytes. */
enum { SF_WINDOW_HEAD = 128 };
size_t sf_window_segment(size_t bytes);

/* ---- mpi.c ----------------------------------------------------------------------------------- */
/* Longest single MPI message; longer ones go in pieces.  Equal on all ranks; for tests. */
void sf_comm_mpi_piece(size_t bytes);

SF_C_END
#endif
