/* worker/report.c: what a rank tells the coordinator beside its samples: receipts of sequences that
 * left, what its time went into, signals that it was sent, and why it failed. */
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/signals.h"
#include "worker/roof.h"
#include "worker/state.h"

static char no_words[] = "";

static struct sf_wire_report begin(const struct sf_worker *w, uint64_t step)
{
    int64_t stored = 0, exact = 0;
    for (int32_t s = 0; s <= w->spec.besides; s++) {
        stored += sf_store_bytes_stored(w->stores[s]);
        exact += sf_store_bytes_exact(w->stores[s]);
    }
    return (struct sf_wire_report){.rank = sf_comm_rank(w->spec.world), .status = SF_OK,
                                   .text = no_words, .step = step,
                                   .pages_free = sf_store_pages_free(w->store),
                                   .pages = sf_store_pages(w->store),
                                   .kv_bytes_stored = stored, .kv_bytes_exact = exact};
}

static sf_status send(struct sf_worker *w, const struct sf_wire_report *report,
                      struct sf_buffer *packed)
{
    SF_TRY(sf_wire_pack_report(report, packed));
    return sf_worker_send(w, SF_TAG_REPORT, packed->bytes, packed->count);
}

sf_status sf_report_receipts(struct sf_worker *w, uint64_t step, struct sf_wire_receipt *receipt,
                             int32_t receipts)
{
    struct sf_wire_report report = begin(w, step);
    report.receipt = receipt;
    report.receipts = receipts;
    return send(w, &report, &w->packed);
}

sf_status sf_report_load(struct sf_worker *w, const struct sf_wire_step *step)
{
    struct sf_roof roof = {0};
    if (step->measure == SF_MEASURE_ROOF) SF_TRY(sf_roof_measure(w, &roof));
    struct sf_wire_report report = begin(w, step->id);
    struct rusage usage;
    struct sf_worker_stats stats;
    sf_worker_stats(w, &stats);
    report.measured = 1;
    report.load = (struct sf_wire_load){.step_seconds = stats.seconds_step, .steps = stats.steps,
                                        .decode_steps = w->decode_steps, .rows = stats.rows,
                                        .bytes_sent = stats.bytes_sent,
                                        .kv_bytes_held = sf_store_bytes_held(w->store),
                                        .read_rate = roof.read_rate,
                                        .flop_rate = roof.flop_rate};
    struct sf_store_seconds store = sf_store_seconds(w->store);
    report.load.prefill_factor_seconds = store.factor - w->decode_factors;
    report.load.prefill_factor_wait_seconds = store.factor_wait - w->decode_factor_wait;
    sf_phases(w, report.load.seconds);
    memcpy(report.load.decode_seconds, w->decode_seconds, sizeof w->decode_seconds);
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        report.load.rss_peak_bytes = (int64_t)usage.ru_maxrss * 1024;
    return send(w, &report, &w->packed);
}

/* May be called inside of a wait, while w->packed is on its way. */
sf_status sf_report_signals(struct sf_worker *w)
{
    int bits = sf_signals_take();
    if (bits == 0) return SF_OK;
    struct sf_wire_report report = begin(w, 0);
    report.signal = SF_WIRE_DUMP;
    if (bits & SF_SIGNALS_DUMP) SF_TRY(send(w, &report, &w->signal_packed));
    report.signal = SF_WIRE_DRAIN;
    return bits & SF_SIGNALS_STOP ? send(w, &report, &w->signal_packed) : SF_OK;
}

void sf_report_failure(struct sf_worker *w, sf_status status, char *words)
{
    struct sf_wire_report report = begin(w, 0);
    report.status = (int32_t)status;
    report.text = words;
    if (send(w, &report, &w->packed) != SF_OK)
        sf_log(SF_LOG_DEBUG, "could not report to rank 0: %s", sf_error_text());
}
