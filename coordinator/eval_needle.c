/* coordinator/eval_needle.c: facts hidden in filler text, to be found again (eval_impl.h).
 *
 *   [ what to do ] [ filler ... ] [ fact ] [ ... filler ] [ question ] | stem of the answer  NNNNN
 *    prompt, in the model's chat template if it has one                                     forced
 *
 * The fact stands behind a word of the filler, `depth` percent of the way.  Town, number, wording
 * and the place in the filler file where the filler begins are drawn by (seed, trial), so that a
 * trial is the same fact at every length and depth. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/rng.h"
#include "coordinator/eval_impl.h"

enum { NUMBER_BYTES = 16, LINE_BYTES = 256, TRIES = 12, STREAM = 0x6e656564 };

static const char *const town[] = {"Lisbon", "Oslo", "Nairobi", "Kyoto", "Quito", "Cairo", "Delhi",
                                   "Dublin", "Havana", "Prague", "Bergen", "Lima", "Athens",
                                   "Geneva", "Boston", "Tunis"};
static const struct wording { const char *fact, *question, *stem; } wording[] = {
    {"The magic number of %s is %s.", "What is the magic number of %s?",
     "The magic number of %s is"},
    {"Keep in mind that the secret code of %s is %s.", "What is the secret code of %s?",
     "The secret code of %s is"},
    {"By the way, the lucky number of %s happens to be %s.", "What is the lucky number of %s?",
     "The lucky number of %s is"},
};
enum { TOWNS = sizeof town / sizeof town[0], WORDINGS = sizeof wording / sizeof wording[0] };
static const char task[] = "Read the text and remember the number that it mentions.\n\n";

struct needle {                         /* of one trial */
    char fact[LINE_BYTES], question[LINE_BYTES], stem[LINE_BYTES];
    char number[NUMBER_BYTES];          /* with the blank before it */
    double place;                       /* where in the file its filler begins, of [0, 1) */
};
struct hay { char *text; size_t bytes; };

static struct needle draw(int64_t seed, int32_t trial)
{
    struct needle needle;
    uint64_t at = 4 * (uint64_t)trial;
    const char *where = town[sf_rng_u64((uint64_t)seed, STREAM, at) % TOWNS];
    const struct wording *words = &wording[(uint64_t)trial % WORDINGS];
    unsigned number = 10000 + (unsigned)(sf_rng_u64((uint64_t)seed, STREAM, at + 1) % 90000);
    char digits[NUMBER_BYTES];
    snprintf(digits, sizeof digits, "%u", number);
    snprintf(needle.number, sizeof needle.number, " %u", number);
    snprintf(needle.fact, sizeof needle.fact, words->fact, where, digits);
    snprintf(needle.question, sizeof needle.question, words->question, where);
    snprintf(needle.stem, sizeof needle.stem, words->stem, where);
    needle.place = sf_rng_uniform((uint64_t)seed, STREAM, at + 2);
    return needle;
}

/* ---- one prompt ------------------------------------------------------------------------------ */
static int is_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

/* The first byte of a word at `at` or behind it; `end` if there is none. */
static size_t word_at(const char *text, size_t at, size_t end)
{
    while (at < end && at > 0 && !is_blank(text[at - 1])) at++;
    return at;
}

