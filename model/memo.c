/* model/memo.c: pairs of entries; a new piece takes the place of its pair's older one.
 *
 *   small       0        8        16                  31       32
 *               | text 0 | text 1 | id 0 .. id 4      | sizes  |       ids of three bytes
 *   large       0        8        16       24       32                  62     63     64
 *               | text 0 | text 1 | text 2 | text 3 | id 0 .. id 9      | bytes| count|
 *
 * A pair of small entries is one line of the cache, which is what a lookup costs.  A piece of up to
 * 8 bytes is one word of text, one of up to 16 its first and its last 8 bytes, a longer one its
 * first and its last 16: with the length that is the piece itself, so what is found is right
 * whatever the hash does.  Texts that are made to collide push each other out, no more. */
#include "model/memo.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { SMALL_LOG = 15, LARGE_LOG = 13, SMALL_BYTES = 16, LARGE_BYTES = 32, SMALL_IDS = 5,
       ID_BYTES = 3, ID_MAX = 1 << 24 };

struct small { uint64_t text[2]; uint8_t id[SMALL_IDS * ID_BYTES], sizes; };    /* 0: nothing yet */
struct large { uint64_t text[4]; uint8_t id[SF_MEMO_IDS * ID_BYTES], bytes, count; };
_Static_assert(2 * sizeof(struct small) == SF_ALIGN && sizeof(struct large) == SF_ALIGN,
               "a pair of small ones, and a large one, is a line of the cache");

struct sf_memo {
    struct small small[1 << SMALL_LOG][2];
    struct large large[1 << LARGE_LOG][2];
};

/* ---- pieces ---------------------------------------------------------------------------------- */

static uint64_t word_at(const char *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* Up to 8 bytes, in words that overlap where there is no whole one. */
static uint64_t short_word(const char *at, size_t bytes)
{
    const unsigned char *b = (const unsigned char *)at;
    uint32_t low, high;
    if (bytes < 4) return b[0] | (uint64_t)b[bytes / 2] << 8 | (uint64_t)b[bytes - 1] << 16;
    memcpy(&low, at, sizeof low);
    memcpy(&high, at + bytes - 4, sizeof high);
    return low | (uint64_t)high << 32;
}

static void read_text(const char *at, size_t bytes, uint64_t text[4])
{
    text[1] = text[2] = text[3] = 0;
    if (bytes <= 8) {
        text[0] = short_word(at, bytes);
        return;
    }
    text[0] = word_at(at);
    if (bytes <= SMALL_BYTES) {
        text[1] = word_at(at + bytes - 8);
        return;
    }
    text[1] = word_at(at + 8);
    text[2] = word_at(at + bytes - 16);
    text[3] = word_at(at + bytes - 8);
}

static uint64_t hash_of(const uint64_t text[4], size_t bytes)
{
    uint64_t h = (text[0] ^ text[2] * 0xc2b2ae3d27d4eb4fu ^ bytes) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    return (h ^ text[1] ^ text[3] * 0x165667b19e3779f9u) * 0xd6e8feb86659fd93u;
}

static uint8_t sizes_of(size_t bytes, size_t count)
{
    return (uint8_t)(bytes | count << 5);
}
_Static_assert(SMALL_BYTES < 1 << 5 && SMALL_IDS < 1 << 3, "sizes of a small one fit a byte");

/* ---- ids ------------------------------------------------------------------------------------- */

/* Four bytes are read for three; behind the last id there are the sizes. */
static int32_t read_ids(const uint8_t *at, int32_t count, int32_t *id)
{
    for (int32_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, at + ID_BYTES * i, sizeof word);
        id[i] = (int32_t)(word & (ID_MAX - 1));
    }
    return count;
}
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "ids lie low byte first");

static int write_ids(uint8_t *at, const int32_t *id, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (id[i] >= ID_MAX) return 0;
        for (int b = 0; b < ID_BYTES; b++) at[ID_BYTES * i + (size_t)b] = (uint8_t)(id[i] >> 8 * b);
    }
    return 1;
}

/* ---- the tables ------------------------------------------------------------------------------ */

static int is_small(const struct small *e, const uint64_t text[4], size_t bytes)
{
    return (e->sizes & 31) == bytes && e->text[0] == text[0] && e->text[1] == text[1];
}

static int is_large(const struct large *e, const uint64_t text[4], size_t bytes)
{
    return e->bytes == bytes && memcmp(e->text, text, sizeof e->text) == 0;
}

int32_t sf_memo_find(const struct sf_memo *memo, const char *piece, size_t bytes,
                     int32_t id_out[SF_MEMO_IDS])
{
    if (bytes > LARGE_BYTES) return -1;
    uint64_t text[4];
    read_text(piece, bytes, text);
    uint64_t hash = hash_of(text, bytes);
    if (bytes <= SMALL_BYTES) {
        const struct small *e = memo->small[hash >> (64 - SMALL_LOG)];
        if (!is_small(e, text, bytes)) e++;
        if (is_small(e, text, bytes)) return read_ids(e->id, e->sizes >> 5, id_out);
    }
    const struct large *e = memo->large[hash >> (64 - LARGE_LOG)];
    if (!is_large(e, text, bytes)) e++;
    return is_large(e, text, bytes) ? read_ids(e->id, e->count, id_out) : -1;
}

void sf_memo_put(struct sf_memo *memo, const char *piece, size_t bytes, const int32_t *id,
                 size_t count)
{
    if (bytes > LARGE_BYTES || count > SF_MEMO_IDS) return;
    uint64_t text[4];
    read_text(piece, bytes, text);
    uint64_t hash = hash_of(text, bytes);
    if (bytes <= SMALL_BYTES && count <= SMALL_IDS) {
        struct small new = { .text = { text[0], text[1] }, .sizes = sizes_of(bytes, count) };
        struct small *pair = memo->small[hash >> (64 - SMALL_LOG)];
        if (!write_ids(new.id, id, count)) return;
        pair[1] = pair[0];
        pair[0] = new;
    } else {
        struct large new = { .bytes = (uint8_t)bytes, .count = (uint8_t)count };
        struct large *pair = memo->large[hash >> (64 - LARGE_LOG)];
        memcpy(new.text, text, sizeof new.text);
        if (!write_ids(new.id, id, count)) return;
        pair[1] = pair[0];
        pair[0] = new;
    }
}

sf_status sf_memo_create(struct sf_memo **memo_out)
{
    void *memo = NULL;
    SF_TRY(sf_alloc(sizeof(struct sf_memo), "pieces of text", &memo));
    *memo_out = memo;
    return SF_OK;
}

void sf_memo_destroy(struct sf_memo *memo) { sf_free(memo); }
