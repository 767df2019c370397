/* coordinator/sched_tighten.c: memory pressure: who is tightened when a sequence that decodes needs
 * pages and none are left (sched.h).
 *
 *   pages of a rank   | a a a a | b b b b b b | c c c c |     c grows by one, nothing is free
 *   tighten b         | a a a a | b b b . . . | c c c c c |   with the step that is built
 *
 * Any open sequence of the group may be asked, also one whose micro-batch is in flight: every rank
 * works through steps in the order of their making, so its rows have run when this step comes.  It
 * must have decoded since it was cut last, so that its method has seen rows to judge by; so none is
 * tightened twice in a step, and asking comes to an end. */
#include "coordinator/sched_impl.h"

/* Pages that tightening saves, of all ranks together and each in s->saved; 0 where it may not be
 * tightened now.  Of the one that grows it counts what it is about to need.  Where a method would
 * need more when it is tightened once more, nothing is saved. */
static int64_t saving(const struct sf_sched *s, const struct seq *seq, const struct seq *growing)
{
    int32_t tokens = seq == growing ? seq->fed + 1 : seq->promised;
    int64_t sum = 0;
    if (seq->state != SEQ_OPEN || seq->settled == 0 || seq->settled == UINT8_MAX ||
        seq->fed <= seq->cut)
        return 0;
    int64_t *less = s->saved + s->limits.ranks;
    sched_own_pages(s, seq, tokens, seq->settled, s->saved);
    sched_own_pages(s, seq, tokens, seq->settled + 1, less);
    for (int32_t r = 0; r < s->limits.ranks; r++) {
        s->saved[r] = less[r] < s->saved[r] ? s->saved[r] - less[r] : 0;
        sum += s->saved[r];
    }
    return sum;
}

int sched_tighten(struct sf_sched *s, struct group *group, const struct seq *growing)
{
    struct seq *best = NULL;
    int64_t most = 0;
    if (!s->limits.tightens) return 0;
    sched_own_pages(s, growing, growing->fed + 1, growing->settled, s->more);
    for (int32_t r = 0; r < s->limits.ranks; r++) s->more[r] -= sched_need(s, growing)[r];
    for (int32_t b = 0; b < s->limits.micro_batches; b++)
        for (int32_t i = 0; i < group->batch[b].lanes; i++) {
            struct seq *seq = &s->seq[group->batch[b].lane[i]];
            int64_t pages = saving(s, seq, growing);
            if (pages == 0) continue;
            for (int32_t r = 0; r < s->limits.ranks; r++) s->more[r] -= s->saved[r];
            if (pages > most) best = seq;
            if (pages > most) most = pages;
        }
    if (best == NULL || !sched_has_pages(s, group, s->more)) return 0;
    s->step.tighten[s->step.tightens++] =
        (struct sf_wire_tighten){.seq = best->id, .tokens = best->fed};
    sched_cut(s, group, best);
    s->tightened++;
    return 1;
}

void sched_untighten(struct sf_sched *s, const struct seq *seq)
{
    struct sf_wire_step *step = &s->step;
    int32_t kept = 0;
    for (int32_t i = 0; i < step->tightens; i++)
        if (step->tighten[i].seq != seq->id) step->tighten[kept++] = step->tighten[i];
    s->tightened -= step->tightens - kept;
    step->tightens = kept;
}
