/* The made-up job: configuration, model, plan, tokens and scores (made_job.h). */
#include "tests/unit/coordinator/made_job.h"

#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "tests/unit/model/tiny_gguf.h"

enum { EOS_ONE_IN = 12 };

static sf_status open_model(struct made_job *job)
{
    struct tiny_spec spec = tiny_default();
    struct tiny_file file = tiny_make(&spec);
    sf_status status = sf_model_open(tiny_path(file.bytes, file.count), &job->model);
    tiny_free(&file);
    if (status == SF_OK) status = sf_tokenizer_create(job->model, &job->tokenizer);
    tiny_close();                       /* the model is mapped */
    return status;
}

sf_status made_job_open(struct made_job *job, struct made_shape shape, const char *more,
                        int64_t pages)
{
    char text[2048];
    int32_t ranks = shape.tensor * shape.pipeline * shape.data;
    int bytes = snprintf(text, sizeof text, "schema_version: 1\nmodel: {path: models/some.gguf}\n"
                         "parallel: {tensor_parallel_size: %d, pipeline_parallel_size: %d, "
                         "data_parallel_size: %d}\n%s", shape.tensor, shape.pipeline, shape.data,
                         more);
    memset(job, 0, sizeof *job);
    SF_TRY(open_model(job));
    SF_TRY(sf_config_parse("job.yaml", text, (size_t)bytes, NULL, &job->config));
    SF_TRY(sf_cluster_make(1, ranks, 4, 1 << 30, &job->cluster));
    SF_TRY(sf_launch_plan_make(&job->config, job->model, &job->cluster, &job->plan));
    for (int32_t r = 0; r < ranks && pages > 0; r++) job->plan.rank[r].pages = pages;
    return SF_OK;
}

void made_job_close(struct made_job *job)
{
    sf_launch_plan_free(&job->plan);
    sf_cluster_free(&job->cluster);
    sf_config_free(&job->config);
    sf_tokenizer_destroy(job->tokenizer);
    sf_model_close(job->model);
}

static uint64_t key_of(const int32_t *prompt, int32_t tokens)
{
    return sf_hash64(prompt, (size_t)tokens * sizeof *prompt);
}

int32_t made_token(const int32_t *prompt, int32_t prompt_tokens, uint64_t stream, int32_t index)
{
    uint64_t bits = sf_rng_u64(key_of(prompt, prompt_tokens), stream, (uint64_t)index);
    int32_t first = MADE_EOS + 2;       /* no control tokens */
    if (bits % EOS_ONE_IN == 0) return MADE_EOS;
    return first + (int32_t)((bits >> 8) % (uint64_t)(MADE_VOCAB - first));
}

struct sf_wire_score made_score(const int32_t *prompt, int32_t prompt_tokens, uint64_t stream,
                                int32_t pos, int32_t token, int32_t tops,
                                struct sf_wire_top *top_out)
{
    uint64_t bits = sf_rng_u64(~key_of(prompt, prompt_tokens), stream, (uint64_t)pos);
    struct sf_wire_score score = {.pos = pos, .token = token, .tops = tops, .top = top_out,
                                  .logprob = -(float)(bits % 512) / 64.0f,
                                  .rank = 1 + (int32_t)((bits >> 16) % MADE_VOCAB)};
    for (int32_t i = 0; i < tops; i++)
        top_out[i] = (struct sf_wire_top){(int32_t)((bits + 7 * (uint64_t)i) % MADE_VOCAB),
                                          -0.25f * (float)(i + 1)};
    return score;
}
