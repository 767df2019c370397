/* coordinator/machine_json.h: the machine that a measurement was made on, for its JSON. */
#ifndef SHEAF_COORDINATOR_MACHINE_JSON_H
#define SHEAF_COORDINATOR_MACHINE_JSON_H
#include "base/json.h"
#include "coordinator/launch.h"
SF_C_BEGIN

/* An object: processor, cores, threads, instructions, memory, ranks, nodes; of the node of rank 0
 * but for hosts, which are of each rank.  NULL: no memory. */
struct sf_json *sf_machine_json(const struct sf_launch *);

SF_C_END
#endif
