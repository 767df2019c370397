/* coordinator/answer_text.h: the text of one answer, token by token: UTF-8 that is whole at every
 * character, and stop strings, wherever tokens cut them. */
#ifndef SHEAF_COORDINATOR_ANSWER_TEXT_H
#define SHEAF_COORDINATOR_ANSWER_TEXT_H
#include <stddef.h>
#include "base/status.h"
#include "model/tokenizer.h"
SF_C_BEGIN

struct sf_stop { char *text; size_t bytes; };           /* at least one byte */
struct sf_answer_text {                 /* begin with zeros; text is freed by free() */
    char *text;
    size_t bytes, room;
    struct sf_utf8_stream utf8;         /* bytes of a character that is not whole yet */
};

/* Memory for so many tokens of usual length, so that few answers have to ask for more. */
sf_status sf_answer_text_reserve(struct sf_answer_text *, int32_t tokens);
/* Appends a token; without a tokenizer it is spelt token_id:123. */
sf_status sf_answer_text_push(struct sf_answer_text *, const struct sf_tokenizer *, int32_t token);
/* Nothing more comes: what is left of a broken character becomes U+FFFD. */
sf_status sf_answer_text_end(struct sf_answer_text *);
/* The text behind its first `old_bytes` is new.  1 if a stop string ends in there: the text is cut
 * where the first of them begins. */
int sf_answer_text_stop(struct sf_answer_text *, size_t old_bytes, const struct sf_stop *stop,
                        size_t stops);

SF_C_END
#endif
