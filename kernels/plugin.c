/* kernels/plugin.c: backends that live in shared objects of their own, so that one program serves
 * machines with and without their libraries. */
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/log.h"
#include "kernels/backend.h"

/* What a plugin finds in the program beside sf_base: named here, so that the static library brings
 * it along. */
sf_status (*const sf_backend_hosted_factor)(struct sf_device *, const struct sf_factor_job *) =
    sf_hosted_factor;

/* The folder of the program, with '/' at its end; "" if the system does not tell. */
static void program_folder(char *folder, size_t bytes)
{
    ssize_t length = readlink("/proc/self/exe", folder, bytes - 1);
    folder[length > 0 ? length : 0] = 0;
    char *slash = strrchr(folder, '/');
    folder[slash ? slash + 1 - folder : 0] = 0;
}

static void *object_open(const char *file)
{
    static const char *const places[] = { "", "../", "../lib/" };
    char folder[PATH_MAX], path[PATH_MAX + 64];
    program_folder(folder, sizeof folder);
    for (size_t i = 0; folder[0] && i < sizeof places / sizeof *places; i++) {
        snprintf(path, sizeof path, "%s%s%s", folder, places[i], file);
        if (access(path, R_OK) == 0) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    return dlopen(file, RTLD_NOW | RTLD_LOCAL);
}

/* A plugin of a time when there was no check has no layout. */
static int layout_fits(void *object)
{
    static const uint32_t ours[SF_BACKEND_WORDS] = SF_BACKEND_LAYOUT;
    const uint32_t *theirs = dlsym(object, "sf_backend_layout");
    return theirs && memcmp(theirs, ours, sizeof ours) == 0;
}

static sf_status refuse_layout(const char *file, const void *backend)
{
    Dl_info found;
    const char *path = dladdr(backend, &found) != 0 && found.dli_fname ? found.dli_fname : file;
    int target = (int)(strrchr(file, '.') - file) - 3;      /* without lib and .so */
    return SF_FAIL(SF_UNSUPPORTED, "%s was built from other sources than this program, with other"
                   " layouts: build the target %.*s again", path, target, file + 3);
}

sf_status sf_backend_load(const char *name, const struct sf_backend **backend_out)
{
    char file[64];
    snprintf(file, sizeof file, "libsheaf_%s.so", name);
    for (char *c = file; *c; c++)
        if (*c == '-') *c = '_';
    void *object = object_open(file);
    const struct sf_backend *backend = object ? dlsym(object, "sf_backend_plugin") : NULL;
    if (!backend) {
        const char *why = dlerror();
        return SF_FAIL(SF_UNSUPPORTED, "there is no backend '%s' here: %s", name,
                       why ? why : "its shared object is empty");
    }
    if (!layout_fits(object)) return refuse_layout(file, backend);
    /* This call has sf_log linked into every program that opens plugins, which use it too. */
    sf_log(SF_LOG_DEBUG, "backend '%s' is in a shared object", name);
    *backend_out = backend;
    return SF_OK;
}

const void *sf_backend_symbol(const struct sf_backend *backend, const char *name)
{
    Dl_info found;
    if (backend == &sf_backend_ref || backend == &sf_backend_cpu) return NULL;
    if (dladdr(backend, &found) == 0) return NULL;
    void *object = dlopen(found.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    if (!object) return NULL;
    const void *symbol = dlsym(object, name);
    dlclose(object);                    /* it stays loaded all the same */
    return symbol;
}
