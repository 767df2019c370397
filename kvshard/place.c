/* kvshard/place.c: where the new slots of a mix come to lie.
 *
 * As long as what is copied keeps its order, no byte of it has to move: a slot that is summed takes
 * the place of one that goes, between the same neighbours, and the rest of these become holes.
 * Live slots a b c d e f, and the answer [a] [(b+c+d)/3] [e] [f]:
 *
 *   before   a b c d|e f          written: b.  marked: c, d.  Compacted when lane.h says so.
 *   after    a s . .|e f
 *
 * An answer that changes the order, copies a slot twice, or sums where nothing goes, lays the lane
 * out anew (sf_lane_arrange). */
#include "kvshard/lane.h"

/* Whether the new slots fit into places of old ones, live and in order: target[i] is the place of
 * new slot i. */
static int fits(const int32_t *live, int32_t lives, const int32_t *source, int32_t n,
                int32_t *target)
{
    int32_t at = 0, last = -1;          /* first live slot that is not decided yet */
    for (int32_t i = 0; i < n; i++) {   /* copies first: they cannot choose */
        if (source[i] >= 0 && source[i] <= last) return 0;
        if (source[i] >= 0) last = source[i];
    }
    for (int32_t i = 0, next = 0; i < n; i++) {
        if (source[i] >= 0) {
            while (live[at] != source[i]) at++;
        } else {
            while (next < n && (next < i || source[next] < 0)) next++;
            if (at == lives || (next < n && live[at] == source[next])) return 0;
        }
        target[i] = live[at++];
    }
    return 1;
}

sf_status sf_lane_place(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane, const int32_t *live,
                        const int32_t *source, int32_t n, int32_t *slot_out, int *moved_out)
{
    int32_t lives = lane->live, *written, *gone, writes = 0, goes = 0;
    SF_ASSERT(n <= lives);
    *moved_out = !fits(live, lives, source, n, slot_out);
    if (*moved_out) {
        for (int32_t i = 0; i < n; i++) slot_out[i] = i;
        return sf_lane_arrange(ctx, lane, source, n);
    }
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)n + 1, sizeof *written, &written));
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)lives + 1, sizeof *gone, &gone));
    for (int32_t s = 0, i = 0; s < lives; s++) {
        if (i == n || slot_out[i] != live[s]) {
            gone[goes++] = live[s];
            continue;
        }
        if (source[i] < 0) written[writes++] = live[s];
        i++;
    }
    SF_TRY(sf_lane_own(ctx, lane, written, writes));
    if (goes == 0) return SF_OK;
    SF_TRY(sf_lane_mark(ctx, lane, gone, goes));
    sf_lane_live(ctx->pool, lane, slot_out); /* pages that went have changed the numbers */
    return SF_OK;
}
