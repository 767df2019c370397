/* tests/unit/model/safetensors_fuzz.c: safetensors files and traces with mistakes in them.
 *
 * Edits of a good file: bytes and numbers change, words of the format appear where they do not
 * belong, pieces move, come twice or go, the length of the header lies.  The edits come from a
 * counter-based generator: a failure names its round and replays.  What opens is used to the end:
 * every tensor is read and found by its name, every row of a trace is read.  Shown: nothing crashes
 * (the sanitizers watch), and a refusal is SF_FORMAT or SF_UNSUPPORTED in one line. */
#include <stdlib.h>

#include "base/rng.h"
#include "model/trace.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

enum { ROUNDS = 30000, SEEDS = 3, GROWTH = 256, ROWS = 3 };

static const char *const words[] = {
    "0", "1", "-1", "9", "4294967296", "9223372036854775807", "9223372036854775808", "1e3", "[",
    "]", "{", "}", ",", ":", "\"", "\\u0000", "\\", "null", "true", "F32", "BF16", "F4", "dtype",
    "shape", "data_offsets", "__metadata__", "layers.1.q", "layers.0.k", "nan", "\n", "\xff" };

struct seed { unsigned char bytes[4096]; size_t count, head; };

static void begin(struct seed *seed, const char *header)
{
    size_t length = strlen(header);
    uint64_t said = length;
    memcpy(seed->bytes, &said, 8);
    memcpy(seed->bytes + 8, header, length);
    seed->head = seed->count = 8 + length;
}

static void fill(struct seed *seed, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 4) {
        float value = (float)(i % 7) - 3;
        memcpy(seed->bytes + seed->count, &value, 4);
        seed->count += 4;
    }
}

static void make_seed(int number, struct seed *seed)
{
    static const char metadata[] =
        "{\"__metadata__\":{\"prompt_tokens\":\"2\",\"chunk_tokens\":\"1\",\"rope_theta\":"
        "\"10000.0\",\"softmax_scale\":\"0.5\"}";
    char header[2048];
    if (number == 0) {
        begin(seed, "{\"b\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[24,32]},\"a\":{"
                    "\"dtype\":\"I64\",\"shape\":[3],\"data_offsets\":[0,24]},\"e\":{\"dtype\":"
                    "\"F32\",\"shape\":[0,7],\"data_offsets\":[32,32]}}");
        fill(seed, 32);
        return;
    }
    int layers = number, at = 0;
    size_t used = (size_t)snprintf(header, sizeof header, "%s", metadata);
    for (int l = 0; l < layers; l++)
        for (int t = 0; t < 3; t++) {
            int heads = t == 0 ? 2 : 1, dim = t == 2 ? 3 : 4, bytes = ROWS * heads * dim * 4;
            used += (size_t)snprintf(header + used, sizeof header - used,
                                     ",\"layers.%d.%c\":{\"dtype\":\"F32\",\"shape\":[%d,%d,%d],"
                                     "\"data_offsets\":[%d,%d]}", l, "qkv"[t], ROWS, heads, dim,
                                     at, at + bytes);
            at += bytes;
        }
    snprintf(header + used, sizeof header - used, ",\"tokens\":{\"dtype\":\"I32\",\"shape\":[%d],"
             "\"data_offsets\":[%d,%d]}}", ROWS, at, at + ROWS * 4);
    begin(seed, header);
    fill(seed, (size_t)at + ROWS * 4);
}

static size_t mutate(uint64_t round, const struct seed *seed, unsigned char *bytes)
{
    uint64_t draw = 0;
#define NEXT(n) ((size_t)(sf_rng_u64(12, round, draw++) % (uint64_t)(n)))
    size_t count = seed->count, head = seed->head, edits = 1 + NEXT(3);
    int honest = NEXT(8) != 0;          /* the length of the header follows the edits */
    memcpy(bytes, seed->bytes, count);
    for (size_t i = 0; i < edits && count > 64 && head > 32; i++) {
        size_t at = 8 + NEXT(head - 8), piece = 1 + NEXT(24);
        size_t kind = NEXT(2) ? 2 : NEXT(8);            /* most other edits are no JSON */
        const char *word = words[NEXT(sizeof words / sizeof words[0])];
        size_t length = strlen(word);
        if (piece > head - at) piece = head - at;
        if (kind == 0) bytes[at] = (unsigned char)NEXT(256);
        else if (kind == 1 && at + length < head) memcpy(bytes + at, word, length);
        else if (kind <= 3) {           /* a digit becomes another one */
            while (at < head && (bytes[at] < '0' || bytes[at] > '9')) at++;
            if (at < head) bytes[at] = (unsigned char)('0' + NEXT(10));
        } else if (kind == 4 && count + length < seed->count + GROWTH) {
            memmove(bytes + at + length, bytes + at, count - at);
            memcpy(bytes + at, word, length);
            count += length;
            head += length;
        } else if (kind == 5) {
            memmove(bytes + at, bytes + at + piece, count - at - piece);
            count -= piece;
            head -= piece;
        } else if (kind == 6 && count + piece < seed->count + GROWTH) {
            memmove(bytes + at + piece, bytes + at, count - at);
            count += piece;
            head += piece;
        } else if (kind == 7) {
            size_t value = count - 1 - NEXT(count - head > 1 ? count - head - 1 : 1);
            if (NEXT(3) == 0) count -= NEXT(count - head + 1);
            else bytes[value] = (unsigned char)NEXT(256);
        }
    }
    uint64_t said = honest ? head - 8 : sf_rng_u64(13, round, 0) >> (8 * (round % 8));
    memcpy(bytes, &said, 8);
#undef NEXT
    return count;
}

