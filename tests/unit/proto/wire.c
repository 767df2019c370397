/* Messages between coordinator and workers survive packing, and hostile bytes do no harm.
 *
 * Round trip: random messages (lists of 0 to 40 records, values over their whole allowed range) are
 * packed and unpacked, and every field must come back equal.  Warm: buffers and boxes that have
 * seen a message stay as they are when it comes again.  Hostile bytes: each prefix of packed
 * messages, tens of thousands of random mutations of them, and pure noise are unpacked; nothing may
 * crash (the sanitizers look on) and what is accepted must be valid, which is shown by packing it
 * again.  What is forbidden value by value: refuse.c. */
#include <stdlib.h>

#include "proto/wire.h"
#include "tests/check.h"

static uint64_t random_state = 88172645463325252ull;

static uint64_t random_u64(void)        /* xorshift64 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static int32_t random_below(int64_t bound)
{
    return (int32_t)(random_u64() % (uint64_t)bound);
}

/* The lists of messages made here; a test that makes many resets it now and then. */
static struct sf_box made;

static void *list(int32_t count, size_t item_bytes)
{
    void *items = sf_box_take(&made, (size_t)count * item_bytes);
    if (!items) abort();
    memset(items, 0, (size_t)count * item_bytes);
    return items;
}

/* A copy in memory of just its size, so that reads past it show; free() it. */
static unsigned char *exact(const void *bytes, size_t count)
{
    unsigned char *copy = malloc(count > 0 ? count : 1);
    if (!copy) abort();
    if (count > 0) memcpy(copy, bytes, count);
    return copy;
}

/* ---- random messages ------------------------------------------------------------------------- */
static struct sf_wire_sampling random_sampling(void)
{
    struct sf_wire_sampling p = {
        .temperature = random_below(3) == 0 ? 0 : (double)random_below(1 << 30) / (1 << 29),
        .top_p = (1 + random_below(1000)) / 1000.0, .min_p = random_below(1001) / 1000.0,
        .presence = random_below(5) - 2, .frequency = random_below(9) / 4.0 - 1,
        .repetition = (1 + random_below(30)) / 10.0, .top_k = random_below(50),
        .rng_key = random_u64(), .rng_stream = random_u64(),
        .biases = random_below(2) * random_below(10), .scores = (uint8_t)random_below(2),
        .tops = random_below(33)};
    p.bias = list(p.biases, sizeof *p.bias);
    for (int32_t i = 0; i < p.biases; i++)
        p.bias[i] = (struct sf_wire_bias){random_below(1 << 20), (float)random_below(100) - 50};
    return p;
}

static struct sf_wire_open random_open(int32_t tokens)
{
    struct sf_wire_open open = {.seq = random_u64(), .prompt = 10 + random_below(1 << 20),
                                .sampling = random_sampling(), .reused_first = -1,
                                .blocks = random_below(2) * random_below(10),
                                .stack = random_below(33), .against = random_u64()};
    open.tokens_max = open.prompt + random_below(1 << 20);
    open.block = list(open.blocks, sizeof *open.block);
    for (int32_t i = 0; i < open.blocks; i++) open.block[i] = random_below(INT32_MAX);
    open.reused = random_below(open.blocks + 1);
    if (open.reused > 0 && tokens > 0) open.reused_first = random_below(tokens + 1) - 1;
    return open;
}

static struct sf_wire_step random_step(void)
{
    struct sf_wire_step step = {.id = random_u64(), .batch = random_below(100),
                                .stop = (uint8_t)random_below(2),
                                .measure = (uint8_t)random_below(SF_MEASURE_ROOF + 1),
                                .asks = random_below(40),
                                .closes = random_below(40),
                                .drops = random_below(40), .tightens = random_below(9),
                                .opens = random_below(40),
                                .items = random_below(40), .tokens = random_below(400)};
    step.ask = list(step.asks, sizeof *step.ask);
    step.close = list(step.closes, sizeof *step.close);
    step.drop = list(step.drops, sizeof *step.drop);
    step.tighten = list(step.tightens, sizeof *step.tighten);
    step.open = list(step.opens, sizeof *step.open);
    step.item = list(step.items, sizeof *step.item);
    step.token = list(step.tokens, sizeof *step.token);
    for (int32_t i = 0; i < step.asks; i++) step.ask[i] = random_u64();
    for (int32_t i = 0; i < step.closes; i++) step.close[i] = random_u64();
    for (int32_t i = 0; i < step.drops; i++) step.drop[i] = random_below(INT32_MAX);
    for (int32_t i = 0; i < step.tightens; i++)
        step.tighten[i] = (struct sf_wire_tighten){random_u64(), 1 + random_below(1 << 30)};
    for (int32_t i = 0; i < step.tokens; i++) step.token[i] = random_below(INT32_MAX);
    for (int32_t i = 0; i < step.opens; i++) step.open[i] = random_open(step.tokens);
    for (int32_t i = 0; i < step.items; i++) {
        struct sf_wire_item *item = &step.item[i];
        *item = (struct sf_wire_item){.seq = random_u64(), .pos = random_below(1 << 24), .rows = 1,
                                      .token_first = -1, .next = random_below(1 << 20) - 1,
                                      .logits = (uint8_t)random_below(16)};
        if (step.tokens > 0 && random_below(2) == 0) {
            item->token_first = random_below(step.tokens);
            item->rows = 1 + random_below(step.tokens - item->token_first);
        }
    }
    return step;
}

