/* coordinator/run.c: `sheaf run` as a loop: records in (records.c), the engine (engine.h), answers
 * out (answers.c), and what has to be done now and then: the journal, progress, metrics. */
#include "coordinator/run.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/dedup.h"
#include "coordinator/job.h"
#include "coordinator/manifest.h"

enum { LINE_BYTES_MAX = 64 << 20, WAIT_MS = 200, PATH_BYTES = 4096 };
static const double metrics_every_s = 10.0;

/* ---- before the start ------------------------------------------------------------------------ */
/* Makes the output and takes it away again: what stands against that is better known now than
 * after the weights were loaded. */
static sf_status check_fresh(const char *output)
{
    int file = open(output, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file < 0 && errno == EEXIST)
        return SF_FAIL(SF_INVALID, "%s exists already; name another --output, remove it, or go on "
                       "with --resume", output);
    if (file < 0)
        return SF_FAIL(SF_IO, "--output '%s' cannot be created: %s", output, strerror(errno));
    close(file);
    unlink(output);
    return SF_OK;
}

sf_status sf_run_check(const struct sf_run_files *files, int64_t *records_out)
{
    char folder[PATH_BYTES];
    struct stat info;
    if (snprintf(folder, sizeof folder, "%s.run", files->output) >= (int)sizeof folder - 64)
        return SF_FAIL(SF_INVALID, "--output has a path of %zu bytes; at most %d are taken",
                       strlen(files->output), PATH_BYTES - 69);
    if (stat(folder, &info) == 0 && !S_ISDIR(info.st_mode))
        return SF_FAIL(SF_INVALID, "%s: must be a folder, or not be there", folder);
    if (!files->resume) SF_TRY(check_fresh(files->output));
    return sf_dedup_scan(files->input, records_out);
}

sf_status sf_run_check_same(const struct sf_run_files *files, const struct sf_config *config,
                            const char *model_sha256)
{
    char path[PATH_BYTES];
    struct sf_manifest earlier;
    snprintf(path, sizeof path, "%s.run/manifest.json", files->output);
    if (access(path, F_OK) != 0) return SF_OK;  /* nothing is there, or nothing of ours */
    sf_status status = sf_manifest_read(path, &earlier);
    if (status == SF_OK) {
        status = sf_manifest_same_job(&earlier, config, model_sha256);
        sf_manifest_free(&earlier);
    }
    if (status == SF_OK || !files->force) return status;
    sf_log(SF_LOG_WARN, "%s", sf_error_text());
    return SF_OK;
}

/* ---- the loop -------------------------------------------------------------------------------- */
static sf_status show(struct job *job, int last)
{
    struct sf_sched_load load = sf_engine_load(job->engine);
    struct sf_engine_kv kv = sf_engine_kv(job->engine);
    struct sf_engine_counts counts = sf_engine_counts(job->engine);
    job->sum.batch_max = counts.running_max;
    job->sum.steps = counts.steps;
    job->sum.rows = counts.rows;
    job->sum.prompt_rows = counts.prompt_rows;
    job->sum.reused_tokens = load.reused_tokens;
    job->sum.preempted = load.preempted;
    job->sum.tightened = load.tightened;
    job->sum.seconds = sf_seconds_since(job->started_ns);
    struct sf_progress_now now = {.running = load.running, .kv_use = load.kv_busy,
                                  .kv_bytes_stored = kv.bytes_stored,
                                  .kv_bytes_exact = kv.bytes_exact};
    if (!last) sf_progress_show(&job->progress, &job->sum, &now);
    if (!last && sf_progress_asks(&job->progress) && sf_engine_loads(job->engine) != NULL)
        SF_TRY(sf_engine_measure(job->engine, SF_MEASURE_LOAD));
    if (!last && sf_seconds_since(job->measured_ns) < metrics_every_s) return SF_OK;
    job->measured_ns = sf_now_ns();
    sf_metrics_row(job->metrics, &job->sum, &load);
    return SF_OK;
}

static sf_status loop(struct job *job)
{
    double save_every_s = job->spec->config->run.checkpoint_interval_s;
    for (;;) {
        if (!job->draining) SF_TRY(job_read(job));
        int done = job->input_done && job->pending == NULL && sf_engine_idle(job->engine);
        if (done) job->draining = 0;    /* told to stop just as all was done */
        if (done || job->draining) return SF_OK;
        SF_TRY(sf_engine_poll(job->engine, job->behind ? 0 : WAIT_MS));
        if (sf_seconds_since(job->saved_ns) >= save_every_s) SF_TRY(job_save(job));
        SF_TRY(show(job, 0));
    }
}

