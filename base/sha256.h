/* base/sha256.h: digests of files: 64 lower-case hex digits and a NUL. */
#ifndef SHEAF_BASE_SHA256_H
#define SHEAF_BASE_SHA256_H
#include <stddef.h>
#include "base/status.h"
SF_C_BEGIN

/* Of a block of memory that is a file's map; its pages are let go as they have been read. */
sf_status sf_sha256_map(const unsigned char *map, size_t bytes, char hex_out[65]);
sf_status sf_sha256_file(const char *path, char hex_out[65]);

SF_C_END
#endif