static float random_logprob(void) { return -(float)random_below(1 << 24) / 1024.0f; }

static struct sf_wire_result random_result(void)
{
    struct sf_wire_result result = {.step = random_u64(), .batch = random_below(100),
                                    .samples = random_below(40), .scores = random_below(40)};
    result.sample = list(result.samples, sizeof *result.sample);
    result.score = list(result.scores, sizeof *result.score);
    for (int32_t i = 0; i < result.samples; i++)
        result.sample[i] = (struct sf_wire_sample){.seq = random_u64(),
                                                   .token = random_below(INT32_MAX)};
    for (int32_t i = 0; i < result.scores; i++) {
        struct sf_wire_score *score = &result.score[i];
        *score = (struct sf_wire_score){.seq = random_u64(), .pos = random_below(INT32_MAX),
                                        .token = random_below(INT32_MAX),
                                        .logprob = random_logprob(),
                                        .rank = 1 + random_below(1 << 20),
                                        .kl = (float)random_below(1 << 20) / 4096.0f,
                                        .tops = random_below(2) * random_below(33)};
        score->top = list(score->tops, sizeof *score->top);
        for (int32_t t = 0; t < score->tops; t++)
            score->top[t] = (struct sf_wire_top){random_below(INT32_MAX), random_logprob()};
    }
    return result;
}

static struct sf_wire_report random_report(void)
{
    struct sf_wire_report report = {.rank = random_below(1000), .status = random_below(11),
                                    .step = random_u64(), .receipts = random_below(40),
                                    .signal = (uint8_t)random_below(SF_WIRE_DUMP + 1),
                                    .measured = (uint8_t)random_below(2)};
    report.pages = (int64_t)(random_u64() >> 2);
    report.pages_free = report.pages - (int64_t)(random_u64() % (uint64_t)(report.pages + 1));
    report.kv_bytes_stored = (int64_t)(random_u64() >> 2);
    report.kv_bytes_exact = (int64_t)(random_u64() >> 2);
    report.text = list(81, 1);
    for (int32_t i = 0, n = random_below(80); i < n; i++) report.text[i] = (char)(' ' + i % 90);
    if (report.measured) {
        for (int32_t i = 0; i < SF_PHASES; i++) {
            report.load.seconds[i] = random_below(1 << 30) / 1e6;
            report.load.decode_seconds[i] = random_below(1 << 30) / 1e6;
        }
        report.load.step_seconds = random_below(1 << 30) / 1e6;
        report.load.steps = (int64_t)(random_u64() >> 1);
        report.load.decode_steps = report.load.steps - random_below(2) * (report.load.steps / 2);
        report.load.rows = (int64_t)(random_u64() >> 1);
        report.load.bytes_sent = (int64_t)(random_u64() >> 1);
        report.load.rss_peak_bytes = (int64_t)(random_u64() >> 1);
        report.load.kv_bytes_held = (int64_t)(random_u64() >> 1);
        report.load.read_rate = random_below(1 << 30) * 1e3;
        report.load.flop_rate = random_below(1 << 30) * 1e6;
        report.load.prefill_factor_seconds = random_below(1 << 30) / 1e6;
        report.load.prefill_factor_wait_seconds = random_below(1 << 30) / 1e6;
    }
    report.receipt = list(report.receipts, sizeof *report.receipt);
    for (int32_t i = 0; i < report.receipts; i++)
        report.receipt[i] = (struct sf_wire_receipt){
            .seq = random_u64(), .bytes_exact = (int64_t)(random_u64() >> 1),
            .bytes_stored = (int64_t)(random_u64() >> 1), .bytes_peak = random_below(1 << 30),
            .slots_evicted = random_below(1 << 30), .slots_merged = random_below(5),
            .slots_requantised = random_below(5), .changed = (uint32_t)random_u64()};
    return report;
}

