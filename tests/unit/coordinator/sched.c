/* The scheduler keeps its promises whatever comes: a model of the workers checks a million random
 * steps (sched_random.c, sched_model.c).  Here the rules one by one, worked by hand.
 *
 * A step is written in a line, to be compared with the one expected:
 *
 *   0: close 2 drop 5 tighten 0@9 open 1.1[2/3] rows 0:9+1* 1.1:8+4*
 *
 * micro-batch 0; sequence 2 leaves; block 5 is dropped; sequence 0 is tightened at 9 tokens;
 * sequence 1 enters, in its second attempt,
 * with 2 of its 3 blocks attached; one row of sequence 0 at position 9 and four of sequence 1 from
 * position 8, both sampled (*).  A row that feeds the last sample has one plus sign more, and rows
 * that are scored a # and the token that follows the last. */
#include <stdarg.h>
#include <stdlib.h>

#include "coordinator/sched.h"
#include "tests/check.h"
#include "tests/unit/coordinator/sched_model.h"

/* ---- a small job ----------------------------------------------------------------------------- */
enum { SEQS = 8, TOKENS = 128, MICRO_BATCHES = 2 };
struct seq { int32_t prompt, sampled, token[TOKENS]; };
struct sent { uint64_t step; int32_t samples; uint64_t seq[SEQS]; };
static struct {
    struct sf_sched *sched;
    struct seq seq[SEQS];
    struct sent sent[MICRO_BATCHES];
    int32_t page_tokens;
    uint8_t cut;                        /* the cache is cut at the prompt's end */
    int32_t tight;                      /* pages of one that was tightened, at most; 0: none is */
    uint8_t worse;                      /* else: half of them, and more than all the second time */
    const struct sf_wire_step *step;    /* the last one */
    char text[512];
    size_t chars;
} rig;

/* A cut prompt needs two pages more until it has ended. */
static void need(void *arg, int32_t prompt, int32_t tokens, int settled, int64_t *pages_out)
{
    (void)arg;
    SF_ASSERT(tokens > prompt);
    *pages_out = (tokens + rig.page_tokens - 1) / rig.page_tokens;
    if (rig.cut && !settled) *pages_out += 2;
    if (rig.worse && settled > 1)
        *pages_out = settled == 2 ? (*pages_out + 1) / 2 : *pages_out + 1;
    else if (settled > 1 && *pages_out > rig.tight)
        *pages_out = rig.tight;
}

struct job {
    int32_t batches, seqs, rows, chunk, page_tokens;    /* one group of one rank with one lane */
    int32_t stages;                     /* 0: as many as batches */
    int64_t pages;
    enum sf_sharing sharing;
    uint8_t cut, pairs;                 /* pairs: blocks are attached two at a time */
    int32_t tight;
};

static int32_t in_pairs(void *arg, int32_t prompt, int32_t blocks)
{
    (void)arg, (void)prompt;
    return blocks / 2 * 2;
}

static void begin(struct job job)
{
    static const int64_t block_pages = 1;
    const struct sf_sched_limits limits = {
        .groups = 1, .stages = job.stages > 0 ? job.stages : job.batches,
        .micro_batches = job.batches, .ranks = 1, .seqs_max = job.seqs, .rows_max = job.rows,
        .chunk_rows = job.chunk, .slots_max = SEQS, .pages = &job.pages, .need = need,
        .tightens = job.tight > 0, .sharing = job.sharing, .block_tokens = job.page_tokens,
        .blocks_max = (int32_t)job.pages, .block_pages = &block_pages,
        .attach = job.pairs ? in_pairs : NULL};
    memset(&rig, 0, sizeof rig);
    rig.page_tokens = job.page_tokens;
    rig.cut = job.cut;
    rig.tight = job.tight;
    if (sf_sched_create(&limits, &rig.sched) != SF_OK) abort();
}

/* The prompt of a sequence: `common` tokens as every other, and then its own. */
static struct sf_sched_seq make(int32_t n, int32_t prompt, int32_t common, int32_t answer_max)
{
    struct seq *seq = &rig.seq[n];
    *seq = (struct seq){.prompt = prompt};
    for (int32_t i = 0; i < TOKENS; i++)
        seq->token[i] = i >= prompt ? -1 : i < common ? i : 100 * (n + 1) + i;
    return (struct sf_sched_seq){.seq = (uint64_t)n, .prompt = prompt, .answer_max = answer_max,
                                 .answer_likely = answer_max, .token = seq->token,
                                 .sampling = {.top_p = 1, .repetition = 1}};
}

static sf_status add_like(int32_t n, int32_t prompt, int32_t common, int32_t answer_max,
                          int32_t likely)
{
    struct sf_sched_seq seq = make(n, prompt, common, answer_max);
    seq.answer_likely = likely;
    return sf_sched_add(rig.sched, &seq);
}

static sf_status add(int32_t n, int32_t prompt, int32_t common, int32_t answer_max)
{
    return add_like(n, prompt, common, answer_max, answer_max);
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int written = vsnprintf(rig.text + rig.chars, sizeof rig.text - rig.chars, format, args);
    va_end(args);
    rig.chars += (size_t)written;
    SF_ASSERT(rig.chars < sizeof rig.text);
}

