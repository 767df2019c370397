/* Each value that proto/wire.h forbids is refused on both sides.
 *
 * Packing: a good message in which one member at a time is set to what it must not be, and back.
 * Unpacking: the packer would never send such bytes, so they are written here field by field, as
 * proto/sheaf.proto numbers them: a good message, and then the same with one field's value, or
 * number of values, changed. */
#include "kernels/kernels.h"
#include "proto/columns.h"
#include "proto/wire.h"
#include "tests/check.h"

_Static_assert((int)SF_WIRE_TOPS_MAX == (int)SF_CHOICE_TOPS_MAX, "what is asked for is found");

/* ---- packing --------------------------------------------------------------------------------- */
static struct sf_buffer packed;

#define REFUSED_BY(pack, message, member, bad)                                                     \
    do {                                                                                           \
        __typeof__(member) good_ = (member);                                                       \
        (member) = (bad);                                                                          \
        SF_CHECK_FAILS(pack(&(message), &packed), SF_FORMAT);                                      \
        (member) = good_;                                                                          \
        SF_CHECK_OK(pack(&(message), &packed));                                                    \
    } while (0)

static void steps_not_sent(void)
{
    int32_t token[3] = {1, 2, 3}, block[2] = {5, 6}, drop = 4;
    struct sf_wire_bias bias = {3, 1};
    struct sf_wire_open open = {.seq = 1, .prompt = 2, .tokens_max = 4,
                                .sampling = {.top_p = 1, .repetition = 1, .bias = &bias,
                                             .biases = 1, .scores = 1, .tops = 32},
                                .reused = 1, .blocks = 2, .block = block, .reused_first = 2};
    struct sf_wire_item item = {.seq = 1, .rows = 3, .logits = 3, .next = -1};
    struct sf_wire_tighten tighten = {.seq = 1, .tokens = 1};
    struct sf_wire_step step = {.opens = 1, .open = &open, .items = 1, .item = &item, .tokens = 3,
                                .token = token, .drop = &drop, .drops = 1, .measure = 1,
                                .tighten = &tighten, .tightens = 1};
#define REFUSED(member, bad) REFUSED_BY(sf_wire_pack_step, step, member, bad)
    REFUSED(tighten.tokens, 0);
    REFUSED(step.tightens, -1);
    REFUSED(step.batch, -1);
    REFUSED(step.stop, 2);
    REFUSED(step.measure, SF_MEASURE_ROOF + 1);
    REFUSED(step.asks, -1);
    REFUSED(step.closes, -1);
    REFUSED(step.drops, -1);
    REFUSED(drop, -1);
    REFUSED(open.prompt, 0);
    REFUSED(open.tokens_max, 1);
    REFUSED(open.reused, -1);
    REFUSED(open.reused, 0);            /* and yet it has their tokens */
    REFUSED(open.reused, 3);
    REFUSED(open.blocks, 3);            /* more than tokens */
    REFUSED(open.blocks, -1);
    REFUSED(block[1], -1);
    REFUSED(open.reused_first, -2);
    REFUSED(open.reused_first, 3);
    REFUSED(open.stack, -1);
    REFUSED(open.against, 1);           /* with itself */
    REFUSED(open.sampling.temperature, -1);
    REFUSED(open.sampling.temperature, NAN);
    REFUSED(open.sampling.temperature, INFINITY);
    REFUSED(open.sampling.top_p, 0);
    REFUSED(open.sampling.top_p, 1.5);
    REFUSED(open.sampling.min_p, NAN);
    REFUSED(open.sampling.top_k, -1);
    REFUSED(open.sampling.repetition, 0);
    REFUSED(open.sampling.frequency, INFINITY);
    REFUSED(open.sampling.scores, 2);
    REFUSED(open.sampling.tops, -1);
    REFUSED(open.sampling.tops, 33);
    REFUSED(open.sampling.biases, -1);
    REFUSED(bias.token, -1);
    REFUSED(bias.value, NAN);
    REFUSED(item.pos, -1);
    REFUSED(item.pos, INT32_MAX);
    REFUSED(item.rows, 0);
    REFUSED(item.rows, 4);
    REFUSED(item.rows, INT32_MAX);
    REFUSED(item.token_first, 1);
    REFUSED(item.token_first, -1);
    REFUSED(item.token_first, -2);
    REFUSED(item.logits, 16);
    REFUSED(item.next, -2);
    REFUSED(token[1], -1);
#undef REFUSED
    sf_buffer_free(&packed);
}

