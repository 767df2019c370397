/* coordinator/eval_html.c: the page of `sheaf eval --html` (eval_html.h).
 *
 *   what was fed   plots   numbers, a row a run   needles, a table a run   machine, configurations
 *
 * It knows the evaluation by its JSON alone, so what it shows is what the file holds.  Nothing in
 * it is fetched from elsewhere, and it has no script. */
#include "coordinator/eval_html.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "coordinator/eval_html_impl.h"
#include "coordinator/gnuplot.h"

sf_status sf_eval_html_check(void) { return sf_gnuplot_find(); }

/* ---- reading --------------------------------------------------------------------------------- */
static double real_of(const struct sf_json *object, const char *key)
{
    double value;
    return sf_json_get_real(sf_json_member(object, key), &value) ? value : NAN;
}

/* "" where there is no such text. */
static const char *text_of(const struct sf_json *object, const char *key)
{
    const char *text = sf_json_text(sf_json_member(object, key), NULL);
    return text == NULL ? "" : text;
}

/* "perplexity": 20.1, "perplexity_ci": [18.2, 22.4] */
static struct page_figure figure_of(const struct sf_json *object, const char *key)
{
    struct page_figure figure = {real_of(object, key), NAN, NAN};
    char name[40];
    snprintf(name, sizeof name, "%s_ci", key);
    const struct sf_json *ends = sf_json_member(object, name);
    double lo, hi;
    if (sf_json_get_real(sf_json_item(ends, 0), &lo) &&
        sf_json_get_real(sf_json_item(ends, 1), &hi)) {
        figure.lo = lo;
        figure.hi = hi;
    }
    return figure;
}

/* "exact", "window", "razor_attention + xkv". */
static void series_of(const struct sf_json *run, char name[PAGE_NAME])
{
    const struct sf_json *methods = sf_json_member(run, "methods");
    size_t used = 0;
    snprintf(name, PAGE_NAME, "%s", "exact");
    for (size_t i = 0; i < sf_json_count(methods) && used < PAGE_NAME; i++) {
        const char *method = sf_json_text(sf_json_item(methods, i), NULL);
        used += (size_t)snprintf(name + used, PAGE_NAME - used, "%s%s", i == 0 ? "" : " + ",
                                 method == NULL ? "?" : method);
    }
}

static void read_run(const struct sf_json *of, struct page_run *run)
{
    const char *stack = text_of(of, "stack");
    *run = (struct page_run){.of = of};
    series_of(of, run->series);
    snprintf(run->name, sizeof run->name, "%s", *stack == '\0' ? run->series : stack);
    run->kv_fraction = real_of(of, "kv_fraction");
    run->kv_fraction_end = real_of(of, "kv_fraction_end");
    run->perplexity = figure_of(of, "perplexity");
    run->apart = figure_of(of, "log_ppl_diff");
    run->kl_mean = figure_of(of, "kl_mean");
    run->agreement = figure_of(of, "top1_agreement");
}

static sf_status read_page(const struct sf_json *measured, struct page *page)
{
    const struct sf_json *runs = sf_json_member(measured, "runs");
    if (runs == NULL || sf_json_type(runs) != SF_JSON_ARRAY)
        return SF_FAIL(SF_FORMAT, "no evaluation: it has no list of runs");
    *page = (struct page){.of = measured, .runs = sf_json_count(runs)};
    read_run(sf_json_member(measured, "exact"), &page->exact);
    page->run = calloc(page->runs + 1, sizeof *page->run);
    if (page->run == NULL) return SF_FAIL(SF_NO_MEMORY, "%zu runs of a page", page->runs);
    for (size_t i = 0; i < page->runs; i++) read_run(sf_json_item(runs, i), &page->run[i]);
    return SF_OK;
}

/* ---- writing --------------------------------------------------------------------------------- */
void page_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;
        switch (byte) {
        case '&': fputs("&amp;", out); break;
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '"': fputs("&quot;", out); break;
        case '\'': fputs("&#39;", out); break;
        default:
            if ((byte < ' ' && byte != '\n' && byte != '\t') || byte == 0x7f)
                fputs("\xef\xbf\xbd", out);
            else fputc(byte, out);
        }
    }
}

