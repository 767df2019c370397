/* tests/unit/bench/load.c: made-up prompts.
 *
 * They are made of ordinary tokens alone, or of the whole vocabulary where there is no tokenizer;
 * are the same for the same seed and number, whatever was asked before, and others for another
 * seed; lengths keep their bounds; no two prompts begin with the same token while there are tokens
 * left. */
#include "coordinator/bench_impl.h"

#include <stdlib.h>

#include "model/weights.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

enum { PROMPTS = 200, LONGEST = 40 };

static const struct sf_bench bench = {.prompts = PROMPTS, .input = {3, LONGEST},
                                      .output = {1, 9}};

/* A load of a tiny model; seed: sampling.seed. */
static struct bench_load load_of(int64_t seed, int with_tokenizer, struct sf_tokenizer **out)
{
    struct tiny_spec spec = tiny_default();
    if (!with_tokenizer) spec.tokens = 0;
    struct tiny_file file = tiny_make(&spec);
    struct sf_launch launch = {.config = {.sampling = {.seed = seed}}};
    struct bench_load load = {0};
    if (sf_model_open(tiny_path(file.bytes, file.count), &launch.model) != SF_OK ||
        sf_tokenizer_create(launch.model, out) != SF_OK) abort();
    const struct sf_desk desk = {.launch = &launch, .tokenizer = *out};
    SF_CHECK_OK(bench_load_make(&bench, &desk, &load));
    sf_model_close(launch.model);
    tiny_free(&file);
    tiny_close();
    return load;
}

static void tokens(void)
{
    struct sf_tokenizer *tokenizer;
    struct bench_load load = load_of(5, 1, &tokenizer);
    int32_t token[LONGEST], vocab = sf_tokenizer_vocab(tokenizer), specials = 0;
    uint8_t *seen = calloc((size_t)vocab, 1);
    for (int32_t i = 0; i < PROMPTS; i++) {
        struct bench_lengths lengths = bench_lengths_of(&load, i);
        SF_CHECK(lengths.input >= 3 && lengths.input <= LONGEST);
        SF_CHECK(lengths.output >= 1 && lengths.output <= 9);
        bench_prompt_of(&load, i, token);
        for (int32_t j = 0; j < lengths.input; j++) {
            size_t bytes;
            sf_tokenizer_bytes(tokenizer, token[j], 0, &bytes);
            if (bytes == 0 || sf_tokenizer_is_eos(tokenizer, token[j])) specials++;
            else seen[token[j]] = 1;
        }
    }
    int32_t used = 0;
    for (int32_t id = 0; id < vocab; id++) used += seen[id];
    SF_CHECK_INT(specials, 0);
    SF_CHECK(load.ordinary_count < vocab);              /* it has some that are not */
    SF_CHECK(used > load.ordinary_count * 9 / 10);      /* 4300 draws of about 300 */
    free(seen);
    bench_load_free(&load);
    sf_tokenizer_destroy(tokenizer);
    load = load_of(5, 0, &tokenizer);
    SF_CHECK(tokenizer == NULL);
    SF_CHECK_INT(load.ordinary_count, tiny_default().vocab);
    SF_CHECK_INT(load.ordinary[load.ordinary_count - 1], tiny_default().vocab - 1);
    bench_load_free(&load);
}

static int same(const struct bench_load *a, const struct bench_load *b, int32_t number)
{
    int32_t x[LONGEST], y[LONGEST];
    struct bench_lengths m = bench_lengths_of(a, number), n = bench_lengths_of(b, number);
    bench_prompt_of(a, number, x);
    bench_prompt_of(b, number, y);
    return m.input == n.input && m.output == n.output &&
           memcmp(x, y, (size_t)m.input * sizeof *x) == 0;
}

static void seeds(void)
{
    struct sf_tokenizer *tokenizer;
    struct bench_load first = load_of(5, 0, &tokenizer), again = load_of(5, 0, &tokenizer);
    struct bench_load other = load_of(6, 0, &tokenizer);
    int equal = 0, alike = 0;
    for (int32_t i = PROMPTS - 1; i >= 0; i--) {
        equal += same(&first, &again, i);
        alike += same(&first, &other, i);
    }
    SF_CHECK_INT(equal, PROMPTS);
    SF_CHECK_INT(alike, 0);
    bench_load_free(&first);
    bench_load_free(&again);
    bench_load_free(&other);
}

static void beginnings(void)
{
    struct sf_tokenizer *tokenizer;
    struct bench_load load = load_of(9, 0, &tokenizer);
    int32_t token[LONGEST], most = load.ordinary_count, twice = 0;
    uint8_t *seen = calloc((size_t)most, 1);
    for (int32_t i = 0; i < most; i++) {
        bench_prompt_of(&load, i, token);
        twice += seen[token[0]];
        seen[token[0]] = 1;
    }
    SF_CHECK_INT(twice, 0);
    free(seen);
    bench_load_free(&load);
}

static const struct sf_test tests[] = {
    {"prompts are of ordinary tokens", tokens},
    {"a seed says it all", seeds},
    {"no two begin alike", beginnings},
    {NULL, NULL}};
SF_TEST_MAIN("bench_load", tests)