static void say_seq(uint64_t seq)
{
    int32_t attempt = (int32_t)(seq >> SF_SEQ_ATTEMPT_BIT);
    say("%d", sf_seq_slot(seq));
    if (attempt > 0) say(".%d", attempt);
}

static void say_step(const struct sf_wire_step *step)
{
    say("%d:", step->batch);
    for (int32_t i = 0; i < step->closes; i++) {
        say(" close ");
        say_seq(step->close[i]);
    }
    for (int32_t i = 0; i < step->drops; i++) say(" drop %d", step->drop[i]);
    for (int32_t i = 0; i < step->tightens; i++) {
        say(" tighten ");
        say_seq(step->tighten[i].seq);
        say("@%d", step->tighten[i].tokens);
    }
    for (int32_t i = 0; i < step->opens; i++) {
        say(" open ");
        say_seq(step->open[i].seq);
        if (step->open[i].blocks > 0) say("[%d/%d]", step->open[i].reused, step->open[i].blocks);
    }
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_wire_item *item = &step->item[i];
        say(i == 0 ? " rows " : " ");
        say_seq(item->seq);
        say(item->token_first < 0 ? ":%d++%d" : ":%d+%d", item->pos, item->rows);
        if (item->logits & SF_LOGITS_ROWS) say("#%d", item->next);
        if (item->logits & SF_LOGITS_SAMPLE) say("*");
    }
}

/* The next step in words; the tokens that it feeds are what they should be. */
static const char *next(void)
{
    int32_t group;
    const struct sf_wire_step *step;
    rig.chars = 0;
    if (!sf_sched_next(rig.sched, &group, &step)) return "nothing";
    struct sent *sent = &rig.sent[step->batch];
    *sent = (struct sent){.step = step->id};
    rig.step = step;
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_wire_item *item = &step->item[i];
        const struct seq *seq = &rig.seq[sf_seq_slot(item->seq)];
        if (item->logits & SF_LOGITS_SAMPLE) sent->seq[sent->samples++] = item->seq;
        if (item->token_first >= 0)
            SF_CHECK(memcmp(step->token + item->token_first, seq->token + item->pos,
                            (size_t)item->rows * sizeof *seq->token) == 0);
    }
    say_step(step);
    return rig.text;
}

/* The step in flight of a micro-batch is answered. */
static void answer(int32_t batch)
{
    const struct sent *sent = &rig.sent[batch];
    struct sf_wire_sample sample[SEQS];
    struct sf_wire_result result = {.step = sent->step, .batch = batch, .sample = sample,
                                    .samples = sent->samples};
    for (int32_t i = 0; i < sent->samples; i++) {
        struct seq *seq = &rig.seq[sf_seq_slot(sent->seq[i])];
        sample[i] = (struct sf_wire_sample){.seq = sent->seq[i], .token = 50 + seq->sampled};
        seq->token[seq->prompt + seq->sampled++] = sample[i].token;
    }
    SF_CHECK_OK(sf_sched_result(rig.sched, 0, &result));
}

static void end(int32_t n) { sf_sched_end(rig.sched, (uint64_t)n); }

static void finish(void)
{
    sf_sched_destroy(rig.sched);
    rig.sched = NULL;
}

/* ---- places ---------------------------------------------------------------------------------- */
/* Four sequences over two micro-batches: two each, and no third step before a result. */
static void spread_over_batches(void)
{
    begin((struct job){.batches = 2, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 100});
    for (int32_t i = 0; i < 4; i++) SF_MUST(add(i, 10, 0, 8));
    SF_CHECK_STR(next(), "0: open 0 open 2 rows 0:0+10* 2:0+10*");
    SF_CHECK_STR(next(), "1: open 1 open 3 rows 1:0+10* 3:0+10*");
    SF_CHECK_STR(next(), "nothing");
    answer(1);
    SF_CHECK_STR(next(), "1: rows 1:10++1* 3:10++1*");
    SF_CHECK_STR(next(), "nothing");
    finish();
}

/* A second micro-batch of the one stage is not begun before the first has four; then they level. */
static void few_keep_together(void)
{
    begin((struct job){.batches = 2, .stages = 1, .seqs = 8, .rows = 64, .page_tokens = 4,
                       .pages = 100});
    for (int32_t i = 0; i < 4; i++) SF_MUST(add(i, 4, 0, 8));
    SF_CHECK_STR(next(), "0: open 0 open 1 open 2 open 3 rows 0:0+4* 1:0+4* 2:0+4* 3:0+4*");
    SF_CHECK_STR(next(), "nothing");
    for (int32_t i = 4; i < 6; i++) SF_MUST(add(i, 4, 0, 8));
    SF_CHECK_STR(next(), "1: open 4 open 5 rows 4:0+4* 5:0+4*");
    answer(0);
    end(0);
    end(1);
    SF_CHECK_STR(next(), "0: close 0 close 1 rows 2:4++1* 3:4++1*");
    SF_MUST(add(6, 4, 0, 8));
    answer(0);
    SF_CHECK_STR(next(), "0: open 6 rows 2:5++1* 3:5++1* 6:0+4*");
    finish();
}

