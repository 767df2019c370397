/* worker/roof.h: what a rank's device can do at best.  For the files of worker/ alone. */
#ifndef SHEAF_WORKER_ROOF_H
#define SHEAF_WORKER_ROOF_H
#include <stdint.h>
#include "base/status.h"

struct sf_worker;
struct sf_roof {                        /* 0: not tried, as on an emulated device */
    double read_rate;                   /* bytes of its memory a second */
    double flop_rate;                   /* of products in model.compute: operations a second */
};
enum { SF_ROOF_COLS = 16384, SF_ROOF_ROWS = 4096, SF_ROOF_ROWS_MIN = 1024 };
/* Rows of SF_ROOF_COLS floats that are read, with so many bytes to spare: at most 256 MiB, and 0
 * where less than 64 MiB are left, which caches might hold. */
int32_t sf_roof_rows(int64_t spare_bytes);
/* Takes about half a second, and memory that it gives back: no plan counts it, so no more than what
 * the plan leaves (spare_bytes of the worker's spec).  Where that is too little, or not there, the
 * rate stays 0.  Ranks that measure at the same time share what they share. */
sf_status sf_roof_measure(struct sf_worker *, struct sf_roof *roof_out);

#endif
