/* base/status.h: how functions of sheaf fail.
 *
 * Two kinds of failure, never mixed.  The world misbehaves (bad YAML, short file, no memory, lost
 * rank): the function returns a status other than SF_OK.  We misbehave (index past the end): the
 * function asserts, in release builds too.
 *
 * The first function that knows what went wrong words it, once, with SF_FAIL; its callers only
 * pass the status on with SF_TRY.  The wording is kept per thread until the next failure, so that
 * a caller who has to put it somewhere else (an output record, a reply to the coordinator) finds
 * it in sf_error_text(). */
#ifndef SHEAF_BASE_STATUS_H
#define SHEAF_BASE_STATUS_H

#ifdef __cplusplus
#define SF_C_BEGIN extern "C" {
#define SF_C_END }
#else
#define SF_C_BEGIN
#define SF_C_END
#endif

SF_C_BEGIN

typedef enum sf_status {
    SF_OK = 0,
    SF_INVALID,      /* usage, config or input refused: exit code 2 */
    SF_FORMAT,       /* a file or message is not what it should be: exit code 2 before the start */
    SF_UNSUPPORTED,  /* well formed, but not built: exit code 2 before the start */
    SF_IO,           /* a system call on a file failed */
    SF_NO_MEMORY,    /* host or device memory */
    SF_NO_PAGES,     /* the page pool is full */
    SF_TIMEOUT,      /* a wait ran into its deadline */
    SF_LOST,         /* a peer rank is gone */
    SF_STOPPED,      /* asked to stop: not a failure of its own */
    SF_INTERNAL      /* anything else: exit code 1 */
} sf_status;

/* The exit code of interface.md section 5 for a status before the start of a run. */
int sf_status_exit_code(sf_status status);
const char *sf_status_name(sf_status status);

/* Words an error: keeps "text" for sf_error_text() and returns `code`.  Nothing is printed. */
sf_status sf_error_set(sf_status code, const char *file, int line, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 4, 5)))
#endif
    ;
/* The text of this thread's last error; "" if there was none.  Valid until the next one. */
const char *sf_error_text(void);

#ifdef __cplusplus
[[noreturn]]
#else
_Noreturn
#endif
void sf_assert_failed(const char *file, int line, const char *condition);

/* Its value is `code` itself, so that the compiler sees that a constant one is not SF_OK. */
#define SF_FAIL(code, ...) (sf_error_set((code), __FILE__, __LINE__, __VA_ARGS__), (code))
#define SF_TRY(call)                                                                               \
    do {                                                                                           \
        sf_status sf_try_status_ = (call);                                                         \
        if (sf_try_status_ != SF_OK) return sf_try_status_;                                        \
    } while (0)
#define SF_ASSERT(condition)                                                                       \
    do {                                                                                           \
        if (!(condition)) sf_assert_failed(__FILE__, __LINE__, #condition);                        \
    } while (0)

SF_C_END
#endif
