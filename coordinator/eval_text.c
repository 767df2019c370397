/* coordinator/eval_text.c: texts to sequences of token ids (eval_impl.h).
 *
 *   text of T tokens, m sequences of n:   |--n--|    |--n--|    |--n--|     the first at 0,
 *                                         0     ...                    T    the last ending at T
 *
 * Every sequence begins as a prompt of `run` does: with the token that the model's file puts before
 * a text, if there is one, which counts as one of its n. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "coordinator/eval_impl.h"

enum { TEXT_BYTES_MAX = 256 << 20 };

/* ---- cases ----------------------------------------------------------------------------------- */
static sf_status fill_case(struct eval_case *c, int32_t stacks)
{
    size_t n = (size_t)stacks;
    c->blocks = (eval_scored(c) + EVAL_BLOCK - 1) / EVAL_BLOCK;
    c->sum = calloc(n * (size_t)c->blocks, sizeof *c->sum);
    c->at_prompt = calloc(n, sizeof *c->at_prompt);
    c->at_end = calloc(n, sizeof *c->at_end);
    if (c->sum == NULL || c->at_prompt == NULL || c->at_end == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for the figures of a sequence");
    return SF_OK;
}

sf_status eval_add_case(struct sf_eval *eval, const struct eval_case *in)
{
    SF_ASSERT(in->prompt >= 1 && in->prompt < in->tokens);
    struct eval_case *cases = realloc(eval->cases, ((size_t)eval->case_count + 1) * sizeof *cases);
    if (cases == NULL) {
        free(in->token);
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d sequences", eval->case_count + 1);
    }
    eval->cases = cases;
    cases[eval->case_count] = *in;
    return fill_case(&cases[eval->case_count++], eval->list.stacks);
}

/* ---- files ----------------------------------------------------------------------------------- */
sf_status eval_read_file(const char *path, char **text_out, size_t *bytes_out)
{
    struct stat info;
    int opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);     /* a pipe: no waiting for it */
    FILE *file = opened < 0 ? NULL : fdopen(opened, "rb");
    if (file == NULL) {
        int reason = errno;
        if (opened >= 0) close(opened);
        return SF_FAIL(SF_INVALID, "%s: %s", path, strerror(reason));
    }
    char *text = NULL;
    size_t bytes = 0;
    sf_status status = SF_OK;
    if (fstat(fileno(file), &info) != 0 || !S_ISREG(info.st_mode))
        status = SF_FAIL(SF_INVALID, "%s: is no regular file", path);
    else if (info.st_size > TEXT_BYTES_MAX)
        status = SF_FAIL(SF_INVALID, "%s: has more than %d bytes", path, TEXT_BYTES_MAX);
    else if ((text = malloc((size_t)info.st_size + 1)) == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for %s", path);
    if (status == SF_OK) {
        bytes = fread(text, 1, (size_t)info.st_size, file);
        if (ferror(file)) status = SF_FAIL(SF_INVALID, "%s: %s", path, strerror(errno));
    }
    fclose(file);
    if (status != SF_OK) {
        free(text);
        return status;
    }
    text[bytes] = '\0';
    *text_out = text;
    *bytes_out = bytes;
    return SF_OK;
}

static sf_status encode_file(const struct sf_tokenizer *tokenizer, const char *path,
                             struct sf_tokens *tokens)
{
    char *text;
    size_t bytes;
    SF_TRY(eval_read_file(path, &text, &bytes));
    size_t mark = bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    sf_status status = sf_tokenizer_encode(tokenizer, text + mark, bytes - mark, 1, 0, tokens);
    free(text);
    return status;
}

/* ---- texts ----------------------------------------------------------------------------------- */
struct cut {                            /* how one text becomes sequences */
    int64_t tokens;                     /* of the text */
    int32_t first;                      /* tokens that are put before each */
    int32_t sequences, length, prompt;
};

static sf_status plan_cut(const struct sf_eval *eval, const char *path, int32_t tokens_max,
                          struct cut *cut)
{
    int64_t own = cut->tokens / cut->sequences + cut->first;    /* the most that one can have */
    int64_t length = eval->length > 0 ? eval->length : own < tokens_max ? own : tokens_max;
    if (length > tokens_max)
        return SF_FAIL(SF_INVALID, "--len %lld is more than scheduler.max_model_len, %d",
                       (long long)length, tokens_max);
    if (length > own || length < 2)
        return SF_FAIL(SF_INVALID, "%s has %lld tokens, too few for %d sequences of %lld", path,
                       (long long)cut->tokens, cut->sequences,
                       (long long)(length < 2 ? 2 : length));
    cut->length = (int32_t)length;
    cut->prompt = eval->prompt > 0 ? eval->prompt : cut->length / 2;
    if (cut->prompt >= cut->length)
        return SF_FAIL(SF_INVALID, "--prompt-len %d leaves nothing to score of %s, whose sequences "
                       "have %d tokens", cut->prompt, path, cut->length);
    return SF_OK;
}

static sf_status add_sequences(struct sf_eval *eval, int32_t text, const struct cut *cut,
                               const struct sf_tokens *before, const struct sf_tokens *tokens)
{
    int32_t own = cut->length - cut->first;
    int64_t room = cut->tokens - own;
    for (int32_t i = 0; i < cut->sequences; i++) {
        struct eval_case c = {.tokens = cut->length, .prompt = cut->prompt, .text = text};
        c.start = cut->sequences > 1 ? room * i / (cut->sequences - 1) : 0;
        c.token = malloc((size_t)cut->length * sizeof *c.token);
        if (c.token == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d tokens", cut->length);
        if (cut->first > 0) memcpy(c.token, before->id, (size_t)cut->first * sizeof *c.token);
        memcpy(c.token + cut->first, tokens->id + c.start, (size_t)own * sizeof *c.token);
        SF_TRY(eval_add_case(eval, &c));
    }
    return SF_OK;
}

sf_status eval_text_cases(struct sf_eval *eval, const struct sf_tokenizer *tokenizer,
                          int32_t tokens_max)
{
    int32_t all = eval->sequences > 0 ? eval->sequences : eval->texts;
    struct sf_tokens before = {0};
    sf_status status = sf_tokenizer_encode(tokenizer, "", 0, 1, 1, &before);
    eval->text_tokens = calloc((size_t)eval->texts + 1, sizeof *eval->text_tokens);
    if (status == SF_OK && eval->text_tokens == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for %d texts", eval->texts);
    for (int32_t t = 0; t < eval->texts && status == SF_OK; t++) {
        struct sf_tokens tokens = {0};
        struct cut cut = {.first = (int32_t)before.count,
                          .sequences = all / eval->texts + (t < all % eval->texts)};
        status = encode_file(tokenizer, eval->text[t], &tokens);
        eval->text_tokens[t] = cut.tokens = (int64_t)tokens.count;
        if (status == SF_OK) status = plan_cut(eval, eval->text[t], tokens_max, &cut);
        if (status == SF_OK) status = add_sequences(eval, t, &cut, &before, &tokens);
        free(tokens.id);
    }
    free(before.id);
    return status;
}
