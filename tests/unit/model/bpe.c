/* tests/unit/model/bpe.c: pieces are merged, with a heap and without, as the definition does: over
 * and over the pair of lowest rank, leftmost on ties, looked for in the whole piece.
 *
 * Vocabularies are made at random over four letters: merges in any order, whose parts may be made
 * by later ones only, pairs that come twice, pairs that make one and the same text, letters without
 * a token, texts that two tokens share.  And a vocabulary that aims at the hash of pairs. */
#include "model/bpe.h"

#include <stdlib.h>

#include "base/rng.h"
#include "tests/check.h"

enum { SYMBOLS_MAX = 64, PAIRS_MAX = 60, TEXT_MAX = 16, PIECE_MAX = 240, PIECE_USUAL = 48,
       VOCABULARIES = 400,
       PIECES = 20 };

struct vocabulary {
    char text[SYMBOLS_MAX][TEXT_MAX + 1];
    struct sf_text symbol[SYMBOLS_MAX];
    struct sf_bpe_pair pair[PAIRS_MAX];
    int32_t symbols, pairs;
};

static uint64_t round_now, draw;
static int32_t next(int32_t below)
{
    return (int32_t)(sf_rng_u64(21, round_now, draw++) % (uint64_t)below);
}

static void add_symbol(struct vocabulary *v, const char *text)
{
    snprintf(v->text[v->symbols], sizeof v->text[0], "%s", text);
    v->symbol[v->symbols] = (struct sf_text){ v->text[v->symbols], strlen(text) };
    v->symbols++;
}

static void make(struct vocabulary *v)
{
    v->symbols = v->pairs = 0;
    int32_t letters = 2 + next(3);
    for (int32_t i = 0; i < letters; i++) add_symbol(v, (char[2]){ (char)('a' + i), 0 });
    while (v->symbols < SYMBOLS_MAX && v->pairs < PAIRS_MAX && next(60) > 0) {
        int32_t left = next(v->symbols), right = next(v->symbols);
        char joined[2 * TEXT_MAX + 1];
        snprintf(joined, sizeof joined, "%s%s", v->text[left], v->text[right]);
        if (strlen(joined) > TEXT_MAX) continue;
        add_symbol(v, joined);
        v->pair[v->pairs++] = (struct sf_bpe_pair){ v->symbol[left], v->symbol[right] };
    }
    for (int32_t i = v->pairs - 1; i > 0; i--) {        /* ranks in any order */
        int32_t j = next(i + 1);
        struct sf_bpe_pair was = v->pair[i];
        v->pair[i] = v->pair[j];
        v->pair[j] = was;
    }
}

static int32_t find(const struct vocabulary *v, const char *text, size_t bytes)
{
    for (int32_t i = 0; i < v->symbols; i++)
        if (v->symbol[i].bytes == bytes && memcmp(v->symbol[i].at, text, bytes) == 0) return i;
    return -1;
}

static int32_t rank_of(const struct vocabulary *v, int32_t left, int32_t right)
{
    for (int32_t i = 0; left >= 0 && right >= 0 && i < v->pairs; i++)
        if (strcmp(v->pair[i].left.at, v->text[left]) == 0 &&
            strcmp(v->pair[i].right.at, v->text[right]) == 0)
            return i;
    return INT32_MAX;
}

static int32_t ranks[SYMBOLS_MAX][SYMBOLS_MAX];

static void make_ranks(const struct vocabulary *v)
{
    for (int32_t i = 0; i < v->symbols; i++)
        for (int32_t k = 0; k < v->symbols; k++) ranks[i][k] = rank_of(v, i, k);
}

static int32_t by_definition(const struct vocabulary *v, const char *piece, int32_t bytes,
                             int32_t *id)
{
    int32_t count = bytes, kept = 0;
    for (int32_t i = 0; i < bytes; i++) id[i] = find(v, piece + i, 1);
    for (;;) {
        int32_t best = INT32_MAX, at = -1;
        for (int32_t i = 0; i + 1 < count; i++) {
            int32_t rank = id[i] < 0 || id[i + 1] < 0 ? INT32_MAX : ranks[id[i]][id[i + 1]];
            if (rank >= best) continue;
            best = rank;
            at = i;
        }
        if (at < 0) break;
        char joined[2 * TEXT_MAX + 1];
        snprintf(joined, sizeof joined, "%s%s", v->text[id[at]], v->text[id[at + 1]]);
        id[at] = find(v, joined, strlen(joined));
        memmove(id + at + 1, id + at + 2, (size_t)(--count - at - 1) * sizeof *id);
    }
    for (int32_t i = 0; i < count; i++)
        if (id[i] >= 0) id[kept++] = id[i];
    return kept;
}

