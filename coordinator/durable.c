/* coordinator/durable.c: fsync of files and of the folders that name them. */
#include "coordinator/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

sf_status sf_durable_sync(int file, const char *path)
{
    if (fsync(file) == 0 || errno == EINVAL || errno == EROFS) return SF_OK;
    return SF_FAIL(SF_IO, "%s: could not be synced: %s", path, strerror(errno));
}

sf_status sf_durable_sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == NULL ? strdup(".")
                                 : strndup(path, slash == path ? 1 : (size_t)(slash - path));
    if (folder == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the name of a folder");
    int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    sf_status status = file < 0 ? SF_FAIL(SF_IO, "%s: %s", folder, strerror(errno))
                                : sf_durable_sync(file, folder);
    if (file >= 0) close(file);
    free(folder);
    return status;
}

sf_status sf_durable_rename(const char *fresh, const char *path)
{
    if (rename(fresh, path) != 0)
        return SF_FAIL(SF_IO, "%s: could not be renamed to '%s': %s", fresh, path,
                       strerror(errno));
    return sf_durable_sync_folder(path);
}

sf_status sf_durable_read(int file, const char *path, int64_t offset, size_t count,
                          void *bytes_out)
{
    char *at = bytes_out;
    while (count > 0) {
        ssize_t done = pread(file, at, count, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return SF_FAIL(SF_IO, "%s: could not be read: %s", path, strerror(errno));
        if (done == 0) return SF_FAIL(SF_IO, "%s: has been cut short while it was read", path);
        at += done;
        offset += done;
        count -= (size_t)done;
    }
    return SF_OK;
}

sf_status sf_durable_name(const char *path, const char *ending, char **name_out)
{
    size_t bytes = strlen(path) + strlen(ending) + 1;
    char *name = malloc(bytes);
    if (name == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the name of a file");
    snprintf(name, bytes, "%s%s", path, ending);
    *name_out = name;
    return SF_OK;
}
