/* coordinator/cluster.c: cores and memory of this machine as far as this process may use them.
 *
 * Cores are physical ones: two hardware threads share the units that do the work here.  A process
 * may use fewer than there are: by affinity (hwloc) and by a cgroup's quota; its memory is bounded
 * by what the system has left and by what its cgroups leave, up to the root. */
#include "coordinator/cluster.h"

#include <hwloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 1024, CORES_MAX = SF_CORE_WORDS * 64 };

static sf_status usable_cores(uint64_t bits[SF_CORE_WORDS]);
static int32_t cgroup_quota(void);
static int64_t cgroup_memory(void);

static int32_t count_cores(const uint64_t bits[SF_CORE_WORDS])
{
    int32_t cores = 0;
    for (int i = 0; i < SF_CORE_WORDS; i++) cores += __builtin_popcountll(bits[i]);
    return cores;
}

static int32_t capped_cores(const uint64_t bits[SF_CORE_WORDS], int32_t quota)
{
    int32_t cores = count_cores(bits);
    if (quota > 0 && quota < cores) cores = quota;
    return cores > 0 ? cores : 1;
}

sf_status sf_machine_cores(int32_t *cores_out)
{
    uint64_t bits[SF_CORE_WORDS];
    SF_TRY(usable_cores(bits));
    *cores_out = capped_cores(bits, cgroup_quota());
    return SF_OK;
}

/* The first number of OMP_NUM_THREADS; 0 if there is none. */
static int32_t threads_asked(void)
{
    const char *text = getenv("OMP_NUM_THREADS");
    long threads = text != NULL ? strtol(text, NULL, 10) : 0;
    return threads < 1 ? 0 : threads > INT32_MAX ? INT32_MAX : (int32_t)threads;
}

/* ---- clusters -------------------------------------------------------------------------------- */
sf_status sf_rank_facts_make(int32_t node, const char *host, struct sf_rank_facts *out)
{
    struct sf_rank_facts facts;
    memset(&facts, 0, sizeof facts);            /* it travels: no stray bytes */
    facts.node = node;
    facts.quota = cgroup_quota();
    facts.threads = threads_asked();
    snprintf(facts.host, sizeof facts.host, "%s", host);
    SF_TRY(usable_cores(facts.cores));
    SF_TRY(sf_machine_memory(&facts.memory));
    *out = facts;
    return SF_OK;
}

