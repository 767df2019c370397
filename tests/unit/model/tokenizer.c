/* tests/unit/model/tokenizer.c: text becomes the reference's token ids, and comes back.
 *
 * Golden ids of the real model's tokenizer; on a tiny vocabulary of all 256 bytes, whose merges are
 * known by hand, every text, broken ones too, comes back byte for byte; hostile texts take time in
 * proportion to their length; contents of a chat never become control tokens. */
#include "model/tokenizer.h"

#include <stdlib.h>
#include <time.h>

#include "base/json.h"
#include "model/split.h"
#include "model/weights.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

/* ---- help ---------------------------------------------------------------------------------- */

static struct sf_tokenizer *real_tokenizer(void)
{
    struct sf_model *model = NULL;
    struct sf_tokenizer *tok = NULL;
    SF_CHECK_OK(sf_model_open(sf_test_model(), &model));
    if (model == NULL) return NULL;
    SF_CHECK_OK(sf_tokenizer_create(model, &tok));
    sf_model_close(model);                              /* the tokenizer stands on its own */
    return tok;
}

static sf_status tiny_tokenizer(const struct tiny_spec *spec, struct sf_tokenizer **tok)
{
    struct tiny_file file = tiny_make(spec);
    struct sf_model *model = NULL;
    sf_status status = sf_model_open(tiny_path(file.bytes, file.count), &model);
    if (status == SF_OK) status = sf_tokenizer_create(model, tok);
    sf_model_close(model);
    tiny_free(&file);
    return status;
}

static struct sf_json *read_json(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct sf_json *value = NULL;
    static char text[1 << 20];
    size_t bytes = file == NULL ? 0 : fread(text, 1, sizeof text, file);
    if (file != NULL) fclose(file);
    SF_CHECK_OK(sf_json_parse(text, bytes, sizeof text, &value));
    return value;
}

static void check_ids(const char *what, const struct sf_tokens *tokens, const struct sf_json *ids)
{
    size_t count = sf_json_count(ids), same = 0;
    for (; same < tokens->count && same < count; same++) {
        int64_t id = -1;
        (void)sf_json_get_int(sf_json_item(ids, same), &id);
        if (id != tokens->id[same]) break;
    }
    if (same == count && same == tokens->count) {
        CU_PASS("ids");
        return;
    }
    sf_test_fail(__FILE__, __LINE__, "\"%.60s\": %zu of %zu ids, the first %zu are right", what,
                 tokens->count, count, same);
}

static size_t decode(const struct sf_tokenizer *tok, const struct sf_tokens *tokens, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < tokens->count; i++) {
        size_t bytes;
        const char *at = sf_tokenizer_bytes(tok, tokens->id[i], 1, &bytes);
        if (bytes > 0) memcpy(out + n, at, bytes);
        n += bytes;
    }
    return n;
}

/* ---- the real tokenizer -------------------------------------------------------------------- */

static void test_golden(void)
{
    if (sf_test_model() == NULL) SF_SKIP("models/smollm2-135m-instruct.gguf is not here");
    struct sf_tokenizer *tok = real_tokenizer();
    struct sf_json *golden = read_json(sf_test_data("golden/tokenizer_smollm2.json"));
    struct sf_json *prompts = read_json(sf_test_data("golden/smollm2-135m-q4_1.json"));
    struct sf_tokens tokens = { 0 };
    if (tok == NULL) return;
    SF_CHECK_STR(sf_tokenizer_kind(tok), "gpt2/smollm");
    SF_CHECK_INT(sf_tokenizer_vocab(tok), 49152);
    SF_CHECK(sf_json_count(golden) >= 70);
    for (int pass = 0; pass < 2; pass++) {
        const struct sf_json *list = pass == 0 ? golden : sf_json_member(prompts, "prompts");
        SF_CHECK(sf_json_count(list) >= 8);
        for (size_t i = 0; i < sf_json_count(list); i++) {
            const struct sf_json *item = sf_json_item(list, i);
            size_t bytes = 0;
            const char *text = sf_json_text(sf_json_member(item, "text"), &bytes);
            static char back[1 << 16];
            tokens.count = 0;
            SF_CHECK_OK(sf_tokenizer_encode(tok, text, bytes, 1, 1, &tokens));
            check_ids(text, &tokens, sf_json_member(item, "ids"));
            SF_CHECK_INT(decode(tok, &tokens, back), bytes);
            SF_CHECK(memcmp(back, text, bytes) == 0);
        }
    }
    SF_CHECK(sf_tokenizer_is_eos(tok, 2) && !sf_tokenizer_is_eos(tok, 0));
    free(tokens.id);
    sf_json_free(golden);
    sf_json_free(prompts);
    sf_tokenizer_destroy(tok);
}

