/* The model of the workers: what a step does to them, and what it must not do (sched_model.h). */
#include "tests/unit/coordinator/sched_model.h"

#include "tests/check.h"

enum { HALVED = 16 };                   /* pages of a lane without a window that was tightened
                                           once, doubled */

/* ---- pages ----------------------------------------------------------------------------------- */
void model_need(void *model, int32_t prompt, int32_t tokens, int settled, int64_t *pages_out)
{
    const struct model *m = model;
    int32_t size = m->shape.page_tokens, window = m->shape.window;
    int64_t lane = (tokens + size - 1) / size;
    if (window > 0 && lane > window) lane = window;
    if (window > 0 && tokens >= prompt && !settled) lane += (prompt + size - 1) / size / 4;
    int64_t most = settled > 1 ? (window > 0 ? window : HALVED) >> (settled - 1) : lane;
    if (most < 1) most = 1;
    if (lane > most) lane = most;
    for (int32_t r = 0; r < m->shape.ranks; r++)
        pages_out[r] = m->flush ? m->pages[r] : lane * (r + 1);
}

/* What the store holds for a sequence by itself: where lanes only grow, the pages of the blocks
 * that it has attached or filled are held by those. */
static void hold_pages(struct model *m, int32_t g, const struct sf_wire_step *step,
                       struct known *known)
{
    int64_t pages[RANKS] = {0};
    if (known->state == OPEN) model_need(m, known->prompt, known->fed, known->settled, pages);
    for (int32_t r = 0; r < m->shape.ranks; r++) {
        if (known->state == OPEN && m->shape.sharing == SF_SHARE_KEPT)
            pages[r] -= known->filled * (r + 1);
        PROMISE(m, pages[r] >= 0);
        m->held[g][r] += pages[r] - known->pages[r];
        known->pages[r] = pages[r];
    }
}

static void hold_block(struct model *m, int32_t g, int sign)
{
    for (int32_t r = 0; r < m->shape.ranks; r++) m->held[g][r] += sign * (r + 1);
}

static void check_pages(struct model *m, int32_t g, const struct sf_wire_step *step)
{
    double use = sf_sched_load(m->sched).kv_use;        /* admitted ones count before they open */
    PROMISE(m, use <= 1.0);
    for (int32_t r = 0; r < m->shape.ranks; r++) {
        int64_t pages = m->pages[g * m->shape.ranks + r];
        PROMISE(m, m->held[g][r] >= 0 && m->held[g][r] <= pages);
        PROMISE(m, use * (double)pages >= (double)m->held[g][r] - 1e-6);
    }
}

void model_result(struct model *m, int32_t g, int32_t b)
{
    const struct sf_wire_step *step = &(struct sf_wire_step){.id = m->flight[g][b].step};
    for (int32_t i = 0; i < SLOTS; i++) {
        struct known *known = &m->known[i];
        if (known->state != OPEN || known->group != g || known->batch != b ||
            known->settled || known->fed < known->prompt)
            continue;
        known->settled = 1;
        known->cut = known->prompt;
        hold_pages(m, g, step, known);
        m->settled++;
    }
}

/* ---- who leaves ------------------------------------------------------------------------------ */
static struct known *find(struct model *m, uint64_t seq)
{
    return &m->known[sf_seq_slot(seq) % SLOTS];
}

static void free_block(struct model *m, int32_t g, int32_t b)
{
    struct known_block *block = &m->block[g][b];
    if (block->parent >= 0) m->block[g][block->parent].children--;
    block->state = BLOCK_FREE;
    m->blocks[g]--;
}

static void let_blocks_go(struct model *m, int32_t g, const struct sf_wire_step *step,
                          struct known *known)
{
    for (int32_t i = known->blocks - 1; i >= 0; i--) {
        struct known_block *block = &m->block[g][known->block[i]];
        PROMISE(m, block->holders > 0);
        PROMISE(m, block->state == (i < known->filled ? BLOCK_FILLED : BLOCK_PENDING));
        if (--block->holders > 0 || block->state == BLOCK_FILLED) continue;
        PROMISE(m, block->children == 0);
        free_block(m, g, known->block[i]);
    }
    known->blocks = known->filled = 0;
}

