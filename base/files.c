/* base/files.c: whole writes (files.h). */
#include "base/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4200 };

sf_status sf_file_write(int file, const char *path, const void *bytes, size_t count)
{
    const char *from = bytes;
    while (count > 0) {
        ssize_t done = write(file, from, count);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0)
            return SF_FAIL(SF_IO, "%s: could not be written: %s", path, strerror(errno));
        from += done;
        count -= (size_t)done;
    }
    return SF_OK;
}

/* Not every file system syncs, and one that does not says EINVAL. */
static sf_status write_and_sync(int file, const char *path, const void *bytes, size_t count)
{
    SF_TRY(sf_file_write(file, path, bytes, count));
    if (fsync(file) == 0 || errno == EINVAL) return SF_OK;
    return SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
}

sf_status sf_file_replace(const char *path, const void *bytes, size_t count)
{
    char fresh[PATH_BYTES];
    if (snprintf(fresh, sizeof fresh, "%s.new", path) >= (int)sizeof fresh)
        return SF_FAIL(SF_INVALID, "a path of %zu bytes is too long", strlen(path));
    int file = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) return SF_FAIL(SF_IO, "%s: %s", fresh, strerror(errno));
    sf_status status = write_and_sync(file, fresh, bytes, count);
    if (close(file) != 0 && status == SF_OK)
        status = SF_FAIL(SF_IO, "%s: %s", fresh, strerror(errno));
    if (status == SF_OK && rename(fresh, path) != 0)
        status = SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
    if (status != SF_OK) unlink(fresh);
    return status;
}
