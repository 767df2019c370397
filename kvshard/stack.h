/* kvshard/stack.h: the methods of a job in the order in which they apply, and which lanes each acts
 * on.  A value: made once from the configuration, checked at plan time, then only read. */
#ifndef SHEAF_KVSHARD_STACK_H
#define SHEAF_KVSHARD_STACK_H
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"
#include "kvshard/policy.h"
SF_C_BEGIN

struct sf_stack_entry {
    const struct sf_method *method;
    void *cfg;                          /* [method->cfg_bytes] options, parsed; the stack's */
    char layers_text[256];              /* "0-11,20"; "" = all */
    int32_t on;                         /* enum sf_head_class; SF_HEAD_ANY = all */
    char **place;                       /* [rows of options] as sf_setup has it; the stack's */
    /* filled by sf_stack_check, owned by the stack: */
    uint8_t *layers;                    /* [layers of the model] 1: acts there, by layers_text */
    struct sf_shape shape;              /* shape.acts_on [lanes]: on which lanes it really acts */
    struct sf_plan plan;
};
struct sf_stack { struct sf_stack_entry *entry; int32_t entries; };

/* Adds an entry with its options at their defaults; *entry_out is for layers_text, `on` and
 * sf_opt_set on its cfg, and is valid until the next entry is added.  SF_INVALID for a name that is
 * not there. */
sf_status sf_stack_add(struct sf_stack *, const char *method, struct sf_stack_entry **entry_out);
/* The same for a method that need not be in the registry. */
sf_status sf_stack_add_method(struct sf_stack *, const struct sf_method *method,
                              struct sf_stack_entry **entry_out);
/* Where an option was given, for words such as "job.yaml:7:3: error: ..."; copied. */
sf_status sf_stack_place(struct sf_stack_entry *, const struct sf_opt *row, const char *place);
/* Calls every method's plan() and decides whether the stack is legal for this model; the words say
 * what to change.  setup->cfg is set per entry by this function.  SF_UNSUPPORTED where a method
 * asks for a service that the store does not have: nothing is ever left out in silence. */
sf_status sf_stack_check(struct sf_stack *, const struct sf_setup *setup);
/* After sf_stack_check: whether a page of setup->page_slots raw slots has room for slots of every
 * tier, in the layers on which its method acts. */
int       sf_stack_tiers_fit(const struct sf_stack *, const struct sf_setup *, enum sf_dtype);
/* After sf_stack_check: whether some method answers to memory pressure. */
int       sf_stack_tightens(const struct sf_stack *);
/* Likewise: the first method whose layers share a basis, or NULL. */
const struct sf_method *sf_stack_grouped(const struct sf_stack *);
/* Likewise: layers that share a basis are encoded together at no tokens but at a prompt's end and
 * behind it at multiples of so many; 0: at its end alone. */
int32_t   sf_stack_interval(const struct sf_stack *);
void      sf_stack_free(struct sf_stack *);
/* Number of the entry that acts on lane `head_global` of `layer`, or -1: the lane stays exact. */
int32_t   sf_stack_entry_of(const struct sf_stack *, const struct sf_setup *, int32_t layer,
                            int32_t head_global);

/* ---- beginnings of prompts that sequences share ---------------------------------------------- */
struct sf_stack_sharing {
    const struct sf_method *withheld_by; /* the first that shares nothing; NULL: all do */
    int32_t own_rows;                   /* last rows of a prompt that each computes itself, >= 1 */
    uint8_t kept;                       /* no lane is ever edited */
    uint8_t noted[2];                   /* mass[w] of shared slots goes with them */
};
/* After sf_stack_check. */
struct sf_stack_sharing sf_stack_sharing(const struct sf_stack *);
/* The most blocks, of so many, behind which masses are noted: those of all slots up to there, so
 * that not every border has them.  All do up to 16 blocks, every second up to 32, every fourth up
 * to 64 ...: notes take at most 16 floats a slot and mass, and less than an eighth of what could be
 * attached is computed again. */
int32_t sf_share_border(int32_t blocks);
/* How many of `blocks` blocks that are there a prompt may attach. */
int32_t sf_share_most(const struct sf_stack_sharing *, int32_t prompt, int32_t block_tokens,
                      int32_t blocks);

/* ---- how the model looks to methods --------------------------------------------------------- */
/* Fills layer geometry and sizes of `setup` from the model; setup->layer, and setup->stage once it
 * is set, are owned by the caller and freed with sf_setup_free.  tokens_max: longest sequence
 * planned for. */
sf_status sf_setup_make(const struct sf_model_desc *, int32_t tp_size, int32_t page_slots,
                        int32_t tokens_max, struct sf_setup *setup_out);
void      sf_setup_free(struct sf_setup *);

SF_C_END
#endif