/* What ended is gone; what did not has lost its place, and nobody keeps one who got it later.  The
 * model does not see when a place was got, but sequences are opened in that order, save those that
 * may have waited for blocks. */
static void take_closes(struct model *m, int32_t g, const struct sf_wire_step *step)
{
    int64_t oldest = INT64_MAX;
    for (int32_t i = 0; i < step->closes; i++) {
        struct known *known = find(m, step->close[i]);
        PROMISE(m, known->seq == step->close[i] && (known->state == OPEN || known->state == ENDED));
        PROMISE(m, known->group == g && known->batch == step->batch);
        int preempted = known->state == OPEN;
        let_blocks_go(m, g, step, known);
        known->state = preempted ? WAITING : FREE;
        hold_pages(m, g, step, known);
        m->open[g]--;
        m->closed += !preempted;
        m->preempted += preempted;
        if (!preempted) continue;
        known->seq += UINT64_C(1) << SF_SEQ_ATTEMPT_BIT;
        if (known->opened < oldest) oldest = known->opened;
    }
    for (int32_t i = 0; i < SLOTS && oldest < INT64_MAX; i++) {
        const struct known *known = &m->known[i];
        if (known->state != OPEN || known->group != g || known->batch != step->batch) continue;
        if (known->alone || m->shape.sharing == SF_SHARE_NOTHING)
            PROMISE(m, known->opened < oldest);
    }
}

static void take_drops(struct model *m, int32_t g, const struct sf_wire_step *step)
{
    for (int32_t i = 0; i < step->drops; i++) {
        int32_t b = step->drop[i];
        PROMISE(m, b >= 0 && b < m->blocks_max);
        if (b < 0 || b >= m->blocks_max) return;
        const struct known_block *block = &m->block[g][b];
        PROMISE(m, block->state == BLOCK_FILLED && block->holders == 0 && block->children == 0);
        free_block(m, g, b);
        hold_block(m, g, -1);
        m->dropped++;
    }
}

/* Somebody who is open and has decoded since its cache was cut last; once in a step. */
static void take_tightens(struct model *m, int32_t g, const struct sf_wire_step *step)
{
    PROMISE(m, step->tightens == 0 || m->shape.tightens);
    for (int32_t i = 0; i < step->tightens; i++) {
        struct known *known = find(m, step->tighten[i].seq);
        PROMISE(m, known->seq == step->tighten[i].seq && known->state == OPEN);
        PROMISE(m, known->group == g && step->tighten[i].tokens == known->fed);
        PROMISE(m, known->settled > 0 && known->fed > known->cut);
        if (m->bad) return;
        int64_t before = known->pages[0];
        known->settled++;
        known->cut = known->fed;
        hold_pages(m, g, step, known);
        PROMISE(m, known->pages[0] <= before);
        m->given_back += before - known->pages[0];
        m->tightened++;
    }
}

/* ---- who enters ------------------------------------------------------------------------------ */
/* The block behind `parent` with these tokens, filled or not; -1 if there is none. */
static int32_t find_block(const struct model *m, int32_t g, int32_t parent, const int32_t *token)
{
    size_t bytes = (size_t)m->shape.page_tokens * sizeof *token;
    for (int32_t b = 0; b < m->blocks_max; b++) {
        const struct known_block *block = &m->block[g][b];
        if (block->state != BLOCK_FREE && block->parent == parent &&
            memcmp(block->token, token, bytes) == 0)
            return b;
    }
    return -1;
}

static int32_t attach(void *model, int32_t prompt, int32_t blocks)
{
    const struct model *m = model;
    if (m->shape.own == 0) return blocks;
    int32_t most = prompt > m->shape.own ? (prompt - m->shape.own) / m->shape.page_tokens : 0;
    return (blocks < most ? blocks : most) / 2 * 2;
}

