/* coordinator/answer_json.c: an answer becomes an object (answer_json.h). */
#include "coordinator/answer_json.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "base/json_build.h"
#include "base/utf8.h"
#include "coordinator/idle.h"
#include "coordinator/logprobs_json.h"

enum { LOST_BYTES = 64 };               /* of a text in one place, at most, that no token has */

struct writer {                         /* what the choices of an answer have in common */
    const struct sf_answer_out *answer;
    const struct sf_body_facts *facts;
    struct sf_answer_text echo;         /* the prompt as text, where it is echoed */
    int32_t *offset;                    /* [prompt, then the tokens of one choice] in characters */
};

static struct sf_json *choices_of(struct writer *w);
static struct sf_json *usage_of(const struct sf_answer_out *answer);
static struct sf_json *receipt_of(const struct sf_answer_out *, const struct sf_body_facts *);
static struct sf_json *ids_of(const int32_t *id, size_t count);
static struct sf_json *prompt_logprobs_of(const struct writer *w);
static sf_status prepare(struct writer *w);

sf_status sf_answer_body(const struct sf_answer_out *answer, const struct sf_body_facts *facts,
                         struct sf_json **body_out)
{
    const struct sf_record *request = answer->request;
    struct writer w = {.answer = answer, .facts = facts};
    SF_ASSERT(answer->choices == request->choices && answer->choices >= 1);
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = prepare(&w);
    sf_json_put(&status, o, "id", sf_json_new_words(facts->id));
    sf_json_put(&status, o, "object",
                sf_json_new_words(request->chat ? "chat.completion" : "text_completion"));
    sf_json_put(&status, o, "created", sf_json_new_int((int64_t)time(NULL)));
    sf_json_put(&status, o, "model", sf_json_new_words(facts->model));
    if (request->return_token_ids)
        sf_json_put(&status, o, "prompt_token_ids",
                    ids_of(request->prompt.id, request->prompt.count));
    if (request->chat && request->prompt_logprobs >= 0)
        sf_json_put(&status, o, "prompt_logprobs", prompt_logprobs_of(&w));
    if (status == SF_OK) sf_json_put(&status, o, "choices", choices_of(&w));
    sf_json_put(&status, o, "usage", usage_of(answer));
    sf_json_put(&status, o, "sheaf", receipt_of(answer, facts));
    free(w.echo.text);
    free(w.offset);
    if (status == SF_OK) *body_out = o;
    else sf_json_free(o);
    return status;
}

static int32_t tokens_of(const struct sf_answer_out *answer, const struct sf_choice_out *choice)
{
    return answer->request->no_answer ? 0 : choice->tokens;
}

/* ---- where tokens stand in a text ---- */

/* A byte that is part of no character counts as one: JSON gets U+FFFD for it. */
static size_t char_bytes(const char *text, size_t bytes)
{
    size_t length = sf_utf8_char_bytes(text, bytes);
    return length > 0 ? length : 1;
}

static int32_t chars_of(const char *text, size_t bytes)
{
    int32_t chars = 0;
    for (size_t i = 0; i < bytes; i += char_bytes(text + i, bytes - i)) chars++;
    return chars;
}

/* Appends the tokens' text to `t`, which has *chars characters.  special: control tokens have
 * text. */
static sf_status spread_tokens(const struct sf_tokenizer *tokenizer, const int32_t *token,
                               size_t tokens, int special, struct sf_answer_text *t,
                               int32_t *chars, int32_t *offset)
{
    for (size_t i = 0; i < tokens; i++) {
        size_t old = t->bytes, plain = 0, whole = 0;
        const char *piece = "";
        offset[i] = *chars;
        if (special && tokenizer != NULL) {
            (void)sf_tokenizer_bytes(tokenizer, token[i], 0, &plain);
            piece = sf_tokenizer_bytes(tokenizer, token[i], 1, &whole);
        }
        if (whole > plain) {
            SF_TRY(sf_answer_text_end(t));
            SF_TRY(sf_grow((void **)&t->text, &t->room, t->bytes + whole, 1));
            memcpy(t->text + t->bytes, piece, whole);
            t->bytes += whole;
        } else {
            SF_TRY(sf_answer_text_push(t, tokenizer, token[i]));
        }
        *chars += chars_of(t->text + old, t->bytes - old);
    }
    return SF_OK;
}

