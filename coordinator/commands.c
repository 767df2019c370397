/* coordinator/commands.c: what subcommands share: words for a wrong command line. */
#include "coordinator/commands.h"

#include <getopt.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"

enum { WORDS_BYTES = 2048 };

void sf_complain(const char *words)
{
    char line[WORDS_BYTES];
    if (sf_log_is_json() || strstr(words, "error: ") == NULL) {
        sf_log(SF_LOG_ERROR, "%s", words);
        return;
    }
    snprintf(line, sizeof line, "%s", words);
    for (char *c = line; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    fprintf(stderr, "%s\n", line);
}

int sf_usage_error(const char *command, const char *format, ...)
{
    char words[WORDS_BYTES / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    sf_log(SF_LOG_ERROR, "%s (see 'sheaf %s --help')", words, command);
    return 2;
}

const char *sf_option_words(int letter, char **argv)
{
    static char words[256];
    const char *given = argv[optind - 1];
    if (letter == ':') snprintf(words, sizeof words, "a value is missing after '%s'", given);
    else if (strncmp(given, "--", 2) == 0)
        snprintf(words, sizeof words, "unknown option '%s'", given);
    else snprintf(words, sizeof words, "unknown option '-%c'", optopt);
    return words;
}

const char *sf_common_option(int letter, char **argv, const char **set, int32_t *sets,
                             struct sf_log_options *log)
{
    switch (letter) {
    case 's':
        if (*sets == SF_SETS_MAX) return "too many --set";
        set[(*sets)++] = optarg;
        return NULL;
    case 'l': return sf_log_level_parse(optarg, &log->level) == SF_OK ? NULL : sf_error_text();
    case 'j': log->json = 1; return NULL;
    default: return sf_option_words(letter, argv);
    }
}

int sf_command_failed(sf_status status)
{
    sf_complain(sf_error_text());
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

static int are_same(const char *a, const char *b)
{
    struct stat first, second;
    return stat(a, &first) == 0 && stat(b, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

static const char *name_in_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

int sf_is_same_file(const char *a, const char *b)
{
    if (are_same(a, b)) return 1;
    if (strcmp(name_in_folder(a), name_in_folder(b)) != 0) return 0;
    char *first = strdup(a), *second = strdup(b);
    int same = first != NULL && second != NULL && are_same(dirname(first), dirname(second));
    free(first);
    free(second);
    return same;
}

sf_status sf_check_output(const char *path, const char *const *read, int32_t count)
{
    struct stat info;
    char *fresh;
    int file;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return SF_FAIL(SF_IO, "%s: exists and is no regular file", path);
    SF_TRY(sf_file_name(path, ".new", &fresh));
    sf_status status = SF_OK;
    for (int32_t i = 0; i < count && status == SF_OK; i++) {
        const char *taken = read[i] == NULL || read[i][0] == '\0' ? NULL
                            : are_same(path, read[i])             ? path
                            : are_same(fresh, read[i])            ? fresh
                                                                  : NULL;
        if (taken != NULL)
            status = SF_FAIL(SF_INVALID, "%s would take the place of %s", taken, read[i]);
    }
    free(fresh);
    SF_TRY(status);
    SF_TRY(sf_file_begin(path, &fresh, &file));
    close(file);
    unlink(fresh);
    free(fresh);
    return SF_OK;
}
