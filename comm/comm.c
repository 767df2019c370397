/* comm/comm.c: worlds, facts and groups of ranks; no waiting and no bytes moved here.
 *
 *   sf_world   one for each rank (process, or thread on loopback)
 *     root ------> sf_comm  the world's communicator
 *     peer [size]           host, node, description, last sign of life of every rank
 *        ^
 *   sf_comm (a split): world -> the same sf_world; world_rank [size] names its members */
#include "comm/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/memory.h"
#include "comm/backend.h"

enum { TIMEOUT_MS_DEFAULT = 30000, BEAT_MS_DEFAULT = 500, GRACE_MS_MAX = 5000, GRACE_SHARE = 5,
       BEATS_MIN = 8 };

/* ---- worlds ---------------------------------------------------------------------------------- */
static sf_status comm_create(struct sf_world *world, int32_t rank, int32_t size, const char *label,
                             struct sf_comm **out)
{
    void *block;
    SF_TRY(sf_alloc(sizeof(struct sf_comm), "communicator", &block));
    struct sf_comm *comm = block;
    sf_status status = sf_alloc((size_t)size * sizeof *comm->world_rank, "ranks of a group",
            &block);
    if (status != SF_OK) {
        sf_free(comm);
        return status;
    }
    comm->world = world;
    comm->rank = rank;
    comm->size = size;
    comm->world_rank = block;
    snprintf(comm->label, sizeof comm->label, "%s", label);
    *out = comm;
    return SF_OK;
}

static void comm_free(struct sf_comm *comm)
{
    sf_free(comm->world_rank);
    sf_free(comm);
}

sf_status sf_world_create(const struct sf_comm_ops *ops, void *backend, int32_t rank, int32_t size,
                          const struct sf_comm_options *options, struct sf_comm **root_out)
{
    SF_ASSERT(size > 0 && rank >= 0 && rank < size);
    int64_t timeout_ms = options != NULL ? options->timeout_ms : 0;
    int64_t beat_ms = options != NULL ? options->beat_ms : 0;
    void *block;
    SF_TRY(sf_alloc(sizeof(struct sf_world), "world", &block));
    struct sf_world *world = block;
    sf_status status = sf_alloc((size_t)size * sizeof *world->peer, "ranks of the world", &block);
    if (status == SF_OK) {
        world->peer = block;
        status = comm_create(world, rank, size, "world", &world->root);
    }
    if (status != SF_OK) {
        sf_free(world->peer);
        sf_free(world);
        return status;
    }
    world->ops = ops;
    world->backend = backend;
    world->rank = rank;
    world->size = size;
    world->beat_asked_ns = (beat_ms > 0 ? beat_ms : BEAT_MS_DEFAULT) * 1000000;
    world->post_last = &world->post;
    world->looked_ns = sf_now_ns();
    for (int32_t r = 0; r < size; r++) {
        world->root->world_rank[r] = r;
        world->peer[r].heard_ns = world->looked_ns;
    }
    sf_comm_set_timeout(world->root, timeout_ms > 0 ? timeout_ms : TIMEOUT_MS_DEFAULT);
    *root_out = world->root;
    return SF_OK;
}

void sf_world_free(struct sf_comm *root)
{
    struct sf_world *world = root->world;
    while (world->spare != NULL) {
        struct sf_request *request = world->spare;
        world->spare = request->next;
        sf_request_free(request);
    }
    comm_free(root);
    sf_free(world->peer);
    sf_free(world);
}

void sf_comm_destroy(struct sf_comm *comm)
{
    if (comm == NULL) return;
    struct sf_world *world = comm->world;
    if (comm != world->root) {
        world->ops->close(comm);
        comm_free(comm);
        return;
    }
    world->ops->leave(world);           /* may still send and receive */
    sf_world_free(comm);
}

/* A batch script has SLURM_PROCID too; only a step that srun started has a step's task count. */
int sf_comm_launched(void)
{
    static const char *const names[] = { "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK",
                                         "PMI_SIZE" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i]) != NULL) return 1;
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    return tasks != NULL && getenv("SLURM_STEP_ID") != NULL && atoi(tasks) > 1;
}

#ifndef SHEAF_HAVE_MPI
int sf_comm_has_mpi(void)
{
    return 0;
}

const char *sf_comm_mpi_version(void)
{
    return "";
}

sf_status sf_comm_mpi_world(const struct sf_comm_options *options, struct sf_comm **world_out)
{
    (void)options;
    (void)world_out;
    return SF_FAIL(SF_UNSUPPORTED, "this sheaf was built without MPI (SHEAF_MPI=OFF, or no MPI was "
                   "found): several ranks need a build with it");
}
#endif

