/* coordinator/sched_admit.c: who gets a place, and which pages are promised to whom (sched.h).
 *
 *   pages of a rank | seq a | seq b |  seq c  | blocks of the prefix cache |  free  |
 *
 * A sequence is promised pages for so many tokens; blocks are promised by themselves, one at a
 * time.  Where lanes only grow, the pages of a block that a sequence holds are not its own; so it
 * holds those that are there as soon as it has a place.  Blocks that nobody holds count as free:
 * they are evicted when somebody wants their pages. */
#include <stdlib.h>

#include "coordinator/sched_impl.h"

/* ---- pages ----------------------------------------------------------------------------------- */
/* Whether every rank would have the pages if `blocks` were evicted. */
static int fits(const struct sf_sched *s, const struct group *group, const int64_t *more,
                int32_t blocks)
{
    const int64_t *pages = s->pages + (size_t)(group - s->group) * (size_t)s->limits.ranks;
    for (int32_t r = 0; r < s->limits.ranks; r++)
        if (more[r] > pages[r] - group->promised[r] + blocks * s->block_pages[r]) return 0;
    return 1;
}

static int32_t unheld(const struct group *group)
{
    return group->prefix != NULL ? sf_prefix_unheld(group->prefix) : 0;
}

static void promise(const struct sf_sched *s, struct group *group, const int64_t *pages, int sign)
{
    for (int32_t r = 0; r < s->limits.ranks; r++) {
        group->promised[r] += sign * pages[r];
        SF_ASSERT(group->promised[r] >= 0);
    }
}

/* Evicts unused blocks until the pages are there; none if that would not do. */
static int make_room(struct sf_sched *s, struct group *group, const int64_t *more)
{
    if (!sched_has_pages(s, group, more)) return 0;
    while (!fits(s, group, more, 0)) {
        int32_t block = sf_prefix_evict(group->prefix);
        SF_ASSERT(block >= 0 && group->drops < s->limits.blocks_max);
        group->drop[group->drops++] = block;
        promise(s, group, s->block_pages, -1);
        s->evicted_blocks++;
    }
    return 1;
}

int sched_fits_alone(const struct sf_sched *s, const int64_t *need)
{
    for (int32_t g = 0; g < s->limits.groups; g++) {
        const int64_t *pages = s->pages + (size_t)g * (size_t)s->limits.ranks;
        int32_t r = 0;
        while (r < s->limits.ranks && need[r] <= pages[r]) r++;
        if (r == s->limits.ranks) return 1;
    }
    return 0;
}

int sched_has_pages(const struct sf_sched *s, const struct group *group, const int64_t *more)
{
    return fits(s, group, more, unheld(group));
}

void sched_own_pages(const struct sf_sched *s, const struct seq *seq, int32_t tokens, int settled,
                     int64_t *out)
{
    s->limits.need(s->limits.need_arg, seq->prompt, tokens, settled, out);
    for (int32_t r = 0; r < s->limits.ranks && s->limits.sharing == SF_SHARE_KEPT; r++)
        out[r] -= seq->blocks * s->block_pages[r];
}

int sched_grow(struct sf_sched *s, struct group *group, struct seq *seq, int32_t tokens)
{
    int64_t *need = sched_need(s, seq);
    sched_own_pages(s, seq, tokens, seq->settled, s->more);
    for (int32_t r = 0; r < s->limits.ranks; r++) {
        s->more[r] -= need[r];
        SF_ASSERT(s->more[r] >= 0);
    }
    if (!make_room(s, group, s->more)) return 0;
    promise(s, group, s->more, 1);
    for (int32_t r = 0; r < s->limits.ranks; r++) need[r] += s->more[r];
    seq->promised = tokens;
    return 1;
}

void sched_cut(struct sf_sched *s, struct group *group, struct seq *seq)
{
    int64_t *need = sched_need(s, seq);
    seq->cut = seq->settled++ == 0 ? seq->prompt : seq->fed;
    sched_own_pages(s, seq, seq->promised, seq->settled, s->more);
    for (int32_t r = 0; r < s->limits.ranks; r++) {
        if (s->more[r] >= need[r]) continue;    /* no budget rises, so no more is held */
        group->promised[r] -= need[r] - s->more[r];
        need[r] = s->more[r];
    }
}

