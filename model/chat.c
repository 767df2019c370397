/* model/chat.c: messages -> token ids, for the chat templates that we know.
 *
 * The Jinja program in the file is not run: a template is known by its marks, and the little that
 * differs between models of a family is read out of its literals.
 *
 *   ChatML   <|im_start|>system \n content <|im_end|> \n ... <|im_start|>assistant \n
 *
 * The text of a message never becomes a control token, whatever it spells: it is encoded apart from
 * the marks around it, together with the "role\n" in front of it (they may share a word). */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_impl.h"

static const char im_start[] = "<|im_start|>", im_end[] = "<|im_end|>";

/* ---- what a template says ------------------------------------------------------------------ */

/* Copies a quoted literal from `at` to its <|im_end|>, undoing backslashes.  Bytes written, or 0 if
 * the literal ends or turns into an expression before. */
static size_t literal_text(const char *at, const char *end, char quote, char *out)
{
    size_t written = 0, mark = sizeof im_end - 1;
    while (at < end && *at != quote) {
        if ((size_t)(end - at) >= mark && memcmp(at, im_end, mark) == 0) return written;
        if (*at == '\\' && end - at > 1) {
            out[written++] = at[1] == 'n' ? '\n' : at[1] == 't' ? '\t' : at[1];
            at += 2;
        } else {
            out[written++] = *at++;
        }
    }
    return 0;
}

/* A template whose text holds a whole system message as one literal,
 * '<|im_start|>system\n ... <|im_end|>', inserts it where the first message is not a system one. */
static sf_status find_default_system(struct sf_tokenizer *tok, struct sf_text jinja)
{
    static const char mark[] = "<|im_start|>system";
    const char *end = jinja.at + jinja.bytes, *at = jinja.at;
    char *out = malloc(jinja.bytes + 1);
    if (out == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a chat template");
    size_t found = 0;
    while (found == 0 && (at = memmem(at, (size_t)(end - at), mark, sizeof mark - 1)) != NULL) {
        char quote = at > jinja.at ? at[-1] : 0;
        at += sizeof mark - 1;
        size_t newline = at < end && *at == '\n' ? 1
                         : end - at > 1 && at[0] == '\\' && at[1] == 'n' ? 2 : 0;
        if (newline != 0 && (quote == '\'' || quote == '"'))
            found = literal_text(at + newline, end, quote, out);
    }
    if (found == 0) {
        free(out);
        return SF_OK;
    }
    tok->default_system = out;
    tok->default_system_bytes = found;
    return SF_OK;
}

sf_status sf_chat_detect(struct sf_tokenizer *tok, struct sf_text jinja)
{
    tok->chat = SF_CHAT_NONE;
    tok->im_start = sf_tokenizer_special(tok, im_start, sizeof im_start - 1);
    tok->im_end = sf_tokenizer_special(tok, im_end, sizeof im_end - 1);
    if (jinja.at == NULL || tok->im_start < 0 || tok->im_end < 0 ||
        memmem(jinja.at, jinja.bytes, im_start, sizeof im_start - 1) == NULL ||
        memmem(jinja.at, jinja.bytes, im_end, sizeof im_end - 1) == NULL)
        return SF_OK;
    tok->chat = SF_CHAT_CHATML;
    return find_default_system(tok, jinja);
}

enum sf_chat sf_tokenizer_chat(const struct sf_tokenizer *tok) { return tok->chat; }

/* ---- rendering ----------------------------------------------------------------------------- */

static sf_status encode_message(const struct sf_tokenizer *tok, const char *role,
                                const char *content, size_t bytes, struct sf_tokens *tokens)
{
    size_t role_bytes = strlen(role);
    char *text = malloc(role_bytes + 1 + bytes + 1);
    if (text == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a message of %zu bytes", bytes);
    memcpy(text, role, role_bytes);
    text[role_bytes] = '\n';
    if (bytes > 0) memcpy(text + role_bytes + 1, content, bytes);
    sf_status status = sf_tokens_push(tokens, tok->im_start);
    if (status == SF_OK)
        status = sf_tokenizer_encode(tok, text, role_bytes + 1 + bytes, 0, 0, tokens);
    if (status == SF_OK) status = sf_tokens_push(tokens, tok->im_end);
    if (status == SF_OK) status = sf_tokenizer_encode(tok, "\n", 1, 0, 0, tokens);
    free(text);
    return status;
}

static sf_status encode_chatml(const struct sf_tokenizer *tok, const struct sf_message *message,
                               size_t messages, struct sf_tokens *tokens)
{
    if (tok->default_system != NULL && strcmp(message[0].role, "system") != 0)
        SF_TRY(encode_message(tok, "system", tok->default_system, tok->default_system_bytes,
                              tokens));
    for (size_t i = 0; i < messages; i++)
        SF_TRY(encode_message(tok, message[i].role, message[i].content, message[i].content_bytes,
                              tokens));
    SF_TRY(sf_tokens_push(tokens, tok->im_start));
    return sf_tokenizer_encode(tok, "assistant\n", 10, 0, 0, tokens);
}

sf_status sf_chat_encode(const struct sf_tokenizer *tok, const struct sf_message *message,
                         size_t messages, struct sf_tokens *tokens)
{
    if (tok->chat != SF_CHAT_CHATML)
        return SF_FAIL(SF_UNSUPPORTED, "the model has no chat template that is built (ChatML is)");
    if (messages == 0) return SF_FAIL(SF_INVALID, "a chat without messages");
    for (size_t i = 0; i < messages; i++)
        if (strcmp(message[i].role, "system") != 0 && strcmp(message[i].role, "user") != 0 &&
            strcmp(message[i].role, "assistant") != 0)
            return SF_FAIL(SF_INVALID, "message %zu: role '%.32s' (system, user and assistant are "
                           "known)", i, message[i].role);
    size_t count_before = tokens->count;
    sf_status status = encode_chatml(tok, message, messages, tokens);
    if (status != SF_OK) tokens->count = count_before;
    return status;
}