/* Any value in a word or a few: a text, a number, items one after the other. */
static void print_value(FILE *out, const struct sf_json *value)
{
    const char *text = sf_json_text(value, NULL);
    double number;
    if (text != NULL) page_text(out, text);
    else if (sf_json_get_real(value, &number)) fprintf(out, "%.12g", number);
    else if (value == NULL || sf_json_type(value) == SF_JSON_NULL) fputs("&ndash;", out);
    else if (sf_json_type(value) == SF_JSON_TRUE) fputs("yes", out);
    else if (sf_json_type(value) == SF_JSON_FALSE) fputs("no", out);
    else if (sf_json_type(value) == SF_JSON_ARRAY)
        for (size_t i = 0; i < sf_json_count(value); i++) {
            if (i > 0) fputs(", ", out);
            print_value(out, sf_json_item(value, i));
        }
    else page_text(out, sf_json_type_name(value));
}

static void print_pair(FILE *out, const char *name, const struct sf_json *value)
{
    fputs("<dt>", out);
    page_text(out, name);
    fputs("</dt><dd>", out);
    print_value(out, value);
    fputs("</dd>\n", out);
}

/* interval: there should be one, which a figure of a single unit has not. */
static void print_cell(FILE *out, const char *format, const struct page_figure *figure,
                       int interval)
{
    char value[40], lo[40], hi[40];
    if (!isfinite(figure->value)) {
        fputs("<td>&ndash;</td>", out);
        return;
    }
    snprintf(value, sizeof value, format, figure->value);
    fprintf(out, "<td>%s", value);
    if (isfinite(figure->lo) && isfinite(figure->hi)) {
        snprintf(lo, sizeof lo, format, figure->lo);
        snprintf(hi, sizeof hi, format, figure->hi);
        fprintf(out, "<small>%s to %s</small>", lo, hi);
    } else if (interval) {
        fputs("<small>&ndash;</small>", out);
    }
    fputs("</td>", out);
}

/* ---- parts of the page ----------------------------------------------------------------------- */
static void print_head(FILE *out, const struct page *page)
{
    const struct sf_json *of = page->of, *sequences = sf_json_member(page->exact.of, "sequences");
    fprintf(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
            "<title>sheaf eval: quality against the exact cache</title>\n<style>\n%s</style>\n"
            "</head>\n<body>\n<main>\n<h1>Quality against the exact cache</h1>\n<p>Model ",
            page_style);
    print_value(out, sf_json_member(of, "model"));
    if (sf_json_count(sequences) > 0) {
        fprintf(out, "; sequences of text: %zu; tokens scored: ", sf_json_count(sequences));
        print_value(out, sf_json_member(page->exact.of, "tokens"));
    }
    fputs(".</p>\n<p class=\"note\">Each stack of methods and the exact cache were fed the same "
          "tokens: a prompt, compressed as in a run, then the text as it stands, token by token. "
          "Bars and the smaller figures are 95&nbsp;% intervals", out);
    if (sf_json_member(of, "intervals") != NULL) {
        fputs(" (texts: ", out);
        print_value(out, sf_json_member(sf_json_member(of, "intervals"), "method"));
        fputs(" over ", out);
        print_value(out, sf_json_member(sf_json_member(of, "intervals"), "resampled"));
        fputs("; needles: ", out);
        print_value(out, sf_json_member(sf_json_member(of, "intervals"), "needle_method"));
        fputs(")", out);
    }
    fputs(".</p>\n", out);
}

static sf_status print_plots(FILE *out, const struct page *page)
{
    static const struct page_plot plots[] = {
        {"p1", "Perplexity of the text after the prompt; lower is better", "perplexity",
         offsetof(struct page_run, perplexity), 1, 0},
        {"p2", "Divergence from the exact cache's predictions; lower is better",
         "mean KL divergence, nat", offsetof(struct page_run, kl_mean), 0, 0},
        {"p3", "How often both find the same token the likeliest; higher is better",
         "top-1 agreement", offsetof(struct page_run, agreement), 0, 1}};
    if (!isfinite(page->exact.perplexity.value)) return SF_OK;
    fputs("<h2>Plots</h2>\n", out);
    for (size_t i = 0; i < sizeof plots / sizeof plots[0]; i++)
        SF_TRY(page_print_plot(out, page, &plots[i]));
    return SF_OK;
}

