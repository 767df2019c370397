/* kvshard/stack_share.c: what prompts that begin alike may share under a stack (stack.h).  Of each
 * method it is said by its plan:
 *
 *   NONE           nothing
 *   KV             pages alone: no statistic of the prompt, no bytes of its own beside slots
 *   KV_AND_MASS    pages, and what the watched mass of their slots was at the border: rows behind
 *                  it add to that as they would have.  Watches of a prompt's last rows begin behind
 *                  the border, since each sequence computes those rows itself.  Bytes beside slots
 *                  are zero until the prompt's end.
 *
 * A method that edits prompts before they end shares nothing: what it left behind would depend on
 * where they end. */
#include "kvshard/stack.h"

static int shares(const struct sf_plan *plan)
{
    if (plan->prefix == SF_PREFIX_NONE || plan->whens & 1u << SF_AT_PREFILL_CHUNK) return 0;
    return plan->prefix == SF_PREFIX_KV_AND_MASS || plan->aux_bytes == 0;
}

struct sf_stack_sharing sf_stack_sharing(const struct sf_stack *stack)
{
    struct sf_stack_sharing sharing = { .kept = 1, .own_rows = 1 };
    for (int32_t i = 0; i < stack->entries; i++) {
        const struct sf_plan *plan = &stack->entry[i].plan;
        if (!shares(plan) && sharing.withheld_by == NULL)
            sharing.withheld_by = stack->entry[i].method;
        if (plan->whens != 0) sharing.kept = 0;
        for (int w = 0; plan->prefix == SF_PREFIX_KV_AND_MASS && w < 2; w++) {
            if (plan->watch[w].fold == SF_FOLD_NONE) continue;
            if (plan->watch[w].prompt_rows == 0) sharing.noted[w] = 1;
            if (plan->watch[w].prompt_rows > sharing.own_rows)
                sharing.own_rows = plan->watch[w].prompt_rows;
        }
    }
    return sharing;
}

int32_t sf_share_border(int32_t blocks)
{
    int32_t step = 1;
    while (blocks / step >= 16) step *= 2;
    return blocks / step * step;
}

int32_t sf_share_most(const struct sf_stack_sharing *sharing, int32_t prompt, int32_t block_tokens,
                      int32_t blocks)
{
    int32_t most = (prompt - sharing->own_rows) / block_tokens;
    if (prompt < sharing->own_rows) most = 0;
    if (blocks < most) most = blocks;
    return sharing->noted[0] || sharing->noted[1] ? sf_share_border(most) : most;
}