static void test_real_chat(void)
{
    if (sf_test_model() == NULL) SF_SKIP("models/smollm2-135m-instruct.gguf is not here");
    static const char rendered[] =
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\n\n 7 salty seas?<|im_end|>\n<|im_start|>assistant\nYes."
        "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n";
    const struct sf_message messages[] = { { "user", "\n 7 salty seas?", 15 },
                                           { "assistant", "Yes.", 4 }, { "user", "Why?", 4 } };
    struct sf_tokenizer *tok = real_tokenizer();
    struct sf_tokens chat = { 0 }, text = { 0 };
    if (tok == NULL) return;
    SF_CHECK_INT(sf_tokenizer_chat(tok), SF_CHAT_CHATML);
    SF_CHECK_OK(sf_chat_encode(tok, messages, 3, &chat));
    SF_CHECK_OK(sf_tokenizer_encode(tok, rendered, sizeof rendered - 1, 1, 0, &text));
    SF_CHECK_INT(chat.count, text.count);
    SF_CHECK(chat.count == text.count &&
             memcmp(chat.id, text.id, chat.count * sizeof *chat.id) == 0);
    SF_CHECK_INT(chat.id[0], 1);

    /* A system message of one's own takes the place of the default. */
    const struct sf_message own[] = { { "system", "S", 1 }, { "user", "U", 1 } };
    static const char own_text[] = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>"
                                   "\n<|im_start|>assistant\n";
    chat.count = text.count = 0;
    SF_CHECK_OK(sf_chat_encode(tok, own, 2, &chat));
    SF_CHECK_OK(sf_tokenizer_encode(tok, own_text, sizeof own_text - 1, 1, 0, &text));
    SF_CHECK(chat.count == text.count &&
             memcmp(chat.id, text.id, chat.count * sizeof *chat.id) == 0);
    free(chat.id);
    free(text.id);
    sf_tokenizer_destroy(tok);
}

/* Bytes that the real vocabulary has no token for are left out; all others come back. */
static void test_real_bytes(void)
{
    if (sf_test_model() == NULL) SF_SKIP("models/smollm2-135m-instruct.gguf is not here");
    struct sf_tokenizer *tok = real_tokenizer();
    struct sf_tokens tokens = { 0 };
    if (tok == NULL) return;
    int known[256] = { 0 }, unknown = 0;
    for (int32_t id = 0; id < sf_tokenizer_vocab(tok); id++) {
        size_t bytes;
        const char *at = sf_tokenizer_bytes(tok, id, 0, &bytes);
        if (bytes == 1) known[(unsigned char)*at] = 1;
    }
    for (int b = 0; b < 256; b++) unknown += !known[b];
    SF_CHECK_INT(unknown, 21);
    char text[3000], want[3000], back[3000];
    for (uint32_t round = 0; round < 50; round++) {
        size_t kept = 0;
        for (uint32_t i = 0; i < sizeof text; i++) {
            text[i] = (char)((round * 7919u + i * 2654435761u) >> 13);
            if (known[(unsigned char)text[i]]) want[kept++] = text[i];
        }
        tokens.count = 0;
        SF_CHECK_OK(sf_tokenizer_encode(tok, text, sizeof text, 0, 0, &tokens));
        SF_CHECK_INT(decode(tok, &tokens, back), kept);
        SF_CHECK(memcmp(back, want, kept) == 0);
    }
    free(tokens.id);
    sf_tokenizer_destroy(tok);
}