static void results_not_sent(void)
{
    struct sf_wire_top top = {.token = 1, .logprob = -1};
    struct sf_wire_score score = {.logprob = -2, .rank = 2, .tops = 1, .top = &top};
    struct sf_wire_sample sample = {.token = 1};
    struct sf_wire_result result = {.samples = 1, .sample = &sample, .scores = 1, .score = &score};
#define REFUSED(member, bad) REFUSED_BY(sf_wire_pack_result, result, member, bad)
    REFUSED(result.batch, -1);
    REFUSED(result.samples, -1);
    REFUSED(result.scores, -1);
    REFUSED(sample.token, -1);
    REFUSED(score.pos, -1);
    REFUSED(score.token, -1);
    REFUSED(score.logprob, 0.5f);
    REFUSED(score.logprob, NAN);
    REFUSED(score.logprob, -INFINITY);
    REFUSED(score.rank, 0);
    REFUSED(score.kl, -1e-6f);
    REFUSED(score.kl, NAN);
    REFUSED(score.kl, INFINITY);
    REFUSED(score.tops, -1);
    REFUSED(score.tops, 33);
    REFUSED(top.token, -1);
    REFUSED(top.logprob, 0.5f);
    REFUSED(top.logprob, -INFINITY);
#undef REFUSED
    score.logprob = 1e-6f;              /* a sum's rounding */
    SF_CHECK_OK(sf_wire_pack_result(&result, &packed));
    sf_buffer_free(&packed);
}

static void reports_not_sent(void)
{
    struct sf_wire_receipt receipt = {.seq = 1};
    struct sf_wire_report report = {.pages = 2, .pages_free = 1, .measured = 1, .receipts = 1,
                                    .receipt = &receipt};
#define REFUSED(member, bad) REFUSED_BY(sf_wire_pack_report, report, member, bad)
    REFUSED(report.rank, -1);
    REFUSED(report.status, 99);
    REFUSED(report.pages_free, 3);
    REFUSED(report.pages_free, -1);
    REFUSED(report.kv_bytes_stored, -1);
    REFUSED(report.kv_bytes_exact, -1);
    REFUSED(report.signal, SF_WIRE_DUMP + 1);
    REFUSED(report.measured, 2);
    REFUSED(report.load.seconds[SF_PHASE_OTHER], -1);
    REFUSED(report.load.seconds[SF_PHASE_GEMM], NAN);
    REFUSED(report.load.step_seconds, INFINITY);
    REFUSED(report.load.decode_seconds[SF_PHASE_GEMM], -1);
    REFUSED(report.load.read_rate, -1);
    REFUSED(report.load.read_rate, NAN);
    REFUSED(report.load.flop_rate, -1);
    REFUSED(report.load.flop_rate, INFINITY);
    REFUSED(report.load.prefill_factor_seconds, -1);
    REFUSED(report.load.prefill_factor_seconds, NAN);
    REFUSED(report.load.prefill_factor_wait_seconds, -1);
    REFUSED(report.load.prefill_factor_wait_seconds, INFINITY);
    REFUSED(report.load.steps, -1);
    REFUSED(report.load.decode_steps, -1);
    REFUSED(report.load.decode_steps, 1);               /* of no steps */
    REFUSED(report.load.rows, -1);
    REFUSED(report.load.bytes_sent, -1);
    REFUSED(report.load.rss_peak_bytes, -1);
    REFUSED(report.load.kv_bytes_held, -1);
    REFUSED(report.receipts, -1);
    REFUSED(receipt.bytes_peak, -1);
    REFUSED(receipt.slots_requantised, -1);
#undef REFUSED
    report.measured = 0;
    report.load.steps = -1;             /* not measured: not looked at, not sent */
    SF_CHECK_OK(sf_wire_pack_report(&report, &packed));
    sf_buffer_free(&packed);
}

