/* worker/choice.h: what the choice of a sequence's tokens goes by: its biases, and the tokens of
 * its prompt and answer so far where a penalty looks at them, each once with its count, in the
 * order of the vocabulary.  Kept on the rank that samples. */
#ifndef SHEAF_WORKER_CHOICE_H
#define SHEAF_WORKER_CHOICE_H
#include <stdint.h>
#include "kernels/kernels.h"
#include "proto/wire.h"

struct sf_worker_choice {               /* starts zeroed */
    struct sf_choice_bias *bias; int32_t biases;        /* no token twice */
    struct sf_choice_seen *seen; int32_t seen_count;    /* NULL: no penalty */
    int32_t tokens, prompt;             /* tokens known so far: those that `seen` counts; of the
                                           prompt */
};
/* Whether a choice needs the whole row of logits, or the greatest one is enough. */
int       sf_choice_needs_row(const struct sf_wire_sampling *);
/* SF_INTERNAL where the sampling asks for more than the limits of kernels.h, or for a token outside
 * of the vocabulary; `seq` is for words.  Ended by sf_choice_close. */
sf_status sf_choice_open(const struct sf_wire_sampling *, uint64_t seq, int32_t prompt,
                         int32_t tokens_max, int32_t vocab, struct sf_worker_choice *out);
void      sf_choice_close(struct sf_worker_choice *);
/* The token at position `pos`, if that is the next one that is not known yet. */
void      sf_choice_saw(struct sf_worker_choice *, int32_t pos, int32_t token);
/* What a kernel is told of the choice of the token at position `pos`; no row, no score. */
struct sf_choose_row sf_choice_row(const struct sf_worker_choice *, const struct sf_wire_sampling *,
                                   int32_t pos);
#endif