/* `bytes` of the filler, from a word to a word's end, as a text with the fact in it. */
static sf_status bury(const struct hay *hay, const struct needle *needle, int32_t depth,
                      size_t bytes, char **text_out)
{
    size_t first = word_at(hay->text, (size_t)(needle->place * (double)(hay->bytes - bytes + 1)),
                           hay->bytes - bytes);
    const char *from = hay->text + first;
    while (bytes > 0 && !is_blank(from[bytes]) && from[bytes] != '\0') bytes--;
    size_t at = word_at(from, bytes * (size_t)depth / 100, bytes);
    size_t room = sizeof task + bytes + 2 * LINE_BYTES + 8;
    char *text = malloc(room);
    if (text == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a prompt of %zu bytes", room);
    snprintf(text, room, "%s%.*s%s%s %.*s\n\n%s", task, (int)at, from,
             at > 0 && !is_blank(from[at - 1]) ? " " : "", needle->fact, (int)(bytes - at),
             from + at, needle->question);
    *text_out = text;
    return SF_OK;
}

static sf_status encode_prompt(const struct sf_tokenizer *tokenizer, const char *text,
                               const char *stem, struct sf_tokens *tokens)
{
    if (sf_tokenizer_chat(tokenizer) != SF_CHAT_NONE) {
        struct sf_message message = {"user", text, strlen(text)};
        SF_TRY(sf_chat_encode(tokenizer, &message, 1, tokens));
    } else {
        SF_TRY(sf_tokenizer_encode(tokenizer, text, strlen(text), 0, 1, tokens));
        SF_TRY(sf_tokenizer_encode(tokenizer, "\n", 1, 0, 0, tokens));
    }
    return sf_tokenizer_encode(tokenizer, stem, strlen(stem), 0, 0, tokens);
}

/* As much filler as makes a prompt of at most `length` tokens: its bytes are guessed from those of
 * the prompt before. */
static sf_status fit_prompt(const struct sf_tokenizer *tokenizer, const struct hay *hay,
                            const struct needle *needle, const struct eval_case *c,
                            struct sf_tokens *tokens)
{
    size_t bytes = 3 * (size_t)c->length, good = 0;
    for (int try = 0; try < TRIES; try++) {
        char *text;
        if (bytes > hay->bytes) bytes = hay->bytes;
        tokens->count = 0;
        SF_TRY(bury(hay, needle, c->depth, bytes, &text));
        sf_status status = encode_prompt(tokenizer, text, needle->stem, tokens);
        free(text);
        SF_TRY(status);
        int64_t left = c->length - (int64_t)tokens->count;
        if (left >= 0 && (left < 8 || try > TRIES / 2)) return SF_OK;
        if (left >= 0 && bytes == hay->bytes) break;
        if (left >= 0) good = bytes;
        double per_token = bytes > 0 ? (double)bytes / (double)tokens->count : 4.0;
        double next = (double)bytes + (double)left * per_token - (left < 0 ? 8.0 : 0.0);
        if (next < (double)good) next = (double)good;
        if (next <= 0 && bytes == 0)
            return SF_FAIL(SF_INVALID, "a needle's prompt without any filler has %zu tokens, more "
                           "than --needle-lengths %d", tokens->count, c->length);
        bytes = next > 0 ? (size_t)next : 0;
    }
    if (tokens->count <= (size_t)c->length && bytes < hay->bytes) return SF_OK;
    return SF_FAIL(SF_INVALID, "the filler of %zu bytes is too short for a prompt of %d tokens",
                   hay->bytes, c->length);
}

static sf_status add_needle(struct sf_eval *eval, const struct sf_tokenizer *tokenizer,
                            const struct hay *hay, const struct needle *needle,
                            struct eval_case *c)
{
    struct sf_tokens tokens = {0};
    sf_status status = fit_prompt(tokenizer, hay, needle, c, &tokens);
    c->prompt = (int32_t)tokens.count;
    if (status == SF_OK)
        status = sf_tokenizer_encode(tokenizer, needle->number, strlen(needle->number), 0, 0,
                                     &tokens);
    c->tokens = (int32_t)tokens.count;
    c->token = tokens.id;
    if (status == SF_OK && c->tokens == c->prompt)
        status = SF_FAIL(SF_UNSUPPORTED, "the model's tokenizer has no tokens for a number");
    if (status == SF_OK) return eval_add_case(eval, c);
    free(tokens.id);
    return status;
}

/* ---- all of them ----------------------------------------------------------------------------- */
sf_status eval_needle_cases(struct sf_eval *eval, const struct sf_tokenizer *tokenizer,
                            int64_t seed, int32_t tokens_max)
{
    struct hay hay;
    for (int32_t l = 0; l < eval->needle_lengths; l++)
        if (eval->needle_length[l] > tokens_max - NUMBER_BYTES)
            return SF_FAIL(SF_INVALID, "--needle-lengths %d and an answer are more than "
                           "scheduler.max_model_len, %d", eval->needle_length[l], tokens_max);
    SF_TRY(eval_read_file(eval->filler, &hay.text, &hay.bytes));
    sf_status status = SF_OK;
    if (hay.bytes == 0 || strlen(hay.text) != hay.bytes)
        status = SF_FAIL(SF_INVALID, "%s: %s", eval->filler,
                         hay.bytes == 0 ? "is empty" : "holds a NUL byte; filler is text");
    for (int32_t l = 0; l < eval->needle_lengths; l++)
        for (int32_t d = 0; d < eval->depths; d++)
            for (int32_t t = 0; t < eval->trials && status == SF_OK; t++) {
                struct needle needle = draw(seed, t);
                struct eval_case c = {.text = -1, .start = t, .length = eval->needle_length[l],
                                      .depth = eval->depth[d]};
                status = add_needle(eval, tokenizer, &hay, &needle, &c);
            }
    free(hay.text);
    return status;
}