/* ---- bytes by hand --------------------------------------------------------------------------- */
/* A field: PLAIN, or a column whose values are all equal.  Kinds as in sheaf.proto. */
enum kind { PLAIN, VARINT, ZIGZAG, REAL, FIXED, SHORT_REAL };
struct field { int number; enum kind kind; int count; double value; };
struct bytes { unsigned char at[1024]; size_t count; };

static void put(struct bytes *out, const void *bytes, size_t count)
{
    SF_ASSERT(count <= sizeof out->at - out->count);
    memcpy(out->at + out->count, bytes, count);
    out->count += count;
}

static void put_varint(struct bytes *out, uint64_t value)
{
    for (; value > 127; value >>= 7) put(out, &(unsigned char){(unsigned char)(value | 128)}, 1);
    put(out, &(unsigned char){(unsigned char)value}, 1);
}

static void put_value(struct bytes *out, const struct field *field)
{
    int64_t whole = field->kind == REAL || field->kind == SHORT_REAL ? 0 : (int64_t)field->value;
    float real = (float)field->value;
    switch (field->kind) {
    case PLAIN:
    case VARINT: put_varint(out, (uint64_t)whole); break;
    case ZIGZAG: put_varint(out, (uint64_t)(whole < 0 ? -2 * whole - 1 : 2 * whole)); break;
    case REAL: put(out, &field->value, 8); break;
    case FIXED: put(out, &whole, 8); break;
    case SHORT_REAL: put(out, &real, 4); break;
    }
}

static void put_field(struct bytes *out, const struct field *field)
{
    struct bytes values = {.count = 0};
    for (int i = 0; i < field->count; i++) put_value(&values, field);
    if (field->kind == PLAIN) {
        put_varint(out, (uint64_t)field->number << 3);
    } else {
        put_varint(out, (uint64_t)field->number << 3 | 2);
        put_varint(out, values.count);
    }
    put(out, values.at, values.count);
}

static struct sf_box box;

static sf_status take_step(const struct bytes *bytes)
{
    struct sf_wire_step step;
    return sf_wire_unpack_step(bytes->at, bytes->count, &box, &step);
}

static sf_status take_result(const struct bytes *bytes)
{
    struct sf_wire_result result;
    return sf_wire_unpack_result(bytes->at, bytes->count, &box, &result);
}

static sf_status take_report(const struct bytes *bytes)
{
    struct sf_wire_report report;
    return sf_wire_unpack_report(bytes->at, bytes->count, &box, &report);
}

/* The good message is taken; with each of the bad fields in place of its own, or of none, not. */
static void check_fields(sf_status (*take)(const struct bytes *), const struct field *good,
                         size_t goods, const struct field *bad, size_t bads)
{
    for (size_t b = 0; b <= bads; b++) {
        struct bytes bytes = {.count = 0};
        int replaced = b == bads;
        for (size_t g = 0; g < goods; g++) {
            int same = b < bads && bad[b].number == good[g].number;
            put_field(&bytes, same ? &bad[b] : &good[g]);
            replaced |= same;
        }
        if (!replaced) put_field(&bytes, &bad[b]);
        sf_status status = take(&bytes);
        if (status == (b == bads ? SF_OK : SF_FORMAT)) continue;
        sf_test_fail(__FILE__, __LINE__, "field %d x %d = %g gave '%s' %s",
                     b < bads ? bad[b].number : 0, b < bads ? bad[b].count : 0,
                     b < bads ? bad[b].value : 0.0, sf_status_name(status),
                     status != SF_OK ? sf_error_text() : "");
    }
    CU_PASS("fields");
}

