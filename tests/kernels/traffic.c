/* tests/kernels/traffic.c: what decode attention moves, counted under emulation (emulation.h): it
 * asks for little more than the keys, values and biases of its lanes, whole sectors at a time, and
 * loses no turn to bank conflicts.  `test_kernels_traffic --table` prints the table of
 * docs/performance.md: bytes per slot and query token, how long an H100's memory takes for it, and
 * what the warps issue for it.
 *
 * A basis that several lanes share is read as basis.cu's header says, and not once more for each of
 * them: at most 1.05 of that.
 *
 * And jobs that are cut alike, whose tiles and units are made and sent once (attend.cu), attend
 * what they name; jobs that differ in more have a cut of their own.
 *
 * Both paths of attend_tensor.cu are held to this, and ask for the same sectors.
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
static int *async_copy;                 /* the plugin's switch (kernels/cuda/plugin.h) */
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
struct sums { double lanes, read, merged, used, written, shared, conflicts, products, copies; };

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
        sums.copies += (double)count[i].copies;
    }
    device->k->free(device, pool);
    device->k->free(device, q);
    device->k->free(device, out);
    return sums;
}

static void decode_check(const struct traffic *t, const struct sums *sums)
{
    printf("  figure: decode%s, %s, %d heads, lanes of %d to %d slots: %.3f of the lanes' bytes, "
           "%.3f more to merge, %.1f %% of the sectors used, %.0f conflicts in %.0f shared "
           "accesses\n", *async_copy ? " by copies" : "", sf_dtype_name(t->dtype), t->heads,
           t->slots[0], t->slots[2], sums->read / sums->lanes, sums->merged / sums->lanes,
           100 * sums->used / (sums->read + sums->merged), sums->conflicts, sums->shared);
    SF_CHECK(sums->read >= sums->lanes);        /* or else it is not counted */
    SF_CHECK(sums->read <= t->bound * sums->lanes);
    SF_CHECK(sums->used >= 0.9 * (sums->read + sums->merged));
    SF_CHECK(sums->shared > 0);
    SF_CHECK(sums->conflicts == 0);
    SF_CHECK(sums->products > 0);               /* the tensor cores' kernel is what ran */
    SF_CHECK((sums->copies > 0) == (*async_copy != 0));
}

static void test_decode(void)
{
    int compiled = *async_copy;
    for (int c = 0; c < CASES; c++) {
        struct sums sums[2];
        for (int path = 0; path < 2; path++) {
            *async_copy = path;
            sums[path] = measure(&cases[c]);
            decode_check(&cases[c], &sums[path]);
        }
        SF_CHECK_NEAR(sums[1].read, sums[0].read, 0);
        SF_CHECK_NEAR(sums[1].written, sums[0].written, 0);
        SF_CHECK_NEAR(sums[1].products, sums[0].products, 0);
    }
    *async_copy = compiled;
}

/* ---- a basis that lanes share --------------------------------------------------------------- */
enum { ROWS = 1024, SPLIT = 512, PIECE = 128, CHUNK = 64, SHARERS_MAX = 4, BASIS_POOL = 64 };
static const struct shared { int32_t dim, lanes, heads, rank_k, rank_v; } shareds[] = {
    { 64, 4, 4, 48, 80 }, { 64, 1, 4, 48, 80 }, { 128, 3, 4, 96, 144 },
};

/* What basis.cu's header says, and the least: slots and factors once, a row of the turns a slot. */
struct told { double read, least; };
static struct told told_of(const struct shared *c)
{
    int32_t pairs = (c->lanes + 1) / 2, chunks = (c->dim + CHUNK - 1) / CHUNK;
    int32_t passes = c->lanes / 2 * chunks + c->lanes % 2 * ((chunks + 1) / 2);
    double row_v = 2.0 * c->rank_v + 8, row_k = 2.0 * c->rank_k, turn = 4.0 * c->dim;
    double b_k = 2.0 * c->rank_k * c->dim, b_v = 2.0 * c->rank_v * c->dim, splits = ROWS / SPLIT;
    return (struct told){
        ROWS * (row_v + passes * row_k + pairs * turn) +
            c->lanes * (ROWS / PIECE * b_k + splits * b_v),
        ROWS * (row_v + row_k + turn) + c->lanes * (b_k + b_v) };
}

