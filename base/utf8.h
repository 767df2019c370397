/* base/utf8.h: where the characters of a text end. */
#ifndef SHEAF_BASE_UTF8_H
#define SHEAF_BASE_UTF8_H
#include <stddef.h>
#include "base/status.h"
SF_C_BEGIN

/* Bytes of the character that starts at `text`, of which `bytes` are there: 1 to 4, or 0 where no
 * valid one starts (RFC 3629: shortest form only, no surrogates, nothing past U+10FFFF). */
size_t sf_utf8_char_bytes(const char *text, size_t bytes);
int    sf_utf8_valid(const char *text, size_t bytes);

SF_C_END
#endif
