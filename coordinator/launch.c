/* coordinator/launch.c: configuration, model header, cluster and plan, the same on every rank. */
#include "coordinator/launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "coordinator/devices.h"
#include "coordinator/plan_groups.h"

enum { WORDS_BYTES = 1000, CONFIG_TEXT_MAX = 1 << 20,
       DIGEST_MS = 3600 * 1000 };       /* rank 0 reads the whole model, the others wait for it */

sf_status sf_launch_agree(struct sf_comm *world, sf_status mine)
{
    struct verdict { int32_t status; char words[WORDS_BYTES]; } verdict = {.status = (int32_t)mine};
    int32_t ranks = sf_comm_size(world);
    if (mine != SF_OK) snprintf(verdict.words, sizeof verdict.words, "%s", sf_error_text());
    struct verdict *all = calloc((size_t)ranks, sizeof *all);
    if (all == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the answers of %d ranks", ranks);
    sf_status status = sf_comm_allgather(world, &verdict, sizeof verdict, all);
    if (status == SF_OK) {
        const struct verdict *failed = NULL;
        for (int32_t r = 0; r < ranks; r++)     /* SF_STOPPED: only followed another's failure */
            if (all[r].status != SF_OK && (failed == NULL || failed->status == SF_STOPPED))
                failed = &all[r];
        if (failed != NULL) {
            all[failed - all].words[WORDS_BYTES - 1] = '\0';
            int32_t rank = (int32_t)(failed - all);
            status = rank == 0 ? SF_FAIL((sf_status)failed->status, "%s", failed->words)
                               : SF_FAIL((sf_status)failed->status, "rank %d on %s: %s", rank,
                                         sf_comm_host(world, rank), failed->words);
        }
    }
    free(all);
    return status;
}

/* The resolved text of rank 0's configuration, on every rank; malloc'd. */
static sf_status share_text(struct sf_comm *world, char *mine, char **text_out)
{
    int32_t length = mine != NULL ? (int32_t)strlen(mine) : 0;
    sf_status status = sf_comm_bcast(world, 0, &length, sizeof length);
    if (status == SF_OK && (length < 0 || length > CONFIG_TEXT_MAX))
        status = SF_FAIL(SF_FORMAT, "rank 0 sent a configuration of %d bytes", length);
    char *text = status == SF_OK ? calloc(1, (size_t)length + 1) : NULL;
    if (status == SF_OK && text == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for the configuration");
    if (status == SF_OK) {
        if (mine != NULL) memcpy(text, mine, (size_t)length);
        status = sf_comm_bcast(world, 0, text, (size_t)length);
    }
    free(mine);
    if (status != SF_OK) {
        free(text);
        return status;
    }
    *text_out = text;
    return SF_OK;
}

sf_status sf_launch_share_config(struct sf_comm *world, const char *name, sf_status mine,
                                 struct sf_config *config)
{
    char *resolved = NULL, *text = NULL;
    int rank = sf_comm_rank(world);
    sf_status status = mine;
    if (rank == 0 && status == SF_OK) status = sf_config_text(config, &resolved);
    status = sf_launch_agree(world, status);
    if (status != SF_OK) {
        free(resolved);
        return status;
    }
    SF_TRY(share_text(world, resolved, &text));
    if (rank != 0) status = sf_config_parse(name, text, strlen(text), NULL, config);
    free(text);
    return sf_launch_agree(world, status);
}

static sf_status read_config(struct sf_launch *launch, const struct sf_launch_spec *spec)
{
    sf_status status = SF_OK;
    if (sf_comm_rank(launch->world) == 0) {
        status = sf_config_load(spec->config, &spec->sets, &launch->config);
        if (status == SF_OK && launch->config.model.path[0] == '\0')
            status = SF_FAIL(SF_INVALID, "%s: error: model.path is missing", spec->config);
        if (status == SF_OK && spec->files.input != NULL)
            status = sf_run_check(&spec->files, &launch->records);
    }
    return sf_launch_share_config(launch->world, spec->config, status, &launch->config);
}

/* What all ranks see of their nodes, put together: a launcher may have bound each to few cores. */
sf_status sf_launch_look_around(struct sf_comm *world, struct sf_cluster *cluster_out)
{
    int32_t ranks = sf_comm_size(world), rank = sf_comm_rank(world);
    struct sf_rank_facts mine = {0}, *all = calloc((size_t)ranks, sizeof *all);
    sf_status status = sf_rank_facts_make(sf_comm_node(world, rank), sf_comm_host(world, rank),
                                          &mine);
    if (status == SF_OK && all == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for a table of %d ranks", ranks);
    status = sf_launch_agree(world, status);
    if (status == SF_OK) status = sf_comm_allgather(world, &mine, sizeof mine, all);
    if (status == SF_OK) status = sf_cluster_gather(all, ranks, cluster_out);
    free(all);
    return status;
}

/* The cut follows what methods store, and stacks that share their weights need one for all. */
static void take_cut(struct sf_config *config, const struct sf_launch_plan *first)
{
    struct sf_opt_ints *layers = &config->parallel.layers;
    if (layers->count != SF_OPT_AUTO || config->parallel.pipeline != first->pipeline ||
        first->pipeline == 1 || first->pipeline > SF_OPT_INTS_MAX)
        return;
    for (int32_t s = 0; s < first->pipeline; s++)
        layers->value[s] = first->rank[s * first->tensor].share.layer_count;
    layers->count = first->pipeline;
}

static sf_status make_plan(struct sf_launch *launch, const struct sf_launch *first)
{
    if (first != NULL) take_cut(&launch->config, &first->plan);
    SF_TRY(sf_isa_limit((enum sf_isa)launch->config.model.isa));
    SF_TRY(sf_model_open(launch->config.model.path, &launch->model));
    SF_TRY(sf_launch_plan_make(&launch->config, launch->model, &launch->cluster, &launch->plan));
    if (!launch->plan.fits) return SF_FAIL(SF_INVALID, "%s", launch->plan.reason);
    int32_t rank = sf_comm_rank(launch->world);
    launch->me = &launch->plan.rank[rank];
    const struct sf_share *share = &launch->me->share;
    launch->heads = calloc((size_t)share->layer_count, sizeof *launch->heads);
    if (launch->heads == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a rank's heads");
    for (int32_t i = 0; i < share->layer_count; i++)
        launch->heads[i] = share->kv_ptr[i + 1] - share->kv_ptr[i];
    launch->rank = (struct sf_rank){.layer_first = share->layer_first,
                                    .layer_count = share->layer_count,
                                    .tp_rank = share->tp_rank,
                                    .heads = launch->heads};
    launch->setup = launch->plan.setup;
    launch->setup.rank = &launch->rank;
    return SF_OK;
}

static const char *entry_text(const struct sf_stack_entry *entry, const char *key)
{
    const struct sf_opt *row =
        entry->method->opts == NULL ? NULL : sf_opt_find(entry->method->opts, key);
    return row == NULL ? "" : (const char *)entry->cfg + row->offset;
}

/* Rank 0: what was learnt about a model is used with that model only. */
static sf_status check_profiles(struct sf_launch *launch)
{
    const struct sf_stack *stack = &launch->config.kv.stack;
    for (int32_t i = 0; i < stack->entries; i++) {
        const struct sf_stack_entry *entry = &stack->entry[i];
        const char *profile = entry_text(entry, "profile");
        const char *digest = entry_text(entry, "model_sha256");
        if (digest[0] == '\0' && profile[0] != '\0')
            sf_log(SF_LOG_WARN, "%s does not say which model it is of (model_sha256)", profile);
        if (digest[0] == '\0') continue;
        if (launch->model_sha256[0] == '\0')
            SF_TRY(sf_model_sha256(launch->model, launch->model_sha256));
        if (strcmp(digest, launch->model_sha256) != 0)
            return SF_FAIL(SF_INVALID, "method %s: %s is of a model with SHA-256 %.64s, but that of"
                           " %s is %s", entry->method->name,
                           profile[0] != '\0' ? profile : "its profile", digest,
                           launch->config.model.path, launch->model_sha256);
    }
    return SF_OK;
}

/* Rank 0: whether a resume goes on with the job that was begun. */
static sf_status check_job(struct sf_launch *launch, const struct sf_launch_spec *spec)
{
    const struct sf_run_files *files = &spec->files;
    if (files->input != NULL || spec->digest)
        SF_TRY(sf_model_sha256(launch->model, launch->model_sha256));
    SF_TRY(check_profiles(launch));
    if (files->input == NULL || !files->resume) return SF_OK;
    return sf_run_check_same(files, &launch->config, launch->model_sha256);
}

static sf_status open_all(struct sf_launch *launch, const struct sf_launch_spec *spec,
                          const struct sf_launch *first)
{
    struct sf_comm *world = launch->world;
    SF_TRY(read_config(launch, spec));
    sf_comm_set_timeout(world, (int64_t)(launch->config.run.rank_timeout_s * 1000.0));
    SF_TRY(sf_launch_look_around(world, &launch->cluster));
    SF_TRY(sf_devices_look(world, sf_devices_asked(&launch->config, &launch->cluster),
                           &launch->cluster));
    sf_status status = make_plan(launch, first);
    sf_comm_set_timeout(world, DIGEST_MS);
    char slow[SF_SLOW_WORDS];
    if (status == SF_OK && sf_comm_rank(world) == 0 &&
        sf_plan_groups_slow(&launch->plan, &launch->config, slow))
        sf_log(SF_LOG_WARN, "%s", slow);
    if (status == SF_OK && sf_comm_rank(world) == 0) status = check_job(launch, spec);
    SF_TRY(sf_launch_agree(world, status));
    sf_comm_set_timeout(world, (int64_t)(launch->config.run.rank_timeout_s * 1000.0));
    const struct sf_plan_rank *me = launch->me;
    for (int32_t r = 0; r < launch->plan.ranks; r++) {
        char text[64];
        snprintf(text, sizeof text, "stage %d, tensor rank %d", launch->plan.rank[r].stage,
                 launch->plan.rank[r].tp_rank);
        sf_comm_describe(world, r, text);
    }
    SF_TRY(sf_comm_split(world, me->stage + launch->plan.pipeline * me->dp_rank, me->tp_rank,
                         "tensor group", &launch->tensor));
    if (strcmp(launch->plan.device, "cpu") == 0) return SF_OK;
    return sf_comm_split(world, me->tp_rank + launch->plan.tensor * me->dp_rank, me->stage,
                         "stages", &launch->column);
}

sf_status sf_launch_open_beside(struct sf_comm *world, const struct sf_launch_spec *spec,
                                const struct sf_launch *first, struct sf_launch *out)
{
    memset(out, 0, sizeof *out);
    out->world = world;
    sf_status status = open_all(out, spec, first);
    if (status != SF_OK) sf_launch_close(out);
    return status;
}

sf_status sf_launch_open(struct sf_comm *world, const struct sf_launch_spec *spec,
                         struct sf_launch *out)
{
    return sf_launch_open_beside(world, spec, NULL, out);
}

void sf_launch_close(struct sf_launch *launch)
{
    if (launch->column != NULL) sf_comm_destroy(launch->column);
    if (launch->tensor != NULL) sf_comm_destroy(launch->tensor);
    free(launch->heads);
    sf_launch_plan_free(&launch->plan);
    sf_cluster_free(&launch->cluster);
    if (launch->model != NULL) sf_model_close(launch->model);
    sf_config_free(&launch->config);
    memset(launch, 0, sizeof *launch);
}
