/* tests/unit/coordinator/scores.c: scores are kept and come back from their bytes as they were.
 *
 * overwrite: a score put at an index that is there takes the old one's place, tops and all.
 * round trip: random scores packed in random pieces and unpacked one piece after the other.
 * damage: a block cut off at every byte, with bytes after it, with any byte changed, and random
 *   bytes: refused or read, never past the end (under asan), and what was there stays. */
#include "coordinator/scores.h"

#include <stdlib.h>

#include "base/rng.h"
#include "tests/check.h"

enum { TOPS = 4, SCORES = 50 };

static uint64_t draw(uint64_t stream, uint64_t index) { return sf_rng_u64(9, stream, index); }

/* Score number n of a stream: 0 to TOPS likeliest tokens, in `top`. */
static struct sf_wire_score score_of(uint64_t stream, int32_t n, struct sf_wire_top *top)
{
    uint64_t at = (uint64_t)n * 16;
    struct sf_wire_score score = {.seq = 7,
                                  .pos = 100 + n,
                                  .token = (int32_t)(draw(stream, at) % 50000),
                                  .logprob = -(float)sf_rng_uniform(9, stream, at + 1) * 20.0f,
                                  .rank = 1 + (int32_t)(draw(stream, at + 2) % 1000),
                                  .tops = (int32_t)(draw(stream, at + 3) % (TOPS + 1)),
                                  .top = top};
    for (int32_t t = 0; t < score.tops; t++)
        top[t] = (struct sf_wire_top){(int32_t)(draw(stream, at + 4 + (uint64_t)t) % 50000),
                                      -0.25f * (float)t};
    return score;
}

static void check_score(const struct sf_scores *s, int32_t index, uint64_t stream)
{
    struct sf_wire_top top[TOPS];
    struct sf_wire_score want = score_of(stream, index, top), *got = &s->score[index];
    SF_CHECK(got->seq == 0 && got->top == NULL);
    SF_CHECK_INT(got->pos, want.pos);
    SF_CHECK_INT(got->token, want.token);
    SF_CHECK(got->logprob == want.logprob);
    SF_CHECK_INT(got->rank, want.rank);
    SF_CHECK_INT(got->tops, want.tops);
    const struct sf_wire_top *kept = sf_scores_top(s, index);
    for (int32_t t = 0; t < want.tops && t < got->tops; t++)
        SF_CHECK(kept[t].token == top[t].token && kept[t].logprob == top[t].logprob);
}

static void fill(struct sf_scores *s, int32_t count, uint64_t stream)
{
    for (int32_t i = s->count; i < count; i++) {
        struct sf_wire_top top[TOPS];
        struct sf_wire_score score = score_of(stream, i, top);
        SF_CHECK_OK(sf_scores_put(s, i, &score));
    }
}

static void overwrite(void)
{
    struct sf_scores s = {.tops = TOPS};
    fill(&s, SCORES, 1);
    SF_CHECK_INT(s.count, SCORES);
    for (int32_t i = 0; i < SCORES; i += 3) {
        struct sf_wire_top top[TOPS];
        struct sf_wire_score score = score_of(2, i, top);
        SF_CHECK_OK(sf_scores_put(&s, i, &score));
    }
    SF_CHECK_INT(s.count, SCORES);
    for (int32_t i = 0; i < SCORES; i++) check_score(&s, i, i % 3 == 0 ? 2 : 1);
    sf_scores_free(&s);
    SF_CHECK(s.count == 0 && s.tops == TOPS && s.score == NULL);

    struct sf_wire_top top[TOPS] = {{1, -1}, {2, -2}, {3, -3}, {4, -4}};
    const struct sf_wire_score score = {.pos = 1, .token = 5, .rank = 5, .tops = TOPS, .top = top};
    s.tops = 2;                                         /* of more than are wanted the likeliest */
    SF_CHECK_OK(sf_scores_put(&s, 0, &score));
    SF_CHECK_INT(s.score[0].tops, 2);
    SF_CHECK_INT(sf_scores_top(&s, 0)[1].token, 2);
    sf_scores_free(&s);
    s.tops = 0;
    SF_CHECK_OK(sf_scores_put(&s, 0, &score));
    SF_CHECK_INT(s.score[0].tops, 0);
    SF_CHECK_INT(s.score[0].token, 5);
    sf_scores_free(&s);
}

static void round_trip(void)
{
    for (uint64_t round = 0; round < 50; round++) {
        struct sf_scores from = {.tops = TOPS}, to = {.tops = TOPS};
        struct sf_buffer buffer = {0};
        for (uint64_t piece = 0; to.count < SCORES; piece++) {  /* some of them empty */
            int32_t first = from.count;
            int32_t count = first + (int32_t)(draw(round + 100, piece) % 20);
            fill(&from, count < SCORES ? count : SCORES, round);
            size_t old = buffer.count;
            SF_MUST(sf_scores_pack(&from, first, &buffer));
            SF_MUST(sf_scores_unpack(&to, buffer.bytes + old, buffer.count - old));
            SF_CHECK_INT(to.count, from.count);
        }
        for (int32_t i = 0; i < SCORES; i++) check_score(&to, i, round);
        sf_buffer_free(&buffer);
        sf_scores_free(&from);
        sf_scores_free(&to);
    }
}

