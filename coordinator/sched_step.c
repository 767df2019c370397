/* coordinator/sched_step.c: which rows a step has (sched.h). */
#include "coordinator/sched_impl.h"

enum { GROW_TOKENS = 64 };              /* promised at once to a sequence that outgrows its pages */

int sched_has_work(const struct sf_sched *s, const struct group *group, const struct batch *batch)
{
    for (int32_t i = 0; i < batch->lanes; i++) {
        const struct seq *seq = &s->seq[batch->lane[i]];
        if (seq->state != SEQ_ADMITTED || !sched_must_wait(s, group, seq)) return 1;
    }
    return 0;
}

/* ---- who leaves ------------------------------------------------------------------------------ */
static void keep_lanes(struct sf_sched *s, struct batch *batch)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < batch->lanes; i++) {
        enum seq_state state = s->seq[batch->lane[i]].state;
        if (state == SEQ_ADMITTED || state == SEQ_OPEN) batch->lane[kept++] = batch->lane[i];
    }
    batch->lanes = kept;
}

/* What ended leaves: its pages are free for whoever is opened by this step or a later one, since
 * every rank of the group works through steps in the order of their making. */
static void add_closes(struct sf_sched *s, struct group *group, struct batch *batch)
{
    for (int32_t i = 0; i < batch->lanes; i++) {
        struct seq *seq = &s->seq[batch->lane[i]];
        if (seq->state != SEQ_ENDED) continue;
        sched_leave(s, group, seq);
        s->step.close[s->step.closes++] = seq->id;
        seq->state = SEQ_FREE;
    }
    keep_lanes(s, batch);
}

/* Loses its place and waits again, at the front, for all that it can ever need; what it has been
 * given so far is fed to it again. */
static void preempt(struct sf_sched *s, struct group *group, struct seq *seq)
{
    sched_leave(s, group, seq);
    if (seq->state == SEQ_OPEN) {
        sched_untighten(s, seq);
        s->step.close[s->step.closes++] = seq->id;
        seq->id += UINT64_C(1) << SF_SEQ_ATTEMPT_BIT;
    }
    seq->known = seq->prompt + seq->sampled;
    seq->fed = 0;
    s->preempted++;
    sched_wait(s, seq, seq->prompt + seq->answer_max, 1);
}

static struct seq *youngest(struct sf_sched *s, const struct batch *batch)
{
    for (int32_t i = batch->lanes - 1; i >= 0; i--) {
        struct seq *seq = &s->seq[batch->lane[i]];
        if (seq->state == SEQ_ADMITTED || seq->state == SEQ_OPEN) return seq;
    }
    SF_ASSERT(0);
    return NULL;
}

/* Pages for the next row, and for some more after it where there are any: nobody gives way for
 * those. */
static int grow(struct sf_sched *s, struct group *group, struct seq *seq)
{
    int32_t next = seq->fed + 1, left = seq->prompt + seq->answer_max - next;
    return sched_grow(s, group, seq, next + (left < GROW_TOKENS ? left : GROW_TOKENS)) ||
           sched_grow(s, group, seq, next);
}

/* Every sequence that decodes has pages for its next row, or others are tightened, or lanes of the
 * micro-batch give way. */
static void make_pages(struct sf_sched *s, struct group *group, struct batch *batch)
{
    for (int32_t i = 0; i < batch->lanes; i++) {
        struct seq *seq = &s->seq[batch->lane[i]];
        while (seq->state == SEQ_OPEN && seq->fed >= seq->promised && !grow(s, group, seq))
            if (!sched_tighten(s, group, seq)) preempt(s, group, youngest(s, batch));
    }
    keep_lanes(s, batch);
}

/* ---- rows ------------------------------------------------------------------------------------ */
static void add_open(struct sf_sched *s, struct group *group, struct seq *seq)
{
    struct sf_wire_step *step = &s->step;
    sched_share(s, group, seq);
    struct sf_wire_open *open = &step->open[step->opens++];
    SF_ASSERT(seq->fed == seq->reused * s->limits.block_tokens);
    *open = (struct sf_wire_open){.seq = seq->id, .prompt = seq->prompt,
                                  .tokens_max = seq->prompt + seq->answer_max,
                                  .sampling = seq->sampling, .reused = seq->reused,
                                  .blocks = seq->blocks, .block = seq->block, .reused_first = -1};
    seq->state = SEQ_OPEN;
    if (seq->fed == 0 || !sf_wire_looks_back(&seq->sampling)) return;
    open->reused_first = step->tokens;
    memcpy(step->token + step->tokens, seq->token, (size_t)seq->fed * sizeof *step->token);
    step->tokens += seq->fed;
}

