/* kvshard/beside.h: one thread of a store, on which the factors of layer groups are made while the
 * layers behind them run.  Internal to the store.
 *
 *   layers   gather g | layers up to the next group's last | wait, finish g | gather g + 1 | ...
 *   beside            | factor keys of g | values of g |
 *
 * It touches the matrices of its jobs and nothing else: no lane, page or book.  So when it gets
 * there does not show: a job is finished at a fixed place of the step (encode.c), on the thread
 * that runs the layers.  Only a device whose memory the host can touch has one. */
#ifndef SHEAF_KVSHARD_BESIDE_H
#define SHEAF_KVSHARD_BESIDE_H
#include <pthread.h>
#include "kernels/device.h"
SF_C_BEGIN

enum { SF_BESIDE_JOBS = 16, SF_BESIDE_WORDS = 256 };
struct sf_beside_job {                  /* the caller's, but between begin and wait */
    struct sf_factor_job kind[2]; int32_t kinds; /* one after the other; 1: keys alone */
    sf_status status;                   /* of the first that failed, and its words */
    char words[SF_BESIDE_WORDS];
    double seconds;                     /* that it took */
};
struct sf_beside {
    int32_t threads;                    /* of its device; 0: there is none, and nothing below */
    struct sf_device device;            /* the store's, with threads of its own */
    unsigned char *room;                /* device [room_bytes] for jobs; used: by encode.c */
    size_t room_bytes, room_used;
    pthread_t thread;
    pthread_mutex_t lock;               /* of what follows */
    pthread_cond_t changed;
    struct sf_beside_job *job[SF_BESIDE_JOBS];
    int32_t jobs, done, running;        /* begun; of these done; 1: the next one is under way */
    uint8_t stop;
};

/* Starts the thread and takes the room.  On failure there is none. */
sf_status sf_beside_create(const struct sf_device *, int32_t threads, size_t room_bytes,
                           struct sf_beside *);
void      sf_beside_destroy(struct sf_beside *);
/* At most SF_BESIDE_JOBS between two waits. */
void      sf_beside_begin(struct sf_beside *, struct sf_beside_job *);
/* Until all are done, or for so many milliseconds (under 1,000): whether they are. */
int       sf_beside_wait(struct sf_beside *, int32_t ms);
/* Until none is under way; those that have not begun never will. */
void      sf_beside_drop(struct sf_beside *);

SF_C_END
#endif
