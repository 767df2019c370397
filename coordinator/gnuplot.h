/* coordinator/gnuplot.h: plots by gnuplot, a child process with a deadline. */
#ifndef SHEAF_COORDINATOR_GNUPLOT_H
#define SHEAF_COORDINATOR_GNUPLOT_H
#include <stddef.h>
#include "base/status.h"
SF_C_BEGIN

/* SF_INVALID if no gnuplot is on the PATH: to be asked before anything long begins. */
sf_status sf_gnuplot_find(void);
/* Runs `script` (gnuplot's language, without the user's start files) and gives what it prints;
 * svg_out: malloc'd, with a NUL behind svg_bytes_out bytes.  SF_TIMEOUT: it was killed after
 * timeout_ms.  SF_IO: it failed, with its first words, or printed more than 16 MiB. */
sf_status sf_gnuplot_run(const char *script, size_t bytes, int timeout_ms, char **svg_out,
                         size_t *svg_bytes_out);

SF_C_END
#endif
