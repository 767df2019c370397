/* coordinator/commands.h: the subcommands that need neither ranks nor weights, the command lines of
 * those that do (main.c runs them), and the words that all subcommands have for a mistake.  argv[0]
 * is the subcommand; the value is the exit code.  Data goes to stdout, errors to stderr. */
#ifndef SHEAF_COORDINATOR_COMMANDS_H
#define SHEAF_COORDINATOR_COMMANDS_H
#include <stddef.h>
#include "base/log.h"
#include "base/status.h"
#include "coordinator/launch.h"
#include "coordinator/task.h"
SF_C_BEGIN

int sf_cmd_plan(int argc, char **argv);
int sf_cmd_inspect(int argc, char **argv);
int sf_cmd_methods(int argc, char **argv);
int sf_cmd_doctor(int argc, char **argv);
int sf_cmd_merge(int argc, char **argv);

enum { SF_SETS_MAX = 256 };
struct sf_run_args {                    /* of `sheaf run` */
    struct sf_launch_spec launch;       /* its sets are the ones below */
    const char *set[SF_SETS_MAX];
};
/* Fills args and sets up the log.  1: go on; 0: help was printed; -1: refused with words. */
int sf_run_args(int argc, char **argv, struct sf_run_args *args, char *words, size_t bytes);
extern const struct sf_task_ops sf_run_task;    /* its arg: struct sf_run_args */

/* One line on stderr, as JSON with --log-json.  Words that are a complete message already
 * ("job.yaml:3:5: error: ...") get no prefix.  Control characters, which may have come with a name
 * from the input, become '?'. */
void sf_complain(const char *words);
/* A line on stderr that names where help is; returns 2. */
int sf_usage_error(const char *command, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;
/* A file that is written beside the old one and renamed: whether both can be, and that neither
 * takes the place of one that is read (NULL or "": none). */
sf_status sf_check_output(const char *path, const char *const *read, int32_t count);
/* Whether two paths lead to one file, be it there or still to be made. */
int       sf_is_same_file(const char *a, const char *b);
/* Options that all subcommands with ranks have: the end of their tables for getopt_long, and what
 * the letters do.  'h' is the caller's. */
#define SF_COMMON_OPTIONS                                                                          \
    {"set", required_argument, NULL, 's'}, {"log-level", required_argument, NULL, 'l'},            \
    {"log-json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}
struct sf_log_options { enum sf_log_level level; int json; };
/* NULL, or what is wrong, in words until the next call.  set[SF_SETS_MAX]; another letter is
 * refused. */
const char *sf_common_option(int letter, char **argv, const char **set, int32_t *sets,
                             struct sf_log_options *);
/* What getopt_long(..., ":...") refused, in words until the next call: letter is ':' or '?'. */
const char *sf_option_words(int letter, char **argv);
/* The words of the last error on stderr; returns the exit code of `status`. */
int sf_command_failed(sf_status status);
/* Reads --help (prints `help`, *exit_out 0) or one operand; returns 1 if the command goes on.
 * name: what a missing operand is called; NULL: it may be missing, and then stays NULL. */
int sf_read_operand(int argc, char **argv, const char *help, const char *name,
                    const char **operand_out, int *exit_out);

SF_C_END
#endif
