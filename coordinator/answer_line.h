/* coordinator/answer_line.h: what can be told of a line of OUT without building its tree: whose
 * answer it is, and whether it holds an error.  An answer with log probabilities may have more
 * values than base/json.h takes, and merging only needs two members at the top. */
#ifndef SHEAF_COORDINATOR_ANSWER_LINE_H
#define SHEAF_COORDINATOR_ANSWER_LINE_H
#include <stddef.h>
#include "base/memory.h"
#include "base/status.h"
SF_C_BEGIN

struct sf_answer_line {
    const char *id; size_t id_bytes;    /* custom_id; NULL: null (nothing of the input was legible);
                                           in the text or in the buffer */
    int error;                          /* `error` is not null */
};

/* SF_FORMAT with words (without file and line) if the text is not one object that has custom_id, a
 * text or null, and response or error; what is inside of other members is not looked at. */
sf_status sf_answer_line_read(const char *text, size_t bytes, struct sf_buffer *buffer,
                              struct sf_answer_line *out);

SF_C_END
#endif