sf_status sf_cluster_gather(const struct sf_rank_facts *facts, int32_t ranks,
                            struct sf_cluster *out)
{
    struct sf_cluster cluster = { .ranks = ranks, .cores_per_node = INT32_MAX,
                                  .memory_per_rank = INT64_MAX };
    SF_ASSERT(ranks >= 1);
    cluster.place = calloc((size_t)ranks, sizeof *cluster.place);
    if (cluster.place == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d ranks", ranks);
    for (int32_t r = 0; r < ranks; r++) {
        cluster.place[r].node = facts[r].node;
        memcpy(cluster.place[r].host, facts[r].host, SF_HOST_MAX);
        cluster.place[r].host[SF_HOST_MAX - 1] = '\0';
        if (facts[r].threads > 0 && (cluster.threads_max == 0 ||
                                     facts[r].threads < cluster.threads_max))
            cluster.threads_max = facts[r].threads;
        int first_there = 1;
        for (int32_t other = 0; other < r; other++)
            first_there &= facts[other].node != facts[r].node;
        if (!first_there) continue;

        /* All ranks of this node together. */
        uint64_t bits[SF_CORE_WORDS] = { 0 };
        int32_t there = 0, quota = 0;
        int64_t memory = INT64_MAX;
        for (int32_t other = r; other < ranks; other++) {
            if (facts[other].node != facts[r].node) continue;
            there++;
            for (int i = 0; i < SF_CORE_WORDS; i++) bits[i] |= facts[other].cores[i];
            if (quota == 0 || (facts[other].quota > 0 && facts[other].quota < quota))
                quota = facts[other].quota;
            if (facts[other].memory < memory) memory = facts[other].memory;
        }
        int32_t cores = capped_cores(bits, quota);
        cluster.nodes++;
        if (cores < cluster.cores_per_node) cluster.cores_per_node = cores;
        if (memory / there < cluster.memory_per_rank) cluster.memory_per_rank = memory / there;
    }
    *out = cluster;
    return SF_OK;
}

sf_status sf_cluster_make(int32_t nodes, int32_t ranks_per_node, int32_t cores_per_node,
                          int64_t memory_per_rank, struct sf_cluster *out)
{
    enum { RANKS_MAX = 1 << 20 };
    if (nodes < 1 || ranks_per_node < 1 || (int64_t)nodes * ranks_per_node > RANKS_MAX)
        return SF_FAIL(SF_INVALID, "%d nodes of %d ranks: at least 1 of each, at most %d ranks",
                       nodes, ranks_per_node, RANKS_MAX);
    struct sf_cluster cluster = {
        .ranks = nodes * ranks_per_node, .nodes = nodes, .cores_per_node = cores_per_node,
        .memory_per_rank = memory_per_rank
    };
    cluster.place = calloc((size_t)cluster.ranks, sizeof *cluster.place);
    if (cluster.place == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d ranks", cluster.ranks);
    for (int32_t r = 0; r < cluster.ranks; r++) {
        cluster.place[r].node = r / ranks_per_node;
        snprintf(cluster.place[r].host, SF_HOST_MAX, "node%d", cluster.place[r].node);
    }
    *out = cluster;
    return SF_OK;
}

int32_t sf_cluster_local_rank(const struct sf_cluster *cluster, int32_t rank)
{
    int32_t before = 0;
    for (int32_t r = 0; r < rank; r++)
        before += cluster->place[r].node == cluster->place[rank].node;
    return before;
}

void sf_cluster_free(struct sf_cluster *cluster)
{
    free(cluster->place);
    memset(cluster, 0, sizeof *cluster);
}

/* ---- hwloc ----------------------------------------------------------------------------------- */
/* Cores that touch the affinity of this process; hardware threads where hwloc knows no cores. */
static void mark_cores(hwloc_topology_t topology, hwloc_const_bitmap_t allowed,
                       uint64_t bits[SF_CORE_WORDS])
{
    hwloc_obj_type_t type = HWLOC_OBJ_CORE;
    if (hwloc_get_nbobjs_by_type(topology, type) <= 0) type = HWLOC_OBJ_PU;
    int count = hwloc_get_nbobjs_by_type(topology, type);
    for (int i = 0; i < count && i < CORES_MAX; i++) {
        hwloc_obj_t core = hwloc_get_obj_by_type(topology, type, (unsigned)i);
        if (hwloc_bitmap_intersects(core->cpuset, allowed)) bits[i / 64] |= 1ull << (i % 64);
    }
}

static sf_status usable_cores(uint64_t bits[SF_CORE_WORDS])
{
    hwloc_topology_t topology;
    memset(bits, 0, SF_CORE_WORDS * sizeof *bits);
    if (hwloc_topology_init(&topology) != 0)
        return SF_FAIL(SF_INTERNAL, "hwloc cannot describe this machine");
    /* The whole node is counted, so that core i is the same core for every rank on it. */
    hwloc_topology_set_flags(topology, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED);
    hwloc_bitmap_t bound = hwloc_bitmap_alloc();
    if (bound == NULL || hwloc_topology_load(topology) != 0) {
        hwloc_bitmap_free(bound);
        hwloc_topology_destroy(topology);
        return SF_FAIL(SF_INTERNAL, "hwloc cannot describe this machine");
    }
    if (hwloc_get_cpubind(topology, bound, HWLOC_CPUBIND_PROCESS) != 0)
        hwloc_bitmap_copy(bound, hwloc_topology_get_topology_cpuset(topology));
    hwloc_bitmap_and(bound, bound, hwloc_topology_get_allowed_cpuset(topology));
    mark_cores(topology, bound, bits);
    hwloc_bitmap_free(bound);
    hwloc_topology_destroy(topology);
    return SF_OK;
}

/* ---- the system and its cgroups -------------------------------------------------------------- */
/* First line of a small file; 0 if it cannot be read. */
static int read_line(const char *folder, const char *name, char *line, size_t bytes)
{
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "r");
    if (file == NULL) return 0;
    int read = fgets(line, (int)bytes, file) != NULL;
    fclose(file);
    return read;
}

/* A number after `key` (NULL: the first) in a file of "key number" lines; -1 if it is not there. */
static int64_t read_number(const char *folder, const char *name, const char *key)
{
    char path[PATH_BYTES + 64], line[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "r");
    int64_t value = -1;
    if (file == NULL) return value;
    while (value < 0 && fgets(line, sizeof line, file) != NULL) {
        const char *at = line;
        size_t bytes = key != NULL ? strlen(key) : 0;
        if (key != NULL && (strncmp(line, key, bytes) != 0 || strchr(" :", line[bytes]) == NULL))
            continue;
        at += bytes;
        at += strspn(at, ": ");
        if (*at >= '0' && *at <= '9') value = strtoll(at, NULL, 10);
        else if (key == NULL) break;
    }
    fclose(file);
    return value;
}

/* The folder of our cgroup: hierarchy "" is version 2, "cpu" or "memory" is version 1. */
static int cgroup_folder(const char *controller, char *folder, size_t bytes)
{
    FILE *file = fopen("/proc/self/cgroup", "r");
    char line[PATH_BYTES];
    int found = 0;
    if (file == NULL) return 0;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        char *names = strchr(line, ':'), *path = names != NULL ? strchr(names + 1, ':') : NULL;
        if (path == NULL) continue;
        *path++ = '\0';
        names++;
        path[strcspn(path, "\n")] = '\0';
        int match = controller[0] == '\0' && names[0] == '\0';
        for (char *rest = names, *name; controller[0] != '\0'
             && (name = strsep(&rest, ",")) != NULL;)
            match |= strcmp(name, controller) == 0;
        if (!match) continue;
        found = 1;
        snprintf(folder, bytes, "/sys/fs/cgroup%s%s%s", controller[0] != '\0' ? "/" : "",
                 controller, strcmp(path, "/") == 0 ? "" : path);
    }
    fclose(file);
    return found;
}

