/* tests/unit/model/gguf_fuzz.c: files with several mistakes at once, used as a job would use them.
 *
 * gguf.c changes one place at a time; here a few edits meet: bytes and words change, pieces move,
 * come twice, go or are cut off, so that counts, keys, merges and tensors contradict each other.
 * The edits come from a counter-based generator: a failure names its round and replays.  What opens
 * is used to the end: shares, buffer sizes, every tile and bias of a rank, and texts through the
 * tokenizer.  Shown: nothing crashes (the sanitizers watch), a refusal is SF_FORMAT or
 * SF_UNSUPPORTED in one line, and no count in a file makes anything large be allocated (the address
 * space is limited). */
#include <stdlib.h>
#include <sys/resource.h>

#include "base/rng.h"
#include "model/share.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "model/workspace.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

enum { ROUNDS = 20000, SEEDS = 4, GROWTH = 512, TILE_MAX = 1 << 20, TILES_MAX = 4096 };
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
enum { ADDRESS_SPACE = 512 << 20 };
#else
enum { ADDRESS_SPACE = 0 };             /* the sanitizers need theirs */
#endif

static struct tiny_file seed_file(int seed)
{
    static const float freqs[8] = { 1, 1, 1.5f, 2, 4, 8, 8, 8 };
    static const int32_t kv_heads[2] = { 2, 4 };
    static const struct tiny_key keys[] = {
        { "tokenizer.chat_template", TINY_STRING, 0,
          "{{ '<|im_start|>system\nyou<|im_end|>' }}", NULL, 0 },
        { "llama.attention.sliding_window", TINY_U32, 8, NULL, NULL, 0 },
        { "llama.rope.scaling.factor", TINY_F32, 2, NULL, NULL, 0 },
        { NULL, 0, 0, NULL, NULL, 0 } };
    struct tiny_spec spec = tiny_default();
    spec.d_model = 32;
    spec.ffn = 40;
    if (seed != 0) spec.vocab = spec.tokens = 40;       /* most bytes have no token */
    if (seed == 1) {
        spec.ffn = 64;
        spec.v_dim = 24;
        spec.matrix_type = 3;
        spec.biases = spec.untied = 1;
        spec.kv_heads_of_layer = kv_heads;
    }
    if (seed == 2) {
        spec.ffn = 64;
        spec.matrix_type = 8;
        spec.alignment = 64;
        spec.rope_freqs = freqs;
    }
    if (seed != 0) spec.keys = keys;
    return tiny_make(&spec);
}

/* Lengths, counts, types and floats that are on some edge. */
static const uint64_t words[] = {
    0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 16, 31, 32, 33, 39, 41, 64, 255, 256, 65535, 65536,
    0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7f800000, 0x7fc00000, 0x00000001,
    0x7e007e00, 0x7c007c00, (uint64_t)1 << 62, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7
};

/* A few edits of `bytes`, mostly in front of the data.  `at` has room for GROWTH more. */
static size_t mutate(uint64_t round, unsigned char *bytes, size_t count, size_t head)
{
    uint64_t draw = 0;
#define NEXT(n) ((size_t)(sf_rng_u64(11, round, draw++) % (uint64_t)(n)))
    size_t edits = NEXT(2) ? 1 : 1 + NEXT(4), room = GROWTH;
    for (size_t i = 0; i < edits && count > 64; i++) {
        size_t span = head < count && NEXT(4) > 0 ? head : count;
        size_t at = NEXT(span), kind = NEXT(9), piece = 1 + NEXT(40), from = NEXT(count);
        if (piece > count - at) piece = count - at;
        if (piece > count - from) piece = count - from;
        uint64_t word = words[NEXT(sizeof words / sizeof words[0])];
        if (kind == 0) {
            bytes[at] = (unsigned char)NEXT(256);
        } else if (kind == 1) {
            bytes[at] = (unsigned char)(bytes[at] + (NEXT(2) ? 1 : 255));
        } else if (kind <= 3) {
            size_t width = kind == 2 ? 4 : 8;
            memcpy(bytes + at, &word, width < count - at ? width : count - at);
        } else if (kind == 4) {                         /* a piece comes from elsewhere */
            memmove(bytes + at, bytes + from, piece);
        } else if (kind == 5) {                         /* two pieces change places */
            for (size_t k = 0; k < piece; k++) {
                unsigned char was = bytes[at + k];
                bytes[at + k] = bytes[from + k];
                bytes[from + k] = was;
            }
        } else if (kind == 6) {                         /* a piece goes */
            memmove(bytes + at, bytes + at + piece, count - at - piece);
            count -= piece;
        } else if (kind == 7 && piece <= room) {        /* a piece comes twice */
            memmove(bytes + at + piece, bytes + at, count - at);
            count += piece;
            room -= piece;
        } else if (NEXT(4) == 0) {
            count = NEXT(count);                        /* a torn copy */
        }
    }
#undef NEXT
    return count;
}

/* What is refused must be so in words of one line. */
static int check_status(uint64_t round, const char *what, sf_status status, int invalid_too)
{
    if (status == SF_OK) return 1;
    if ((status != SF_FORMAT && status != SF_UNSUPPORTED && !(invalid_too && status == SF_INVALID))
        || sf_error_text()[0] == 0 || strchr(sf_error_text(), '\n') != NULL)
        sf_test_fail(__FILE__, __LINE__, "round %llu: %s: %s: \"%s\"", (unsigned long long)round,
                     what, sf_status_name(status), sf_error_text());
    return 0;
}