/* Who waits for pages holds up those behind; a close lets it in within the same step. */
static void first_in_first_out(void)
{
    begin((struct job){.batches = 1, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 10});
    SF_MUST(add(0, 24, 0, 8));          /* 8 pages */
    SF_MUST(add(1, 12, 0, 8));          /* 5 */
    SF_MUST(add(2, 1, 0, 3));           /* 1 */
    SF_CHECK_STR(next(), "0: open 0 rows 0:0+24*");
    SF_CHECK_INT(sf_sched_load(rig.sched).waiting, 2);
    SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use, 0.8, 1e-12);
    answer(0);
    end(0);
    SF_CHECK_STR(next(), "0: close 0 open 1 open 2 rows 1:0+12* 2:0+1*");
    SF_CHECK_FAILS(add(3, 33, 0, 8), SF_NO_PAGES);
    SF_CHECK(strstr(sf_error_text(), "11 KV pages on rank 0, which has 10") != NULL);
    finish();
}

/* When nothing comes after them, those with the most left to sample come first. */
static void longest_first(void)
{
    begin((struct job){.batches = 1, .seqs = 1, .rows = 64, .page_tokens = 4, .pages = 100});
    static const int32_t most[] = {1, 4, 9, 30, 9};
    for (int32_t i = 0; i < 5; i++) {
        struct sf_sched_seq seq = make(i, 5, 0, most[i]);
        seq.answer_known = i == 3 ? 25 : 0;             /* 5 are left */
        for (int32_t k = 0; k < seq.answer_known; k++) rig.seq[i].token[5 + k] = 7;
        rig.seq[i].sampled = seq.answer_known;
        SF_MUST(sf_sched_add(rig.sched, &seq));
    }
    SF_CHECK_STR(next(), "0: open 0 rows 0:0+5*");      /* before the end is known */
    sf_sched_last(rig.sched);
    static const char *const expected[] = {"0: close 0 open 2 rows 2:0+5*",
                                           "0: close 2 open 4 rows 4:0+5*",
                                           "0: close 4 open 3 rows 3:0+30*",
                                           "0: close 3 open 1 rows 1:0+5*"};
    static const int32_t ended[] = {0, 2, 4, 3};
    for (int32_t i = 0; i < 4; i++) {
        answer(0);
        end(ended[i]);
        SF_CHECK_STR(next(), expected[i]);
    }
    finish();
}

/* The last sequence leaves with a step of its own; then there is nothing to do.  Steps without
 * anything in them have their numbers among the others. */
static void last_close(void)
{
    begin((struct job){.batches = 1, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 100});
    SF_MUST(add(7, 3, 0, 8));
    SF_CHECK_STR(next(), "0: open 7 rows 7:0+3*");
    SF_CHECK_INT(rig.step->id, 0);
    SF_CHECK_INT(sf_sched_empty(rig.sched, 0)->id, 1);
    answer(0);
    end(7);
    SF_CHECK_STR(next(), "0: close 7");
    SF_CHECK_INT(rig.step->id, 2);
    SF_CHECK_STR(next(), "nothing");
    answer(0);
    SF_CHECK_STR(next(), "nothing");
    const struct sf_wire_step *step = sf_sched_empty(rig.sched, 0);
    SF_CHECK_INT(step->id, 3);
    SF_CHECK_INT(step->stop + step->measure + step->closes + step->drops + step->opens +
                     step->items + step->tokens, 0);
    finish();
}

/* ---- rows ------------------------------------------------------------------------------------ */
/* Chunk borders of a prompt are the same alone and beside others. */
static void fixed_chunks(void)
{
    static const int32_t border[] = {16, 32, 48, 50};
    for (int32_t others = 0; others < 6; others++) {
        int32_t seen = 0;
        begin((struct job){.batches = 1, .seqs = 8, .rows = 20, .chunk = 16, .page_tokens = 4,
                           .pages = 1000});
        for (int32_t i = 0; i < others; i++) SF_MUST(add(i + 1, 7 * i + 1, 0, 2));
        SF_MUST(add(0, 50, 0, 8));
        for (int32_t n = 0; n < 200 && seen < 4; n++) {
            SF_CHECK(strcmp(next(), "nothing") != 0);
            const struct sf_wire_step *step = rig.step;
            for (int32_t i = 0; i < step->items; i++)
                if (step->item[i].seq == 0 && seen < 4)
                    SF_CHECK_INT(step->item[i].pos + step->item[i].rows, border[seen++]);
            answer(0);
            for (int32_t i = 1; i <= others; i++)
                if (rig.seq[i].sampled == 2) {
                    rig.seq[i].sampled++;               /* once */
                    end(i);
                }
        }
        SF_CHECK_INT(seen, 4);
        finish();
    }
}

/* The rows of a prompt that is scored know what follows them, also across chunks; an answer that is
 * fed again is not scored with them. */
