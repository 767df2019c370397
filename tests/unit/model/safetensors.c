/* tests/unit/model/safetensors.c: files of named tensors, read and written.
 *
 * Shown: what is written reads back, tensors of all widths in one file, aligned, empty ones and
 * scalars too, and metadata of any text; a file replaced is the old one or the new one; each way in
 * which a header can lie is refused with words that name the tensor: lengths, types, shapes that
 * overflow, offsets outside, overlaps, gaps, names twice. */
#include <stdlib.h>
#include <unistd.h>

#include "base/json.h"
#include "model/safetensors.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

/* A file of this header and so many bytes of data, which count up; length -1: the right one. */
static const char *made(const char *header, size_t data, int64_t length)
{
    static unsigned char bytes[4096];
    size_t n = strlen(header);
    uint64_t said = length < 0 ? n : (uint64_t)length;
    SF_ASSERT(8 + n + data <= sizeof bytes);
    memcpy(bytes, &said, 8);
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i < data; i++) bytes[8 + n + i] = (unsigned char)i;
    return tiny_path(bytes, 8 + n + data);
}

static void check_refused(const char *header, size_t data, sf_status status, const char *words)
{
    struct sf_st_file *file = NULL;
    sf_status found = sf_st_open(made(header, data, -1), &file);
    if (found != status || strstr(sf_error_text(), words) == NULL ||
        strchr(sf_error_text(), '\n') != NULL)
        sf_test_fail(__FILE__, __LINE__, "%s: %s: \"%s\", expected %s with \"%s\"", header,
                     sf_status_name(found), sf_error_text(), sf_status_name(status), words);
    else CU_PASS("refused");
    if (found == SF_OK) sf_st_close(file);
}

#define A "\"a\": {\"dtype\": \"F32\", \"shape\": [2, 1], \"data_offsets\": [0, 8]}"
#define B(first, end) "\"b\": {\"dtype\": \"U8\", \"shape\": [4], \"data_offsets\": [" #first ", " \
                      #end "]}"

static void test_reads(void)
{
    struct sf_st_file *file;
    SF_MUST(sf_st_open(made("{\"__metadata__\": {\"k\": \"v\xc3\xa9\"}, " B(8, 12) ", " A "}  ", 12,
                            -1), &file));
    SF_CHECK_INT(sf_st_tensors(file), 2);
    SF_CHECK_STR(sf_st_tensor(file, 0)->name, "a");     /* in the order of the data */
    const struct sf_st_tensor *b = sf_st_find(file, "b");
    SF_CHECK(b == sf_st_tensor(file, 1));
    SF_CHECK_INT(b->type, SF_ST_U8);
    SF_CHECK_INT(b->n_dims, 1);
    SF_CHECK_INT(b->bytes, 4);
    SF_CHECK_INT(((const unsigned char *)b->data)[0], 8);
    SF_CHECK_INT(sf_st_find(file, "a")->elements, 2);
    SF_CHECK(sf_st_find(file, "c") == NULL);
    SF_CHECK_STR(sf_st_meta(file, "k"), "v\xc3\xa9");
    SF_CHECK(sf_st_meta(file, "a") == NULL);
    sf_st_close(file);
    SF_MUST(sf_st_open(made("{}", 0, -1), &file));
    SF_CHECK_INT(sf_st_tensors(file), 0);
    SF_CHECK(sf_st_find(file, "a") == NULL);
    SF_CHECK(sf_st_meta(file, "a") == NULL);
    sf_st_close(file);
}

