/* coordinator/manifest_write.c: the manifest of this run (manifest.h). */
#include "coordinator/manifest.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/files.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/sha256.h"
#include "coordinator/idle.h"

enum { PATH_BYTES = 4200 };

static struct sf_json *totals_of(const struct sf_run_summary *sum)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put(&status, o, "records", sf_json_new_int(sum->records));
    sf_json_put(&status, o, "answered", sf_json_new_int(sum->answered));
    sf_json_put(&status, o, "errors", sf_json_new_int(sum->errors));
    sf_json_put(&status, o, "answered_before", sf_json_new_int(sum->answered_before));
    sf_json_put(&status, o, "errors_before", sf_json_new_int(sum->errors_before));
    sf_json_put(&status, o, "prompt_tokens", sf_json_new_int(sum->prompt_tokens));
    sf_json_put(&status, o, "output_tokens", sf_json_new_int(sum->output_tokens));
    sf_json_put(&status, o, "sampled_tokens", sf_json_new_int(sum->sampled_tokens));
    sf_json_put(&status, o, "seconds", sf_json_new_real(sum->seconds));
    sf_json_put(&status, o, "output_tok_s",
        sf_json_new_real(sum->seconds > 0 ? (double)sum->sampled_tokens / sum->seconds : 0.0));
    sf_json_put(&status, o, "kv_bytes_exact", sf_json_new_int(sum->kv_bytes_exact));
    sf_json_put(&status, o, "kv_bytes_stored", sf_json_new_int(sum->kv_bytes_stored));
    sf_json_put(&status, o, "kv_bytes_peak", sf_json_new_int(sum->kv_bytes_peak));
    sf_json_put(&status, o, "slots_evicted", sf_json_new_int(sum->slots_evicted));
    sf_json_put(&status, o, "slots_merged", sf_json_new_int(sum->slots_merged));
    sf_json_put(&status, o, "slots_requantised", sf_json_new_int(sum->slots_requantised));
    sf_json_put(&status, o, "replayed_tokens", sf_json_new_int(sum->replayed_tokens));
    sf_json_put(&status, o, "replay_seconds", sf_json_new_real(sum->replay_seconds));
    sf_json_put(&status, o, "reused_tokens", sf_json_new_int(sum->reused_tokens));
    sf_json_put(&status, o, "preempted", sf_json_new_int(sum->preempted));
    sf_json_put(&status, o, "tightened", sf_json_new_int(sum->tightened));
    sf_json_put(&status, o, "steps", sf_json_new_int(sum->steps));
    sf_json_put(&status, o, "rows", sf_json_new_int(sum->rows));
    sf_json_put(&status, o, "prompt_rows", sf_json_new_int(sum->prompt_rows));
    sf_json_put(&status, o, "batch_max", sf_json_new_int(sum->batch_max));
    if (status == SF_OK) return o;
    sf_json_free(o);
    return NULL;
}

/* One name for each rank, in rank order. */
static struct sf_json *hosts_of(const struct sf_cluster *cluster)
{
    struct sf_json *array = sf_json_new(SF_JSON_ARRAY);
    for (int32_t r = 0; array != NULL && r < cluster->ranks; r++) {
        if (sf_json_append(array, sf_json_new_words(cluster->place[r].host)) == SF_OK) continue;
        sf_json_free(array);
        return NULL;
    }
    return array;
}

/* When the job began, and how often it was resumed, by what is there of it; resumed: and once
 * more. */
static void read_earlier(const char *path, int resumed, int64_t *started_out, int64_t *resumes_out)
{
    struct sf_manifest earlier;
    *started_out = (int64_t)time(NULL);
    *resumes_out = 0;
    if (sf_manifest_read(path, &earlier) != SF_OK) return;
    if (earlier.started > 0) *started_out = earlier.started;
    *resumes_out = earlier.resumes + resumed;
    sf_manifest_free(&earlier);
}

static struct sf_json *digests_of(const struct sf_run_spec *spec)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    char input[65], output[65];
    sf_status status = sf_sha256_file(spec->files.input, input);
    if (status == SF_OK) status = sf_sha256_file(spec->files.output, output);
    if (status == SF_OK) {
        sf_json_put(&status, o, "input_sha256", sf_json_new_words(input));
        sf_json_put(&status, o, "output_sha256", sf_json_new_words(output));
    }
    if (status == SF_OK) return o;
    sf_json_free(o);
    return sf_json_new(SF_JSON_NULL);
}

static void put_config(sf_status *status, struct sf_json *root, const struct sf_config *config)
{
    char hash[24], *text = NULL;
    if (*status == SF_OK) *status = sf_config_text(config, &text);
    if (*status != SF_OK) return;
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)sf_hash64(text, strlen(text)));
    sf_json_put(status, root, "config", sf_json_new_words(text));
    sf_json_put(status, root, "config_hash", sf_json_new_words(hash));
    free(text);
}

static sf_status write_manifest(const struct sf_run_spec *spec, const struct sf_run_summary *sum,
                                int stopped, int resumed)
{
    char path[PATH_BYTES], *text = NULL;
    size_t bytes = 0;
    snprintf(path, sizeof path, "%s.run/manifest.json", spec->files.output);
    int64_t started, resumes;
    read_earlier(path, resumed, &started, &resumes);
    struct sf_json *root = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    int finished = sum != NULL && !stopped;
    sf_json_put(&status, root, "version", sf_json_new_words(SHEAF_VERSION " (git " SHEAF_GIT ")"));
    put_config(&status, root, spec->config);
    sf_json_put(&status, root, "model", sf_json_new_words(spec->config->model.path));
    sf_json_put(&status, root, "model_sha256", sf_json_new_words(spec->model_sha256));
    sf_json_put(&status, root, "ranks", sf_json_new_int(spec->plan->ranks));
    sf_json_put(&status, root, "hosts", hosts_of(spec->cluster));
    sf_json_put(&status, root, "started", sf_json_new_int(started));
    sf_json_put(&status, root, "resumes", sf_json_new_int(resumes));
    sf_json_put(&status, root, "finished", finished ? sf_json_new_int((int64_t)time(NULL))
                                                    : sf_json_new(SF_JSON_NULL));
    if (sum != NULL) sf_json_put(&status, root, "totals", totals_of(sum));
    if (sum != NULL && sum->idle != NULL)
        sf_json_put(&status, root, "methods", sf_idle_json(sum->idle));
    if (finished) sf_json_put(&status, root, "digests", digests_of(spec));
    if (status == SF_OK) status = sf_json_dump(root, 2, &text, &bytes);
    sf_json_free(root);
    SF_TRY(status);
    status = sf_file_replace(path, text, bytes);
    free(text);
    return status;
}

sf_status sf_manifest_folder(const struct sf_run_spec *spec)
{
    char folder[PATH_BYTES];
    snprintf(folder, sizeof folder, "%s.run", spec->files.output);
    if (mkdir(folder, 0777) == 0 || errno == EEXIST) return SF_OK;
    return SF_FAIL(SF_IO, "%s: could not be created: %s", folder, strerror(errno));
}

sf_status sf_manifest_start(const struct sf_run_spec *spec)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s.run/manifest.json", spec->files.output);
    if (!spec->files.resume && unlink(path) != 0 && errno != ENOENT)
        return SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
    return write_manifest(spec, NULL, 0, spec->files.resume);
}

sf_status sf_manifest_finish(const struct sf_run_spec *spec, const struct sf_run_summary *sum,
                             int stopped)
{
    return write_manifest(spec, sum, stopped, 0);
}
