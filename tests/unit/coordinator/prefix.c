/* The table of prompt blocks against a list of strings.
 *
 * In the model a block is all the tokens from the start of the prompt to its own end, so that equal
 * beginnings are equal strings; it is looked for by looking at all of them.  Holders come, hold
 * what is there, add what is not, fill it and go; blocks are evicted in between.  At each step both
 * sides agree on what is found, what is pending, who is held, which block an eviction takes (the
 * one that was let go first of those with nothing behind them), and how many blocks there are.
 *
 * The hash is the poorest here: tokens do not matter, so that all blocks at one distance from the
 * start have the same.  This definition stands in for the one of base/rng.h, of which the table
 * needs nothing else. */
#include <stdlib.h>

#include "base/rng.h"
#include "coordinator/prefix.h"
#include "tests/check.h"

uint64_t sf_hash64(const void *bytes, size_t count)
{
    (void)bytes;
    (void)count;
    return 0;
}

static uint64_t random_state = 0x2545f4914f6cdd1dull;

static int32_t random_below(int32_t bound)          /* xorshift64 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (int32_t)(random_state % (uint64_t)bound);
}

/* ---- the model ------------------------------------------------------------------------------- */
enum { BLOCKS = 40, DEPTH = 6, BLOCK_TOKENS = 3, HOLDERS = 8, ROUNDS = 1000000 };

struct entry {                          /* by the table's number of the block */
    int there, filled, holders;
    int32_t blocks;                     /* from the start */
    int32_t token[DEPTH * BLOCK_TOKENS];
    int64_t released;
};
struct holder {
    int32_t blocks, filled, block[DEPTH];
    int32_t tokens, token[DEPTH * BLOCK_TOKENS];
};
static struct {
    struct sf_prefix *prefix;
    int32_t blocks_max, size;
    struct entry entry[BLOCKS];
    struct holder holder[HOLDERS];
    int64_t now;
    int bad;
} world;

