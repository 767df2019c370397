/* What devices of a group say to each other, by the kind that every device has (staged): sums in
 * the order of the ranks, transfers round a ring in which all send first, gathers.  On the
 * reference device, whose memory is the
 * host's. */
#include <string.h>

#include "comm/link.h"
#include "tests/unit/comm/cases.h"

enum { COUNT = 1000, TIMES = 20 };

struct bench { struct sf_device *device; struct sf_link *link; float *x, *all; };

static sf_status bench_open(struct sf_ranked *t, struct bench *b)
{
    struct sf_device_spec spec = { .name = "ref", .threads = 1, .rows_max = 1 };
    void *block;
    memset(b, 0, sizeof *b);
    SF_TRY(sf_device_open(&spec, &b->device));
    SF_TRY(b->device->k->alloc(b->device, COUNT * sizeof(float), "numbers", &block));
    b->x = block;
    SF_TRY(b->device->k->alloc(b->device, (size_t)t->size * COUNT * sizeof(float), "all", &block));
    b->all = block;
    struct sf_link_spec link = { .device = b->device, .bytes_max = COUNT * sizeof(float),
                                 .timeout_ms = 60000, .staged = 1 };
    return sf_link_open(t->world, &link, &b->link);
}

static void bench_close(struct bench *b)
{
    sf_link_close(b->link);
    if (b->device == NULL) return;
    b->device->k->free(b->device, b->x);
    b->device->k->free(b->device, b->all);
    sf_device_close(b->device);
}

/* Of very different sizes, so that another order of additions would give other bits. */
static float number(int32_t rank, int32_t i, int32_t time)
{
    float scale = (i + rank) % 3 == 0 ? 1e6f : 1.0f;
    return scale * (float)(1 + (rank * 31 + i * 7 + time * 5) % 97) / 13.0f;
}

static void sums(struct sf_ranked *t)
{
    struct bench b;
    sf_status opened = bench_open(t, &b);
    R_STATUS(t, opened, SF_OK);
    if (opened == SF_OK) R_CHECK(t, strcmp(sf_link_kind(b.link), "staged") == 0);
    for (int32_t time = 0; opened == SF_OK && time < TIMES; time++) {
        size_t count = time == 0 ? 1 : time == 1 ? 0 : COUNT;
        for (int32_t i = 0; i < COUNT; i++) b.x[i] = number(t->rank, i, time);
        R_STATUS(t, sf_link_sum(b.link, b.x, count), SF_OK);
        int32_t wrong = 0;
        for (int32_t i = 0; i < COUNT; i++) {
            float sum = number(0, i, time);
            for (int32_t r = 1; r < t->size; r++) sum += number(r, i, time);
            if ((size_t)i >= count) sum = number(t->rank, i, time);
            wrong += memcmp(&b.x[i], &sum, sizeof sum) != 0;
        }
        R_INT(t, wrong, 0);
    }
    bench_close(&b);
}

/* Every rank sends to the next before it receives from the one before; the buffer is written again
 * at once. */
static void ring(struct sf_ranked *t)
{
    struct bench b;
    int32_t next = (t->rank + 1) % t->size, before = (t->rank + t->size - 1) % t->size;
    sf_status opened = bench_open(t, &b);
    R_STATUS(t, opened, SF_OK);
    for (int32_t time = 0; opened == SF_OK && time < TIMES; time++) {
        size_t bytes = COUNT * sizeof(float) - (size_t)time;
        uint32_t seed = (uint32_t)(time * 100);
        sf_fill(b.x, bytes, seed + (uint32_t)t->rank);
        R_STATUS(t, sf_link_send(b.link, next, b.x, bytes), SF_OK);
        memset(b.x, 0, bytes);
        R_STATUS(t, sf_link_recv(b.link, before, b.all, bytes), SF_OK);
        R_CHECK(t, sf_is_filled(b.all, bytes, seed + (uint32_t)before));
    }
    if (opened == SF_OK) {
        R_STATUS(t, sf_link_settle(b.link), SF_OK);
        R_INT(t, sf_link_bytes_sent(b.link), TIMES * (int64_t)(COUNT * sizeof(float)) -
                                                 TIMES * (TIMES - 1) / 2);
    }
    bench_close(&b);
}

static void gathers(struct sf_ranked *t)
{
    struct bench b;
    sf_status opened = bench_open(t, &b);
    R_STATUS(t, opened, SF_OK);
    for (int32_t time = 0; opened == SF_OK && time < TIMES; time++) {
        size_t bytes = COUNT * sizeof(float) - (size_t)(time * 4);
        sf_fill(b.x, bytes, (uint32_t)(time * 10 + t->rank));
        R_STATUS(t, sf_link_all_gather(b.link, b.x, bytes, b.all), SF_OK);
        for (int32_t r = 0; r < t->size; r++)
            R_CHECK(t, sf_is_filled((unsigned char *)b.all + (size_t)r * bytes, bytes,
                                    (uint32_t)(time * 10 + r)));
    }
    bench_close(&b);
}

const struct sf_case sf_cases_link[] = {
    { "link sums", 1, sums },
    { "link ring", 2, ring },
    { "link gathers", 1, gathers },
    { NULL, 0, NULL }
};
