/* coordinator/eval_html_plot.c: one plot of the page.  gnuplot draws axes, points and intervals;
 * its SVG goes into the page with three changes, all inside of tags or of titles, so that no text
 * of a plot can do harm:
 *
 *   what stands before <svg           left out; <svg gets a role and the name of its title
 *   id='gpPt6', '#gpPt6'              id='p1-gpPt6', '#p1-gpPt6': no two in one page
 *   <title>p1_plot_2</title>          <title>window</title>: seen by screen readers and on hovering
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/eval_html_impl.h"
#include "coordinator/gnuplot.h"

enum { SERIES_MAX = 64, LABEL_CHARS = 48, TIMEOUT_MS = 20000 };
/* Okabe and Ito's colours that keep 3:1 on white and on the dark ground alike, each with another
 * sign and another stroke, so that nothing hangs on colour. */
static const char *const colour[] = {"#D55E00", "#0072B2", "#009E73", "#CC79A7", "#8C6D1F",
                                     "#7A6FD0"};
static const int sign[] = {7, 5, 9, 13, 11, 6, 4, 8, 12, 10};
enum { COLOURS = sizeof colour / sizeof colour[0], SIGNS = sizeof sign / sizeof sign[0] };

struct series {                         /* runs of one stack of methods, by rising kv_fraction */
    const struct page_run *run[SERIES_MAX];
    size_t runs;
};

static const struct page_figure *figure_of(const struct page_run *run, const struct page_plot *plot)
{
    return (const struct page_figure *)(const void *)((const char *)run + plot->figure);
}

static int has_point(const struct page_run *run, const struct page_plot *plot)
{
    return isfinite(figure_of(run, plot)->value) && run->kv_fraction > 0 &&
           isfinite(run->kv_fraction);
}

/* Those with a point; what is past SERIES_MAX stands in the table alone. */
static size_t collect(const struct page *page, const struct page_plot *plot,
                      struct series series[SERIES_MAX])
{
    size_t count = 0;
    for (size_t i = 0; i < page->runs; i++) {
        const struct page_run *run = &page->run[i];
        size_t s = 0, at;
        if (!has_point(run, plot)) continue;
        while (s < count && strcmp(series[s].run[0]->series, run->series) != 0) s++;
        if (s == SERIES_MAX || (s < count && series[s].runs == SERIES_MAX)) continue;
        if (s == count) series[count++].runs = 0;
        for (at = series[s].runs; at > 0; at--) {
            if (series[s].run[at - 1]->kv_fraction <= run->kv_fraction) break;
            series[s].run[at] = series[s].run[at - 1];
        }
        series[s].run[at] = run;
        series[s].runs++;
    }
    return count;
}

/* In gnuplot's single quotes: nothing is special there but the quote.  Cut after some
 * characters. */
static void quoted(FILE *out, const char *text)
{
    int chars = 0;
    fputc('\'', out);
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;
        if ((byte & 0xc0) != 0x80 && chars++ == LABEL_CHARS) break;     /* a character begins */
        if (byte == '\'') fputs("''", out);
        else fputc(byte < ' ' || byte == 0x7f || byte == '`' ? ' ' : byte, out);
    }
    fputs(*text != '\0' ? "...'" : "'", out);
}

static void print_point(FILE *out, const struct page_run *run, const struct page_plot *plot)
{
    const struct page_figure *f = figure_of(run, plot);
    double lo = isfinite(f->lo) ? f->lo : f->value, hi = isfinite(f->hi) ? f->hi : f->value;
    fprintf(out, "%.17g %.17g %.17g %.17g\n", run->kv_fraction, f->value, lo, hi);
}

static void print_axes(FILE *out, const struct page_plot *plot, double least, double most)
{
    fprintf(out, "set encoding utf8\nset terminal svg size 860,460 dynamic noenhanced "
            "font 'sans-serif,15' linewidth 1.5 name '%s'\n", plot->id);
    fputs("set logscale x 2\nset samples 2\nset border 3\nset tics nomirror\n"
          "set grid linetype 1 linecolor 'gray' linewidth 0.5\n"
          "set key outside center bottom horizontal Left reverse height 1\n"
          "set xlabel 'KV bytes stored / exact, at the end of the prompts'\nset xtics (1", out);
    for (int part = 2; part <= 256; part *= 2)
        fprintf(out, ", '1/%d' %.17g", part, 1.0 / part);
    fprintf(out, ")\nset xrange [%.17g:%.17g]\nset ylabel ", least / 1.2,
            (most > 1 ? most : 1) * 1.1);
    quoted(out, plot->y_label);
    fputc('\n', out);
    if (plot->y_most > 0) fprintf(out, "set yrange [*:%.17g]\n", plot->y_most);
}

