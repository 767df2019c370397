/* Messages between coordinator and workers survive packing, and hostile bytes do no harm.
 *
 * Round trip: random messages (lists of 0 to 40 records, values over their whole allowed range) are
 * packed and unpacked, and every field must come back equal.  Refusals: each value that the header
 * forbids is refused by the packer, and by the unpacker when its bytes arrive.  Hostile bytes: each
 * prefix of packed messages, tens of thousands of random mutations of them, and pure noise are
 * unpacked; nothing may crash (the sanitizers look on) and what is accepted must be valid, which is
 * shown by packing it again. */
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

static void *list(int32_t count, size_t item_bytes)
{
    void *items = calloc((size_t)count + 1, item_bytes);
    if (!items) abort();
    return items;
}

/* ---- random messages ------------------------------------------------------------------------- */
enum { BIASES_MAX = 400 };              /* of all opens of a step */

static struct sf_wire_sampling random_sampling(struct sf_wire_step *step)
{
    struct sf_wire_sampling p = {
        .temperature = random_below(3) == 0 ? 0 : (double)random_below(1 << 30) / (1 << 29),
        .top_p = (1 + random_below(1000)) / 1000.0, .min_p = random_below(1001) / 1000.0,
        .presence = random_below(5) - 2, .frequency = random_below(9) / 4.0 - 1,
        .repetition = (1 + random_below(30)) / 10.0, .top_k = random_below(50),
        .rng_key = random_u64(), .rng_stream = random_u64(),
        .biases = random_below(2) * random_below(BIASES_MAX / 40)};
    static int32_t used;
    if (step->biases == NULL) {
        step->biases = list(BIASES_MAX, sizeof *step->biases);
        used = 0;
    }
    p.bias = step->biases + used;
    used += p.biases;
    for (int32_t i = 0; i < p.biases; i++)
        p.bias[i] = (struct sf_wire_bias){random_below(1 << 20), (float)random_below(100) - 50};
    return p;
}

static struct sf_wire_step random_step(void)
{
    struct sf_wire_step step = {.id = random_u64(), .batch = random_below(100),
                                .stop = (uint8_t)random_below(2), .closes = random_below(40),
                                .opens = random_below(40), .items = random_below(40),
                                .tokens = random_below(400)};
    step.close = list(step.closes, sizeof *step.close);
    step.open = list(step.opens, sizeof *step.open);
    step.item = list(step.items, sizeof *step.item);
    step.token = list(step.tokens, sizeof *step.token);
    for (int32_t i = 0; i < step.closes; i++) step.close[i] = random_u64();
    for (int32_t i = 0; i < step.tokens; i++) step.token[i] = random_below(INT32_MAX);
    for (int32_t i = 0; i < step.opens; i++) {
        struct sf_wire_open *open = &step.open[i];
        open->seq = random_u64();
        open->prompt = 1 + random_below(1 << 20);
        open->tokens_max = open->prompt + random_below(1 << 20);
        open->sampling = random_sampling(&step);
    }
    for (int32_t i = 0; i < step.items; i++) {
        struct sf_wire_item *item = &step.item[i];
        item->seq = random_u64();
        item->pos = random_below(1 << 24);
        item->rows = 1;
        item->token_first = -1;
        item->logits = (uint8_t)random_below(3);
        if (step.tokens > 0 && random_below(2) == 0) {
            item->token_first = random_below(step.tokens);
            item->rows = 1 + random_below(step.tokens - item->token_first);
        }
    }
    return step;
}

static struct sf_wire_result random_result(void)
{
    struct sf_wire_result result = {.step = random_u64(), .batch = random_below(100),
                                    .samples = random_below(40)};
    result.sample = list(result.samples, sizeof *result.sample);
    for (int32_t i = 0; i < result.samples; i++)
        result.sample[i] = (struct sf_wire_sample){
            .seq = random_u64(), .token = random_below(INT32_MAX),
            .logprob = -(float)random_below(1 << 24) / 1024.0f};
    return result;
}

