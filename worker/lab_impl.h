/* worker/lab_impl.h: what lab.c (rows through the store) and lab_gather.c (parts to rank 0)
 * share. */
#ifndef SHEAF_WORKER_LAB_IMPL_H
#define SHEAF_WORKER_LAB_IMPL_H
#include "kvshard/store.h"
#include "worker/lab.h"

struct sf_lab {
    struct sf_lab_spec spec;
    const struct sf_model_desc *desc;
    struct sf_device *device;
    struct sf_store *store;
    struct sf_seq *seq;
    int32_t rows_max;                   /* of a call */
    /* one call: host and device [rows_max][cols of a layer], q k v of the heads here side by side;
     * attention outputs on the device and on the host, in spec.dtype; rotation tables in both
     * places, as k->rope takes them */
    float *staged, *qkv, *turns, *rope;
    void *attended, *fetched;
    float **out;                        /* [layers] [rows][q heads here][v_dim] */
    struct sf_trace_lane *lane;         /* [lanes here] at the end */
    struct sf_receipt receipt;
};

#endif
