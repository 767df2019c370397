/* coordinator/calibrate.h: `sheaf calibrate`: a method learns from the exact model what it cannot
 * know beforehand, and leaves it in a file.
 *
 *   CONFIG --> method, options --> made-up tokens --> engine --> workers --> rows, summed
 *                                                                              |
 *   --from PROFILE: rows of an earlier run -------------------------> choose --+--> PROFILE
 *
 * The cache is exact and shares no prompts, whatever the configuration says.  Each sequence runs by
 * itself in a data-parallel group; with one sequence the other groups stand by. */
#ifndef SHEAF_COORDINATOR_CALIBRATE_H
#define SHEAF_COORDINATOR_CALIBRATE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "coordinator/commands.h"
#include "coordinator/task.h"
#include "kvshard/profile.h"
SF_C_BEGIN

enum { SF_CALIBRATE_OWN_SETS = 2 };
struct sf_calibrate {
    /* the command line: */
    struct sf_launch_spec common;       /* its sets are the ones below */
    const char *set[SF_SETS_MAX];
    const char *output, *from, *method; /* from, method: may be NULL */
    /* made on rank 0, freed by sf_calibrate_free: */
    struct sf_launch_spec launch;
    const char *launch_set[SF_SETS_MAX + SF_CALIBRATE_OWN_SETS];
    struct sf_stack stack;              /* one entry: the method, with options as CONFIG has them */
    char model[SF_OPT_TEXT_MAX];        /* path, or "" */
    struct sf_calib_plan plan;
    int32_t *token;                     /* [sequences][tokens] */
    int32_t closed;                     /* sequences that are done */
};

/* As sf_run_args (commands.h); *calibrate is zeroed but for its sets. */
int  sf_calibrate_args(int argc, char **argv, struct sf_calibrate *, char *words, size_t bytes);
extern const struct sf_task_ops sf_calibrate_task;      /* its arg: struct sf_calibrate */
/* --from: no ranks, no model.  The exit code. */
int  sf_calibrate_again(struct sf_calibrate *);
void sf_calibrate_free(struct sf_calibrate *);
/* Number of a sequence of the engine's, for the workers. */
int32_t sf_calibrate_sequence(int64_t seq_id);

/* ---- config_profile.c: the file -------------------------------------------------------------- */
/* The options of the entry that a profile holds, notes and rows, as YAML; malloc'd. */
sf_status sf_profile_text(const struct sf_stack_entry *, const struct sf_profile *,
                          char **text_out);
/* Rows and notes, and into the entry's options what was found and how it was run. */
sf_status sf_profile_load(const char *path, struct sf_stack_entry *,
                          struct sf_profile *profile_out);

SF_C_END
#endif
