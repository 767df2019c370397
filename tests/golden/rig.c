/* tests/golden/rig.c: launch by hand; one thread a rank. */
#include "tests/golden/rig.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/json.h"
#include "tests/check.h"

enum { RANKS_MAX = 16, RING = 256, WAIT_MS = 120000 };

struct rig_rank {
    struct rig *rig;
    int32_t number;
    struct sf_comm *world;
    pthread_t thread;
    struct sf_worker *worker;
    sf_status status;
    char words[512];
};
struct rig {
    struct rig_spec spec;
    struct sf_config config;
    struct sf_model *model;
    struct sf_cluster cluster;
    struct sf_launch_plan plan;
    struct sf_ring *to, *from;
    struct rig_rank rank[RANKS_MAX];
    int32_t started;
    uint64_t next_id[RANKS_MAX];
    struct rig_receipts receipts;
    struct sf_buffer packed, taken;
    struct sf_box result_box, report_box;
};

static sf_status rank_body(struct rig_rank *self)
{
    struct rig *rig = self->rig;
    const struct sf_plan_rank *me = &rig->plan.rank[self->number];
    int32_t heads[512];
    for (int32_t i = 0; i < me->share.layer_count; i++)
        heads[i] = me->share.kv_ptr[i + 1] - me->share.kv_ptr[i];
    struct sf_rank place = {.layer_first = me->share.layer_first,
                            .layer_count = me->share.layer_count,
                            .tp_rank = me->tp_rank,
                            .heads = heads};
    struct sf_setup setup = rig->plan.setup;
    setup.rank = &place;
    struct sf_comm *tensor;
    SF_TRY(sf_comm_split(self->world, me->stage + rig->plan.pipeline * me->dp_rank, me->tp_rank,
                         "tensor group", &tensor));
    struct sf_worker_spec spec = {.model = rig->model,
                                  .share = &me->share,
                                  .workspace = &me->workspace,
                                  .stack = &rig->config.kv.stack,
                                  .setup = &setup,
                                  .world = self->world,
                                  .tensor = tensor,
                                  .placing = rig->plan.placing,
                                  .stages = rig->plan.pipeline,
                                  .stage = me->stage,
                                  .group = me->dp_rank,
                                  .dtype = rig->plan.dtype,
                                  .kv_dtype = rig->plan.kv_dtype,
                                  .fixed = rig->plan.fixed,
                                  .page_slots = rig->plan.page_slots,
                                  .seqs_max = rig->plan.seqs_max,
                                  .threads = 1,
                                  .pool_bytes = me->pool_bytes,
                                  .exchange = rig->spec.exchange,
                                  .device = rig->spec.device != NULL ? rig->spec.device : "cpu",
                                  .isa_max = rig->spec.isa_max,
                                  .to_workers = rig->to,
                                  .from_workers = rig->from,
                                  .groups = rig->plan.data,
                                  .tap = rig->spec.tap,
                                  .rows_tap = rig->spec.rows_tap};
    sf_status status = sf_worker_open(&spec, &self->worker);
    if (status == SF_OK) status = sf_worker_run(self->worker);
    if (status != SF_OK) snprintf(self->words, sizeof self->words, "%s", sf_error_text());
    if (status == SF_OK) status = sf_comm_barrier(self->world);
    else sf_comm_abort(self->world, 1);
    sf_worker_close(self->worker, status);
    sf_comm_destroy(tensor);
    return status;
}

static void *rank_thread(void *arg)
{
    struct rig_rank *self = arg;
    self->status = rank_body(self);
    if (self->status != SF_OK) {
        if (self->words[0] == '\0')
            snprintf(self->words, sizeof self->words, "%s", sf_error_text());
        if (self->number == 0) sf_ring_close(self->rig->from);
    }
    return NULL;
}

