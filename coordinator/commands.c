/* coordinator/commands.c: what the small subcommands share: words for a wrong command line. */
#include "coordinator/commands.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int sf_usage_error(const char *command, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "sheaf: error: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, " (see 'sheaf %s --help')\n", command);
    va_end(args);
    return 2;
}

int sf_command_failed(sf_status status)
{
    const char *words = sf_error_text();
    /* A message of the configuration is whole already: "job.yaml:3:5: error: ..." */
    fprintf(stderr, "%s%s\n", strstr(words, "error: ") != NULL ? "" : "sheaf: error: ", words);
    return sf_status_exit_code(status);
}

int sf_read_operand(int argc, char **argv, const char *help, const char *name,
                    const char **operand_out, int *exit_out)
{
    int options = 1;
    *operand_out = NULL;
    *exit_out = 0;
    for (int i = 1; i < argc; i++) {
        if (options && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
            fputs(help, stdout);
            return 0;
        }
        if (options && strcmp(argv[i], "--") == 0) {
            options = 0;
        } else if (options && argv[i][0] == '-' && argv[i][1] != '\0') {
            *exit_out = sf_usage_error(argv[0], "unknown option '%s'", argv[i]);
            return 0;
        } else if (*operand_out != NULL) {
            *exit_out = sf_usage_error(argv[0], "one argument too many: '%s'", argv[i]);
            return 0;
        } else {
            *operand_out = argv[i];
        }
    }
    if (name == NULL || *operand_out != NULL) return 1;
    *exit_out = sf_usage_error(argv[0], "%s is missing", name);
    return 0;
}