void sched_settle(struct sf_sched *s, struct group *group, const struct batch *batch)
{
    for (int32_t i = 0; i < batch->lanes; i++) {
        struct seq *seq = &s->seq[batch->lane[i]];
        if (seq->state != SEQ_OPEN || seq->settled || seq->fed < seq->prompt) continue;
        sched_cut(s, group, seq);
    }
}

/* ---- places ---------------------------------------------------------------------------------- */
/* Tokens that may come from shared blocks: at least one row of the prompt is computed. */
static int32_t shareable(const struct seq *seq) { return seq->score_prompt ? 0 : seq->prompt - 1; }

/* How many of the blocks that are there it attaches. */
static int32_t attachable(const struct sf_sched *s, const struct seq *seq, int32_t blocks)
{
    return s->limits.attach ? s->limits.attach(s->limits.attach_arg, seq->prompt, blocks) : blocks;
}

/* Whether a group has the pages for a waiting sequence.  Those of a block that it will share with
 * somebody else are there already; of one that nobody holds, they are free for it or anybody. */
static int has_pages(const struct sf_sched *s, const struct group *group, const struct seq *seq)
{
    const int64_t *need = sched_need(s, seq);
    if (fits(s, group, need, unheld(group))) return 1;
    if (s->limits.sharing != SF_SHARE_KEPT) return 0;
    int32_t held = sf_prefix_find(group->prefix, seq->token, shareable(seq)).held;
    return fits(s, group, need, unheld(group) + held);
}

/* The micro-batch of a group with the fewest sequences and a place for one more; NULL: none.  As
 * many as there are stages are filled first. */
static struct batch *emptiest(const struct sf_sched *s, const struct group *group)
{
    struct batch *best = NULL;
    for (int32_t b = 0; b < s->limits.micro_batches; b++) {
        struct batch *batch = &group->batch[b];
        if (b == s->limits.stages && best != NULL && best->lanes < SF_SCHED_ROWS_WORTH) break;
        if (batch->lanes < batch->lanes_max && (best == NULL || batch->lanes < best->lanes))
            best = batch;
    }
    return best;
}

/* The micro-batch with the fewest sequences that has a place for this one, in the group with the
 * fewest where that is equal; 0 if there is none. */
static int find_place(struct sf_sched *s, const struct seq *seq, struct group **group_out,
                      struct batch **batch_out)
{
    struct group *best = NULL;
    struct batch *best_batch = NULL;
    for (int32_t g = 0; g < s->limits.groups; g++) {
        struct group *group = &s->group[g];
        struct batch *batch = emptiest(s, group);
        if (batch == NULL || !has_pages(s, group, seq)) continue;
        if (best != NULL && (batch->lanes > best_batch->lanes ||
                             (batch->lanes == best_batch->lanes && group->lanes >= best->lanes)))
            continue;
        best = group;
        best_batch = batch;
    }
    *group_out = best;
    *batch_out = best_batch;
    return best != NULL;
}

void sched_wait(struct sf_sched *s, struct seq *seq, int32_t tokens, int first)
{
    int32_t max = s->limits.slots_max, slot = (int32_t)(seq - s->seq);
    SF_ASSERT(s->waiting_count < max);
    s->limits.need(s->limits.need_arg, seq->prompt, tokens, 0, sched_need(s, seq));
    seq->promised = tokens;
    seq->settled = 0;
    seq->state = SEQ_WAITING;
    if (first) s->waiting_first = (s->waiting_first + max - 1) % max;
    s->waiting[(s->waiting_first + (first ? 0 : s->waiting_count)) % max] = slot;
    s->waiting_count++;
}

/* Brings the waiting sequence with the most tokens still to be sampled to the front. */
static void longest_first(struct sf_sched *s)
{
    int32_t max = s->limits.slots_max, best = s->waiting_first, most = -1;
    for (int32_t i = 0; i < s->waiting_count; i++) {
        int32_t place = (s->waiting_first + i) % max;
        const struct seq *seq = &s->seq[s->waiting[place]];
        if (seq->answer_max - seq->sampled <= most) continue;
        most = seq->answer_max - seq->sampled;
        best = place;
    }
    int32_t slot = s->waiting[best];
    for (int32_t place = best; place != s->waiting_first; place = (place + max - 1) % max)
        s->waiting[place] = s->waiting[(place + max - 1) % max];
    s->waiting[s->waiting_first] = slot;
}

/* Holds the blocks of its prompt that are there, beside those that it holds already.  Returns how
 * many came to it; where lanes only grow, it needs so many fewer pages of its own. */