/* Finds the tokens of a text that is there, one behind the other.  A token that does not stand at
 * the next byte was either put before the text (a BOS: it is nowhere, and the next byte stays), or
 * bytes that the vocabulary lacks stand before it (they are passed over). */
static void find_tokens(const struct sf_tokenizer *tokenizer, const struct sf_tokens *prompt,
                        const char *text, size_t bytes, int32_t *offset)
{
    size_t next = 0, counted = 0;       /* bytes that are done; those of the first `chars` */
    int32_t chars = 0;
    for (size_t i = 0; i < prompt->count; i++) {
        size_t count, left = bytes - next;
        const char *piece = sf_tokenizer_bytes(tokenizer, prompt->id[i], 1, &count);
        const char *at = count == 0 ? NULL
                                    : memmem(text + next, left < count + LOST_BYTES
                                                              ? left : count + LOST_BYTES,
                                             piece, count);
        if (at != NULL) next = (size_t)(at - text);
        while (counted < next && counted + char_bytes(text + counted, bytes - counted) <= next) {
            counted += char_bytes(text + counted, bytes - counted);
            chars++;
        }
        offset[i] = chars;
        if (at != NULL) next += count;
    }
}

/* Room for the offsets; the echo and those of the prompt. */
static sf_status prepare(struct writer *w)
{
    const struct sf_record *request = w->answer->request;
    size_t most = 0;
    int32_t chars = 0;
    SF_ASSERT(!request->echo || !request->chat);
    for (int32_t i = 0; i < w->answer->choices; i++)
        if ((size_t)w->answer->choice[i].tokens > most)
            most = (size_t)w->answer->choice[i].tokens;
    if (!request->echo && request->logprobs < 0) return SF_OK;
    w->offset = calloc(request->prompt.count + most + 1, sizeof *w->offset);
    if (w->offset == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for the offsets of %zu tokens",
                       request->prompt.count + most);
    if (!request->echo) return SF_OK;
    if (request->echo_text == NULL) {
        SF_TRY(spread_tokens(w->facts->tokenizer, request->prompt.id, request->prompt.count, 1,
                             &w->echo, &chars, w->offset));
        return sf_answer_text_end(&w->echo);
    }
    SF_ASSERT(w->facts->tokenizer != NULL);
    SF_TRY(sf_grow((void **)&w->echo.text, &w->echo.room, request->echo_text_bytes + 1, 1));
    memcpy(w->echo.text, request->echo_text, request->echo_text_bytes);
    w->echo.bytes = request->echo_text_bytes;
    find_tokens(w->facts->tokenizer, &request->prompt, w->echo.text, w->echo.bytes, w->offset);
    return SF_OK;
}

/* ---- choices ---- */

static struct sf_scored scored_prompt(const struct writer *w, int32_t tops)
{
    const struct sf_record *request = w->answer->request;
    SF_ASSERT(request->prompt.count <= 1 ||
              (w->answer->prompt_scores != NULL &&
               (size_t)w->answer->prompt_scores->count + 1 >= request->prompt.count));
    return (struct sf_scored){.token = request->prompt.id,
                              .tokens = (int32_t)request->prompt.count,
                              .unscored = 1,
                              .scores = w->answer->prompt_scores,
                              .tops = tops,
                              .offset = w->offset};
}

static struct sf_json *prompt_logprobs_of(const struct writer *w)
{
    struct sf_scored prompt = scored_prompt(w, w->answer->request->prompt_logprobs);
    return sf_logprobs_prompt(w->facts->tokenizer, &prompt);
}