/* Both sides agree; the first time that they do not ends the test. */
#define SAME(actual, expected)                                                                     \
    do {                                                                                           \
        long long a_ = (actual), e_ = (expected);                                                  \
        if (a_ != e_ && world.bad++ == 0)                                                          \
            sf_test_fail(__FILE__, __LINE__, "%s is %lld, expected %lld", #actual, a_, e_);        \
    } while (0)

static int begins_with(const int32_t *token, int32_t blocks, const struct entry *entry)
{
    return entry->there && entry->blocks <= blocks &&
           memcmp(token, entry->token,
                  (size_t)(entry->blocks * world.size) * sizeof *token) == 0;
}

/* The block of exactly the first `blocks` of the tokens; -1: not there. */
static int32_t find(const int32_t *token, int32_t blocks)
{
    for (int32_t b = 0; b < world.blocks_max; b++)
        if (world.entry[b].blocks == blocks && begins_with(token, blocks, &world.entry[b]))
            return b;
    return -1;
}

static struct sf_prefix_match expected_match(const int32_t *token, int32_t tokens)
{
    struct sf_prefix_match match = {0};
    for (int32_t n = 1; n <= tokens / world.size; n++) {
        int32_t b = find(token, n);
        if (b < 0) break;
        match.pending = !world.entry[b].filled;
        if (match.pending) break;
        match.blocks = n;
        match.held += world.entry[b].holders > 0;
    }
    return match;
}

static int has_children(int32_t b)
{
    const struct entry *entry = &world.entry[b];
    for (int32_t c = 0; c < world.blocks_max; c++)
        if (c != b && world.entry[c].there && world.entry[c].blocks > entry->blocks &&
            begins_with(world.entry[c].token, world.entry[c].blocks, entry))
            return 1;
    return 0;
}

static void check_counts(void)
{
    int32_t blocks = 0, unheld = 0;
    for (int32_t b = 0; b < world.blocks_max; b++) {
        blocks += world.entry[b].there;
        unheld += world.entry[b].there && world.entry[b].holders == 0;
    }
    SAME(sf_prefix_blocks(world.prefix), blocks);
    SAME(sf_prefix_unheld(world.prefix), unheld);
}

/* ---- what happens to both -------------------------------------------------------------------- */
static void look(const int32_t *token, int32_t tokens)
{
    struct sf_prefix_match got = sf_prefix_find(world.prefix, token, tokens);
    struct sf_prefix_match expected = expected_match(token, tokens);
    SAME(got.blocks, expected.blocks);
    SAME(got.held, expected.held);
    SAME(got.pending, expected.pending);
}

static void add_next(struct holder *holder)
{
    int32_t size = world.size, at = holder->blocks;
    int32_t blocks = sf_prefix_blocks(world.prefix), there = find(holder->token, at + 1);
    int32_t b = sf_prefix_add(world.prefix, at > 0 ? holder->block[at - 1] : -1,
                              holder->token + at * size);
    SAME(b < 0, there >= 0 || blocks == world.blocks_max);
    if (b < 0) return;
    SAME(b < world.blocks_max && !world.entry[b].there, 1);
    if (world.bad) return;
    world.entry[b] = (struct entry){.there = 1, .holders = 1, .blocks = at + 1};
    memcpy(world.entry[b].token, holder->token, (size_t)((at + 1) * size) * sizeof *holder->token);
    holder->block[holder->blocks++] = b;
}

/* Few different tokens, so that prompts begin alike. */
static void come(struct holder *holder)
{
    *holder = (struct holder){.tokens = 1 + random_below(DEPTH * world.size)};
    for (int32_t i = 0; i < holder->tokens; i++) holder->token[i] = random_below(2);
    int32_t whole = holder->tokens / world.size;
    int32_t most = random_below(4) ? holder->tokens - 1 : holder->tokens;
    look(holder->token, most);
    int32_t expected = expected_match(holder->token, most).blocks;
    holder->blocks = sf_prefix_hold(world.prefix, holder->token, most, holder->block);
    SAME(holder->blocks, expected);
    holder->filled = holder->blocks;
    for (int32_t i = 0; i < holder->blocks && world.bad == 0; i++) {
        SAME(holder->block[i], find(holder->token, i + 1));
        world.entry[holder->block[i]].holders++;
    }
    for (int32_t before = -1; holder->blocks < whole && holder->blocks > before;) {
        before = holder->blocks;
        add_next(holder);
    }
}

static void fill_next(struct holder *holder)
{
    if (holder->filled == holder->blocks) return;
    int32_t b = holder->block[holder->filled++];
    sf_prefix_fill(world.prefix, b);
    world.entry[b].filled = 1;
}

static void go(struct holder *holder)
{
    for (int32_t i = holder->blocks - 1; i >= 0; i--) {
        struct entry *entry = &world.entry[holder->block[i]];
        int gone = --entry->holders == 0 && !entry->filled;
        if (entry->holders == 0) entry->released = ++world.now;
        SAME(sf_prefix_release(world.prefix, holder->block[i]), gone);
        if (gone) *entry = (struct entry){0};
    }
    *holder = (struct holder){0};
}

static int evict(void)
{
    int32_t expected = -1;
    for (int32_t b = 0; b < world.blocks_max; b++) {
        const struct entry *entry = &world.entry[b];
        if (!entry->there || entry->holders > 0 || has_children(b)) continue;
        if (expected < 0 || entry->released < world.entry[expected].released) expected = b;
    }
    SAME(sf_prefix_evict(world.prefix), expected);
    if (expected >= 0) world.entry[expected] = (struct entry){0};
    return expected >= 0;
}

static void random_rounds(int32_t blocks_max, int32_t size, int32_t rounds)
{
    memset(&world, 0, sizeof world);
    world.blocks_max = blocks_max;
    world.size = size;
    SF_MUST(sf_prefix_create(blocks_max, size, &world.prefix));
    for (int32_t i = 0; i < rounds && world.bad == 0; i++) {
        struct holder *holder = &world.holder[random_below(HOLDERS)];
        int32_t what = random_below(8);
        if (what == 0) evict();
        else if (holder->tokens == 0) come(holder);
        else if (what <= 4) fill_next(holder);
        else if (what <= 6) go(holder);
        else look(holder->token, holder->tokens);
        check_counts();
    }
    for (int32_t h = 0; h < HOLDERS && world.bad == 0; h++) go(&world.holder[h]);
    int32_t left = sf_prefix_unheld(world.prefix);
    SAME(left, sf_prefix_blocks(world.prefix));
    while (world.bad == 0 && evict()) left--;
    SAME(left, 0);
    SAME(sf_prefix_blocks(world.prefix), 0);
    sf_prefix_destroy(world.prefix);
    SF_CHECK_INT(world.bad, 0);
}

static void against_strings(void)
{
    random_rounds(BLOCKS, 1, ROUNDS / 4);
    random_rounds(BLOCKS, 2, ROUNDS / 4);
    random_rounds(7, 3, ROUNDS / 4);                    /* often full */
    random_rounds(1, 1, ROUNDS / 4);
}

/* ---- by hand --------------------------------------------------------------------------------- */
/* Holds what is there of a prompt and fills the rest; returns how many blocks were there. */
static int32_t pass(struct sf_prefix *prefix, const int32_t *token, int32_t blocks, int32_t *block)
{
    int32_t there = sf_prefix_hold(prefix, token, 2 * blocks, block);
    for (int32_t i = there; i < blocks; i++) {
        block[i] = sf_prefix_add(prefix, i > 0 ? block[i - 1] : -1, token + 2 * i);
        SF_CHECK(block[i] >= 0);
        sf_prefix_fill(prefix, block[i]);
    }
    for (int32_t i = blocks - 1; i >= 0; i--)
        SF_CHECK_INT(sf_prefix_release(prefix, block[i]), 0);
    return there;
}

/* An old prompt goes altogether before a younger one loses anything, and what both have in common
 * is as young as the younger one. */
static void oldest_first(void)
{
    static const int32_t a[] = {1, 1, 2, 2, 3, 3}, b[] = {1, 1, 4, 4}, c[] = {5, 5, 6, 6};
    int32_t in_a[3], in_b[2], in_c[2];
    struct sf_prefix *prefix;
    SF_MUST(sf_prefix_create(8, 2, &prefix));
    SF_CHECK_INT(pass(prefix, a, 3, in_a), 0);
    SF_CHECK_INT(pass(prefix, c, 2, in_c), 0);
    SF_CHECK_INT(pass(prefix, b, 2, in_b), 1);
    SF_CHECK_INT(in_a[0], in_b[0]);
    SF_CHECK_INT(sf_prefix_unheld(prefix), 6);
    const int32_t expected[] = {in_a[2], in_a[1], in_c[1], in_c[0], in_b[1], in_b[0], -1};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        SF_CHECK_INT(sf_prefix_evict(prefix), expected[i]);
    sf_prefix_destroy(prefix);
}

/* A block that its maker did not fill is gone with it, and can be made anew; until then others see
 * that it is being computed. */
static void not_filled(void)
{
    static const int32_t token[] = {1, 1, 2, 2};
    struct sf_prefix *prefix;
    SF_MUST(sf_prefix_create(2, 2, &prefix));
    int32_t first = sf_prefix_add(prefix, -1, token);
    int32_t second = sf_prefix_add(prefix, first, token + 2);
    SF_CHECK_INT(sf_prefix_add(prefix, -1, token), -1);         /* there already */
    SF_CHECK_INT(sf_prefix_add(prefix, second, token), -1);     /* full */
    SF_CHECK_INT(sf_prefix_find(prefix, token, 4).pending, 1);
    SF_CHECK_INT(sf_prefix_find(prefix, token, 1).pending, 0);  /* less than a block */
    sf_prefix_fill(prefix, first);
    SF_CHECK_INT(sf_prefix_find(prefix, token, 4).blocks, 1);
    SF_CHECK_INT(sf_prefix_find(prefix, token, 4).held, 1);
    SF_CHECK_INT(sf_prefix_find(prefix, token, 4).pending, 1);
    SF_CHECK_INT(sf_prefix_find(prefix, token, 3).pending, 0);
    SF_CHECK_INT(sf_prefix_evict(prefix), -1);                  /* all are held */
    SF_CHECK_INT(sf_prefix_release(prefix, second), 1);
    SF_CHECK_INT(sf_prefix_release(prefix, first), 0);
    SF_CHECK_INT(sf_prefix_find(prefix, token, 4).blocks, 1);
    SF_CHECK_INT(sf_prefix_find(prefix, token, 4).held, 0);
    SF_CHECK_INT(sf_prefix_find(prefix, token, 4).pending, 0);
    SF_CHECK_INT(sf_prefix_blocks(prefix), 1);
    sf_prefix_destroy(prefix);
    sf_prefix_destroy(NULL);
}

static const struct sf_test tests[] = {
    {"against a list of strings", against_strings},
    {"the oldest first", oldest_first},
    {"not filled", not_filled},
    {NULL, NULL}};
SF_TEST_MAIN("prefix", tests)
