/* Messages that lie to the engine (engine.c). */
#include <stdlib.h>

#include "base/rng.h"
#include "tests/check.h"
#include "tests/unit/coordinator/engine_rig.h"

/* Two sequences are in the first step, which samples both; their prompts have 5 tokens, the first
 * asks for all scores. */
struct lie {
    struct rig rig;
    struct sf_wire_result right;        /* what should come */
    struct sf_box box;
};

static int make_lie(struct lie *lie)
{
    struct rig *m = &lie->rig;
    *lie = (struct lie){.right = {.step = 0}};
    if (!rig_make(m, (struct made_shape){1, 1, 1}, rig_config, 0, 2, 8)) return 0;
    for (int i = 0; i < 2; i++) {
        struct owner *o = &m->owner[i];
        o->prompt_tokens = 5;
        o->known = o->got = 0;
        o->answer_max = 3;
        o->end = 3;
        o->sampling.tops = 2;
        o->sampling.repetition = 1;
        o->score_prompt = o->sampling.scores = i == 0;
        for (int t = 0; t < 3; t++)
            o->answer[t] = made_token(o->prompt, 5, o->sampling.rng_stream, t);
    }
    rig_add(m, 2);
    SF_CHECK_OK(sf_engine_poll(m->engine, 0));
    rig_work(m, 1);
    struct sf_envelope envelope;
    struct sf_buffer bytes = {0};
    int found = sf_ring_pop(m->from, 0, &envelope, &bytes) == SF_OK;
    SF_CHECK(found);
    if (!found) return 0;
    SF_CHECK_OK(sf_wire_unpack_result(bytes.bytes, bytes.count, &lie->box, &lie->right));
    sf_buffer_free(&bytes);
    SF_CHECK(lie->right.samples == 2 && lie->right.scores == 5);
    return lie->right.samples == 2 && lie->right.scores == 5;
}

static void drop_lie(struct lie *lie)
{
    sf_box_free(&lie->box);
    rig_drop(&lie->rig);
}

static sf_status hear(struct lie *lie, int32_t rank, int32_t tag, const void *bytes, size_t count)
{
    struct sf_envelope envelope = {.group = rank, .tag = tag};
    SF_CHECK_OK(sf_ring_push(lie->rig.from, envelope, bytes, count, 0));
    return sf_engine_poll(lie->rig.engine, 0);
}

static sf_status hear_result(struct lie *lie, int32_t rank, const struct sf_wire_result *result)
{
    struct sf_buffer buffer = {0};
    SF_CHECK_OK(sf_wire_pack_result(result, &buffer));
    sf_status status = hear(lie, rank, SF_TAG_RESULT, buffer.bytes, buffer.count);
    sf_buffer_free(&buffer);
    return status;
}

static sf_status hear_receipt(struct lie *lie, int32_t rank, uint64_t seq)
{
    struct sf_buffer buffer = {0};
    struct sf_wire_receipt receipt = {.seq = seq, .bytes_exact = 5, .bytes_stored = 1,
                                      .slots_evicted = 1};
    SF_CHECK_OK(sf_wire_pack_report(&(struct sf_wire_report){.rank = rank, .receipts = 1,
                                                             .receipt = &receipt}, &buffer));
    sf_status status = hear(lie, rank, SF_TAG_REPORT, buffer.bytes, buffer.count);
    sf_buffer_free(&buffer);
    return status;
}

static const struct {
    const char *what;
    int32_t rank;
    sf_status status;
} lies[] = {{"the truth", 0, SF_OK}, {"of another group", 3, SF_FORMAT},
            {"of no group", -2, SF_FORMAT}, {"of another step", 0, SF_FORMAT},
            {"of another micro-batch", 0, SF_FORMAT}, {"a sample less", 0, SF_FORMAT},
            {"a sample twice", 0, SF_FORMAT}, {"of an unknown sequence", 0, SF_FORMAT},
            {"of another attempt", 0, SF_FORMAT}, {"a score of an unknown slot", 0, SF_INTERNAL},
            {"a score of a free slot", 0, SF_INTERNAL}, {"a score before the prompt", 0,
            SF_INTERNAL}, {"a score behind the answer", 0, SF_INTERNAL}};

static void tell(struct lie *lie, size_t which)
{
    struct sf_wire_result *r = &lie->right;
    switch (which) {
    case 3: r->step++; break;
    case 4: r->batch++; break;
    case 5: r->samples--; break;
    case 6: r->sample[1] = r->sample[0]; break;
    case 7: r->sample[1].seq += UINT64_C(9) << SF_SEQ_SLOT_BITS; break;
    case 8: r->sample[0].seq += UINT64_C(1) << SF_SEQ_ATTEMPT_BIT; break;
    case 9: r->score[0].seq |= (1u << SF_SEQ_SLOT_BITS) - 1; break;
    case 10: r->score[0].seq += 3; break;
    case 11: r->score[0].pos = 0; break;
    case 12: r->score[4].pos = 6; break;
    default: break;
    }
}

