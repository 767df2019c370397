/* worker/hub.c: rank 0's post office.  The coordinator's thread never calls the communicator; it
 * puts packed steps into one ring and takes results and reports from another.  The worker's thread
 * of rank 0 carries them to and from the other ranks: while it waits for its own next step, and,
 * through the communicator's progress function, inside its waits and between its layers.
 *
 *   coordinator --to_workers--> hub --SF_TAG_STEP--> ranks of the group     own group: local queue
 *   coordinator <-from_workers- hub <-RESULT, REPORT- ranks */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "worker/state.h"

enum { LOCAL_MAX = 256, PUSH_TIMEOUT_MS = 30000, IDLE_US = 50, TAKE_MAX = 64 };

struct sf_hub {
    struct sf_worker *worker;
    struct sf_envelope *local[LOCAL_MAX];   /* steps of rank 0's own group, a circular queue */
    int32_t first, count;
    int32_t closed;                         /* the coordinator has closed its ring: no more steps */
    int32_t busy;                           /* inside pump(): progress must not call it again */
    struct sf_box report_box;
    /* of a pump inside progress; returned by the next call */
    sf_status failed;
};

static sf_status forward_step(struct sf_hub *hub, struct sf_envelope *envelope)
{
    const struct sf_worker_spec *spec = &hub->worker->spec;
    int32_t ranks = spec->share->tp_size * spec->stages, group = envelope->group;
    if (group < 0 || group >= spec->groups || envelope->tag != SF_TAG_STEP) {
        int32_t tag = envelope->tag;
        free(envelope);
        return SF_FAIL(SF_INTERNAL, "the coordinator sent tag %d to group %d of %d", tag, group,
                       spec->groups);
    }
    sf_status status = SF_OK;
    for (int32_t r = group * ranks; r < (group + 1) * ranks && status == SF_OK; r++)
        if (r != 0)
            status = sf_comm_post(spec->world, r, SF_TAG_STEP, envelope->data, envelope->bytes);
    if (group != 0 || status != SF_OK) {
        free(envelope);
        return status;
    }
    hub->local[(hub->first + hub->count++) % LOCAL_MAX] = envelope;
    return SF_OK;
}

sf_status sf_hub_deliver(struct sf_hub *hub, int32_t from, int32_t tag, const void *bytes,
                         size_t count)
{
    struct sf_envelope *envelope = malloc(sizeof *envelope + count);
    if (envelope == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a message of %zu B", count);
    envelope->group = from;
    envelope->tag = tag;
    envelope->bytes = count;
    memcpy(envelope->data, bytes, count);
    sf_status status = sf_ring_push(hub->worker->spec.from_workers, envelope, PUSH_TIMEOUT_MS);
    if (status != SF_OK) free(envelope);
    return status;
}

/* A rank that reports a failure ends the job: others may wait for it inside a computation, where no
 * message reaches them.  Its words are printed once, here; what was written stays written. */
static void end_if_failed(struct sf_hub *hub, const void *bytes, size_t count)
{
    struct sf_wire_report report;
    if (sf_wire_unpack_report(bytes, count, &hub->report_box, &report) != SF_OK) return;
    if (report.status != SF_OK) {
        sf_log(SF_LOG_ERROR, "rank %d: %s", report.rank, report.text);
        sf_comm_abort(hub->worker->spec.world, 1);
    }
}

/* Moves what is there, without waiting. */
static sf_status pump(struct sf_hub *hub)
{
    static const int32_t tags[] = {SF_TAG_RESULT, SF_TAG_REPORT};
    const struct sf_worker_spec *spec = &hub->worker->spec;
    while (!hub->closed && hub->count < LOCAL_MAX) {
        void *envelope;
        sf_status status = sf_ring_pop(spec->to_workers, 0, &envelope);
        if (status == SF_STOPPED) hub->closed = 1;
        if (status == SF_TIMEOUT || status == SF_STOPPED) break;
        SF_TRY(status);
        SF_TRY(forward_step(hub, envelope));
    }
    for (size_t t = 0; t < sizeof tags / sizeof tags[0] && sf_comm_size(spec->world) > 1; t++) {
        for (int32_t i = 0; i < TAKE_MAX; i++) {
            void *bytes;
            size_t count;
            int32_t from;
            SF_TRY(sf_comm_take(spec->world, SF_RANK_ANY, tags[t], 0, &bytes, &count, &from));
            if (bytes == NULL) break;
            if (tags[t] == SF_TAG_REPORT) end_if_failed(hub, bytes, count);
            sf_status status = sf_hub_deliver(hub, from, tags[t], bytes, count);
            free(bytes);
            SF_TRY(status);
        }
    }
    return SF_OK;
}

static sf_status pump_once(struct sf_hub *hub)
{
    if (hub->busy) return SF_OK;
    hub->busy = 1;
    sf_status status = hub->failed != SF_OK ? hub->failed : pump(hub);
    if (status == SF_OK) status = sf_report_signals(hub->worker);
    hub->busy = 0;
    return status;
}

static void progress(void *arg)
{
    struct sf_hub *hub = arg;
    hub->failed = pump_once(hub);
}

sf_status sf_hub_create(struct sf_worker *worker, struct sf_hub **out)
{
    struct sf_hub *hub = calloc(1, sizeof *hub);
    if (hub == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the hub");
    hub->worker = worker;
    sf_comm_set_progress(worker->spec.world, progress, hub);
    *out = hub;
    return SF_OK;
}

void sf_hub_destroy(struct sf_hub *hub)
{
    if (hub == NULL) return;
    sf_comm_set_progress(hub->worker->spec.world, NULL, NULL);
    for (; hub->count > 0; hub->count--) {
        free(hub->local[hub->first]);
        hub->first = (hub->first + 1) % LOCAL_MAX;
    }
    sf_box_free(&hub->report_box);
    free(hub);
}

/* The coordinator may think for as long as it likes (a slow input): it is a thread of this very
 * process, so there is no deadline here, only signs of life to the other ranks. */
sf_status sf_hub_next(struct sf_hub *hub, struct sf_envelope **out)
{
    while (hub->count == 0) {
        SF_TRY(pump_once(hub));
        if (hub->count > 0) break;
        SF_TRY(sf_comm_beat(hub->worker->spec.world, "idle", 0));
        sf_sleep_us(IDLE_US);
    }
    *out = hub->local[hub->first];
    hub->first = (hub->first + 1) % LOCAL_MAX;
    hub->count--;
    return SF_OK;
}

sf_status sf_hub_finish(struct sf_hub *hub)
{
    while (!hub->closed) {
        SF_TRY(pump_once(hub));
        SF_TRY(sf_comm_beat(hub->worker->spec.world, "finish", 0));
        sf_sleep_us(IDLE_US);
    }
    return SF_OK;
}
