/* tests/unit/kvshard/watch.c: the statistics of attention that methods are shown.
 *
 * A toy watches, keeps every second slot when its event comes, and writes down what it was shown.
 * Each mass is held to sums over plain arrays in f64: every row's weights over the slots that the
 * lane had, folded over query heads and rows, for the rows that count.  It must not matter, to the
 * last bit, in which pieces rows come; and mass must stay with its slot through drops, compaction
 * and mixes. */
#include <math.h>
#include <string.h>

#include "tests/unit/kvshard/rig.h"

enum { LAYERS = 2, LANES = 2, PROMPT = 70, TOKENS = 150, KEEP_TAIL = 6, TRIGGER = 60,
       EVENTS = 64, SLOTS = 160 };

/* ---- the toy -------------------------------------------------------------------------------- */
struct event { int32_t layer, head, tokens, slots, pos[SLOTS]; float mass[2][SLOTS]; };
static struct event log_of[EVENTS];
static int32_t events;
static struct sf_watch watch[2];
static int by_mixing;

static sf_status toy_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL;
    plan->edits = SF_EDITS_KEEP | SF_EDITS_MIX;
    plan->watch[0] = watch[0];
    plan->watch[1] = watch[1];
    plan->scratch_bytes = 1 << 20;
    return SF_OK;
}

static sf_status toy_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                               struct sf_foot *foot)
{
    (void)setup;
    foot->slots_lo[0] = 1;
    foot->slots_hi[0] = spot->tokens;
    foot->slots_trigger = TRIGGER;
    return SF_OK;
}

static int stays(int32_t slot, int32_t slots) { return slot % 2 == 0 || slot >= slots - KEEP_TAIL; }

/* The same by a mix: the slots that stay are copied, with the mass that they have. */
static sf_status mix_kept(const struct sf_env *env, struct sf_answer *answer,
                          const struct sf_lane *lane, const int32_t *ids, int32_t n)
{
    size_t room = (size_t)n + 1;
    int32_t *ptr = sf_scratch(env, room * 4), *pos = sf_scratch(env, room * 4);
    float *one = sf_scratch(env, room * 4), *bias = sf_scratch(env, room * 4);
    float *mass = sf_scratch(env, room * 4);
    if (!ptr || !pos || !one || !bias || !mass) return SF_FAIL(SF_NO_MEMORY, "no scratch");
    for (int32_t i = 0; i <= n; i++) ptr[i] = i;
    for (int32_t i = 0; i < n; i++) {
        pos[i] = lane->pos[ids[i]];
        bias[i] = 0;
        one[i] = 1;
        mass[i] = lane->mass[0][ids[i]];
    }
    const struct sf_mix mix = { .slots = n, .ptr = ptr, .src = ids, .k_weight = one,
                                .v_weight = one, .pos = pos, .bias = bias,
                                .mass = { by_mixing == 2 ? mass : NULL, NULL } };
    return sf_edit_mix(answer, lane, &mix);
}

static sf_status toy_compress(const struct sf_env *env, enum sf_when when,
                              const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)when;
    for (int32_t i = 0; i < batch->span[0].lanes; i++) {
        const struct sf_lane *lane = &batch->span[0].lane[i];
        struct event *event = &log_of[events++];
        int32_t *ids = sf_scratch(env, SLOTS * sizeof *ids), n = 0;
        SF_ASSERT(events <= EVENTS && lane->slots <= SLOTS && ids);
        *event = (struct event){ lane->layer, lane->head_global, batch->span[0].tokens,
                                 lane->slots, { 0 }, { { 0 } } };
        memcpy(event->pos, lane->pos, (size_t)lane->slots * sizeof *lane->pos);
        for (int w = 0; w < 2; w++) {
            SF_CHECK((lane->mass[w] != NULL) == (watch[w].fold != SF_FOLD_NONE));
            if (lane->mass[w])
                memcpy(event->mass[w], lane->mass[w], (size_t)lane->slots * sizeof(float));
        }
        for (int32_t s = 0; s < lane->slots; s++)
            if (stays(s, lane->slots)) ids[n++] = s;
        if (by_mixing) SF_TRY(mix_kept(env, answer, lane, ids, n));
        else SF_TRY(sf_edit_keep(answer, lane, (struct sf_list){ .ids = ids, .n = n }));
    }
    return SF_OK;
}