static void test_definition(void)
{
    int32_t merged = 0, bad = 0;
    struct sf_bpe_scratch scratch = { 0 };
    struct sf_tokens tokens = { 0 };
    for (round_now = 0; round_now < VOCABULARIES; round_now++) {
        struct vocabulary v;
        struct sf_bpe *bpe;
        draw = 0;
        make(&v);
        make_ranks(&v);
        SF_MUST(sf_bpe_create(v.symbol, v.symbols, v.pair, v.pairs, &bpe));
        for (int p = 0; p < PIECES; p++) {
            char piece[PIECE_MAX];
            int32_t id[PIECE_MAX], letters = 1 + next(4);
            int32_t bytes = 1 + next(p % 4 == 0 ? PIECE_MAX : PIECE_USUAL);
            for (int32_t i = 0; i < bytes; i++) piece[i] = (char)('a' + next(letters));
            int32_t count = by_definition(&v, piece, bytes, id);
            tokens.count = 0;
            SF_MUST(sf_bpe_encode(bpe, piece, (size_t)bytes, &scratch, &tokens));
            merged += bytes - count;
            bad += tokens.count != (size_t)count ||
                   memcmp(tokens.id, id, (size_t)count * sizeof *id) != 0;
        }
        sf_bpe_destroy(bpe);
    }
    SF_CHECK_INT(bad, 0);
    SF_CHECK(merged > VOCABULARIES * PIECES);
    sf_bpe_scratch_free(&scratch);
    free(tokens.id);
}

/* ---- a hostile vocabulary -------------------------------------------------------------------- */
/* 96 bytes; 2,048 tokens, each merged from one of 32 and one of 64 of them; and 200 merges of two
 * of these, chosen by hash_of of bpe.c so that all have one place: more than it puts up with. */
enum { FIRSTS = 32, SECONDS = 64, BYTES = FIRSTS + SECONDS, TWOS = FIRSTS * SECONDS, AIMED = 200,
       PLACES_LOG = 13, ALL = BYTES + TWOS + AIMED };

static uint64_t place_of(int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    pair = (pair ^ pair >> 29) * 0x9e3779b97f4a7c15u;
    pair = (pair ^ pair >> 32) * 0xd6e8feb86659fd93u;
    return (pair ^ pair >> 40) >> (64 - PLACES_LOG);
}

static void test_aimed(void)
{
    static char text[ALL][5];
    static struct sf_text symbol[ALL];
    static struct sf_bpe_pair pair[TWOS + AIMED];
    int32_t left[AIMED], right[AIMED], found = 0, symbols = 0, pairs = 0, bad = 0;
    for (int i = 0; i < BYTES; i++) snprintf(text[symbols++], 5, "%c", 0x20 + i);
    for (int i = 0; i < TWOS; i++)
        snprintf(text[symbols++], 5, "%c%c", 0x20 + i / SECONDS, 0x40 + i % SECONDS);
    for (int32_t l = BYTES; l < BYTES + TWOS; l++)
        for (int32_t r = BYTES; r < BYTES + TWOS && found < AIMED; r++) {
            if (place_of(l, r) != 77) continue;
            left[found] = l;
            right[found++] = r;
            snprintf(text[symbols], 5, "%.2s%.2s", text[l], text[r]);
            symbols++;
        }
    SF_CHECK_INT(found, AIMED);
    for (int i = 0; i < symbols; i++) symbol[i] = (struct sf_text){ text[i], strlen(text[i]) };
    for (int i = 0; i < TWOS; i++)
        pair[pairs++] = (struct sf_bpe_pair){ symbol[i / SECONDS], symbol[FIRSTS + i % SECONDS] };
    for (int i = 0; i < found; i++)
        pair[pairs++] = (struct sf_bpe_pair){ symbol[left[i]], symbol[right[i]] };
    struct sf_bpe *bpe;
    struct sf_bpe_scratch scratch = { 0 };
    struct sf_tokens tokens = { 0 };
    SF_MUST(sf_bpe_create(symbol, symbols, pair, pairs, &bpe));
    round_now = 1;
    for (int i = 0; i < 4000; i++) {
        int32_t l = BYTES + next(TWOS), r = BYTES + next(TWOS), aim = next(2 * AIMED), k = 0;
        char piece[5];
        if (aim < AIMED) l = left[aim], r = right[aim];
        while (k < AIMED && (left[k] != l || right[k] != r)) k++;
        snprintf(piece, sizeof piece, "%.2s%.2s", text[l], text[r]);
        tokens.count = 0;
        SF_MUST(sf_bpe_encode(bpe, piece, 4, &scratch, &tokens));
        bad += k < AIMED ? tokens.count != 1 || tokens.id[0] != BYTES + TWOS + k
                         : tokens.count != 2 || tokens.id[0] != l || tokens.id[1] != r;
    }
    SF_CHECK_INT(bad, 0);
    sf_bpe_destroy(bpe);
    sf_bpe_scratch_free(&scratch);
    free(tokens.id);
}

static const struct sf_test tests[] = { { "definition", test_definition },
                                        { "aimed", test_aimed }, { NULL, NULL } };
SF_TEST_MAIN("model_bpe", tests)
