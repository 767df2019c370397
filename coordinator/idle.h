/* coordinator/idle.h: which methods of a stack changed anything of which records, and why not
 * (design.md section 10): counts for the manifest, and a warning at the end of a run. */
#ifndef SHEAF_COORDINATOR_IDLE_H
#define SHEAF_COORDINATOR_IDLE_H
#include <stdint.h>
#include "base/json.h"
#include "base/status.h"
#include "kvshard/account.h"
SF_C_BEGIN

enum { SF_IDLE_REASONS = 6 };           /* told apart for an entry; the last takes all others */
struct sf_idle_entry {
    int64_t changed;                    /* records of which it changed a lane */
    int32_t reasons;
    struct { char words[SF_IDLE_WORDS]; int64_t records; } reason[SF_IDLE_REASONS];
};
struct sf_idle {
    const struct sf_setup *setup;
    const struct sf_stack *stack;
    struct sf_idle_entry *entry;        /* [stack->entries] owned */
    int64_t records;
};

/* setup, stack: of the plan; outlive it. */
sf_status sf_idle_make(const struct sf_setup *, const struct sf_stack *, struct sf_idle *out);
void      sf_idle_free(struct sf_idle *);
/* A record of `prompt` tokens that came to `tokens` in the cache.  changed: bit m: entry m changed
 * a lane of it (struct sf_wire_receipt). */
sf_status sf_idle_add(struct sf_idle *, int32_t prompt, int32_t tokens, uint32_t changed);
/* Whether entry m, which edits, has changed nothing where these bits were noted. */
int       sf_idle_left(const struct sf_stack *, int32_t m, uint32_t changed);
/* Whether an entry that edits has changed nothing of any record. */
int       sf_idle_is(const struct sf_idle *, int32_t entry);
/* One line to the log for each entry that is so; what: "records", "sequences". */
void      sf_idle_warn(const struct sf_idle *, const char *what);
/* [{"name", "entry", "changed": records, "unchanged": {why: records}}] of those that edit; NULL
 * where there is no memory. */
struct sf_json *sf_idle_json(const struct sf_idle *);

SF_C_END
#endif