static void scored_prompt(void)
{
    begin((struct job){.batches = 1, .seqs = 2, .rows = 20, .chunk = 4, .page_tokens = 2,
                       .pages = 100, .sharing = SF_SHARE_KEPT});
    struct sf_sched_seq seq = make(1, 6, 0, 8);
    seq.score_prompt = 1;
    seq.answer_known = 3;
    for (int32_t i = 6; i < 9; i++) rig.seq[1].token[i] = i;
    rig.seq[1].sampled = 3;
    SF_MUST(add(0, 1, 0, 5));
    SF_MUST(sf_sched_add(rig.sched, &seq));
    SF_CHECK_STR(next(), "0: open 0 open 1[0/3] rows 0:0+1* 1:0+4#204");
    answer(0);
    SF_CHECK_STR(next(), "0: rows 0:1++1* 1:4+2#-1");
    answer(0);
    SF_CHECK_STR(next(), "0: rows 0:2++1* 1:6+2");
    answer(0);
    SF_CHECK_STR(next(), "0: rows 0:3++1* 1:8+1*");
    finish();
}

/* A result must be the answer to the step in flight, sample by sample. */
static void results_are_checked(void)
{
    begin((struct job){.batches = 2, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 100});
    SF_MUST(add(7, 3, 0, 8));
    SF_CHECK_STR(next(), "0: open 7 rows 7:0+3*");
    struct sf_wire_sample sample = {.seq = 7, .token = 1};
    struct sf_wire_result good = {.step = 0, .batch = 0, .sample = &sample, .samples = 1}, bad;
    bad = good, bad.step = 1;
    SF_CHECK_FAILS(sf_sched_result(rig.sched, 0, &bad), SF_FORMAT);
    bad = good, bad.batch = 1;
    SF_CHECK_FAILS(sf_sched_result(rig.sched, 0, &bad), SF_FORMAT);
    bad = good, bad.batch = 2;
    SF_CHECK_FAILS(sf_sched_result(rig.sched, 0, &bad), SF_FORMAT);
    bad = good, bad.samples = 0;
    SF_CHECK_FAILS(sf_sched_result(rig.sched, 0, &bad), SF_FORMAT);
    SF_CHECK_FAILS(sf_sched_result(rig.sched, 1, &good), SF_FORMAT);
    sample.seq = 8;
    SF_CHECK_FAILS(sf_sched_result(rig.sched, 0, &good), SF_FORMAT);
    sample.seq = 7;
    SF_CHECK_OK(sf_sched_result(rig.sched, 0, &good));
    SF_CHECK_FAILS(sf_sched_result(rig.sched, 0, &good), SF_FORMAT);
    finish();
}

/* ---- losing a place -------------------------------------------------------------------------- */
/* Two sequences that were thought to answer with one token, on 4 pages of 4 tokens: 2 pages for
 * each.  Both stay inside them until they have 8 tokens; then the younger one gives way.  It waits
 * for the 4 pages that it can need at most, and is fed what it knows already. */
static void gives_way(void)
{
    begin((struct job){.batches = 1, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 4});
    SF_MUST(add_like(0, 4, 0, 8, 1));
    SF_MUST(add_like(1, 4, 0, 9, 1));
    SF_CHECK_STR(next(), "0: open 0 open 1 rows 0:0+4* 1:0+4*");
    static const char *const expected[] = {"0: rows 0:4++1* 1:4++1*", "0: rows 0:5++1* 1:5++1*",
                                           "0: rows 0:6++1* 1:6++1*", "0: rows 0:7++1* 1:7++1*",
                                           "0: close 1 rows 0:8++1*", "0: rows 0:9++1*",
                                           "0: rows 0:10++1*"};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        answer(0);
        SF_CHECK_STR(next(), expected[i]);
    }
    SF_CHECK_INT(sf_sched_load(rig.sched).preempted, 1);
    SF_CHECK_INT(sf_sched_load(rig.sched).waiting, 1);
    answer(0);
    end(0);
    SF_CHECK_STR(next(), "0: close 0 open 1.1 rows 1.1:0+9*");
    SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use, 1, 1e-12);
    static const char *const again[] = {"0: rows 1.1:9++1*", "0: rows 1.1:10++1*",
                                        "0: rows 1.1:11++1*"};
    for (size_t i = 0; i < sizeof again / sizeof again[0]; i++) {
        answer(0);
        SF_CHECK_STR(next(), again[i]);
    }
    answer(0);
    SF_CHECK_INT(rig.seq[1].sampled, 9);
    end(1);
    SF_CHECK_STR(next(), "0: close 1.1");
    finish();
}

/* ---- memory pressure ------------------------------------------------------------------------- */
/* The same step again and again: the micro-batch is answered, and its next one is as expected. */
static void steps(int32_t batch, const char *const *expected, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        answer(batch);
        SF_CHECK_STR(next(), expected[i]);
    }
}

/* 4 + 2 pages are promised of 6 when both sequences want a fifth and a third: the long one comes
 * down to 2 pages for good, and nobody gives way.  Without a method that answers, one has to. */