static void test_refuses_headers(void)
{
    struct sf_st_file *file;
    SF_CHECK_FAILS(sf_st_open("/nonexistent", &file), SF_IO);
    SF_CHECK_FAILS(sf_st_open("/", &file), SF_IO);
    SF_CHECK_FAILS(sf_st_open(made("", 0, 0), &file), SF_FORMAT);
    SF_CHECK_FAILS(sf_st_open(made("{" A "}", 8, 1000), &file), SF_FORMAT);
    SF_CHECK_FAILS(sf_st_open(made("{" A "}", 8, INT64_MAX), &file), SF_FORMAT);
    SF_CHECK_FAILS(sf_st_open(made("{" A "}", 8, 10), &file), SF_FORMAT);
    check_refused("[1, 2]", 0, SF_FORMAT, "no JSON object");
    check_refused("{" A, 8, SF_FORMAT, "JSON");
    check_refused("{" A ", " A "}", 8, SF_FORMAT, "refused");           /* a name twice */
    check_refused("{\"a\": 3}", 0, SF_FORMAT, "tensor 'a'");
    check_refused("{\"__metadata__\": []}", 0, SF_FORMAT, "__metadata__");
    check_refused("{\"__metadata__\": {\"k\": 1}}", 0, SF_FORMAT, "'k' is not a text");
    check_refused("{\"__metadata__\": {\"k\": \"a\\u0000b\"}}", 0, SF_FORMAT, "NUL");
}

static void test_refuses_tensors(void)
{
#define T(dtype, shape, offsets)                                                                   \
    "{\"a\\nb\": {\"dtype\": " dtype ", \"shape\": " shape ", \"data_offsets\": " offsets "}}"
    static const struct { const char *header; sf_status status; const char *words; } cases[] = {
        { T("\"F99\"", "[2]", "[0, 8]"), SF_UNSUPPORTED, "'F99'" },
        { T("7", "[2]", "[0, 8]"), SF_FORMAT, "dtype" },
        { T("\"F32\"", "2", "[0, 8]"), SF_FORMAT, "shape" },
        { T("\"F32\"", "[-2]", "[0, 8]"), SF_FORMAT, "dimension 0 of tensor 'a?b'" },
        { T("\"F32\"", "[2.0]", "[0, 8]"), SF_FORMAT, "dimension 0" },
        { T("\"F32\"", "[1, 1, 1, 1, 1, 1, 1, 1, 2]", "[0, 8]"), SF_FORMAT, "9 dimensions" },
        { T("\"F32\"", "[4294967296, 4294967296]", "[0, 8]"), SF_FORMAT, "more elements" },
        { T("\"F32\"", "[4611686018427387904]", "[0, 8]"), SF_FORMAT, "more bytes" },
        { T("\"F32\"", "[3]", "[0, 8]"), SF_FORMAT, "12 bytes of F32, but data_offsets of 8" },
        { T("\"F32\"", "[2]", "[0, 8, 8]"), SF_FORMAT, "two integers" },
        { T("\"F32\"", "[2]", "{\"x\": 0, \"y\": 8}"), SF_FORMAT, "two integers" },
        { T("\"F32\"", "[2]", "[0, \"8\"]"), SF_FORMAT, "two integers" },
        { T("\"F32\"", "[2]", "[-8, 0]"), SF_FORMAT, "lies at" },
        { T("\"F32\"", "[2]", "[8, 0]"), SF_FORMAT, "lies at" },
        { T("\"F32\"", "[2]", "[8, 16]"), SF_FORMAT, "of 8 bytes" },
        { T("\"F32\"", "[2]", "[9223372036854775800, 9223372036854775807]"), SF_FORMAT, "lies at" },
        { T("\"F32\"", "[2]", "[0, 9223372036854775808]"), SF_FORMAT, "" },
        { T("\"F32\"", "[1]", "[0, 4]"), SF_FORMAT, "4 bytes lie behind" },
        { T("\"F32\"", "[1]", "[4, 8]"), SF_FORMAT, "gap" } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_refused(cases[i].header, 8, cases[i].status, cases[i].words);
    check_refused("{" A ", " B(4, 8) "}", 8, SF_FORMAT, "overlap");
    check_refused("{" A ", " B(0, 4) "}", 8, SF_FORMAT, "overlap");
    check_refused("{" A ", " B(9, 13) "}", 13, SF_FORMAT, "gap");
}

static const char *scratch_path(void)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/sheaf-test-st-%ld", (long)getpid());
    return path;
}

