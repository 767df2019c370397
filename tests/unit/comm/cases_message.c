/* Messages between ranks: order within a tag and freedom between tags, unknown and wrong lengths,
 * long ones, posts beyond the queue's bound, and the progress function inside a wait.  Lengths
 * around 64 KiB, because the driver under MPI cuts messages into pieces of that size. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/unit/comm/cases.h"

enum { PIECE = 65536 };

/* ---- order and tags -------------------------------------------------------------------------- */
enum { EACH = 60, ORDER_BYTES = 96 };

/* Everyone sends EACH messages to everyone (himself too), tags 1 and 2 in turn; all of tag 2 are
 * received before any of tag 1, although they were sent between those. */
static void case_order(struct sf_ranked *t)
{
    size_t count = (size_t)t->size * EACH;
    unsigned char (*out)[ORDER_BYTES] = calloc(count, sizeof *out), in[ORDER_BYTES];
    struct sf_request **request = calloc(count, sizeof(struct sf_request *));
    sf_status status = out == NULL || request == NULL ? SF_NO_MEMORY : SF_OK;
    size_t sent = 0;
    for (int32_t i = 0; i < EACH && status == SF_OK; i++)
        for (int32_t to = 0; to < t->size && status == SF_OK; to++) {
            sf_fill(out[sent], ORDER_BYTES, (uint32_t)((t->rank * 100 + to) * 1000 + i));
            status = sf_comm_isend(t->world, to, 1 + i % 2, out[sent], ORDER_BYTES, &request[sent]);
            sent += status == SF_OK;
        }
    for (int32_t odd = 1; odd >= 0; odd--)
        for (int32_t from = 0; from < t->size; from++)
            for (int32_t i = odd; i < EACH && status == SF_OK; i += 2) {
                status = sf_comm_recv(t->world, from, 1 + i % 2, in, ORDER_BYTES);
                R_CHECK(t, sf_is_filled(in, ORDER_BYTES,
                                        (uint32_t)((from * 100 + t->rank) * 1000 + i)));
            }
    for (size_t i = 0; i < sent; i++) {
        sf_status done = sf_comm_wait(t->world, request[i]);
        if (status == SF_OK) status = done;
    }
    R_STATUS(t, status, SF_OK);
    free(out);
    free(request);
}

/* ---- lengths --------------------------------------------------------------------------------- */
static const size_t lengths[] = { 0, 1, 63, 64, 4096, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE,
                                  3 * PIECE + 5, 1500000 };
enum { LENGTHS = sizeof lengths / sizeof lengths[0] };

/* Each rank sends to the next one and receives from the one before. */
static int32_t next_of(const struct sf_ranked *t)
{
    return (t->rank + 1) % t->size;
}

static int32_t before_of(const struct sf_ranked *t)
{
    return (t->rank + t->size - 1) % t->size;
}

/* take learns the length, the sender and that nothing is there; recv wants just what comes. */
static void case_lengths(struct sf_ranked *t)
{
    struct sf_buffer in = { 0 };
    for (int32_t i = 0; i < LENGTHS; i++) {
        size_t bytes = lengths[i];
        unsigned char *out = malloc(bytes + 1);
        int32_t from = 0;
        struct sf_request *request;
        R_CHECK(t, out != NULL);
        if (out == NULL) return;
        sf_fill(out, bytes, (uint32_t)(t->rank * 50 + i));
        R_MUST(t, sf_comm_take(t->world, SF_RANK_ANY, 2 * i, 0, &in, &from));
        R_CHECK(t, from == SF_RANK_ANY && in.count == 0);
        R_MUST(t, sf_comm_barrier(t->world));       /* everyone has seen that nothing was there */
        R_MUST(t, sf_comm_isend(t->world, next_of(t), 2 * i, out, bytes, &request));
        R_MUST(t, sf_comm_take(t->world, SF_RANK_ANY, SF_TAG_ANY, 1 + i % 2, &in, &from));
        R_INT(t, in.count, bytes);
        R_INT(t, from, before_of(t));
        if (in.count == bytes)
            R_CHECK(t, sf_is_filled(in.bytes, bytes, (uint32_t)(from * 50 + i)));
        R_MUST(t, sf_comm_wait(t->world, request));

        R_MUST(t, sf_comm_isend(t->world, next_of(t), 2 * i + 1, out, bytes, &request));
        unsigned char *exact = malloc(bytes + 1);
        R_CHECK(t, exact != NULL);
        if (exact == NULL) return;
        exact[bytes] = 77;
        R_MUST(t, sf_comm_recv(t->world, before_of(t), 2 * i + 1, exact, bytes));
        R_CHECK(t, sf_is_filled(exact, bytes, (uint32_t)(before_of(t) * 50 + i)));
        R_INT(t, exact[bytes], 77);
        free(exact);
        R_MUST(t, sf_comm_wait(t->world, request));
        free(out);
    }
    sf_buffer_free(&in);
}

/* A message that is longer or shorter than expected is refused with both lengths, is gone, leaves
 * what lies behind the buffer alone, and the next one is received as if nothing had been. */
