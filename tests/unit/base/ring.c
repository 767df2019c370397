/* One thread: order, envelopes and bytes are kept over many turns of the circle, with messages of
 * any length and a backlog that the circle has to grow for; full and empty time out after about the
 * time asked; close is seen by both ends and what was in still comes out; what is still in goes
 * with the ring.  Several threads: every message pushed comes out once, and each consumer sees each
 * producer's messages in order (run under the thread sanitizer too). */
#include <pthread.h>
#include <string.h>

#include "base/clock.h"
#include "base/ring.h"
#include "tests/check.h"

/* Message number i: a length and bytes that tell it from the others. */
enum { LONGEST = 3000 };

static size_t fill(unsigned char *bytes, int i)
{
    size_t count = (size_t)(i * 977 % LONGEST);
    for (size_t b = 0; b < count; b++) bytes[b] = (unsigned char)(i * 31 + (int)b * 7);
    return count;
}

static sf_status push(struct sf_ring *ring, int i)
{
    unsigned char bytes[LONGEST];
    size_t count = fill(bytes, i);
    return sf_ring_push(ring, (struct sf_envelope){ i, -i }, bytes, count, 0);
}

static void pop(struct sf_ring *ring, int i, struct sf_buffer *into)
{
    unsigned char bytes[LONGEST];
    size_t count = fill(bytes, i);
    struct sf_envelope envelope = { 0, 0 };
    SF_CHECK_OK(sf_ring_pop(ring, 0, &envelope, into));
    SF_CHECK_INT(envelope.group, i);
    SF_CHECK_INT(envelope.tag, -i);
    SF_CHECK_INT(into->count, count);
    SF_CHECK(count == 0 || (into->count == count && memcmp(into->bytes, bytes, count) == 0));
}

static void test_order(void)
{
    struct sf_ring *ring;
    struct sf_buffer into = { 0 };
    SF_MUST(sf_ring_create(3, &ring));
    int in = 0, out = 0;
    for (int turn = 0; turn < 200; turn++) {
        while (push(ring, in) == SF_OK) in++;
        SF_CHECK_INT(in - out, 3);
        for (int i = 0; i < 1 + turn % 3; i++, out++) pop(ring, out, &into);
    }
    sf_ring_destroy(ring);
    sf_ring_destroy(NULL);

    SF_MUST(sf_ring_create(1000, &ring));   /* half a megabyte, from the middle of the circle */
    for (in = out = 0; in < 30; in++) SF_CHECK_OK(push(ring, in));
    for (; out < 20; out++) pop(ring, out, &into);
    for (; in < 400; in++) SF_CHECK_OK(push(ring, in));
    for (; out < 390; out++) pop(ring, out, &into);
    sf_ring_destroy(ring);
    sf_buffer_free(&into);
}

static void test_timeout(void)
{
    struct sf_ring *ring;
    struct sf_buffer into = { 0 };
    SF_MUST(sf_ring_create(1, &ring));
    struct sf_envelope envelope = { 5, 6 };
    int64_t start_ns = sf_now_ns();
    SF_CHECK_FAILS(sf_ring_pop(ring, 20, &envelope, &into), SF_TIMEOUT);
    SF_CHECK(sf_now_ns() - start_ns >= 20000000);
    SF_CHECK(envelope.group == 5 && envelope.tag == 6 && into.bytes == NULL);
    SF_CHECK_STR(sf_error_text(), "queue of 1 messages still empty after 20 ms");
    /* Not waiting leaves the words of the last error alone. */
    SF_CHECK_FAILS(sf_ring_pop(ring, 0, &envelope, &into), SF_TIMEOUT);
    SF_CHECK_STR(sf_error_text(), "queue of 1 messages still empty after 20 ms");
    SF_CHECK_OK(sf_ring_push(ring, envelope, NULL, 0, 0));
    start_ns = sf_now_ns();
    SF_CHECK_FAILS(sf_ring_push(ring, envelope, "x", 1, 20), SF_TIMEOUT);
    SF_CHECK(sf_now_ns() - start_ns >= 20000000);
    SF_CHECK_OK(sf_ring_pop(ring, INT64_MAX, &envelope, &into));
    SF_CHECK_INT(into.count, 0);
    sf_ring_destroy(ring);
    sf_buffer_free(&into);
}

/* A message that finds no memory is not in; one that its taker has none for is still in. */
static void test_memory(void)
{
    struct sf_ring *ring;
    SF_MUST(sf_ring_create(4, &ring));
    struct sf_envelope envelope = { 1, 2 };
    SF_CHECK_FAILS(sf_ring_push(ring, envelope, "x", PTRDIFF_MAX - 1, 0), SF_NO_MEMORY);
    SF_CHECK_FAILS(sf_ring_push(ring, envelope, "x", SIZE_MAX, 0), SF_NO_MEMORY);
    struct sf_buffer into = { 0 };
    SF_CHECK_FAILS(sf_ring_pop(ring, 0, &envelope, &into), SF_TIMEOUT);
    for (int round = 0; round < 3; round++) {
        SF_CHECK_OK(push(ring, 7));
        pop(ring, 7, &into);
    }
    unsigned char *kept = into.bytes;
    for (int i = 0; i < 100; i++) {
        SF_CHECK_OK(push(ring, 7));
        pop(ring, 7, &into);
        SF_CHECK(into.bytes == kept);
    }
    sf_ring_destroy(ring);
    sf_buffer_free(&into);
}

