/* kvshard/methods.h: the list of methods by name. */
#ifndef SHEAF_KVSHARD_METHODS_H
#define SHEAF_KVSHARD_METHODS_H
#include "base/opt.h"
#include "kvshard/policy.h"
SF_C_BEGIN

/* NULL if there is none of this name. */
const struct sf_method *sf_method_find(const char *name);
/* The nearest name of a method that exists, or NULL. */
const char *sf_method_nearest(const char *name);
/* What calibration has to do with an option of the method. */
enum sf_calib_kind sf_calib_kind_of(const struct sf_method *method, const char *key);

SF_C_END
#endif
