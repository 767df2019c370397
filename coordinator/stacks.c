/* coordinator/stacks.c: configurations to stacks, before anything is launched (stacks.h). */
#include "coordinator/stacks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "coordinator/plan.h"

static sf_status look_into(const char *file, const struct sf_config_sets *sets,
                           struct sf_stack_launch *stack, struct stat *model_out)
{
    struct sf_config config;
    SF_TRY(sf_config_load(file, sets, &config));
    sf_status status = SF_OK;
    if (config.model.path[0] == '\0')
        status = SF_FAIL(SF_INVALID, "%s: error: model.path is missing", file);
    else if (stat(config.model.path, model_out) != 0)
        status = SF_FAIL(SF_IO, "%s: error: model.path '%s': %s", file, config.model.path,
                         strerror(errno));
    else if (config.kv.stack.entries > SF_STACK_METHODS)
        status = SF_FAIL(SF_UNSUPPORTED, "%s: error: more than %d methods in one stack", file,
                         SF_STACK_METHODS);
    *stack = (struct sf_stack_launch){.launch = {.config = file},
                                      .max_num_seqs = config.scheduler.max_num_seqs,
                                      .kv_dtype = sf_plan_kv_dtype(&config)};
    snprintf(stack->model, sizeof stack->model, "%s", config.model.path);
    for (int32_t i = 0; status == SF_OK && i < config.kv.stack.entries; i++)
        stack->method[stack->methods++] = config.kv.stack.entry[i].method->name;
    sf_config_free(&config);
    return status;
}

/* In the order of the command line; all of one model. */
static sf_status look_at_all(const char *const *config, int32_t configs,
                             const struct sf_config_sets *sets, struct sf_stack_list *list)
{
    struct stat first, model;
    for (int32_t i = 0; i < configs; i++) {
        SF_TRY(look_into(config[i], sets, &list->stack[list->stacks++], &model));
        if (i == 0) first = model;
        if (model.st_dev != first.st_dev || model.st_ino != first.st_ino)
            return SF_FAIL(SF_INVALID, "%s and %s have different models; stacks of one model are "
                           "compared", config[0], config[i]);
    }
    return SF_OK;
}

static void put_exact_first(struct sf_stack_list *list, int no_exact)
{
    int32_t at = 0;
    while (at < list->stacks && list->stack[at].methods > 0) at++;
    if (at == list->stacks) {
        if (no_exact) return;
        at = list->stacks++;
        list->stack[at] = list->stack[0];
        list->stack[at].methods = 0;
    }
    struct sf_stack_launch exact = list->stack[at];
    memmove(&list->stack[1], &list->stack[0], (size_t)at * sizeof exact);
    list->stack[0] = exact;
}

/* "window", "ems+gear"; with a type of cache that is not the first stack's "window/int8"; a second
 * one of the same methods is "window#2". */
static void name_stack(const struct sf_stack_list *list, int32_t number)
{
    struct sf_stack_launch *stack = &list->stack[number];
    char name[SF_STACK_LABEL - 8] = "exact";
    size_t used = 0;
    for (int32_t i = 0; i < stack->methods && used < sizeof name; i++)
        used += (size_t)snprintf(name + used, sizeof name - used, "%s%s", i > 0 ? "+" : "",
                                 stack->method[i]);
    if (stack->kv_dtype != list->stack[0].kv_dtype && strlen(name) + 6 < sizeof name) {
        strcat(name, "/");
        strcat(name, sf_dtype_name(stack->kv_dtype));
    }
    snprintf(stack->label, sizeof stack->label, "%s", name);
    for (int32_t i = 0, same = 2; i < number; i++) {
        if (strcmp(list->stack[i].label, stack->label) != 0) continue;
        snprintf(stack->label, sizeof stack->label, "%s#%d", name, same++);
        i = -1;
    }
}

sf_status sf_stack_list_make(const char *const *config, int32_t configs,
                             const struct sf_config_sets *sets, int no_exact,
                             struct sf_stack_list *out)
{
    struct sf_stack_list list = {0};
    list.stack = calloc((size_t)configs + 1, sizeof *list.stack);
    if (list.stack == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d stacks", configs + 1);
    sf_status status = look_at_all(config, configs, sets, &list);
    if (status != SF_OK) {
        free(list.stack);
        return status;
    }
    put_exact_first(&list, no_exact);
    for (int32_t s = 0; s < list.stacks; s++) {
        struct sf_stack_launch *stack = &list.stack[s];
        name_stack(&list, s);
        if (sets->sets > 0)
            memcpy(stack->set, sets->set, (size_t)sets->sets * sizeof *stack->set);
        stack->launch.sets = *sets;
        stack->launch.sets.set = stack->set;
        if (stack->methods == 0) sf_stack_add_set(stack, "kv_cache.methods=[]");
    }
    *out = list;
    return SF_OK;
}

void sf_stack_add_set(struct sf_stack_launch *stack, const char *set)
{
    SF_ASSERT(stack->launch.sets.sets < SF_SETS_MAX + SF_STACK_OWN_SETS);
    stack->set[stack->launch.sets.sets++] = set;
}
