/* tests/unit/kvshard/place.c: a mix in place is a mix by rearranging.
 *
 * Two lanes with the same slots get the same random answers, one by sf_lane_place, the other by
 * sf_lane_arrange: afterwards both hold the same bytes in the same order.  Answers that keep the
 * order move no byte, counted by a backend that counts, until holes are due to go. */
#include <stdlib.h>

#include "base/rng.h"
#include "kvshard/lane.h"
#include "tests/check.h"

enum { DIM = 4, PAGES = 200, TABLE = 60, SLOTS_MAX = 700, RUNS = 60, EDITS = 30 };

static struct sf_device *device;
static struct sf_kernels counting;
static void (*really_move)(struct sf_device *, const struct sf_layout *, unsigned char *, size_t,
                           const struct sf_slot_list *, const struct sf_slot_list *);
static int64_t moved;
static uint64_t drawn;

static void count_move(struct sf_device *dev, const struct sf_layout *layout, unsigned char *pool,
                       size_t page_bytes, const struct sf_slot_list *from,
                       const struct sf_slot_list *to)
{
    moved += from->n;
    really_move(dev, layout, pool, page_bytes, from, to);
}

static int32_t below(int32_t n) { return (int32_t)(sf_rng_u64(3, 1, drawn++) % (uint64_t)n); }

struct side {
    struct sf_page_pool pool;
    struct sf_scratch_mem mem;
    struct sf_kv_lane lane;
    int32_t table[TABLE];
};

static struct sf_lane_ctx ctx_of(struct side *side, int32_t page_slots)
{
    return (struct sf_lane_ctx){ &side->pool, { SF_F32, page_slots, DIM, DIM }, &side->mem };
}

static void write_slot(struct side *side, const struct sf_layout *layout, int32_t slot, float value,
                       int32_t pos, float bias)
{
    float k[DIM] = { value, -value, 1, 2 }, v[DIM] = { 3, value, 4, -value };
    struct sf_append_lane to = { .pages = side->lane.page, .slot_first = slot, .rows = 1 };
    struct sf_append_job job = { .layout = *layout, .pool = side->pool.base,
                                 .page_bytes = side->pool.page_bytes, .k = k, .v = v,
                                 .k_stride = DIM, .v_stride = DIM, .pos = &pos, .bias = &bias,
                                 .lane = &to, .lanes = 1 };
    device->k->kv_append(device, &job);
    size_t at = sf_lane_mirror(&side->pool, &side->lane, slot);
    sf_mirror_begin(&side->pool, at, pos);
    side->pool.bias[at] = bias;
}

static void grow(struct side *side, int32_t page_slots, int32_t first, int32_t rows)
{
    struct sf_lane_ctx ctx = ctx_of(side, page_slots);
    int32_t slot = side->lane.slots;
    SF_MUST(sf_lane_extend(&ctx, &side->lane, first, rows));
    for (int32_t r = 0; r < rows; r++)
        write_slot(side, &ctx.layout, slot + r, (float)(first + r), first + r, 0);
}

/* New slots from those of the lane: runs are copied, summed (-1) or left out, in order or not. */
static int32_t draw(int32_t live, int32_t *from, int order)
{
    int32_t n = 0, often = 1 + below(20);
    for (int32_t s = 0; s < live; s++) {
        if (below(often) > 0 || s < 2) from[n++] = s;
        else if (below(3) == 0 && s + 1 < live) from[n++] = -1, s += below(3);
    }
    for (int32_t i = order ? 0 : below(3); i > 0 && n > 1; i--) from[below(n)] = from[below(n)];
    return n;
}

/* The answer carried out; what is copied keeps its pos and bias, a sum stands for pos 5000 + i. */
static void edit(struct side *side, int32_t page_slots, const int32_t *from, int32_t n, int place,
                 int *moved_out)
{
    static int32_t live[SLOTS_MAX], source[SLOTS_MAX], slot[SLOTS_MAX], pos[SLOTS_MAX];
    static float bias[SLOTS_MAX];
    struct sf_lane_ctx ctx = ctx_of(side, page_slots);
    sf_scratch_reset(&side->mem);
    sf_lane_live(&side->pool, &side->lane, live);
    for (int32_t i = 0; i < n; i++) {
        source[i] = from[i] < 0 ? -1 : live[from[i]];
        size_t at = from[i] < 0 ? 0 : sf_lane_mirror(&side->pool, &side->lane, source[i]);
        pos[i] = from[i] < 0 ? 5000 + i : side->pool.pos[at];
        bias[i] = from[i] < 0 ? 0.5f : side->pool.bias[at];
        slot[i] = i;
    }
    *moved_out = 1;
    if (place) SF_MUST(sf_lane_place(&ctx, &side->lane, live, source, n, slot, moved_out));
    else SF_MUST(sf_lane_arrange(&ctx, &side->lane, source, n));
    for (int32_t i = 0; i < n; i++) {
        size_t at = sf_lane_mirror(&side->pool, &side->lane, slot[i]);
        if (from[i] < 0) write_slot(side, &ctx.layout, slot[i], (float)-i, pos[i], bias[i]);
        else if (*moved_out) side->pool.pos[at] = pos[i], side->pool.bias[at] = bias[i];
    }
    if (!*moved_out) SF_MUST(sf_lane_compact(&ctx, &side->lane));
}