static struct sf_wire_report random_report(void)
{
    struct sf_wire_report report = {.rank = random_below(1000), .status = random_below(11),
                                    .step = random_u64(), .receipts = random_below(40)};
    report.pages = (int64_t)(random_u64() >> 2);
    report.pages_free = report.pages - (int64_t)(random_u64() % (uint64_t)(report.pages + 1));
    report.text = list(80, 1);
    for (int32_t i = 0, n = random_below(80); i < n; i++) report.text[i] = (char)(' ' + i % 90);
    report.receipt = list(report.receipts, sizeof *report.receipt);
    for (int32_t i = 0; i < report.receipts; i++)
        report.receipt[i] = (struct sf_wire_receipt){
            .seq = random_u64(), .bytes_exact = (int64_t)(random_u64() >> 1),
            .bytes_stored = (int64_t)(random_u64() >> 1), .bytes_peak = random_below(1 << 30),
            .slots_evicted = random_below(1 << 30), .slots_merged = random_below(5),
            .slots_requantised = random_below(5)};
    return report;
}

/* ---- equality -------------------------------------------------------------------------------- */
static int same_sampling(const struct sf_wire_sampling *a, const struct sf_wire_sampling *b)
{
    if (a->temperature != b->temperature || a->top_p != b->top_p || a->min_p != b->min_p ||
        a->presence != b->presence || a->frequency != b->frequency ||
        a->repetition != b->repetition || a->top_k != b->top_k || a->rng_key != b->rng_key ||
        a->rng_stream != b->rng_stream || a->biases != b->biases)
        return 0;
    for (int32_t i = 0; i < a->biases; i++)
        if (a->bias[i].token != b->bias[i].token || a->bias[i].value != b->bias[i].value) return 0;
    return 1;
}

static int same_step(const struct sf_wire_step *a, const struct sf_wire_step *b)
{
    if (a->id != b->id || a->batch != b->batch || a->stop != b->stop || a->closes != b->closes ||
        a->opens != b->opens || a->items != b->items || a->tokens != b->tokens)
        return 0;
    for (int32_t i = 0; i < a->closes; i++)
        if (a->close[i] != b->close[i]) return 0;
    for (int32_t i = 0; i < a->tokens; i++)
        if (a->token[i] != b->token[i]) return 0;
    for (int32_t i = 0; i < a->opens; i++) {
        const struct sf_wire_open *x = &a->open[i], *y = &b->open[i];
        if (x->seq != y->seq || x->prompt != y->prompt || x->tokens_max != y->tokens_max ||
            !same_sampling(&x->sampling, &y->sampling))
            return 0;
    }
    for (int32_t i = 0; i < a->items; i++) {
        const struct sf_wire_item *x = &a->item[i], *y = &b->item[i];
        if (x->seq != y->seq || x->pos != y->pos || x->rows != y->rows ||
            x->token_first != y->token_first || x->logits != y->logits)
            return 0;
    }
    return 1;
}

static int same_result(const struct sf_wire_result *a, const struct sf_wire_result *b)
{
    if (a->step != b->step || a->batch != b->batch || a->samples != b->samples) return 0;
    for (int32_t i = 0; i < a->samples; i++)
        if (a->sample[i].seq != b->sample[i].seq || a->sample[i].token != b->sample[i].token ||
            a->sample[i].logprob != b->sample[i].logprob)
            return 0;
    return 1;
}

static int same_report(const struct sf_wire_report *a, const struct sf_wire_report *b)
{
    if (a->rank != b->rank || a->status != b->status || strcmp(a->text, b->text) != 0 ||
        a->step != b->step || a->pages_free != b->pages_free || a->pages != b->pages ||
        a->receipts != b->receipts)
        return 0;
    for (int32_t i = 0; i < a->receipts; i++) {
        const struct sf_wire_receipt *x = &a->receipt[i], *y = &b->receipt[i];
        if (x->seq != y->seq || x->bytes_exact != y->bytes_exact ||
            x->bytes_stored != y->bytes_stored || x->bytes_peak != y->bytes_peak ||
            x->slots_evicted != y->slots_evicted || x->slots_merged != y->slots_merged ||
            x->slots_requantised != y->slots_requantised)
            return 0;
    }
    return 1;
}

