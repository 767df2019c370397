/* kvshard/service.c: what a hook may call: step memory, slots decoded, deterministic choices. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "comm/comm.h"
#include "kvshard/store_impl.h"

/* ---- step memory ---------------------------------------------------------------------------- */
static struct sf_store_method *method_of(const struct sf_env *env)
{
    return (struct sf_store_method *)(uintptr_t)env; /* env is its first member, and ours */
}

/* Counts against what the plan declared, so that the account of memory stays true. */
static int take_allowance(struct sf_store_method *method, size_t bytes)
{
    if (method->scratch_left < 0 || bytes > (size_t)method->scratch_left) return 0;
    method->scratch_left -= (int64_t)bytes;
    return 1;
}

void *sf_scratch(const struct sf_env *env, size_t bytes)
{
    struct sf_store_method *method = method_of(env);
    void *block;
    if (!take_allowance(method, bytes)) return NULL;
    return sf_scratch_take(&method->store->host, bytes, &block) == SF_OK ? block : NULL;
}

struct sf_buf *sf_scratch_buf(const struct sf_env *env, size_t bytes)
{
    struct sf_store_method *method = method_of(env);
    struct sf_buf *buf;
    if (!take_allowance(method, bytes)) return NULL;
    if (sf_scratch_items(&method->store->host, 1, sizeof *buf, &buf) != SF_OK) return NULL;
    if (sf_scratch_take(&method->store->dev, bytes, &buf->data) != SF_OK) return NULL;
    buf->bytes = bytes;
    return buf;
}

/* ---- slots ---------------------------------------------------------------------------------- */
sf_status sf_lane_read(const struct sf_lane *lane, struct sf_list slots, int pre_rope,
                       struct sf_buf *k, struct sf_buf *v)
{
    const struct sf_answer *answer = lane->store->answer;
    if (!answer || lane < answer->shown || lane >= answer->shown + answer->views)
        return SF_FAIL(SF_INVALID, "read of a lane that no running hook was shown");
    if (answer->selects)
        return SF_FAIL(SF_UNSUPPORTED, "%s: reading slots in select() is not built yet",
                       answer->method->entry->method->name);
    if (pre_rope && !(answer->method->entry->plan.needs & SF_NEED_PRE_ROPE))
        return SF_FAIL(SF_INVALID, "%s: keys before RoPE, which its plan does not ask for",
                       answer->method->entry->method->name);
    if (slots.n > 0 && !slots.ids)
        return SF_FAIL(SF_UNSUPPORTED, "reading slots by a list on the device is not built yet");
    struct sf_store *store = answer->store;
    const struct sf_view *view = &answer->view[lane - answer->shown];
    const struct sf_layout *layout = &store->layer[view->layer].layout;
    int32_t n = slots.n == -1 ? lane->slots : slots.n, *ids;
    if (n < 0) return SF_FAIL(SF_INVALID, "read of %d slots", n);
    if (k && k->bytes < (size_t)n * (size_t)layout->k_dim * sizeof(float))
        return SF_FAIL(SF_INVALID, "%zu B have no room for the keys of %d slots", k->bytes, n);
    if (v && v->bytes < (size_t)n * (size_t)layout->v_dim * sizeof(float))
        return SF_FAIL(SF_INVALID, "%zu B have no room for the values of %d slots", v->bytes, n);
    struct sf_scratch_mark mark = sf_scratch_mark(&store->host);
    SF_TRY(sf_scratch_items(&store->host, (size_t)n, sizeof *ids, &ids));
    for (int32_t i = 0; i < n; i++) {
        int32_t s = slots.n == -1 ? i : slots.ids[i];
        if (s < 0 || s >= lane->slots)
            return SF_FAIL(SF_INVALID, "read of slot %d of layer %d head %d, which has %d", s,
                           lane->layer, lane->head_global, lane->slots);
        ids[i] = s;
    }
    struct sf_slots all = sf_view_slots(view);
    sf_slots_decode(store, &all, ids, n, k ? k->data : NULL, v ? v->data : NULL);
    if (pre_rope && k) {
        for (int32_t i = 0; i < n; i++) ids[i] = lane->pos[ids[i]];
        SF_TRY(sf_turn(store, view->layer, k->data, ids, n, 1));
    }
    sf_scratch_back(&store->host, mark);        /* a hook may read many times */
    return SF_OK;
}

sf_status sf_inner_score(const struct sf_env *env, const struct sf_span *span, float *out)
{
    (void)span; (void)out;
    return SF_FAIL(SF_UNSUPPORTED, "%s refines no other method: refining is not built yet",
                   method_of(env)->entry->method->name);
}

