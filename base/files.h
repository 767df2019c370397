/* base/files.h: files that are there whole, or not at all, after a power cut.
 *
 *   write PATH.new, whole   sf_file_write
 *   bytes reach the disk    sf_file_sync
 *   rename, and that too    sf_file_rename        (all of this for a small file: sf_file_replace)
 *
 * Whatever dies at whatever moment, the old file is there or the new one.  Failures are SF_IO with
 * the path and the system's words. */
#ifndef SHEAF_BASE_FILES_H
#define SHEAF_BASE_FILES_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

/* All bytes, by as many write(2) as it takes; path is for the words.  SF_IO: some may be there. */
sf_status sf_file_write(int file, const char *path, const void *bytes, size_t count);
/* Exactly so many bytes from `offset` on; SF_IO "has been cut short" if the file ends before. */
sf_status sf_file_read(int file, const char *path, int64_t offset, size_t count, void *bytes_out);
/* All of a regular file, read-only, while it is mapped: SF_FORMAT "too few for `what`" if it
 * has fewer than `least` bytes (>= 1).  Ends with sf_file_unmap, which takes NULL. */
sf_status sf_file_map(const char *path, const char *what, size_t least,
                      const unsigned char **map_out, size_t *bytes_out);
void      sf_file_unmap(const unsigned char *map, size_t bytes);
/* A file that cannot be synced at all (a device) is fine. */
sf_status sf_file_sync(int file, const char *path);
/* The folder that holds `path`: a file made, renamed or removed there is so after a power cut. */
sf_status sf_file_sync_folder(const char *path);
/* path + ".new", made and opened for writing, in place of what an earlier try left there; SF_IO if
 * something else lies there.  name_out: malloc'd. */
sf_status sf_file_begin(const char *path, char **name_out, int *file_out);
/* Closes what sf_file_begin has made, of which all is written and synced if `status` is SF_OK, and
 * puts it in the place of `path`; else, and where that fails, removes it.  Frees the name. */
sf_status sf_file_end(const char *path, char *name, int file, sf_status status);
/* Over what is there, in one folder, and syncs that. */
sf_status sf_file_rename(const char *fresh, const char *path);
/* The file anew: written as `path`.new, synced, renamed.  On failure the old one is untouched. */
sf_status sf_file_replace(const char *path, const void *bytes, size_t count);
/* path + ending, malloc'd. */
sf_status sf_file_name(const char *path, const char *ending, char **name_out);

SF_C_END
#endif