void lying_results(void)
{
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct lie lie;
        if (!make_lie(&lie)) return;
        tell(&lie, i);
        sf_status status = hear_result(&lie, lies[i].rank, &lie.right);
        if (status != lies[i].status)
            sf_test_fail(__FILE__, __LINE__, "%s: %s", lies[i].what, sf_status_name(status));
        if (i == 0) SF_CHECK_FAILS(hear_result(&lie, 0, &lie.right), SF_FORMAT);  /* once more */
        drop_lie(&lie);
    }
}

/* Receipts and scores of a sequence that is running, has ended, is gone. */
void lying_reports(void)
{
    struct lie lie;
    struct sf_buffer buffer = {0};
    if (!make_lie(&lie)) return;
    struct rig *m = &lie.rig;
    struct sf_wire_score *last = &lie.right.score[4];
    uint64_t seq = lie.right.sample[0].seq, attempt = UINT64_C(1) << SF_SEQ_ATTEMPT_BIT;
    uint64_t other = lie.right.sample[1].seq, slot = UINT64_C(1) << SF_SEQ_SLOT_BITS;
    m->owner[0].end = 1;                /* ends with the first token */
    m->owner[0].answer[0] = lie.right.sample[0].token = last->token = MADE_EOS;
    SF_CHECK_OK(hear_receipt(&lie, 0, seq));            /* of an attempt before, it may be */
    SF_CHECK_FAILS(hear_receipt(&lie, 0, other + slot), SF_INTERNAL);
    SF_CHECK_OK(hear_result(&lie, 0, &lie.right));      /* its close went out with this poll */
    SF_CHECK_OK(hear_receipt(&lie, 0, seq + attempt));
    SF_CHECK_OK(hear_receipt(&lie, 0, other));
    SF_CHECK_INT(m->closed, 0);
    struct sf_wire_sample sample = {.seq = other, .token = m->owner[1].answer[1]};
    struct sf_wire_result next = {.step = lie.right.step + 1, .sample = &sample, .samples = 1,
                                  .score = last, .scores = 1};
    last->pos = 6;
    SF_CHECK_FAILS(hear_result(&lie, 0, &next), SF_INTERNAL);
    SF_CHECK_OK(hear_receipt(&lie, 0, seq));
    SF_CHECK_INT(m->closed, 1);
    SF_CHECK_OK(hear_receipt(&lie, 0, seq));            /* as from another group, late */
    SF_CHECK_INT(m->closed, 1);
    SF_CHECK_OK(sf_wire_pack_report(&(struct sf_wire_report){.rank = 1, .measured = 1},
                                    &buffer));
    SF_CHECK_FAILS(hear(&lie, 0, SF_TAG_REPORT, buffer.bytes, buffer.count), SF_INTERNAL);
    SF_CHECK_FAILS(hear(&lie, 0, SF_TAG_RESULT, "\xff\xff\xff", 3), SF_FORMAT);
    SF_CHECK_FAILS(hear(&lie, 0, SF_TAG_TOKENS, "\xff\xff\xff", 3), SF_FORMAT);
    sf_buffer_free(&buffer);
    drop_lie(&lie);
}

/* Bytes turned around in a message that was right: any answer will do, if it is one. */
void noise(void)
{
    for (uint64_t round = 0; round < 120; round++) {
        struct lie lie;
        struct sf_buffer buffer = {0};
        if (!make_lie(&lie)) return;
        lie.rig.careless = 1;
        struct sf_wire_receipt receipt = {.seq = lie.right.sample[0].seq, .bytes_exact = 7};
        int result = round % 2 == 0;
        if (result) SF_CHECK_OK(sf_wire_pack_result(&lie.right, &buffer));
        else SF_CHECK_OK(sf_wire_pack_report(&(struct sf_wire_report){
                             .rank = 0, .receipt = &receipt, .receipts = 1}, &buffer));
        for (uint64_t i = 0; i <= round % 3; i++)
            buffer.bytes[sf_rng_u64(9, round, i) % buffer.count] ^=
                (unsigned char)(1u << sf_rng_u64(9, round, 10 + i) % 8);
        (void)hear(&lie, 0, result ? SF_TAG_RESULT : SF_TAG_REPORT, buffer.bytes, buffer.count);
        sf_buffer_free(&buffer);
        drop_lie(&lie);
    }
}