static void open_block(struct model *m, int32_t g, const struct sf_wire_step *step,
                       struct known *known, int there, int32_t b)
{
    int32_t size = m->shape.page_tokens, at = known->blocks++;
    int32_t parent = at > 0 ? known->block[at - 1] : -1;
    const int32_t *token = known->token + at * size;
    known->block[at] = b;
    struct known_block *block = &m->block[g][b];
    if (there) {
        PROMISE(m, block->state == BLOCK_FILLED && block->filled_by < step->id);
        PROMISE(m, block->parent == parent);
        PROMISE(m, memcmp(block->token, token, (size_t)size * sizeof *token) == 0);
        block->holders++;
        known->filled++;
        return;
    }
    PROMISE(m, block->state == BLOCK_FREE && find_block(m, g, parent, token) < 0);
    *block = (struct known_block){.state = BLOCK_PENDING, .parent = parent, .holders = 1};
    memcpy(block->token, token, (size_t)size * sizeof *token);
    if (parent >= 0) m->block[g][parent].children++;
    m->blocks[g]++;
}

/* All blocks that are there are attached, as far as the rule allows, or else held, and none that
 * somebody else is filling is computed beside it, if it could be attached; all the others of the
 * prompt are filled, as far as there are pages and numbers. */
static void open_blocks(struct model *m, int32_t g, const struct sf_wire_step *step,
                        const struct sf_wire_open *open, struct known *known)
{
    int32_t size = m->shape.page_tokens, reused = open->reused, blocks = open->blocks;
    PROMISE(m, reused >= 0 && reused <= blocks && blocks <= known->prompt / size);
    PROMISE(m, reused * size < known->prompt && (!known->scored || reused == 0));
    PROMISE(m, m->shape.sharing != SF_SHARE_NOTHING || blocks == 0);
    known->blocks = known->filled = 0;
    int32_t there = 0, whole = (known->prompt - 1) / size;
    for (int32_t i = 0; i < blocks; i++) {
        PROMISE(m, open->block[i] >= 0 && open->block[i] < m->blocks_max);
        if (m->bad) return;
        there += there == i && m->block[g][open->block[i]].state == BLOCK_FILLED;
        open_block(m, g, step, known, i < there, open->block[i]);
    }
    if (known->scored) PROMISE(m, there == 0);
    else PROMISE(m, reused == attach(m, known->prompt, there));
    if (there < whole && there == blocks && !known->scored &&
        attach(m, known->prompt, whole) > reused)
        PROMISE(m, find_block(m, g, there > 0 ? known->block[there - 1] : -1,
                              known->token + there * size) < 0);
    if (m->shape.sharing == SF_SHARE_KEPT && blocks < known->prompt / size)
        PROMISE(m, m->blocks[g] == m->blocks_max ||
                       find_block(m, g, blocks > 0 ? known->block[blocks - 1] : -1,
                                  known->token + blocks * size) >= 0);
}

/* The places of step.token that something points at. */
static uint8_t pointed[SLOTS * (PROMPT + ANSWER)];

static void take_tokens(struct model *m, int32_t g, const struct sf_wire_step *step, int32_t first,
                        int32_t count, const int32_t *expected)
{
    PROMISE(m, first >= 0 && first <= step->tokens - count);
    if (m->bad) return;
    PROMISE(m, memcmp(step->token + first, expected, (size_t)count * sizeof *expected) == 0);
    for (int32_t i = first; i < first + count; i++) {
        PROMISE(m, pointed[i] == 0);
        pointed[i] = 1;
    }
}

static int same_sampling(const struct sf_wire_sampling *a, const struct sf_wire_sampling *b)
{
    return a->temperature == b->temperature && a->repetition == b->repetition &&
           a->rng_key == b->rng_key && a->rng_stream == b->rng_stream && a->biases == b->biases &&
           a->bias == b->bias && a->scores == b->scores && a->tops == b->tops;
}

static void take_open(struct model *m, int32_t g, const struct sf_wire_step *step,
                      const struct sf_wire_open *open)
{
    struct known *known = find(m, open->seq);
    PROMISE(m, known->seq == open->seq && known->state == WAITING);
    if (m->bad) return;
    PROMISE(m, open->prompt == known->prompt &&
                   open->tokens_max == known->prompt + known->answer_max);
    PROMISE(m, same_sampling(&open->sampling, &known->sampling));
    open_blocks(m, g, step, open, known);
    known->fed = open->reused * m->shape.page_tokens;
    known->settled = 0;
    known->known = known->prompt + known->sampled;
    if (known->fed > 0 && sf_wire_looks_back(&open->sampling))
        take_tokens(m, g, step, open->reused_first, known->fed, known->token);
    else
        PROMISE(m, open->reused_first == -1);
    known->state = OPEN;
    known->group = g;
    known->batch = step->batch;
    known->opened = m->opened++;
    m->reused += known->fed;
    hold_pages(m, g, step, known);
    m->open[g]++;
    /* First in, first out, where nobody that lost a place or waited for blocks comes between. */
    uint64_t name = sf_seq_name(known->seq), *newest = &m->newest[g][step->batch];
    if (!known->alone || m->shape.pool != POOL_GENEROUS || m->last) return;
    PROMISE(m, name > *newest);
    *newest = name;
}

