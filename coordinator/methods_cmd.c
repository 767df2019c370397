/* coordinator/methods_cmd.c: `sheaf methods`: the registry, from the methods' own tables. */
#include <stdio.h>
#include <string.h>
#include "coordinator/commands.h"
#include "coordinator/config_tree.h"
#include "kvshard/methods.h"

static const char help[] =
    "usage: sheaf methods [NAME]\n"
    "\n"
    "Without NAME: the methods for kv_cache.methods.  With NAME: its paper, its options with\n"
    "defaults, units and ranges, and what it needs.\n";

static void print_option(const struct sf_opt *row)
{
    printf("  %s: %s%s%s%s\n", row->key, row->fallback[0] != '\0' ? row->fallback : "(none)",
           row->unit != NULL && row->unit[0] != '\0' ? " " : "", row->unit != NULL ? row->unit : "",
           row->built ? "" : "   (not built yet: only this value)");
    if (row->type == SF_OPT_ENUM) {
        printf("      one of");
        for (int32_t i = 0; row->choices[i] != NULL; i++) printf(" %s", row->choices[i]);
        printf("\n");
    } else if (row->min != 0 || row->max != 0) {
        printf("      from %.15g to %.15g%s\n", row->min, row->max,
               row->allow_auto ? ", or auto" : "");
    } else if (row->type == SF_OPT_BOOL) {
        printf("      true or false\n");
    }
    printf("      %s\n", row->help);
    if (row->aliases != NULL) printf("      also spelt: %s\n", row->aliases);
}

static void print_needs(const struct sf_method *method)
{
    printf("needs:\n");
    if (method->calib != NULL) printf("  a profile, written by `sheaf calibrate`\n");
    if (method->policy != NULL && method->policy->admit != NULL)
        printf("  the whole prompt before it is computed\n");
    if (method->recipe != NULL) printf("  weights converted by `sheaf convert`\n");
    if (method->calib == NULL && method->recipe == NULL
        && (method->policy == NULL || method->policy->admit == NULL))
        printf("  nothing beyond the model\n");
}

static void print_method(const struct sf_method *method)
{
    printf("%s\n%s\n", method->name, method->paper != NULL ? method->paper : "");
    printf("stands in: %s%s%s\n", method->policy != NULL ? "kv_cache.methods" : "",
           method->policy != NULL && method->recipe != NULL ? ", " : "",
           method->recipe != NULL ? "convert.method" : "");
    printf("options:\n");
    if (method->opts == NULL || method->opts[0].key == NULL) printf("  none of its own\n");
    for (const struct sf_opt *row = method->opts; row != NULL && row->key != NULL; row++)
        print_option(row);
    printf("options of every method:\n  layers: all\n      layers that it acts on, such as"
           " \"0-11,20\"\n");
    for (const struct sf_opt *row = sf_config_entry; row->key != NULL; row++) print_option(row);
    print_needs(method);
}

static void print_list(void)
{
    for (const struct sf_method *const *m = sf_methods; *m != NULL; m++) {
        const char *paper = (*m)->paper != NULL ? (*m)->paper : "";
        printf("%-18s %.*s\n", (*m)->name, (int)strcspn(paper, "\n"), paper);
    }
    int shown = 0;
    for (const char *const *name = sf_methods_to_come; *name != NULL; name++) {
        if (sf_method_find(*name) != NULL) continue;
        printf("%s%s", shown++ == 0 ? "\nnot built yet: " : ", ", *name);
    }
    if (shown > 0) printf("\n");
}

int sf_cmd_methods(int argc, char **argv)
{
    const char *name;
    int exit_code;
    if (!sf_read_operand(argc, argv, help, NULL, &name, &exit_code)) return exit_code;
    if (name == NULL) {
        print_list();
        return 0;
    }
    const struct sf_method *method = sf_method_find(name);
    if (method != NULL) {
        print_method(method);
        return 0;
    }
    for (const char *const *later = sf_methods_to_come; *later != NULL; later++)
        if (strcmp(*later, name) == 0)
            return sf_usage_error("methods", "method '%s' is not built yet", name);
    const char *near = sf_method_nearest(name);
    return sf_usage_error("methods", "unknown method '%s'%s%s%s", name,
                          near != NULL ? "; did you mean '" : "", near != NULL ? near : "",
                          near != NULL ? "'?" : "");
}