/* ---- the tiny one: 0 <|im_start|> 1 <|im_end|> 2 <user> 3 ab 4 abc 5 " a" 6 " " 7 a ... ---- */

static void check_encode(const struct sf_tokenizer *tok, const char *text, int parse_special,
                         const char *want)
{
    struct sf_tokens tokens = { 0 };
    char got[256] = "";
    SF_CHECK_OK(sf_tokenizer_encode(tok, text, strlen(text), parse_special, 0, &tokens));
    for (size_t i = 0; i < tokens.count; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%d", i > 0 ? " " : "",
                 tokens.id[i]);
    SF_CHECK_STR(got, want);
    free(tokens.id);
}

static void test_merges_and_specials(void)
{
    struct tiny_spec spec = tiny_default();
    struct sf_tokenizer *tok = NULL;
    SF_MUST(tiny_tokenizer(&spec, &tok));
    check_encode(tok, "abc", 0, "4");
    check_encode(tok, "abab", 0, "3 3");
    check_encode(tok, " abc", 0, "6 4");                /* "a b" ranks before " a" */
    check_encode(tok, " ac", 0, "5 9");
    check_encode(tok, "b a", 0, "8 5");
    check_encode(tok, "ab<user>c", 0, "3 2 9");         /* user-defined: always cut out */
    check_encode(tok, "ab<user>c", 1, "3 2 9");
    check_encode(tok, "a<|im_end|>b", 1, "7 1 8");
    check_encode(tok, "<|im_end|><|im_start|>", 1, "1 0");
    struct sf_tokens tokens = { 0 };
    SF_CHECK_OK(sf_tokenizer_encode(tok, "a<|im_end|>b", 12, 0, 0, &tokens));
    SF_CHECK_INT(tokens.count, 12);                     /* ordinary text, byte by byte */
    for (size_t i = 0; i < tokens.count; i++) SF_CHECK(tokens.id[i] > 2);
    size_t bytes;
    (void)sf_tokenizer_bytes(tok, 1, 0, &bytes);
    SF_CHECK_INT(bytes, 0);
    SF_CHECK(memcmp(sf_tokenizer_bytes(tok, 1, 1, &bytes), "<|im_end|>", 10) == 0 && bytes == 10);
    (void)sf_tokenizer_bytes(tok, 299, 1, &bytes);      /* a row of the model without a token */
    SF_CHECK_INT(bytes, 0);
    SF_CHECK_INT(sf_tokenizer_vocab(tok), 263);
    free(tokens.id);
    sf_tokenizer_destroy(tok);
}

/* Special tokens that begin alike, and two with one text: the longest is cut out, then the lower
 * id; a control token only where specials are parsed. */
static void test_specials_alike(void)
{
    static const char key[] = "tokenizer.ggml.token_type", z[] = "\1\0\0\0\0\0\0\0z";
    struct tiny_spec spec = tiny_default();
    struct tiny_file file = tiny_make(&spec);
    unsigned char *types = memmem(file.bytes, file.count, key, sizeof key - 1);
    unsigned char *letter = memmem(file.bytes, file.count, z, sizeof z - 1);
    SF_ASSERT(types != NULL && letter != NULL);
    types += sizeof key - 1 + 4 + 4 + 8;                /* array, of i32, count */
    letter[8] = 'a';                                    /* 32 is "a" too, as 7 is */
    types[4 * 7] = 3;                                   /* "a": control; the other one, "ab" and */
    types[4 * 3] = types[4 * 4] = types[4 * 32] = 4;    /* "abc": user-defined */
    struct sf_model *model = NULL;
    struct sf_tokenizer *tok = NULL;
    SF_MUST(sf_model_open(tiny_path(file.bytes, file.count), &model));
    SF_MUST(sf_tokenizer_create(model, &tok));
    check_encode(tok, "xabcabax", 1, "30 4 3 7 30");
    check_encode(tok, "xabcabax", 0, "30 4 3 32 30");
    check_encode(tok, "ab", 1, "3");
    check_encode(tok, "im<|im_end|><|im_en", 1, "15 19 1 226 34 15 19 261 11 20");
    sf_tokenizer_destroy(tok);
    sf_model_close(model);
    tiny_free(&file);
}

