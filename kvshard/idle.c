/* kvshard/idle.c: why an entry of a stack has left a sequence as it was (account.h): by the lanes
 * that it acts on, by what the method itself says, else by its events and its footprint. */
#include <stdio.h>

#include "kvshard/account.h"

/* It acts on no lane at all. */
static void no_lane(const struct sf_stack_entry *entry, char *words, size_t bytes)
{
    static const char *const name[] = { [SF_HEAD_RETRIEVAL] = "retrieval",
                                        [SF_HEAD_OTHER] = "other" };
    if (entry->on != SF_HEAD_ANY)
        snprintf(words, bytes, "`on: %s` names no KV head of its layers that is left to it",
                 name[entry->on]);
    else
        snprintf(words, bytes, "it leaves every KV head of its layers exact, or to others");
}

/* Why the store raised no event for the lane, or none that would change it.  0: it should have. */
static int no_event(const struct sf_plan *plan, const struct sf_foot *foot,
                    const struct sf_spot *spot, char *words, size_t bytes)
{
    int at_end = (plan->whens & 1u << SF_AT_PREFILL_END) != 0;
    int full = (plan->whens & 1u << SF_AT_FULL) != 0;
    int interval = (plan->whens & 1u << SF_AT_INTERVAL) != 0;
    int32_t keep = foot->slots_keep, least = keep + 1;
    if (full && foot->slots_trigger > least) least = foot->slots_trigger;
    if (keep > 0 && (!at_end || spot->prompt <= keep) && !interval && spot->tokens < least) {
        if (full)
            snprintf(words, bytes, "fewer tokens than the %d with which a lane is full", least);
        else
            snprintf(words, bytes, "prompts of no more than the %d slots that are kept", keep);
        return 1;
    }
    if (interval && !at_end) {
        int32_t origin = plan->every_from_prompt ? spot->prompt : 0;
        int32_t before = (spot->prompt - origin) / plan->every_tokens;
        if ((spot->tokens - origin) / plan->every_tokens > before) return 0;
        snprintf(words, bytes, "answers that end before the next interval of %d tokens",
                 plan->every_tokens);
        return 1;
    }
    return 0;
}

sf_status sf_account_idle(const struct sf_setup *common, const struct sf_stack *stack, int32_t m,
                          int32_t prompt, int32_t tokens, char words_out[SF_IDLE_WORDS])
{
    const struct sf_stack_entry *entry = &stack->entry[m];
    const struct sf_policy_ops *policy = entry->method->policy;
    struct sf_setup setup = *common;
    int lanes = 0;
    SF_ASSERT(m >= 0 && m < stack->entries && tokens >= prompt);
    setup.cfg = entry->cfg;
    setup.shape = &entry->shape;
    for (int32_t l = 0; l < setup.layers; l++)
        for (int32_t h = 0; h < setup.layer[l].groups; h++) {
            struct sf_spot spot = { l, h, prompt, tokens, 0 };
            struct sf_foot foot = { .slots_peak = prompt };
            if (sf_stack_entry_of(stack, common, l, h) != m) continue;
            lanes++;
            const char *said = policy->idle ? policy->idle(&setup, &spot) : NULL;
            if (said) {
                snprintf(words_out, SF_IDLE_WORDS, "%s", said);
                return SF_OK;
            }
            if (policy->idle) continue;
            SF_TRY(policy->footprint(&setup, &spot, &foot));
            if (no_event(&entry->plan, &foot, &spot, words_out, SF_IDLE_WORDS)) return SF_OK;
        }
    if (lanes == 0) no_lane(entry, words_out, SF_IDLE_WORDS);
    else snprintf(words_out, SF_IDLE_WORDS, "its events came, and it kept every slot");
    return SF_OK;
}
