/* proto/report.c: struct sf_wire_report to bytes and back; built as step.c is.  A load travels only
 * where one was measured; otherwise it unpacks as zeros. */
#include <math.h>
#include <string.h>

#include "proto/columns.h"
#include "proto/wire.h"
#include "sheaf.pb-c.h"

/* ---- what is which column -------------------------------------------------------------------- */
#define RECEIPT(member) SF_COLUMN(Sf__Report, receipt_##member, struct sf_wire_receipt, member)
static const struct sf_column receipt_columns[] = {
    RECEIPT(seq), RECEIPT(bytes_exact), RECEIPT(bytes_stored), RECEIPT(bytes_peak),
    RECEIPT(slots_evicted), RECEIPT(slots_merged), RECEIPT(slots_requantised),
    RECEIPT(changed)};
static const struct sf_list list[] = {SF_LIST("receipts", receipt_columns, struct sf_wire_receipt,
                                              -1, struct sf_wire_report, receipt, receipts)};
static const struct sf_lists lists = {&sf__report__descriptor, list,
                                      sizeof list / sizeof list[0]};

/* ---- what is allowed ------------------------------------------------------------------------- */
static sf_status load_check(int32_t rank, const struct sf_wire_load *load)
{
    for (int32_t i = 0; i < SF_PHASES; i++)
        if (!isfinite(load->seconds[i]) || load->seconds[i] < 0 ||
            !isfinite(load->decode_seconds[i]) || load->decode_seconds[i] < 0)
            return SF_FAIL(SF_FORMAT, "report of rank %d: %g s in phase %d, %g of them in decode "
                           "steps", rank, load->seconds[i], i, load->decode_seconds[i]);
    if (!isfinite(load->read_rate) || load->read_rate < 0 || !isfinite(load->flop_rate) ||
        load->flop_rate < 0)
        return SF_FAIL(SF_FORMAT, "report of rank %d: %g bytes and %g operations a second", rank,
                       load->read_rate, load->flop_rate);
    if (!isfinite(load->prefill_factor_seconds) || load->prefill_factor_seconds < 0 ||
        !isfinite(load->prefill_factor_wait_seconds) || load->prefill_factor_wait_seconds < 0)
        return SF_FAIL(SF_FORMAT, "report of rank %d: %g s of factors, %g of them waited for",
                       rank, load->prefill_factor_seconds, load->prefill_factor_wait_seconds);
    if (!isfinite(load->step_seconds) || load->step_seconds < 0)
        return SF_FAIL(SF_FORMAT, "report of rank %d: %g s in steps", rank, load->step_seconds);
    if (load->steps < load->decode_steps || load->decode_steps < 0 || load->rows < 0 ||
        load->bytes_sent < 0 || load->rss_peak_bytes < 0 || load->kv_bytes_held < 0)
        return SF_FAIL(SF_FORMAT, "report of rank %d: a load of %lld steps, %lld of them decode, "
                       "%lld rows, %lld bytes sent, %lld resident, %lld of the cache", rank,
                       (long long)load->steps, (long long)load->decode_steps,
                       (long long)load->rows, (long long)load->bytes_sent,
                       (long long)load->rss_peak_bytes, (long long)load->kv_bytes_held);
    return SF_OK;
}

static sf_status report_check(const struct sf_wire_report *report)
{
    if (report->rank < 0 || report->status < SF_OK || report->status > SF_INTERNAL)
        return SF_FAIL(SF_FORMAT, "report of rank %d with status %d", report->rank,
                       report->status);
    if (report->pages_free < 0 || report->pages < report->pages_free)
        return SF_FAIL(SF_FORMAT, "report of rank %d: %lld of %lld pages free", report->rank,
                       (long long)report->pages_free, (long long)report->pages);
    if (report->kv_bytes_stored < 0 || report->kv_bytes_exact < 0)
        return SF_FAIL(SF_FORMAT, "report of rank %d: %lld bytes of the cache stored, of %lld",
                       report->rank, (long long)report->kv_bytes_stored,
                       (long long)report->kv_bytes_exact);
    if (report->signal > SF_WIRE_DUMP || report->measured > 1)
        return SF_FAIL(SF_FORMAT, "report of rank %d with signal %d, measured %d", report->rank,
                       report->signal, report->measured);
    if (report->measured) SF_TRY(load_check(report->rank, &report->load));
    SF_TRY(sf_columns_count_check("receipts", report->receipts));
    for (int32_t i = 0; i < report->receipts; i++) {
        const struct sf_wire_receipt *receipt = &report->receipt[i];
        if (receipt->bytes_exact < 0 || receipt->bytes_stored < 0 || receipt->bytes_peak < 0 ||
            receipt->slots_evicted < 0 || receipt->slots_merged < 0 ||
            receipt->slots_requantised < 0)
            return SF_FAIL(SF_FORMAT, "report of rank %d: receipt of sequence %llu is negative",
                           report->rank, (unsigned long long)receipt->seq);
    }
    return SF_OK;
}