static int32_t hold_blocks(const struct sf_sched *s, struct group *group, struct seq *seq)
{
    int32_t before = seq->blocks, whole = group->prefix ? seq->prompt / s->limits.block_tokens : 0;
    if (whole == 0) return 0;
    if (seq->block == NULL) seq->block = malloc((size_t)whole * sizeof *seq->block);
    if (seq->block == NULL) return 0;
    seq->blocks = sf_prefix_hold(group->prefix, seq->token, shareable(seq), seq->block);
    SF_ASSERT(seq->blocks >= before);
    for (int32_t i = 0; i < before; i++) sf_prefix_release(group->prefix, seq->block[i]);
    seq->filled = seq->blocks;
    seq->reused = attachable(s, seq, seq->blocks);
    for (int32_t r = 0; r < s->limits.ranks && s->limits.sharing == SF_SHARE_KEPT; r++) {
        sched_need(s, seq)[r] -= (seq->blocks - before) * s->block_pages[r];
        SF_ASSERT(sched_need(s, seq)[r] >= 0);
    }
    return seq->blocks - before;
}

/* Strictly first in, first out: who does not fit holds up those behind, so nobody starves. */
void sched_admit(struct sf_sched *s)
{
    while (s->waiting_count > 0) {
        struct group *group;
        struct batch *batch;
        if (s->last) longest_first(s);
        struct seq *seq = &s->seq[s->waiting[s->waiting_first]];
        SF_ASSERT(seq->state == SEQ_WAITING && seq->blocks == 0);
        if (!find_place(s, seq, &group, &batch)) return;
        if (s->limits.sharing == SF_SHARE_KEPT) hold_blocks(s, group, seq);
        if (!make_room(s, group, sched_need(s, seq))) return;   /* there was no memory to hold */
        promise(s, group, sched_need(s, seq), 1);
        batch->lane[batch->lanes++] = (int32_t)(seq - s->seq);
        group->lanes++;
        seq->state = SEQ_ADMITTED;
        s->running++;
        s->waiting_first = (s->waiting_first + 1) % s->limits.slots_max;
        s->waiting_count--;
    }
}

/* ---- sharing --------------------------------------------------------------------------------- */
int sched_must_wait(const struct sf_sched *s, const struct group *group, const struct seq *seq)
{
    if (group->prefix == NULL || seq->score_prompt) return 0;
    struct sf_prefix_match match = sf_prefix_find(group->prefix, seq->token, shareable(seq));
    int32_t most = shareable(seq) / s->limits.block_tokens;
    return match.pending && attachable(s, seq, most) > attachable(s, seq, match.blocks);
}

void sched_share(struct sf_sched *s, struct group *group, struct seq *seq)
{
    int32_t size = s->limits.block_tokens, attached = hold_blocks(s, group, seq);
    int kept = s->limits.sharing == SF_SHARE_KEPT;
    if (seq->block == NULL) return;
    seq->fed = seq->reused * size;
    s->reused_tokens += seq->fed;
    for (int32_t r = 0; r < s->limits.ranks && kept; r++) {
        group->promised[r] -= attached * s->block_pages[r];
        SF_ASSERT(group->promised[r] >= 0);
    }
    /* A new block takes pages that were promised to this sequence, or others beside them. */
    while (seq->blocks < seq->prompt / size) {
        if (!kept && !make_room(s, group, s->block_pages)) break;
        int32_t parent = seq->blocks > 0 ? seq->block[seq->blocks - 1] : -1;
        int32_t block = sf_prefix_add(group->prefix, parent, seq->token + seq->blocks * size);
        if (block < 0) break;
        seq->block[seq->blocks++] = block;
        for (int32_t r = 0; r < s->limits.ranks && kept; r++)
            sched_need(s, seq)[r] -= s->block_pages[r];
        if (!kept) promise(s, group, s->block_pages, 1);
    }
}

void sched_leave(struct sf_sched *s, struct group *group, struct seq *seq)
{
    promise(s, group, sched_need(s, seq), -1);
    for (int32_t i = seq->blocks - 1; i >= 0; i--)      /* the leaf first */
        if (sf_prefix_release(group->prefix, seq->block[i]))
            promise(s, group, s->block_pages, -1);
    free(seq->block);
    seq->block = NULL;
    seq->blocks = seq->reused = seq->filled = 0;
    group->lanes--;
    s->running--;
}