static sf_status open_all(struct rig *rig)
{
    SF_TRY(sf_config_parse("rig.yaml", rig->spec.yaml, strlen(rig->spec.yaml), NULL, &rig->config));
    SF_TRY(sf_model_open(rig->config.model.path, &rig->model));
    int32_t ranks = rig->config.parallel.tensor * rig->config.parallel.pipeline *
                    rig->config.parallel.data;
    SF_ASSERT(ranks <= RANKS_MAX);
    SF_TRY(sf_cluster_make(1, ranks, ranks, (int64_t)4 << 30, &rig->cluster));
    SF_TRY(sf_launch_plan_make(&rig->config, rig->model, &rig->cluster, &rig->plan));
    if (!rig->plan.fits) return SF_FAIL(SF_INVALID, "%s", rig->plan.reason);
    SF_TRY(sf_ring_create(RING, &rig->to));
    SF_TRY(sf_ring_create(RING, &rig->from));
    struct sf_comm *world[RANKS_MAX];
    struct sf_comm_options options = {.timeout_ms = WAIT_MS};
    SF_TRY(sf_comm_loopback_world(ranks, 0, &options, world));
    for (int32_t r = 0; r < ranks; r++) {
        rig->rank[r] = (struct rig_rank){.rig = rig, .number = r, .world = world[r]};
        if (pthread_create(&rig->rank[r].thread, NULL, rank_thread, &rig->rank[r]) != 0)
            return SF_FAIL(SF_INTERNAL, "no thread");
        rig->started++;
    }
    return SF_OK;
}

struct rig *rig_open(const struct rig_spec *spec)
{
    struct rig *rig = calloc(1, sizeof *rig);
    SF_ASSERT(rig != NULL);
    rig->spec = *spec;
    sf_status status = open_all(rig);
    if (status == SF_OK) return rig;
    SF_CHECK_OK(status);
    rig_close(rig);
    return NULL;
}

void rig_close(struct rig *rig)
{
    if (rig == NULL) return;
    struct sf_wire_step stop = {.stop = 1};
    for (int32_t g = 0; g < rig->plan.data && rig->started > 0; g++) rig_send(rig, g, &stop);
    if (rig->to != NULL) sf_ring_close(rig->to);
    for (int32_t r = 0; r < rig->started; r++) pthread_join(rig->rank[r].thread, NULL);
    for (int32_t r = 0; r < rig->started; r++) {
        if (rig->rank[r].status != SF_OK) printf("  rank %d: %s\n", r, rig->rank[r].words);
        SF_CHECK_INT(rig->rank[r].status, SF_OK);
        sf_comm_destroy(rig->rank[r].world);
    }
    sf_ring_destroy(rig->to);
    sf_ring_destroy(rig->from);
    sf_launch_plan_free(&rig->plan);
    sf_cluster_free(&rig->cluster);
    if (rig->model != NULL) sf_model_close(rig->model);
    sf_config_free(&rig->config);
    sf_buffer_free(&rig->packed);
    sf_buffer_free(&rig->taken);
    sf_box_free(&rig->result_box);
    sf_box_free(&rig->report_box);
    free(rig);
}

int rig_send(struct rig *rig, int32_t group, struct sf_wire_step *step)
{
    step->id = ++rig->next_id[group];
    sf_status status = sf_wire_pack_step(step, &rig->packed);
    SF_CHECK_OK(status);
    if (status != SF_OK) return 0;
    struct sf_envelope envelope = {.group = group, .tag = SF_TAG_STEP};
    status = sf_ring_push(rig->to, envelope, rig->packed.bytes, rig->packed.count, WAIT_MS);
    SF_CHECK_OK(status);
    return status == SF_OK;
}

static void add_report(struct rig *rig)
{
    struct sf_wire_report report;
    sf_status status = sf_wire_unpack_report(rig->taken.bytes, rig->taken.count, &rig->report_box,
                                             &report);
    SF_CHECK_OK(status);
    if (status != SF_OK) return;
    SF_CHECK_INT(report.status, SF_OK);
    for (int32_t i = 0; i < report.receipts; i++) {
        rig->receipts.receipts++;
        rig->receipts.bytes_exact += report.receipt[i].bytes_exact;
        rig->receipts.bytes_stored += report.receipt[i].bytes_stored;
        rig->receipts.slots_evicted += report.receipt[i].slots_evicted;
    }
}