/* ---- equality -------------------------------------------------------------------------------- */
static int same_open(const struct sf_wire_open *x, const struct sf_wire_open *y)
{
    const struct sf_wire_sampling *a = &x->sampling, *b = &y->sampling;
    if (x->seq != y->seq || x->prompt != y->prompt || x->tokens_max != y->tokens_max ||
        x->reused != y->reused || x->reused_first != y->reused_first || x->blocks != y->blocks ||
        x->stack != y->stack || x->against != y->against)
        return 0;
    if (a->temperature != b->temperature || a->top_p != b->top_p || a->min_p != b->min_p ||
        a->presence != b->presence || a->frequency != b->frequency ||
        a->repetition != b->repetition || a->top_k != b->top_k || a->rng_key != b->rng_key ||
        a->rng_stream != b->rng_stream || a->scores != b->scores || a->tops != b->tops ||
        a->biases != b->biases)
        return 0;
    for (int32_t i = 0; i < x->blocks; i++)
        if (x->block[i] != y->block[i]) return 0;
    for (int32_t i = 0; i < a->biases; i++)
        if (a->bias[i].token != b->bias[i].token || a->bias[i].value != b->bias[i].value) return 0;
    return 1;
}

static int same_step(const struct sf_wire_step *a, const struct sf_wire_step *b)
{
    if (a->id != b->id || a->batch != b->batch || a->stop != b->stop || a->measure != b->measure ||
        a->asks != b->asks || a->closes != b->closes || a->drops != b->drops ||
        a->tightens != b->tightens ||
        a->opens != b->opens || a->items != b->items || a->tokens != b->tokens)
        return 0;
    for (int32_t i = 0; i < a->tightens; i++)
        if (a->tighten[i].seq != b->tighten[i].seq || a->tighten[i].tokens != b->tighten[i].tokens)
            return 0;
    for (int32_t i = 0; i < a->asks; i++)
        if (a->ask[i] != b->ask[i]) return 0;
    for (int32_t i = 0; i < a->closes; i++)
        if (a->close[i] != b->close[i]) return 0;
    for (int32_t i = 0; i < a->drops; i++)
        if (a->drop[i] != b->drop[i]) return 0;
    for (int32_t i = 0; i < a->tokens; i++)
        if (a->token[i] != b->token[i]) return 0;
    for (int32_t i = 0; i < a->opens; i++)
        if (!same_open(&a->open[i], &b->open[i])) return 0;
    for (int32_t i = 0; i < a->items; i++) {
        const struct sf_wire_item *x = &a->item[i], *y = &b->item[i];
        if (x->seq != y->seq || x->pos != y->pos || x->rows != y->rows ||
            x->token_first != y->token_first || x->next != y->next || x->logits != y->logits)
            return 0;
    }
    return 1;
}

static int same_result(const struct sf_wire_result *a, const struct sf_wire_result *b)
{
    if (a->step != b->step || a->batch != b->batch || a->samples != b->samples ||
        a->scores != b->scores)
        return 0;
    for (int32_t i = 0; i < a->samples; i++)
        if (a->sample[i].seq != b->sample[i].seq || a->sample[i].token != b->sample[i].token)
            return 0;
    for (int32_t i = 0; i < a->scores; i++) {
        const struct sf_wire_score *x = &a->score[i], *y = &b->score[i];
        if (x->seq != y->seq || x->pos != y->pos || x->token != y->token ||
            x->logprob != y->logprob || x->rank != y->rank || x->kl != y->kl ||
            x->tops != y->tops)
            return 0;
        for (int32_t t = 0; t < x->tops; t++)
            if (x->top[t].token != y->top[t].token || x->top[t].logprob != y->top[t].logprob)
                return 0;
    }
    return 1;
}

static int same_load(const struct sf_wire_load *a, const struct sf_wire_load *b)
{
    for (int32_t i = 0; i < SF_PHASES; i++)
        if (a->seconds[i] != b->seconds[i] || a->decode_seconds[i] != b->decode_seconds[i])
            return 0;
    return a->step_seconds == b->step_seconds && a->steps == b->steps &&
           a->decode_steps == b->decode_steps && a->rows == b->rows &&
           a->bytes_sent == b->bytes_sent && a->rss_peak_bytes == b->rss_peak_bytes &&
           a->kv_bytes_held == b->kv_bytes_held && a->read_rate == b->read_rate &&
           a->flop_rate == b->flop_rate;
}