static void case_wrong_length(struct sf_ranked *t)
{
    static const struct { size_t sent, expected; } wrong[] = {
        { 3 * PIECE + 5, PIECE + 9 }, { 3 * PIECE, 3 * PIECE + 1 }, { 2 * PIECE, PIECE },
        { 1, 0 }, { 0, 1 }, { 100, 99 }, { PIECE, 2 * PIECE }, { 10, 4 * PIECE } };
    size_t most = 4 * PIECE;
    unsigned char *out = malloc(most), *in = malloc(most + 1), small[8];
    R_CHECK(t, out != NULL && in != NULL);
    if (out == NULL || in == NULL) return;
    sf_fill(out, most, 5);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct sf_request *request[2];
        char words[96];
        R_MUST(t, sf_comm_isend(t->world, next_of(t), 7, out, wrong[i].sent, &request[0]));
        R_MUST(t, sf_comm_isend(t->world, next_of(t), 7, out, sizeof small, &request[1]));
        in[wrong[i].expected] = 77;
        R_STATUS(t, sf_comm_recv(t->world, before_of(t), 7, in, wrong[i].expected), SF_FORMAT);
        snprintf(words, sizeof words, "rank %d sent %zu bytes with tag 7 where %zu were expected",
                 before_of(t), wrong[i].sent, wrong[i].expected);
        R_SAYS(t, words);
        R_INT(t, in[wrong[i].expected], 77);
        R_MUST(t, sf_comm_recv(t->world, before_of(t), 7, small, sizeof small));
        R_CHECK(t, sf_is_filled(small, sizeof small, 5));
        for (int k = 0; k < 2; k++) R_MUST(t, sf_comm_wait(t->world, request[k]));
    }
    free(out);
    free(in);
}

/* ---- posts ----------------------------------------------------------------------------------- */
enum { POSTS = 1200, BACK = 200, POST_BYTES = 40 };     /* more than may be under way at once */

/* Rank 0 posts to everyone out of one buffer, which it overwrites at once; everyone posts back. */
static void case_posts(struct sf_ranked *t)
{
    unsigned char bytes[POST_BYTES];
    for (int32_t i = 0; i < POSTS; i++)
        for (int32_t r = t->rank == 0 ? 1 : t->size; r < t->size; r++) {
            sf_fill(bytes, sizeof bytes, (uint32_t)(i + r));
            R_MUST(t, sf_comm_post(t->world, r, 3, bytes, sizeof bytes));
        }
    for (int32_t i = 0; i < POSTS && t->rank != 0; i++) {
        R_MUST(t, sf_comm_recv(t->world, 0, 3, bytes, sizeof bytes));
        R_CHECK(t, sf_is_filled(bytes, sizeof bytes, (uint32_t)(i + t->rank)));
    }
    for (int32_t i = 0; i < BACK && t->rank != 0; i++) {
        sf_fill(bytes, sizeof bytes, (uint32_t)(i + 7 * t->rank));
        R_MUST(t, sf_comm_post(t->world, 0, 4, bytes, (size_t)(i % POST_BYTES)));
    }
    int32_t next[64] = { 0 };           /* of each rank, the message to come */
    struct sf_buffer in = { 0 };
    const void *kept = NULL;
    for (int32_t i = 0; i < BACK * (t->size - 1) && t->rank == 0; i++) {
        int32_t from;
        R_MUST(t, sf_comm_take(t->world, SF_RANK_ANY, 4, 2, &in, &from));
        R_INT(t, in.count, next[from] % POST_BYTES);
        R_CHECK(t, sf_is_filled(in.bytes, in.count, (uint32_t)(next[from] + 7 * from)));
        next[from]++;
        R_CHECK(t, kept == NULL || kept == in.bytes);
        if (next[from] > POST_BYTES) kept = in.bytes;   /* it has held the longest */
    }
    sf_buffer_free(&in);
}

/* A post may outlive the group on which it was made. */
static void case_post_outlives(struct sf_ranked *t)
{
    struct sf_comm *group;
    int32_t number = 41, got = 0;
    R_MUST(t, sf_comm_split(t->world, 0, -t->rank, "brief", &group));
    if (t->rank == 0) {
        for (int32_t r = 0; r < t->size - 1; r++)
            R_MUST(t, sf_comm_post(group, r, 1, &number, sizeof number));
        sf_comm_destroy(group);
        number = 42;
        R_MUST(t, sf_comm_barrier(t->world));
        return;
    }
    R_MUST(t, sf_comm_recv(group, t->size - 1, 1, &got, sizeof got));
    R_INT(t, got, 41);
    R_MUST(t, sf_comm_barrier(t->world));
    sf_comm_destroy(group);
}

/* ---- progress -------------------------------------------------------------------------------- */
struct counted { struct sf_comm *world; int32_t calls, failed, depth; };

static void count(void *arg)
{
    struct counted *c = arg;
    struct sf_buffer in = { 0 };
    int32_t from;
    c->calls++;
    c->failed += c->depth++ > 0;
    sf_status status = sf_comm_take(c->world, SF_RANK_ANY, 9, 0, &in, &from);
    c->failed += status != SF_OK || from != SF_RANK_ANY || in.bytes != NULL;
    c->depth--;
}

/* It runs while a rank waits, may use the communicator itself, and is not entered twice. */
static void case_progress(struct sf_ranked *t)
{
    struct counted counted = { .world = t->world };
    int32_t number = 5;
    if (t->rank == 0) {
        sf_sleep_us(20000);
        for (int32_t r = 1; r < t->size; r++)
            R_MUST(t, sf_comm_post(t->world, r, 6, &number, sizeof number));
        return;
    }
    sf_comm_set_progress(t->world, count, &counted);
    R_MUST(t, sf_comm_recv(t->world, 0, 6, &number, sizeof number));
    R_MUST(t, sf_comm_beat(t->world, "test", 1));
    sf_comm_set_progress(t->world, NULL, NULL);
    R_CHECK(t, counted.calls >= 3);
    R_INT(t, counted.failed, 0);
}

const struct sf_case sf_cases_message[] = {
    { "order", 1, case_order },
    { "lengths", 1, case_lengths },
    { "wrong length", 1, case_wrong_length },
    { "posts", 2, case_posts },
    { "post outlives group", 2, case_post_outlives },
    { "progress", 2, case_progress },
    { NULL, 0, NULL }
};