static sf_status script_of(const struct page *page, const struct page_plot *plot,
                           const struct series *series, size_t count, char **text_out,
                           size_t *bytes_out)
{
    double least = 1, most = 0;
    FILE *out = open_memstream(text_out, bytes_out);
    if (out == NULL) return SF_FAIL(SF_NO_MEMORY, "a plot's script");
    for (size_t s = 0; s < count; s++) {
        fprintf(out, "$s%zu << END_OF_SERIES\n", s);
        for (size_t i = 0; i < series[s].runs; i++) {
            print_point(out, series[s].run[i], plot);
            least = fmin(least, series[s].run[i]->kv_fraction);
            most = fmax(most, series[s].run[i]->kv_fraction);
        }
        fputs("END_OF_SERIES\n", out);
    }
    print_axes(out, plot, least, most);
    fputs("plot ", out);
    if (plot->with_exact)
        fprintf(out, "%.17g title 'exact' with lines dashtype 2 linecolor 'black', ",
                figure_of(&page->exact, plot)->value);
    for (size_t s = 0; s < count; s++) {
        fprintf(out, "%s$s%zu using 1:2:3:4 title ", s == 0 ? "" : ", ", s);
        quoted(out, series[s].run[0]->series);
        fprintf(out, " with yerrorlines linecolor '%s' pointtype %d dashtype %zu",
                colour[s % COLOURS], sign[s % SIGNS], 1 + s / COLOURS);
    }
    fputc('\n', out);
    int failed = ferror(out);
    if (fclose(out) != 0 || failed) return SF_FAIL(SF_NO_MEMORY, "a plot's script");
    return SF_OK;
}

/* ---- SVG into HTML --------------------------------------------------------------------------- */
/* One tag, from its '<' to behind its '>', with the plot's name before each id. */
static const char *print_tag(FILE *out, const char *tag, const char *id)
{
    static const char names[] = " id=";
    enum { NAMES = sizeof names - 1 };
    const char *at = tag;
    for (; *at != '\0' && *at != '>'; at++) {
        fputc(*at, out);
        int quote = *at == '\'' || *at == '"';
        if (quote && at - tag >= NAMES && strncmp(at - NAMES, names, NAMES) == 0)
            fprintf(out, "%s-", id);
        else if (*at == '#' && (at[-1] == '\'' || at[-1] == '"'))
            fprintf(out, "%s-", id);
    }
    if (*at == '>') fputc(*at++, out);
    return at;
}

/* What stands in the n-th <title> of gnuplot's: the plot's own, then one a curve. */
static void print_title(FILE *out, const struct page_plot *plot, const struct series *series,
                        size_t count, size_t number)
{
    size_t exact = plot->with_exact ? 1 : 0;
    if (number == 0) page_text(out, plot->title);
    else if (number == 1 && exact) fputs("exact", out);
    else if (number - 1 - exact < count) page_text(out, series[number - 1 - exact].run[0]->series);
}

static sf_status print_svg(FILE *out, const char *svg, const struct page_plot *plot,
                           const struct series *series, size_t count)
{
    const char *at = strstr(svg, "<svg"), *id = plot->id;
    size_t titles = 0;
    if (at == NULL || strstr(at, "</svg>") == NULL)
        return SF_FAIL(SF_IO, "gnuplot printed no SVG; it may be built without that terminal");
    fprintf(out, "<svg role=\"img\" aria-labelledby=\"%s-title\"", id);
    at += strlen("<svg");
    while (*at != '\0') {
        if (strncmp(at, "<title>", 7) == 0) {
            if (titles == 0) fprintf(out, "<title id=\"%s-title\">", id);
            else fputs("<title>", out);
            print_title(out, plot, series, count, titles++);
            at += strcspn(at + 1, "<") + 1;
        } else if (*at == '<') {
            at = print_tag(out, at, id);
        } else {
            fputc(*at++, out);
        }
    }
    return SF_OK;
}

sf_status page_print_plot(FILE *out, const struct page *page, const struct page_plot *plot)
{
    struct series *series = malloc(SERIES_MAX * sizeof *series);
    char *script = NULL, *svg = NULL;
    size_t script_bytes = 0, svg_bytes = 0;
    if (series == NULL) return SF_FAIL(SF_NO_MEMORY, "a plot's curves");
    size_t count = collect(page, plot, series);
    if (count == 0) {
        free(series);
        return SF_OK;
    }
    sf_status status = script_of(page, plot, series, count, &script, &script_bytes);
    if (status == SF_OK)
        status = sf_gnuplot_run(script, script_bytes, TIMEOUT_MS, &svg, &svg_bytes);
    if (status == SF_OK) {
        fputs("<figure>\n", out);
        status = print_svg(out, svg, plot, series, count);
        fputs("<figcaption>", out);
        page_text(out, plot->title);
        fputs("</figcaption>\n</figure>\n", out);
    }
    free(svg);
    free(script);
    free(series);
    return status;
}
