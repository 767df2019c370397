/* tests/unit/coordinator/resume_random.c: jobs that die again and again lose nothing and make
 * nothing twice.
 *
 * Random runs, each killed at a random byte of a random write, or by a power cut (what was not
 * synced is cut anywhere, in each file by itself, or is zeros), resumed with and without taking
 * errors out until all records are there.  After each kill exactly what stood whole in OUT is
 * finished, and the tokens of all others are what the journal had; after a power cut at least what
 * was synced is, and nothing that never was. */
#include <stdlib.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/check.h"
#include "tests/unit/coordinator/resume_rig.h"

/* Files of a test are not synced: a thousand of them would take minutes. */
int __wrap_fsync(int file);
int __wrap_fdatasync(int file);
int __wrap_fsync(int file) { return file < 0; }
int __wrap_fdatasync(int file) { return file < 0; }

struct world {                          /* what must be so, whatever happens */
    struct rig rig;
    uint64_t key, draws;
    int done[RIG_LINES + 1];            /* stands in OUT: 1 answer, 2 error */
    int32_t tokens[RIG_LINES + 1][RIG_CHOICES];
    int64_t synced_output, synced_journal;
    int synced[RIG_LINES + 1];
};

static uint64_t draw(struct world *w, uint64_t below)
{
    return sf_rng_u64(w->key, 17, w->draws++) % below;
}

enum what { NOTHING, SYNC, TOKENS, FINISH, FINISH_IN_VAIN };
struct event { enum what what; int64_t line; int32_t choice, first, count; int error; };

static struct event draw_event(struct world *w)
{
    struct event e = {.line = 1 + (int64_t)draw(w, RIG_LINES), .choice = (int32_t)draw(w, 2),
                      .count = 1 + (int32_t)draw(w, 9), .error = draw(w, 4) == 0};
    e.first = draw(w, 20) == 0 ? 0 : w->tokens[e.line][e.choice];
    if (draw(w, 8) == 0) e.what = SYNC;
    else if (w->done[e.line] != 0) e.what = NOTHING;
    else if (draw(w, 2)) e.what = TOKENS;
    else e.what = draw(w, 12) > 0 ? FINISH : FINISH_IN_VAIN;
    return e;
}

/* It has happened, to the last byte. */
static void believe(struct world *w, const struct event *e)
{
    if (e->what == SYNC) {
        w->synced_journal = rig_size(w->rig.journal);
        w->synced_output = rig_size(w->rig.output);
        memcpy(w->synced, w->done, sizeof w->synced);
    }
    if (e->what == TOKENS) w->tokens[e->line][e->choice] = e->first + e->count;
    if (e->what != FINISH) return;
    w->done[e->line] = 1 + e->error;
    memset(w->tokens[e->line], 0, sizeof w->tokens[e->line]);
}

/* One event of a run; `kill`: it dies somewhere within its writes. */
static void live(struct world *w, int kill)
{
    struct rig *rig = &w->rig;
    struct event e = draw_event(w);
    int64_t journal = rig_size(rig->journal), output = rig_size(rig->output);
    if (e.what == SYNC) rig_sync(rig);
    if (e.what == TOKENS) rig_tokens(rig, e.line, e.choice, e.first, e.count);
    if (e.what >= FINISH) rig_finish(rig, e.line, e.error, e.what == FINISH);
    int64_t wrote = rig_size(rig->journal) - journal, put = rig_size(rig->output) - output;
    int64_t kept = kill ? (int64_t)draw(w, (uint64_t)(wrote + put) + 1) : wrote + put;
    int64_t of_journal = kept < wrote ? kept : wrote;   /* which is written first */
    if (truncate(rig->journal, (off_t)(journal + of_journal)) != 0 ||
        truncate(rig->output, (off_t)(output + kept - of_journal)) != 0)
        abort();
    if (kept == wrote + put) believe(w, &e);
}

