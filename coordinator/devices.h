/* coordinator/devices.h: which backend the ranks compute on, and which GPU is whose. */
#ifndef SHEAF_COORDINATOR_DEVICES_H
#define SHEAF_COORDINATOR_DEVICES_H
#include <stdint.h>
#include "base/status.h"
#include "comm/comm.h"
#include "coordinator/cluster.h"
#include "coordinator/config.h"
SF_C_BEGIN

/* The device that a config asks for; where it leaves the choice and wants products that GPUs do not
 * have (model.compute beside model.dtype), the CPU, and gpus_why says it. */
int32_t   sf_devices_asked(const struct sf_config *, struct sf_cluster *cluster);
/* Collective over world.  `device` (enum sf_config_device) asks for GPUs: every rank looks at its
 * own, cluster->gpus tells how many the ranks see, at least, and memory_per_rank becomes what is
 * free on a GPU, divided by the ranks that share it.  Without one, SF_UNSUPPORTED with the reason;
 * where `device` is auto SF_OK, and gpus_why says it. */
sf_status sf_devices_look(struct sf_comm *world, int32_t device, struct sf_cluster *cluster);
/* The same for a cluster of equal nodes that this machine stands for (`sheaf plan`): no GPU here is
 * no failure.  keep_memory: memory_per_rank was told. */
void      sf_devices_guess(int32_t device, int keep_memory, struct sf_cluster *cluster);
/* Whether a GPU has the products that the config asks for: it multiplies a type as it is stored. */
int       sf_devices_multiply(const struct sf_config *);
/* Name of the backend: "cpu", "cuda", "cuda-emulated". */
const char *sf_devices_name(int32_t device, const struct sf_cluster *cluster);

SF_C_END
#endif
