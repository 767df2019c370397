/* tests/kernels/traffic.c: what decode attention moves, counted under emulation (emulation.h): it
 * asks for little more than the keys, values and biases of its lanes, whole sectors at a time, and
 * loses no turn to bank conflicts.  `test_kernels_traffic --table` prints the table of
 * docs/performance.md: bytes per slot and query token, how long an H100's memory takes for it, and
 * what the warps issue for it.
 *
 * Bounds, on all that the kernels read which read slots (their queries, units and page numbers
 * too): 1.15 of the lanes' bytes, 1.05 where they are longer than 1,000 slots; of the sectors read
 * at least 90 % is used.  What the merge reads of states is told apart. */
#include <stdlib.h>
#include "tests/check.h"
#include "kernels/device.h"
#include "tests/emulation/emulation.h"

enum { DIM = 128, PAGE = 64, LANES = 3, HEADS_MAX = 8, KERNELS = 8 };

static struct sf_device *device;
static struct emu_count count[KERNELS]; /* of the last call that was measured */
static int counts;

static const struct traffic {
    enum sf_dtype dtype;
    int32_t heads, slots[LANES];
    double bound;
} cases[] = {
    { SF_BF16, 4, { 200, 333, 700 }, 1.15 },   { SF_BF16, 8, { 230, 512, 900 }, 1.15 },
    { SF_BF16, 4, { 1001, 1100, 2048 }, 1.05 }, { SF_BF16, 8, { 1500, 1024, 1777 }, 1.05 },
    { SF_F16, 4, { 1001, 1100, 2048 }, 1.05 },
};
enum { CASES = sizeof cases / sizeof *cases };

/* Sums over the kernels of one call, which stay in `count`. */
struct sums { double lanes, read, merged, used, written, shared, conflicts, products; };

static void *take(size_t bytes)
{
    void *block = NULL;
    if (device->k->alloc(device, bytes, "traffic", &block) == SF_OK) return block;
    fprintf(stderr, "traffic: %s\n", sf_error_text());
    exit(2);
}

/* Pages as alloc leaves them: all zero, so every slot is seen. */
static struct sums measure(const struct traffic *t)
{
    struct sf_layout layout = { t->dtype, PAGE, DIM, DIM };
    size_t page_bytes = sf_layout_page_bytes(&layout), heads = LANES * (size_t)t->heads;
    struct sf_lane_job lane[LANES];
    int32_t pages[1024], used = 0;
    struct sums sums = { 0 };
    for (int i = 0; i < LANES; i++) {
        lane[i] = (struct sf_lane_job){ .pages = pages + used, .slots = t->slots[i], .rows = 1,
                                        .q_first = i * t->heads, .q_heads = t->heads };
        for (int32_t p = 0; p < (t->slots[i] + PAGE - 1) / PAGE; p++, used++) pages[used] = used;
        sums.lanes += (double)t->slots[i] * (2 * DIM * (double)sf_dtype_bytes(t->dtype) + 4);
    }
    unsigned char *pool = take((size_t)used * page_bytes);
    float *q = take(heads * DIM * sizeof *q), *out = take(heads * DIM * sizeof *out);
    struct sf_attend_job job = {
        .layout = layout, .pool = pool, .page_bytes = page_bytes, .q = q, .q_stride = heads * DIM,
        .out = out, .out_stride = heads * DIM, .out_head_stride = DIM, .out_dtype = SF_F32,
        .scale = 0.1f, .lane = lane, .lanes = LANES
    };
    device->k->sync(device);
    emu_set_counting(1);
    device->k->attend(device, &job);
    device->k->sync(device);
    emu_set_counting(0);
    counts = emu_counts(count, KERNELS);
    for (int i = 0; i < counts; i++) {
        double read = 32 * (double)count[i].read_sectors;
        *(strstr(count[i].kernel, "merge") ? &sums.merged : &sums.read) += read;
        sums.used += (double)count[i].read_bytes;
        sums.written += 32 * (double)count[i].written_sectors;
        sums.shared += (double)count[i].shared;
        sums.conflicts += (double)count[i].conflicts;
        sums.products += (double)count[i].products;
    }
    device->k->free(device, pool);
    device->k->free(device, q);
    device->k->free(device, out);
    return sums;
}