static void round_trip(void)
{
    for (int round = 0; round < 400; round++) {
        void *bytes = NULL;
        size_t count = 0;
        struct sf_wire_step step = random_step(), step_back;
        SF_MUST(sf_wire_pack_step(&step, &bytes, &count));
        SF_MUST(sf_wire_unpack_step(bytes, count, &step_back));
        SF_CHECK(same_step(&step, &step_back));
        free(bytes);
        sf_wire_step_free(&step);
        sf_wire_step_free(&step_back);

        struct sf_wire_result result = random_result(), result_back;
        SF_MUST(sf_wire_pack_result(&result, &bytes, &count));
        SF_MUST(sf_wire_unpack_result(bytes, count, &result_back));
        SF_CHECK(same_result(&result, &result_back));
        free(bytes);
        sf_wire_result_free(&result);
        sf_wire_result_free(&result_back);

        struct sf_wire_report report = random_report(), report_back;
        SF_MUST(sf_wire_pack_report(&report, &bytes, &count));
        SF_MUST(sf_wire_unpack_report(bytes, count, &report_back));
        SF_CHECK(same_report(&report, &report_back));
        free(bytes);
        sf_wire_report_free(&report);
        sf_wire_report_free(&report_back);
    }
}

/* A report without words has the empty text, and too many words are cut, never refused. */
static void report_words(void)
{
    struct sf_wire_report report = {.rank = 3, .pages = 4, .pages_free = 4}, back;
    void *bytes = NULL;
    size_t count = 0;
    SF_MUST(sf_wire_pack_report(&report, &bytes, &count));
    SF_MUST(sf_wire_unpack_report(bytes, count, &back));
    SF_CHECK_STR(back.text, "");
    free(bytes);
    sf_wire_report_free(&back);
    char *words = list(10000, 1);
    memset(words, 'x', 9999);
    report.text = words;
    SF_MUST(sf_wire_pack_report(&report, &bytes, &count));
    SF_MUST(sf_wire_unpack_report(bytes, count, &back));
    SF_CHECK_INT(strlen(back.text), 4096);
    free(bytes);
    free(words);
    sf_wire_report_free(&back);
}