static const struct sf_policy_ops toy_ops = { .plan = toy_plan, .footprint = toy_footprint,
                                              .compress = toy_compress };
static const struct sf_method toy = { .name = "toy_watch", .policy = &toy_ops };

static void run_store(const char *device, int32_t piece, int32_t decode)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    spec.method = &toy;
    spec.device = device;
    spec.lanes = LANES;
    events = 0;
    memset(log_of, 0, sizeof log_of);
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, TOKENS, &seq));
    for (int32_t at = 0, rows; at < TOKENS; at += rows) {
        int32_t left = (at < PROMPT ? PROMPT : TOKENS) - at, most = at < PROMPT ? piece : decode;
        rows = left < most ? left : most;
        SF_MUST(rig_feed(&rig, seq, 0, at, rows));
    }
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

/* ---- the definition ------------------------------------------------------------------------- */
struct plain { int32_t slots, pos[SLOTS]; double mass[2][SLOTS], seen[2][SLOTS]; };

/* The weights that query head `g` of the row at `pos` gives to the slots up to it. */
static void weigh(const struct rig_spec *spec, const struct plain *lane, int32_t layer, int32_t l,
                  int32_t g, int32_t pos, double *weight)
{
    double most = -INFINITY, sum = 0;
    for (int32_t s = 0; s < lane->slots; s++) {
        weight[s] = 0;
        for (int32_t e = 0; e < spec->k_dim; e++)
            weight[s] += (double)rig_value(RIG_Q, 0, layer, l * spec->group + g, pos, e) *
                         (double)rig_value(RIG_K, 0, layer, l, lane->pos[s], e);
        weight[s] /= sqrt(spec->k_dim);
        if (lane->pos[s] > pos) weight[s] = -INFINITY;
        most = fmax(most, weight[s]);
    }
    for (int32_t s = 0; s < lane->slots; s++) sum += weight[s] = exp(weight[s] - most);
    for (int32_t s = 0; s < lane->slots; s++) weight[s] /= sum;
}

static void fold_row(const struct sf_watch *w, int32_t group, double weight[][SLOTS],
                     const struct plain *lane, int32_t pos, double *mass, double *seen)
{
    int32_t visible = 0;
    for (int32_t s = 0; s < lane->slots; s++) visible += lane->pos[s] <= pos;
    for (int32_t s = 0; s < lane->slots; s++) {
        double x = 0;
        if (lane->pos[s] > pos) continue;
        seen[s]++;
        for (int32_t g = 0; g < group; g++)
            x = w->head_fold == SF_FOLD_MAX ? fmax(x, weight[g][s]) : x + weight[g][s];
        if (w->head_fold == SF_FOLD_MEAN) x /= group;
        if (w->fold == SF_FOLD_SUM || w->fold == SF_FOLD_MEAN) mass[s] += x;
        else if (w->fold == SF_FOLD_MAX) mass[s] = fmax(mass[s], x);
        else if (w->fold == SF_FOLD_DECAY) mass[s] = mass[s] * (double)w->decay + x;
        else mass[s] += x < 1.0 / visible;
    }
}

/* Whether the row at `pos` counts, with `live` slots in the lane after it. */
static int counts(const struct sf_watch *w, int32_t pos, int32_t live)
{
    int32_t wanted = pos < PROMPT ? w->prompt_rows : w->decode_rows;
    int32_t ahead = pos < PROMPT ? PROMPT - 1 - pos : TRIGGER > live ? TRIGGER - live : 0;
    return wanted == 0 || (wanted > 0 && ahead < wanted);
}