/* ---- both directions ------------------------------------------------------------------------- */
sf_status sf_wire_pack_report(const struct sf_wire_report *report, struct sf_buffer *out)
{
    SF_TRY(report_check(report));
    Sf__Report m = SF__REPORT__INIT;
    struct sf_wire_load load = report->load;
    char text[SF_WIRE_TEXT_MAX + 1];    /* longer words are cut: an error must get through */
    size_t length = report->text != NULL ? strnlen(report->text, SF_WIRE_TEXT_MAX) : 0;
    if (length > 0) memcpy(text, report->text, length);
    text[length] = '\0';
    m.rank = report->rank;
    m.status = report->status;
    m.text = text;
    m.step = report->step;
    m.pages_free = report->pages_free;
    m.pages = report->pages;
    m.kv_bytes_stored = report->kv_bytes_stored;
    m.kv_bytes_exact = report->kv_bytes_exact;
    m.signal = report->signal;
    m.measured = report->measured;
    if (report->measured) {
        m.n_load_seconds = SF_PHASES;
        m.load_seconds = load.seconds;
        m.n_load_decode_seconds = SF_PHASES;
        m.load_decode_seconds = load.decode_seconds;
        m.load_step_seconds = load.step_seconds;
        m.load_steps = load.steps;
        m.load_decode_steps = load.decode_steps;
        m.load_rows = load.rows;
        m.load_bytes_sent = load.bytes_sent;
        m.load_rss_peak_bytes = load.rss_peak_bytes;
        m.load_kv_bytes_held = load.kv_bytes_held;
        m.load_read_rate = load.read_rate;
        m.load_flop_rate = load.flop_rate;
        m.load_prefill_factor_seconds = load.prefill_factor_seconds;
        m.load_prefill_factor_wait_seconds = load.prefill_factor_wait_seconds;
    }
    return sf_columns_pack(&lists, report, &m.base, out);
}

static struct sf_wire_load load_of(const Sf__Report *m)
{
    struct sf_wire_load load = {.step_seconds = m->load_step_seconds,
                                .steps = m->load_steps,
                                .decode_steps = m->load_decode_steps,
                                .rows = m->load_rows,
                                .bytes_sent = m->load_bytes_sent,
                                .rss_peak_bytes = m->load_rss_peak_bytes,
                                .kv_bytes_held = m->load_kv_bytes_held,
                                .read_rate = m->load_read_rate,
                                .flop_rate = m->load_flop_rate,
                                .prefill_factor_seconds = m->load_prefill_factor_seconds,
                                .prefill_factor_wait_seconds =
                                    m->load_prefill_factor_wait_seconds};
    memcpy(load.seconds, m->load_seconds, sizeof load.seconds);
    memcpy(load.decode_seconds, m->load_decode_seconds, sizeof load.decode_seconds);
    return load;
}

sf_status sf_wire_unpack_report(const void *bytes, size_t count, struct sf_box *box,
                                struct sf_wire_report *report_out)
{
    ProtobufCMessage *message;
    SF_TRY(sf_columns_parse(&lists, bytes, count, box, &message));
    const Sf__Report *m = (const Sf__Report *)message;
    struct sf_wire_report report = {.rank = m->rank,
                                    .status = m->status,
                                    .text = m->text,
                                    .step = m->step,
                                    .pages_free = m->pages_free,
                                    .pages = m->pages,
                                    .kv_bytes_stored = m->kv_bytes_stored,
                                    .kv_bytes_exact = m->kv_bytes_exact,
                                    .signal = m->signal > UINT8_MAX ? UINT8_MAX :
                                              (uint8_t)m->signal,
                                    .measured = m->measured != 0};
    if (strlen(m->text) > SF_WIRE_TEXT_MAX)
        return SF_FAIL(SF_FORMAT, "report of rank %d with %zu bytes of words", m->rank,
                       strlen(m->text));
    size_t phases = m->measured ? SF_PHASES : 0;
    if (m->n_load_seconds != phases || m->n_load_decode_seconds != phases)
        return SF_FAIL(SF_FORMAT, "report of rank %d with %zu and %zu phases of a load", m->rank,
                       m->n_load_seconds, m->n_load_decode_seconds);
    if (m->measured) report.load = load_of(m);
    SF_TRY(sf_columns_unpack(&lists, message, box, &report));
    SF_TRY(report_check(&report));
    *report_out = report;
    return SF_OK;
}