static void read_all(struct side *side, const struct sf_layout *layout, float *kv, int32_t *pos,
                     float *bias)
{
    int32_t slot[SLOTS_MAX], n = side->lane.live;
    sf_lane_live(&side->pool, &side->lane, slot);
    struct sf_slot_list list = { side->lane.page, slot, n };
    device->k->kv_read(device, layout, side->pool.base, side->pool.page_bytes, &list, kv,
                       kv + n * DIM, bias, pos);
    for (int32_t i = 0; i < n; i++) {
        size_t at = sf_lane_mirror(&side->pool, &side->lane, slot[i]);
        SF_CHECK(side->pool.pos[at] == pos[i] && side->pool.bias[at] == bias[i]);
    }
}

static void same(struct side *side, int32_t page_slots)
{
    static float kv[2][SLOTS_MAX * 2 * DIM], bias[2][SLOTS_MAX];
    static int32_t pos[2][SLOTS_MAX];
    struct sf_lane_ctx ctx = ctx_of(&side[0], page_slots);
    size_t n = (size_t)side[0].lane.live;
    SF_CHECK_INT(side[1].lane.live, n);
    if (side[1].lane.live != side[0].lane.live) return;
    for (int i = 0; i < 2; i++) read_all(&side[i], &ctx.layout, kv[i], pos[i], bias[i]);
    SF_CHECK(memcmp(kv[0], kv[1], n * 2 * DIM * sizeof(float)) == 0);
    SF_CHECK(memcmp(pos[0], pos[1], n * sizeof(int32_t)) == 0);
    SF_CHECK(memcmp(bias[0], bias[1], n * sizeof(float)) == 0);
}

static void run(int32_t page_slots)
{
    static struct side side[2];
    static int32_t from[SLOTS_MAX];
    int32_t stayed = 0;
    for (int i = 0; i < 2; i++) {
        struct sf_page_spec spec = { .device = device, .page_slots = page_slots, .mirror = 1 };
        struct sf_layout layout = { SF_F32, page_slots, DIM, DIM };
        spec.page_bytes = sf_layout_page_bytes(&layout);
        spec.pool_bytes = PAGES * (int64_t)spec.page_bytes;
        memset(&side[i], 0, sizeof side[i]);
        SF_MUST(sf_pages_create(&spec, &side[i].pool));
        sf_scratch_init(&side[i].mem, NULL);
        side[i].lane = (struct sf_kv_lane){ .page = side[i].table, .pages_max = TABLE,
                                            .mirrored = 1 };
    }
    for (int32_t e = 0, next = 0; e < EDITS; e++) {
        int32_t rows = 1 + below(50), order = below(3) > 0, how[2];
        if (side[0].lane.live + rows > 400) rows = 0;
        for (int i = 0; i < 2; i++) grow(&side[i], page_slots, next, rows);
        next += rows;
        int32_t n = draw(side[0].lane.live, from, order), holes = side[0].lane.slots;
        moved = 0;
        edit(&side[0], page_slots, from, n, 1, &how[0]);
        int compacted = side[0].lane.slots == side[0].lane.live && holes > n;
        if (order) SF_CHECK_INT(how[0], 0);
        SF_CHECK(how[0] || compacted || moved == 0);
        SF_CHECK(side[0].lane.slots <= sf_lane_slots_bound(side[0].lane.live, page_slots));
        stayed += moved == 0;
        edit(&side[1], page_slots, from, n, 0, &how[1]);
        same(side, page_slots);
    }
    SF_CHECK(stayed > EDITS / 3);
    for (int i = 0; i < 2; i++) {
        sf_lane_free(&side[i].pool, &side[i].lane);
        SF_CHECK_INT(side[i].pool.used, 0);
        sf_scratch_destroy(&side[i].mem);
        sf_pages_destroy(&side[i].pool);
    }
}

static void test_random(void)
{
    for (int32_t i = 0; i < RUNS; i++) run(i % 2 ? 16 : 32);
}

static const struct sf_test tests[] = {
    { "in place and anew", test_random },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    struct sf_device_spec spec = { .name = "ref", .threads = 1, .rows_max = 1 };
    if (sf_device_open(&spec, &device) != SF_OK) return 1;
    const struct sf_kernels *own = device->k;
    counting = *own;
    really_move = own->kv_move;
    counting.kv_move = count_move;
    device->k = &counting;
    int result = sf_test_main("kvshard_place", tests, argc, argv);
    device->k = own;
    sf_device_close(device);
    return result;
}
