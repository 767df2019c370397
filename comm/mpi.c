/* comm/mpi.c: the backend over MPI, and the only file that includes mpi.h.
 *
 * Each group has its own communicators, one for each channel.  Receives are matched probes, so that
 * nothing waits inside MPI; the few collective MPI calls (duplicating, splitting, windows) are made
 * at launch, just after a barrier of ours, when every rank is known to be there.
 *
 * A message longer than a piece goes as several, all full but the last, which is shorter (or
 * empty):
 *
 *   3.2 pieces:  | full | full | full | 0.2 |        2 pieces:  | full | full | empty |
 *
 * MPI keeps the order of messages between two ranks with one tag, so a receiver that has matched a
 * full piece takes the next ones from the same rank and tag. */
#include <mpi.h>

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/memory.h"
#include "comm/backend.h"

static size_t piece_bytes = (size_t)1 << 30;

struct mpi_group { MPI_Comm channel[SF_CHANNELS]; };

/* A window lives until all ranks leave, in order of creation, which is the same on all its ranks:
 * MPI frees it together, and a rank that has failed must not wait for those that do not know. */
struct mpi_map { MPI_Win window; struct mpi_map *next; };
static struct mpi_map *maps, **maps_last = &maps;

/* In a request: pieces that are under way. */
struct mpi_send { MPI_Request one; MPI_Request *many; size_t pieces, sent; };
_Static_assert(sizeof(struct mpi_send) <= sizeof((struct sf_request *)0)->backend.bytes, "fits");

/* In an incoming message: first as matched, then as landing. */
struct mpi_landing { MPI_Message message; MPI_Request request; };
_Static_assert(sizeof(struct mpi_landing) <= sizeof((struct sf_incoming *)0)->backend.bytes,
               "fits");

void sf_comm_mpi_piece(size_t bytes)
{
    SF_ASSERT(bytes > 0 && bytes <= INT_MAX);
    piece_bytes = bytes;
}

static MPI_Comm channel_of(const struct sf_comm *comm, enum sf_channel channel)
{
    return ((const struct mpi_group *)comm->backend)->channel[channel];
}

static sf_status mpi_check(int rc, const char *call)
{
    if (rc == MPI_SUCCESS) return SF_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    MPI_Error_string(rc, text, &length);
    return SF_FAIL(SF_LOST, "%s: %s", call, text);
}

/* ---- messages -------------------------------------------------------------------------------- */
static struct mpi_send *send_of(struct sf_request *request)
{
    return (struct mpi_send *)(void *)request->backend.bytes;
}

