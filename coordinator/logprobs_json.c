/* coordinator/logprobs_json.c: the forms of logprobs_json.h. */
#include "coordinator/logprobs_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_build.h"
#include "base/utf8.h"

enum { NUMBER_BYTES = 32, ESCAPED_BYTES = 4 };

/* Spells one token at a time; the text lives until the next. */
struct speller { const struct sf_tokenizer *tokenizer; struct sf_buffer text; };

static const struct sf_wire_score *score_of(const struct sf_scored *s, int32_t i,
                                            const struct sf_wire_top **top_out)
{
    int32_t index = i - s->unscored;
    SF_ASSERT(s->scores != NULL && index >= 0 && index < s->scores->count);
    SF_ASSERT(s->scores->score[index].token == s->token[i]);
    *top_out = sf_scores_top(s->scores, index);
    return &s->scores->score[index];
}

static int32_t shown_of(const struct sf_scored *s, const struct sf_wire_score *score)
{
    return score->tops < s->tops ? score->tops : s->tops;
}

/* ---- one token, one number ---- */

static const char *bytes_of(const struct speller *s, int32_t token, size_t *count_out)
{
    *count_out = 0;
    if (s->tokenizer == NULL) return "";
    return sf_tokenizer_bytes(s->tokenizer, token, 1, count_out);
}

/* As Python writes bytes. */
static void escape(const char *bytes, size_t count, char *out)
{
    for (size_t i = 0; i < count; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c >= 0x20 && c < 0x7f && c != '\\') *out++ = (char)c;
        else if (c == '\\') out += sprintf(out, "\\\\");
        else out += sprintf(out, "\\x%02x", c);
    }
    *out = '\0';
}

/* Closed by a NUL, and without one inside.  NULL: no memory. */
static const char *spell_id(struct speller *s, int32_t token)
{
    if (sf_buffer_reserve(&s->text, NUMBER_BYTES) != SF_OK) return NULL;
    snprintf((char *)s->text.bytes, NUMBER_BYTES, "token_id:%d", token);
    return (const char *)s->text.bytes;
}

static const char *spell(struct speller *s, int32_t token)
{
    static const char mark[] = "bytes:";
    size_t count;
    const char *bytes = bytes_of(s, token, &count);
    if (count == 0) return spell_id(s, token);
    if (sf_buffer_reserve(&s->text, sizeof mark + count * ESCAPED_BYTES) != SF_OK) return NULL;
    char *out = (char *)s->text.bytes;
    if (sf_utf8_valid(bytes, count) && memchr(bytes, '\0', count) == NULL) {
        memcpy(out, bytes, count);
        out[count] = '\0';
    } else {
        memcpy(out, mark, sizeof mark - 1);
        escape(bytes, count, out + sizeof mark - 1);
    }
    return out;
}

static struct sf_json *text_of(struct speller *s, int32_t token)
{
    const char *text = spell(s, token);
    return text != NULL ? sf_json_new_words(text) : NULL;
}

/* %g of 9 digits tells every f32 from its neighbours; most need fewer. */
static struct sf_json *number_of(float logprob)
{
    char text[NUMBER_BYTES];
    double number = 0.0;
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)logprob);
        number = strtod(text, NULL);
        if ((float)number == logprob) break;
    }
    return sf_json_new_real(number);
}

static void append(sf_status *status, struct sf_json *array, struct sf_json *value)
{
    if (*status != SF_OK) sf_json_free(value);
    else *status = sf_json_append(array, value);
}

/* ---- chat ---- */

/* [32, 97]; null for a token without bytes. */
static struct sf_json *byte_list(const struct speller *s, int32_t token)
{
    size_t count;
    const char *bytes = bytes_of(s, token, &count);
    if (count == 0) return sf_json_new(SF_JSON_NULL);
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (size_t i = 0; i < count; i++)
        append(&status, list, sf_json_new_int((unsigned char)bytes[i]));
    return sf_json_built(status, list);
}

static struct sf_json *chat_token(struct speller *s, int32_t token, float logprob)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put(&status, o, "token", text_of(s, token));
    sf_json_put(&status, o, "logprob", number_of(logprob));
    sf_json_put(&status, o, "bytes", byte_list(s, token));
    return sf_json_built(status, o);
}

struct sf_json *sf_logprobs_chat(const struct sf_tokenizer *tokenizer,
                                 const struct sf_scored *answer)
{
    struct speller s = {.tokenizer = tokenizer};
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT), *content = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    SF_ASSERT(answer->unscored == 0);
    for (int32_t i = 0; i < answer->tokens && status == SF_OK; i++) {
        const struct sf_wire_top *top;
        const struct sf_wire_score *score = score_of(answer, i, &top);
        struct sf_json *token = chat_token(&s, score->token, score->logprob);
        struct sf_json *tops = sf_json_new(SF_JSON_ARRAY);
        for (int32_t t = 0; t < shown_of(answer, score); t++)
            append(&status, tops, chat_token(&s, top[t].token, top[t].logprob));
        sf_json_put(&status, token, "top_logprobs", tops);
        append(&status, content, token);
    }
    sf_json_put(&status, o, "content", content);
    sf_json_put(&status, o, "refusal", sf_json_new(SF_JSON_NULL));
    sf_buffer_free(&s.text);
    return sf_json_built(status, o);
}

