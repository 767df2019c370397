/* base/files.c: whole writes and reads, fsync of files and of the folders that name them. */
#include "base/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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

sf_status sf_file_read(int file, const char *path, int64_t offset, size_t count, void *bytes_out)
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

sf_status sf_file_map(const char *path, const char *what, size_t least,
                      const unsigned char **map_out, size_t *bytes_out)
{
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);       /* a pipe: no waiting for it */
    if (file < 0) return SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
    struct stat info;
    sf_status status = SF_OK;
    if (fstat(file, &info) != 0) {
        status = SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        status = SF_FAIL(SF_IO, "%s: not a regular file", path);
    } else if ((size_t)info.st_size < least) {
        status = SF_FAIL(SF_FORMAT, "%s: %lld bytes are too few for %s", path,
                         (long long)info.st_size, what);
    } else {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        if (map == MAP_FAILED) {
            status = SF_FAIL(SF_IO, "%s: cannot be mapped: %s", path, strerror(errno));
        } else {
            *map_out = map;
            *bytes_out = (size_t)info.st_size;
        }
    }
    close(file);
    return status;
}

void sf_file_unmap(const unsigned char *map, size_t bytes)
{
    if (map != NULL) munmap((void *)(uintptr_t)map, bytes);
}

sf_status sf_file_sync(int file, const char *path)
{
    if (fsync(file) == 0 || errno == EINVAL || errno == EROFS) return SF_OK;
    return SF_FAIL(SF_IO, "%s: could not be synced: %s", path, strerror(errno));
}

sf_status sf_file_sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == NULL ? strdup(".")
                                 : strndup(path, slash == path ? 1 : (size_t)(slash - path));
    if (folder == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the name of a folder");
    int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    sf_status status = file < 0 ? SF_FAIL(SF_IO, "%s: %s", folder, strerror(errno))
                                : sf_file_sync(file, folder);
    if (file >= 0) close(file);
    free(folder);
    return status;
}

sf_status sf_file_rename(const char *fresh, const char *path)
{
    if (rename(fresh, path) != 0)
        return SF_FAIL(SF_IO, "%s: could not be renamed to '%s': %s", fresh, path,
                       strerror(errno));
    return sf_file_sync_folder(path);
}

sf_status sf_file_begin(const char *path, char **name_out, int *file_out)
{
    struct stat info;
    char *fresh;
    SF_TRY(sf_file_name(path, ".new", &fresh));
    sf_status status = SF_OK;
    if (lstat(fresh, &info) == 0 && !S_ISREG(info.st_mode))
        status = SF_FAIL(SF_IO, "%s: exists and is no regular file", fresh);
    else if (unlink(fresh) != 0 && errno != ENOENT)
        status = SF_FAIL(SF_IO, "%s: %s", fresh, strerror(errno));
    int file = status != SF_OK ? -1 : open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (status == SF_OK && file < 0) status = SF_FAIL(SF_IO, "%s: %s", fresh, strerror(errno));
    if (status != SF_OK) {
        free(fresh);
        return status;
    }
    *name_out = fresh;
    *file_out = file;
    return SF_OK;
}

sf_status sf_file_end(const char *path, char *fresh, int file, sf_status status)
{
    if (close(file) != 0 && status == SF_OK)
        status = SF_FAIL(SF_IO, "%s: %s", fresh, strerror(errno));
    if (status == SF_OK) status = sf_file_rename(fresh, path);
    if (status != SF_OK) unlink(fresh);
    free(fresh);
    return status;
}

sf_status sf_file_replace(const char *path, const void *bytes, size_t count)
{
    char *fresh;
    int file;
    SF_TRY(sf_file_begin(path, &fresh, &file));
    sf_status status = sf_file_write(file, fresh, bytes, count);
    if (status == SF_OK) status = sf_file_sync(file, fresh);
    return sf_file_end(path, fresh, file, status);
}

sf_status sf_file_name(const char *path, const char *ending, char **name_out)
{
    size_t bytes = strlen(path) + strlen(ending) + 1;
    char *name = malloc(bytes);
    if (name == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the name of a file");
    snprintf(name, bytes, "%s%s", path, ending);
    *name_out = name;
    return SF_OK;
}