static void is_tightened(void)
{
    static const char *const before[] = {"0: rows 0:12++1* 1:4++1*", "0: rows 0:13++1* 1:5++1*",
                                         "0: rows 0:14++1* 1:6++1*", "0: rows 0:15++1* 1:7++1*"};
    for (int32_t tight = 0; tight <= 2; tight += 2) {
        begin((struct job){.batches = 1, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 6,
                           .tight = tight});
        SF_MUST(add_like(0, 12, 0, 8, 1));
        SF_MUST(add_like(1, 4, 0, 9, 1));
        SF_CHECK_STR(next(), "0: open 0 open 1 rows 0:0+12* 1:0+4*");
        steps(0, before, sizeof before / sizeof before[0]);
        SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use, 1, 1e-12);
        answer(0);
        SF_CHECK_STR(next(), tight ? "0: tighten 0@16 rows 0:16++1* 1:8++1*"
                                   : "0: close 1 rows 0:16++1*");
        SF_CHECK_INT(sf_sched_load(rig.sched).tightened, tight > 0);
        SF_CHECK_INT(sf_sched_load(rig.sched).preempted, tight == 0);
        if (tight) SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use, 1, 1e-12);
        finish();
    }
}

/* The one that can spare pages is in flight in another micro-batch: its row there counts. */
static void in_flight_is_tightened(void)
{
    static const char *const before[] = {"0: rows 0:5++1*", "0: rows 0:6++1*", "0: rows 0:7++1*",
                                         "0: tighten 1@13 rows 0:8++1*"};
    begin((struct job){.batches = 2, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 6,
                       .tight = 2});
    SF_MUST(add_like(0, 4, 0, 9, 1));
    SF_MUST(add_like(1, 12, 0, 8, 1));
    SF_CHECK_STR(next(), "0: open 0 rows 0:0+4*");
    SF_CHECK_STR(next(), "1: open 1 rows 1:0+12*");
    answer(0);
    answer(1);
    SF_CHECK_STR(next(), "0: rows 0:4++1*");
    SF_CHECK_STR(next(), "1: rows 1:12++1*");
    steps(0, before, sizeof before / sizeof before[0]);
    answer(1);
    SF_CHECK_STR(next(), "1: rows 1:13++1*");
    SF_CHECK_INT(sf_sched_load(rig.sched).preempted, 0);
    finish();
}

/* One page comes free of the youngest, the first takes it, the second needs one as well: now the
 * youngest has to go, and the step says nothing else of it.  Having decoded nothing since, it could
 * not be asked twice. */
static void tightened_in_vain(void)
{
    static const char *const before[] = {
        "0: rows 0:4++1* 1:4++1* 2:12++1*", "0: rows 0:5++1* 1:5++1* 2:13++1*",
        "0: rows 0:6++1* 1:6++1* 2:14++1*", "0: rows 0:7++1* 1:7++1* 2:15++1*",
        "0: close 2 rows 0:8++1* 1:8++1*"};
    begin((struct job){.batches = 1, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 8,
                       .tight = 3});
    SF_MUST(add_like(0, 4, 0, 9, 1));
    SF_MUST(add_like(1, 4, 0, 9, 1));
    SF_MUST(add_like(2, 12, 0, 9, 1));
    SF_CHECK_STR(next(), "0: open 0 open 1 open 2 rows 0:0+4* 1:0+4* 2:0+12*");
    steps(0, before, sizeof before / sizeof before[0]);
    SF_CHECK_INT(sf_sched_load(rig.sched).preempted, 1);
    SF_CHECK_INT(sf_sched_load(rig.sched).tightened, 0);
    finish();
}

/* A method that would need more if it were tightened once more is not asked a second time. */
static void tightened_for_worse(void)
{
    begin((struct job){.batches = 1, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 6,
                       .tight = 1});
    rig.worse = 1;
    SF_MUST(add_like(0, 4, 0, 20, 1));
    SF_MUST(add_like(1, 4, 0, 20, 1));
    SF_MUST(add_like(2, 4, 0, 20, 1));
    int ended[3] = {0}, steps = 0;
    for (; strcmp(next(), "nothing") != 0 && steps < 200; steps++) {
        answer(0);
        for (int32_t i = 0; i < 3; i++) {
            if (ended[i] || rig.seq[i].sampled < 20) continue;
            end(i);
            ended[i] = 1;
        }
    }
    SF_CHECK(steps < 200 && ended[0] && ended[1] && ended[2]);
    SF_CHECK(sf_sched_load(rig.sched).tightened > 0 && sf_sched_load(rig.sched).preempted > 0);
    finish();
}

/* Of 6 pages a prompt takes 4, and 2 when it has ended: then there is room for the next one, and
 * two more than that would not have been. */
