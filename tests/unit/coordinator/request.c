/* tests/unit/coordinator/request.c: a line becomes the request that it says, or one error.
 *
 * On a tiny tokenizer whose ids are known by hand: every field of a record with its default, its
 * bounds and its null; what the two urls call log probabilities; every refusal with its code and
 * the words that name field, value and what is allowed; what could be read of a broken record's
 * custom_id; texts longer than any prompt are refused unread; and random damage to a good line
 * never does more than make it an error. */
#include "coordinator/request.h"

#include <stdlib.h>

#include "base/rng.h"
#include "model/weights.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

enum { VOCAB = 300, TOKENS_MAX = 64, TEXT_BYTES_MAX = 40 * TOKENS_MAX };

static struct sf_tokenizer *tokenizer;

/* The tokenizer is made once, with a ChatML template, and given back by the last test. */
static struct sf_record_limits limits_now(void)
{
    static const struct tiny_key keys[] = {
        {"tokenizer.chat_template", TINY_STRING, 0, "{{'<|im_start|>' + role}}<|im_end|>", NULL, 0},
        {NULL, 0, 0, NULL, NULL, 0}};
    if (tokenizer == NULL) {
        struct tiny_spec spec = tiny_default();
        spec.keys = keys;
        struct tiny_file file = tiny_make(&spec);
        struct sf_model *model = NULL;
        if (sf_model_open(tiny_path(file.bytes, file.count), &model) != SF_OK ||
            sf_tokenizer_create(model, &tokenizer) != SF_OK) abort();
        sf_model_close(model);
        tiny_free(&file);
        tiny_close();
    }
    return (struct sf_record_limits){.tokenizer = tokenizer, .vocab = VOCAB,
                                     .tokens_max = TOKENS_MAX, .text_bytes_max = TEXT_BYTES_MAX,
                                     .temperature = 0.25, .seed = 77};
}

static sf_status parse(const char *text, struct sf_record *out)
{
    struct sf_record_limits limits = limits_now();
    return sf_record_parse(&limits, text, strlen(text), 5, out);
}

/* A record of /v1/completions with this body, between braces. */
static sf_status parse_body(const char *url, const char *body, struct sf_record *out)
{
    char line[4096];
    snprintf(line, sizeof line, "{\"custom_id\": \"r\", \"method\": \"POST\", \"url\": \"/v1/%s\", "
             "\"body\": {%s}}", url, body);
    return parse(line, out);
}

/* What is scored: how many of the likeliest beside each token of the answer and of the prompt. */
static void check_scores(const struct sf_record *r, int logprobs, int prompt_logprobs,
                         int score_prompt)
{
    int tops = logprobs > prompt_logprobs ? logprobs : prompt_logprobs;
    SF_CHECK_INT(r->logprobs, logprobs);
    SF_CHECK_INT(r->prompt_logprobs, prompt_logprobs);
    SF_CHECK_INT(r->score_prompt, score_prompt);
    SF_CHECK_INT(r->sampling.scores, logprobs >= 0 && !r->no_answer);
    SF_CHECK_INT(r->sampling.tops, tops > 0 ? tops : 0);
}

/* Also frees it. */
static void check_refused(sf_status status, struct sf_record *r, const char *id, const char *code,
                          const char *words)
{
    SF_CHECK(status != SF_OK);
    SF_CHECK_STR(r->code, code);
    SF_CHECK_STR(r->custom_id != NULL ? r->custom_id : "(null)", id != NULL ? id : "(null)");
    if (strstr(sf_error_text(), words) == NULL)
        sf_test_fail(__FILE__, __LINE__, "words are \"%s\", without \"%s\"", sf_error_text(),
                     words);
    sf_record_free(r);
}