/* ---- facts ----------------------------------------------------------------------------------- */
int32_t sf_comm_rank(const struct sf_comm *comm)
{
    return comm->rank;
}

int32_t sf_comm_size(const struct sf_comm *comm)
{
    return comm->size;
}

static const struct sf_peer *peer_of(const struct sf_comm *comm, int32_t rank)
{
    SF_ASSERT(rank >= 0 && rank < comm->size);
    return &comm->world->peer[comm->world_rank[rank]];
}

int32_t sf_comm_node(const struct sf_comm *comm, int32_t rank)
{
    return peer_of(comm, rank)->node;
}

const char *sf_comm_host(const struct sf_comm *comm, int32_t rank)
{
    return peer_of(comm, rank)->host;
}

int64_t sf_comm_bytes_sent(const struct sf_comm *comm)
{
    return comm->bytes_sent;
}

static int64_t grace_of(int64_t timeout_ms)
{
    int64_t grace_ms = timeout_ms / GRACE_SHARE;
    return grace_ms < GRACE_MS_MAX ? grace_ms : GRACE_MS_MAX;
}

/* Some beats may be missed before a rank counts as silent. */
static int64_t beat_of(int64_t asked_ns, int64_t timeout_ns)
{
    int64_t most_ns = timeout_ns / BEATS_MIN;
    return asked_ns < most_ns ? asked_ns : most_ns;
}

void sf_comm_set_timeout(struct sf_comm *comm, int64_t timeout_ms)
{
    SF_ASSERT(timeout_ms > 0);
    struct sf_world *world = comm->world;
    int64_t grace_ms = grace_of(timeout_ms);
    world->grace_ns = grace_ms * 1000000;
    world->timeout_ns = (timeout_ms - grace_ms) * 1000000;
    world->beat_ns = beat_of(world->beat_asked_ns, world->timeout_ns);
}

int64_t sf_comm_life_bytes(int64_t ms, int64_t timeout_ms)
{
    int64_t timeout_ns = (timeout_ms - grace_of(timeout_ms)) * 1000000;
    int64_t beat_ns = beat_of((int64_t)BEAT_MS_DEFAULT * 1000000, timeout_ns);
    return beat_ns > 0 ? ms * 1000000 * SF_SIGN_BYTES / beat_ns : 0;
}

void sf_comm_set_progress(struct sf_comm *comm, void (*progress)(void *), void *arg)
{
    comm->world->progress = progress;
    comm->world->progress_arg = arg;
}

void sf_comm_describe(struct sf_comm *comm, int32_t rank, const char *text)
{
    SF_ASSERT(rank >= 0 && rank < comm->size);
    struct sf_peer *peer = &comm->world->peer[comm->world_rank[rank]];
    snprintf(peer->describe, sizeof peer->describe, "%s", text);
}

void sf_comm_abort(struct sf_comm *comm, int exit_code)
{
    comm->world->broken = 1;
    comm->world->ops->end(comm->world, exit_code);
}

/* ---- groups ---------------------------------------------------------------------------------- */
struct member { int32_t color, key, world_rank; uint64_t token; };

static int by_key(const void *left, const void *right)
{
    const struct member *a = left, *b = right;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return a->world_rank < b->world_rank ? -1 : a->world_rank > b->world_rank;
}

/* Everyone learns everyone's color, so each rank can tell its own group by itself, and all of them
 * are known to have come before a backend enters its own blocking call. */
sf_status sf_comm_split(struct sf_comm *comm, int32_t color, int32_t key, const char *label,
                        struct sf_comm **out)
{
    SF_ASSERT(color >= 0);
    struct sf_world *world = comm->world;
    void *block;
    SF_TRY(sf_alloc((size_t)comm->size * sizeof(struct member), "members of a split", &block));
    struct member *member = block;
    struct member mine = { .color = color, .key = key, .world_rank = world->rank };
    if (comm->rank == 0) mine.token = world->ops->token(world);
    struct sf_comm *group = NULL;
    sf_status status = sf_comm_allgather(comm, &mine, sizeof mine, member);
    if (status != SF_OK) goto out;
    uint64_t token = member[0].token;
    int32_t size = 0, rank = 0;
    for (int32_t r = 0; r < comm->size; r++)
        if (member[r].color == color) member[size++] = member[r];
    qsort(member, (size_t)size, sizeof *member, by_key);
    while (member[rank].world_rank != world->rank) rank++;
    status = comm_create(world, rank, size, label, &group);
    if (status != SF_OK) goto out;
    for (int32_t r = 0; r < size; r++) group->world_rank[r] = member[r].world_rank;
    status = world->ops->open(comm, color, key, token, group);
    if (status == SF_OK) *out = group;
    else comm_free(group);
out:
    sf_free(member);
    return status;
}