/* Unpacks a copy in a block of just this size, so that asan sees a read past its end. */
static sf_status unpack_copy(struct sf_scores *s, const unsigned char *bytes, size_t count)
{
    unsigned char *copy = malloc(count > 0 ? count : 1);
    SF_ASSERT(copy != NULL);
    if (count > 0) memcpy(copy, bytes, count);
    sf_status status = sf_scores_unpack(s, copy, count);
    free(copy);
    return status;
}

static void damage(void)
{
    struct sf_scores from = {.tops = TOPS}, to = {.tops = TOPS};
    struct sf_buffer buffer = {0};
    fill(&from, 12, 3);
    fill(&to, 5, 4);
    SF_MUST(sf_scores_pack(&from, 0, &buffer));
    for (size_t cut = 0; cut < buffer.count; cut++) {
        SF_CHECK_FAILS(unpack_copy(&to, buffer.bytes, cut), SF_FORMAT);
        SF_CHECK_INT(to.count, 5);
    }
    size_t bytes = buffer.count;
    SF_MUST(sf_buffer_reserve(&buffer, bytes + 1));
    buffer.bytes[bytes] = 0;
    SF_CHECK_FAILS(unpack_copy(&to, buffer.bytes, bytes + 1), SF_FORMAT);

    int64_t taken = 0, refused = 0;
    for (uint64_t round = 0; round < 50000; round++) {
        unsigned char *hit = &buffer.bytes[draw(50, round) % bytes], old = *hit;
        *hit = (unsigned char)draw(51, round);
        sf_status status = unpack_copy(&to, buffer.bytes, bytes);
        SF_ASSERT(status == SF_OK ? to.count == 17 : status == SF_FORMAT && to.count == 5);
        if (status == SF_OK) taken++;
        else refused++;
        to.count = 5;
        *hit = old;
    }
    SF_CHECK(taken > 1000 && refused > 1000);
    for (uint64_t round = 0; round < 50000; round++) {
        unsigned char noise[200];
        size_t count = draw(52, round) % (sizeof noise + 1);
        for (size_t i = 0; i < count; i++)
            noise[i] = draw(53 + round, i) % 4 == 0 ? (unsigned char)draw(54 + round, i) : 0;
        sf_status status = unpack_copy(&to, noise, count);
        SF_ASSERT(status == SF_FORMAT ? to.count == 5 : status == SF_OK);
        to.count = 5;
    }
    SF_CHECK_INT(to.count, 5);
    for (int32_t i = 0; i < 5; i++) check_score(&to, i, 4);
    sf_buffer_free(&buffer);
    sf_scores_free(&from);
    sf_scores_free(&to);
}

/* What no worker sends: each is one change to a good block of one score. */
static void refused_values(void)
{
    static const struct { size_t at; uint32_t value; } cases[] = {
        {0, 0x80000000u},                               /* -2^31 scores */
        {0, 0x7fffffffu}, {4, 0xffffffffu},             /* a great many; position -1 */
        {8, 0xffffffffu}, {12, 0x7fc00000u},            /* token -1; NaN */
        {12, 0xff800000u}, {12, 0x41200000u},           /* -inf; 10 */
        {16, 0}, {20, 0xffffffffu}, {20, TOPS + 1},     /* rank 0; tops -1, too many */
        {24, 0xffffffffu}, {28, 0x7f800000u}};          /* likely token -1; inf */
    struct sf_wire_top top = {3, -1};
    const struct sf_wire_score score = {.token = 3, .rank = 1, .logprob = -1, .tops = 1,
                                        .top = &top};
    struct sf_scores s = {.tops = TOPS};
    struct sf_buffer good = {0};
    SF_CHECK_OK(sf_scores_put(&s, 0, &score));
    SF_MUST(sf_scores_pack(&s, 0, &good));
    SF_CHECK_INT(good.count, 32);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        unsigned char bytes[32];
        memcpy(bytes, good.bytes, sizeof bytes);
        for (int b = 0; b < 4; b++)
            bytes[cases[i].at + (size_t)b] = (unsigned char)(cases[i].value >> 8 * b);
        SF_CHECK_FAILS(unpack_copy(&s, bytes, sizeof bytes), SF_FORMAT);
        SF_CHECK_INT(s.count, 1);
    }
    SF_CHECK_OK(unpack_copy(&s, good.bytes, good.count));
    SF_CHECK_INT(s.count, 2);
    sf_buffer_free(&good);
    sf_scores_free(&s);
}

static const struct sf_test tests[] = {{"overwrite", overwrite},
                                       {"round trip", round_trip},
                                       {"damage", damage},
                                       {"refused values", refused_values},
                                       {NULL, NULL}};
SF_TEST_MAIN("scores", tests)
