/* coordinator/machine_json.c: what a measurement ran on (machine_json.h). */
#include "coordinator/machine_json.h"

#include "base/json_build.h"
#include "coordinator/cluster.h"
#include "kernels/device.h"

static struct sf_json *hosts_of(const struct sf_cluster *cluster)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t r = 0; r < cluster->ranks && status == SF_OK; r++)
        status = sf_json_append(list, sf_json_new_words(cluster->place[r].host));
    return sf_json_built(status, list);
}

struct sf_json *sf_machine_json(const struct sf_launch *launch)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    char processor[256];
    enum sf_isa most = launch->plan.isa_max, isa = most != SF_ISA_AUTO ? most : sf_isa_detect();
    sf_machine_processor(processor, sizeof processor);
    int64_t memory = launch->cluster.memory_per_rank;
    sf_json_put(&status, o, "processor", sf_json_new_words(processor));
    sf_json_put_int(&status, o, "cores_per_node", launch->cluster.cores_per_node);
    sf_json_put_int(&status, o, "threads_per_rank", launch->plan.threads);
    sf_json_put_int(&status, o, "threads_beside", launch->plan.threads_beside);
    sf_json_put(&status, o, "isa", sf_json_new_words(sf_isa_name(isa)));
    sf_json_put(&status, o, "compute", sf_json_new_words(sf_launch_plan_compute(&launch->plan)));
    sf_json_put(&status, o, "device", sf_json_new_words(launch->plan.device));
    sf_json_put(&status, o, "memory_per_rank_bytes",
                memory > 0 ? sf_json_new_int(memory) : sf_json_new(SF_JSON_NULL));
    sf_json_put_int(&status, o, "ranks", launch->cluster.ranks);
    sf_json_put_int(&status, o, "nodes", launch->cluster.nodes);
    sf_json_put(&status, o, "hosts", hosts_of(&launch->cluster));
    return sf_json_built(status, o);
}
