/* coordinator/progress.c: a bar for people, lines for logs. */
#include "coordinator/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

enum { BAR = 24 };
static const double line_every_s = 10.0, bar_every_s = 0.2;

void sf_progress_start(struct sf_progress *p, int64_t total)
{
    *p = (struct sf_progress){.total = total,
                              .started_ns = sf_now_ns(),
                              .shown_ns = sf_now_ns(),
                              .terminal = isatty(STDERR_FILENO)};
}

static double ratio_of(const struct sf_run_summary *sum)
{
    return sum->kv_bytes_stored > 0 ? (double)sum->kv_bytes_exact / (double)sum->kv_bytes_stored
                                    : 1.0;
}

void sf_progress_show(struct sf_progress *p, const struct sf_run_summary *sum, int32_t running)
{
    if (sf_seconds_since(p->shown_ns) < (p->terminal ? bar_every_s : line_every_s)) return;
    p->shown_ns = sf_now_ns();
    int64_t done = sum->answered + sum->errors;
    double seconds = sf_seconds_since(p->started_ns);
    double eta = done > 0 ? seconds * (double)(p->total - done) / (double)done : 0.0;
    double rate = seconds > 0 ? (double)sum->output_tokens / seconds : 0.0;
    if (!p->terminal) {
        sf_log(SF_LOG_INFO, "%lld/%lld records, %d running, %.1f output tok/s, KV ratio %.2f, "
               "about %.0f s left", (long long)done, (long long)p->total, running, rate,
               ratio_of(sum), eta);
        return;
    }
    char bar[BAR + 1];
    for (int i = 0; i < BAR; i++)
        bar[i] = p->total > 0 && done * BAR >= (int64_t)(i + 1) * p->total ? '#' : '.';
    bar[BAR] = '\0';
    fprintf(stderr, "\r[%s] %lld/%lld  %d running  %.1f tok/s  KV ratio %.2f  %.0f s left   ", bar,
            (long long)done, (long long)p->total, running, rate, ratio_of(sum), eta);
    fflush(stderr);
}

void sf_progress_end(struct sf_progress *p, const struct sf_run_summary *sum)
{
    if (p->terminal) fputc('\n', stderr);
    sf_log(SF_LOG_INFO, "%lld records answered, %lld with errors, in %.1f s",
           (long long)sum->answered, (long long)sum->errors, sum->seconds);
    sf_log(SF_LOG_INFO, "%lld prompt and %lld output tokens, %.1f output tok/s, at most %d at once",
           (long long)sum->prompt_tokens, (long long)sum->output_tokens,
           sum->seconds > 0 ? (double)sum->output_tokens / sum->seconds : 0.0, sum->batch_max);
    sf_log(SF_LOG_INFO, "KV cache: %.1f MiB exact, %.1f MiB stored, ratio %.2f, %lld slots evicted",
           (double)sum->kv_bytes_exact / (1 << 20), (double)sum->kv_bytes_stored / (1 << 20),
           ratio_of(sum), (long long)sum->slots_evicted);
}
