/* model/tokenizer_impl.h: struct sf_tokenizer, shared by tokenizer.c and chat.c. */
#ifndef SHEAF_MODEL_TOKENIZER_IMPL_H
#define SHEAF_MODEL_TOKENIZER_IMPL_H
#include <stdatomic.h>
#include "model/bpe.h"
#include "model/memo.h"
#include "model/split.h"
#include "model/tokenizer.h"
SF_C_BEGIN

/* A token that is cut out of the text before anything else. */
struct sf_special { struct sf_text text; int32_t id; uint8_t always; };

/* What encoding works with and keeps from one text to the next. */
struct sf_encode_memory { struct sf_bpe_scratch scratch; struct sf_memo *memo; };
/* Whoever encodes takes the memory off the shelf and puts it back; who finds the shelf empty,
 * because another thread is at it, gets along without. */
struct sf_shelf { _Atomic(struct sf_encode_memory *) memory; };

struct sf_tokenizer {
    char kind[48];
    int32_t vocab;
    struct sf_text *text;               /* [vocab] raw bytes of each token, in `pool` */
    uint8_t *type;                      /* [vocab] as in tokenizer.ggml.token_type */
    char *pool;
    struct sf_text *symbol;             /* [vocab] `text` as merges see it, for bpe */
    struct sf_split *split;
    struct sf_bpe *bpe;
    struct sf_special *special;         /* in the order of their texts */
    int32_t specials, special_first[257];
    struct sf_shelf *shelf;
    int32_t bos, eos[8], eos_count;
    uint8_t add_bos;

    enum sf_chat chat;
    int32_t im_start, im_end;
    char *default_system;               /* NULL: none; owned */
    size_t default_system_bytes;
};

/* The control or user-defined token with this text, or -1. */
int32_t sf_tokenizer_special(const struct sf_tokenizer *, const char *text, size_t bytes);
/* chat.c: finds out from the Jinja text what the template does. */
sf_status sf_chat_detect(struct sf_tokenizer *, struct sf_text jinja);

SF_C_END
#endif
