/* tests/unit/worker/roof.c: the roof's own memory stays within what the plan leaves of a rank.
 *
 * Shown: the matrix that is read grows with what is left, up to its full size, and is none where
 * caches might hold it; and a worker measures what there is room for, all of it, the products
 * alone, or nothing, and never takes more than that. */
#include <string.h>

#include "base/memory.h"
#include "tests/check.h"
#include "worker/roof.h"
#include "worker/state.h"

static const int64_t MIB = 1 << 20;

static void test_rows(void)
{
    SF_CHECK_INT(sf_roof_rows(0), 0);
    SF_CHECK_INT(sf_roof_rows(64 * MIB - 1), 0);
    SF_CHECK_INT(sf_roof_rows(64 * MIB), SF_ROOF_ROWS_MIN);
    SF_CHECK_INT(sf_roof_rows(100 * MIB), 1600);
    SF_CHECK_INT(sf_roof_rows(256 * MIB), SF_ROOF_ROWS);
    SF_CHECK_INT(sf_roof_rows(INT64_MAX), SF_ROOF_ROWS);
}

static int64_t taken;                   /* of the backend, all in all */
static struct sf_kernels counting;
static const struct sf_kernels *real;

static sf_status count_alloc(struct sf_device *device, size_t bytes, const char *what, void **out)
{
    taken += (int64_t)bytes;
    return real->alloc(device, bytes, what, out);
}

static void measure(int64_t spare, int reads, int multiplies)
{
    struct sf_comm_options options = { .timeout_ms = 60000 };
    struct sf_device_spec device = { .name = "cpu", .threads = 1, .rows_max = 64 };
    struct sf_worker w = { .spec = { .device = "cpu", .dtype = SF_F32, .spare_bytes = spare } };
    struct sf_roof roof;
    w.ws.tile_rows = 64;
    SF_MUST(sf_comm_loopback_world(1, 0, &options, &w.spec.world));
    SF_MUST(sf_device_open(&device, &w.device));
    real = w.device->k;
    counting = *real;
    counting.alloc = count_alloc;
    w.device->k = &counting;
    taken = 0;
    SF_CHECK_OK(sf_roof_measure(&w, &roof));
    SF_CHECK((roof.read_rate > 0) == reads);
    SF_CHECK((roof.flop_rate > 0) == multiplies);
    SF_CHECK(taken <= spare + MIB);     /* rows to be multiplied come when the matrix has gone */
    w.device->k = real;
    sf_device_close(w.device);
    sf_comm_destroy(w.spec.world);
}

static void test_room(void)
{
    measure(0, 0, 0);
    measure(30 * MIB, 0, 1);
    measure(64 * MIB, 1, 1);
}

static const struct sf_test tests[] = {
    { "rows", test_rows }, { "room", test_room }, { NULL, NULL }
};
SF_TEST_MAIN("worker_roof", tests)
