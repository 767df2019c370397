/* comm/link_plugin.h: what comm/nccl.c, which is compiled into the shared object of the CUDA
 * backend, gives to comm/link_nccl.c, which is compiled into the program.  The shared object calls
 * nothing of comm/: whoever opens a link hands it a function to wait with.
 *
 *   link_nccl.c   who takes part, the id, deadlines and signs of life, words
 *      | sf_link_plugin (found by sf_device_symbol)        ^ sf_link_host.pause
 *   nccl.c        the library by its name, calls on the device's stream, the communicator's end */
#ifndef SHEAF_COMM_LINK_PLUGIN_H
#define SHEAF_COMM_LINK_PLUGIN_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "kernels/device.h"
SF_C_BEGIN

enum { SF_LINK_ID_BYTES = 128, SF_LINK_GPU_MAX = 32 };

struct sf_link_host {
    /* One round of a wait for `what`; round 0 begins one.  Fails when the deadline has passed or
     * the job ends, with the words for it. */
    sf_status (*pause)(void *arg, const char *what, int64_t round);
    /* Words the failure of a call: what was tried and what the library says. */
    sf_status (*fail)(void *arg, const char *what, const char *why);
    void *arg;
};
struct sf_link_seat {
    struct sf_device *device;           /* stays the caller's */
    int32_t rank, size;
    unsigned char id[SF_LINK_ID_BYTES]; /* the same on all ranks */
    struct sf_link_host host;
};

/* After a failure of any call but probe, id and open only give_up and close are left. */
struct sf_link_plugin {
    const char *kind;                   /* "nccl" */
    /* Whether the library can be had (SF_UNSUPPORTED with the reason), and the bus id of the
     * device's GPU. */
    sf_status (*probe)(struct sf_device *, char gpu_out[SF_LINK_GPU_MAX]);
    sf_status (*id)(unsigned char id_out[SF_LINK_ID_BYTES]);
    sf_status (*open)(const struct sf_link_seat *, void **link_out);    /* waits for all ranks */
    /* lost: without the others; else it waits until all close. */
    void      (*close)(void *link, int lost);
    /* These queue on the device's stream; data is the device's memory. */
    sf_status (*sum)(void *link, float *x, size_t count);
    sf_status (*send)(void *link, int32_t to, const void *data, size_t bytes);
    sf_status (*recv)(void *link, int32_t from, void *data, size_t bytes);
    sf_status (*all_gather)(void *link, const void *mine, size_t bytes, void *all);
    /* Sends and receives between begin 1 and begin 0 go on side by side. */
    sf_status (*group)(void *link, int begin);
    sf_status (*settle)(void *link);    /* waits for all that has been queued on the stream */
    sf_status (*check)(void *link);     /* has the library failed? */
    /* Aborts the communicator: what waits for it ends.  On any thread, but one at a time. */
    void      (*give_up)(void *link);
};

extern __attribute__((visibility("default"))) const struct sf_link_plugin sf_link_plugin;

SF_C_END
#endif
