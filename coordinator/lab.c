/* coordinator/lab.c: a trace as a job of one sequence: who holds which heads, what it will cost,
 * and the file that tells what it did cost. */
#include "coordinator/lab.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "coordinator/devices.h"
#include "coordinator/launch.h"
#include "kvshard/account.h"

/* A rank that looks through a trace or attends a long prompt shows no sign of life; one that dies
 * ends the job through its launcher. */
enum { SILENT_MS = 24 * 3600 * 1000 };

/* ---- before ---------------------------------------------------------------------------------- */

static sf_status read_config(struct sf_comm *world, const struct sf_lab_args *args,
                             struct sf_lab_launch *lab)
{
    sf_status status = SF_OK;
    if (sf_comm_rank(world) == 0) status = sf_config_load(args->config, &args->sets, &lab->config);
    return sf_launch_share_config(world, args->config, status, &lab->config);
}

/* A trace has no stages, and there is one of it. */
static sf_status check_layout(const struct sf_config *config, int32_t ranks)
{
    int32_t data = config->parallel.data == SF_OPT_AUTO ? 1 : config->parallel.data;
    if (config->parallel.pipeline != 1 || data != 1)
        return SF_FAIL(SF_INVALID, "lab runs one trace in one stage, but "
                       "parallel.pipeline_parallel_size is %d and data_parallel_size %d; --set "
                       "them to 1", config->parallel.pipeline, data);
    if (config->parallel.tensor != ranks)
        return SF_FAIL(SF_INVALID, "%d ranks, but parallel.tensor_parallel_size is %d; launch %d "
                       "ranks or change it", ranks, config->parallel.tensor,
                       config->parallel.tensor);
    return SF_OK;
}