static int check_status(uint64_t round, const char *what, sf_status status)
{
    if (status == SF_OK) return 1;
    if ((status != SF_FORMAT && status != SF_UNSUPPORTED) || sf_error_text()[0] == 0 ||
        strchr(sf_error_text(), '\n') != NULL)
        sf_test_fail(__FILE__, __LINE__, "round %llu: %s: %s: \"%s\"", (unsigned long long)round,
                     what, sf_status_name(status), sf_error_text());
    return 0;
}

static unsigned sum_of(const unsigned char *bytes, int64_t count)
{
    unsigned sum = 0;
    for (int64_t i = 0; i < count; i++) sum += bytes[i];
    return sum;
}

static unsigned use_file(uint64_t round, const struct sf_st_file *file)
{
    unsigned sum = 0;
    int64_t bytes = 0;
    for (int32_t i = 0; i < sf_st_tensors(file); i++) {
        const struct sf_st_tensor *tensor = sf_st_tensor(file, i);
        sum += sum_of(tensor->data, tensor->bytes);
        bytes += tensor->bytes;
        if (sf_st_find(file, tensor->name) != tensor)
            sf_test_fail(__FILE__, __LINE__, "round %llu: tensor %d is not found",
                         (unsigned long long)round, i);
    }
    SF_ASSERT(bytes < 8192);
    const char *text = sf_st_meta(file, "rope_theta");
    return sum + (text != NULL ? (unsigned)strlen(text) : 0);
}

static unsigned use_trace(const struct sf_trace *trace)
{
    unsigned sum = 0;
    SF_ASSERT(trace->rows >= 1 && trace->prompt >= 1 && trace->prompt <= trace->rows);
    SF_ASSERT(trace->chunk >= 1 && trace->chunk <= trace->prompt);
    for (int32_t l = 0; l < trace->desc.layers; l++) {
        const struct sf_layer_desc *desc = &trace->desc.layer[l];
        int64_t rows = trace->rows * (int64_t)sizeof(float);
        sum += sum_of(trace->layer[l].q, rows * desc->q_heads * desc->k_dim);
        sum += sum_of(trace->layer[l].k, rows * desc->kv_heads * desc->k_dim);
        sum += sum_of(trace->layer[l].v, rows * desc->kv_heads * desc->v_dim);
    }
    if (trace->tokens != NULL) sum += sum_of(trace->tokens, trace->rows * (int64_t)sizeof(int32_t));
    return sum;
}

static void test_mutations(void)
{
    int opened = 0, traces = 0;
    unsigned sum = 0;
    for (int number = 0; number < SEEDS; number++) {
        struct seed seed;
        unsigned char bytes[sizeof seed.bytes + GROWTH];
        make_seed(number, &seed);
        for (uint64_t i = 0; i < ROUNDS / SEEDS; i++) {
            uint64_t round = i * SEEDS + (uint64_t)number;
            size_t count = seed.count;
            if (i == 0) memcpy(bytes, seed.bytes, count);
            else count = mutate(round, &seed, bytes);
            const char *path = tiny_path(bytes, count);
            struct sf_st_file *file = NULL;
            struct sf_trace trace;
            if (!check_status(round, "open", sf_st_open(path, &file))) {
                if (i == 0) sf_test_fail(__FILE__, __LINE__, "seed %d: %s", number,
                                         sf_error_text());
                continue;
            }
            opened++;
            sum += use_file(round, file);
            sf_st_close(file);
            if (check_status(round, "trace", sf_trace_open(path, &trace))) {
                traces++;
                sum += use_trace(&trace);
                sf_trace_close(&trace);
            } else if (i == 0 && number > 0) {
                sf_test_fail(__FILE__, __LINE__, "seed %d: %s", number, sf_error_text());
            }
        }
    }
    tiny_close();
    /* All paths were taken. */
    SF_CHECK(opened > ROUNDS / 20);
    SF_CHECK(opened < ROUNDS * 19 / 20);
    SF_CHECK(traces > ROUNDS / 50 && traces < opened);
    printf("  %d of %d mutations opened, %d of them as traces (%u)\n", opened, ROUNDS, traces, sum);
}

static const struct sf_test tests[] = { { "mutations", test_mutations }, { NULL, NULL } };
SF_TEST_MAIN("model_safetensors_fuzz", tests)
