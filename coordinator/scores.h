/* coordinator/scores.h: log probabilities of the tokens of one answer, or of one prompt, as the
 * workers scored them: kept until the record is written, saved by the journal, and written in the
 * form of the record's url.
 *
 *   score  | of token 0 | of token 1 | ...         top  | t t t | t t t | ...   `tops` places each
 *
 * Saved, little-endian, one block of whole scores after the other:
 *
 *   byte  0       4     8       12        16     20     24      28        32
 *         | scores| pos | token | logprob | rank | tops | token | logprob | token  ...
 *                 | ----------- of the first ---------- | ---- tops pairs ----------
 */
#ifndef SHEAF_COORDINATOR_SCORES_H
#define SHEAF_COORDINATOR_SCORES_H
#include <stddef.h>
#include <stdint.h>
#include "base/memory.h"
#include "base/status.h"
#include "proto/wire.h"
SF_C_BEGIN

struct sf_scores {                      /* begin with zeros and `tops` */
    int32_t tops;                       /* likeliest tokens kept of each */
    int32_t count;                      /* tokens scored: 0 .. count - 1, without a gap */
    /* their `seq` and `top` are not set: sf_scores_top */
    struct sf_wire_score *score; size_t score_room;
    struct sf_wire_top *top; size_t top_room;   /* [count][tops] */
};
/* The score of token `index` <= count; an index below count is written anew.  Of more likeliest
 * tokens than `tops` the first are kept. */
sf_status sf_scores_put(struct sf_scores *, int32_t index, const struct sf_wire_score *);
/* [score[index].tops] */
const struct sf_wire_top *sf_scores_top(const struct sf_scores *, int32_t index);
void      sf_scores_free(struct sf_scores *);   /* `tops` stays: it can be filled again */

/* Scores first .. count - 1 as bytes for the journal, appended to the buffer; and back: appended to
 * the scores that are there.  SF_FORMAT on bytes that are none (cut off, a log probability that is
 * no number, more than `tops` likeliest tokens), of which nothing is taken.  Several packed ones
 * may stand one after the other. */
sf_status sf_scores_pack(const struct sf_scores *, int32_t first, struct sf_buffer *);
sf_status sf_scores_unpack(struct sf_scores *, const void *bytes, size_t count);

SF_C_END
#endif
