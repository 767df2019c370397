/* model/sha256.c: the digest of a model file, by libcrypto; the only file that sees OpenSSL. */
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

#include "model/model_impl.h"

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