static void add_item(struct sf_sched *s, struct seq *seq, struct batch *batch, int32_t rows)
{
    struct sf_wire_step *step = &s->step;
    int32_t end = seq->fed + rows;
    int last = end >= seq->known;
    struct sf_wire_item *item = &step->item[step->items++];
    *item = (struct sf_wire_item){.seq = seq->id, .pos = seq->fed, .rows = rows, .token_first = -1,
                                  .next = -1, .logits = last ? SF_LOGITS_SAMPLE : SF_LOGITS_NONE};
    if (seq->fed < seq->known) {
        SF_ASSERT(rows <= seq->known - seq->fed);
        item->token_first = step->tokens;
        memcpy(step->token + step->tokens, seq->token + seq->fed,
               (size_t)rows * sizeof *step->token);
        step->tokens += rows;
    } else {
        /* The answer's last token is never fed, so this row is inside what it may grow to. */
        SF_ASSERT(rows == 1 && seq->sampled < seq->answer_max &&
                  seq->fed == seq->prompt + seq->sampled - 1);
    }
    if (seq->score_prompt && seq->fed < seq->prompt) {
        item->logits |= SF_LOGITS_ROWS;
        if (end < seq->prompt) item->next = seq->token[end];
    }
    if (last) batch->expected[batch->expects++] = (int32_t)(seq - s->seq);
    seq->fed = end;
    SF_ASSERT(seq->fed <= seq->promised);
}

/* Rows of the next chunk of known tokens; 0 if it has to wait for a step with more room.  A prompt
 * that is scored has chunks of its own: an answer that is fed again was scored when it was sampled.
 * So has one whose layers are encoded together, and so have pieces of its answer: all of them have
 * to end it before any goes on. */
static int32_t chunk_of(const struct sf_sched *s, const struct seq *seq, int32_t room)
{
    int apart = seq->score_prompt || s->limits.prompt_apart;
    int32_t every = s->limits.answer_apart, chunk = s->limits.chunk_rows, end = seq->known;
    if (apart && seq->fed < seq->prompt) end = seq->prompt;
    int32_t rows = end - seq->fed;
    if (every > 0 && seq->fed >= seq->prompt) {
        int32_t to_event = every - (seq->fed - seq->prompt) % every;
        if (rows > to_event) rows = to_event;
    }
    if (chunk == 0) return rows < room ? rows : room;
    int32_t to_border = chunk - seq->fed % chunk;
    if (rows > to_border) rows = to_border;
    return rows <= room ? rows : 0;
}

/* Chunks of known tokens, the oldest sequence first: a younger, shorter one does not pass. */
static void add_chunks(struct sf_sched *s, struct group *group, struct batch *batch, int32_t room)
{
    for (int32_t i = 0; i < batch->lanes && room > 0; i++) {
        struct seq *seq = &s->seq[batch->lane[i]];
        if (seq->fed >= seq->known) continue;
        if (seq->state == SEQ_ADMITTED) {
            if (sched_must_wait(s, group, seq)) continue;
            if (chunk_of(s, seq, room) == 0) break;
            add_open(s, group, seq);
        }
        int32_t rows = chunk_of(s, seq, room);
        if (rows == 0) break;
        add_item(s, seq, batch, rows);
        room -= rows;
    }
}

/* What the step computes can be attached from the next one on: the pages of a block are there only
 * once its rows have run, and all that a step attaches is attached before. */
static void fill_blocks(struct sf_sched *s, struct group *group, const struct batch *batch)
{
    for (int32_t i = 0; i < batch->lanes; i++) {
        struct seq *seq = &s->seq[batch->lane[i]];
        for (; seq->filled < seq->blocks &&
               seq->fed >= (seq->filled + 1) * s->limits.block_tokens; seq->filled++)
            sf_prefix_fill(group->prefix, seq->block[seq->filled]);
    }
}

void sched_build(struct sf_sched *s, struct group *group, struct batch *batch)
{
    struct sf_wire_step *step = &s->step;
    step->id = group->next_step++;
    step->batch = (int32_t)(batch - group->batch);
    step->stop = step->measure = 0;
    step->closes = step->drops = step->tightens = step->opens = step->items = step->tokens = 0;
    add_closes(s, group, batch);
    make_pages(s, group, batch);
    sched_admit(s);
    int32_t room = s->limits.rows_max;
    for (int32_t i = 0; i < batch->lanes; i++) {
        struct seq *seq = &s->seq[batch->lane[i]];
        if (seq->state != SEQ_OPEN || seq->fed < seq->known) continue;
        add_item(s, seq, batch, 1);
        room--;
    }
    SF_ASSERT(room >= 0);
    add_chunks(s, group, batch, room);
    fill_blocks(s, group, batch);
    step->drop = group->drop;
    step->drops = group->drops;
    group->drops = 0;
    batch->busy = 1;
    batch->step = step->id;
    s->in_flight++;
}
