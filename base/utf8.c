/* base/utf8.c: the table of well-formed UTF-8 byte sequences (RFC 3629, section 4), as code.
 *
 *   first byte   second byte   third, fourth
 *   00..7f
 *   c2..df       80..bf
 *   e0           a0..bf        80..bf               (below a0: a longer form of something shorter)
 *   e1..ef       80..bf        80..bf               (ed: only 80..9f, the rest are surrogates)
 *   f0           90..bf        80..bf 80..bf
 *   f1..f3       80..bf        80..bf 80..bf
 *   f4           80..8f        80..bf 80..bf        (above: past U+10FFFF) */
#include "base/utf8.h"

size_t sf_utf8_char_bytes(const char *text, size_t bytes)
{
    if (bytes == 0) return 0;
    const unsigned char *byte = (const unsigned char *)text;
    unsigned char first = byte[0];
    if (first < 0x80) return 1;
    size_t length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length == 0 || length > bytes) return 0;
    unsigned char least = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    unsigned char most = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    if (byte[1] < least || byte[1] > most) return 0;
    for (size_t i = 2; i < length; i++)
        if ((byte[i] & 0xc0) != 0x80) return 0;
    return length;
}

int sf_utf8_valid(const char *text, size_t bytes)
{
    for (size_t i = 0, length; i < bytes; i += length) {
        length = sf_utf8_char_bytes(text + i, bytes - i);
        if (length == 0) return 0;
    }
    return 1;
}