/* Lanes of one slot of their own, and of ROWS of a basis at positions 0, 1, ...; lane i's factors
 * in the i-th page behind the basis's. */
static struct emu_count shared_measure(const struct shared *c)
{
    struct sf_layout layout = { SF_BF16, PAGE, c->dim, c->dim };
    struct sf_layout rows = { SF_BF16, PAGE, c->rank_k, c->rank_v };
    struct sf_layout factors = { SF_BF16, 3 * PAGE, c->dim, c->dim };
    size_t page_bytes = sf_layout_page_bytes(&factors), pos_at = sf_layout_pos_offset(&rows);
    struct sf_lane_factors of[SHARERS_MAX];
    struct sf_lane_part part[SHARERS_MAX];
    struct sf_lane_job lane[SHARERS_MAX];
    struct emu_count found[KERNELS], basis = { .blocks = 0 };
    int32_t basis_page[ROWS / PAGE], own = BASIS_POOL - 1, factor_page[SHARERS_MAX];
    unsigned char *host = calloc(BASIS_POOL, page_bytes);
    float *turns = take(ROWS * (size_t)c->dim * sizeof *turns);
    SF_ASSERT(host != NULL && sf_layout_page_bytes(&rows) <= page_bytes);
    for (int32_t p = 0; p < ROWS / PAGE; p++) {
        int32_t *pos = (int32_t *)(void *)(host + (size_t)p * page_bytes + pos_at);
        basis_page[p] = p;
        for (int32_t s = 0; s < PAGE; s++) pos[s] = p * PAGE + s;
    }
    unsigned char *pool = take(BASIS_POOL * page_bytes);
    device->k->upload(device, pool, host, BASIS_POOL * page_bytes);
    for (int32_t i = 0; i < c->lanes; i++) {
        factor_page[i] = ROWS / PAGE + i;
        of[i] = (struct sf_lane_factors){ .layout = &factors, .pages = &factor_page[i],
                                          .rank_k = c->rank_k, .rank_v = c->rank_v, .turns = turns,
                                          .rope_dim = c->dim };
        part[i] = (struct sf_lane_part){ .layout = &rows, .pages = basis_page, .slots = ROWS,
                                         .factors = &of[i] };
        lane[i] = (struct sf_lane_job){ .pages = &own, .slots = 1, .rows = 1,
                                        .q_first = i * c->heads, .q_heads = c->heads,
                                        .part = &part[i], .parts = 1 };
    }
    size_t stride = (size_t)(c->lanes * c->heads * c->dim);
    float *q = take(stride * sizeof *q), *out = take(stride * sizeof *out);
    struct sf_attend_job job = {
        .layout = layout, .pool = pool, .page_bytes = page_bytes, .q = q, .q_stride = stride,
        .out = out, .out_stride = stride, .out_head_stride = (size_t)c->dim, .out_dtype = SF_F32,
        .scale = 0.1f, .lane = lane, .lanes = c->lanes
    };
    device->k->sync(device);
    emu_set_counting(1);
    device->k->attend(device, &job);
    device->k->sync(device);
    emu_set_counting(0);
    int kernels = emu_counts(found, KERNELS);
    for (int i = 0; i < kernels; i++)
        if (strstr(found[i].kernel, "attend_basis")) basis = found[i];
    void *block[] = { pool, q, out, turns };
    for (size_t i = 0; i < sizeof block / sizeof *block; i++) device->k->free(device, block[i]);
    free(host);
    return basis;
}

