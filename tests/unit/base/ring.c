/* One thread: order is kept over many turns of the circle, full and empty time out after about the
 * time asked, close is seen by both ends and what was in still comes out.  Several threads: every
 * item pushed comes out once, and each consumer sees each producer's items in order (run under the
 * thread sanitizer too). */
#include <pthread.h>

#include "base/clock.h"
#include "base/ring.h"
#include "tests/check.h"

static void test_order(void)
{
    static int items[7];
    struct sf_ring *ring;
    SF_MUST(sf_ring_create(3, &ring));
    void *item = NULL;
    int in = 0, out = 0;
    for (int turn = 0; turn < 20; turn++) {
        while (sf_ring_push(ring, &items[in % 7], 0) == SF_OK) in++;
        SF_CHECK_INT(in - out, 3);
        for (int i = 0; i < 1 + turn % 3; i++, out++) {
            SF_CHECK_OK(sf_ring_pop(ring, 0, &item));
            SF_CHECK(item == &items[out % 7]);
        }
    }
    sf_ring_destroy(ring);
    sf_ring_destroy(NULL);
}

static void test_timeout(void)
{
    struct sf_ring *ring;
    SF_MUST(sf_ring_create(1, &ring));
    void *item = &ring;
    int64_t start_ns = sf_now_ns();
    SF_CHECK_FAILS(sf_ring_pop(ring, 20, &item), SF_TIMEOUT);
    SF_CHECK(sf_now_ns() - start_ns >= 20000000);
    SF_CHECK(item == &ring);
    SF_CHECK_STR(sf_error_text(), "queue of 1 items still empty after 20 ms");
    /* Not waiting leaves the words of the last error alone. */
    SF_CHECK_FAILS(sf_ring_pop(ring, 0, &item), SF_TIMEOUT);
    SF_CHECK_STR(sf_error_text(), "queue of 1 items still empty after 20 ms");
    SF_CHECK_OK(sf_ring_push(ring, NULL, 0));
    start_ns = sf_now_ns();
    SF_CHECK_FAILS(sf_ring_push(ring, NULL, 20), SF_TIMEOUT);
    SF_CHECK(sf_now_ns() - start_ns >= 20000000);
    SF_CHECK_OK(sf_ring_pop(ring, INT64_MAX, &item));
    SF_CHECK(item == NULL);
    sf_ring_destroy(ring);
}

struct waiter { struct sf_ring *ring; sf_status status; };

static void *wait_for_item(void *argument)
{
    struct waiter *waiter = argument;
    void *item;
    waiter->status = sf_ring_pop(waiter->ring, 60000, &item);
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
        SF_CHECK_INT(pthread_create(&threads[i], NULL, wait_for_item, &waiters[i]), 0);
    sf_sleep_us(5000);
    sf_ring_close(ring);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        SF_CHECK_INT(waiters[i].status, SF_STOPPED);
    }
    SF_CHECK(sf_seconds_since(start_ns) < 30);
    sf_ring_destroy(ring);

    SF_MUST(sf_ring_create(2, &ring));
    void *item = NULL;
    SF_CHECK_OK(sf_ring_push(ring, &item, 0));
    sf_ring_close(ring);
    SF_CHECK_FAILS(sf_ring_push(ring, &item, 0), SF_STOPPED);
    SF_CHECK_OK(sf_ring_pop(ring, 0, &item));
    SF_CHECK(item == &item);
    SF_CHECK_FAILS(sf_ring_pop(ring, 1000, &item), SF_STOPPED);
    sf_ring_destroy(ring);
}

enum { PRODUCERS = 3, CONSUMERS = 3, EACH = 5000 };

struct item { int producer, number; };
struct producer { struct sf_ring *ring; struct item items[EACH]; };
struct consumer { struct sf_ring *ring; int taken[PRODUCERS], disorder; };

static void *produce(void *argument)
{
    struct producer *producer = argument;
    for (int i = 0; i < EACH; i++)
        if (sf_ring_push(producer->ring, &producer->items[i], 60000) != SF_OK) return NULL;
    return NULL;
}

static void *consume(void *argument)
{
    struct consumer *consumer = argument;
    int last[PRODUCERS];
    for (int i = 0; i < PRODUCERS; i++) last[i] = -1;
    void *got;
    while (sf_ring_pop(consumer->ring, 60000, &got) == SF_OK) {
        const struct item *item = got;
        consumer->disorder += item->number <= last[item->producer];
        last[item->producer] = item->number;
        consumer->taken[item->producer]++;
    }
    return NULL;
}

static void test_threads(void)
{
    static struct producer producers[PRODUCERS];
    struct consumer consumers[CONSUMERS];
    pthread_t producing[PRODUCERS], consuming[CONSUMERS];
    struct sf_ring *ring;
    SF_MUST(sf_ring_create(5, &ring));
    for (int p = 0; p < PRODUCERS; p++) {
        producers[p].ring = ring;
        for (int i = 0; i < EACH; i++) producers[p].items[i] = (struct item){ p, i };
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
    for (int c = 0; c < CONSUMERS; c++) SF_CHECK_INT(consumers[c].disorder, 0);
    sf_ring_destroy(ring);
}

static const struct sf_test tests[] = {
    { "order", test_order },
    { "timeout", test_timeout },
    { "close", test_close },
    { "threads", test_threads },
    { NULL, NULL }
};
SF_TEST_MAIN("base_ring", tests)
