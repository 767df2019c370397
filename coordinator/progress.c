/* coordinator/progress.c: a bar for people, lines for logs. */
#include "coordinator/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

enum { BAR_MIN = 4, BAR_MAX = 24 };
static const double line_every_s = 10.0, bar_every_s = 0.2, ask_every_s = 1.0;

void sf_progress_start(struct sf_progress *p, int64_t total, int64_t before)
{
    const char *term = getenv("TERM");
    int dumb = term == NULL || strcmp(term, "dumb") == 0;
    *p = (struct sf_progress){.total = total, .before = before, .started_ns = sf_now_ns(),
                              .shown_ns = sf_now_ns(), .asked_ns = sf_now_ns()};
    p->bar = isatty(STDERR_FILENO) && !dumb && sf_log_shows(SF_LOG_INFO) && !sf_log_is_json();
}

static double ratio_of(int64_t exact, int64_t stored)
{
    return stored > 0 ? (double)exact / (double)stored : 1.0;
}

int sf_progress_asks(struct sf_progress *p)
{
    if (!p->bar && (sf_seconds_since(p->shown_ns) < line_every_s - ask_every_s ||
                    !sf_log_shows(SF_LOG_INFO)))
        return 0;
    if (sf_seconds_since(p->asked_ns) < (p->bar ? ask_every_s : line_every_s / 2)) return 0;
    p->asked_ns = sf_now_ns();
    return 1;
}

/* Puts "[####....] " before the line, as long as the columns have room for, if for one at all. */
static void put_bar(int64_t done, int64_t total, int columns, char line[SF_PROGRESS_BYTES])
{
    int bytes = (int)strlen(line), width = columns - 1 - bytes - 3;
    if (width > BAR_MAX) width = BAR_MAX;
    if (width < BAR_MIN) return;
    memmove(line + width + 3, line, (size_t)bytes + 1);
    for (int i = 0; i < width; i++)
        line[1 + i] = done * width >= (int64_t)(i + 1) * total ? '#' : '.';
    line[0] = '[';
    memcpy(line + 1 + width, "] ", 2);
}

void sf_progress_line(const struct sf_progress *p, const struct sf_run_summary *sum,
                      const struct sf_progress_now *now, double seconds, int columns,
                      char out[SF_PROGRESS_BYTES])
{
    double ratio = now->kv_bytes_stored > 0 ? ratio_of(now->kv_bytes_exact, now->kv_bytes_stored)
                                            : ratio_of(sum->kv_bytes_exact, sum->kv_bytes_stored);
    SF_ASSERT(columns >= 0 && columns <= SF_PROGRESS_BYTES);
    int64_t done = sum->answered + sum->errors;
    char eta[32] = "?";
    if (done > p->before)
        snprintf(eta, sizeof eta, "%.0f",
                 seconds * (double)(p->total - done) / (double)(done - p->before));
    double rate = seconds > 0 ? (double)sum->sampled_tokens / seconds : 0.0;
    int bytes = snprintf(out, SF_PROGRESS_BYTES, "%lld/%lld%s, %d running, %.1f %stok/s, "
                         "KV %.0f %%, ratio %.2f, %s s left", (long long)done,
                         (long long)p->total, p->bar ? "" : " records", now->running, rate,
                         p->bar ? "" : "output ", 100.0 * now->kv_use, ratio, eta);
    if (columns > 1 && bytes >= columns) out[columns - 1] = '\0';
    if (p->bar) put_bar(done, p->total, columns, out);
}

static int columns_of_terminal(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
    return size.ws_col < SF_PROGRESS_BYTES ? size.ws_col : SF_PROGRESS_BYTES;
}

void sf_progress_show(struct sf_progress *p, const struct sf_run_summary *sum,
                      const struct sf_progress_now *now)
{
    if (sf_seconds_since(p->shown_ns) < (p->bar ? bar_every_s : line_every_s)) return;
    p->shown_ns = sf_now_ns();
    char line[SF_PROGRESS_BYTES];
    sf_progress_line(p, sum, now, sf_seconds_since(p->started_ns),
                     p->bar ? columns_of_terminal() : 0, line);
    if (!p->bar) sf_log(SF_LOG_INFO, "%s", line);
    else fprintf(stderr, "\r%s\033[K", line);   /* to the end of the line: what stood there */
}

void sf_progress_clear(struct sf_progress *p)
{
    if (p->bar) fputs("\r\033[K", stderr);
}

void sf_progress_end(struct sf_progress *p, const struct sf_run_summary *sum, int stopped)
{
    sf_progress_clear(p);
    if (stopped)
        sf_log(SF_LOG_INFO, "stopped early, with %lld of %lld records to do: the same command with "
               "--resume goes on", (long long)(p->total - sum->answered - sum->errors),
               (long long)p->total);
    char before[64] = "";
    if (p->before > 0)
        snprintf(before, sizeof before, " (%lld of them before)", (long long)p->before);
    sf_log(SF_LOG_INFO, "%lld records answered, %lld with errors%s, in %.1f s",
           (long long)sum->answered, (long long)sum->errors, before, sum->seconds);
    sf_log(SF_LOG_INFO, "%lld prompt and %lld output tokens, %.1f output tok/s, at most %d at once",
           (long long)sum->prompt_tokens, (long long)sum->output_tokens,
           sum->seconds > 0 ? (double)sum->sampled_tokens / sum->seconds : 0.0, sum->batch_max);
    if (sum->reused_tokens > 0 || sum->preempted > 0)
        sf_log(SF_LOG_INFO, "%lld prompt tokens came from shared beginnings, %lld sequences were "
               "preempted", (long long)sum->reused_tokens, (long long)sum->preempted);
    if (sum->tightened > 0)
        sf_log(SF_LOG_INFO, "memory pressure: caches were tightened %lld times",
               (long long)sum->tightened);
    sf_log(SF_LOG_INFO, "KV cache: %.1f MiB exact, %.1f MiB stored, ratio %.2f, %lld slots evicted",
           (double)sum->kv_bytes_exact / (1 << 20), (double)sum->kv_bytes_stored / (1 << 20),
           ratio_of(sum->kv_bytes_exact, sum->kv_bytes_stored), (long long)sum->slots_evicted);
}
