/* coordinator/eval_html_impl.h: what the files of the page share; inside of eval_html*.c only.
 *
 *   eval_html.c        the object to runs, runs to the page
 *   eval_html_plot.c   runs to gnuplot's script, its SVG to a figure of the page
 *   eval_html_style.c  the page's head and its one style sheet */
#ifndef SHEAF_COORDINATOR_EVAL_HTML_IMPL_H
#define SHEAF_COORDINATOR_EVAL_HTML_IMPL_H
#include <stdint.h>
#include <stdio.h>
#include "base/json.h"
#include "coordinator/eval_html.h"
SF_C_BEGIN

enum { PAGE_NAME = 128 };
struct page_figure { double value, lo, hi; };   /* NaN: not there */
struct page_run {
    const struct sf_json *of;           /* its object; NULL: none */
    char name[PAGE_NAME];               /* "window#2": no two runs are equal */
    char series[PAGE_NAME];             /* "window", "razor_attention + xkv": joined by a line */
    double kv_fraction, kv_fraction_end;
    struct page_figure perplexity, apart, kl_mean, agreement;
};
struct page {
    const struct sf_json *of;
    struct page_run exact, *run;        /* run: owned */
    size_t runs;
};

/* Text with & < > " ' as references, and U+FFFD for control characters but newline and tab. */
void page_text(FILE *out, const char *text);

struct page_plot {                      /* one figure: this of every run against its kv_fraction */
    const char *id, *title, *y_label;
    size_t figure;                      /* offset of a struct page_figure in struct page_run */
    int with_exact;                     /* the exact cache as a horizontal line */
    double y_most;                      /* upper end of the axis; 0: as the data are */
};
/* A <figure>, or nothing where no run has a point to show. */
sf_status page_print_plot(FILE *out, const struct page *, const struct page_plot *);

extern const char page_style[];

SF_C_END
#endif