static void test_round_trip(void)
{
    struct tiny_spec spec = tiny_default();
    struct sf_tokenizer *tok = NULL;
    struct sf_tokens tokens = { 0 };
    static const char *const parts[] = {
        "abc", " a", "\xff", "\xc3", "\xc3\xa9", "\xed\xa0\x80", "7", "\xe2\x82",
        "\xf0\x9f\x99\x82", "\n\n  ", "\xc0\xaf", "'s", "<|im_end|>", "<user", "\x80", "\t",
        "\xf4\x90\x80\x80" };
    char text[4096], back[4096];
    SF_MUST(tiny_tokenizer(&spec, &tok));
    uint32_t state = 1;
    for (int round = 0; round < 400; round++) {
        size_t n = 0;
        while (n < 3000 && (n == 0 || state >> 20 != 77)) {
            state = state * 1664525u + 1013904223u;
            uint32_t pick = state >> 16;
            if (pick % 3 == 0) text[n++] = (char)(pick >> 4);
            else {
                const char *part = parts[pick % (sizeof parts / sizeof parts[0])];
                memcpy(text + n, part, strlen(part));
                n += strlen(part);
            }
        }
        tokens.count = 0;
        SF_CHECK_OK(sf_tokenizer_encode(tok, text, n, round % 2, 0, &tokens));
        SF_CHECK_INT(decode(tok, &tokens, back), n);
        SF_CHECK(memcmp(back, text, n) == 0);
    }
    tokens.count = 0;
    SF_CHECK_OK(sf_tokenizer_encode(tok, "a\0b", 3, 0, 0, &tokens));
    SF_CHECK_INT(tokens.count, 3);
    free(tokens.id);
    sf_tokenizer_destroy(tok);
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void test_hostile_lengths(void)
{
    static const char *const fills[] = { "a", "ab", " ", " a", "\n", "<", "<|im_end|", "\xff", "1",
                                         "\xe2\x80\x83", "'", " \n" };
    static const char *const pres[] = { "smollm", "gpt-2", "llama-bpe", "qwen2" };
    enum { BYTES = 1 << 20 };
    char *text = malloc(BYTES), *back = malloc(BYTES + 16);
    struct sf_tokens tokens = { 0 };
    double worst = 0;
    for (size_t p = 0; p < 4; p++) {
        struct tiny_key keys[2] = { { "tokenizer.ggml.pre", TINY_STRING, 0, pres[p], NULL, 0 } };
        struct tiny_spec spec = tiny_default();
        struct sf_tokenizer *tok = NULL;
        spec.keys = keys;
        SF_MUST(tiny_tokenizer(&spec, &tok));
        for (size_t f = 0; f < sizeof fills / sizeof fills[0]; f++) {
            size_t step = strlen(fills[f]);
            for (size_t i = 0; i < BYTES; i++) text[i] = fills[f][i % step];
            double start = seconds();
            tokens.count = 0;
            SF_CHECK_OK(sf_tokenizer_encode(tok, text, BYTES, 1, 0, &tokens));
            double taken = seconds() - start;
            if (taken > worst) worst = taken;
            SF_CHECK_INT(decode(tok, &tokens, back), BYTES);
            SF_CHECK(memcmp(back, text, BYTES) == 0);
        }
        sf_tokenizer_destroy(tok);
    }
    /* Quadratic work would be 10^12 steps; the bound leaves room for a busy machine. */
    SF_CHECK(worst < 20);
    printf("  slowest megabyte: %.2f s\n", worst);
    free(tokens.id);
    free(text);
    free(back);
}

/* ---- pre-tokenizers ------------------------------------------------------------------------ */

static sf_status join(void *context, const char *at, size_t bytes)
{
    char *out = context;
    size_t used = strlen(out);
    snprintf(out + used, 512 - used, "%s%.*s", used > 0 ? "|" : "", (int)bytes, at);
    return SF_OK;
}

static void check_split(const char *pre, const char *text, const char *want)
{
    struct sf_split *split = NULL;
    char got[512] = "";
    SF_MUST(sf_split_create(pre, strlen(pre), &split));
    SF_CHECK_OK(sf_split_text(split, text, strlen(text), join, got));
    SF_CHECK_STR(got, want);
    sf_split_destroy(split);
}

static void test_splits(void)
{
    check_split("smollm", "It's  12 o'clock\n  7", "It|'s|  |1|2| o|'|clock|\n  |7");
    check_split("gpt-2", "It's  12 o'clock\n  7", "It|'s| | 12| o|'|clock|\n | 7");
    check_split("llama-bpe", "IT'S 12345 a.b\n\n x", "IT|'S| |123|45| a|.b|\n\n| x");
    check_split("qwen2", "IT'S 123 a.b\n\n x", "IT|'S| |1|2|3| a|.b|\n\n| x");
    check_split("gpt-2", "caf\xc3\xa9 \xc2\xb2 \xe3\x81\x82",
                "caf\xc3\xa9| \xc2\xb2| \xe3\x81\x82");
    check_split("gpt-2", "a\xff\xff b", "a|\xff|\xff| b");
    check_split("gpt-2", "", "");
    struct sf_split *split = NULL;
    SF_CHECK_FAILS(sf_split_create("gpt-3", 5, &split), SF_UNSUPPORTED);
    SF_CHECK_FAILS(sf_split_create("", 0, &split), SF_UNSUPPORTED);
}

/* ---- chat and settings on the tiny tokenizer ------------------------------------------------ */

static void check_template(const char *jinja, enum sf_chat chat, const char *first_bytes)
{
    struct tiny_key keys[2] = { { "tokenizer.chat_template", TINY_STRING, 0, jinja, NULL, 0 } };
    struct tiny_spec spec = tiny_default();
    struct sf_tokenizer *tok = NULL;
    struct sf_tokens tokens = { 0 };
    struct sf_message message = { "user", "<|im_end|>b", 11 };
    char text[512];
    spec.keys = keys;
    SF_MUST(tiny_tokenizer(&spec, &tok));
    SF_CHECK_INT(sf_tokenizer_chat(tok), chat);
    if (chat == SF_CHAT_NONE) {
        SF_CHECK_FAILS(sf_chat_encode(tok, &message, 1, &tokens), SF_UNSUPPORTED);
    } else {
        SF_CHECK_OK(sf_chat_encode(tok, &message, 1, &tokens));
        size_t n = decode(tok, &tokens, text), ends = 0;
        text[n] = 0;
        SF_CHECK_STR(text, first_bytes);
        for (size_t i = 0; i < tokens.count; i++) ends += tokens.id[i] == 1;
        SF_CHECK_INT(ends, strncmp(first_bytes, "<|im_start|>system", 18) == 0 ? 2 : 1);
        message.role = "tool";
        size_t before = tokens.count;
        SF_CHECK_FAILS(sf_chat_encode(tok, &message, 1, &tokens), SF_INVALID);
        SF_CHECK_FAILS(sf_chat_encode(tok, &message, 0, &tokens), SF_INVALID);
        SF_CHECK_INT(tokens.count, before);
    }
    free(tokens.id);
    sf_tokenizer_destroy(tok);
}

static void test_templates(void)
{
#define TURN "<|im_start|>user\n<|im_end|>b<|im_end|>\n<|im_start|>assistant\n"
    check_template("{{ '<|im_start|>' + role + '\\n' + content + '<|im_end|>' }}", SF_CHAT_CHATML,
                   TURN);
    check_template("{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}", SF_CHAT_CHATML,
                   "<|im_start|>system\nBe kind.<|im_end|>\n" TURN);
    check_template("{{- '<|im_start|>system\\n' + x + '<|im_end|>' }} "
                   "{{- \"<|im_start|>system\\nIt\\'s\\tme.<|im_end|>\\n\" }}", SF_CHAT_CHATML,
                   "<|im_start|>system\nIt's\tme.<|im_end|>\n" TURN);
    check_template("{{ '<|im_start|>system\n", SF_CHAT_NONE, "");
    check_template("[INST] {{ content }} [/INST]", SF_CHAT_NONE, "");
}

static void test_settings(void)
{
    struct tiny_key keys[2] = { { "tokenizer.ggml.pre", TINY_STRING, 0, "gpt-9", NULL, 0 } };
    struct tiny_spec spec = tiny_default();
    struct sf_tokenizer *tok = NULL;
    struct sf_tokens tokens = { 0 };
    spec.keys = keys;
    SF_CHECK_FAILS(tiny_tokenizer(&spec, &tok), SF_UNSUPPORTED);
    SF_CHECK(strstr(sf_error_text(), "gpt-9") != NULL);
    keys[0] = (struct tiny_key){ "tokenizer.ggml.model", TINY_STRING, 0, "llama", NULL, 0 };
    SF_CHECK_FAILS(tiny_tokenizer(&spec, &tok), SF_UNSUPPORTED);
    keys[0] = (struct tiny_key){ "tokenizer.ggml.pre", TINY_LEFT_OUT, 0, NULL, NULL, 0 };
    SF_CHECK_FAILS(tiny_tokenizer(&spec, &tok), SF_FORMAT);
    spec.tokens = 0;
    SF_CHECK_OK(tiny_tokenizer(&spec, &tok));
    SF_CHECK(tok == NULL);
    spec.tokens = 301;                                  /* more than the model has rows */
    SF_CHECK_FAILS(tiny_tokenizer(&spec, &tok), SF_FORMAT);
    spec.tokens = 8;                                    /* merges need "b" and "c" */
    keys[0].key = "unused";
    SF_CHECK_FAILS(tiny_tokenizer(&spec, &tok), SF_FORMAT);

    for (int add = 0; add < 2; add++) {
        spec = tiny_default();
        spec.keys = keys;
        keys[0].key = "tokenizer.ggml.add_bos_token";
        keys[0].type = TINY_BOOL;
        keys[0].number = add;
        SF_MUST(tiny_tokenizer(&spec, &tok));
        tokens.count = 0;
        SF_CHECK_OK(sf_tokenizer_encode(tok, "a", 1, 0, 1, &tokens));
        SF_CHECK_INT(tokens.count, 1 + add);
        SF_CHECK_OK(sf_tokenizer_encode(tok, "a", 1, 0, 0, &tokens));   /* appends, no BOS */
        SF_CHECK_INT(tokens.count, 2 + add);
        SF_CHECK_INT(tokens.id[0], add ? 0 : 7);
        sf_tokenizer_destroy(tok);
    }
    free(tokens.id);
}

static const struct sf_test tests[] = {
    { "golden", test_golden }, { "real_chat", test_real_chat }, { "real_bytes", test_real_bytes },
    { "merges_and_specials", test_merges_and_specials },
    { "specials_alike", test_specials_alike }, { "round_trip", test_round_trip },
    { "hostile_lengths", test_hostile_lengths }, { "splits", test_splits },
    { "templates", test_templates }, { "settings", test_settings }, { NULL, NULL } };
SF_TEST_MAIN("model_tokenizer", tests)
