/* worker/choice.c: biases and tokens seen, of a sequence (choice.h). */
#include "worker/choice.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

int sf_choice_needs_row(const struct sf_wire_sampling *p)
{
    return p->temperature > 0.0 || p->biases > 0 || sf_wire_looks_back(p);
}

static int by_token(const void *left, const void *right)
{
    int32_t a = ((const struct sf_choice_bias *)left)->token;
    int32_t b = ((const struct sf_choice_bias *)right)->token;
    return (a > b) - (a < b);
}

/* Those of one token are added up. */
static sf_status keep_biases(const struct sf_wire_sampling *sampling, uint64_t seq, int32_t vocab,
                             struct sf_worker_choice *choice)
{
    choice->bias = malloc((size_t)sampling->biases * sizeof *choice->bias);
    if (choice->bias == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d biases", sampling->biases);
    for (int32_t i = 0; i < sampling->biases; i++) {
        int32_t token = sampling->bias[i].token;
        if (token >= vocab)
            return SF_FAIL(SF_INTERNAL, "sequence %llu has a bias of token %d of a vocabulary of "
                           "%d", (unsigned long long)seq, token, vocab);
        choice->bias[i] = (struct sf_choice_bias){token, sampling->bias[i].value};
    }
    qsort(choice->bias, (size_t)sampling->biases, sizeof *choice->bias, by_token);
    for (int32_t i = 0; i < sampling->biases; i++) {
        struct sf_choice_bias *last = choice->bias + choice->biases - 1;
        if (choice->biases > 0 && last->token == choice->bias[i].token)
            last->value += choice->bias[i].value;
        else
            choice->bias[choice->biases++] = choice->bias[i];
    }
    return SF_OK;
}

sf_status sf_choice_open(const struct sf_wire_sampling *sampling, uint64_t seq, int32_t prompt,
                         int32_t tokens_max, int32_t vocab, struct sf_worker_choice *out)
{
    out->prompt = prompt;
    if (sampling->biases > SF_CHOICE_BIASES_MAX || sampling->tops > SF_CHOICE_TOPS_MAX)
        return SF_FAIL(SF_INTERNAL, "sequence %llu has %d biases, at most %d, and asks for %d "
                       "likeliest tokens, at most %d", (unsigned long long)seq, sampling->biases,
                       SF_CHOICE_BIASES_MAX, sampling->tops, SF_CHOICE_TOPS_MAX);
    if (sampling->biases > 0) SF_TRY(keep_biases(sampling, seq, vocab, out));
    if (!sf_wire_looks_back(sampling)) return SF_OK;
    size_t distinct = (size_t)(tokens_max < vocab ? tokens_max : vocab);
    out->seen = malloc(distinct * sizeof *out->seen);
    if (out->seen == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for the %zu tokens of a sequence", distinct);
    return SF_OK;
}

void sf_choice_close(struct sf_worker_choice *choice)
{
    free(choice->bias);
    free(choice->seen);
    memset(choice, 0, sizeof *choice);
}

void sf_choice_saw(struct sf_worker_choice *choice, int32_t pos, int32_t token)
{
    int32_t low = 0, high = choice->seen_count;
    if (choice->seen == NULL || pos != choice->tokens) return;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (choice->seen[middle].token < token) low = middle + 1;
        else high = middle;
    }
    struct sf_choice_seen *place = choice->seen + low;
    if (low == choice->seen_count || place->token != token) {
        memmove(place + 1, place, (size_t)(choice->seen_count - low) * sizeof *place);
        *place = (struct sf_choice_seen){.token = token};
        choice->seen_count++;
    }
    place->count += choice->tokens++ >= choice->prompt;
}

struct sf_choose_row sf_choice_row(const struct sf_worker_choice *choice,
                                   const struct sf_wire_sampling *p, int32_t pos)
{
    SF_ASSERT(choice->seen == NULL || choice->tokens == pos);
    double u = p->temperature > 0.0 ? sf_rng_uniform(p->rng_key, p->rng_stream,
                                                     (uint64_t)(pos - choice->prompt)) : 0.0;
    return (struct sf_choose_row){.sample = 1,
                                  .temperature = p->temperature,
                                  .top_p = p->top_p,
                                  .min_p = p->min_p,
                                  .presence = p->presence,
                                  .frequency = p->frequency,
                                  .repetition = p->repetition,
                                  .u = u,
                                  .top_k = p->top_k,
                                  .biases = choice->biases,
                                  .seen = choice->seen_count,
                                  .bias = choice->bias,
                                  .token = choice->seen,
                                  .score = SF_SCORE_NONE};
}