static void take_opens(struct model *m, int32_t g, const struct sf_wire_step *step)
{
    int32_t places = m->shape.seqs / m->shape.batches +
                     (step->batch < m->shape.seqs % m->shape.batches), here = 0;
    for (int32_t i = 0; i < step->opens; i++) take_open(m, g, step, &step->open[i]);
    PROMISE(m, m->open[g] <= m->shape.seqs);
    for (int32_t i = 0; i < SLOTS; i++)
        here += (m->known[i].state == OPEN || m->known[i].state == ENDED) &&
                m->known[i].group == g && m->known[i].batch == step->batch;
    PROMISE(m, here <= places);
}

/* ---- rows ------------------------------------------------------------------------------------ */
/* Whether rows of known tokens may have to end before `pos` without another reason. */
static int is_border(const struct model *m, const struct known *known, int32_t pos)
{
    if (pos == known->prompt) return known->scored || m->shape.apart > 0;
    return m->shape.apart > 0 && pos > known->prompt &&
           (pos - known->prompt) % m->shape.apart == 0;
}

static void take_known_rows(struct model *m, int32_t g, const struct sf_wire_step *step,
                            const struct sf_wire_item *item, const struct known *known)
{
    int32_t chunk = m->shape.chunk, end = item->pos + item->rows;
    int scored = known->scored && item->pos < known->prompt;
    PROMISE(m, item->rows >= 1 && end <= known->known);
    if (m->bad) return;
    take_tokens(m, g, step, item->token_first, item->rows, known->token + item->pos);
    if (chunk > 0)
        PROMISE(m, item->rows <= chunk &&
                       (end % chunk == 0 || end == known->known || is_border(m, known, end)));
    for (int32_t pos = item->pos + 1; pos < end && m->shape.apart > 0; pos++)
        PROMISE(m, !is_border(m, known, pos));
    PROMISE(m, ((item->logits & SF_LOGITS_ROWS) != 0) == scored);
    PROMISE(m, !scored || end <= known->prompt);
    PROMISE(m, item->next == (scored && end < known->prompt ? known->token[end] : -1));
}

static void fill_blocks(struct model *m, int32_t g, const struct sf_wire_step *step,
                        struct known *known)
{
    for (; known->filled < known->blocks &&
           known->fed >= (known->filled + 1) * m->shape.page_tokens; known->filled++) {
        struct known_block *block = &m->block[g][known->block[known->filled]];
        block->state = BLOCK_FILLED;
        block->filled_by = step->id;
        hold_block(m, g, 1);
    }
    hold_pages(m, g, step, known);
}

static void take_items(struct model *m, int32_t g, const struct sf_wire_step *step)
{
    struct flight *flight = &m->flight[g][step->batch];
    int32_t rows = 0, chunks = 0;
    flight->samples = 0;
    for (int32_t i = 0; i < step->items && m->bad == 0; i++) {
        const struct sf_wire_item *item = &step->item[i];
        struct known *known = find(m, item->seq);
        int32_t end = item->pos + item->rows;
        PROMISE(m, known->seq == item->seq && known->state == OPEN);
        PROMISE(m, known->group == g && known->batch == step->batch && item->pos == known->fed);
        PROMISE(m, ((item->logits & SF_LOGITS_SAMPLE) != 0) == (end >= known->known));
        if (item->pos < known->known) {
            take_known_rows(m, g, step, item, known);
            chunks++;
        } else {
            PROMISE(m, item->rows == 1 && item->token_first == -1 && item->next == -1);
            PROMISE(m, chunks == 0 && item->logits == SF_LOGITS_SAMPLE);
            PROMISE(m, item->pos == known->prompt + known->sampled - 1 &&
                           known->sampled < known->answer_max);
        }
        for (int32_t j = 0; j < i; j++) PROMISE(m, step->item[j].seq != item->seq);
        known->fed = end;
        fill_blocks(m, g, step, known);
        rows += item->rows;
        if (item->logits & SF_LOGITS_SAMPLE) flight->seq[flight->samples++] = item->seq;
    }
    PROMISE(m, rows <= m->shape.rows && (rows > 0 || step->closes > 0));
    /* Nobody that decodes is left out, and no row is empty while somebody has known tokens. */
    for (int32_t i = 0; i < SLOTS; i++) {
        const struct known *known = &m->known[i];
        if (known->state != OPEN || known->group != g || known->batch != step->batch) continue;
        if (known->fed >= known->known)
            PROMISE(m, known->fed == known->prompt + known->sampled);
        else
            PROMISE(m, rows == m->shape.rows || m->shape.chunk > 0 ||
                           is_border(m, known, known->fed));
    }
}

