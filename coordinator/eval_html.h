/* coordinator/eval_html.h: the page of `sheaf eval --html`: plots and tables in one file, from the
 * JSON object of interface.md section 9 alone. */
#ifndef SHEAF_COORDINATOR_EVAL_HTML_H
#define SHEAF_COORDINATOR_EVAL_HTML_H
#include <stddef.h>
#include "base/json.h"
#include "base/status.h"
SF_C_BEGIN

/* SF_INVALID if the page could not be made here: no gnuplot.  Asked before the evaluation. */
sf_status sf_eval_html_check(void);
/* measured: what eval_json wrote, parsed.  What is missing in it is left out of the page or shown
 * as a dash; SF_FORMAT if it is no such object at all.  page_out: malloc'd, UTF-8. */
sf_status sf_eval_html(const struct sf_json *measured, char **page_out, size_t *bytes_out);

SF_C_END
#endif
