/* kernels/cpu/pick.c: the chunks of a lane that its queries want (kernels.h: sf_pick_job).
 *
 *   a thread's floats   s [n] | logits of some vectors [g][n] | of a split [g][512] | queries [g]
 *
 * A thread takes a lane: logits by the code of attention, as many vectors together as there is room
 * for, then their softmax, and s the greatest.  The chunks are found digit by digit of the bits of
 * s, which order as the numbers do since none is negative; so the time does not depend on s. */
#include <math.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/ahead.h"

struct room { float *s, *logits, *split, *q; int32_t vectors; };

static struct room room_of(const struct sf_pick_job *job, const struct sf_pick_lane *lane,
                           float *floats)
{
    size_t n = (size_t)lane->landmarks, each = n + SF_SPLIT_SLOTS + (size_t)job->layout.k_dim;
    size_t most = (SF_THREAD_FLOATS - n) / each, all = (size_t)(lane->rows * lane->q_heads);
    struct room room = { .s = floats, .logits = floats + n };
    SF_ASSERT(lane->landmarks <= SF_LANDMARKS_MAX && most >= 1);
    if (most > SF_TILE_VECTORS) most = SF_TILE_VECTORS;
    room.vectors = (int32_t)(most < all ? most : all);
    room.split = room.logits + (size_t)room.vectors * n;
    room.q = room.split + (size_t)room.vectors * SF_SPLIT_SLOTS;
    return room;
}

/* Logits of some vectors, from `first` on, of all landmarks. */
static void logits(const struct sf_cpu_isa *isa, const struct sf_pick_job *job,
                   const struct sf_pick_lane *lane, int32_t first, int32_t vectors,
                   const struct room *room)
{
    const struct sf_lane_job as = { .pages = lane->pages, .slots = lane->landmarks + lane->rows - 1,
                                    .row_first = lane->row_first, .rows = lane->rows,
                                    .q_first = lane->q_first, .q_heads = lane->q_heads };
    const struct sf_attend_job attend = { .layout = job->layout, .pool = job->pool,
                                          .page_bytes = job->page_bytes, .q = job->q,
                                          .q_stride = job->q_stride, .scale = job->scale,
                                          .lane = &as, .lanes = 1 };
    const struct sf_tile tile = { .lane = &as, .vector = first, .vectors = vectors, .part = -1 };
    struct sf_gathered gathered = { .q = room->q };
    struct sf_split split;
    struct sf_ahead ahead;
    sf_tile_gather(isa, &attend, &tile, &gathered);
    for (int32_t j = 0; j < vectors; j++) gathered.seen[j] = lane->landmarks;
    gathered.seen_most = lane->landmarks;
    for (int32_t at = 0; at < lane->landmarks; at += SF_SPLIT_SLOTS) {
        int32_t n = lane->landmarks - at < SF_SPLIT_SLOTS ? lane->landmarks - at : SF_SPLIT_SLOTS;
        sf_tile_blocks(&attend, &tile, -1, &gathered, at, at + n, &split);
        SF_ASSERT(split.blocks == (n + SF_BLOCK_SLOTS - 1) / SF_BLOCK_SLOTS); /* no holes */
        split.logits = room->split;
        split.left = NULL;
        sf_ahead_within(&ahead, &split);
        isa->logits(&split);
        for (int32_t j = 0; j < vectors; j++)
            memcpy(room->logits + (size_t)j * (size_t)lane->landmarks + at,
                   room->split + (size_t)j * SF_SPLIT_SLOTS, (size_t)n * sizeof(float));
    }
}

/* s = max(s, softmax of the logits), which are used up */
static void raise(int32_t n, float *logit, float *s)
{
    float max = -INFINITY, sum = 0;
    for (int32_t c = 0; c < n; c++) max = logit[c] > max ? logit[c] : max;
    for (int32_t c = 0; c < n; c++) sum += logit[c] = expf(logit[c] - max);
    for (int32_t c = 0; c < n; c++) {
        float p = logit[c] / sum;
        s[c] = p > s[c] ? p : s[c];
    }
}

static uint32_t bits_of(float s)
{
    uint32_t bits;
    memcpy(&bits, &s, sizeof bits);
    return bits;
}

/* Calls the slots of the `chunks` greatest s by their numbers. */
static void choose(const struct sf_pick_job *job, const struct sf_pick_lane *lane, const float *s)
{
    uint32_t prefix = 0, mask = 0;
    int32_t rank = lane->chunks, *out = lane->slot_out, left = lane->chunks;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int32_t count[256] = { 0 };
        for (int32_t c = 0; c < lane->landmarks; c++)
            if ((bits_of(s[c]) & mask) == prefix) count[bits_of(s[c]) >> shift & 255u]++;
        int digit = 255;
        while (count[digit] < rank) rank -= count[digit--];
        prefix |= (uint32_t)digit << shift;
        mask |= 255u << shift;
    }
    for (int32_t c = 0; c < lane->landmarks; c++) {
        uint32_t key = bits_of(s[c]);
        if (key < prefix || (key == prefix && rank-- <= 0)) continue;
        const unsigned char *page =
            job->pool + (size_t)lane->pages[c / job->layout.page_slots] * job->page_bytes;
        int32_t chunk;
        memcpy(&chunk, page + sf_layout_pos_offset(&job->layout) +
                       (size_t)(c % job->layout.page_slots) * sizeof chunk, sizeof chunk);
        for (int32_t j = 0; j < job->chunk_slots; j++) *out++ = chunk * job->chunk_slots + j;
        left--;
    }
    SF_ASSERT(left == 0);
}

static void pick_lane(const struct sf_cpu_isa *isa, const struct sf_pick_job *job,
                      const struct sf_pick_lane *lane, float *floats)
{
    struct room room = room_of(job, lane, floats);
    int32_t n = lane->landmarks, all = lane->rows * lane->q_heads;
    if (lane->chunks == 0) return;
    memset(room.s, 0, (size_t)n * sizeof *room.s);
    for (int32_t first = 0; first < all; first += room.vectors) {
        int32_t vectors = all - first < room.vectors ? all - first : room.vectors;
        logits(isa, job, lane, first, vectors, &room);
        for (int32_t j = 0; j < vectors; j++)
            raise(n, room.logits + (size_t)j * (size_t)n, room.s);
    }
    choose(job, lane, room.s);
}

struct pass { struct sf_device *device; const struct sf_pick_job *job; };

static void pick_lanes(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct pass *pass = context;
    const struct sf_cpu *cpu = sf_cpu_of(pass->device);
    float *floats = cpu->attention->thread_floats + (size_t)thread * SF_THREAD_FLOATS;
    for (int32_t l = first; l < end; l++)
        pick_lane(cpu->isa, pass->job, &pass->job->lane[l], floats);
}

void sf_cpu_pick(struct sf_device *device, const struct sf_pick_job *job)
{
    struct pass pass = { device, job };
    int64_t cost = 0;
    for (int32_t l = 0; l < job->lanes; l++)
        cost += (int64_t)job->lane[l].landmarks * job->lane[l].rows * job->lane[l].q_heads;
    sf_cpu_share(device, cost * job->layout.k_dim, job->lanes, 1, pick_lanes, &pass);
}