static int same_report(const struct sf_wire_report *a, const struct sf_wire_report *b)
{
    if (a->rank != b->rank || a->status != b->status || strcmp(a->text, b->text) != 0 ||
        a->step != b->step || a->pages_free != b->pages_free || a->pages != b->pages ||
        a->kv_bytes_stored != b->kv_bytes_stored || a->kv_bytes_exact != b->kv_bytes_exact ||
        a->signal != b->signal || a->measured != b->measured || !same_load(&a->load, &b->load) ||
        a->receipts != b->receipts)
        return 0;
    for (int32_t i = 0; i < a->receipts; i++) {
        const struct sf_wire_receipt *x = &a->receipt[i], *y = &b->receipt[i];
        if (x->seq != y->seq || x->bytes_exact != y->bytes_exact ||
            x->bytes_stored != y->bytes_stored || x->bytes_peak != y->bytes_peak ||
            x->slots_evicted != y->slots_evicted || x->slots_merged != y->slots_merged ||
            x->slots_requantised != y->slots_requantised || x->changed != y->changed)
            return 0;
    }
    return 1;
}

static void round_trip(void)
{
    struct sf_buffer packed = {0};
    struct sf_box box = {0};
    for (int round = 0; round < 400; round++) {
        sf_box_reset(&made);
        struct sf_wire_step step = random_step(), step_back;
        SF_MUST(sf_wire_pack_step(&step, &packed));
        SF_MUST(sf_wire_unpack_step(packed.bytes, packed.count, &box, &step_back));
        SF_CHECK(same_step(&step, &step_back));

        struct sf_wire_result result = random_result(), result_back;
        SF_MUST(sf_wire_pack_result(&result, &packed));
        SF_MUST(sf_wire_unpack_result(packed.bytes, packed.count, &box, &result_back));
        SF_CHECK(same_result(&result, &result_back));

        struct sf_wire_report report = random_report(), report_back;
        SF_MUST(sf_wire_pack_report(&report, &packed));
        SF_MUST(sf_wire_unpack_report(packed.bytes, packed.count, &box, &report_back));
        SF_CHECK(same_report(&report, &report_back));
    }
    sf_box_free(&made);
    sf_box_free(&box);
    sf_buffer_free(&packed);
}

/* Numbers that need most bytes when packed: the room that is made for them suffices. */
static void longest_numbers(void)
{
    enum { COUNT = 30000 };
    struct sf_buffer packed = {0};
    struct sf_box box = {0};
    struct sf_wire_step step = {.id = UINT64_MAX, .closes = COUNT, .tokens = COUNT}, back;
    step.close = list(COUNT, sizeof *step.close);
    step.token = list(COUNT, sizeof *step.token);
    for (int32_t i = 0; i < COUNT; i++) step.close[i] = UINT64_MAX, step.token[i] = INT32_MAX;
    SF_MUST(sf_wire_pack_step(&step, &packed));
    SF_MUST(sf_wire_unpack_step(packed.bytes, packed.count, &box, &back));
    SF_CHECK(packed.count > 15 * COUNT);
    SF_CHECK(same_step(&step, &back));
    sf_box_free(&made);
    sf_box_free(&box);
    sf_buffer_free(&packed);
}

/* A report without words has the empty text, and too many words are cut, never refused. */
static void report_words(void)
{
    struct sf_wire_report report = {.rank = 3, .pages = 4, .pages_free = 4}, back;
    struct sf_buffer packed = {0};
    struct sf_box box = {0};
    SF_MUST(sf_wire_pack_report(&report, &packed));
    SF_MUST(sf_wire_unpack_report(packed.bytes, packed.count, &box, &back));
    SF_CHECK_STR(back.text, "");
    report.text = list(10000, 1);
    memset(report.text, 'x', 9999);
    SF_MUST(sf_wire_pack_report(&report, &packed));
    SF_MUST(sf_wire_unpack_report(packed.bytes, packed.count, &box, &back));
    SF_CHECK_INT(strlen(back.text), 4096);
    sf_box_free(&made);
    sf_box_free(&box);
    sf_buffer_free(&packed);
}

