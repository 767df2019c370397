/* coordinator/idle.c: entries that did nothing, with the reasons that the store gives (idle.h). */
#include "coordinator/idle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_build.h"
#include "base/log.h"
#include "proto/wire.h"

static const char others[] = "other reasons";

static int edits(const struct sf_stack *stack, int32_t m)
{
    return stack->entry[m].plan.whens != 0 && stack->entry[m].plan.edits != 0;
}

int sf_idle_left(const struct sf_stack *stack, int32_t m, uint32_t changed)
{
    return edits(stack, m) && !(changed >> sf_wire_changed_bit(m) & 1u);
}

sf_status sf_idle_make(const struct sf_setup *setup, const struct sf_stack *stack,
                       struct sf_idle *out)
{
    struct sf_idle idle = {.setup = setup, .stack = stack};
    idle.entry = calloc((size_t)stack->entries + 1, sizeof *idle.entry);
    if (idle.entry == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for the counts of %d methods", stack->entries);
    *out = idle;
    return SF_OK;
}

void sf_idle_free(struct sf_idle *idle)
{
    free(idle->entry);
    *idle = (struct sf_idle){0};
}

static void count(struct sf_idle_entry *entry, const char *words)
{
    int32_t i = 0;
    while (i < entry->reasons && strcmp(entry->reason[i].words, words) != 0) i++;
    if (i == SF_IDLE_REASONS) i--;
    else if (i == entry->reasons)
        snprintf(entry->reason[entry->reasons++].words, SF_IDLE_WORDS, "%s",
                 i < SF_IDLE_REASONS - 1 ? words : others);
    entry->reason[i].records++;
}

sf_status sf_idle_add(struct sf_idle *idle, int32_t prompt, int32_t tokens, uint32_t changed)
{
    char words[SF_IDLE_WORDS];
    idle->records++;
    for (int32_t m = 0; m < idle->stack->entries; m++) {
        if (!edits(idle->stack, m)) continue;
        if (!sf_idle_left(idle->stack, m, changed)) {
            idle->entry[m].changed++;
            continue;
        }
        SF_TRY(sf_account_idle(idle->setup, idle->stack, m, prompt, tokens, words));
        count(&idle->entry[m], words);
    }
    return SF_OK;
}

int sf_idle_is(const struct sf_idle *idle, int32_t entry)
{
    return edits(idle->stack, entry) && idle->records > 0 && idle->entry[entry].changed == 0;
}

void sf_idle_warn(const struct sf_idle *idle, const char *what)
{
    for (int32_t m = 0; m < idle->stack->entries; m++) {
        const struct sf_idle_entry *entry = &idle->entry[m];
        char text[SF_IDLE_REASONS * (SF_IDLE_WORDS + 32)], place[48] = "";
        size_t used = 0;
        if (!sf_idle_is(idle, m)) continue;
        for (int32_t i = 0; i < entry->reasons; i++)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s (%lld)",
                                     i > 0 ? "; " : "", entry->reason[i].words,
                                     (long long)entry->reason[i].records);
        if (idle->stack->entries > 1)
            snprintf(place, sizeof place, " (entry %d of %d)", m + 1, idle->stack->entries);
        sf_log(SF_LOG_WARN, "method %s%s changed nothing of %lld %s: %s",
               idle->stack->entry[m].method->name, place, (long long)idle->records, what, text);
    }
}

static struct sf_json *reasons_of(const struct sf_idle_entry *entry)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < entry->reasons; i++)
        sf_json_put(&status, o, entry->reason[i].words, sf_json_new_int(entry->reason[i].records));
    return sf_json_built(status, o);
}

struct sf_json *sf_idle_json(const struct sf_idle *idle)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t m = 0; m < idle->stack->entries && status == SF_OK; m++) {
        struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
        if (!edits(idle->stack, m)) {
            sf_json_free(o);
            continue;
        }
        sf_json_put(&status, o, "name",
                    sf_json_new_words(idle->stack->entry[m].method->name));
        sf_json_put(&status, o, "entry", sf_json_new_int(m));
        sf_json_put(&status, o, "changed", sf_json_new_int(idle->entry[m].changed));
        sf_json_put(&status, o, "unchanged", reasons_of(&idle->entry[m]));
        sf_status added = sf_json_append(list, o);
        if (status == SF_OK) status = added;
    }
    return sf_json_built(status, list);
}