/* ---- refusals -------------------------------------------------------------------------------- */
static void refuse_steps(void)
{
    int32_t token[3] = {1, 2, 3};
    struct sf_wire_bias bias = {3, 1};
    struct sf_wire_open open = {.seq = 1, .prompt = 2, .tokens_max = 4,
                                .sampling = {.top_p = 1, .repetition = 1, .bias = &bias,
                                             .biases = 1}};
    struct sf_wire_item item = {.seq = 1, .rows = 3, .token_first = 0};
    const struct sf_wire_step good = {.opens = 1, .open = &open, .items = 1, .item = &item,
                                      .tokens = 3, .token = token};
    void *bytes = NULL;
    size_t count = 0;
    SF_MUST(sf_wire_pack_step(&good, &bytes, &count));
    free(bytes);
#define REFUSED(change, restore)                                                                   \
    do {                                                                                           \
        change;                                                                                    \
        SF_CHECK_FAILS(sf_wire_pack_step(&good, &bytes, &count), SF_FORMAT);                       \
        restore;                                                                                   \
    } while (0)
    REFUSED(open.prompt = 0, open.prompt = 2);
    REFUSED(open.tokens_max = 1, open.tokens_max = 4);
    REFUSED(open.sampling.temperature = -1, open.sampling.temperature = 0);
    REFUSED(open.sampling.temperature = NAN, open.sampling.temperature = 0);
    REFUSED(open.sampling.temperature = INFINITY, open.sampling.temperature = 0);
    REFUSED(open.sampling.top_p = 0, open.sampling.top_p = 1);
    REFUSED(open.sampling.top_p = 1.5, open.sampling.top_p = 1);
    REFUSED(open.sampling.min_p = NAN, open.sampling.min_p = 0);
    REFUSED(open.sampling.top_k = -1, open.sampling.top_k = 0);
    REFUSED(open.sampling.repetition = 0, open.sampling.repetition = 1);
    REFUSED(open.sampling.frequency = INFINITY, open.sampling.frequency = 0);
    REFUSED(bias.token = -1, bias.token = 3);
    REFUSED(bias.value = NAN, bias.value = 1);
    REFUSED(open.sampling.biases = -1, open.sampling.biases = 1);
    REFUSED(item.pos = -1, item.pos = 0);
    REFUSED(item.rows = 0, item.rows = 3);
    REFUSED(item.rows = 4, item.rows = 3);
    REFUSED(item.rows = INT32_MAX, item.rows = 3);
    REFUSED(item.pos = INT32_MAX, item.pos = 0);
    REFUSED(item.token_first = 1, item.token_first = 0);
    REFUSED(item.token_first = -1, item.token_first = 0);
    REFUSED(item.token_first = -2, item.token_first = 0);
    REFUSED(item.logits = 3, item.logits = 0);
    REFUSED(token[1] = -1, token[1] = 2);
#undef REFUSED
    struct sf_wire_sample sample = {.token = 1, .logprob = NAN};
    struct sf_wire_result result = {.samples = 1, .sample = &sample};
    SF_CHECK_FAILS(sf_wire_pack_result(&result, &bytes, &count), SF_FORMAT);
    sample = (struct sf_wire_sample){.token = -1};
    SF_CHECK_FAILS(sf_wire_pack_result(&result, &bytes, &count), SF_FORMAT);
    struct sf_wire_report report = {.pages = 1, .pages_free = 2};
    SF_CHECK_FAILS(sf_wire_pack_report(&report, &bytes, &count), SF_FORMAT);
    report = (struct sf_wire_report){.status = 99};
    SF_CHECK_FAILS(sf_wire_pack_report(&report, &bytes, &count), SF_FORMAT);
}