static void test_shared(void)
{
    for (size_t i = 0; i < sizeof shareds / sizeof *shareds; i++) {
        const struct shared *c = &shareds[i];
        struct told told = told_of(c);
        struct emu_count count_of = shared_measure(c);
        double read = 32 * (double)count_of.read_sectors;
        printf("  figure: decode, a basis of ranks %d and %d, %d lanes of k_dim %d: %.3f of what "
               "is told, %.2f of the least, %.1f %% of the sectors used, %lld conflicts in %lld "
               "shared accesses\n", (int)c->rank_k, (int)c->rank_v, (int)c->lanes, (int)c->dim,
               read / told.read, read / told.least, 100 * (double)count_of.read_bytes / read,
               (long long)count_of.conflicts, (long long)count_of.shared);
        SF_CHECK(read >= told.least);
        SF_CHECK(read <= 1.05 * told.read);
        SF_CHECK((double)count_of.read_bytes >= 0.9 * read);
        SF_CHECK_INT(count_of.conflicts, 0);
        SF_CHECK(count_of.products > 0);
    }
}

/* ---- jobs that are cut alike ---------------------------------------------------------------- */
enum { SLOTS = 640, PAGES = SLOTS / PAGE, TWO = 2, RANK = 16, SOME = 10, MANY = 600,
       PART_AT = TWO * PAGES, BASIS_AT = PART_AT + PAGES, FACTORS_AT = BASIS_AT + PAGES,
       ALL = FACTORS_AT + 1 };

/* The pool: pages of the two lanes, of a part, of a basis and of its factors; lists of picks and
 * turns of position 0 on the device. */
struct store { unsigned char *pool; int32_t *pick[2]; float *turns[2], *q, *out; };

/* What the first lane has beside its own slots. */
enum part { NONE, ALL_SLOTS, SOME_PICKS, BASIS, BASIS_PICKS };
struct look {
    int32_t first[TWO], slots[TWO];     /* of the lanes: pages from first on */
    enum part part;
    int32_t n, list;                    /* slots or picks of the part; which picks and turns */
    int32_t rank_v;
    int again;                          /* cut as the job before it */
};

static void part_make(const struct store *store, const struct look *look, struct sf_lane_part *part,
                      struct sf_lane_factors *factors)
{
    static const struct sf_layout rows = { SF_BF16, PAGE, RANK, RANK };
    static const struct sf_layout whole = { SF_BF16, PAGE, DIM, DIM };
    static int32_t pages[PAGES], basis[PAGES], factor = FACTORS_AT;
    for (int32_t p = 0; p < PAGES; p++) {
        pages[p] = PART_AT + p;
        basis[p] = BASIS_AT + p;
    }
    int based = look->part >= BASIS, picked = look->part == SOME_PICKS || look->part == BASIS_PICKS;
    *factors = (struct sf_lane_factors){ .layout = &whole, .pages = &factor, .rank_k = RANK,
                                         .rank_v = look->rank_v, .turns = store->turns[look->list],
                                         .rope_dim = 2 };
    *part = (struct sf_lane_part){ .layout = based ? &rows : &whole,
                                   .pages = based ? basis : pages,
                                   .slots = picked ? SLOTS : look->n,
                                   .factors = based ? factors : NULL,
                                   .pick = picked ? store->pick[look->list] : NULL,
                                   .picks = picked ? look->n : 0 };
}

/* Two lanes of one head; how often the host has sent something for them. */
static int64_t look_at(struct sf_device *on, const struct store *store, const struct look *look,
                       float *found)
{
    struct sf_layout layout = { SF_BF16, PAGE, DIM, DIM };
    struct sf_lane_job lane[TWO];
    struct sf_lane_part part;
    struct sf_lane_factors factors;
    int32_t pages[TWO][PAGES];
    for (int i = 0; i < TWO; i++) {
        for (int32_t p = 0; p < PAGES; p++) pages[i][p] = look->first[i] + p;
        lane[i] = (struct sf_lane_job){ .pages = pages[i], .slots = look->slots[i], .row_first = i,
                                        .rows = 1, .q_heads = 1 };
    }
    part_make(store, look, &part, &factors);
    if (look->part != NONE) {
        lane[0].part = &part;
        lane[0].parts = 1;
    }
    struct sf_attend_job job = {
        .layout = layout, .pool = store->pool, .page_bytes = sf_layout_page_bytes(&layout),
        .q = store->q, .q_stride = DIM, .out = store->out, .out_stride = DIM,
        .out_head_stride = DIM, .out_dtype = SF_F32, .scale = 0.1f, .lane = lane, .lanes = TWO
    };
    int64_t before = emu_uploads();
    on->k->attend(on, &job);
    int64_t sent = emu_uploads() - before;
    on->k->download(on, found, store->out, TWO * DIM * sizeof *found);
    return sent;
}

