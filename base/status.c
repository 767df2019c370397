/* base/status.c: the words of the last error, per thread. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { TEXT_BYTES = 1024 };

static _Thread_local char last_text[TEXT_BYTES];

sf_status sf_error_set(sf_status code, const char *file, int line, const char *format, ...)
{
    (void)file;
    (void)line;
    char text[TEXT_BYTES];          /* the arguments may point into last_text */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(last_text, sizeof last_text, "%s", text);
    return code;
}

const char *sf_error_text(void)
{
    return last_text;
}

const char *sf_status_name(sf_status status)
{
    switch (status) {
    case SF_OK: return "ok";
    case SF_INVALID: return "invalid";
    case SF_FORMAT: return "bad format";
    case SF_UNSUPPORTED: return "not supported";
    case SF_IO: return "input/output error";
    case SF_NO_MEMORY: return "out of memory";
    case SF_NO_PAGES: return "out of pages";
    case SF_TIMEOUT: return "timed out";
    case SF_LOST: return "rank lost";
    case SF_STOPPED: return "stopped";
    case SF_INTERNAL: break;
    }
    return "internal error";
}

int sf_status_exit_code(sf_status status)
{
    switch (status) {
    case SF_OK: return 0;
    case SF_INVALID:
    case SF_FORMAT:
    case SF_UNSUPPORTED:
    case SF_IO:
    case SF_NO_MEMORY:
    case SF_NO_PAGES: return 2;
    case SF_STOPPED: return 75;
    case SF_TIMEOUT:
    case SF_LOST:
    case SF_INTERNAL: break;
    }
    return 1;
}

void sf_assert_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "sheaf: error: assertion failed at %s:%d: %s\n", file, line, condition);
    fflush(stderr);
    abort();
}
