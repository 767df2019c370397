/* coordinator/answer_text.c: tokens to text (answer_text.h).
 *
 * A stop string may begin in one token and end in a later one, so after each token the search goes
 * back by the longest stop string less one byte.  It looks at whole characters only: what a token
 * leaves of a broken one waits in `utf8`. */
#include "coordinator/answer_text.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"

enum { TOKEN_TEXT = 64, TOKEN_BYTES_USUAL = 6 };

static sf_status make_room(struct sf_answer_text *t, size_t more)
{
    return sf_grow((void **)&t->text, &t->room, t->bytes + more, 1);
}

sf_status sf_answer_text_reserve(struct sf_answer_text *t, int32_t tokens)
{
    SF_ASSERT(tokens >= 0);
    return make_room(t, (size_t)tokens * TOKEN_BYTES_USUAL + TOKEN_TEXT);
}

sf_status sf_answer_text_push(struct sf_answer_text *t, const struct sf_tokenizer *tokenizer,
                              int32_t token)
{
    if (tokenizer == NULL) {
        char words[TOKEN_TEXT];
        size_t count = (size_t)snprintf(words, sizeof words, "token_id:%d ", token);
        SF_TRY(make_room(t, count));
        memcpy(t->text + t->bytes, words, count);
        t->bytes += count;
        return SF_OK;
    }
    size_t bytes = 0;
    const char *piece = sf_tokenizer_bytes(tokenizer, token, 0, &bytes);
    SF_TRY(make_room(t, 3 * (bytes + 4)));
    if (bytes > 0) t->bytes += sf_utf8_push(&t->utf8, piece, bytes, t->text + t->bytes);
    return SF_OK;
}

sf_status sf_answer_text_end(struct sf_answer_text *t)
{
    SF_TRY(make_room(t, 16));
    t->bytes += sf_utf8_flush(&t->utf8, t->text + t->bytes);
    return SF_OK;
}

int sf_answer_text_stop(struct sf_answer_text *t, size_t old_bytes, const struct sf_stop *stop,
                        size_t stops)
{
    size_t cut = t->bytes;
    int found = 0;
    for (size_t i = 0; i < stops; i++) {
        size_t back = stop[i].bytes - 1, from = old_bytes > back ? old_bytes - back : 0;
        if (t->bytes - from < stop[i].bytes) continue;
        const char *at = memmem(t->text + from, t->bytes - from, stop[i].text, stop[i].bytes);
        if (at == NULL) continue;
        found = 1;
        if ((size_t)(at - t->text) < cut) cut = (size_t)(at - t->text);
    }
    if (found) t->utf8 = (struct sf_utf8_stream){.count = 0};
    t->bytes = cut;
    return found;
}