static void *there(const void *from, size_t bytes)
{
    void *block = take(bytes);
    device->k->upload(device, block, from, bytes);
    return block;
}

/* Biases and positions stay 0. */
static struct store store_make(void)
{
    struct sf_layout layout = { SF_BF16, PAGE, DIM, DIM };
    size_t words = sf_layout_page_bytes(&layout) / 2;
    uint16_t *filled = calloc(ALL * words, sizeof *filled);
    int32_t pick[2][MANY + 1];
    float q[TWO * DIM];
    static const float turns[2][2] = { { 1, 0 }, { 0, 1 } };
    struct store store;
    SF_ASSERT(filled != NULL);
    for (size_t page = 0; page < ALL; page++) {
        size_t dims = page >= BASIS_AT && page < FACTORS_AT ? 2 * RANK : 2 * DIM;
        for (size_t i = 0; i < PAGE * dims; i++)
            filled[page * words + i] = (uint16_t)(0x3c00u + (page * 131 + i * 37) % 0x400u);
    }
    for (int i = 0; i < TWO * DIM; i++) q[i] = (float)(i % DIM % 7) - 3;
    for (int32_t i = 0; i <= MANY; i++) {
        pick[0][i] = SLOTS - 1 - i;
        pick[1][i] = 2 * i % SLOTS + 2 * i / SLOTS;     /* none twice */
    }
    store.pool = there(filled, ALL * words * sizeof *filled);
    store.q = there(q, sizeof q);
    store.out = take(sizeof q);
    for (int i = 0; i < 2; i++) {
        store.pick[i] = there(pick[i], sizeof pick[i]);
        store.turns[i] = there(turns[i], sizeof turns[i]);
    }
    device->k->sync(device);
    free(filled);
    return store;
}

static void store_free(struct store *store)
{
    void *block[] = { store->pool, store->q, store->out, store->pick[0], store->pick[1],
                      store->turns[0], store->turns[1] };
    for (size_t i = 0; i < sizeof block / sizeof *block; i++)
        device->k->free(device, block[i]);
}

/* Jobs one behind the other on a device: each gives what a device gives that has seen no job
 * before.  The host sends lanes and pages alone where the cut is that of the job before, though
 * pages, picks and turns are others, as in the layers of a step; and tiles and units too, each by a
 * copy, where the job has more splits, or as many slots of another kind. */