/* ---- warm ------------------------------------------------------------------------------------ */
static void warm(void)
{
    struct sf_wire_step step = random_step(), step_back;
    struct sf_wire_result result = random_result(), result_back;
    struct sf_wire_report report = random_report(), report_back;
    struct sf_buffer packed[3] = {{0}}, packed_first[3];
    struct sf_box box[3] = {{0}}, box_first[3];
    for (int round = 0; round < 102; round++) {
        SF_MUST(sf_wire_pack_step(&step, &packed[0]));
        SF_MUST(sf_wire_pack_result(&result, &packed[1]));
        SF_MUST(sf_wire_pack_report(&report, &packed[2]));
        SF_MUST(sf_wire_unpack_step(packed[0].bytes, packed[0].count, &box[0], &step_back));
        SF_MUST(sf_wire_unpack_result(packed[1].bytes, packed[1].count, &box[1], &result_back));
        SF_MUST(sf_wire_unpack_report(packed[2].bytes, packed[2].count, &box[2], &report_back));
        SF_CHECK(same_step(&step, &step_back) && same_result(&result, &result_back) &&
                 same_report(&report, &report_back));
        if (round == 1) memcpy(packed_first, packed, sizeof packed);
        if (round == 1) memcpy(box_first, box, sizeof box);
        for (int i = 0; i < 3 && round > 1; i++) {
            SF_CHECK(packed[i].bytes == packed_first[i].bytes);
            SF_CHECK_INT(packed[i].capacity, packed_first[i].capacity);
            SF_CHECK(box[i].block == box_first[i].block && box[i].beside == NULL);
            SF_CHECK_INT(box[i].bytes, box_first[i].bytes);
        }
    }
    for (int i = 0; i < 3; i++) sf_buffer_free(&packed[i]);
    for (int i = 0; i < 3; i++) sf_box_free(&box[i]);
    sf_box_free(&made);
}

/* ---- hostile bytes --------------------------------------------------------------------------- */
static int accepted_are_valid(const void *bytes, size_t count)
{
    static struct sf_box box;           /* of the whole program, as the buffer is */
    static struct sf_buffer again;
    struct sf_wire_step step;
    struct sf_wire_result result;
    struct sf_wire_report report;
    int valid = 1;
    if (sf_wire_unpack_step(bytes, count, &box, &step) == SF_OK)
        valid = valid && sf_wire_pack_step(&step, &again) == SF_OK;
    if (sf_wire_unpack_result(bytes, count, &box, &result) == SF_OK)
        valid = valid && sf_wire_pack_result(&result, &again) == SF_OK;
    if (sf_wire_unpack_report(bytes, count, &box, &report) == SF_OK)
        valid = valid && sf_wire_pack_report(&report, &again) == SF_OK;
    return valid;
}

static void random_packed(int kind, struct sf_buffer *packed)
{
    sf_box_reset(&made);
    struct sf_wire_step step = random_step();
    struct sf_wire_result result = random_result();
    struct sf_wire_report report = random_report();
    sf_status status = kind == 0   ? sf_wire_pack_step(&step, packed)
                       : kind == 1 ? sf_wire_pack_result(&result, packed)
                                   : sf_wire_pack_report(&report, packed);
    if (status != SF_OK) abort();
}

static void hostile(void)
{
    int bad = 0;
    struct sf_buffer packed = {0};
    for (int kind = 0; kind < 3; kind++) {
        for (int round = 0; round < 20; round++) {
            random_packed(kind, &packed);
            for (size_t cut = 0; cut <= packed.count; cut += 1 + packed.count / 200) {
                unsigned char *start = exact(packed.bytes, cut);
                bad += !accepted_are_valid(start, cut);
                free(start);
            }
            for (int mutation = 0; mutation < 500; mutation++) {
                unsigned char *changed = exact(packed.bytes, packed.count);
                for (int hits = 1 + random_below(4); hits > 0 && packed.count > 0; hits--)
                    changed[random_below((int64_t)packed.count)] = (unsigned char)random_u64();
                bad += !accepted_are_valid(changed, packed.count);
                free(changed);
            }
        }
    }
    for (int round = 0; round < 5000; round++) {
        unsigned char noise[64];
        size_t count = (size_t)random_below(64);
        for (size_t i = 0; i < count; i++) noise[i] = (unsigned char)random_u64();
        bad += !accepted_are_valid(noise, count);
    }
    SF_CHECK_INT(bad, 0);
    sf_buffer_free(&packed);
    sf_box_free(&made);
}

static const struct sf_test tests[] = {
    {"random messages come back equal", round_trip},
    {"the longest numbers fit", longest_numbers},
    {"words of a report", report_words},
    {"warm messages take no memory", warm},
    {"cut, mutated and random bytes", hostile},
    {NULL, NULL}};
SF_TEST_MAIN("wire", tests)