static void test_writes(void)
{
    const float f32[6] = { 1, -2, 3.5f, 4, 5, 6 };
    const uint8_t u8[3] = { 7, 8, 255 };
    const int64_t i64 = INT64_MIN;
    const uint16_t f16[2] = { 0x3c00, 0xc000 };
    const int32_t i32[2] = { -1, 9 };
    const struct sf_st_tensor tensors[] = {
        { .name = "bytes", .type = SF_ST_U8, .n_dims = 1, .dims = { 3 }, .data = u8 },
        { .name = "f", .type = SF_ST_F32, .n_dims = 2, .dims = { 2, 3 }, .data = f32 },
        { .name = "none", .type = SF_ST_F32, .n_dims = 2, .dims = { 0, 3 }, .data = f32 },
        { .name = "scalar", .type = SF_ST_I64, .data = &i64 },
        { .name = "half \"\\\n", .type = SF_ST_BF16, .n_dims = 1, .dims = { 2 }, .data = f16 },
        { .name = "i", .type = SF_ST_I32, .n_dims = 1, .dims = { 2 }, .data = i32 } };
    const struct sf_st_meta meta[] = { { "stats", "{\"a\": 1}\n" }, { "", "empty" } };
    struct sf_st_content content = { tensors, 6, meta, 2 };
    SF_MUST(sf_st_write(scratch_path(), &content));
    SF_MUST(sf_st_write(scratch_path(), &content));     /* over what is there */
    struct sf_st_file *file;
    SF_MUST(sf_st_open(scratch_path(), &file));
    SF_CHECK_INT(sf_st_tensors(file), 6);
    for (int32_t i = 0; i < 6; i++) {
        const struct sf_st_tensor *found = sf_st_find(file, tensors[i].name);
        SF_CHECK(found != NULL);
        if (found == NULL) continue;
        SF_CHECK_INT(found->type, tensors[i].type);
        SF_CHECK_INT(found->n_dims, tensors[i].n_dims);
        SF_CHECK(memcmp(found->dims, tensors[i].dims, sizeof found->dims) == 0);
        SF_CHECK(memcmp(found->data, tensors[i].data, (size_t)found->bytes) == 0);
        SF_CHECK((uintptr_t)found->data % (uintptr_t)sf_st_type_bytes(found->type) == 0);
    }
    SF_CHECK_STR(sf_st_meta(file, "stats"), "{\"a\": 1}\n");
    SF_CHECK_STR(sf_st_meta(file, ""), "empty");
    sf_st_close(file);

    const struct sf_st_tensor twice[] = { tensors[1], tensors[1] };
    content = (struct sf_st_content){ twice, 2, NULL, 0 };
    SF_CHECK_FAILS(sf_st_write(scratch_path(), &content), SF_INVALID);
    SF_CHECK_OK(sf_st_open(scratch_path(), &file));     /* the old one is untouched */
    sf_st_close(file);
    unlink(scratch_path());
    SF_CHECK_FAILS(sf_st_write("/nonexistent/x", &content), SF_IO);
}

/* A file that torch and transformers have written. */
static void test_foreign(void)
{
    struct sf_st_file *file;
    SF_MUST(sf_st_open(sf_test_data("tiny/llama/model.safetensors"), &file));
    const struct sf_st_tensor *norm = sf_st_find(file, "model.norm.weight");
    SF_CHECK(norm != NULL && norm->n_dims == 1 && norm->type == SF_ST_F32);
    SF_CHECK(sf_st_tensors(file) > 10);
    SF_CHECK_STR(sf_st_meta(file, "format"), "pt");
    sf_st_close(file);
}

static const struct sf_test tests[] = { { "reads", test_reads },
                                        { "refuses headers", test_refuses_headers },
                                        { "refuses tensors", test_refuses_tensors },
                                        { "writes", test_writes },
                                        { "a foreign file", test_foreign },
                                        { NULL, NULL } };
SF_TEST_MAIN("model_safetensors", tests)