/* ---- whole steps ----------------------------------------------------------------------------- */
void model_take(struct model *m, int32_t g, const struct sf_wire_step *step)
{
    static struct sf_buffer packed;     /* of the whole program */
    PROMISE(m, g >= 0 && g < m->shape.groups);
    PROMISE(m, step->batch >= 0 && step->batch < m->shape.batches);
    PROMISE(m, step->tokens >= 0 && step->tokens <= (int32_t)sizeof pointed);
    if (m->bad) return;
    struct flight *flight = &m->flight[g][step->batch];
    PROMISE(m, !flight->busy && step->id == m->next_step[g]++);
    PROMISE(m, !step->stop && !step->measure);
    if (m->steps++ % 16 == 0) PROMISE(m, sf_wire_pack_step(step, &packed) == SF_OK);
    memset(pointed, 0, (size_t)step->tokens);
    take_closes(m, g, step);
    take_drops(m, g, step);
    take_tightens(m, g, step);
    take_opens(m, g, step);
    take_items(m, g, step);
    for (int32_t i = 0; i < step->tokens; i++) PROMISE(m, pointed[i]);
    check_pages(m, g, step);
    flight->busy = 1;
    flight->step = step->id;
    m->in_flight++;
}

void model_take_empty(struct model *m, int32_t g, const struct sf_wire_step *step)
{
    PROMISE(m, step->id == m->next_step[g]++);
    PROMISE(m, step->closes + step->drops + step->opens + step->items + step->tokens == 0);
    PROMISE(m, step->tightens == 0);
    PROMISE(m, !step->stop && !step->measure);
}

int model_make(struct model *m, const struct shape *shape)
{
    static const int64_t block_pages[RANKS] = {1, 2, 3};        /* a page of each lane */
    *m = (struct model){.shape = *shape};
    SF_ASSERT(shape->groups <= GROUPS && shape->batches <= BATCHES && shape->ranks <= RANKS);
    SF_ASSERT(shape->page_tokens <= PAGE_TOKENS && shape->prompt <= PROMPT);
    SF_ASSERT(shape->seqs <= SLOTS && shape->answer <= ANSWER);
    /* Where nothing is shared, the groups are not alike either. */
    for (int32_t i = 0; i < shape->groups * shape->ranks; i++)
        m->pages[i] = shape->pages * (i % shape->ranks + 1) +
                      (shape->sharing == SF_SHARE_NOTHING ? i % 4 : 0);
    m->blocks_max = shape->pages < BLOCKS ? (int32_t)shape->pages : BLOCKS;
    const struct sf_sched_limits limits = {
        .groups = shape->groups, .stages = (shape->batches + 1) / 2,
        .micro_batches = shape->batches, .ranks = shape->ranks,
        .seqs_max = shape->seqs, .rows_max = shape->rows, .chunk_rows = shape->chunk,
        .prompt_apart = shape->apart > 0, .answer_apart = shape->apart,
        .slots_max = SLOTS, .pages = m->pages, .need = model_need, .need_arg = m,
        .tightens = (uint8_t)shape->tightens, .sharing = shape->sharing,
        .block_tokens = shape->page_tokens,
        .blocks_max = m->blocks_max, .block_pages = block_pages,
        .attach = shape->own > 0 ? attach : NULL, .attach_arg = m};
    return sf_sched_create(&limits, &m->sched) == SF_OK;
}