/* A watch that is made at the event: the rows that count, over what the lane has by then. */
static void score_stored(const struct rig_spec *spec, struct plain *lane, int32_t layer, int32_t l,
                         int w, int32_t tokens, int32_t event_before)
{
    static double weight[4][SLOTS];
    int32_t wanted = tokens > PROMPT ? watch[w].decode_rows : watch[w].prompt_rows;
    memset(lane->mass[w], 0, sizeof lane->mass[w]);
    memset(lane->seen[w], 0, sizeof lane->seen[w]);
    for (int32_t pos = tokens > PROMPT ? PROMPT : 0; pos < tokens; pos++) {
        if (pos < tokens - wanted) continue;
        if (watch[w].flags & SF_WATCH_RESET && pos < event_before) continue;
        for (int32_t g = 0; g < spec->group; g++) weigh(spec, lane, layer, l, g, pos, weight[g]);
        fold_row(&watch[w], spec->group, weight, lane, pos, lane->mass[w], lane->seen[w]);
    }
}

static const struct event *find(int32_t layer, int32_t lane, int32_t tokens)
{
    for (int32_t i = 0; i < events; i++)
        if (log_of[i].layer == layer && log_of[i].head == lane && log_of[i].tokens == tokens)
            return &log_of[i];
    return NULL;
}

static void check_event(const struct plain *lane, const struct event *event)
{
    SF_CHECK(event != NULL);
    if (!event) return;
    SF_CHECK_INT(event->slots, lane->slots);
    for (int32_t s = 0; s < lane->slots; s++) {
        SF_CHECK_INT(event->pos[s], lane->pos[s]);
        for (int w = 0; w < 2; w++)
            if (watch[w].fold != SF_FOLD_NONE) {
                double mass = lane->mass[w][s];
                if (watch[w].fold == SF_FOLD_MEAN && lane->seen[w][s] > 0) mass /= lane->seen[w][s];
                SF_CHECK_NEAR(event->mass[w][s], mass, 1e-5 * (1 + fabs(mass)));
            }
    }
}

static void cut(struct plain *lane)
{
    int32_t n = 0;
    for (int32_t s = 0; s < lane->slots; s++) {
        if (!stays(s, lane->slots)) continue;
        lane->pos[n] = lane->pos[s];
        for (int w = 0; w < 2; w++) {
            lane->mass[w][n] = watch[w].flags & SF_WATCH_RESET ? 0 : lane->mass[w][s];
            lane->seen[w][n] = watch[w].flags & SF_WATCH_RESET ? 0 : lane->seen[w][s];
        }
        n++;
    }
    lane->slots = n;
}

/* Replays the lane token by token against what was written down; returns the events. */
static int32_t check_lane_log(const struct rig_spec *spec, int32_t layer, int32_t l)
{
    static double weight[4][SLOTS];
    struct plain lane = { 0 };
    int32_t fired = 0, before = 0;
    for (int32_t pos = 0; pos < TOKENS; pos++) {
        for (int w = 0; w < 2; w++) lane.mass[w][lane.slots] = lane.seen[w][lane.slots] = 0;
        lane.pos[lane.slots++] = pos;
        for (int32_t g = 0; g < spec->group; g++)
            weigh(spec, &lane, layer, l, g, pos, weight[g]);
        for (int w = 0; w < 2; w++)
            if (watch[w].fold != SF_FOLD_NONE && counts(&watch[w], pos, lane.slots))
                fold_row(&watch[w], spec->group, weight, &lane, pos, lane.mass[w], lane.seen[w]);
        if (pos != PROMPT - 1 && (pos < PROMPT || lane.slots < TRIGGER)) continue;
        for (int w = 0; w < 2; w++)
            if (watch[w].flags & SF_WATCH_STORED)
                score_stored(spec, &lane, layer, l, w, pos + 1, before);
        before = pos + 1;
        check_event(&lane, find(layer, l, pos + 1));
        cut(&lane);
        fired++;
    }
    return fired;
}

