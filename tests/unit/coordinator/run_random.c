/* Many jobs, each disturbed again and again until it is done (run.c). */
#include "tests/unit/coordinator/run_tests.h"

#include "base/log.h"
#include "base/rng.h"
#include "tests/check.h"

enum { JOBS = 14, LINES = 40, SHAPES = 4, ATTEMPTS_MAX = 150 };
static const char config[] =
    "scheduler: {max_num_seqs: 6, max_num_batched_tokens: 24, max_model_len: 64}\n"
    "run: {checkpoint_interval_s: 0.1}\n";
static const struct made_shape shapes[SHAPES] = {{1, 1, 1}, {1, 1, 2}, {1, 2, 1}, {2, 1, 1}};

static struct made_job jobs[SHAPES];

static int open_jobs(void)
{
    for (int i = 0; i < SHAPES; i++) {
        /* Two sequences of the largest size fit, and not quite a third. */
        int64_t pages = 9 * 4 / (shapes[i].tensor * shapes[i].pipeline);
        sf_status status = made_job_open(&jobs[i], shapes[i], config, pages);
        SF_CHECK_OK(status);
        if (status != SF_OK) return 0;
    }
    return 1;
}

static void close_jobs(void)
{
    for (int i = 0; i < SHAPES; i++) made_job_close(&jobs[i]);
}

/* What the attempt was worth: `gained` tokens that are kept, of those that the workers sampled.
 * 0: something is so wrong that it makes no sense to go on. */
static int check_attempt(const struct attempt *attempt, const struct outcome *out,
                          const struct shared *shared, const struct kept *before,
                          const struct kept *after)
{
    int64_t gained = after->tokens - before->tokens, sampled = shared->counts.samples;
    SF_CHECK_STR(out->fault, "");
    SF_CHECK(gained >= 0 && gained <= sampled);
    SF_CHECK(attempt->files.retry_errors ||
             (after->lines >= before->lines && after->bytes >= before->bytes));
    int missed = attempt->checkpoint > 0 && shared->counts.steps >= attempt->checkpoint &&
                 shared->checkpoints == 0;
    SF_CHECK(!missed);
    if (out->killed) {                  /* all of it is lost that no checkpoint has seen */
        SF_CHECK(gained >= shared->samples_saved - before->restarts);
    } else if (out->status == SF_IO) {
        SF_CHECK_INT(attempt->end, FULL_DISK);
        SF_CHECK(strstr(out->words, "File too large") != NULL);
    } else if (out->status != SF_OK) {
        SF_CHECK_INT(out->status, attempt->end == CLOSE_RING ? SF_STOPPED : SF_NO_PAGES);
        if (attempt->end == FAIL_RANK) SF_CHECK(strstr(out->words, "made to fail") != NULL);
        SF_CHECK(gained >= sampled - before->restarts);
    } else {
        SF_CHECK(gained >= out->sum.sampled_tokens - before->restarts);
        SF_CHECK(out->sum.sampled_tokens <= sampled);
        SF_CHECK(out->exit_code != 75 || attempt->end == DRAIN_RANK);
    }
    return !missed && out->fault[0] == '\0';
}

static struct attempt random_attempt(uint64_t seed, uint64_t number)
{
    static const enum disturbance ends[] = {CLOSE_RING, FAIL_RANK, DRAIN_RANK, FULL_DISK, KILL};
    struct attempt attempt = {.seed = sf_rng_u64(seed, 8, number),
                              .job = &jobs[sf_rng_u64(seed, 1, number) % SHAPES],
                              .end = ends[sf_rng_u64(seed, 2, number) % 5],
                              .steps = 1 + (int64_t)(sf_rng_u64(seed, 3, number) % 40),
                              .disk_bytes = (int64_t)(sf_rng_u64(seed, 6, number) % 2000),
                              .files = {.resume = 1}};
    attempt.files.retry_errors = sf_rng_u64(seed, 7, number) % 5 == 0;
    if (attempt.end == KILL && sf_rng_u64(seed, 4, number) % 4 == 0)
        attempt.checkpoint = 1 + (int64_t)(sf_rng_u64(seed, 5, number) % (uint64_t)attempt.steps);
    return attempt;
}

/* The number of disturbances; -1: it did not come to an end. */
static int one_job(uint64_t seed, int64_t *preempted)
{
    struct made_run run;
    struct outcome out, right;
    int attempts = 0, sane = 1;
    made_run_open(&run, LINES, seed);
    struct attempt calm = {.job = &jobs[0], .seed = seed};
    right = made_run_try(&run, &calm, NULL);
    SF_CHECK_INT(right.status, SF_OK);
    *preempted += right.sum.preempted;
    made_run_keep_answers(&run);
    made_run_clear(&run);
    do {
        struct attempt attempt = random_attempt(seed, (uint64_t)attempts);
        struct shared shared;
        struct kept before = made_run_kept(&run);
        out = made_run_try(&run, &attempt, &shared);
        struct kept after = made_run_kept(&run);
        sane = check_attempt(&attempt, &out, &shared, &before, &after);
        *preempted += out.sum.preempted;
    } while (sane && (out.killed || out.status != SF_OK || out.exit_code == 75) &&
             ++attempts < ATTEMPTS_MAX);
    SF_CHECK_INT(out.exit_code, right.exit_code);
    SF_CHECK_INT(out.sum.answered, right.sum.answered);
    SF_CHECK_INT(out.sum.errors, right.sum.errors);
    SF_CHECK_INT(out.sum.records, right.sum.records);
    SF_CHECK_INT(out.sum.output_tokens, right.sum.output_tokens);
    SF_CHECK_INT(out.sum.prompt_tokens, right.sum.prompt_tokens);
    SF_CHECK_INT(out.sum.kv_bytes_exact, right.sum.kv_bytes_exact);
    made_run_check_answers(&run);
    made_run_close(&run);
    return sane && attempts < ATTEMPTS_MAX ? attempts : -1;
}

void run_disturbed(void)
{
    int disturbances = 0;
    int64_t preempted = 0;
    sf_log_setup(SF_LOG_ERROR, 0);
    if (!open_jobs()) return;
    for (uint64_t seed = 0; seed < JOBS; seed++) {
        int more = one_job(seed, &preempted);
        SF_CHECK(more >= 0);
        if (more < 0) break;
        disturbances += more;
    }
    SF_CHECK(disturbances > 100 && preempted > 0);
    close_jobs();
}