struct waiter { struct sf_ring *ring; sf_status status; };

static void *wait_for_message(void *argument)
{
    struct waiter *waiter = argument;
    struct sf_envelope envelope;
    struct sf_buffer into = { 0 };
    waiter->status = sf_ring_pop(waiter->ring, 60000, &envelope, &into);
    return NULL;
}

static void test_close(void)
{
    struct sf_ring *ring;
    SF_MUST(sf_ring_create(2, &ring));
    struct waiter waiters[2] = { { ring, SF_OK }, { ring, SF_OK } };
    pthread_t threads[2];
    int64_t start_ns = sf_now_ns();
    for (int i = 0; i < 2; i++)
        SF_CHECK_INT(pthread_create(&threads[i], NULL, wait_for_message, &waiters[i]), 0);
    sf_sleep_us(5000);
    sf_ring_close(ring);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        SF_CHECK_INT(waiters[i].status, SF_STOPPED);
    }
    SF_CHECK(sf_seconds_since(start_ns) < 30);
    sf_ring_destroy(ring);

    SF_MUST(sf_ring_create(2, &ring));
    struct sf_buffer into = { 0 };
    SF_CHECK_OK(push(ring, 1));
    sf_ring_close(ring);
    SF_CHECK_FAILS(push(ring, 2), SF_STOPPED);
    pop(ring, 1, &into);
    struct sf_envelope envelope;
    SF_CHECK_FAILS(sf_ring_pop(ring, 1000, &envelope, &into), SF_STOPPED);
    sf_ring_destroy(ring);
    sf_buffer_free(&into);
}

enum { PRODUCERS = 3, CONSUMERS = 3, EACH = 5000 };

struct producer { struct sf_ring *ring; int number; };
struct consumer { struct sf_ring *ring; int taken[PRODUCERS], wrong; };

/* The envelope says who and which; so do the bytes, as often as the number says. */
static void *produce(void *argument)
{
    struct producer *producer = argument;
    for (int i = 0; i < EACH; i++) {
        int32_t bytes[8];
        for (int k = 0; k < i % 8; k++) bytes[k] = i;
        if (sf_ring_push(producer->ring, (struct sf_envelope){ producer->number, i }, bytes,
                         (size_t)(i % 8) * sizeof *bytes, 60000) != SF_OK)
            return NULL;
    }
    return NULL;
}

static void *consume(void *argument)
{
    struct consumer *consumer = argument;
    int last[PRODUCERS];
    for (int i = 0; i < PRODUCERS; i++) last[i] = -1;
    struct sf_envelope from;
    struct sf_buffer into = { 0 };
    while (sf_ring_pop(consumer->ring, 60000, &from, &into) == SF_OK) {
        consumer->wrong += from.tag <= last[from.group];
        last[from.group] = from.tag;
        consumer->taken[from.group]++;
        consumer->wrong += into.count != (size_t)(from.tag % 8) * sizeof(int32_t);
        for (size_t at = 0; at + sizeof(int32_t) <= into.count; at += sizeof(int32_t)) {
            int32_t word;
            memcpy(&word, into.bytes + at, sizeof word);
            consumer->wrong += word != from.tag;
        }
    }
    sf_buffer_free(&into);
    return NULL;
}

static void test_threads(void)
{
    struct producer producers[PRODUCERS];
    struct consumer consumers[CONSUMERS];
    pthread_t producing[PRODUCERS], consuming[CONSUMERS];
    struct sf_ring *ring;
    SF_MUST(sf_ring_create(5, &ring));
    for (int p = 0; p < PRODUCERS; p++) {
        producers[p] = (struct producer){ ring, p };
        SF_CHECK_INT(pthread_create(&producing[p], NULL, produce, &producers[p]), 0);
    }
    for (int c = 0; c < CONSUMERS; c++) {
        consumers[c] = (struct consumer){ .ring = ring };
        SF_CHECK_INT(pthread_create(&consuming[c], NULL, consume, &consumers[c]), 0);
    }
    for (int p = 0; p < PRODUCERS; p++) pthread_join(producing[p], NULL);
    sf_ring_close(ring);
    for (int c = 0; c < CONSUMERS; c++) pthread_join(consuming[c], NULL);
    for (int p = 0; p < PRODUCERS; p++) {
        int taken = 0;
        for (int c = 0; c < CONSUMERS; c++) taken += consumers[c].taken[p];
        SF_CHECK_INT(taken, EACH);
    }
    for (int c = 0; c < CONSUMERS; c++) SF_CHECK_INT(consumers[c].wrong, 0);
    sf_ring_destroy(ring);
}

static const struct sf_test tests[] = {
    { "order", test_order },
    { "timeout", test_timeout },
    { "memory", test_memory },
    { "close", test_close },
    { "threads", test_threads },
    { NULL, NULL }
};
SF_TEST_MAIN("base_ring", tests)