static void check_watches(void)
{
    struct rig_spec spec = rig_usual();
    static struct event whole[EVENTS];
    for (by_mixing = 0; by_mixing < 3; by_mixing++) {
        for (int d = 0; d < 2; d++) {
            const char *device = d == 0 ? "ref" : "cpu";
            int32_t fired = 0;
            run_store(device, 512, 1);
            for (int32_t layer = 0; layer < LAYERS; layer++)
                for (int32_t l = 0; l < LANES; l++) fired += check_lane_log(&spec, layer, l);
            SF_CHECK_INT(events, fired);
            SF_CHECK(events >= 3 * LAYERS * LANES);
            memcpy(whole, log_of, sizeof whole);
            run_store(device, 11, 7);
            SF_CHECK(memcmp(whole, log_of, sizeof whole) == 0);
        }
    }
}

/* ---- cases ---------------------------------------------------------------------------------- */
/* Everything ever given, and what the last few rows gave since the last event. */
static void sums(void)
{
    watch[0] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MEAN };
    watch[1] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_SUM, .prompt_rows = 5,
                                  .flags = SF_WATCH_RESET };
    check_watches();
}

static void maxima(void)
{
    watch[0] = (struct sf_watch){ .fold = SF_FOLD_MAX, .head_fold = SF_FOLD_MAX, .prompt_rows = 9,
                                  .decode_rows = 4, .flags = SF_WATCH_RESET };
    watch[1] = (struct sf_watch){ .fold = SF_FOLD_NONE };
    check_watches();
}

static void decays(void)
{
    watch[0] = (struct sf_watch){ .fold = SF_FOLD_DECAY, .head_fold = SF_FOLD_SUM,
                                  .decay = 0.75f };
    watch[1] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MAX,
                                  .prompt_rows = -1 };
    check_watches();
}

static void counts_below_mean(void)
{
    watch[0] = (struct sf_watch){ .fold = SF_FOLD_BELOW_MEAN, .head_fold = SF_FOLD_MEAN,
                                  .prompt_rows = 30, .decode_rows = 30, .flags = SF_WATCH_RESET };
    watch[1] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MEAN,
                                  .decode_rows = -1 };
    check_watches();
}

static void means(void)
{
    watch[0] = (struct sf_watch){ .fold = SF_FOLD_MEAN, .head_fold = SF_FOLD_MEAN };
    watch[1] = (struct sf_watch){ .fold = SF_FOLD_MEAN, .head_fold = SF_FOLD_MAX,
                                  .prompt_rows = 7, .decode_rows = 5, .flags = SF_WATCH_RESET };
    check_watches();
}

/* Scored at the event, by more rows than have come since the last one, or by those alone. */
static void stored(void)
{
    watch[0] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MEAN, .prompt_rows = 40,
                                  .decode_rows = 45, .flags = SF_WATCH_STORED };
    watch[1] = (struct sf_watch){ .fold = SF_FOLD_MEAN, .head_fold = SF_FOLD_SUM, .prompt_rows = 1,
                                  .decode_rows = 50, .flags = SF_WATCH_STORED | SF_WATCH_RESET };
    check_watches();
    watch[0] = (struct sf_watch){ .fold = SF_FOLD_MAX, .head_fold = SF_FOLD_MAX, .prompt_rows = 70,
                                  .decode_rows = 33, .flags = SF_WATCH_STORED };
    watch[1] = (struct sf_watch){ .fold = SF_FOLD_BELOW_MEAN, .head_fold = SF_FOLD_MEAN,
                                  .prompt_rows = -1, .decode_rows = 8, .flags = SF_WATCH_STORED };
    check_watches();
}

/* Nothing is watched: no second pass, no memory for it. */
static void nothing(void)
{
    memset(watch, 0, sizeof watch);
    by_mixing = 0;
    run_store("cpu", 512, 1);
    SF_CHECK(events >= 3 * LAYERS * LANES);
}

static const struct sf_test tests[] = {
    { "sums, of all rows and since the last event", sums },
    { "maxima of the last rows", maxima },
    { "decaying sums", decays },
    { "rows below the mean", counts_below_mean },
    { "means over the rows that saw a slot", means },
    { "queries that are kept for the event", stored },
    { "no watch", nothing },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_watch", tests)