static void settles(void)
{
    begin((struct job){.batches = 1, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 6,
                       .cut = 1});
    for (int32_t i = 0; i < 3; i++) SF_MUST(add_like(i, 4, 0, 4, 4));
    SF_CHECK_STR(next(), "0: open 0 rows 0:0+4*");
    SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use, 4.0 / 6, 1e-12);
    answer(0);
    SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use, 2.0 / 6, 1e-12);
    SF_CHECK_STR(next(), "0: open 1 rows 0:4++1* 1:0+4*");
    SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use, 1, 1e-12);
    answer(0);
    SF_CHECK_STR(next(), "0: rows 0:5++1* 1:4++1*");    /* 2 pages are free, the third wants 4 */
    answer(0);
    end(0);
    SF_CHECK_STR(next(), "0: close 0 open 2 rows 1:5++1* 2:0+4*");
    answer(0);
    SF_CHECK_STR(next(), "0: rows 1:6++1* 2:4++1*");
    SF_CHECK_INT(sf_sched_load(rig.sched).preempted, 0);
    answer(0);
    end(1);
    end(2);
    SF_CHECK_STR(next(), "0: close 1 close 2");
    finish();
}

/* Who outgrows its pages is promised more of them at once, but none that it can never need; and
 * where there are not so many, one for the next row is enough. */
static void grows(void)
{
    static const struct { int32_t answer_max, pages, other, promised; } cases[] = {
        {20, 1000, 0, 23}, {200, 1000, 0, 5 + 64}, {20, 24, 19, 19 + 5}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin((struct job){.batches = 1, .seqs = 2, .rows = 64, .page_tokens = 1,
                           .pages = cases[i].pages});
        if (cases[i].other > 0) SF_MUST(add(1, 1, 0, cases[i].other - 1));
        SF_MUST(add_like(0, 3, 0, cases[i].answer_max, 1));
        SF_CHECK(strcmp(next(), "nothing") != 0);       /* 3 tokens, then 4; 4 were thought of */
        answer(0);
        SF_CHECK(strcmp(next(), "nothing") != 0);
        SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use * cases[i].pages, cases[i].other + 4, 1e-9);
        answer(0);
        SF_CHECK(strcmp(next(), "nothing") != 0);
        SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use * cases[i].pages, cases[i].promised, 1e-9);
        SF_CHECK_INT(sf_sched_load(rig.sched).preempted, 0);
        finish();
    }
}

/* One that has no younger one beside it gives way itself, and comes first when there are pages
 * again, before those that were there before it was back. */
static void gives_way_itself(void)
{
    begin((struct job){.batches = 2, .seqs = 2, .rows = 64, .page_tokens = 4, .pages = 4});
    SF_MUST(add_like(0, 4, 0, 8, 1));   /* 2 pages, at most 3 */
    SF_MUST(add_like(1, 4, 0, 4, 4));   /* 2 */
    SF_MUST(add_like(2, 4, 0, 4, 4));
    SF_CHECK_STR(next(), "0: open 0 rows 0:0+4*");
    SF_CHECK_STR(next(), "1: open 1 rows 1:0+4*");
    for (int32_t i = 0; i < 4; i++) {
        answer(0);
        SF_CHECK(strncmp(next(), "0: rows 0:", 10) == 0);
    }
    answer(0);
    SF_CHECK_STR(next(), "0: close 0");
    SF_CHECK_INT(sf_sched_load(rig.sched).waiting, 2);
    answer(0);
    SF_CHECK_STR(next(), "nothing");
    answer(1);
    end(1);
    SF_CHECK_STR(next(), "1: close 1");
    SF_CHECK_STR(next(), "0: open 0.1 rows 0.1:0+9*");
    SF_CHECK_INT(sf_sched_load(rig.sched).waiting, 1);
    finish();
}

/* ---- shared beginnings ----------------------------------------------------------------------- */
/* Two prompts of 10 and 11 tokens with 8 in common, which are 2 blocks.  The second waits until the
 * step that completes them has been made, and is not opened by that one. */
static void waits_for_blocks(void)
{
    begin((struct job){.batches = 1, .seqs = 4, .rows = 6, .page_tokens = 4, .pages = 100,
                       .sharing = SF_SHARE_KEPT});
    SF_MUST(add(0, 10, 8, 4));
    SF_MUST(add(1, 11, 8, 4));
    SF_CHECK_STR(next(), "0: open 0[0/2] rows 0:0+6");
    answer(0);
    SF_CHECK_STR(next(), "0: rows 0:6+4*");
    answer(0);
    SF_CHECK_STR(next(), "0: open 1[2/2] rows 0:10++1* 1:8+3*");
    SF_CHECK(rig.step->open[0].block[0] != rig.step->open[0].block[1]);
    SF_CHECK_INT(rig.step->open[0].reused_first, -1);
    SF_CHECK_INT(sf_sched_load(rig.sched).reused_tokens, 8);
    finish();
}

/* Prompts of 14 tokens with 12 in common, 3 blocks, of which only 2 can be attached: the third one
 * is held and computed once more.  Sequence 2 is longer and has its fourth block behind those.  Of
 * that sequence 3 attaches all, and 1 does not wait for the third, which it could not attach. */