/* Calls `look` on our cgroup and on all above it. */
static void walk_cgroups(const char *controller, void (*look)(const char *folder, int64_t *least),
                         int64_t *least)
{
    char folder[PATH_BYTES];
    if (!cgroup_folder(controller, folder, sizeof folder)) return;
    const size_t root = strlen("/sys/fs/cgroup");
    for (;;) {
        look(folder, least);
        char *slash = strrchr(folder, '/');
        if (slash == NULL || (size_t)(slash - folder) < root) return;
        *slash = '\0';
    }
}

/* Whole cores, rounded up: a quota of 1.5 cores keeps two threads busy part of the time. */
static void look_quota(int64_t quota, int64_t period, int64_t *least)
{
    if (quota <= 0 || period <= 0) return;
    int64_t cores = (quota + period - 1) / period;
    if (cores < *least) *least = cores;
}

static void look_cpu_v2(const char *folder, int64_t *least)
{
    char line[128];
    long long quota, period;
    if (read_line(folder, "cpu.max", line, sizeof line)
        && sscanf(line, "%lld %lld", &quota, &period) == 2)      /* "max 100000": no limit */
        look_quota(quota, period, least);
}

static void look_cpu_v1(const char *folder, int64_t *least)
{
    look_quota(read_number(folder, "cpu.cfs_quota_us", NULL),
               read_number(folder, "cpu.cfs_period_us", NULL), least);
}

static int32_t cgroup_quota(void)
{
    int64_t least = INT32_MAX;
    walk_cgroups("", look_cpu_v2, &least);
    walk_cgroups("cpu", look_cpu_v1, &least);
    return least < INT32_MAX ? (int32_t)least : 0;
}

/* What a limit leaves: pages of files that nobody uses can be taken back at once. */
static void look_limit(int64_t limit, int64_t used, int64_t reclaimable, int64_t *least)
{
    if (limit < 0 || used < 0) return;
    if (reclaimable > 0) used -= reclaimable < used ? reclaimable : used;
    int64_t left = limit > used ? limit - used : 0;
    if (left < *least) *least = left;
}

static void look_memory_v2(const char *folder, int64_t *least)
{
    look_limit(read_number(folder, "memory.max", NULL), read_number(folder, "memory.current", NULL),
               read_number(folder, "memory.stat", "inactive_file"), least);
}

static void look_memory_v1(const char *folder, int64_t *least)
{
    look_limit(read_number(folder, "memory.limit_in_bytes", NULL),
               read_number(folder, "memory.usage_in_bytes", NULL),
               read_number(folder, "memory.stat", "total_inactive_file"), least);
}

static int64_t cgroup_memory(void)
{
    int64_t least = INT64_MAX;
    walk_cgroups("", look_memory_v2, &least);
    walk_cgroups("memory", look_memory_v1, &least);
    return least;
}

void sf_machine_processor(char *out, size_t bytes)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[512];
    const char *name = NULL;
    while (file != NULL && name == NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "model name", strlen("model name")) != 0) continue;
        line[strcspn(line, "\n")] = '\0';
        name = strchr(line, ':');
    }
    if (file != NULL) fclose(file);
    snprintf(out, bytes, "%s", name != NULL ? name + 1 + strspn(name + 1, " ") : "unknown");
}

sf_status sf_machine_memory(int64_t *bytes_out)
{
    int64_t kib = read_number("/proc", "meminfo", "MemAvailable");
    int64_t cgroup = cgroup_memory();
    int64_t free_bytes = kib >= 0 ? kib * 1024 : INT64_MAX;
    if (cgroup < free_bytes) free_bytes = cgroup;
    if (free_bytes == INT64_MAX)
        return SF_FAIL(SF_IO, "cannot read the free memory of this machine");
    *bytes_out = free_bytes;
    return SF_OK;
}
