/* model/tokenizer.h: text <-> token ids. */
#ifndef SHEAF_MODEL_TOKENIZER_H
#define SHEAF_MODEL_TOKENIZER_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

struct sf_model;
struct sf_tokenizer;
struct sf_tokens { int32_t *id; size_t count, capacity; };   /* free(id) by the owner */

/* From the model file's own tables.  SF_UNSUPPORTED for a pre-tokenizer we do not know (never
 * guessed); *out NULL and SF_OK if the file has none.  Thread-safe for concurrent use after. */
sf_status sf_tokenizer_create(const struct sf_model *, struct sf_tokenizer **out);
void      sf_tokenizer_destroy(struct sf_tokenizer *);
int32_t   sf_tokenizer_vocab(const struct sf_tokenizer *);
const char *sf_tokenizer_kind(const struct sf_tokenizer *);  /* "gpt2/smollm" */

/* Appends to `tokens`.  text: UTF-8, `bytes` long, NULs allowed; broken bytes are encoded as bytes
 * and come back unchanged, but for bytes that the vocabulary has no token for (SmolLM2 lacks 21 of
 * the 256): those are left out.  SF_INVALID for a text past 256 MiB.  parse_special 1: texts of
 * control tokens become their ids; 0: they are ordinary text.  add_bos 1: as the file says. */
sf_status sf_tokenizer_encode(const struct sf_tokenizer *, const char *text, size_t bytes,
                              int parse_special, int add_bos, struct sf_tokens *tokens);
/* Raw bytes of one token (not NUL-terminated); control tokens have bytes only if special is 1. */
const char *sf_tokenizer_bytes(const struct sf_tokenizer *, int32_t id, int special,
                               size_t *bytes_out);
int sf_tokenizer_is_eos(const struct sf_tokenizer *, int32_t id);
/* Stands for text: no control token, none that ends an answer, none of no bytes. */
int sf_tokenizer_is_ordinary(const struct sf_tokenizer *, int32_t id);

/* ---- streaming-safe text: whole characters come out, the rest waits ---- */
struct sf_utf8_stream { unsigned char held[4]; int32_t count; };
/* Appends what is complete of held + bytes to out (capacity >= 3 * (bytes + 4)), replacing what can
 * never become valid by U+FFFD (one for each maximal ill-formed part); returns bytes written. */
size_t sf_utf8_push(struct sf_utf8_stream *, const char *bytes, size_t count, char *out);
size_t sf_utf8_flush(struct sf_utf8_stream *, char *out);    /* what is held becomes U+FFFD */

/* ---- chat templates: a small set, known by its marks in the Jinja text ---- */
enum sf_chat { SF_CHAT_NONE, SF_CHAT_CHATML };
struct sf_message { const char *role, *content; size_t content_bytes; };
enum sf_chat sf_tokenizer_chat(const struct sf_tokenizer *);
/* Renders messages and the generation prompt to ids; contents are encoded with parse_special 0.
 * SF_INVALID for an unknown role; SF_UNSUPPORTED if the model has no template that we know. */
sf_status sf_chat_encode(const struct sf_tokenizer *, const struct sf_message *, size_t messages,
                         struct sf_tokens *tokens);

SF_C_END
#endif
