/* model/bpe.h: byte-level byte-pair encoding of one piece. */
#ifndef SHEAF_MODEL_BPE_H
#define SHEAF_MODEL_BPE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "model/file.h"
#include "model/tokenizer.h"
SF_C_BEGIN

struct sf_bpe;
struct sf_bpe_pair { struct sf_text left, right; };     /* as raw bytes; index = rank */

/* `symbol` [symbols]: raw bytes of token i, .at NULL if no merge may touch or make it (a control
 * token).  Texts must live as long as the sf_bpe.  SF_FORMAT if a merge joins or makes what is no
 * token. */
sf_status sf_bpe_create(const struct sf_text *symbol, int32_t symbols,
                        const struct sf_bpe_pair *pair, int32_t pairs, struct sf_bpe **bpe_out);
void      sf_bpe_destroy(struct sf_bpe *);
/* Token with exactly these bytes, or -1. */
int32_t   sf_bpe_find(const struct sf_bpe *, const char *at, size_t bytes);

/* Memory of the merging, kept between pieces; begin with zeros. */
struct sf_bpe_scratch { void *links, *heap; size_t links_capacity, heap_capacity; };
void      sf_bpe_scratch_free(struct sf_bpe_scratch *);
/* Appends the tokens of one piece.  n log n in its bytes.  A byte that is no token by itself and in
 * no merge is left out. */
sf_status sf_bpe_encode(const struct sf_bpe *, const char *piece, size_t bytes,
                        struct sf_bpe_scratch *, struct sf_tokens *tokens);
sf_status sf_tokens_push(struct sf_tokens *tokens, int32_t id);

SF_C_END
#endif