/* ---- what is taken --------------------------------------------------------------------------- */
static void defaults(void)
{
    struct sf_record r;
    SF_MUST(parse_body("completions", "\"prompt\": [7, 8, 9]", &r));
    SF_CHECK_STR(r.custom_id, "r");
    SF_CHECK_INT(r.custom_id_bytes, 1);
    SF_CHECK_INT(r.line, 5);
    SF_CHECK_INT(r.chat, 0);
    SF_CHECK_INT(r.prompt.count, 3);
    SF_CHECK_INT(r.prompt.id[2], 9);
    SF_CHECK_INT(r.answer_max, 16);                     /* what OpenAI's completions give */
    SF_CHECK_NEAR(r.sampling.temperature, 0.25, 0);
    SF_CHECK_INT(r.sampling.rng_key, 77);
    SF_CHECK(r.sampling.rng_stream == sf_hash64("r", 1));
    SF_CHECK_INT(r.ignore_eos, 0);
    SF_CHECK_INT(r.return_token_ids, 0);
    SF_CHECK_INT(r.choices, 1);
    check_scores(&r, -1, -1, 0);
    SF_CHECK_INT(r.echo, 0);
    SF_CHECK_INT(r.no_answer, 0);
    sf_record_free(&r);

    SF_MUST(parse_body("chat/completions",
                       "\"messages\": [{\"role\": \"user\", \"content\": \"abc\"}]", &r));
    SF_CHECK_INT(r.chat, 1);
    SF_CHECK_INT(r.answer_max, TOKENS_MAX - (int)r.prompt.count);     /* all that fits */
    sf_record_free(&r);
}

static void all_fields(void)
{
    struct sf_record r;
    SF_MUST(parse_body("completions", "\"model\": \"any\", \"prompt\": \"abc a\", "
                       "\"max_tokens\": 3, \"temperature\": 1.5, \"seed\": -4, "
                       "\"ignore_eos\": true, \"return_token_ids\": true", &r));
    SF_CHECK_INT(r.prompt.count, 2);                    /* "abc", " a" */
    SF_CHECK_INT(r.prompt.id[0], 4);
    SF_CHECK_INT(r.answer_max, 3);
    SF_CHECK_NEAR(r.sampling.temperature, 1.5, 0);
    SF_CHECK_INT((int64_t)r.sampling.rng_key, -4);
    SF_CHECK_INT(r.sampling.rng_stream, 0);             /* the seed alone says what is drawn */
    SF_CHECK_INT(r.ignore_eos, 1);
    SF_CHECK_INT(r.return_token_ids, 1);
    sf_record_free(&r);

    SF_MUST(parse_body("completions", "\"prompt\": [1], \"max_completion_tokens\": 9", &r));
    SF_CHECK_INT(r.answer_max, 9);
    sf_record_free(&r);
    SF_MUST(parse_body("completions", "\"prompt\": [1], \"max_tokens\": 1000000000", &r));
    SF_CHECK_INT(r.answer_max, TOKENS_MAX - 1);         /* the answer ends where the context does */
    sf_record_free(&r);
    SF_MUST(parse_body("completions", "\"prompt\": [1], \"max_tokens\": null, \"seed\": null, "
                       "\"temperature\": null, \"ignore_eos\": null", &r));
    SF_CHECK_INT(r.answer_max, 16);
    SF_CHECK_INT(r.sampling.rng_key, 77);
    sf_record_free(&r);
}

/* What asks for nothing is taken everywhere; a stream and a choice of the best are not built. */
static void neutral_values(void)
{
    static const char *const neutral[] = {
        "\"n\": 1", "\"n\": null", "\"best_of\": 1", "\"best_of\": null", "\"logprobs\": false",
        "\"logprobs\": null", "\"top_logprobs\": 0", "\"top_logprobs\": null",
        "\"stream\": false", "\"echo\": false", "\"echo\": null", "\"prompt_logprobs\": null",
        "\"prompt_logprobs\": false", "\"user\": \"u\"", "\"metadata\": {\"a\": 1}"};
    static const struct { const char *body, *code, *words; } other[] = {
        {"\"best_of\": 2", "unsupported_field", "body.best_of is 2; allowed: 1, which is n"},
        {"\"n\": 3, \"best_of\": 1", "unsupported_field", "body.best_of is 1; allowed: 3"},
        {"\"best_of\": 0", "invalid_value", "body.best_of is 0"},
        {"\"stream\": true", "unsupported_field", "body.stream is true; allowed: false"},
        {"\"stream\": 1", "invalid_value", "body.stream is an integer"}};
    struct sf_record r;
    char body[256];
    for (int chat = 0; chat < 2; chat++) {
        const char *url = chat ? "chat/completions" : "completions";
        const char *prompt = chat ? "\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]"
                                  : "\"prompt\": [1]";
        for (size_t i = 0; i < sizeof neutral / sizeof neutral[0]; i++) {
            snprintf(body, sizeof body, "%s, %s", prompt, neutral[i]);
            SF_CHECK_OK(parse_body(url, body, &r));
            SF_CHECK_INT(r.choices, 1);
            check_scores(&r, -1, -1, 0);
            sf_record_free(&r);
        }
        for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
            snprintf(body, sizeof body, "%s, %s", prompt, other[i].body);
            sf_status status = parse_body(url, body, &r);
            check_refused(status, &r, "r", other[i].code, other[i].words);
        }
    }
}

