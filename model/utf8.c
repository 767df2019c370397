/* model/utf8.c: text that arrives in pieces, let out in whole characters.
 *
 * What is held is always a proper beginning of a well-formed character, at most three bytes.  A
 * byte that cannot continue it turns what is held into one U+FFFD and is then looked at afresh:
 * that is one U+FFFD for each maximal ill-formed part, as Unicode recommends.
 *
 *   F0 9F | 99 41     held F0 9F, then F0 9F 99, then: U+FFFD 'A'
 *   C0 AF             C0 begins nothing: U+FFFD; AF begins nothing: U+FFFD */
#include "model/tokenizer.h"

/* Bytes of a character that begins with `lead`; 0 if none does. */
static int32_t length_of(unsigned char lead)
{
    if (lead < 0x80) return 1;
    if (lead >= 0xc2 && lead <= 0xdf) return 2;
    if (lead >= 0xe0 && lead <= 0xef) return 3;
    if (lead >= 0xf0 && lead <= 0xf4) return 4;
    return 0;
}

/* Whether `byte` may stand at `index` >= 1 of a character that begins with `lead`: overlong forms,
 * surrogates and what lies beyond U+10FFFF are recognised by the second byte. */
static int continues(unsigned char lead, int32_t index, unsigned char byte)
{
    unsigned char low = 0x80, high = 0xbf;
    if (index == 1) {
        if (lead == 0xe0) low = 0xa0;
        if (lead == 0xed) high = 0x9f;
        if (lead == 0xf0) low = 0x90;
        if (lead == 0xf4) high = 0x8f;
    }
    return byte >= low && byte <= high;
}

static size_t replacement(char *out)
{
    out[0] = (char)0xef;
    out[1] = (char)0xbf;
    out[2] = (char)0xbd;
    return 3;
}

size_t sf_utf8_push(struct sf_utf8_stream *stream, const char *bytes, size_t count, char *out)
{
    size_t written = 0;
    for (size_t i = 0; i < count; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (stream->count > 0 && !continues(stream->held[0], stream->count, byte)) {
            written += replacement(out + written);
            stream->count = 0;
        }
        if (stream->count == 0 && length_of(byte) == 0) {
            written += replacement(out + written);
            continue;
        }
        SF_ASSERT(stream->count >= 0 && stream->count < 4);
        stream->held[stream->count++] = byte;
        if (stream->count < length_of(stream->held[0])) continue;
        for (int32_t k = 0; k < stream->count; k++) out[written++] = (char)stream->held[k];
        stream->count = 0;
    }
    return written;
}

size_t sf_utf8_flush(struct sf_utf8_stream *stream, char *out)
{
    if (stream->count == 0) return 0;
    stream->count = 0;
    return replacement(out);
}
