/* worker/hub.c: rank 0's post office.  The coordinator's thread never calls the communicator; it
 * puts packed steps into one ring and takes results and reports from another.  The worker's thread
 * of rank 0 carries them to and from the other ranks: while it waits for its own next step, and,
 * through the communicator's progress function, inside its waits and between its layers.
 *
 *   coordinator --to_workers--> hub --SF_TAG_STEP--> ranks of the group     own group: local queue
 *   coordinator <-from_workers- hub <-RESULT, REPORT- ranks */
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "worker/state.h"

enum { LOCAL_MAX = 256, PUSH_TIMEOUT_MS = 30000, IDLE_US = 50, TAKE_MAX = 64 };

struct sf_hub {
    struct sf_worker *worker;
    struct sf_ring *local; int32_t locals;  /* steps of rank 0's own group */
    int32_t closed;                         /* the coordinator has closed its ring: no more steps */
    int32_t busy;                           /* inside pump(): progress must not call it again */
    struct sf_buffer step, taken;           /* being forwarded; being delivered */
    struct sf_box report_box;
    /* of a pump inside progress; returned by the next call */
    sf_status failed;
};

static sf_status forward_step(struct sf_hub *hub, struct sf_envelope envelope)
{
    const struct sf_worker_spec *spec = &hub->worker->spec;
    int32_t ranks = spec->share->tp_size * spec->stages, group = envelope.group;
    if (group < 0 || group >= spec->groups || envelope.tag != SF_TAG_STEP)
        return SF_FAIL(SF_INTERNAL, "the coordinator sent tag %d to group %d of %d", envelope.tag,
                       group, spec->groups);
    for (int32_t r = group * ranks; r < (group + 1) * ranks; r++)
        if (r != 0)
            SF_TRY(sf_comm_post(spec->world, r, SF_TAG_STEP, hub->step.bytes, hub->step.count));
    if (group != 0) return SF_OK;
    SF_TRY(sf_ring_push(hub->local, envelope, hub->step.bytes, hub->step.count, 0));
    hub->locals++;
    return SF_OK;
}

sf_status sf_hub_deliver(struct sf_hub *hub, int32_t from, int32_t tag, const void *bytes,
                         size_t count)
{
    struct sf_envelope envelope = {.group = from, .tag = tag};
    return sf_ring_push(hub->worker->spec.from_workers, envelope, bytes, count, PUSH_TIMEOUT_MS);
}

/* A rank that reports a failure ends the job: others may wait for it inside a computation, where no
 * message reaches them.  Its words are printed once, here; what was written stays written. */
static void end_if_failed(struct sf_hub *hub)
{
    struct sf_wire_report report;
    if (sf_wire_unpack_report(hub->taken.bytes, hub->taken.count, &hub->report_box, &report) !=
        SF_OK)
        return;
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
    while (!hub->closed && hub->locals < LOCAL_MAX) {
        struct sf_envelope envelope;
        sf_status status = sf_ring_pop(spec->to_workers, 0, &envelope, &hub->step);
        if (status == SF_STOPPED) hub->closed = 1;
        if (status == SF_TIMEOUT || status == SF_STOPPED) break;
        SF_TRY(status);
        SF_TRY(forward_step(hub, envelope));
    }
    for (size_t t = 0; t < sizeof tags / sizeof tags[0] && sf_comm_size(spec->world) > 1; t++) {
        for (int32_t i = 0; i < TAKE_MAX; i++) {
            int32_t from;
            SF_TRY(sf_comm_take(spec->world, SF_RANK_ANY, tags[t], 0, &hub->taken, &from));
            if (from == SF_RANK_ANY) break;
            if (tags[t] == SF_TAG_REPORT) end_if_failed(hub);
            SF_TRY(sf_hub_deliver(hub, from, tags[t], hub->taken.bytes, hub->taken.count));
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
    sf_status status = sf_ring_create(LOCAL_MAX, &hub->local);
    if (status != SF_OK) {
        free(hub);
        return status;
    }
    sf_comm_set_progress(worker->spec.world, progress, hub);
    *out = hub;
    return SF_OK;
}

void sf_hub_destroy(struct sf_hub *hub)
{
    if (hub == NULL) return;
    sf_comm_set_progress(hub->worker->spec.world, NULL, NULL);
    sf_ring_destroy(hub->local);
    sf_buffer_free(&hub->step);
    sf_buffer_free(&hub->taken);
    sf_box_free(&hub->report_box);
    free(hub);
}

/* The coordinator may think for as long as it likes (a slow input): it is a thread of this very
 * process, so there is no deadline here, only signs of life to the other ranks. */
sf_status sf_hub_next(struct sf_hub *hub, struct sf_buffer *out)
{
    while (hub->locals == 0) {
        SF_TRY(pump_once(hub));
        if (hub->locals > 0) break;
        SF_TRY(sf_comm_beat(hub->worker->spec.world, "idle", 0));
        sf_sleep_us(IDLE_US);
    }
    struct sf_envelope envelope;
    SF_TRY(sf_ring_pop(hub->local, 0, &envelope, out));
    hub->locals--;
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