/* ---- completions ---- */

static void put_token(sf_status *status, struct speller *s, struct sf_json *o, int32_t token,
                      float logprob)
{
    const char *key = spell(s, token);
    if (key != NULL && sf_json_member(o, key) != NULL) key = spell_id(s, token);
    if (key == NULL) {
        if (*status == SF_OK) *status = SF_NO_MEMORY;
        return;
    }
    if (sf_json_member(o, key) != NULL) return;     /* the same token, or one spelt token_id:123 */
    sf_json_put(status, o, key, number_of(logprob));
}

static struct sf_json *top_object(struct speller *s, const struct sf_scored *part,
                                  const struct sf_wire_score *score, const struct sf_wire_top *top)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    int among = 0;
    for (int32_t t = 0; t < shown_of(part, score); t++) {
        put_token(&status, s, o, top[t].token, top[t].logprob);
        among |= top[t].token == score->token;
    }
    if (!among) put_token(&status, s, o, score->token, score->logprob);
    return sf_json_built(status, o);
}

struct lists { struct sf_json *tokens, *logprobs, *tops, *offsets; };

static void add_part(sf_status *status, struct speller *s, const struct sf_scored *part,
                     struct lists *to)
{
    for (int32_t i = 0; i < part->tokens && *status == SF_OK; i++) {
        append(status, to->tokens, text_of(s, part->token[i]));
        append(status, to->offsets, sf_json_new_int(part->offset[i]));
        if (i < part->unscored) {
            append(status, to->logprobs, sf_json_new(SF_JSON_NULL));
            append(status, to->tops, sf_json_new(SF_JSON_NULL));
            continue;
        }
        const struct sf_wire_top *top;
        const struct sf_wire_score *score = score_of(part, i, &top);
        append(status, to->logprobs, number_of(score->logprob));
        append(status, to->tops, top_object(s, part, score, top));
    }
}

struct sf_json *sf_logprobs_completion(const struct sf_tokenizer *tokenizer,
                                       const struct sf_scored *echo,
                                       const struct sf_scored *answer)
{
    struct speller s = {.tokenizer = tokenizer};
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    struct lists lists = {sf_json_new(SF_JSON_ARRAY), sf_json_new(SF_JSON_ARRAY),
                          sf_json_new(SF_JSON_ARRAY), sf_json_new(SF_JSON_ARRAY)};
    sf_status status = SF_OK;
    if (echo != NULL) add_part(&status, &s, echo, &lists);
    add_part(&status, &s, answer, &lists);
    sf_json_put(&status, o, "tokens", lists.tokens);
    sf_json_put(&status, o, "token_logprobs", lists.logprobs);
    sf_json_put(&status, o, "top_logprobs", lists.tops);
    sf_json_put(&status, o, "text_offset", lists.offsets);
    sf_buffer_free(&s.text);
    return sf_json_built(status, o);
}

/* ---- a prompt ---- */

static void put_ranked(sf_status *status, struct speller *s, struct sf_json *o,
                       struct sf_wire_top entry, int32_t rank)
{
    char key[NUMBER_BYTES];
    struct sf_json *value = sf_json_new(SF_JSON_OBJECT);
    snprintf(key, sizeof key, "%d", entry.token);
    sf_json_put(status, value, "logprob", number_of(entry.logprob));
    sf_json_put(status, value, "rank", sf_json_new_int(rank));
    sf_json_put(status, value, "decoded_token", text_of(s, entry.token));
    sf_json_put(status, o, key, value);
}

struct sf_json *sf_logprobs_prompt(const struct sf_tokenizer *tokenizer,
                                   const struct sf_scored *prompt)
{
    struct speller s = {.tokenizer = tokenizer};
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < prompt->tokens && status == SF_OK; i++) {
        if (i < prompt->unscored) {
            append(&status, list, sf_json_new(SF_JSON_NULL));
            continue;
        }
        const struct sf_wire_top *top;
        const struct sf_wire_score *score = score_of(prompt, i, &top);
        struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
        put_ranked(&status, &s, o, (struct sf_wire_top){score->token, score->logprob},
                   score->rank);
        for (int32_t t = 0; t < shown_of(prompt, score); t++)
            if (top[t].token != score->token) put_ranked(&status, &s, o, top[t], t + 1);
        append(&status, list, o);
    }
    sf_buffer_free(&s.text);
    return sf_json_built(status, list);
}
