/* coordinator/scores.c: an array of scores, and its bytes (scores.h). */
#include "coordinator/scores.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COUNT_BYTES = 4, SCORE_BYTES = 20, TOP_BYTES = 8 };

static sf_status make_room(struct sf_scores *s, size_t count)
{
    SF_TRY(sf_grow((void **)&s->score, &s->score_room, count, sizeof *s->score));
    if (s->tops == 0) return SF_OK;
    return sf_grow((void **)&s->top, &s->top_room, count * (size_t)s->tops, sizeof *s->top);
}

sf_status sf_scores_put(struct sf_scores *s, int32_t index, const struct sf_wire_score *score)
{
    SF_ASSERT(s->tops >= 0 && index >= 0 && index <= s->count && index < INT32_MAX);
    SF_ASSERT(score->token >= 0 && score->rank >= 1 && score->tops >= 0);
    SF_TRY(make_room(s, (size_t)index + 1));
    struct sf_wire_score *to = &s->score[index];
    *to = *score;
    to->seq = 0;
    to->top = NULL;
    if (to->tops > s->tops) to->tops = s->tops;
    if (to->tops > 0)
        memcpy(s->top + (size_t)index * (size_t)s->tops, score->top,
               (size_t)to->tops * sizeof *s->top);
    if (index == s->count) s->count++;
    return SF_OK;
}

const struct sf_wire_top *sf_scores_top(const struct sf_scores *s, int32_t index)
{
    SF_ASSERT(index >= 0 && index < s->count);
    return s->tops > 0 ? s->top + (size_t)index * (size_t)s->tops : NULL;
}

void sf_scores_free(struct sf_scores *s)
{
    free(s->score);
    free(s->top);
    *s = (struct sf_scores){.tops = s->tops};
}

/* ---- as bytes ---- */

static unsigned char *put_int(unsigned char *at, int32_t value)
{
    for (int i = 0; i < 4; i++) *at++ = (unsigned char)((uint32_t)value >> 8 * i);
    return at;
}

static unsigned char *put_real(unsigned char *at, float value)
{
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return put_int(at, bits);
}

sf_status sf_scores_pack(const struct sf_scores *s, int32_t first, struct sf_buffer *out)
{
    SF_ASSERT(first >= 0 && first <= s->count);
    size_t bytes = COUNT_BYTES;
    for (int32_t i = first; i < s->count; i++)
        bytes += SCORE_BYTES + (size_t)s->score[i].tops * TOP_BYTES;
    SF_TRY(sf_buffer_reserve(out, out->count + bytes));
    unsigned char *at = put_int(out->bytes + out->count, s->count - first);
    for (int32_t i = first; i < s->count; i++) {
        const struct sf_wire_score *score = &s->score[i];
        const struct sf_wire_top *top = sf_scores_top(s, i);
        at = put_int(at, score->pos);
        at = put_int(at, score->token);
        at = put_real(at, score->logprob);
        at = put_int(at, score->rank);
        at = put_int(at, score->tops);
        for (int32_t t = 0; t < score->tops; t++)
            at = put_real(put_int(at, top[t].token), top[t].logprob);
    }
    out->count += bytes;
    SF_ASSERT(at == out->bytes + out->count);
    return SF_OK;
}

/* Bytes of another's making: nothing is read past `end`, and a value that is not there is 0. */
struct cursor { const unsigned char *at, *end; int cut_off; };

static int32_t take_int(struct cursor *c)
{
    uint32_t value = 0;
    if (c->end - c->at < 4) {
        c->at = c->end;
        c->cut_off = 1;
        return 0;
    }
    for (int i = 0; i < 4; i++) value |= (uint32_t)*c->at++ << 8 * i;
    return (int32_t)value;
}

static float take_real(struct cursor *c)
{
    int32_t bits = take_int(c);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int good_pair(int32_t token, float logprob)
{
    return token >= 0 && isfinite(logprob) && logprob < 1.0f;
}

/* The next score; its likeliest go to top[tops_max], where its `top` points. */
static sf_status take_score(struct cursor *c, int32_t tops_max, struct sf_wire_top *top,
                            struct sf_wire_score *out)
{
    struct sf_wire_score score = {.pos = take_int(c), .top = top};
    score.token = take_int(c);
    score.logprob = take_real(c);
    score.rank = take_int(c);
    score.tops = take_int(c);
    if (!c->cut_off && (score.pos < 0 || !good_pair(score.token, score.logprob) || score.rank < 1))
        return SF_FAIL(SF_FORMAT, "saved scores: token %d at %d with log probability %g, rank %d",
                       score.token, score.pos, (double)score.logprob, score.rank);
    if (score.tops < 0 || score.tops > tops_max)
        return SF_FAIL(SF_FORMAT, "saved scores: %d likeliest tokens at %d; at most %d are allowed",
                       score.tops, score.pos, tops_max);
    for (int32_t t = 0; t < score.tops; t++) {
        top[t].token = take_int(c);
        top[t].logprob = take_real(c);
        if (!good_pair(top[t].token, top[t].logprob))
            return SF_FAIL(SF_FORMAT, "saved scores: likely token %d at %d with log probability %g",
                           top[t].token, score.pos, (double)top[t].logprob);
    }
    if (c->cut_off) return SF_FAIL(SF_FORMAT, "saved scores are cut off");
    *out = score;
    return SF_OK;
}

static sf_status take_block(struct cursor *c, struct sf_scores *s)
{
    size_t bytes = (size_t)(c->end - c->at);
    int32_t scores = take_int(c);
    if (c->cut_off || scores < 0 || scores > INT32_MAX - 1 - s->count ||
        (size_t)scores > (bytes - COUNT_BYTES) / SCORE_BYTES)
        return SF_FAIL(SF_FORMAT, "saved scores: %zu bytes do not hold %d scores", bytes, scores);
    SF_TRY(make_room(s, (size_t)s->count + (size_t)scores));
    for (int32_t i = 0; i < scores; i++) {
        struct sf_wire_top *top =
            s->tops > 0 ? s->top + (size_t)s->count * (size_t)s->tops : NULL;
        SF_TRY(take_score(c, s->tops, top, &s->score[s->count]));
        s->score[s->count++].top = NULL;
    }
    return SF_OK;
}

sf_status sf_scores_unpack(struct sf_scores *s, const void *bytes, size_t count)
{
    struct cursor c = {.at = bytes, .end = (const unsigned char *)bytes + count};
    int32_t old = s->count;
    sf_status status = take_block(&c, s);
    while (status == SF_OK && c.at != c.end) status = take_block(&c, s);
    if (status != SF_OK) s->count = old;
    return status;
}
