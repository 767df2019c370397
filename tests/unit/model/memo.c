/* tests/unit/model/memo.c: what is remembered is what was put, and changes no token.
 *
 * Random pieces of few letters, so that they come again and push each other out, against the tokens
 * that belong to them; then texts that several threads encode with one tokenizer at a time, of whom
 * one has the memory and the others none, against the same texts encoded alone. */
#include "model/memo.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/rng.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

enum { ROUNDS = 400000, PIECE_MAX = 40, IDS_MAX = 12, THREADS = 4, TEXTS = 60, TEXT_BYTES = 4000 };

static size_t ids_of(const char *piece, size_t bytes, int32_t id[IDS_MAX])
{
    uint64_t hash = sf_hash64(piece, bytes);
    size_t count = hash % (IDS_MAX + 1);
    for (size_t i = 0; i < count; i++) id[i] = (int32_t)(hash >> 8 & 0xffffff) ^ (int32_t)i;
    if (hash % 97 == 0 && count > 0) id[count - 1] |= 1 << 24;  /* more than three bytes */
    return count;
}

static void test_pieces(void)
{
    struct sf_memo *memo;
    int64_t found = 0, wrong = 0, lost = 0;
    SF_MUST(sf_memo_create(&memo));
    for (uint64_t round = 0; round < ROUNDS; round++) {
        char piece[PIECE_MAX];
        int32_t id[IDS_MAX], got[SF_MEMO_IDS];
        uint64_t draw = sf_rng_u64(3, round, 0);
        size_t bytes = 1 + draw % PIECE_MAX;
        /* Two letters somewhere in zeros: alike but for their length or one byte. */
        memset(piece, 0, sizeof piece);
        piece[draw >> 8 & 31] = (char)(draw >> 16 & 63);
        piece[draw >> 24 & 31] = (char)(draw >> 32 & 7);
        size_t count = ids_of(piece, bytes, id);
        for (int pass = 0; pass < 2; pass++) {
            int32_t known = sf_memo_find(memo, piece, bytes, got);
            if (known < 0 && pass == 1 && bytes <= 32 && count <= SF_MEMO_IDS)
                lost += count == 0 || id[count - 1] < 1 << 24;
            if (known >= 0) {
                found += pass == 0;
                wrong += (size_t)known != count || memcmp(got, id, count * sizeof *id) != 0;
            } else {
                sf_memo_put(memo, piece, bytes, id, count);
            }
        }
    }
    SF_CHECK_INT(wrong, 0);
    SF_CHECK_INT(lost, 0);
    SF_CHECK(found > ROUNDS / 10 && found < ROUNDS);
    sf_memo_destroy(memo);
}

/* ---- threads --------------------------------------------------------------------------------- */
static struct sf_tokenizer *tok;
static char text[TEXTS][TEXT_BYTES];
static struct sf_tokens alone[TEXTS];

static void *encode_all(void *arg)
{
    int64_t *wrong = arg;
    for (int i = 0; i < TEXTS; i++) {
        struct sf_tokens tokens = { 0 };
        if (sf_tokenizer_encode(tok, text[i], TEXT_BYTES, 0, 0, &tokens) != SF_OK ||
            tokens.count != alone[i].count ||
            memcmp(tokens.id, alone[i].id, tokens.count * sizeof *tokens.id) != 0)
            ++*wrong;
        free(tokens.id);
    }
    return NULL;
}

static void test_threads(void)
{
    struct tiny_spec spec = tiny_default();
    struct tiny_file file = tiny_make(&spec);
    struct sf_model *model = NULL;
    pthread_t thread[THREADS];
    int64_t wrong[THREADS] = { 0 };
    SF_MUST(sf_model_open(tiny_path(file.bytes, file.count), &model));
    SF_MUST(sf_tokenizer_create(model, &tok));
    for (uint64_t i = 0; i < TEXTS; i++) {
        for (uint64_t k = 0; k < TEXT_BYTES; k++)
            text[i][k] = "aabbc  \n1"[sf_rng_u64(9, i, k) % 9];
        SF_MUST(sf_tokenizer_encode(tok, text[i], TEXT_BYTES, 0, 0, &alone[i]));
    }
    for (int i = 0; i < THREADS; i++)
        SF_ASSERT(pthread_create(&thread[i], NULL, encode_all, &wrong[i]) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < THREADS; i++) SF_CHECK_INT(wrong[i], 0);
    for (int i = 0; i < TEXTS; i++) free(alone[i].id);
    sf_tokenizer_destroy(tok);
    sf_model_close(model);
    tiny_free(&file);
    tiny_close();
}

static const struct sf_test tests[] = { { "pieces", test_pieces }, { "threads", test_threads },
                                        { NULL, NULL } };
SF_TEST_MAIN("model_memo", tests)
