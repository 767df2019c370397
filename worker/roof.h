/* worker/roof.h: what a rank's device can do at best.  For the files of worker/ alone. */
#ifndef SHEAF_WORKER_ROOF_H
#define SHEAF_WORKER_ROOF_H
#include "base/status.h"

struct sf_worker;
struct sf_roof {                        /* 0: not tried, as on an emulated device */
    double read_rate;                   /* bytes of its memory a second */
    double flop_rate;                   /* of products in model.compute: operations a second */
};
/* Takes about half a second, and memory that it gives back; where that is not there the rate stays
 * 0.  Ranks that measure at the same time share what they share. */
sf_status sf_roof_measure(struct sf_worker *, struct sf_roof *roof_out);

#endif
