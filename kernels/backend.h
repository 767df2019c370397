/* kernels/backend.h: what a backend hands to device.c; internal to kernels/. */
#ifndef SHEAF_KERNELS_BACKEND_H
#define SHEAF_KERNELS_BACKEND_H
#include "kernels/device.h"
SF_C_BEGIN

struct sf_backend {
    const char *name;
    /* Fills k, isa and impl; threads is set already. */
    sf_status (*open)(const struct sf_device_spec *, struct sf_device *);
    void (*close)(struct sf_device *);
    int64_t (*scratch_bytes)(const struct sf_device_spec *);    /* NULL: none */
    void (*describe)(char *text_out, size_t bytes);             /* NULL: nothing to say */
};

extern const struct sf_backend sf_backend_ref, sf_backend_cpu;

SF_C_END
#endif
