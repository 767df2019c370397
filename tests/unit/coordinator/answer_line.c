/* tests/unit/coordinator/answer_line.c: what is told of a line of OUT without parsing it.
 *
 * Ids and errors of lines as emit.c writes them and in other orders and spacings; ids with escapes;
 * lines that are none; every line cut at every byte, which is never taken for a whole one; bytes
 * changed at random, where the full parser has the last word: what it calls an answer is read here
 * with the same id and error. */
#include "coordinator/answer_line.h"

#include <stdlib.h>

#include "base/json.h"
#include "base/rng.h"
#include "tests/check.h"

#define ANSWER                                                                                     \
    "{\"id\": \"req-1\", \"custom_id\": \"a \xc3\xa9\", \"response\": {\"status_code\": 200, "     \
    "\"body\": {\"choices\": [{\"text\": \"}]\\\"{ \\\\\"}], \"error\": 5}}, \"error\": null}"
#define FAILED "{\"id\":\"r\",\"custom_id\":null,\"response\":null,\"error\":{\"code\":\"x\"}}"

/* A copy without a NUL behind it, so that a reader which goes too far is caught. */
static sf_status read_line(const char *text, size_t bytes, struct sf_buffer *buffer,
                           struct sf_answer_line *out, char **copy_out)
{
    *copy_out = malloc(bytes > 0 ? bytes : 1);
    if (*copy_out == NULL) abort();
    memcpy(*copy_out, text, bytes);
    return sf_answer_line_read(*copy_out, bytes, buffer, out);
}

/* id NULL: null. */
static void check_line(const char *text, const char *id, size_t id_bytes, int error)
{
    struct sf_buffer buffer = {0};
    struct sf_answer_line line;
    char *copy;
    SF_CHECK_OK(read_line(text, strlen(text), &buffer, &line, &copy));
    SF_CHECK(id == NULL ? line.id == NULL : line.id != NULL && line.id_bytes == id_bytes &&
                                            memcmp(line.id, id, id_bytes) == 0);
    SF_CHECK_INT(line.error, error);
    sf_buffer_free(&buffer);
    free(copy);
}

static void lines(void)
{
    check_line(ANSWER, "a \xc3\xa9", 4, 0);
    check_line(FAILED, NULL, 0, 1);
    check_line(" {\t\"error\" :{},\"custom_id\" : \"\" , \"response\":0 } \r\n", "", 0, 1);
    check_line("{\"response\": [[\"custom_id\", {\"custom_id\": \"no\"}]], \"custom_id\": \"yes\"}",
               "yes", 3, 0);
    check_line("{\"custom_id\": \"\\u0061\\u0000\\n\\ud83d\\ude00\", \"error\": null}",
               "a\0\n\xf0\x9f\x98\x80", 7, 0);
    check_line("{\"custom_id\": \"x\", \"error\": \"null\"}", "x", 1, 1);
    check_line("{\"custom_id\": \"x\", \"error\": false, \"response\": {}}", "x", 1, 1);
}

static void refused(void)
{
    static const char *const bad[] = {
        "", " ", "7", "null", "[]", "{}", "{", "{\"custom_id\": \"x\"}", "{\"error\": null}",
        "{\"custom_id\": 7, \"error\": null}", "{\"custom_id\": [\"x\"], \"error\": null}",
        "{\"custom_id\": \"\\q\", \"error\": null}",
        "{\"custom_id\": \"\\ud800\", \"error\": null}",
        FAILED FAILED, FAILED "x", "{\"custom_id\": \"x\", \"error\": null,}",
        "{\"custom_id\": \"x\" \"error\": null}", "{\"custom_id\" \"x\", \"error\": null}",
        "{\"custom_id\": \"x\", \"error\": }", "{\"custom_id\": \"x\", \"error\": {[}",
        "{custom_id: \"x\", \"error\": null}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct sf_buffer buffer = {0};
        struct sf_answer_line line;
        char *copy;
        SF_CHECK_FAILS(read_line(bad[i], strlen(bad[i]), &buffer, &line, &copy), SF_FORMAT);
        sf_buffer_free(&buffer);
        free(copy);
    }
}

static void torn(void)
{
    static const char *const whole[] = {ANSWER, FAILED};
    for (int i = 0; i < 2; i++)
        for (size_t cut = 0; cut < strlen(whole[i]); cut++) {
            struct sf_buffer buffer = {0};
            struct sf_answer_line line;
            char *copy;
            SF_CHECK_FAILS(read_line(whole[i], cut, &buffer, &line, &copy), SF_FORMAT);
            sf_buffer_free(&buffer);
            free(copy);
        }
}

static void changed_bytes(void)
{
    static const char pool[] = "{}[]\",:\\nu0 \t";
    struct sf_buffer buffer = {0};
    int agreed = 0;
    for (uint64_t round = 0; round < 50000; round++) {
        char text[] = ANSWER, *copy;
        for (uint64_t i = 0; i <= sf_rng_u64(1, round, 0) % 3; i++)
            text[sf_rng_u64(2, round, i) % (sizeof text - 1)] =
                pool[sf_rng_u64(3, round, i) % (sizeof pool - 1)];
        struct sf_answer_line line;
        struct sf_json *root = NULL;
        sf_status status = read_line(text, sizeof text - 1, &buffer, &line, &copy);
        if (sf_json_parse(text, sizeof text - 1, 1 << 20, &root) == SF_OK) {
            size_t bytes = 0;
            const struct sf_json *error = sf_json_member(root, "error");
            const struct sf_json *custom_id = sf_json_member(root, "custom_id");
            const char *id = sf_json_text(custom_id, &bytes);
            if (id != NULL && (error != NULL || sf_json_member(root, "response") != NULL)) {
                int same = status == SF_OK && line.id_bytes == bytes &&
                           memcmp(line.id, id, bytes) == 0 &&
                           line.error == (error != NULL && sf_json_type(error) != SF_JSON_NULL);
                if (!same) sf_test_fail(__FILE__, __LINE__, "round %d: %s", (int)round, text);
                agreed += same;
            }
        }
        sf_json_free(root);
        free(copy);
    }
    SF_CHECK(agreed > 5000);
    sf_buffer_free(&buffer);
}

static const struct sf_test tests[] = {
    {"lines", lines},
    {"refused", refused},
    {"torn", torn},
    {"changed bytes", changed_bytes},
    {NULL, NULL}};
SF_TEST_MAIN("answer_line", tests)
