/* model/split.h: pre-tokenizers: cutting text into the pieces inside which merges happen. */
#ifndef SHEAF_MODEL_SPLIT_H
#define SHEAF_MODEL_SPLIT_H
#include <stddef.h>
#include "base/status.h"
SF_C_BEGIN

struct sf_split;

/* `name` as in tokenizer.ggml.pre.  SF_UNSUPPORTED, with the names we know, for any other. */
sf_status sf_split_create(const char *name, size_t name_bytes, struct sf_split **split_out);
void      sf_split_destroy(struct sf_split *);
const char *sf_split_name(const struct sf_split *);
int       sf_split_adds_bos(const struct sf_split *);       /* if the file does not say */
int       sf_split_whole_pieces(const struct sf_split *);   /* a piece that is a token stays one */

/* Calls `piece` for every piece of `text` in order; pieces join up to the text.  Ill-formed bytes
 * become pieces of one byte.  Safe from several threads. */
sf_status sf_split_text(const struct sf_split *, const char *text, size_t bytes,
                        sf_status (*piece)(void *context, const char *at, size_t bytes),
                        void *context);
/* The same pieces by the expressions themselves, an order of magnitude slower: what sf_split_text
 * is tested against.  SF_INVALID if a text takes more matching work than any ordinary text does. */
sf_status sf_split_text_defined(const struct sf_split *, const char *text, size_t bytes,
                                sf_status (*piece)(void *context, const char *at, size_t bytes),
                                void *context);

SF_C_END
#endif