/* What was not synced may be there or not, in each file by itself, or be zeros. */
static void cut_power(struct world *w)
{
    const char *path[] = {w->rig.journal, w->rig.output};
    int64_t least[] = {w->synced_journal, w->synced_output};
    for (int i = 0; i < 2; i++) {
        int64_t size = rig_size(path[i]);
        int64_t kept = least[i] + (int64_t)draw(w, (uint64_t)(size - least[i]) + 1);
        if (truncate(path[i], (off_t)kept) != 0) abort();
        if (draw(w, 3) == 0 && truncate(path[i], (off_t)(kept + (int64_t)draw(w, 100))) != 0)
            abort();
    }
}

/* After a power cut what is known is less: all that was synced, and no more than there was. */
static void check_less(struct world *w, const struct sf_resume *resume)
{
    int lost = 0, made_up = 0;
    for (int64_t line = 1; line <= RIG_LINES; line++) {
        int finished = sf_resume_is_finished(resume, line);
        lost += w->synced[line] != 0 && !finished;
        made_up += finished && w->done[line] == 0;
        if (!finished) w->done[line] = 0;
        for (int32_t choice = 0; choice < RIG_CHOICES; choice++) {
            const struct sf_resume_part *part = sf_resume_part_of(resume, line, choice);
            w->tokens[line][choice] = part != NULL ? part->tokens : 0;
        }
    }
    SF_CHECK_INT(lost, 0);
    SF_CHECK_INT(made_up, 0);
}

/* Resumes, compares with what must be there, and starts the run again. */
static void go_on(struct world *w, int power_cut)
{
    int found[RIG_LINES + 1], forget = draw(w, 4) == 0, wrong = 0;
    struct sf_resume *resume = rig_read(&w->rig);
    if (power_cut) check_less(w, resume);
    for (int64_t line = 1; line <= RIG_LINES; line++) {
        wrong += sf_resume_is_finished(resume, line) != (w->done[line] != 0);
        for (int32_t choice = 0; choice < RIG_CHOICES; choice++)
            rig_check_part(resume, line, choice, w->tokens[line][choice]);
        if (forget && w->done[line] == 2) w->done[line] = 0;
    }
    SF_CHECK_INT(wrong, 0);
    struct sf_journal *journal = rig_begin(&w->rig, resume, forget, found);
    SF_CHECK(memcmp(found, w->done, sizeof found) == 0);
    sf_resume_free(resume);
    rig_start(&w->rig, journal);
    w->synced_journal = rig_size(w->rig.journal);
    w->synced_output = rig_size(w->rig.output);
    memcpy(w->synced, w->done, sizeof w->synced);
}

static int all_done(const struct world *w)
{
    int done = 0;
    for (int line = 1; line <= RIG_LINES; line++) done += w->done[line] != 0;
    return done == RIG_LINES;
}

/* Kills and power cuts until all records are there; returns how many lives it took. */
static int one_job(struct world *w)
{
    int power_cut = 0, lives = 0;
    for (; lives < 1000; lives++) {
        go_on(w, power_cut);
        int events = (int)draw(w, 40), done = all_done(w);
        for (int i = 0; i <= events && !done; i++) live(w, i == events);
        rig_stop(&w->rig);
        if (done) break;
        power_cut = draw(w, 3) == 0;
        if (power_cut) cut_power(w);
    }
    return lives;
}

static void random_runs(void)
{
    static struct world w;
    const char *level = getenv("SHEAF_TEST_LEVEL");
    int quick = level != NULL && strcmp(level, "quick") == 0;
    int found[RIG_LINES + 1], rounds = quick ? 30 : 200;
    if (level != NULL && strcmp(level, "long") == 0) rounds = 5000;
    for (int round = 0; round < rounds; round++) {
        unsigned failures = CU_get_number_of_failures();
        w = (struct world){.key = (uint64_t)round};
        rig_make(&w.rig);
        SF_CHECK(one_job(&w) < 1000);
        SF_CHECK_INT(rig_check_output(&w.rig, found), RIG_LINES);
        if (CU_get_number_of_failures() != failures)
            sf_test_fail(__FILE__, __LINE__, "in round %d", round);
        rig_remove(&w.rig);
    }
}

static const struct sf_test tests[] = {
    {"random runs", random_runs},
    {NULL, NULL}};
SF_TEST_MAIN("resume_random", tests)