/* ---- life ------------------------------------------------------------------------------------ */
/* What an earlier run has finished, and OUT and its journal ready to go on. */
static sf_status open_resumed(struct job *job)
{
    const struct sf_run_files *files = &job->spec->files;
    char path[PATH_BYTES];
    struct sf_journal *journal = NULL;
    snprintf(path, sizeof path, "%s.run/journal", files->output);
    SF_TRY(sf_resume_read(files->output, path, &job->resume));
    SF_TRY(sf_resume_begin(job->resume, files->retry_errors, &journal));
    struct sf_resume_counts kept = sf_resume_counts(job->resume);
    struct sf_run_summary *sum = &job->sum;
    sum->answered = sum->answered_before = kept.answered;
    sum->errors = sum->errors_before = kept.errors;
    sum->prompt_tokens = kept.sum[SF_SUM_PROMPT_TOKENS];
    sum->output_tokens = kept.sum[SF_SUM_OUTPUT_TOKENS];
    sum->kv_bytes_exact = kept.sum[SF_SUM_BYTES_EXACT];
    sum->kv_bytes_stored = kept.sum[SF_SUM_BYTES_STORED];
    sum->kv_bytes_peak = kept.sum[SF_SUM_BYTES_PEAK];
    sum->slots_evicted = kept.sum[SF_SUM_EVICTED];
    sum->slots_merged = kept.sum[SF_SUM_MERGED];
    sum->slots_requantised = kept.sum[SF_SUM_REQUANTISED];
    job->edited_before = sum->slots_evicted + sum->slots_merged + sum->slots_requantised;
    if (!sf_resume_is_fresh(job->resume))
        sf_log(SF_LOG_INFO, "resuming: %lld records are finished, %lld of them with errors; %lld "
               "answers go on after %lld tokens", (long long)(kept.answered + kept.errors),
               (long long)kept.errors, (long long)kept.parts, (long long)kept.part_tokens);
    return sf_output_go_on(files->output, kept.output_bytes, journal, &job->output);
}

static sf_status open_job(struct job *job)
{
    const struct sf_run_spec *spec = job->spec;
    const struct sf_launch_plan *plan = spec->plan;
    struct sf_engine_spec engine = {.config = spec->config, .plan = plan,
                                    .to_workers = spec->to_workers,
                                    .from_workers = spec->from_workers,
                                    .events = job_events(job)};
    SF_TRY(sf_idle_make(&plan->setup, &spec->config->kv.stack, &job->idle));
    job->sum.idle = &job->idle;
    SF_TRY(sf_engine_create(&engine, &job->engine));
    job->records = sf_engine_slots(job->engine) + 1;    /* one may be waiting for its choices */
    job->record = calloc((size_t)job->records, sizeof *job->record);
    if (job->record == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d records", job->records);
    for (int32_t r = 0; r < job->records; r++) job_free_record(job, &job->record[r]);
    job->limits = (struct sf_record_limits){.tokenizer = spec->tokenizer,
                                            .vocab = sf_model_desc(spec->model)->vocab,
                                            .tokens_max = plan->tokens_max,
                                            .text_bytes_max = job_text_bytes_max(spec),
                                            .temperature = spec->config->sampling.temperature,
                                            .seed = spec->config->sampling.seed};
    SF_TRY(sf_line_reader_open(spec->files.input, LINE_BYTES_MAX, &job->reader));
    SF_TRY(sf_manifest_folder(spec));
    SF_TRY(spec->files.resume ? open_resumed(job)
                              : sf_output_create(spec->files.output, &job->output));
    SF_TRY(sf_manifest_start(spec));    /* when what is resumed is ours: it may have been forced */
    SF_TRY(sf_emit_open(spec, job->output, &job->emit));
    int go_on = job->resume != NULL && !sf_resume_is_fresh(job->resume);
    SF_TRY(sf_metrics_open(spec->files.output, go_on, &job->metrics));
    job->started_ns = job->saved_ns = job->measured_ns = sf_now_ns();
    sf_progress_start(&job->progress, spec->records,
                      job->sum.answered_before + job->sum.errors_before);
    return SF_OK;
}

static void close_job(struct job *job)
{
    for (int32_t r = 0; job->record != NULL && r < job->records; r++)
        job_free_record(job, &job->record[r]);
    free(job->record);
    sf_engine_destroy(job->engine);
    sf_line_reader_close(job->reader);
    sf_metrics_close(job->metrics);
    sf_emit_close(job->emit);
    sf_output_close(job->output);
    sf_resume_free(job->resume);
    sf_buffer_free(&job->packed);
    sf_idle_free(&job->idle);
}

/* A method that was configured and did nothing is worth a word, unless what an earlier run finished
 * shows that something was changed. */
static void warn_if_idle(const struct job *job)
{
    if (job->edited_before == 0) sf_idle_warn(&job->idle, "records");
}

/* What is half finished is worth keeping, whatever ended the job; what ended it is the news.  A
 * disk that takes no more is not asked again. */
static sf_status finish(struct job *job, sf_status ended)
{
    if (ended == SF_OK) {
        SF_TRY(job_save(job));
        SF_TRY(show(job, 1));
        return sf_manifest_finish(job->spec, &job->sum, job->draining);
    }
    char words[1024];
    snprintf(words, sizeof words, "%s", sf_error_text());
    if (job->started_ns != 0 && ended != SF_IO && job_save(job) != SF_OK)
        sf_log(SF_LOG_WARN, "what is half finished could not be saved: %s", sf_error_text());
    return SF_FAIL(ended, "%s", words);
}

sf_status sf_run(const struct sf_run_spec *spec, struct sf_run_summary *summary_out,
                 int *exit_code_out)
{
    struct job job = {.spec = spec};
    sf_status status = open_job(&job);
    if (status == SF_OK) status = loop(&job);
    status = finish(&job, status);
    char words[1024];
    snprintf(words, sizeof words, "%s", sf_error_text());
    if (status != SF_OK) sf_progress_clear(&job.progress);
    sf_status stopped = sf_engine_stop(spec->to_workers, spec->plan->data);
    if (status == SF_OK) status = stopped;
    if (status == SF_OK) {
        sf_progress_end(&job.progress, &job.sum, job.draining);
        warn_if_idle(&job);
        *summary_out = job.sum;
        summary_out->idle = NULL;
        *exit_code_out = job.draining ? 75 : job.sum.errors > 0 ? 3 : 0;
    }
    close_job(&job);
    return status == SF_OK ? SF_OK : SF_FAIL(status, "%s", words);
}
