/* tests/unit/plan/cluster.c: nodes, cores and memory.
 *
 * Shown with made-up facts: cores of a node are those of its ranks together (a launcher binds each
 * rank to a part), capped by the tightest quota, and the least node counts; memory is shared by the
 * ranks of a node.  And that this machine's own figures are possible ones. */
#include "coordinator/cluster.h"
#include "tests/check.h"
#include <unistd.h>

static struct sf_rank_facts facts(int32_t node, uint64_t cores, int32_t quota, int64_t memory)
{
    struct sf_rank_facts f = { .node = node, .quota = quota, .cores = { cores }, .memory = memory };
    snprintf(f.host, sizeof f.host, "host%d", node);
    return f;
}

/* Two ranks on node 0, bound to halves of 8 cores; two on node 1, which have the same 6 cores. */
static void gathers_bound_ranks(void)
{
    struct sf_rank_facts all[] = { facts(0, 0x0f, 0, 1000), facts(0, 0xf0, 0, 900),
                                   facts(1, 0x3f, 0, 5000), facts(1, 0x3f, 0, 5000) };
    struct sf_cluster cluster;
    SF_MUST(sf_cluster_gather(all, 4, &cluster));
    SF_CHECK_INT(cluster.ranks, 4);
    SF_CHECK_INT(cluster.nodes, 2);
    SF_CHECK_INT(cluster.cores_per_node, 6);
    SF_CHECK_INT(cluster.memory_per_rank, 450);
    SF_CHECK_INT(cluster.place[3].node, 1);
    SF_CHECK_STR(cluster.place[3].host, "host1");
    sf_cluster_free(&cluster);

    SF_CHECK_INT(cluster.threads_max, 0);
    all[2].quota = 3;
    all[3].quota = 5;
    all[1].threads = 4;                 /* OMP_NUM_THREADS may differ by rank: the least counts */
    all[3].threads = 2;
    SF_MUST(sf_cluster_gather(all, 4, &cluster));
    SF_CHECK_INT(cluster.cores_per_node, 3);
    SF_CHECK_INT(cluster.threads_max, 2);
    sf_cluster_free(&cluster);
}

/* A rank that sees no core at all still gets one thread. */
static void counts_at_least_one_core(void)
{
    struct sf_rank_facts one = facts(0, 0, 0, 7);
    struct sf_cluster cluster;
    SF_MUST(sf_cluster_gather(&one, 1, &cluster));
    SF_CHECK_INT(cluster.cores_per_node, 1);
    sf_cluster_free(&cluster);
}

static void makes_equal_nodes(void)
{
    struct sf_cluster cluster;
    SF_MUST(sf_cluster_make(3, 2, 16, 1 << 20, &cluster));
    SF_CHECK_INT(cluster.ranks, 6);
    for (int32_t r = 0; r < 6; r++) SF_CHECK_INT(cluster.place[r].node, r / 2);
    SF_CHECK_INT(cluster.cores_per_node, 16);
    sf_cluster_free(&cluster);
    SF_CHECK_FAILS(sf_cluster_make(0, 2, 1, 0, &cluster), SF_INVALID);
    SF_CHECK_FAILS(sf_cluster_make(1 << 20, 1 << 20, 1, 0, &cluster), SF_INVALID);
}

static void measures_this_machine(void)
{
    int32_t cores;
    int64_t memory;
    SF_MUST(sf_machine_cores(&cores));
    SF_CHECK(cores >= 1);
    SF_CHECK(cores <= sysconf(_SC_NPROCESSORS_CONF));
    SF_MUST(sf_machine_memory(&memory));
    SF_CHECK(memory > 0);
    SF_CHECK(memory <= (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE));

    struct sf_rank_facts mine;
    struct sf_cluster cluster;
    SF_MUST(sf_rank_facts_make(0, "here", &mine));
    SF_MUST(sf_cluster_gather(&mine, 1, &cluster));
    SF_CHECK_INT(cluster.cores_per_node, cores);
    sf_cluster_free(&cluster);
}

static const struct sf_test tests[] = {
    { "gathers_bound_ranks", gathers_bound_ranks },
    { "counts_at_least_one_core", counts_at_least_one_core },
    { "makes_equal_nodes", makes_equal_nodes },
    { "measures_this_machine", measures_this_machine },
    { NULL, NULL }
};
SF_TEST_MAIN("cluster", tests)
