/* tests/unit/coordinator/made_job.h: a job made up for tests of the coordinator: a configuration, a
 * tiny model with its tokenizer, a cluster and a plan, and what its workers would say: tokens and
 * scores that are pure functions of the prompt, so that whoever was disturbed can be compared with
 * whoever was not. */
#ifndef SHEAF_TESTS_MADE_JOB_H
#define SHEAF_TESTS_MADE_JOB_H
#include <stdint.h>

#include "coordinator/cluster.h"
#include "coordinator/config.h"
#include "coordinator/plan.h"
#include "model/tokenizer.h"
#include "proto/wire.h"

enum { MADE_VOCAB = 300, MADE_EOS = 1 };        /* one token in twelve ends an answer */

struct made_shape { int32_t tensor, pipeline, data; };
struct made_job {
    struct sf_config config;
    struct sf_model *model;
    struct sf_tokenizer *tokenizer;
    struct sf_cluster cluster;
    struct sf_launch_plan plan;
};
/* more: lines of configuration beside `parallel`.  pages: of every rank's pool, whatever the
 * configuration says; 0: as planned. */
sf_status made_job_open(struct made_job *, struct made_shape, const char *more, int64_t pages);
void      made_job_close(struct made_job *);

/* Token `index` of the answer that is sampled from a stream. */
int32_t   made_token(const int32_t *prompt, int32_t prompt_tokens, uint64_t stream, int32_t index);
/* The score of a token at `pos`.  Of a prompt's token: prompt_tokens are those before it, and the
 * stream is 0. */
struct sf_wire_score made_score(const int32_t *prompt, int32_t prompt_tokens, uint64_t stream,
                                int32_t pos, int32_t token, int32_t tops,
                                struct sf_wire_top *top_out);
#endif