/* Bytes made by hand, so that the unpacker meets what the packer would never send. */
static void refuse_bytes(void)
{
    struct sf_wire_step step;
    struct sf_wire_result result;
    struct sf_wire_report report;
    static const unsigned char
        columns[] = {0x5a, 1, 7, 0x62, 2, 0, 0},                 /* item_seq x 1, item_pos x 2 */
        item_past[] = {0x5a, 1, 7, 0x62, 1, 0, 0x6a, 1, 2, 0x72, 1, 0, 0x7a, 1, 0}, /* no tokens */
        logits[] = {0x5a, 1, 7, 0x62, 1, 0, 0x6a, 1, 1, 0x72, 1, 1, 0x7a, 2, 0x80, 2}, /* 256 */
        unknown[] = {0x08, 1, 0x98, 0x06, 1},                    /* field 99 */
        negative[] = {0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, /* batch -1 */
        infinite[] = {0x1a, 1, 7, 0x22, 1, 1, 0x2a, 4, 0, 0, 0x80, 0x7f}, /* log probability inf */
        status[] = {0x10, 99};
    SF_CHECK_FAILS(sf_wire_unpack_step(columns, sizeof columns, &step), SF_FORMAT);
    SF_CHECK_FAILS(sf_wire_unpack_step(item_past, sizeof item_past, &step), SF_FORMAT);
    SF_CHECK_FAILS(sf_wire_unpack_step(logits, sizeof logits, &step), SF_FORMAT);
    SF_CHECK_FAILS(sf_wire_unpack_step(unknown, sizeof unknown, &step), SF_FORMAT);
    SF_CHECK_FAILS(sf_wire_unpack_step(negative, sizeof negative, &step), SF_FORMAT);
    SF_CHECK_FAILS(sf_wire_unpack_result(infinite, sizeof infinite, &result), SF_FORMAT);
    SF_CHECK_FAILS(sf_wire_unpack_report(status, sizeof status, &report), SF_FORMAT);
    SF_MUST(sf_wire_unpack_step(NULL, 0, &step));                /* proto3: all zero is no bytes */
    SF_CHECK_INT(step.items, 0);
    sf_wire_step_free(&step);
}

/* ---- hostile bytes --------------------------------------------------------------------------- */
static int accepted_are_valid(const void *bytes, size_t count)
{
    struct sf_wire_step step;
    struct sf_wire_result result;
    struct sf_wire_report report;
    void *again = NULL;
    size_t again_count = 0;
    int valid = 1;
    if (sf_wire_unpack_step(bytes, count, &step) == SF_OK) {
        valid = valid && sf_wire_pack_step(&step, &again, &again_count) == SF_OK;
        free(again), again = NULL;
        sf_wire_step_free(&step);
    }
    if (sf_wire_unpack_result(bytes, count, &result) == SF_OK) {
        valid = valid && sf_wire_pack_result(&result, &again, &again_count) == SF_OK;
        free(again), again = NULL;
        sf_wire_result_free(&result);
    }
    if (sf_wire_unpack_report(bytes, count, &report) == SF_OK) {
        valid = valid && sf_wire_pack_report(&report, &again, &again_count) == SF_OK;
        free(again), again = NULL;
        sf_wire_report_free(&report);
    }
    return valid;
}

static void *random_packed(int kind, size_t *count_out)
{
    void *bytes = NULL;
    struct sf_wire_step step = random_step();
    struct sf_wire_result result = random_result();
    struct sf_wire_report report = random_report();
    sf_status status = kind == 0   ? sf_wire_pack_step(&step, &bytes, count_out)
                       : kind == 1 ? sf_wire_pack_result(&result, &bytes, count_out)
                                   : sf_wire_pack_report(&report, &bytes, count_out);
    sf_wire_step_free(&step);
    sf_wire_result_free(&result);
    sf_wire_report_free(&report);
    if (status != SF_OK) abort();
    return bytes;
}

static void hostile(void)
{
    int bad = 0;
    for (int kind = 0; kind < 3; kind++) {
        for (int round = 0; round < 20; round++) {
            size_t count = 0;
            unsigned char *bytes = random_packed(kind, &count);
            for (size_t cut = 0; cut <= count; cut += 1 + count / 200) {
                unsigned char *exact = list((int32_t)cut, 1);    /* so that reads past it show */
                memcpy(exact, bytes, cut);
                bad += !accepted_are_valid(exact, cut);
                free(exact);
            }
            for (int mutation = 0; mutation < 500; mutation++) {
                unsigned char *changed = list((int32_t)count, 1);
                memcpy(changed, bytes, count);
                for (int hits = 1 + random_below(4); hits > 0 && count > 0; hits--)
                    changed[random_below((int64_t)count)] = (unsigned char)random_u64();
                bad += !accepted_are_valid(changed, count);
                free(changed);
            }
            free(bytes);
        }
    }
    for (int round = 0; round < 5000; round++) {
        unsigned char noise[64];
        size_t count = (size_t)random_below(64);
        for (size_t i = 0; i < count; i++) noise[i] = (unsigned char)random_u64();
        bad += !accepted_are_valid(noise, count);
    }
    SF_CHECK_INT(bad, 0);
}

static const struct sf_test tests[] = {
    {"random messages come back equal", round_trip},
    {"words of a report", report_words},
    {"forbidden values are not sent", refuse_steps},
    {"forbidden bytes are not taken", refuse_bytes},
    {"cut, mutated and random bytes", hostile},
    {NULL, NULL}};
SF_TEST_MAIN("wire", tests)