static void use_tokenizer(uint64_t round, const struct sf_model *model)
{
    static const char text[] = " abc<|im_end|>ab  <user>\xff\xc3\xa9 abcabc \xf0\x9f\x99\x82\n1a23";
    struct sf_tokenizer *tok = NULL;
    if (!check_status(round, "tokenizer", sf_tokenizer_create(model, &tok), 0) || tok == NULL)
        return;
    struct sf_tokens tokens = { 0 };
    struct sf_message message[] = { { "user", "abc", 3 }, { "assistant", "", 0 } };
    for (int special = 0; special < 2; special++)
        check_status(round, "encode", sf_tokenizer_encode(tok, text, sizeof text, special, special,
                                                          &tokens), 0);
    check_status(round, "chat", sf_chat_encode(tok, message, 2, &tokens), 0);
    int32_t bad = 0, vocab = sf_model_desc(model)->vocab;
    for (size_t i = 0; i < tokens.count; i++) {
        size_t bytes;
        const char *at = sf_tokenizer_bytes(tok, tokens.id[i], 1, &bytes);
        bad += tokens.id[i] < 0 || tokens.id[i] >= vocab || at == NULL;
    }
    if (bad > 0)
        sf_test_fail(__FILE__, __LINE__, "round %llu: %d tokens outside of the vocabulary",
                     (unsigned long long)round, bad);
    free(tokens.id);
    sf_tokenizer_destroy(tok);
}

static void fill_all(uint64_t round, const struct sf_model *model, const struct sf_share *share,
                     enum sf_mat_kind kind, int32_t layer, int fixed)
{
    struct sf_mat_shape shape;
    const struct sf_model_desc *desc = sf_model_desc(model);
    sf_share_mat(desc, share, kind, layer, SF_F32, fixed, 48, &shape);
    SF_ASSERT(shape.cols >= 0 && shape.slices >= 0 && shape.panel_cols > 0);
    size_t elements = (size_t)shape.panel_cols * (size_t)shape.k_slice;
    int64_t panels = (shape.cols + (int64_t)shape.panel_cols - 1) / shape.panel_cols;
    if (elements > TILE_MAX || panels * shape.slices > TILES_MAX) return;
    float *tile = malloc(elements * sizeof *tile);
    sf_status status = SF_OK;
    for (int32_t p = 0; status == SF_OK && p < panels; p++)
        for (int32_t s = 0; status == SF_OK && s < shape.slices; s++)
            status = sf_share_fill(model, share, kind, layer, &shape, p, s, tile);
    check_status(round, "fill", status, 0);
    free(tile);
    int32_t cols = kind == SF_MAT_HEAD ? 0 : sf_share_bias_cols(desc, share, kind, layer);
    if (cols == 0) return;
    float *bias = malloc((size_t)cols * sizeof *bias);
    check_status(round, "bias", sf_share_fill_bias(model, share, kind, layer, bias), 0);
    free(bias);
}

static void use_weights(uint64_t round, const struct sf_model *model)
{
    static const enum sf_mat_kind kinds[] = { SF_MAT_QKV, SF_MAT_O, SF_MAT_GATE_UP, SF_MAT_DOWN };
    const struct sf_model_desc *desc = sf_model_desc(model);
    const struct sf_placing placing = { SF_PLACE_BALANCED, NULL };
    int32_t ranks = 1 + (int32_t)(round % 3), fixed = (int32_t)(round / 3 % 2);
    struct sf_share share;
    sf_status status = sf_share_make(desc, &placing, ranks, (int32_t)(round % 7) % ranks,
                                     0, desc->layers, &share);
    if (!check_status(round, "share", status, 1)) return;
    struct sf_workspace ws;
    sf_workspace_make(desc, &share, SF_F32, fixed, 48, &ws);
    SF_ASSERT(ws.total > 0);
    for (int32_t layer = 0; layer < desc->layers; layer++)
        for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++)
            fill_all(round, model, &share, kinds[k], layer, fixed);
    if (share.vocab_count > 0) fill_all(round, model, &share, SF_MAT_HEAD, 0, fixed);
    sf_share_free(&share);
}

static void test_mutations(void)
{
    int opened = 0;
    struct rlimit before, limited;
    getrlimit(RLIMIT_AS, &before);
    limited = before;
    if (ADDRESS_SPACE > 0) limited.rlim_cur = ADDRESS_SPACE;
    for (int seed = 0; seed < SEEDS; seed++) {
        struct tiny_file file = seed_file(seed);
        unsigned char *bytes = malloc(file.count + GROWTH);
        setrlimit(RLIMIT_AS, &limited);
        for (uint64_t i = 0; i < ROUNDS / SEEDS; i++) {
            uint64_t round = i * SEEDS + (uint64_t)seed;
            memcpy(bytes, file.bytes, file.count);
            size_t count = i == 0 ? file.count : mutate(round, bytes, file.count, file.head_bytes);
            struct sf_model *model = NULL;
            sf_status status = sf_model_open(tiny_path(bytes, count), &model);
            if (check_status(round, "open", status, 0)) {
                opened++;
                use_tokenizer(round, model);
                use_weights(round, model);
                sf_model_close(model);
            } else if (i == 0) {
                sf_test_fail(__FILE__, __LINE__, "seed %d does not open: %s", seed,
                             sf_error_text());
            }
        }
        setrlimit(RLIMIT_AS, &before);
        free(bytes);
        tiny_free(&file);
    }
    tiny_close();
    /* Both paths were taken. */
    SF_CHECK(opened > ROUNDS / 20);
    SF_CHECK(opened < ROUNDS * 19 / 20);
    printf("  %d of %d mutations opened\n", opened, ROUNDS);
}

static const struct sf_test tests[] = { { "mutations", test_mutations }, { NULL, NULL } };
SF_TEST_MAIN("model_gguf_fuzz", tests)
