/* coordinator/metrics.c: rows of metrics.csv (metrics.h).
 *
 * unix_s        time of the row                 running, waiting    sequences now
 * seconds       since this run's start          kv_use              promised share of the fullest
 * records       read so far, with those                             rank's pages, 0 to 1
 *               that were finished before       kv_bytes_exact/stored   of finished records
 * answered, errors                              reused_tokens       prompt tokens not computed
 * prompt_tokens, output_tokens of those         preempted           sequences that lost their place
 * sampled_tokens  in this run
 * output_tok_s  sampled, since the row before
 */
#include "coordinator/metrics.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"

enum { PATH_BYTES = 4200 };
struct sf_metrics {
    FILE *file;
    char path[PATH_BYTES];
    double seconds;                     /* of the row before */
    int64_t sampled_tokens;
    int failed;
};

sf_status sf_metrics_open(const char *output, int go_on, struct sf_metrics **out)
{
    struct sf_metrics *m = calloc(1, sizeof *m);
    if (m == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for metrics");
    snprintf(m->path, sizeof m->path, "%s.run/metrics.csv", output);
    m->file = fopen(m->path, go_on ? "ae" : "we");
    if (m->file == NULL) {
        sf_status status = SF_FAIL(SF_IO, "%s: %s", m->path, strerror(errno));
        free(m);
        return status;
    }
    fseek(m->file, 0, SEEK_END);
    if (ftell(m->file) == 0)
        fputs("unix_s,seconds,records,answered,errors,prompt_tokens,output_tokens,sampled_tokens,"
              "output_tok_s,running,waiting,kv_use,kv_bytes_exact,kv_bytes_stored,reused_tokens,"
              "preempted\n", m->file);
    *out = m;
    return SF_OK;
}

void sf_metrics_row(struct sf_metrics *m, const struct sf_run_summary *sum,
                    const struct sf_sched_load *load)
{
    double seconds = sum->seconds - m->seconds;
    double rate = seconds > 0 ? (double)(sum->sampled_tokens - m->sampled_tokens) / seconds : 0.0;
    fprintf(m->file, "%lld,%.3f,%lld,%lld,%lld,%lld,%lld,%lld,%.1f,", (long long)time(NULL),
            sum->seconds, (long long)sum->records, (long long)sum->answered,
            (long long)sum->errors, (long long)sum->prompt_tokens, (long long)sum->output_tokens,
            (long long)sum->sampled_tokens, rate);
    fprintf(m->file, "%d,%d,%.4f,%lld,%lld,%lld,%lld\n", load->running, load->waiting,
            load->kv_busy, (long long)sum->kv_bytes_exact, (long long)sum->kv_bytes_stored,
            (long long)load->reused_tokens, (long long)load->preempted);
    m->seconds = sum->seconds;
    m->sampled_tokens = sum->sampled_tokens;
    if (fflush(m->file) == 0 || m->failed) return;
    m->failed = 1;
    sf_log(SF_LOG_WARN, "%s: %s; the run goes on without", m->path, strerror(errno));
    clearerr(m->file);
}

void sf_metrics_close(struct sf_metrics *m)
{
    if (m == NULL) return;
    fclose(m->file);
    free(m);
}
