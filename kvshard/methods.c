/* kvshard/methods.c: the registry.  A new method is one file under methods/ and one line here. */
#include "kvshard/methods.h"

#include <string.h>

extern const struct sf_method sf_method_ems, sf_method_none, sf_method_razor_attention,
    sf_method_window, sf_method_xkv;

const struct sf_method *const sf_methods[] = {
    &sf_method_none, &sf_method_ems, &sf_method_razor_attention, &sf_method_window,
    &sf_method_xkv, NULL };

enum { METHODS = sizeof sf_methods / sizeof sf_methods[0] - 1 };

const struct sf_method *sf_method_find(const char *name)
{
    for (size_t i = 0; i < METHODS; i++)
        if (strcmp(sf_methods[i]->name, name) == 0) return sf_methods[i];
    return NULL;
}

const char *sf_method_nearest(const char *name)
{
    const char *names[METHODS];
    for (size_t i = 0; i < METHODS; i++) names[i] = sf_methods[i]->name;
    return sf_nearest_name(name, names, METHODS);
}

enum sf_calib_kind sf_calib_kind_of(const struct sf_method *method, const char *key)
{
    if (method->calib == NULL || method->calib->opts == NULL) return SF_CALIB_NONE;
    for (const struct sf_calib_opt *opt = method->calib->opts; opt->key != NULL; opt++)
        if (strcmp(opt->key, key) == 0) return opt->kind;
    return SF_CALIB_NONE;
}