int rig_wait(struct rig *rig, struct sf_wire_result *out)
{
    for (;;) {
        struct sf_envelope envelope;
        sf_status status = sf_ring_pop(rig->from, WAIT_MS, &envelope, &rig->taken);
        SF_CHECK_OK(status);
        if (status != SF_OK) return 0;
        int is_result = envelope.tag == SF_TAG_RESULT;
        if (is_result)
            status = sf_wire_unpack_result(rig->taken.bytes, rig->taken.count, &rig->result_box,
                                           out);
        else
            add_report(rig);
        SF_CHECK_OK(status);
        if (is_result) return status == SF_OK;
    }
}

const struct sf_launch_plan *rig_plan(const struct rig *rig) { return &rig->plan; }
const struct sf_model_desc *rig_desc(const struct rig *rig) { return sf_model_desc(rig->model); }
struct rig_receipts rig_receipts(const struct rig *rig) { return rig->receipts; }

struct sf_worker_stats rig_stats(const struct rig *rig)
{
    struct sf_worker_stats stats;
    sf_worker_stats(rig->rank[0].worker, &stats);
    return stats;
}

/* ---- golden prompts ---- */

static int32_t read_ints(const struct sf_json *array, int32_t **out)
{
    size_t count = sf_json_count(array);
    *out = calloc(count + 1, sizeof **out);
    SF_ASSERT(*out != NULL);
    for (size_t i = 0; i < count; i++) {
        int64_t value = -1;
        sf_json_get_int(sf_json_item(array, i), &value);
        (*out)[i] = (int32_t)value;
    }
    return (int32_t)count;
}

static int32_t read_reals(const struct sf_json *array, double **out)
{
    size_t count = sf_json_count(array);
    *out = calloc(count + 1, sizeof **out);
    SF_ASSERT(*out != NULL);
    for (size_t i = 0; i < count; i++) sf_json_get_real(sf_json_item(array, i), &(*out)[i]);
    return (int32_t)count;
}

int golden_load(const char *name, struct golden *golden)
{
    enum { FILE_MAX = 1 << 20 };
    char path[128];
    snprintf(path, sizeof path, "golden/%s", name);
    memset(golden, 0, sizeof *golden);
    FILE *file = fopen(sf_test_data(path), "rb");
    char *text = malloc(FILE_MAX);
    size_t bytes = file != NULL && text != NULL ? fread(text, 1, FILE_MAX, file) : 0;
    if (file != NULL) fclose(file);
    struct sf_json *root = NULL;
    sf_status status = sf_json_parse(text, bytes, FILE_MAX, &root);
    free(text);
    SF_CHECK_OK(status);
    if (status != SF_OK) return 0;
    const struct sf_json *prompts = sf_json_member(root, "prompts");
    for (size_t i = 0; i < sf_json_count(prompts) && i < 16; i++) {
        const struct sf_json *from = sf_json_item(prompts, i);
        struct golden_prompt *prompt = &golden->prompt[golden->prompts++];
        snprintf(prompt->name, sizeof prompt->name, "%s",
                 sf_json_text(sf_json_member(from, "name"), NULL));
        prompt->ids = read_ints(sf_json_member(from, "ids"), &prompt->id);
        prompt->steps = read_ints(sf_json_member(from, "greedy"), &prompt->greedy);
        read_reals(sf_json_member(from, "margin"), &prompt->margin);
        prompt->tops = read_ints(sf_json_member(from, "top50_ids"), &prompt->top_id);
        read_reals(sf_json_member(from, "top50_logits"), &prompt->top_logit);
    }
    sf_json_free(root);
    return golden->prompts > 0;
}

void golden_free(struct golden *golden)
{
    for (int32_t i = 0; i < golden->prompts; i++) {
        struct golden_prompt *prompt = &golden->prompt[i];
        free(prompt->id);
        free(prompt->greedy);
        free(prompt->margin);
        free(prompt->top_id);
        free(prompt->top_logit);
    }
}