sf_status sf_probe(const struct sf_span *span, const struct sf_lane *lane, struct sf_list rows,
                   const struct sf_watch *how, struct sf_buf *out)
{
    (void)span; (void)lane; (void)rows; (void)how; (void)out;
    return SF_FAIL(SF_UNSUPPORTED, "probing queries against slots is not built yet");
}

/* ---- deterministic choices ------------------------------------------------------------------ */
/* Keys that order as the floats do; NaN below everything, -0 equal to 0. */
static uint32_t order_key(float value)
{
    uint32_t bits;
    if (isnan(value)) return 0;
    if (value == 0.0f) value = 0.0f;    /* -0 becomes 0 */
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The k-th largest key is found digit by digit, so the cost is 4 passes whatever the scores are;
 * then everything above it is taken, and of the equal ones the lowest indices. */
int32_t sf_top_k(const float *score, int32_t n, int32_t k, int32_t *index_out)
{
    SF_ASSERT(n >= 0 && k >= 0);
    if (k > n) k = n;
    if (k == 0) return 0;
    uint32_t prefix = 0, mask = 0;
    int32_t rank = k;                   /* of the key we look for, among those with the prefix */
    for (int shift = 24; shift >= 0; shift -= 8) {
        int32_t count[256] = { 0 };
        for (int32_t i = 0; i < n; i++) {
            uint32_t key = order_key(score[i]);
            if ((key & mask) == prefix) count[key >> shift & 255u]++;
        }
        int digit = 255;
        while (count[digit] < rank) rank -= count[digit--];
        prefix |= (uint32_t)digit << shift;
        mask |= 255u << shift;
    }
    int32_t out = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t key = order_key(score[i]);
        if (key > prefix || (key == prefix && rank-- > 0)) index_out[out++] = i;
    }
    SF_ASSERT(out == k);
    return out;
}

int64_t sf_fixed(double x)
{
    if (isnan(x)) return 0;
    double scaled = x * 4294967296.0;
    if (scaled >= 9223372036854775808.0) return INT64_MAX;
    if (scaled <= -9223372036854775808.0) return INT64_MIN;
    return llrint(scaled);
}

sf_status sf_reduce_i64(const struct sf_env *env, int64_t *value, int32_t n, enum sf_fold fold)
{
    struct sf_store *store = method_of(env)->store;
    const char *name = method_of(env)->entry->method->name;
    size_t bytes = (size_t)n * sizeof *value;
    int64_t *all;
    if (n < 0 || bytes > (size_t)(env->plan->reduce_bytes > 0 ? env->plan->reduce_bytes : 0))
        return SF_FAIL(SF_INVALID, "%s: a reduction of %d numbers, which its plan does not declare",
                       name, n);
    if (fold != SF_FOLD_SUM && fold != SF_FOLD_MAX)
        return SF_FAIL(SF_INVALID, "%s: a reduction that is neither a sum nor a maximum", name);
    if (env->setup->tp_size == 1) return SF_OK; /* a sum or maximum over one rank */
    if (!store->tensor)
        return SF_FAIL(SF_INTERNAL, "%s: a reduction without the tensor ranks", name);
    size_t ranks = (size_t)sf_comm_size(store->tensor);
    SF_TRY(sf_scratch_items(&store->host, ranks, bytes, &all));
    SF_TRY(sf_comm_allgather(store->tensor, value, bytes, all));
    for (int32_t i = 0; i < n; i++) {
        value[i] = all[i];
        for (size_t r = 1; r < ranks; r++) {
            int64_t other = all[r * (size_t)n + (size_t)i];
            if (fold == SF_FOLD_SUM) value[i] += other;
            else if (other > value[i]) value[i] = other;
        }
    }
    return SF_OK;
}

void sf_share_out(const int64_t *need, int32_t n, int64_t pool, int64_t *share_out)
{
    int64_t total = 0, left = pool;
    SF_ASSERT(n >= 1 && pool >= 0);
    for (int32_t i = 0; i < n; i++) {
        SF_ASSERT(need[i] >= 0 && (need[i] == 0 || pool <= INT64_MAX / need[i]));
        total += need[i];
    }
    for (int32_t i = 0; i < n; i++)
        left -= share_out[i] = total > 0 ? pool * need[i] / total : pool / n;
    if (total == 0) {
        for (int32_t i = 0; i < left; i++) share_out[i]++;
        return;
    }
    for (int64_t last = -1, last_index = -1; left > 0; left--) { /* remainders, falling */
        int64_t best = -1, best_index = -1;
        for (int32_t i = 0; i < n; i++) {
            int64_t rest = pool * need[i] % total;
            int before = last_index < 0 || rest < last || (rest == last && i > last_index);
            if (before && rest > best) {
                best = rest;
                best_index = i;
            }
        }
        SF_ASSERT(best_index >= 0);
        share_out[best_index]++;
        last = best;
        last_index = best_index;
    }
}