/* ---- choices and log probabilities ---- */

static void choices(void)
{
    struct sf_record r;
    SF_MUST(parse_body("completions", "\"prompt\": [1], \"n\": 128, \"best_of\": 128, "
                       "\"temperature\": 0", &r));
    SF_CHECK_INT(r.choices, 128);
    sf_record_free(&r);
    SF_MUST(parse_body("completions", "\"prompt\": \"abc a\", \"echo\": true", &r));
    SF_CHECK_INT(r.echo, 1);
    SF_CHECK_STR(r.echo_text, "abc a");
    SF_CHECK_INT(r.echo_text_bytes, 5);
    check_scores(&r, -1, -1, 0);
    sf_record_free(&r);
    SF_MUST(parse_body("completions", "\"prompt\": [1], \"echo\": true", &r));
    SF_CHECK(r.echo_text == NULL);
    sf_record_free(&r);
}

static void logprobs(void)
{
    static const struct { int chat; const char *body; int logprobs, prompt, score_prompt; }
        cases[] = {
        {1, "\"logprobs\": true", 0, -1, 0},
        {1, "\"logprobs\": true, \"top_logprobs\": 20", 20, -1, 0},
        {1, "\"logprobs\": true, \"top_logprobs\": null", 0, -1, 0},
        {1, "\"prompt_logprobs\": 3", -1, 3, 1},
        {1, "\"prompt_logprobs\": 3, \"logprobs\": true, \"top_logprobs\": 5", 5, 3, 1},
        {0, "\"logprobs\": 0", 0, -1, 0},
        {0, "\"logprobs\": 20", 20, -1, 0},
        {0, "\"logprobs\": 2, \"echo\": true", 2, -1, 1},
        {0, "\"prompt_logprobs\": 0", -1, 0, 1},
        {0, "\"prompt_logprobs\": 20, \"logprobs\": 1", 1, 20, 1},
        {0, "\"echo\": true, \"prompt_logprobs\": 1", -1, 1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sf_record r;
        char body[256];
        snprintf(body, sizeof body, "%s, %s",
                 cases[i].chat ? "\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]"
                               : "\"prompt\": [1]", cases[i].body);
        SF_MUST(parse_body(cases[i].chat ? "chat/completions" : "completions", body, &r));
        check_scores(&r, cases[i].logprobs, cases[i].prompt, cases[i].score_prompt);
        sf_record_free(&r);
    }
}

/* The prompt alone is scored: the one token that is computed all the same is not. */
static void no_answer(void)
{
    static const char *const asked[] = {"\"echo\": true, \"logprobs\": 4", "\"echo\": true",
                                        "\"prompt_logprobs\": 4"};
    for (int i = 0; i < 6; i++) {
        struct sf_record r;
        char body[256];
        snprintf(body, sizeof body, "\"prompt\": [1, 2], \"%s\": 0, %s",
                 i < 3 ? "max_tokens" : "max_completion_tokens", asked[i % 3]);
        SF_MUST(parse_body("completions", body, &r));
        SF_CHECK_INT(r.no_answer, 1);
        SF_CHECK_INT(r.answer_max, 1);
        check_scores(&r, i % 3 == 0 ? 4 : -1, i % 3 == 2 ? 4 : -1, i % 3 != 1);
        sf_record_free(&r);
    }
    struct sf_record r;
    SF_MUST(parse_body("completions", "\"prompt\": [1], \"echo\": true, \"max_tokens\": 1", &r));
    SF_CHECK_INT(r.no_answer, 0);
    sf_record_free(&r);
    sf_status status = parse_body("completions", "\"prompt\": [1], \"logprobs\": 1, "
                                  "\"max_tokens\": 0", &r);
    check_refused(status, &r, "r", "invalid_value", "body.max_tokens is 0; allowed: integers from "
                  "1 to");
    status = parse_body("chat/completions", "\"messages\": [{\"role\": \"user\", \"content\": "
                        "\"a\"}], \"prompt_logprobs\": 1, \"max_tokens\": 0", &r);
    check_refused(status, &r, "r", "invalid_value", "body.max_tokens is 0; allowed: integers from "
                  "1 to");
}

static void bad_logprobs(void)
{
    static const struct { int chat; const char *body, *code, *words; } cases[] = {
        {0, "\"n\": 0", "invalid_value", "body.n is 0; allowed: integers from 1 to 128"},
        {0, "\"n\": 129", "invalid_value", "body.n is 129"},
        {1, "\"n\": \"1\"", "invalid_value", "body.n is a string"},
        {0, "\"logprobs\": 21", "invalid_value", "body.logprobs is 21; allowed: integers from 0 to "
         "20"},
        {0, "\"logprobs\": -1", "invalid_value", "body.logprobs is -1"},
        {0, "\"logprobs\": true", "invalid_value", "body.logprobs is true; allowed: integers"},
        {0, "\"logprobs\": 1.5", "invalid_value", "body.logprobs is 1.5"},
        {0, "\"logprobs\": 2, \"top_logprobs\": 2", "invalid_value",
         "body.top_logprobs is 2; allowed: 0"},
        {1, "\"logprobs\": 5", "invalid_value", "body.logprobs is an integer; allowed: true or "
         "false"},
        {1, "\"top_logprobs\": 5", "invalid_value",
         "body.top_logprobs is 5; allowed: 0, or beside it logprobs: true"},
        {1, "\"logprobs\": false, \"top_logprobs\": 1", "invalid_value", "body.top_logprobs is 1"},
        {1, "\"logprobs\": true, \"top_logprobs\": 21", "invalid_value", "from 0 to 20"},
        {1, "\"echo\": true", "unsupported_field",
         "body.echo is true; allowed with url /v1/chat/completions: false"},
        {0, "\"echo\": 1", "invalid_value", "body.echo is an integer; allowed: true or false"},
        {0, "\"prompt_logprobs\": 21", "invalid_value", "body.prompt_logprobs is 21"},
        {0, "\"prompt_logprobs\": -1", "invalid_value", "body.prompt_logprobs is -1"},
        {1, "\"prompt_logprobs\": true", "invalid_value", "body.prompt_logprobs is true"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sf_record r;
        char body[256];
        snprintf(body, sizeof body, "%s, %s",
                 cases[i].chat ? "\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]"
                               : "\"prompt\": [1]", cases[i].body);
        sf_status status =
            parse_body(cases[i].chat ? "chat/completions" : "completions", body, &r);
        check_refused(status, &r, "r", cases[i].code, cases[i].words);
    }
}

/* 2 x (3 + 4) x 21 log probabilities are few; those of 128 long answers would not fit. */
static void too_many_logprobs(void)
{
    struct sf_record_limits limits = limits_now();
    limits.tokens_max = 1 << 17;
    static const char line[] = "{\"custom_id\": \"r\", \"url\": \"/v1/completions\", \"body\": "
        "{\"prompt\": [1, 2, 3], \"echo\": true, \"logprobs\": 20, \"n\": %d, \"max_tokens\": %d}}";
    static const struct { int choices, answer, fits; } cases[] = {
        {2, 4, 1}, {1, (1 << 17) - 3, 1}, {2, 100000, 0}, {128, 1557, 1}, {128, 1558, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sf_record r;
        char text[256];
        snprintf(text, sizeof text, line, cases[i].choices, cases[i].answer);
        sf_status status = sf_record_parse(&limits, text, strlen(text), 1, &r);
        if (cases[i].fits) {
            SF_CHECK_OK(status);
            sf_record_free(&r);
        } else {
            check_refused(status, &r, "r", "too_long", "allowed: 4194304 in all");
        }
    }
}

/* Absent and at their neutral values these are the same; else they are read as they stand. */
static void sampling_fields(void)
{
    static const char *const neutral =
        "\"top_p\": 1, \"top_k\": -1, \"min_p\": 0, \"presence_penalty\": 0, "
        "\"frequency_penalty\": 0.0, \"repetition_penalty\": null, \"logit_bias\": {}, "
        "\"stop\": []";
    struct sf_record r;
    char body[512];
    snprintf(body, sizeof body, "\"prompt\": [1], %s", neutral);
    for (int i = 0; i < 2; i++) {
        SF_MUST(parse_body("completions", i == 0 ? "\"prompt\": [1]" : body, &r));
        const struct sf_wire_sampling *p = &r.sampling;
        SF_CHECK(p->top_p == 1 && p->min_p == 0 && p->presence == 0 && p->frequency == 0);
        SF_CHECK(p->repetition == 1 && p->top_k == 0 && p->biases == 0 && r.stops == 0);
        sf_record_free(&r);
    }
    SF_MUST(parse_body("completions", "\"prompt\": \"a\", \"top_p\": 0.25, \"top_k\": 7, "
                       "\"min_p\": 0.5, \"presence_penalty\": -2, \"frequency_penalty\": 1.5, "
                       "\"repetition_penalty\": 1.25, \"logit_bias\": {\"0\": -100, \"2\": 3.5}, "
                       "\"stop\": [\"a\", \"b c\"]", &r));
    SF_CHECK(r.sampling.top_p == 0.25 && r.sampling.top_k == 7 && r.sampling.min_p == 0.5);
    SF_CHECK(r.sampling.presence == -2 && r.sampling.frequency == 1.5);
    SF_CHECK(r.sampling.repetition == 1.25);
    SF_CHECK_INT(r.sampling.biases, 2);
    SF_CHECK(r.sampling.bias[0].token == 0 && r.sampling.bias[0].value == -100);
    SF_CHECK(r.sampling.bias[1].token == 2 && r.sampling.bias[1].value == 3.5);
    SF_CHECK_INT(r.stops, 2);
    SF_CHECK_STR(r.stop[1].text, "b c");
    sf_record_free(&r);
    SF_MUST(parse_body("completions", "\"prompt\": \"a\", \"stop\": \"ab\"", &r));
    SF_CHECK_INT(r.stops, 1);
    SF_CHECK_INT(r.stop[0].bytes, 2);
    sf_record_free(&r);
}

static void messages(void)
{
    struct sf_record one, parts;
    SF_MUST(parse_body("chat/completions", "\"messages\": [{\"role\": \"user\", \"name\": \"x\", "
                       "\"content\": \"abc a\", \"tool_calls\": null}]", &one));
    SF_MUST(parse_body("chat/completions", "\"messages\": [{\"role\": \"user\", \"content\": "
                       "[{\"type\": \"text\", \"text\": \"ab\"}, {\"type\": \"text\", \"text\": "
                       "\"c a\"}]}]", &parts));
    SF_CHECK_INT(parts.prompt.count, one.prompt.count);
    SF_CHECK(memcmp(parts.prompt.id, one.prompt.id, one.prompt.count * sizeof *one.prompt.id) == 0);
    sf_record_free(&one);
    sf_record_free(&parts);
    SF_MUST(parse_body("chat/completions",
                       "\"messages\": [{\"role\": \"user\", \"content\": []}]", &one));
    sf_record_free(&one);
}

/* A NUL is a character like others, in ids and in texts. */
static void nul_bytes(void)
{
    struct sf_record r;
    SF_MUST(parse("{\"custom_id\": \"a\\u0000b\", \"url\": \"/v1/completions\", \"body\": "
                  "{\"prompt\": \"a\\u0000b\"}}", &r));
    SF_CHECK_INT(r.custom_id_bytes, 3);
    SF_CHECK(memcmp(r.custom_id, "a\0b", 4) == 0);
    SF_CHECK_INT(r.prompt.count, 3);
    sf_record_free(&r);
}

/* ---- what is refused ------------------------------------------------------------------------- */
static void broken_lines(void)
{
#define TAIL ", \"url\": \"/v1/completions\", \"body\": {\"prompt\": [1]}}"
    static const struct { const char *line, *id, *code, *words; } cases[] = {
        {"", NULL, "invalid_json", "not valid JSON"},
        {"{\"custom_id\": \"r\"", NULL, "invalid_json", "not valid JSON"},
        {"null", NULL, "invalid_json", "the line is null, not an object"},
        {"[1]", NULL, "invalid_json", "the line is an array, not an object"},
        {"{\"custom_id\": \"\xff\"" TAIL, NULL, "invalid_json", "decode byte 0xff"},
        {"{\"custom_id\": \"r\", \"custom_id\": \"r\"" TAIL, NULL, "invalid_json", "duplicate"},
        {"{\"url\": \"/v1/completions\"}", NULL, "missing_field", "custom_id"},
        {"{\"custom_id\": 7" TAIL, NULL, "missing_field", "custom_id is missing or not text"},
        {"{\"custom_id\": \"r\", \"body\": {}}", "r", "missing_field", "url is missing"},
        {"{\"custom_id\": \"r\", \"url\": \"/v1/embeddings\", \"body\": {}}", "r", "invalid_value",
         "url is '/v1/embeddings'; allowed: /v1/chat/completions, /v1/completions"},
        {"{\"custom_id\": \"r\", \"method\": \"GET\"" TAIL, "r", "invalid_value", "'GET'; allowed: "
         "POST"},
        {"{\"custom_id\": \"r\", \"method\": 5" TAIL, "r", "invalid_value", "allowed: POST"},
        {"{\"custom_id\": \"r\", \"url\": \"/v1/completions\"}", "r", "missing_field", "body"},
        {"{\"custom_id\": \"r\", \"url\": \"/v1/completions\", \"body\": [1]}", "r",
         "missing_field", "body is missing or not an object"}};
#undef TAIL
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sf_record r;
        sf_status status = parse(cases[i].line, &r);
        check_refused(status, &r, cases[i].id, cases[i].code, cases[i].words);
    }
}

static void bad_completions(void)
{
    static const struct { const char *body, *code, *words; } cases[] = {
        {"", "missing_field", "body.prompt is missing"},
        {"\"prompt\": null", "invalid_value", "body.prompt is null; allowed: text or token ids"},
        {"\"prompt\": {}", "invalid_value", "body.prompt is an object"},
        {"\"prompt\": \"\"", "invalid_value", "the prompt is empty"},
        {"\"prompt\": []", "invalid_value", "the prompt is empty"},
        {"\"prompt\": [1, -1]", "invalid_value", "body.prompt[1] is -1; allowed: token ids from 0 "
         "to 299"},
        {"\"prompt\": [300]", "invalid_value", "body.prompt[0] is 300"},
        {"\"prompt\": [\"a\"]", "invalid_value", "body.prompt[0] is a string"},
        {"\"prompt\": [1.5]", "invalid_value", "body.prompt[0] is 1.5"},
        {"\"prompt\": [[1]]", "invalid_value", "body.prompt[0] is an array"},
        {"\"prompt\": [1], \"messages\": []", "invalid_value", "body.messages does not belong"},
        {"\"prompt\": [1], \"colour\": 1", "unknown_field", "body.colour is not a field we know"},
        {"\"prompt\": [1], \"max_tokens\": 0", "invalid_value", "body.max_tokens is 0; allowed: "
         "integers from 1 to 2147483647"},
        {"\"prompt\": [1], \"max_tokens\": -1", "invalid_value", "body.max_tokens is -1"},
        {"\"prompt\": [1], \"max_tokens\": \"3\"", "invalid_value", "body.max_tokens is a string"},
        {"\"prompt\": [1], \"max_tokens\": 2.5", "invalid_value", "body.max_tokens is 2.5"},
        {"\"prompt\": [1], \"max_tokens\": 2147483648", "invalid_value", "is 2147483648"},
        {"\"prompt\": [1], \"temperature\": \"0\"", "invalid_value", "temperature is a string"},
        {"\"prompt\": [1], \"temperature\": -0.1", "invalid_value", "is -0.1"},
        {"\"prompt\": [1], \"temperature\": 2.5", "invalid_value", "is 2.5; allowed: numbers from "
         "0 to 2"},
        {"\"prompt\": [1], \"top_p\": 0", "invalid_value", "is 0; allowed: numbers above 0 to 1"},
        {"\"prompt\": [1], \"top_p\": true", "invalid_value", "body.top_p is true"},
        {"\"prompt\": [1], \"top_k\": -2", "invalid_value", "body.top_k is -2"},
        {"\"prompt\": [1], \"min_p\": 1.1", "invalid_value", "numbers from 0 to 1"},
        {"\"prompt\": [1], \"presence_penalty\": 2.1", "invalid_value", "from -2 to 2"},
        {"\"prompt\": [1], \"repetition_penalty\": 0", "invalid_value", "above 0 to 100"},
        {"\"prompt\": [1], \"logit_bias\": [1]", "invalid_value", "body.logit_bias is"},
        {"\"prompt\": [1], \"logit_bias\": {\"-1\": 1}", "invalid_value", "a key '-1'"},
        {"\"prompt\": [1], \"logit_bias\": {\"1x\": 1}", "invalid_value", "a key '1x'"},
        {"\"prompt\": [1], \"logit_bias\": {\"999999999999999999999\": 1}", "invalid_value",
         "token ids from 0 to"},
        {"\"prompt\": [1], \"logit_bias\": {\"1\": 101}", "invalid_value", "of token 1 is 101"},
        {"\"prompt\": [1], \"stop\": \"\"", "invalid_value", "an empty text"},
        {"\"prompt\": [1], \"stop\": [1]", "invalid_value", "body.stop holds an integer"},
        {"\"prompt\": [1], \"seed\": 1.5", "invalid_value", "body.seed is 1.5"},
        {"\"prompt\": [1], \"ignore_eos\": 1", "invalid_value", "body.ignore_eos is an integer; "
         "allowed: true or false"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sf_record r;
        sf_status status = parse_body("completions", cases[i].body, &r);
        check_refused(status, &r, "r", cases[i].code, cases[i].words);
    }
}

static void bad_messages(void)
{
    static const struct { const char *messages, *code, *words; } cases[] = {
        {"{}", "invalid_value", "body.messages is an object; allowed: a list of messages"},
        {"[]", "invalid_value", "body.messages is empty"},
        {"[\"hi\"]", "invalid_value", "body.messages[0] is a string"},
        {"[{\"role\": \"user\"}]", "missing_field", "body.messages[0] needs role and content"},
        {"[{\"content\": \"a\"}]", "missing_field", "needs role"},
        {"[{\"role\": 1, \"content\": \"a\"}]", "missing_field", "needs role"},
        {"[{\"role\": \"user\", \"content\": null}]", "invalid_value", "content must be text"},
        {"[{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]", "invalid_value",
         "body.messages[0].content must be text or a list of text parts"},
        {"[{\"role\": \"wizard\", \"content\": \"a\"}]", "invalid_value", "role 'wizard'"},
        {"[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\","
         " \"tool_calls\": [1]}]", "unsupported_field", "body.messages[1].tool_calls"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sf_record r;
        char body[512];
        snprintf(body, sizeof body, "\"messages\": %s", cases[i].messages);
        sf_status status = parse_body("chat/completions", body, &r);
        check_refused(status, &r, "r", cases[i].code, cases[i].words);
    }
    struct sf_record r;
    sf_status status = parse_body("chat/completions", "\"prompt\": \"a\"", &r);
    check_refused(status, &r, "r", "invalid_value", "body.prompt does not belong to url");
}

/* One token of answer must fit; a text that is hopeless by its bytes is not even encoded. */
static void lengths(void)
{
    static char body[TEXT_BYTES_MAX + 64], line[TEXT_BYTES_MAX + 256];
    struct sf_record r;
    for (int tokens = TOKENS_MAX - 1; tokens <= TOKENS_MAX; tokens++) {
        int used = snprintf(body, sizeof body, "\"max_tokens\": 9, \"prompt\": [0");
        for (int i = 1; i < tokens; i++)
            used += snprintf(body + used, sizeof body - (size_t)used, ",0");
        snprintf(body + used, sizeof body - (size_t)used, "]");
        sf_status status = parse_body("completions", body, &r);
        if (tokens == TOKENS_MAX) {
            check_refused(status, &r, "r", "too_long", "the prompt has 64 tokens; with one token "
                          "of answer at most 64 fit (scheduler.max_model_len)");
        } else {
            SF_CHECK_INT(status, SF_OK);
            SF_CHECK_INT(r.answer_max, 1);
            sf_record_free(&r);
        }
    }
    int used = snprintf(line, sizeof line, "{\"custom_id\": \"r\", \"url\": \"/v1/completions\", "
                        "\"body\": {\"prompt\": \"");
    memset(line + used, 'z', TEXT_BYTES_MAX + 1);
    snprintf(line + used + TEXT_BYTES_MAX + 1, 8, "\"}}");
    sf_status status = parse(line, &r);
    check_refused(status, &r, "r", "too_long", "the prompt has 2561 bytes");
    SF_CHECK(r.prompt.id == NULL);
}

static void without_tokenizer(void)
{
    struct sf_record_limits limits = limits_now();
    limits.tokenizer = NULL;
    static const char ids[] = "{\"custom_id\": \"r\", \"url\": \"/v1/completions\", \"body\": "
                              "{\"prompt\": [299]}}";
    static const char text[] = "{\"custom_id\": \"r\", \"url\": \"/v1/completions\", \"body\": "
                               "{\"prompt\": \"a\"}}";
    struct sf_record r;
    SF_CHECK_OK(sf_record_parse(&limits, ids, strlen(ids), 1, &r));
    sf_record_free(&r);
    sf_status status = sf_record_parse(&limits, text, strlen(text), 1, &r);
    check_refused(status, &r, "r", "unsupported_field", "the model has no tokenizer");
}

/* ---- damage ---------------------------------------------------------------------------------- */
static void random_damage(void)
{
    static const char good[] = "{\"custom_id\": \"r\", \"method\": \"POST\", \"url\": \"/v1/chat/"
        "completions\", \"body\": {\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": "
        "\"text\", \"text\": \"ab\"}]}], \"max_tokens\": 4, \"temperature\": 1, \"seed\": 3, "
        "\"n\": 2, \"logprobs\": true, \"top_logprobs\": 2}}";
    struct sf_record_limits limits = limits_now();
    int64_t taken = 0, refused = 0;
    for (uint64_t round = 0; round < 100000; round++) {
        char line[sizeof good];
        size_t bytes = sizeof good - 1;
        memcpy(line, good, sizeof good);
        for (uint64_t hit = 0; hit < 1 + sf_rng_u64(1, round, 0) % 3; hit++) {
            size_t at = sf_rng_u64(1, round, 3 * hit + 1) % bytes;
            if (sf_rng_u64(1, round, 3 * hit + 2) % 2 == 0)
                line[at] = (char)sf_rng_u64(1, round, 3 * hit + 3);
            else line[at] = good[sf_rng_u64(1, round, 3 * hit + 3) % bytes];
        }
        if (round % 7 == 0) bytes = sf_rng_u64(1, round, 20) % bytes;
        struct sf_record r;
        sf_status status = sf_record_parse(&limits, line, bytes, 1, &r);
        if (status == SF_OK) {
            taken++;
            if (r.prompt.count < 1 || r.answer_max < 1) SF_CHECK(0);
        } else {
            refused++;
            if (r.code[0] == '\0' || sf_error_text()[0] == '\0') SF_CHECK(0);
        }
        sf_record_free(&r);
    }
    SF_CHECK(taken > 100);
    SF_CHECK(refused > 10000);
    sf_tokenizer_destroy(tokenizer);
    tokenizer = NULL;
}

static void blank_lines(void)
{
    struct sf_line line = {.kind = SF_LINE_TEXT, .text = " \t ", .bytes = 3};
    SF_CHECK(sf_record_is_blank(&line));
    line.bytes = 0;
    SF_CHECK(sf_record_is_blank(&line));
    line = (struct sf_line){.kind = SF_LINE_TEXT, .text = " {", .bytes = 2};
    SF_CHECK(!sf_record_is_blank(&line));
    line = (struct sf_line){.kind = SF_LINE_TOO_LONG, .bytes = 100};
    SF_CHECK(!sf_record_is_blank(&line));
}

static const struct sf_test tests[] = {
    {"defaults", defaults},
    {"all fields", all_fields},
    {"neutral values", neutral_values},
    {"choices", choices},
    {"log probabilities", logprobs},
    {"no answer", no_answer},
    {"bad log probabilities", bad_logprobs},
    {"too many log probabilities", too_many_logprobs},
    {"sampling fields", sampling_fields},
    {"messages", messages},
    {"NUL bytes", nul_bytes},
    {"broken lines", broken_lines},
    {"bad completions", bad_completions},
    {"bad messages", bad_messages},
    {"lengths", lengths},
    {"without a tokenizer", without_tokenizer},
    {"blank lines", blank_lines},
    {"random damage", random_damage},
    {NULL, NULL}};
SF_TEST_MAIN("request", tests)
