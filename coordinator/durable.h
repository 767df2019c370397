/* coordinator/durable.h: files that are there after a power cut, beside what base/files.h does for
 * one small file at a time: syncing, and renaming so that whatever dies at whatever moment, the old
 * file is there or the new one, whole.
 *
 *   write PATH.new, whole   sf_file_write
 *   bytes reach the disk    sf_durable_sync
 *   rename, and that too    sf_durable_rename
 *
 * Failures are SF_IO with the path and the system's words. */
#ifndef SHEAF_COORDINATOR_DURABLE_H
#define SHEAF_COORDINATOR_DURABLE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

/* A file that cannot be synced at all (a device) is fine. */
sf_status sf_durable_sync(int file, const char *path);
/* The folder that holds `path`: a file made, renamed or removed there is so after a power cut. */
sf_status sf_durable_sync_folder(const char *path);
/* Over what is there, in one folder, and syncs that. */
sf_status sf_durable_rename(const char *fresh, const char *path);
/* Exactly so many bytes from `offset` on; SF_IO "has been cut short" if the file ends before. */
sf_status sf_durable_read(int file, const char *path, int64_t offset, size_t count,
                          void *bytes_out);
/* path + ending, malloc'd. */
sf_status sf_durable_name(const char *path, const char *ending, char **name_out);

SF_C_END
#endif