/* The offsets of the answer's tokens behind the echo; they end where the text was cut. */
static sf_status place_answer(const struct writer *w, const struct sf_choice_out *choice,
                              int32_t *offset)
{
    struct sf_answer_text again = {0};
    int32_t before = chars_of(w->echo.text, w->echo.bytes), chars = before;
    int32_t end = before + chars_of(choice->text, choice->text_bytes);
    sf_status status = spread_tokens(w->facts->tokenizer, choice->token, (size_t)choice->tokens,
                                     0, &again, &chars, offset);
    free(again.text);
    for (int32_t i = 0; i < choice->tokens && status == SF_OK; i++)
        if (offset[i] > end) offset[i] = end;
    return status;
}

static struct sf_json *logprobs_of(const struct writer *w, const struct sf_choice_out *choice)
{
    const struct sf_record *request = w->answer->request;
    const struct sf_tokenizer *tokenizer = w->facts->tokenizer;
    int32_t *offset = request->logprobs < 0 ? NULL : w->offset + request->prompt.count;
    struct sf_scored answer = {.token = choice->token,
                               .tokens = tokens_of(w->answer, choice),
                               .scores = choice->scores,
                               .tops = request->logprobs,
                               .offset = offset};
    if (request->logprobs < 0) return sf_json_new(SF_JSON_NULL);
    SF_ASSERT(answer.tokens == 0 ||
              (choice->scores != NULL && choice->scores->count >= answer.tokens));
    if (request->chat) return sf_logprobs_chat(tokenizer, &answer);
    if (answer.tokens > 0 && place_answer(w, choice, offset) != SF_OK) return NULL;
    if (!request->echo) return sf_logprobs_completion(tokenizer, NULL, &answer);
    struct sf_scored echo = scored_prompt(w, request->logprobs);
    return sf_logprobs_completion(tokenizer, &echo, &answer);
}

/* What the model wrote, behind the echo. */
static struct sf_json *text_of(const struct writer *w, const struct sf_choice_out *choice)
{
    size_t bytes = w->answer->request->no_answer ? 0 : choice->text_bytes, echo = w->echo.bytes;
    if (bytes == 0) return sf_json_new_text(w->echo.text, echo);
    if (echo == 0) return sf_json_new_text(choice->text, bytes);
    char *all = malloc(echo + bytes);
    if (all == NULL) return NULL;
    memcpy(all, w->echo.text, echo);
    memcpy(all + echo, choice->text, bytes);
    struct sf_json *text = sf_json_new_text(all, echo + bytes);
    free(all);
    return text;
}

static struct sf_json *choice_of(const struct writer *w, int32_t index)
{
    const struct sf_record *request = w->answer->request;
    const struct sf_choice_out *choice = &w->answer->choice[index];
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT), *text = text_of(w, choice);
    int stopped = choice->stopped && !request->no_answer;
    sf_status status = SF_OK;
    sf_json_put(&status, o, "index", sf_json_new_int(index));
    if (request->chat) {
        struct sf_json *message = sf_json_new(SF_JSON_OBJECT);
        sf_json_put(&status, message, "role", sf_json_new_words("assistant"));
        sf_json_put(&status, message, "content", text);
        sf_json_put(&status, o, "message", message);
    } else {
        sf_json_put(&status, o, "text", text);
    }
    sf_json_put(&status, o, "logprobs", logprobs_of(w, choice));
    sf_json_put(&status, o, "finish_reason", sf_json_new_words(stopped ? "stop" : "length"));
    if (!request->chat && request->prompt_logprobs >= 0)
        sf_json_put(&status, o, "prompt_logprobs", prompt_logprobs_of(w));
    if (request->return_token_ids)
        sf_json_put(&status, o, "token_ids",
                    ids_of(choice->token, (size_t)tokens_of(w->answer, choice)));
    return sf_json_built(status, o);
}

static struct sf_json *choices_of(struct writer *w)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < w->answer->choices && status == SF_OK; i++)
        status = sf_json_append(list, choice_of(w, i));
    return sf_json_built(status, list);
}