static void holds_what_it_computes(void)
{
    begin((struct job){.batches = 1, .seqs = 4, .rows = 100, .chunk = 8, .page_tokens = 4,
                       .pages = 100, .sharing = SF_SHARE_COPIED, .pairs = 1});
    SF_MUST(add(0, 14, 12, 4));
    SF_CHECK_STR(next(), "0: open 0[0/3] rows 0:0+8");
    SF_MUST(add(1, 14, 12, 4));
    answer(0);
    SF_CHECK_STR(next(), "0: open 1[2/2] rows 0:8+6* 1:8+6*");
    SF_MUST(add(2, 17, 17, 4));
    answer(0);
    SF_CHECK_STR(next(), "0: open 2[2/4] rows 0:14++1* 1:14++1* 2:8+8");
    SF_MUST(add(3, 18, 17, 4));
    answer(0);
    SF_CHECK_STR(next(), "0: open 3[4/4] rows 0:15++1* 1:15++1* 2:16+1* 3:16+2*");
    finish();
}

/* The whole prompt is in blocks, and its last row is computed all the same. */
static void computes_one_row(void)
{
    begin((struct job){.batches = 2, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 100,
                       .sharing = SF_SHARE_KEPT});
    SF_MUST(add(0, 8, 8, 4));
    SF_MUST(add(1, 8, 8, 4));
    SF_CHECK_STR(next(), "0: open 0[0/2] rows 0:0+8*");
    SF_CHECK_STR(next(), "1: open 1[1/1] rows 1:4+4*");
    finish();
}

/* In another micro-batch the second goes on when the first loses its place half-way: sequence 0
 * outgrows its page, and sequence 2, the younger one beside it, has filled one block of 3.  Then it
 * is sequence 2 that waits for the others, and it needs no pages for what it will attach. */
static void first_gives_way(void)
{
    begin((struct job){.batches = 2, .seqs = 4, .rows = 4, .page_tokens = 4, .pages = 10,
                       .sharing = SF_SHARE_KEPT});
    SF_MUST(add_like(0, 3, 0, 20, 1));  /* 1 page */
    SF_MUST(add(1, 1, 0, 3));           /* 1 */
    SF_MUST(add(2, 13, 12, 3));         /* 4 */
    SF_MUST(add(3, 14, 12, 2));         /* 4 */
    SF_CHECK_STR(next(), "0: open 0 open 2[0/3] rows 0:0+3* 2:0+1");
    SF_CHECK_STR(next(), "1: open 1 rows 1:0+1*");      /* 3 waits for 2 */
    answer(0);
    SF_CHECK_STR(next(), "0: rows 0:3++1* 2:1+3");
    answer(1);
    SF_CHECK_STR(next(), "1: rows 1:1++1*");
    answer(0);
    SF_CHECK_STR(next(), "0: close 2 rows 0:4++1*");
    SF_CHECK_INT(sf_sched_load(rig.sched).waiting, 1);
    answer(1);
    SF_CHECK_STR(next(), "1: open 3[1/3] rows 1:2++1* 3:4+3");
    answer(0);
    SF_CHECK_STR(next(), "0: rows 0:5++1*");            /* 2 is back, and waits for 3 */
    SF_CHECK_INT(sf_sched_load(rig.sched).waiting, 0);
    answer(1);
    end(1);
    SF_CHECK_STR(next(), "1: close 1 rows 3:7+4");
    answer(1);
    SF_CHECK_STR(next(), "1: rows 3:11+3*");
    answer(0);
    SF_CHECK_STR(next(), "0: open 2.1[3/3] rows 0:6++1* 2.1:12+1*");
    finish();
}

/* Three sequences of 3 pages have 2 of them in common, so 5 pages are enough for all. */
static void shared_pages_count_once(void)
{
    begin((struct job){.batches = 1, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = 5,
                       .sharing = SF_SHARE_KEPT});
    for (int32_t i = 0; i < 3; i++) SF_MUST(add(i, 10, 8, 2));
    SF_CHECK_STR(next(), "0: open 0[0/2] rows 0:0+10*");
    SF_CHECK_INT(sf_sched_load(rig.sched).waiting, 2);  /* until there is something to share */
    answer(0);
    SF_CHECK_STR(next(), "0: open 1[2/2] open 2[2/2] rows 0:10++1* 1:8+2* 2:8+2*");
    SF_CHECK_NEAR(sf_sched_load(rig.sched).kv_use, 1, 1e-12);
    finish();
}

/* Where a holder may need its own copy, a block takes pages beside the 3 of its sequence, as long
 * as there are any. */
static void copies_lie_beside(void)
{
    for (int32_t pages = 3; pages <= 6; pages++) {
        static const char *const expected[] = {
            "0: open 0 rows 0:0+10*", "0: open 0[0/1] rows 0:0+10*", "0: open 0[0/2] rows 0:0+10*",
            "0: open 0[0/2] rows 0:0+10*"};
        begin((struct job){.batches = 1, .seqs = 4, .rows = 64, .page_tokens = 4, .pages = pages,
                           .sharing = SF_SHARE_COPIED});
        SF_MUST(add(0, 10, 8, 2));
        SF_CHECK_STR(next(), expected[pages - 3]);
        answer(0);
        end(0);
        SF_MUST(add(1, 11, 8, 1));      /* 3 pages as well */
        SF_CHECK_STR(next(), pages == 3   ? "0: close 0 open 1 rows 1:0+11*"
                             : pages == 4 ? "0: close 0 open 1[1/1] rows 1:4+7*"
                                          : "0: close 0 open 1[2/2] rows 1:8+3*");
        finish();
    }
}