/* One or two of everything; a column's good kind and count hold for its bad values too. */
static void steps_not_taken(void)
{
    static const struct field good[] = {
        {1, PLAIN, 1, 7}, {2, PLAIN, 1, 1}, {4, PLAIN, 1, 1}, {5, VARINT, 1, 3}, {6, VARINT, 2, 9},
        {7, VARINT, 3, 11}, {8, VARINT, 1, 1}, {9, VARINT, 1, 0}, {10, VARINT, 1, 3},
        {11, ZIGZAG, 1, 0}, {12, ZIGZAG, 1, -1}, {13, VARINT, 1, 3}, {16, VARINT, 1, 1},
        {17, VARINT, 1, 4}, {18, VARINT, 1, 8}, {19, VARINT, 1, 1}, {20, ZIGZAG, 1, 2},
        {21, REAL, 1, 1}, {22, REAL, 1, 1}, {23, REAL, 1, 0}, {24, REAL, 1, 0}, {25, REAL, 1, 0},
        {26, REAL, 1, 1}, {27, VARINT, 1, 0}, {28, FIXED, 1, 5}, {29, FIXED, 1, 5},
        {30, VARINT, 1, 1}, {31, VARINT, 1, 32}, {32, VARINT, 1, 2}, {33, VARINT, 1, 2},
        {34, VARINT, 2, 1}, {35, SHORT_REAL, 2, 1}, {36, VARINT, 2, 3},
        {37, VARINT, 1, 2}, {38, VARINT, 1, 5}, {39, VARINT, 2, 1}};
    static const struct field bad[] = {
        {2, PLAIN, 1, -1}, {6, VARINT, 2, -1}, {7, VARINT, 3, -1}, {7, VARINT, 2, 11}, /* rows */
        {9, VARINT, 1, -1}, {9, VARINT, 2, 0}, {10, VARINT, 1, 0}, {10, VARINT, 1, 4},
        {11, ZIGZAG, 1, -1}, {11, ZIGZAG, 1, 1}, {12, ZIGZAG, 1, -2}, {12, ZIGZAG, 0, 0},
        {13, VARINT, 1, 16}, {13, VARINT, 1, 256}, {16, VARINT, 2, 1}, {17, VARINT, 1, 0},
        {17, VARINT, 1, 1}, {18, VARINT, 1, 3}, {19, VARINT, 1, -1}, {19, VARINT, 1, 3},
        {19, VARINT, 1, 0}, {20, ZIGZAG, 1, -2}, {20, ZIGZAG, 1, 3}, {20, ZIGZAG, 0, 0},
        {21, REAL, 1, -1}, {22, REAL, 1, 2}, {23, REAL, 1, -1}, {24, REAL, 1, INFINITY},
        {26, REAL, 1, 0}, {27, VARINT, 1, -1}, {28, FIXED, 2, 5}, {30, VARINT, 1, 2},
        {30, VARINT, 1, 257}, {31, VARINT, 1, 33}, {31, VARINT, 1, -1}, {32, VARINT, 1, 1},
        {32, VARINT, 1, 3}, {32, VARINT, 1, -1}, {33, VARINT, 1, 1}, {33, VARINT, 1, 3},
        {33, VARINT, 1, -1}, {34, VARINT, 2, -1}, {34, VARINT, 1, 1}, {35, SHORT_REAL, 2, INFINITY},
        {36, VARINT, 2, -1}, {36, VARINT, 1, 3}, {36, VARINT, 3, 3}, {37, VARINT, 1, -1},
        {37, VARINT, 2, 2}, {38, VARINT, 1, 1}, {38, VARINT, 0, 0}, {99, PLAIN, 1, 1}};
    check_fields(take_step, good, sizeof good / sizeof good[0], bad, sizeof bad / sizeof bad[0]);
    struct sf_wire_step step;
    SF_MUST(sf_wire_unpack_step(NULL, 0, &box, &step));         /* proto3: all zero is no bytes */
    SF_CHECK_INT(step.items, 0);
    sf_box_free(&box);
}

