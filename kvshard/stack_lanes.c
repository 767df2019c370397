/* kvshard/stack_lanes.c: on which lanes each method of a stack acts.  `layers:` says which layers,
 * the method itself may leave lanes exact and tell retrieval heads from others, and `on:` takes one
 * of these classes.  Classes belong to the stack: one method tells them, any other may use them. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "kvshard/codec.h"
#include "kvshard/stack_impl.h"

/* ---- layers: "0-11,20" ---------------------------------------------------------------------- */
static int read_number(const char **text, int32_t limit, int32_t *out)
{
    if (!isdigit((unsigned char)**text)) return 0;
    int64_t value = 0;
    for (; isdigit((unsigned char)**text) && value <= limit; (*text)++)
        value = value * 10 + (**text - '0');
    if (value >= limit) return 0;
    *out = (int32_t)value;
    return 1;
}

static sf_status read_layers(struct sf_stack_entry *entry, int32_t layers)
{
    const char *text = entry->layers_text;
    entry->layers = malloc((size_t)layers);
    if (entry->layers == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d layers", layers);
    memset(entry->layers, *text == '\0', (size_t)layers);
    while (*text != '\0') {
        int32_t first, last;
        int good = read_number(&text, layers, &first);
        last = first;
        if (good && *text == '-') {
            text++;
            good = read_number(&text, layers, &last) && last >= first;
        }
        if (!good || (*text != ',' && *text != '\0') || (*text == ',' && text[1] == '\0'))
            return SF_FAIL(SF_INVALID, "layers of method %s are '%s'; allowed: numbers and ranges"
                           " from 0 to %d, such as \"0-%d\" or \"0,%d\"", entry->method->name,
                           entry->layers_text, layers - 1, layers - 1, layers - 1);
        memset(entry->layers + first, 1, (size_t)(last - first + 1));
        if (*text == ',') text++;
        while (*text == ' ') text++;           /* a list of the config comes as "0, 2, 5" */
    }
    return SF_OK;
}

/* ---- what the method says ------------------------------------------------------------------- */
static sf_status make_shape(struct sf_stack_entry *entry, const struct sf_setup *common)
{
    struct sf_setup setup = *common;
    struct sf_shape *shape = &entry->shape;
    size_t layers = (size_t)setup.layers, lanes = (size_t)setup.lanes;
    setup.cfg = entry->cfg;
    setup.place = (const char *const *)entry->place;
    setup.shape = NULL;
    shape->layer_group = malloc(layers * sizeof *shape->layer_group);
    shape->head_class = calloc(lanes, 1);
    shape->acts_on = calloc(lanes, 1);
    if (shape->layer_group == NULL || shape->head_class == NULL || shape->acts_on == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for the shape of method %s", entry->method->name);
    for (size_t l = 0; l < layers; l++) {
        shape->layer_group[l] = -1;
        memset(shape->acts_on + setup.layer[l].lane_first, entry->layers[l],
               (size_t)setup.layer[l].groups);
    }
    return entry->method->policy->shape != NULL ? entry->method->policy->shape(&setup, shape)
                                                : SF_OK;
}

/* ---- head classes --------------------------------------------------------------------------- */
static int32_t layer_of(const struct sf_setup *setup, int32_t lane)
{
    int32_t l = setup->layers - 1;
    while (setup->layer[l].lane_first > lane) l--;
    return l;
}

/* What any entry tells of a lane, all entries know; *told_out: some entry tells something. */
static sf_status join_classes(struct sf_stack *stack, const struct sf_setup *setup, int *told_out)
{
    *told_out = 0;
    for (int32_t lane = 0; lane < setup->lanes; lane++) {
        const struct sf_stack_entry *teller = NULL;
        for (int32_t i = 0; i < stack->entries; i++) {
            const struct sf_stack_entry *entry = &stack->entry[i];
            uint8_t class = entry->shape.head_class[lane];
            if (class == SF_HEAD_ANY) continue;
            if (teller != NULL && teller->shape.head_class[lane] != class) {
                int32_t l = layer_of(setup, lane);
                return SF_FAIL(SF_INVALID, "methods %s and %s disagree on whether KV head %d of"
                               " layer %d is a retrieval head", teller->method->name,
                               entry->method->name, lane - setup->layer[l].lane_first, l);
            }
            teller = entry;
        }
        if (teller == NULL) continue;
        *told_out = 1;
        for (int32_t i = 0; i < stack->entries; i++)
            stack->entry[i].shape.head_class[lane] = teller->shape.head_class[lane];
    }
    return SF_OK;
}

static sf_status take_class(struct sf_stack_entry *entry, const struct sf_setup *setup, int told)
{
    if (entry->on == SF_HEAD_ANY) return SF_OK;
    if (!told)
        return SF_FAIL(SF_INVALID, "method %s stands on %s heads, but no method of the stack tells"
                       " retrieval heads from others (razor_attention does)", entry->method->name,
                       entry->on == SF_HEAD_RETRIEVAL ? "retrieval" : "other");
    for (int32_t lane = 0; lane < setup->lanes; lane++)
        if (entry->shape.head_class[lane] != entry->on) entry->shape.acts_on[lane] = 0;
    return SF_OK;
}

/* Of each layer's group; asked for lane by lane, so it is counted once. */
static sf_status count_groups(struct sf_shape *shape, const struct sf_setup *setup)
{
    int32_t *lanes = calloc((size_t)setup->layers, sizeof *lanes);
    if (lanes == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d layers", setup->layers);
    for (int32_t l = 0, end; l < setup->layers; l = end) {
        end = l + 1;
        while (end < setup->layers && shape->layer_group[end] == shape->layer_group[l]) end++;
        int32_t count = sf_group_lanes(setup, shape, l);
        for (int32_t i = l; i < end && shape->layer_group[l] >= 0; i++) lanes[i] = count;
    }
    shape->group_lanes = lanes;
    return SF_OK;
}

sf_status sf_stack_lanes(struct sf_stack *stack, const struct sf_setup *setup)
{
    int told;
    for (int32_t i = 0; i < stack->entries; i++) {
        SF_TRY(read_layers(&stack->entry[i], setup->layers));
        SF_TRY(make_shape(&stack->entry[i], setup));
    }
    SF_TRY(join_classes(stack, setup, &told));
    for (int32_t i = 0; i < stack->entries; i++) {
        SF_TRY(take_class(&stack->entry[i], setup, told));
        SF_TRY(count_groups(&stack->entry[i].shape, setup));
    }
    return SF_OK;
}

/* Why two entries cannot act on the same lanes. */
static sf_status one_lane(const struct sf_stack_entry *first, const struct sf_stack_entry *second)
{
    const struct sf_stack_entry *group = first, *other = second;
    if (second->plan.edits & SF_EDITS_GROUP) {
        group = second;
        other = first;
    }
    if ((group->plan.edits & SF_EDITS_GROUP) && !(other->plan.edits & SF_EDITS_GROUP))
        return SF_FAIL(SF_UNSUPPORTED, "methods %s and %s act on the same heads, and a token that"
                       " %s drops from one head would be gone from all heads and layers of the"
                       " group in which %s has it; give them different `layers:` or `on:`",
                       first->method->name, second->method->name, other->method->name,
                       group->method->name);
    return SF_FAIL(SF_UNSUPPORTED, "methods %s and %s act on the same heads; give them different"
                   " `layers:` or `on:`", first->method->name, second->method->name);
}

sf_status sf_stack_disjoint(const struct sf_stack *stack, const struct sf_setup *setup)
{
    for (int32_t i = 0; i < stack->entries; i++)
        for (int32_t before = 0; before < i; before++)
            for (int32_t lane = 0; lane < setup->lanes; lane++)
                if (stack->entry[i].shape.acts_on[lane] &&
                    stack->entry[before].shape.acts_on[lane])
                    return one_lane(&stack->entry[before], &stack->entry[i]);
    return SF_OK;
}
