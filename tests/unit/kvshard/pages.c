/* tests/unit/kvshard/pages.c: the page pool gives every page once, prepared, says when there is
 * none left, and takes each back once: a page given twice, or never taken, ends the program. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvshard/page.h"
#include "tests/check.h"

enum { PAGES = 7, SLOTS = 16, AUX = 3 };
static const struct sf_layout layout = { SF_F32, SLOTS, 4, 2 };
static struct sf_device *device;

static sf_status open_pool(int64_t bytes_more, int mirror, struct sf_page_pool *pool)
{
    struct sf_page_spec spec = { .device = device, .page_bytes = sf_layout_page_bytes(&layout),
                                 .page_slots = SLOTS, .mirror = (uint8_t)mirror,
                                 .aux_bytes = mirror ? AUX : 0 };
    spec.pool_bytes = PAGES * (int64_t)spec.page_bytes + bytes_more;
    return sf_pages_create(&spec, pool);
}

static void test_take_and_give(void)
{
    struct sf_page_pool pool;
    int32_t page[PAGES], more = -5;
    int seen[PAGES] = { 0 };
    SF_MUST(open_pool((int64_t)sf_layout_page_bytes(&layout) - 1, 0, &pool));
    SF_CHECK_INT(pool.pages, PAGES);    /* rounded down */
    SF_CHECK_INT(sf_pages_free(&pool), PAGES);
    for (int i = 0; i < PAGES; i++) {
        SF_MUST(sf_page_take(&pool, &layout, &page[i]));
        SF_CHECK(page[i] >= 0 && page[i] < PAGES && seen[page[i]]++ == 0);
        SF_CHECK_INT(sf_pages_free(&pool), PAGES - 1 - i);
        SF_CHECK_INT(pool.used, i + 1);
    }
    SF_CHECK_FAILS(sf_page_take(&pool, &layout, &more), SF_NO_PAGES);
    SF_CHECK(strstr(sf_error_text(), "pool of 7 pages") != NULL);
    SF_CHECK_INT(more, -5);
    SF_CHECK_INT(pool.used, PAGES);
    sf_page_give(&pool, page[2]);
    sf_page_give(&pool, page[5]);
    SF_CHECK_INT(sf_pages_free(&pool), 2);
    SF_MUST(sf_page_take(&pool, &layout, &more));
    SF_CHECK_INT(more, page[5]);        /* last given, first taken */
    SF_MUST(sf_page_take(&pool, &layout, &more));
    SF_CHECK_INT(more, page[2]);
    for (int i = 0; i < PAGES; i++) sf_page_give(&pool, page[i]);
    SF_CHECK_INT(sf_pages_free(&pool), PAGES);
    sf_pages_destroy(&pool);
}

static void test_prepared(void)
{
    struct sf_page_pool pool;
    int32_t page;
    SF_MUST(open_pool(0, 1, &pool));
    for (int round = 0; round < 2; round++) {   /* the second time it comes back used */
        SF_MUST(sf_page_take(&pool, &layout, &page));
        float bias[SLOTS], k[SLOTS * 4];
        int32_t pos[SLOTS], slot[SLOTS], wrong = 0;
        for (int i = 0; i < SLOTS; i++) slot[i] = i;
        struct sf_slot_list list = { &page, slot, SLOTS };
        device->k->kv_read(device, &layout, pool.base, pool.page_bytes, &list, k, NULL, bias, pos);
        size_t first = (size_t)page * SLOTS;
        for (int i = 0; i < SLOTS; i++) {
            wrong += pos[i] != -1 || !isinf(bias[i]) || bias[i] > 0 || k[4 * i] != 0.0f;
            wrong += pool.pos[first + (size_t)i] != -1 || !isinf(pool.bias[first + (size_t)i]);
            for (int b = 0; b < AUX; b++) wrong += pool.aux[(first + (size_t)i) * AUX + (size_t)b];
        }
        SF_CHECK_INT(wrong, 0);
        SF_CHECK_INT(pool.live[page], 0);
        pool.live[page] = 9;
        pool.pos[first + 3] = 4;
        memset(pool.aux + first * AUX, 1, SLOTS * AUX);
        memset(pool.base + (size_t)page * pool.page_bytes, 1, pool.page_bytes);
        sf_page_give(&pool, page);
    }
    sf_pages_destroy(&pool);
}

static void test_no_room(void)
{
    struct sf_page_pool pool;
    struct sf_page_spec spec = { .device = device, .page_bytes = 640, .pool_bytes = 639,
                                 .page_slots = SLOTS };
    SF_CHECK_FAILS(sf_pages_create(&spec, &pool), SF_INVALID);
    spec.page_bytes = 1;
    spec.pool_bytes = INT64_C(1) << 40;
    SF_CHECK_FAILS(sf_pages_create(&spec, &pool), SF_INVALID);
}

static void give_twice(struct sf_page_pool *pool, int32_t page)
{
    sf_page_give(pool, page);
    sf_page_give(pool, page);
}
static void give_untaken(struct sf_page_pool *pool, int32_t page)
{
    sf_page_give(pool, page == 0 ? 1 : 0);
}
static void give_outside(struct sf_page_pool *pool, int32_t page)
{
    (void)page;
    sf_page_give(pool, PAGES);
}

/* Whether `act` ends a child by an assertion. */
static int dies(void (*act)(struct sf_page_pool *, int32_t), struct sf_page_pool *pool,
                int32_t page)
{
    int how = 0;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (freopen("/dev/null", "w", stderr) == NULL) _exit(3);
        act(pool, page);
        _exit(0);
    }
    return child > 0 && waitpid(child, &how, 0) == child && WIFSIGNALED(how) &&
           WTERMSIG(how) == SIGABRT;
}

static void test_double_use(void)
{
    struct sf_page_pool pool;
    int32_t page, other;
    SF_MUST(open_pool(0, 0, &pool));
    SF_MUST(sf_page_take(&pool, &layout, &page));
    SF_CHECK(dies(give_untaken, &pool, page));
    SF_CHECK(dies(give_outside, &pool, page));
    SF_MUST(sf_page_take(&pool, &layout, &other));
    SF_CHECK(dies(give_twice, &pool, page));
    sf_pages_destroy(&pool);
}

static const struct sf_test tests[] = {
    { "every page once, then none", test_take_and_give },
    { "a page comes prepared", test_prepared },
    { "no room", test_no_room },
    { "double use ends the program", test_double_use },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    struct sf_device_spec spec = { .name = "ref", .threads = 1, .rows_max = 1 };
    if (sf_device_open(&spec, &device) != SF_OK) return 1;
    int result = sf_test_main("kvshard_pages", tests, argc, argv);
    sf_device_close(device);
    return result;
}
