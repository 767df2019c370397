/* base/log.h: one line an event on stderr, lower case, numbers with units.
 *
 * Level by volume: error (a request or the job suffers), warn (slower or odd, goes on), info (a
 * few lines a run), debug (in proportion to objects), trace (in proportion to steps). */
#ifndef SHEAF_BASE_LOG_H
#define SHEAF_BASE_LOG_H
#include "base/status.h"
SF_C_BEGIN

enum sf_log_level { SF_LOG_ERROR, SF_LOG_WARN, SF_LOG_INFO, SF_LOG_DEBUG, SF_LOG_TRACE };

/* Process-wide; set once at start.  json: one JSON object a line instead of text. */
void sf_log_setup(enum sf_log_level level, int json);
/* What was set up: would an event of this level be printed; is the log JSON? */
int  sf_log_shows(enum sf_log_level level);
int  sf_log_is_json(void);
/* This thread's rank, shown as a prefix from then on; -1 (the start value) shows none. */
void sf_log_rank(int rank);
sf_status sf_log_level_parse(const char *name, enum sf_log_level *level_out);

void sf_log(enum sf_log_level level, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

SF_C_END
#endif
