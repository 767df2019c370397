/* coordinator/devices.c: GPUs of the ranks (devices.h).  A rank looks at the GPU that its number on
 * its node gives it (kernels/device.h); ranks that find the same one share its memory. */
#include "coordinator/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "coordinator/config.h"
#include "coordinator/launch.h"
#include "kernels/device.h"

struct found {                          /* of one rank; fixed size, for an allgather */
    int32_t node, gpus;
    int64_t memory_free;
    char id[SF_DEVICE_ID_MAX], why[SF_WHY_MAX];
};

const char *sf_devices_name(int32_t device, const struct sf_cluster *cluster)
{
    switch (device) {
    case SF_DEVICE_CUDA: return "cuda";
    case SF_DEVICE_CUDA_EMULATED: return "cuda-emulated";
    case SF_DEVICE_AUTO: return cluster->gpus > 0 ? "cuda" : "cpu";
    default: return "cpu";
    }
}

int sf_devices_multiply(const struct sf_config *cfg)
{
    static const enum sf_dtype types[] = { [SF_COMPUTE_F32] = SF_F32, [SF_COMPUTE_BF16] = SF_BF16 };
    if (cfg->model.compute == SF_COMPUTE_INT8) return 0;
    return cfg->model.compute == SF_COMPUTE_AUTO ||
           types[cfg->model.compute] == (enum sf_dtype)cfg->model.dtype;
}

int32_t sf_devices_asked(const struct sf_config *cfg, struct sf_cluster *cluster)
{
    if (cfg->device != SF_DEVICE_AUTO || sf_devices_multiply(cfg)) return cfg->device;
    snprintf(cluster->gpus_why, sizeof cluster->gpus_why, "GPUs multiply in model.dtype, %s, and"
             " model.compute is another", sf_dtype_name((enum sf_dtype)cfg->model.dtype));
    return SF_DEVICE_CPU;
}

/* auto does not load CUDA's libraries, which takes seconds, where there is no driver. */
static sf_status look(int32_t device, int32_t local_rank, struct found *found)
{
    struct sf_device_facts facts;
    const char *name = device == SF_DEVICE_CUDA_EMULATED ? "cuda-emulated" : "cuda";
    sf_status status = SF_UNSUPPORTED;
    if (device == SF_DEVICE_AUTO && !sf_device_driver())
        snprintf(found->why, sizeof found->why, "no NVIDIA driver");
    else {
        status = sf_device_probe(name, local_rank, &facts);
        if (status != SF_OK) snprintf(found->why, sizeof found->why, "%s", sf_error_text());
    }
    if (status != SF_OK) return device == SF_DEVICE_AUTO ? SF_OK : status;
    found->gpus = facts.count;
    found->memory_free = facts.memory_free;
    memcpy(found->id, facts.id, sizeof found->id);
    return SF_OK;
}

static void settle(const struct found *all, struct sf_cluster *cluster)
{
    int32_t gpus = INT32_MAX;
    int64_t least = INT64_MAX;
    for (int32_t r = 0; r < cluster->ranks; r++) {
        int32_t sharing = 0;
        for (int32_t other = 0; other < cluster->ranks; other++)
            sharing += all[other].node == all[r].node &&
                       memcmp(all[other].id, all[r].id, sizeof all[r].id) == 0;
        if (all[r].gpus < gpus) gpus = all[r].gpus;
        if (all[r].memory_free / sharing < least) least = all[r].memory_free / sharing;
        if (all[r].gpus > 0 || cluster->gpus_why[0] != '\0') continue;
        memcpy(cluster->gpus_why, all[r].why, sizeof cluster->gpus_why);
        cluster->gpus_why[SF_WHY_MAX - 1] = '\0';
    }
    cluster->gpus = gpus;
    if (gpus > 0) cluster->memory_per_rank = least;
}

sf_status sf_devices_look(struct sf_comm *world, int32_t device, struct sf_cluster *cluster)
{
    if (device == SF_DEVICE_CPU) return SF_OK;
    int32_t ranks = sf_comm_size(world), rank = sf_comm_rank(world);
    struct found mine, *all = calloc((size_t)ranks, sizeof *all);
    memset(&mine, 0, sizeof mine);      /* it travels: no stray bytes */
    mine.node = sf_comm_node(world, rank);
    sf_status status = look(device, sf_cluster_local_rank(cluster, rank), &mine);
    if (status == SF_OK && all == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for a table of %d ranks", ranks);
    status = sf_launch_agree(world, status);
    if (status == SF_OK) status = sf_comm_allgather(world, &mine, sizeof mine, all);
    if (status == SF_OK) settle(all, cluster);
    free(all);
    return status;
}

void sf_devices_guess(int32_t device, int keep_memory, struct sf_cluster *cluster)
{
    struct found found;
    int64_t told = cluster->memory_per_rank;
    int32_t on_node = cluster->ranks / cluster->nodes;
    memset(&found, 0, sizeof found);
    if (device == SF_DEVICE_CPU || device == SF_DEVICE_CUDA_EMULATED) return;
    if (look(device, 0, &found) != SF_OK) {
        if (!keep_memory) cluster->memory_per_rank = 0;     /* not this machine's: unknown */
        return;
    }
    cluster->gpus = found.gpus;
    memcpy(cluster->gpus_why, found.why, sizeof cluster->gpus_why);
    if (found.gpus == 0) return;
    cluster->memory_per_rank = keep_memory ? told
        : found.memory_free / ((on_node + found.gpus - 1) / found.gpus);
}
