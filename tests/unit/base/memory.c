/* Blocks are aligned and zeroed; growing keeps contents and refuses sizes that overflow; mappings
 * are writable to the last byte and fail with a status; an arena hands out aligned pieces that do
 * not overlap, says when it is full, and remembers its peak over resets. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "tests/check.h"

static void test_alloc(void)
{
    static const size_t sizes[] = { 0, 1, 63, 64, 65, 100000 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *block = NULL;
        SF_MUST(sf_alloc(sizes[i], "test block", &block));
        SF_CHECK_INT((uintptr_t)block % SF_ALIGN, 0);
        unsigned char any = 0;
        for (size_t b = 0; b < sizes[i]; b++) any |= ((unsigned char *)block)[b];
        SF_CHECK_INT(any, 0);
        memset(block, 0xff, sizes[i]);      /* the next one must not find these */
        sf_free(block);
    }
    sf_free(NULL);
    void *block = &block;
    SF_CHECK_FAILS(sf_alloc(SIZE_MAX - 10, "key pages", &block), SF_NO_MEMORY);
    SF_CHECK_STR(sf_error_text(), "no memory for key pages: 18446744073709551605 bytes");
    SF_CHECK(block == &block);
}

static void test_grow(void)
{
    int32_t *items = NULL;
    size_t capacity = 0, grown = 0;
    for (int32_t i = 0; i < 10000; i++) {
        size_t before = capacity;
        SF_MUST(sf_grow((void **)&items, &capacity, (size_t)i + 1, sizeof *items));
        grown += capacity != before;
        items[i] = i;
    }
    int wrong = 0;
    for (int32_t i = 0; i < 10000; i++) wrong += items[i] != i;
    SF_CHECK_INT(wrong, 0);
    SF_CHECK(grown < 20);
    int32_t *kept = items;
    size_t kept_capacity = capacity;
    SF_CHECK_OK(sf_grow((void **)&items, &capacity, 5, sizeof *items));
    SF_CHECK(items == kept && capacity == kept_capacity);
    SF_CHECK_FAILS(sf_grow((void **)&items, &capacity, SIZE_MAX / 2, sizeof *items), SF_NO_MEMORY);
    SF_CHECK(items == kept && capacity == kept_capacity && items[9999] == 9999);
    free(items);
}

static void test_map(void)
{
    static const size_t sizes[] = { 0, 1, 4097, (2u << 20) - 1, (2u << 20) + 1, 5u << 20 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int populate = 0; populate < 2; populate++) {
            void *block = NULL;
            SF_MUST(sf_map(sizes[i], populate, "test map", &block));
            SF_CHECK_INT((uintptr_t)block % (sizes[i] < 2u << 20 ? 4096 : 2u << 20), 0);
            unsigned char *byte = block, any = 0;
            for (size_t b = 0; b < sizes[i]; b++) any |= byte[b];
            SF_CHECK_INT(any, 0);
            memset(block, 0xff, sizes[i]);
            sf_unmap(block, sizes[i]);
        }
    sf_unmap(NULL, 4096);
    void *block = &block;
    SF_CHECK_FAILS(sf_map((size_t)1 << 60, 0, "page pool", &block), SF_NO_MEMORY);
    SF_CHECK_FAILS(sf_map(SIZE_MAX, 0, "page pool", &block), SF_NO_MEMORY);
    SF_CHECK(block == &block);
}

static void test_arena(void)
{
    struct sf_arena arena;
    SF_MUST(sf_arena_create(1000, "step scratch", &arena));
    unsigned char *a = sf_arena_take(&arena, 1), *b = sf_arena_take(&arena, 100);
    unsigned char *c = sf_arena_take(&arena, 0);
    SF_CHECK_INT(b - a, 64);
    SF_CHECK(c != NULL && c - b == 128);
    SF_CHECK_INT((uintptr_t)a % SF_ALIGN, 0);
    /* 192 used; pieces start on 64 byte borders, so 808 are left. */
    SF_CHECK(sf_arena_take(&arena, 809) == NULL);
    SF_CHECK(sf_arena_take(&arena, SIZE_MAX) == NULL);
    unsigned char *d = sf_arena_take(&arena, 808);
    SF_CHECK(d == a + 192);
    if (d != NULL) memset(d, 1, 808);
    SF_CHECK(sf_arena_take(&arena, 1) == NULL);
    SF_CHECK_INT(arena.peak, 1000);
    sf_arena_reset(&arena);
    SF_CHECK(sf_arena_take(&arena, 10) == a);
    SF_CHECK_INT(arena.used, 10);
    SF_CHECK_INT(arena.peak, 1000);
    sf_arena_destroy(&arena);
    SF_CHECK(sf_arena_take(&arena, 0) == NULL);
    sf_arena_destroy(&arena);
}

static const struct sf_test tests[] = {
    { "alloc", test_alloc },
    { "grow", test_grow },
    { "map", test_map },
    { "arena", test_arena },
    { NULL, NULL }
};
SF_TEST_MAIN("base_memory", tests)