/* ---- the rest ---- */

static struct sf_json *usage_of(const struct sf_answer_out *answer)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    int64_t prompt = (int64_t)answer->request->prompt.count, tokens = 0;
    sf_status status = SF_OK;
    for (int32_t i = 0; i < answer->choices; i++) tokens += tokens_of(answer, &answer->choice[i]);
    sf_json_put(&status, o, "prompt_tokens", sf_json_new_int(prompt));
    sf_json_put(&status, o, "completion_tokens", sf_json_new_int(tokens));
    sf_json_put(&status, o, "total_tokens", sf_json_new_int(prompt + tokens));
    return sf_json_built(status, o);
}

static struct sf_json *ids_of(const int32_t *id, size_t count)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (size_t i = 0; i < count && status == SF_OK; i++)
        status = sf_json_append(list, sf_json_new_int(id[i]));
    return sf_json_built(status, list);
}

static struct sf_json *methods_of(const struct sf_stack *stack)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < stack->entries && status == SF_OK; i++)
        status = sf_json_append(list, sf_json_new_words(stack->entry[i].method->name));
    return sf_json_built(status, list);
}

int32_t sf_answer_cached(const struct sf_answer_out *answer)
{
    int32_t longest = 1;
    for (int32_t i = 0; i < answer->choices; i++)
        if (answer->choice[i].tokens > longest) longest = answer->choice[i].tokens;
    return (int32_t)answer->request->prompt.count + longest - 1;
}

static struct sf_json *idle_one(const struct sf_stack_entry *entry, const char *words)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put(&status, o, "name", sf_json_new_words(entry->method->name));
    sf_json_put(&status, o, "reason", sf_json_new_words(words));
    return sf_json_built(status, o);
}

/* Methods that changed no lane of the record, and why; nothing where there are none. */
static void put_idle(sf_status *status, struct sf_json *receipt, const struct sf_answer_out *answer,
                     const struct sf_body_facts *facts)
{
    struct sf_json *list = NULL;
    int32_t prompt = (int32_t)answer->request->prompt.count, tokens = sf_answer_cached(answer);
    for (int32_t m = 0; facts->setup && m < facts->stack->entries && *status == SF_OK; m++) {
        const struct sf_stack_entry *entry = &facts->stack->entry[m];
        char words[SF_IDLE_WORDS];
        if (!sf_idle_left(facts->stack, m, answer->receipt.changed)) continue;
        *status = sf_account_idle(facts->setup, facts->stack, m, prompt, tokens, words);
        if (list == NULL) list = sf_json_new(SF_JSON_ARRAY);
        if (*status == SF_OK) *status = sf_json_append(list, idle_one(entry, words));
    }
    if (list != NULL) sf_json_put(status, receipt, "idle", list);
}

static struct sf_json *receipt_of(const struct sf_answer_out *answer,
                                  const struct sf_body_facts *facts)
{
    const struct sf_wire_receipt *receipt = &answer->receipt;
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put(&status, o, "methods", methods_of(facts->stack));
    sf_json_put(&status, o, "kv_bytes_exact", sf_json_new_int(receipt->bytes_exact));
    sf_json_put(&status, o, "kv_bytes_stored", sf_json_new_int(receipt->bytes_stored));
    sf_json_put(&status, o, "kv_bytes_peak", sf_json_new_int(receipt->bytes_peak));
    sf_json_put(&status, o, "slots_evicted", sf_json_new_int(receipt->slots_evicted));
    sf_json_put(&status, o, "slots_merged", sf_json_new_int(receipt->slots_merged));
    sf_json_put(&status, o, "slots_requantised", sf_json_new_int(receipt->slots_requantised));
    put_idle(&status, o, answer, facts);
    if (answer->tightenings > 0)
        sf_json_put(&status, o, "tightened_at",
                    ids_of(answer->tightened, (size_t)answer->tightenings));
    return sf_json_built(status, o);
}