static void print_numbers_of(FILE *out, const struct page_run *run)
{
    const struct page_figure fraction = {run->kv_fraction, NAN, NAN};
    const struct page_figure fraction_end = {run->kv_fraction_end, NAN, NAN};
    fputs("<tr><th scope=\"row\">", out);
    page_text(out, run->name);
    fputs("</th>", out);
    print_cell(out, "%.4f", &fraction, 0);
    print_cell(out, "%.4f", &fraction_end, 0);
    print_cell(out, "%.3f", &run->perplexity, 1);
    print_cell(out, "%+.4f", &run->apart, 1);
    print_cell(out, "%.4f", &run->kl_mean, 1);
    print_cell(out, "%.4f", &run->agreement, 1);
    fputs("</tr>\n", out);
}

static void print_numbers(FILE *out, const struct page *page)
{
    fputs("<h2>Numbers</h2>\n<div class=\"wide\"><table>\n<caption>KV fraction: bytes stored / "
          "exact, at the end of the prompts and of the texts; ln ppl: logarithm of the perplexity, "
          "less that of the exact cache</caption>\n<thead><tr><th scope=\"col\" class=\"word\">"
          "stack</th><th scope=\"col\">KV fraction</th><th scope=\"col\">at the end</th>"
          "<th scope=\"col\">perplexity</th><th scope=\"col\">ln ppl to exact</th>"
          "<th scope=\"col\">mean KL, nat</th><th scope=\"col\">top-1 agreement</th></tr>"
          "</thead>\n<tbody>\n", out);
    print_numbers_of(out, &page->exact);
    for (size_t i = 0; i < page->runs; i++) print_numbers_of(out, &page->run[i]);
    fputs("</tbody></table></div>\n", out);
}

static void print_where(FILE *out, const struct page *page)
{
    static const char *const keys[] = {"version", "text", "tokens", "filler", "duration_s"};
    const struct sf_json *machine = sf_json_member(page->of, "machine"), *value;
    fputs("<h2>Where and how</h2>\n<dl>\n", out);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        print_pair(out, keys[i], sf_json_member(page->of, keys[i]));
    for (const char *key = sf_json_next(machine, NULL, &value); key != NULL;
         key = sf_json_next(machine, key, &value))
        print_pair(out, key, value);
    fputs("</dl>\n", out);
}

static void print_config(FILE *out, const struct page *page, const struct page_run *run)
{
    const char *text = text_of(sf_json_member(page->of, "config"), run->name);
    fputs("<h3>", out);
    page_text(out, run->name);
    fputs("</h3>\n<p>", out);
    print_value(out, sf_json_member(run->of, "config_file"));
    fprintf(out, ", resolved <code>%016llx</code></p>\n<details><summary>resolved configuration"
            "</summary><pre>", (unsigned long long)sf_hash64(text, strlen(text)));
    page_text(out, text);
    fputs("</pre></details>\n", out);
}

/* ---- needles --------------------------------------------------------------------------------- */
static int64_t count_of(const struct sf_json *object, const char *key)
{
    int64_t value;
    return sf_json_get_int(sf_json_member(object, key), &value) ? value : -1;
}

/* Its place among the different numbers of one key of the cells, in the order they come. */
enum { CELLS_MAX = 4096, AXIS_MAX = 64 };
struct axis { int64_t value[AXIS_MAX]; size_t count; };

static void add_place(struct axis *axis, int64_t value)
{
    for (size_t i = 0; i < axis->count; i++)
        if (axis->value[i] == value) return;
    if (axis->count < AXIS_MAX) axis->value[axis->count++] = value;
}

static void print_heat(FILE *out, const struct sf_json *cell)
{
    double recall = real_of(cell, "recall");
    if (!isfinite(recall)) {
        fputs("<td>&ndash;</td>", out);
        return;
    }
    /* At most half covered, so that the page's ink can be read on it. */
    fprintf(out, "<td class=\"heat\" style=\"background: rgba(var(--fill), %.2f)\">%.0f&nbsp;%%"
            "<small>%lld of %lld</small></td>", 0.5 * fmin(fmax(recall, 0), 1), 100 * recall,
            (long long)count_of(cell, "hits"), (long long)count_of(cell, "trials"));
}

