/* coordinator/bench_load.c: made-up prompts (bench_impl.h).  Everything is a pure function of
 * (seed, number of the prompt): the same for every stack, batch and layout.
 *
 *   stream 2i      index 0, 1: input and output length of prompt i
 *   stream 2i + 1  index j: its j-th token
 *   last stream    where in the vocabulary the first tokens begin */
#include <stdlib.h>

#include "base/rng.h"
#include "coordinator/bench_impl.h"

sf_status bench_load_make(const struct sf_bench *bench, const struct sf_desk *desk,
                          struct bench_load *out)
{
    int32_t vocab = sf_model_desc(desk->launch->model)->vocab;
    int32_t *ordinary = malloc((size_t)vocab * sizeof *ordinary), count = 0;
    if (ordinary == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d token ids", vocab);
    for (int32_t id = 0; id < vocab && desk->tokenizer != NULL; id++)
        if (sf_tokenizer_is_ordinary(desk->tokenizer, id)) ordinary[count++] = id;
    if (count == 0)
        for (; count < vocab; count++) ordinary[count] = count;
    *out = (struct bench_load){.seed = desk->launch->config.sampling.seed,
                               .prompts = bench->prompts,
                               .input = bench->input,
                               .output = bench->output,
                               .ordinary = ordinary,
                               .ordinary_count = count};
    return SF_OK;
}

void bench_load_free(struct bench_load *load)
{
    free(load->ordinary);
    *load = (struct bench_load){0};
}

static double draw(const struct bench_load *load, uint64_t stream, uint64_t index)
{
    return sf_rng_uniform((uint64_t)load->seed, stream, index);
}

struct bench_lengths bench_lengths_of(const struct bench_load *load, int32_t number)
{
    uint64_t stream = 2 * (uint64_t)number;
    return (struct bench_lengths){.input = sf_range_draw(load->input, draw(load, stream, 0)),
                                  .output = sf_range_draw(load->output, draw(load, stream, 1))};
}

void bench_prompt_of(const struct bench_load *load, int32_t number, int32_t *token_out)
{
    uint64_t stream = 2 * (uint64_t)number + 1;
    int32_t tokens = bench_lengths_of(load, number).input;
    double count = load->ordinary_count;
    int64_t first = (int64_t)(count * draw(load, UINT64_MAX, 0)) + number;
    token_out[0] = load->ordinary[first % load->ordinary_count];
    for (int32_t i = 1; i < tokens; i++)
        token_out[i] = load->ordinary[(int32_t)(count * draw(load, stream, (uint64_t)i))];
}
