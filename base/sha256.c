/* base/sha256.c: digests of files, by libcrypto; the only file that sees OpenSSL. */
#include "base/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE_BYTES = 16 << 20 };        /* a multiple of any page size */

static int digest_map(EVP_MD_CTX *context, const unsigned char *map, size_t bytes,
                      unsigned char digest[32])
{
    if (EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1) return 0;
    for (size_t done = 0; done < bytes; done += PIECE_BYTES) {
        size_t piece = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
        if (EVP_DigestUpdate(context, map + done, piece) != 1) return 0;
        /* A file larger than memory passes through without pushing anything out. */
        (void)madvise((void *)(uintptr_t)(map + done), piece, MADV_DONTNEED);
    }
    return EVP_DigestFinal_ex(context, digest, NULL) == 1;
}

sf_status sf_sha256_map(const unsigned char *map, size_t bytes, char hex_out[65])
{
    unsigned char digest[32];
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    int done = context != NULL && digest_map(context, map, bytes, digest);
    EVP_MD_CTX_free(context);
    if (!done) return SF_FAIL(SF_INTERNAL, "libcrypto cannot compute SHA-256");
    for (int i = 0; i < 32; i++) snprintf(hex_out + 2 * i, 3, "%02x", digest[i]);
    return SF_OK;
}

sf_status sf_sha256_file(const char *path, char hex_out[65])
{
    struct stat info;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &info) != 0) {
        sf_status status = SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
        if (file >= 0) close(file);
        return status;
    }
    size_t bytes = (size_t)info.st_size;
    void *map = bytes > 0 ? mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, 0) : NULL;
    close(file);
    if (map == MAP_FAILED) return SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
    sf_status status = sf_sha256_map(map, bytes, hex_out);
    if (bytes > 0) munmap(map, bytes);
    return status;
}