static sf_status mpi_send(struct sf_request *request)
{
    struct mpi_send *send = send_of(request);
    MPI_Comm channel = channel_of(request->comm, request->channel);
    *send = (struct mpi_send){ .one = MPI_REQUEST_NULL,
                               .pieces = request->bytes / piece_bytes + 1 };
    if (send->pieces == 1)
        return mpi_check(MPI_Isend(request->data, (int)request->bytes, MPI_BYTE, request->to,
                                   request->tag, channel, &send->one), "MPI_Isend");
    send->many = malloc(send->pieces * sizeof *send->many);
    if (send->many == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for a message of %zu bytes", request->bytes);
    const unsigned char *data = request->data;
    for (size_t i = 0; i < send->pieces; i++) {
        size_t left = request->bytes - i * piece_bytes;
        int count = (int)(left < piece_bytes ? left : piece_bytes);
        int rc = MPI_Isend(data + i * piece_bytes, count, MPI_BYTE, request->to, request->tag,
                           channel, &send->many[i]);
        if (rc != MPI_SUCCESS) {
            free(send->many);           /* the pieces before are lost with the job */
            return mpi_check(rc, "MPI_Isend");
        }
    }
    return SF_OK;
}

static sf_status mpi_sent(struct sf_request *request, int *done_out)
{
    struct mpi_send *send = send_of(request);
    int done = 1;
    while (send->sent < send->pieces) {
        MPI_Request *piece = send->many != NULL ? &send->many[send->sent] : &send->one;
        SF_TRY(mpi_check(MPI_Test(piece, &done, MPI_STATUS_IGNORE), "MPI_Test"));
        if (!done) break;
        send->sent++;
    }
    if (done) {
        free(send->many);
        send->many = NULL;
    }
    *done_out = done;
    return SF_OK;
}

/* The transfer may still read the copy of a post, so the request stays out of use. */
static int mpi_drop(struct sf_world *world, struct sf_request *request, int orphan)
{
    (void)world;
    struct mpi_send *send = send_of(request);
    for (; send->sent < send->pieces; send->sent++) {
        MPI_Request *piece = send->many != NULL ? &send->many[send->sent] : &send->one;
        if (*piece != MPI_REQUEST_NULL) MPI_Request_free(piece);
    }
    free(send->many);
    send->many = NULL;
    return orphan;
}

static struct mpi_landing *landing_of(struct sf_incoming *incoming)
{
    return (struct mpi_landing *)(void *)incoming->backend.bytes;
}

static sf_status mpi_match(struct sf_comm *comm, enum sf_channel channel, int32_t from,
                           int32_t tag, struct sf_incoming *incoming, int *found_out)
{
    struct mpi_landing *landing = landing_of(incoming);
    MPI_Status status;
    int count;
    SF_TRY(mpi_check(MPI_Improbe(from == SF_RANK_ANY ? MPI_ANY_SOURCE : from,
                                 tag == SF_TAG_ANY ? MPI_ANY_TAG : tag, channel_of(comm, channel),
                                 found_out, &landing->message, &status), "MPI_Improbe"));
    if (!*found_out) return SF_OK;
    SF_TRY(mpi_check(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count"));
    incoming->from = status.MPI_SOURCE;
    incoming->tag = status.MPI_TAG;
    incoming->bytes = (size_t)count;
    incoming->more = incoming->bytes == piece_bytes;
    return SF_OK;
}

static sf_status mpi_land(struct sf_comm *comm, struct sf_incoming *incoming, void *data)
{
    (void)comm;
    struct mpi_landing *landing = landing_of(incoming);
    if (data == NULL && incoming->bytes > 0) return SF_OK;
    return mpi_check(MPI_Imrecv(data, (int)incoming->bytes, MPI_BYTE, &landing->message,
                                &landing->request), "MPI_Imrecv");
}

static sf_status mpi_landed(struct sf_comm *comm, struct sf_incoming *incoming, int *done_out)
{
    (void)comm;
    return mpi_check(MPI_Test(&landing_of(incoming)->request, done_out, MPI_STATUS_IGNORE),
                     "MPI_Test");
}

static void mpi_idle(struct sf_world *world, int64_t us)
{
    (void)world;
    sf_sleep_us(us);
}

/* ---- groups ---------------------------------------------------------------------------------- */
static uint64_t mpi_token(struct sf_world *world)
{
    (void)world;
    return 0;
}

static void mpi_close(struct sf_comm *comm)
{
    struct mpi_group *group = comm->backend;
    for (int i = 0; i < SF_CHANNELS; i++)
        if (group->channel[i] != MPI_COMM_NULL) MPI_Comm_free(&group->channel[i]);
    sf_free(group);
}

/* Copies `from` for the channels of a group, the watchdog's only for the world. */
static sf_status group_create(MPI_Comm from, int channels, struct sf_comm *comm)
{
    void *block;
    SF_TRY(sf_alloc(sizeof(struct mpi_group), "MPI group", &block));
    struct mpi_group *group = block;
    for (int i = 0; i < SF_CHANNELS; i++) group->channel[i] = MPI_COMM_NULL;
    comm->backend = group;
    for (int i = 0; i < channels; i++) {
        sf_status status = mpi_check(MPI_Comm_dup(from, &group->channel[i]), "MPI_Comm_dup");
        if (status == SF_OK) continue;
        mpi_close(comm);
        return status;
    }
    return SF_OK;
}

static sf_status mpi_open(struct sf_comm *parent, int32_t color, int32_t key, uint64_t token,
                          struct sf_comm *group)
{
    (void)token;
    MPI_Comm split;
    int rank, size;
    SF_TRY(mpi_check(MPI_Comm_split(channel_of(parent, SF_CHANNEL_GROUP), color, key, &split),
                     "MPI_Comm_split"));
    MPI_Comm_rank(split, &rank);
    MPI_Comm_size(split, &size);
    sf_status status = group_create(split, SF_CHANNEL_GROUP + 1, group);
    MPI_Comm_free(&split);
    SF_TRY(status);
    SF_ASSERT(rank == group->rank && size == group->size);
    return SF_OK;
}

/* ---- windows --------------------------------------------------------------------------------- */
/* Each rank's segment on pages of its own, zeroed by its owner, so that it lies near the owner. */
static sf_status mpi_map(struct sf_comm *comm, size_t bytes, unsigned char **segment_out,
                         void **map_out)
{
    void *mine, *block;
    SF_TRY(sf_alloc(sizeof(struct mpi_map), "window", &block));
    struct mpi_map *map = block;
    MPI_Info info;
    MPI_Info_create(&info);
    MPI_Info_set(info, "alloc_shared_noncontig", "true");
    int rc = MPI_Win_allocate_shared((MPI_Aint)bytes, 1, info, channel_of(comm, SF_CHANNEL_GROUP),
                                     &mine, &map->window);
    MPI_Info_free(&info);
    if (rc != MPI_SUCCESS) {
        sf_free(map);
        (void)mpi_check(rc, "MPI_Win_allocate_shared");
        return SF_FAIL(SF_NO_MEMORY, "no shared memory for a window of %zu bytes for each of %d "
                       "ranks (is /dev/shm large enough?)", bytes, comm->size);
    }
    memset(mine, 0, bytes);
    for (int32_t r = 0; r < comm->size; r++) {
        MPI_Aint size;
        int unit;
        rc = MPI_Win_shared_query(map->window, r, &size, &unit, &segment_out[r]);
        if (rc == MPI_SUCCESS) continue;
        MPI_Win_free(&map->window);
        sf_free(map);
        return mpi_check(rc, "MPI_Win_shared_query");
    }
    *maps_last = map;
    maps_last = &map->next;
    *map_out = map;
    return SF_OK;
}

static void mpi_unmap(struct sf_comm *comm, void *map)
{
    (void)comm;
    (void)map;
}

/* ---- the end --------------------------------------------------------------------------------- */
static int mpi_ended(struct sf_world *world, int *exit_code_out)
{
    (void)world;
    (void)exit_code_out;
    return 0;                           /* MPI_Abort ends the process */
}

static void mpi_end(struct sf_world *world, int exit_code)
{
    (void)world;
    fflush(NULL);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

/* After a failed wait MPI_Finalize would wait for ranks that do not come; then the process ends
 * without it, and the launcher ends the others. */
static void mpi_leave(struct sf_world *world)
{
    if (!world->broken && sf_world_goodbye(world) != SF_OK) world->broken = 1;
    int whole = !world->broken && sf_comm_poll_posts(world) == SF_OK;
    while (world->post != NULL) {       /* nobody will take these any more */
        struct sf_request *request = world->post;
        world->post = request->next;
        (void)mpi_drop(world, request, 1);
    }
    for (int32_t r = 0; r < world->size; r++)
        if (world->peer[r].sign != NULL) sf_request_recycle(world, world->peer[r].sign);
    while (maps != NULL) {
        struct mpi_map *map = maps;
        maps = map->next;
        if (whole) MPI_Win_free(&map->window);
        sf_free(map);
    }
    maps_last = &maps;
    if (!whole) return;
    mpi_close(world->root);
    MPI_Finalize();
}

static const struct sf_comm_ops mpi_ops = {
    .token = mpi_token, .open = mpi_open, .close = mpi_close, .leave = mpi_leave,
    .send = mpi_send, .sent = mpi_sent, .drop = mpi_drop,
    .match = mpi_match, .land = mpi_land, .landed = mpi_landed,
    .idle = mpi_idle, .ended = mpi_ended, .end = mpi_end,
    .map = mpi_map, .unmap = mpi_unmap,
};

/* ---- the start ------------------------------------------------------------------------------- */
struct introduction { char host[SF_HOST_MAX]; int32_t node_first; cpu_set_t cores; };

/* Where everyone is: host name, node (the ranks that can share memory; numbered by their lowest
 * rank) and whether the ranks of a node have a core each to spin on. */
static sf_status meet(struct sf_comm *root)
{
    struct sf_world *world = root->world;
    struct introduction mine = { .node_first = root->rank };
    gethostname(mine.host, sizeof mine.host - 1);
    if (sched_getaffinity(0, sizeof mine.cores, &mine.cores) != 0) CPU_ZERO(&mine.cores);
    MPI_Comm node;
    SF_TRY(mpi_check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, root->rank,
                                         MPI_INFO_NULL, &node), "MPI_Comm_split_type"));
    int rc = MPI_Bcast(&mine.node_first, 1, MPI_INT32_T, 0, node);
    MPI_Comm_free(&node);
    SF_TRY(mpi_check(rc, "MPI_Bcast"));

    void *block;
    SF_TRY(sf_alloc((size_t)root->size * sizeof mine, "ranks of the world", &block));
    struct introduction *all = block;
    sf_status status = sf_comm_allgather(root, &mine, sizeof mine, all);
    int32_t nodes = 0, neighbours = 0;
    cpu_set_t cores;
    CPU_ZERO(&cores);
    for (int32_t r = 0; r < root->size && status == SF_OK; r++) {
        struct sf_peer *peer = &world->peer[r];
        memcpy(peer->host, all[r].host, sizeof peer->host);
        peer->node = all[r].node_first == r ? nodes++ : world->peer[all[r].node_first].node;
        if (all[r].node_first != mine.node_first) continue;
        neighbours++;
        CPU_OR(&cores, &cores, &all[r].cores);
    }
    world->spin = CPU_COUNT(&cores) >= neighbours;
    sf_free(all);
    return status;
}

/* srun without a PMI that this MPI knows starts each task as a world of its own. */
static sf_status check_size(int size)
{
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    if (size > 1 || tasks == NULL || atoi(tasks) <= 1 || getenv("OMPI_COMM_WORLD_SIZE") != NULL)
        return SF_OK;
    return SF_FAIL(SF_UNSUPPORTED, "srun started %s tasks, but MPI sees one: start with srun "
                   "--mpi=pmix, or with mpirun inside the allocation", tasks);
}

static sf_status check_tags(void)
{
    int *tag_max, found = 0;
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &tag_max, &found);
    if (found && *tag_max >= SF_TAGS_MAX - 1) return SF_OK;
    return SF_FAIL(SF_UNSUPPORTED, "this MPI has tags up to %d, %d are needed",
                   found ? *tag_max : 0, SF_TAGS_MAX);
}

sf_status sf_comm_mpi_world(const struct sf_comm_options *options, struct sf_comm **world_out)
{
    int provided, initialized = 0, rank, size;
    MPI_Initialized(&initialized);
    SF_ASSERT(!initialized);
    SF_TRY(mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided),
                     "MPI_Init_thread"));
    if (provided < MPI_THREAD_FUNNELED) {
        MPI_Finalize();
        return SF_FAIL(SF_UNSUPPORTED, "this MPI does not support threads beside its own "
                       "(MPI_THREAD_FUNNELED)");
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    struct sf_comm *root = NULL;
    sf_status status = check_size(size);
    if (status == SF_OK) status = check_tags();
    if (status != SF_OK) {              /* alike on all ranks */
        MPI_Finalize();
        return status;
    }
    SF_TRY(sf_world_create(&mpi_ops, NULL, rank, size, options, &root));
    SF_TRY(group_create(MPI_COMM_WORLD, SF_CHANNELS, root));
    SF_TRY(meet(root));
    *world_out = root;
    return SF_OK;                       /* after a failure here the job ends without MPI_Finalize */
}

int sf_comm_has_mpi(void)
{
    return 1;
}

const char *sf_comm_mpi_version(void)
{
    static char version[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    if (MPI_Get_library_version(version, &length) != MPI_SUCCESS) version[0] = '\0';
    version[strcspn(version, "\n")] = '\0';
    return version;
}