static void test_decode(void)
{
    for (int c = 0; c < CASES; c++) {
        const struct traffic *t = &cases[c];
        struct sums sums = measure(t);
        printf("  figure: decode, %s, %d heads, lanes of %d to %d slots: %.3f of the lanes' bytes, "
               "%.3f more to merge, %.1f %% of the sectors used, %.0f conflicts in %.0f shared "
               "accesses\n", sf_dtype_name(t->dtype), t->heads, t->slots[0], t->slots[2],
               sums.read / sums.lanes, sums.merged / sums.lanes,
               100 * sums.used / (sums.read + sums.merged), sums.conflicts, sums.shared);
        SF_CHECK(sums.read >= sums.lanes);      /* or else it is not counted */
        SF_CHECK(sums.read <= t->bound * sums.lanes);
        SF_CHECK(sums.used >= 0.9 * (sums.read + sums.merged));
        SF_CHECK(sums.shared > 0);
        SF_CHECK(sums.conflicts == 0);
        SF_CHECK(sums.products > 0);            /* the tensor cores' kernel is what ran */
    }
}

static void table_print(void)
{
    printf("| slots | heads | stored, B | read, B | written, B | ns at 3.35 TB/s |\n"
           "|---|--:|--:|--:|--:|--:|\n");
    for (int d = SF_F32; d <= (int)SF_BF16; d++)
        for (int heads = 4; heads <= 8; heads += 4) {
            struct traffic t = { (enum sf_dtype)d, heads, { 2048, 2048, 2048 }, 0 };
            struct sums sums = measure(&t);
            double slots = 3 * 2048, written = sums.written / slots;
            double read = (sums.read + sums.merged) / slots;
            printf("| %s | %d | %.0f | %.1f | %.1f | %.3f |\n", sf_dtype_name(t.dtype), heads,
                   sums.lanes / slots, read, written, (read + written) / 3350);
        }
}

/* Instructions of warps by class, as far as the emulation sees them. */
static void classes_print(void)
{
    printf("\n| kernel | heads | blocks | loads | stores | shared loads | shared stores |"
           " products | shuffles | votes | barriers | atomics | special |\n"
           "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (int heads = 4; heads <= 8; heads += 4) {
        struct traffic t = { SF_BF16, heads, { 2048, 2048, 2048 }, 0 };
        measure(&t);
        for (int i = 0; i < counts; i++) {
            const struct emu_count *c = &count[i];
            const int64_t all[] = { c->blocks, c->loads, c->stores, c->shared_loads,
                                    c->shared_stores, c->products, c->shuffles, c->votes,
                                    c->barriers + c->warp_barriers, c->atomics, c->special };
            const char *name = c->kernel + (c->kernel[0] == '(');   /* of a template */
            printf("| %.*s | %d |", (int)strcspn(name, "<"), name, heads);
            for (size_t a = 0; a < sizeof all / sizeof *all; a++)
                printf(" %lld |", (long long)(all[a] / c->launches));
            printf("\n");
        }
    }
}

static const struct sf_test tests[] = { { "decode", test_decode }, { NULL, NULL } };

int main(int argc, char **argv)
{
    struct sf_device_spec spec = { .name = "cuda-emulated", .threads = 1, .rows_max = 1 };
    int failed = 0;
    if (sf_device_open(&spec, &device) != SF_OK) {
        fprintf(stderr, "traffic: %s\n", sf_error_text());
        return 2;
    }
    if (argc == 2 && strcmp(argv[1], "--table") == 0) {
        table_print();
        classes_print();
    } else failed = sf_test_main("kernels_traffic", tests, argc, argv);
    sf_device_close(device);
    return failed;
}