static void test_alike(void)
{
    static const struct look looks[] = {
        { { 0, PAGES }, { 200, 200 }, NONE, 0, 0, 0, 0 },
        { { PAGES, 0 }, { 200, 200 }, NONE, 0, 0, 0, 1 },
        { { PAGES, 0 }, { 600, 200 }, NONE, 0, 0, 0, 0 },
        { { PAGES, 0 }, { 200, 600 }, NONE, 0, 0, 0, 0 },
        { { PAGES, 0 }, { 200, 600 }, ALL_SLOTS, SOME, 0, 0, 0 },
        { { 0, PAGES }, { 200, 600 }, ALL_SLOTS, SOME, 0, 0, 1 },
        { { 0, PAGES }, { 200, 600 }, SOME_PICKS, SOME, 0, 0, 0 },
        { { 0, PAGES }, { 200, 600 }, SOME_PICKS, SOME, 1, 0, 1 },
        { { 0, PAGES }, { 200, 600 }, SOME_PICKS, MANY, 1, 0, 0 },
        { { 0, PAGES }, { 200, 600 }, ALL_SLOTS, MANY, 0, 0, 0 },
        { { 0, PAGES }, { 200, 600 }, BASIS, MANY, 0, RANK, 0 },
        { { 0, PAGES }, { 200, 600 }, BASIS, MANY, 1, RANK, 1 },
        { { 0, PAGES }, { 200, 600 }, BASIS, MANY, 1, RANK / 2, 0 },
        { { 0, PAGES }, { 200, 600 }, BASIS_PICKS, MANY, 1, RANK / 2, 0 },
        { { 0, PAGES }, { 200, 600 }, BASIS_PICKS, MANY, 0, RANK / 2, 1 },
        { { 0, PAGES }, { 200, 600 }, BASIS_PICKS, SOME, 0, RANK / 2, 0 },
        { { 0, PAGES }, { 200, 200 }, NONE, 0, 0, 0, 0 },
    };
    struct sf_device_spec spec = { .name = "cuda-emulated", .threads = 1, .rows_max = 1 };
    float found[TWO * DIM], expected[TWO * DIM], before[TWO * DIM];
    struct store store = store_make();
    for (size_t j = 0; j < sizeof looks / sizeof *looks; j++) {
        struct sf_device *fresh;
        int64_t sent = look_at(device, &store, &looks[j], found);
        if (sent != (looks[j].again ? 1 : 3))
            sf_test_fail(__FILE__, __LINE__, "job %zu: %lld copies", j, (long long)sent);
        SF_MUST(sf_device_open(&spec, &fresh));
        SF_CHECK_INT(look_at(fresh, &store, &looks[j], expected), 3);
        sf_device_close(fresh);
        SF_CHECK(memcmp(found, expected, sizeof found) == 0);
        if (j > 0 && memcmp(found, before, sizeof found) == 0)
            sf_test_fail(__FILE__, __LINE__, "job %zu: no other than the one before", j);
        memcpy(before, found, sizeof found);
    }
    store_free(&store);
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

/* Instructions of warps by class, as far as the emulation sees them, of both paths. */
static void classes_print(void)
{
    int compiled = *async_copy;
    printf("\n| kernel | heads | blocks | loads | stores | shared loads | shared stores | copies |"
           " their waits | products | shuffles | votes | barriers | atomics | special |\n"
           "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (int job = 0; job < 4; job++) {
        int heads = 4 + job % 2 * 4;
        struct traffic t = { SF_BF16, heads, { 2048, 2048, 2048 }, 0 };
        *async_copy = job / 2;
        measure(&t);
        for (int i = 0; i < counts; i++) {
            const struct emu_count *c = &count[i];
            const int64_t all[] = { c->blocks, c->loads, c->stores, c->shared_loads,
                                    c->shared_stores, c->copies, c->copy_waits, c->products,
                                    c->shuffles, c->votes, c->barriers + c->warp_barriers,
                                    c->atomics, c->special };
            const char *name = c->kernel + (c->kernel[0] == '(');   /* of a template */
            int merges = strstr(name, "merge") != NULL;
            if (*async_copy && merges) continue;        /* as in the other path */
            printf("| %.*s%s | %d |", (int)strcspn(name, "<"), name,
                   *async_copy ? ", by copies" : "", heads);
            for (size_t a = 0; a < sizeof all / sizeof *all; a++)
                printf(" %lld |", (long long)(all[a] / c->launches));
            printf("\n");
        }
    }
    *async_copy = compiled;
}

static const struct sf_test tests[] = {
    { "decode", test_decode }, { "shared", test_shared }, { "alike", test_alike }, { NULL, NULL }
};

int main(int argc, char **argv)
{
    struct sf_device_spec spec = { .name = "cuda-emulated", .threads = 1, .rows_max = 1 };
    int failed = 0;
    if (sf_device_open(&spec, &device) != SF_OK) {
        fprintf(stderr, "traffic: %s\n", sf_error_text());
        return 2;
    }
    async_copy = (int *)(uintptr_t)sf_device_symbol(device, "sf_cuda_async_copy");
    SF_ASSERT(async_copy != NULL);
    if (argc == 2 && strcmp(argv[1], "--table") == 0) {
        table_print();
        classes_print();
    } else failed = sf_test_main("kernels_traffic", tests, argc, argv);
    sf_device_close(device);
    return failed;
}
