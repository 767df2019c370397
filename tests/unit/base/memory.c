/* Blocks are aligned and zeroed; growing keeps contents and refuses sizes that overflow; mappings
 * are writable to the last byte and fail with a status; a buffer grows and keeps what it holds; a
 * box hands out aligned pieces that do not overlap, also when they do not fit its block, and has a
 * block for all of them after the next reset. */
#include <stddef.h>
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

static void test_buffer(void)
{
    struct sf_buffer buffer = { 0 };
    SF_MUST(sf_buffer_reserve(&buffer, 100));
    SF_CHECK(buffer.capacity >= 100);
    memset(buffer.bytes, 7, 100);
    buffer.count = 100;
    unsigned char *kept = buffer.bytes;
    size_t capacity = buffer.capacity;
    SF_CHECK_OK(sf_buffer_reserve(&buffer, 50));
    SF_CHECK(buffer.bytes == kept && buffer.capacity == capacity && buffer.count == 100);
    SF_MUST(sf_buffer_reserve(&buffer, capacity + 1));
    SF_CHECK(buffer.capacity >= 2 * capacity);
    SF_CHECK(buffer.bytes[0] == 7 && buffer.bytes[99] == 7);
    SF_CHECK_FAILS(sf_buffer_reserve(&buffer, SIZE_MAX), SF_NO_MEMORY);
    sf_buffer_free(&buffer);
    SF_CHECK(buffer.bytes == NULL && buffer.capacity == 0 && buffer.count == 0);
    sf_buffer_free(&buffer);
}

/* Takes `pieces` pieces of up to 200 bytes, fills each with its number and then looks whether any
 * of them was written over or starts off its border. */
static int wrong_pieces(struct sf_box *box, int pieces)
{
    enum { PIECES_MAX = 100 };
    unsigned char *piece[PIECES_MAX];
    int wrong = 0;
    for (int i = 0; i < pieces; i++) {
        size_t bytes = (size_t)(i * 37 % 200);
        piece[i] = sf_box_take(box, bytes);
        if (piece[i] == NULL) return -1;
        wrong += (uintptr_t)piece[i] % _Alignof(max_align_t) != 0;
        memset(piece[i], i, bytes);
    }
    for (int i = 0; i < pieces; i++)
        for (int b = 0; b < i * 37 % 200; b++) wrong += piece[i][b] != i;
    return wrong;
}

static void test_box(void)
{
    struct sf_box box = { 0 };
    SF_CHECK_INT(wrong_pieces(&box, 10), 0);    /* all beside: there is no block yet */
    SF_CHECK(box.block == NULL && box.beside != NULL);
    sf_box_reset(&box);
    SF_CHECK(box.block != NULL && box.beside == NULL);
    SF_CHECK_INT(wrong_pieces(&box, 10), 0);    /* the same again just fits */
    SF_CHECK_INT(box.used, box.bytes);
    SF_CHECK(box.beside == NULL);
    sf_box_reset(&box);
    size_t bytes = box.bytes;
    SF_CHECK_INT(wrong_pieces(&box, 11), 0);    /* one more does not, and is beside */
    SF_CHECK(box.beside != NULL && box.bytes == bytes);
    sf_box_reset(&box);
    SF_CHECK_INT(box.bytes, 2 * bytes);
    SF_CHECK_INT(wrong_pieces(&box, 100), 0);
    sf_box_reset(&box);
    unsigned char *block = box.block;
    bytes = box.bytes;
    for (int round = 0; round < 100; round++) {
        SF_CHECK_INT(wrong_pieces(&box, round), 0);
        SF_CHECK(box.block == block && box.bytes == bytes && box.beside == NULL);
        sf_box_reset(&box);
    }
    void *empty = sf_box_take(&box, 0);
    SF_CHECK(empty != NULL && sf_box_take(&box, 0) != empty);
    SF_CHECK(sf_box_take(&box, SIZE_MAX) == NULL);
    SF_CHECK_INT(wrong_pieces(&box, 50), 0);    /* what was not to be had is not counted */
    sf_box_reset(&box);
    SF_CHECK(box.block == block && box.bytes == bytes);
    SF_CHECK_INT(wrong_pieces(&box, 100), 0);
    sf_box_free(&box);
    SF_CHECK(box.block == NULL && box.bytes == 0 && box.taken == 0);
    sf_box_free(&box);
}

static const struct sf_test tests[] = {
    { "alloc", test_alloc },
    { "grow", test_grow },
    { "map", test_map },
    { "buffer", test_buffer },
    { "box", test_box },
    { NULL, NULL }
};
SF_TEST_MAIN("base_memory", tests)