/* A block that nobody holds stays as long as nobody has a place and wants its pages: one row a step
 * is a place for one sequence.  Then the last one of a prompt is dropped first. */
static void drops_when_needed(void)
{
    begin((struct job){.batches = 1, .seqs = 2, .rows = 1, .page_tokens = 2, .pages = 6,
                       .sharing = SF_SHARE_KEPT});
    SF_MUST(add(0, 4, 0, 1));           /* 3 pages, 2 blocks */
    SF_CHECK_STR(next(), "0: open 0[0/2] rows 0:0+1");
    int32_t first = rig.step->open[0].block[0], second = rig.step->open[0].block[1];
    for (int32_t i = 1; i < 4; i++) {
        answer(0);
        SF_CHECK(strncmp(next(), "0: rows 0:", 10) == 0);
    }
    answer(0);
    end(0);
    SF_MUST(add(1, 1, 0, 2));           /* 2 pages beside the 2 blocks */
    SF_MUST(add(2, 1, 0, 7));           /* 4 */
    SF_CHECK_STR(next(), "0: close 0 open 1 rows 1:0+1*");
    answer(0);
    SF_CHECK_STR(next(), "0: rows 1:1++1*");
    answer(0);
    end(1);
    SF_CHECK_STR(next(), "0: close 1 open 2 rows 2:0+1*");
    SF_CHECK_INT(sf_sched_load(rig.sched).evicted_blocks, 0);
    answer(0);
    end(2);
    SF_MUST(add(3, 1, 0, 11));          /* all 6 */
    char expected[64];
    snprintf(expected, sizeof expected, "0: close 2 drop %d drop %d open 3 rows 3:0+1*", second,
             first);
    SF_CHECK_STR(next(), expected);
    SF_CHECK_INT(sf_sched_load(rig.sched).evicted_blocks, 2);
    finish();
}

/* The ids of attached tokens come along where the sampling looks at them. */
static void looks_back(void)
{
    begin((struct job){.batches = 1, .seqs = 4, .rows = 12, .page_tokens = 4, .pages = 100,
                       .sharing = SF_SHARE_KEPT});
    SF_MUST(add(0, 12, 8, 4));
    for (int32_t i = 1; i < 4; i++) {
        struct sf_sched_seq seq = make(i, 9, 8, 4);
        seq.sampling.repetition = i == 2 ? 1.0 : 1.5;
        SF_MUST(sf_sched_add(rig.sched, &seq));
    }
    SF_CHECK_STR(next(), "0: open 0[0/3] rows 0:0+12*");
    answer(0);
    SF_CHECK_STR(next(), "0: open 1[2/2] open 2[2/2] open 3[2/2] "
                         "rows 0:12++1* 1:8+1* 2:8+1* 3:8+1*");
    static const int32_t expected[] = {0, 1, 2, 3, 4, 5, 6, 7, 208, 308,
                                       0, 1, 2, 3, 4, 5, 6, 7, 408};
    SF_CHECK_INT(rig.step->open[0].reused_first, 0);
    SF_CHECK_INT(rig.step->open[1].reused_first, -1);
    SF_CHECK_INT(rig.step->open[2].reused_first, 10);
    SF_CHECK_INT(rig.step->tokens, sizeof expected / sizeof expected[0]);
    SF_CHECK(memcmp(rig.step->token, expected, sizeof expected) == 0);
    finish();
}

static const struct sf_test tests[] = {
    {"a million random steps", random_steps},
    {"random shapes", random_shapes},
    {"sequences spread over micro-batches", spread_over_batches},
    {"few sequences keep together", few_keep_together},
    {"first in, first out", first_in_first_out},
    {"longest first", longest_first},
    {"the last close", last_close},
    {"fixed chunk borders", fixed_chunks},
    {"a scored prompt", scored_prompt},
    {"results are checked", results_are_checked},
    {"the youngest gives way", gives_way},
    {"tightened instead of preempted", is_tightened},
    {"tightened in flight", in_flight_is_tightened},
    {"tightened in vain", tightened_in_vain},
    {"tightened for worse", tightened_for_worse},
    {"a prompt that has ended makes room", settles},
    {"grows", grows},
    {"gives way itself", gives_way_itself},
    {"waits for blocks", waits_for_blocks},
    {"holds what it computes", holds_what_it_computes},
    {"one row is computed", computes_one_row},
    {"the first gives way", first_gives_way},
    {"shared pages count once", shared_pages_count_once},
    {"copies lie beside", copies_lie_beside},
    {"drops when needed", drops_when_needed},
    {"looks back", looks_back},
    {NULL, NULL}};
SF_TEST_MAIN("sched", tests)