static void results_not_taken(void)
{
    static const struct field good[] = {
        {1, PLAIN, 1, 7}, {2, PLAIN, 1, 1}, {3, VARINT, 2, 1}, {4, VARINT, 2, 9},
        {5, VARINT, 1, 1}, {6, VARINT, 1, 4}, {7, VARINT, 1, 9}, {8, SHORT_REAL, 1, -1},
        {9, VARINT, 1, 1}, {10, VARINT, 1, 2}, {11, VARINT, 2, 9}, {12, SHORT_REAL, 2, -1},
        {13, SHORT_REAL, 1, 0.5}};
    static const struct field bad[] = {
        {2, PLAIN, 1, -1}, {4, VARINT, 2, -1}, {4, VARINT, 1, 9}, {6, VARINT, 1, -1},
        {7, VARINT, 1, -1}, {7, VARINT, 0, 0}, {8, SHORT_REAL, 1, 1}, {8, SHORT_REAL, 1, NAN},
        {8, SHORT_REAL, 1, -INFINITY}, {9, VARINT, 1, 0}, {10, VARINT, 1, 1}, {10, VARINT, 1, 3},
        {10, VARINT, 1, -1}, {11, VARINT, 2, -1}, {11, VARINT, 3, 9}, {12, SHORT_REAL, 2, 1},
        {12, SHORT_REAL, 2, -INFINITY}, {13, SHORT_REAL, 1, -1}, {13, SHORT_REAL, 1, NAN},
        {13, SHORT_REAL, 0, 0}, {99, PLAIN, 1, 1}};
    check_fields(take_result, good, sizeof good / sizeof good[0], bad, sizeof bad / sizeof bad[0]);
    sf_box_free(&box);
}

static void reports_not_taken(void)
{
    static const struct field good[] = {
        {1, PLAIN, 1, 1}, {2, PLAIN, 1, 0}, {5, PLAIN, 1, 1}, {6, PLAIN, 1, 2}, {7, PLAIN, 1, 2},
        {8, PLAIN, 1, 1}, {9, REAL, SF_PHASES, 1}, {11, PLAIN, 1, 5}, {23, REAL, SF_PHASES, 1},
        {16, VARINT, 1, 1}, {17, VARINT, 1, 1}, {18, VARINT, 1, 1}, {19, VARINT, 1, 1},
        {20, VARINT, 1, 1}, {21, VARINT, 1, 1}, {22, VARINT, 1, 1}, {25, PLAIN, 1, 1},
        {26, PLAIN, 1, 1}, {27, VARINT, 1, 1}};
    static const struct field bad[] = {
        {1, PLAIN, 1, -1}, {2, PLAIN, 1, 99}, {5, PLAIN, 1, 3}, {5, PLAIN, 1, -1},
        {7, PLAIN, 1, 3}, {7, PLAIN, 1, 257}, {8, PLAIN, 1, 0}, {9, REAL, SF_PHASES - 1, 1},
        {9, REAL, SF_PHASES + 1, 1}, {9, REAL, SF_PHASES, -1}, {9, REAL, SF_PHASES, NAN},
        {11, PLAIN, 1, -1}, {12, PLAIN, 1, -1}, {13, PLAIN, 1, -1}, {14, PLAIN, 1, -1},
        {15, PLAIN, 1, -1}, {23, REAL, SF_PHASES - 1, 1}, {23, REAL, SF_PHASES, NAN},
        {24, PLAIN, 1, -1}, {24, PLAIN, 1, 6}, {17, VARINT, 1, -1}, {22, VARINT, 1, -1},
        {22, VARINT, 2, 1}, {25, PLAIN, 1, -1}, {26, PLAIN, 1, -1}, {27, VARINT, 2, 1},
        {99, PLAIN, 1, 1}};
    check_fields(take_report, good, sizeof good / sizeof good[0], bad, sizeof bad / sizeof bad[0]);
    sf_box_free(&box);
}

static const struct sf_test tests[] = {
    {"forbidden steps are not sent", steps_not_sent},
    {"forbidden results are not sent", results_not_sent},
    {"forbidden reports are not sent", reports_not_sent},
    {"forbidden steps are not taken", steps_not_taken},
    {"forbidden results are not taken", results_not_taken},
    {"forbidden reports are not taken", reports_not_taken},
    {NULL, NULL}};
SF_TEST_MAIN("wire_refuse", tests)