static sf_status make_setup(struct sf_lab_launch *lab)
{
    const struct sf_model_desc *desc = &lab->trace.desc;
    lab->heads = calloc((size_t)desc->layers, sizeof *lab->heads);
    if (lab->heads == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a rank's heads");
    for (int32_t l = 0; l < desc->layers; l++)
        lab->heads[l] = lab->share.kv_ptr[l + 1] - lab->share.kv_ptr[l];
    SF_TRY(sf_setup_make(desc, lab->share.tp_size, lab->page_slots, lab->trace.rows, &lab->setup));
    lab->setup.kv_dtype = lab->kv_dtype;
    SF_TRY(sf_stack_check(&lab->config.kv.stack, &lab->setup));
    lab->rank = (struct sf_rank){.layer_count = desc->layers, .tp_rank = lab->share.tp_rank,
                                 .heads = lab->heads};
    lab->setup.rank = &lab->rank;
    return SF_OK;
}

/* What the trace takes on rank r. */
/* Heads are dealt by number; what their lanes will store is for the trace to show. */
static struct sf_placing placing_of(const struct sf_lab_launch *lab)
{
    return (struct sf_placing){ .rule = (enum sf_placement)lab->config.parallel.placement };
}

static sf_status cost_of(const struct sf_lab_launch *lab, int32_t r, struct sf_cost *cost_out)
{
    const struct sf_model_desc *desc = &lab->trace.desc;
    struct sf_setup setup = lab->setup;
    struct sf_rank_lanes lanes;
    struct sf_share share;
    setup.rank = NULL;
    const struct sf_placing placing = placing_of(lab);
    SF_TRY(sf_share_make(desc, &placing, lab->share.tp_size, r, 0, desc->layers, &share));
    sf_status status = sf_rank_lanes_make(&share, &lanes);
    if (status == SF_OK)
        status = sf_account_sequence(&setup, &lab->config.kv.stack, &lanes, lab->kv_dtype,
                                     lab->trace.prompt, lab->trace.rows, cost_out);
    sf_rank_lanes_free(&lanes);
    sf_share_free(&share);
    return status;
}

/* The pool is what the account says that a sequence needs at most, as for one in a run. */
static sf_status predict(struct sf_lab_launch *lab)
{
    for (int32_t r = 0; r < lab->share.tp_size; r++) {
        struct sf_cost cost;
        SF_TRY(cost_of(lab, r, &cost));
        lab->predicted_lo += cost.bytes_lo;
        lab->predicted_hi += cost.bytes_hi;
        if (r == lab->share.tp_rank) lab->pool_bytes = cost.bytes_peak;
    }
    int64_t given = lab->config.kv.memory;
    if (given == SF_OPT_AUTO) return SF_OK;
    if (given < lab->pool_bytes)
        return SF_FAIL(SF_INVALID, "kv_cache.memory is %lld bytes per rank, but the trace needs up "
                       "to %lld", (long long)given, (long long)lab->pool_bytes);
    lab->pool_bytes = given;
    return SF_OK;
}

static sf_status plan(struct sf_comm *world, const struct sf_lab_args *args,
                      struct sf_lab_launch *lab)
{
    SF_TRY(sf_isa_limit((enum sf_isa)lab->config.model.isa));
    SF_TRY(check_layout(&lab->config, sf_comm_size(world)));
    SF_TRY(sf_trace_open(args->trace, &lab->trace));
    lab->dtype = (enum sf_dtype)lab->config.model.dtype;
    lab->kv_dtype = sf_plan_kv_dtype(&lab->config);
    lab->page_slots = sf_plan_page_slots(&lab->config, &lab->trace.desc, sf_comm_size(world),
                                         lab->trace.rows);
    const struct sf_placing placing = placing_of(lab);
    SF_TRY(sf_share_make(&lab->trace.desc, &placing, sf_comm_size(world),
                         sf_comm_rank(world), 0, lab->trace.desc.layers, &lab->share));
    SF_TRY(make_setup(lab));
    SF_TRY(predict(lab));
    const char *const read[] = {args->trace, args->config};
    return sf_comm_rank(world) == 0 ? sf_check_output(args->output, read, 2) : SF_OK;
}

static sf_status open_all(struct sf_comm *world, const struct sf_lab_args *args,
                          struct sf_lab_launch *lab)
{
    struct sf_cluster cluster = {0};
    SF_TRY(read_config(world, args, lab));
    sf_comm_set_timeout(world, SILENT_MS);
    sf_status status = sf_launch_look_around(world, &cluster);
    if (status == SF_OK) status = sf_devices_look(world, lab->config.device, &cluster);
    if (status == SF_OK) {
        lab->device = sf_devices_name(lab->config.device, &cluster);
        lab->local_rank = sf_cluster_local_rank(&cluster, sf_comm_rank(world));
        lab->threads = sf_plan_threads(&lab->config, &cluster);
        status = sf_launch_agree(world, plan(world, args, lab));
    }
    sf_cluster_free(&cluster);
    if (status == SF_OK && sf_comm_rank(world) == 0 && lab->trace.unread != NULL) {
        char shown[96];
        sf_st_show_name(lab->trace.unread, shown, sizeof shown);
        sf_log(SF_LOG_WARN, "%s: tensor '%s' means nothing here and is not read", args->trace,
               shown);
    }
    return status;
}

sf_status sf_lab_launch_open(struct sf_comm *world, const struct sf_lab_args *args,
                             struct sf_lab_launch *out)
{
    memset(out, 0, sizeof *out);
    sf_status status = open_all(world, args, out);
    if (status != SF_OK) sf_lab_launch_close(out);
    return status;
}

void sf_lab_launch_close(struct sf_lab_launch *lab)
{
    sf_setup_free(&lab->setup);
    free(lab->heads);
    sf_share_free(&lab->share);
    sf_trace_close(&lab->trace);
    sf_config_free(&lab->config);
    memset(lab, 0, sizeof *lab);
}

/* ---- afterwards ------------------------------------------------------------------------------ */

sf_status sf_lab_write(const struct sf_lab_args *args, const struct sf_lab_launch *lab,
                       const struct sf_trace_result *result, const struct sf_trace_counts *counts)
{
    struct sf_json *stats = sf_json_new(SF_JSON_OBJECT);
    char *text = NULL;
    size_t bytes;
    sf_status status = SF_OK;
    sf_json_put(&status, stats, "bytes_exact", sf_json_new_int(counts->bytes_exact));
    sf_json_put(&status, stats, "bytes_stored", sf_json_new_int(counts->bytes_stored));
    sf_json_put(&status, stats, "bytes_predicted", sf_json_new_int(lab->predicted_lo));
    if (lab->predicted_hi != lab->predicted_lo)
        sf_json_put(&status, stats, "bytes_predicted_hi", sf_json_new_int(lab->predicted_hi));
    sf_json_put(&status, stats, "slots_evicted", sf_json_new_int(counts->slots_evicted));
    sf_json_put(&status, stats, "slots_merged", sf_json_new_int(counts->slots_merged));
    if (status == SF_OK) status = sf_json_dump(stats, 0, &text, &bytes);
    sf_json_free(stats);
    if (status == SF_OK) status = sf_trace_result_write(&lab->trace, result, text, args->output);
    free(text);
    return status;
}