static const struct sf_json *cell_at(const struct sf_json *cells, int64_t length, int64_t depth)
{
    for (size_t i = 0; i < sf_json_count(cells); i++) {
        const struct sf_json *cell = sf_json_item(cells, i);
        if (count_of(cell, "length") == length && count_of(cell, "depth") == depth) return cell;
    }
    return NULL;
}

static void print_recall(FILE *out, const struct page_run *run)
{
    const struct sf_json *recall = sf_json_member(run->of, "needle_recall");
    const struct sf_json *cells = sf_json_member(recall, "cells");
    struct axis lengths = {.count = 0}, depths = {.count = 0};
    if (sf_json_count(cells) == 0 || sf_json_count(cells) > CELLS_MAX) return;
    for (size_t i = 0; i < sf_json_count(cells); i++) {
        add_place(&lengths, count_of(sf_json_item(cells, i), "length"));
        add_place(&depths, count_of(sf_json_item(cells, i), "depth"));
    }
    const struct sf_json *ends = sf_json_member(recall, "ci");
    double lo, hi;
    fputs("<div class=\"wide\"><table>\n<caption>", out);
    page_text(out, run->name);
    fprintf(out, ": %.1f&nbsp;%% of %lld found", 100 * real_of(recall, "recall"),
            (long long)count_of(recall, "trials"));
    if (sf_json_get_real(sf_json_item(ends, 0), &lo) &&
        sf_json_get_real(sf_json_item(ends, 1), &hi))
        fprintf(out, " (%.1f to %.1f&nbsp;%%)", 100 * lo, 100 * hi);
    fputs("</caption>\n<thead><tr><th scope=\"col\" class=\"word\">tokens of the prompt</th>",
          out);
    for (size_t d = 0; d < depths.count; d++)
        fprintf(out, "<th scope=\"col\">depth %lld&nbsp;%%</th>", (long long)depths.value[d]);
    fputs("</tr></thead>\n<tbody>\n", out);
    for (size_t l = 0; l < lengths.count; l++) {
        fprintf(out, "<tr><th scope=\"row\">%lld</th>", (long long)lengths.value[l]);
        for (size_t d = 0; d < depths.count; d++)
            print_heat(out, cell_at(cells, lengths.value[l], depths.value[d]));
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table></div>\n", out);
}

static void print_needles(FILE *out, const struct page *page)
{
    const struct sf_json *recall = sf_json_member(page->exact.of, "needle_recall");
    if (sf_json_count(sf_json_member(recall, "cells")) == 0) return;
    fputs("<h2>Needles</h2>\n<p>A number hidden in filler text and asked for at its end; found "
          "where greedy decoding would write it.</p>\n", out);
    print_recall(out, &page->exact);
    for (size_t i = 0; i < page->runs; i++) print_recall(out, &page->run[i]);
}

/* ---- all of it ------------------------------------------------------------------------------- */
static sf_status print_page(FILE *out, const struct page *page)
{
    print_head(out, page);
    SF_TRY(print_plots(out, page));
    print_numbers(out, page);
    print_needles(out, page);
    print_where(out, page);
    fputs("<h2>Configurations</h2>\n", out);
    print_config(out, page, &page->exact);
    for (size_t i = 0; i < page->runs; i++) print_config(out, page, &page->run[i]);
    fputs("</main>\n</body>\n</html>\n", out);
    return SF_OK;
}

sf_status sf_eval_html(const struct sf_json *measured, char **page_out, size_t *bytes_out)
{
    struct page page = {.of = measured};
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) return SF_FAIL(SF_NO_MEMORY, "a page");
    sf_status status = read_page(measured, &page);
    if (status == SF_OK) status = print_page(out, &page);
    int failed = ferror(out);
    if ((fclose(out) != 0 || failed) && status == SF_OK) status = SF_FAIL(SF_NO_MEMORY, "a page");
    free(page.run);
    if (status != SF_OK) {
        free(text);
        return status;
    }
    *page_out = text;
    *bytes_out = bytes;
    return SF_OK;
}
