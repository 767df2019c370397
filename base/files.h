/* base/files.h: writing files so that nobody ever sees half of one. */
#ifndef SHEAF_BASE_FILES_H
#define SHEAF_BASE_FILES_H
#include <stddef.h>
#include "base/status.h"
SF_C_BEGIN

/* All bytes, by as many write(2) as it takes; path is for the words.  SF_IO: some may be there. */
sf_status sf_file_write(int file, const char *path, const void *bytes, size_t count);
/* The file anew: written as `path`.new, synced, renamed.  On failure the old one is untouched. */
sf_status sf_file_replace(const char *path, const void *bytes, size_t count);

SF_C_END
#endif
