/* tests/unit/coordinator/run.c: `sheaf run` from its input to its output, over made-up workers.
 *
 * Undisturbed: every record is answered once, with the tokens that its prompt and its stream give,
 * whatever n, stop, echo and log probabilities say; totals, manifest and metrics agree.  Told to
 * stop: exit code 75, and the same command with resume finishes, samples nothing twice, and is one
 * job in the manifest.  Errors stay, until they are tried again and there is what they lacked.
 * What is refused before the start, and what another configuration may say.  Workers that lie end
 * the job, whose answers are right all the same once it was resumed.
 *
 * run_random.c: hundreds of deaths.  Rings closed, ranks that fail, signals, full disks, SIGKILL,
 * at random moments, each time resumed in another layout, now and then with the errors tried again,
 * until the job is done: all records answered once, with the answers of an undisturbed run; nothing
 * that was kept gets lost; no token is sampled again that the workers had said before the last
 * checkpoint, or, where the process lived to save what it had, at all. */
#include "tests/unit/coordinator/run_tests.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"
#include "tests/check.h"

enum { LINES = 60 };
static const char config[] =
    "scheduler: {max_num_seqs: 6, max_num_batched_tokens: 24, max_model_len: 64}\n";
static const uint64_t choice_step = 0x9e3779b97f4a7c15u;

static int open_all(struct made_run *run, struct made_job *job, int32_t lines, int64_t pages)
{
    sf_log_setup(SF_LOG_ERROR, 0);
    sf_status status = made_job_open(job, (struct made_shape){1, 1, 1}, config, pages);
    SF_CHECK_OK(status);
    if (status != SF_OK) return 0;
    made_run_open(run, lines, 11);
    return 1;
}

/* Lines that are good and plain. */
static void make_plain(struct made_run *run)
{
    for (int32_t line = 1; line <= run->lines; line++) {
        struct made_record *r = &run->record[line];
        r->kind = MADE_PROMPT;
        r->stop = r->echo = 0;
        r->choices = 1;
    }
    made_run_write_input(run);
}

static struct sf_json *read_json(const char *path)
{
    static char text[1 << 16];
    FILE *file = fopen(path, "rb");
    size_t bytes = file != NULL ? fread(text, 1, sizeof text, file) : 0;
    struct sf_json *root = NULL;
    if (file != NULL) fclose(file);
    SF_CHECK_OK(sf_json_parse(text, bytes, sizeof text, &root));
    return root;
}

static int64_t int_of(const struct sf_json *root, const char *a, const char *b)
{
    int64_t number = -1;
    const struct sf_json *value = sf_json_member(root, a);
    (void)sf_json_get_int(b != NULL ? sf_json_member(value, b) : value, &number);
    return number;
}

/* ---- undisturbed ----------------------------------------------------------------------------- */
/* One choice: its tokens are those of its stream, up to where they end. */
static int64_t check_tokens(const struct made_record *r, const struct sf_json *choice,
                            int32_t line, int32_t number)
{
    char id[16];
    int bytes = snprintf(id, sizeof id, "r%d", line);
    uint64_t stream = sf_hash64(id, (size_t)bytes) + (uint64_t)number * choice_step;
    const struct sf_json *list = sf_json_member(choice, "token_ids");
    const char *reason = sf_json_text(sf_json_member(choice, "finish_reason"), NULL);
    int32_t count = (int32_t)sf_json_count(list);
    int64_t token = -1;
    SF_CHECK(count >= 1 && count <= r->answer_max);
    for (int32_t i = 0; i < count; i++) {
        (void)sf_json_get_int(sf_json_item(list, (size_t)i), &token);
        SF_CHECK_INT(token, made_token(r->prompt, r->prompt_tokens, stream, i));
        SF_CHECK(i + 1 == count || token != MADE_EOS || r->ignore_eos);
    }
    int ended = token == MADE_EOS && !r->ignore_eos;
    if (r->stop) return count;
    SF_CHECK(ended || count == r->answer_max);
    SF_CHECK_STR(reason != NULL ? reason : "", ended ? "stop" : "length");
    return count;
}

/* Tokens of all answers; the lines themselves are looked at by made_run_check_answers. */
static int64_t check_formula(const struct made_run *run)
{
    int64_t tokens = 0;
    for (int32_t line = 1; line <= run->lines; line++) {
        struct sf_json *choices = NULL;
        const struct made_record *r = &run->record[line];
        const char *text = run->answer[line];
        if (r->kind != MADE_PROMPT || text == NULL) continue;
        const char *end = strstr(text, "] {\"prompt_tokens\"");
        SF_CHECK(end != NULL);
        if (end == NULL) continue;
        size_t bytes = (size_t)(end - text) + 1;
        SF_CHECK_OK(sf_json_parse(text, bytes, bytes, &choices));
        SF_CHECK_INT(sf_json_count(choices), r->choices);
        for (int32_t c = 0; c < r->choices; c++)
            tokens += check_tokens(r, sf_json_item(choices, (size_t)c), line, c);
        sf_json_free(choices);
    }
    return tokens;
}

static void undisturbed(void)
{
    struct made_run run;
    struct made_job job;
    if (!open_all(&run, &job, LINES, 0)) return;
    struct shared shared;
    struct attempt attempt = {.job = &job, .seed = 3};
    struct outcome out = made_run_try(&run, &attempt, &shared);
    SF_CHECK_INT(out.status, SF_OK);
    SF_CHECK_INT(out.exit_code, 3);
    SF_CHECK_STR(out.fault, "");
    made_run_keep_answers(&run);
    int64_t records = 0, errors = 0, tokens = check_formula(&run);
    for (int32_t line = 1; line <= run.lines; line++) {
        records += run.record[line].kind != MADE_BLANK;
        errors += run.record[line].kind == MADE_BROKEN || run.record[line].kind == MADE_WRONG;
        SF_CHECK((run.answer[line] == NULL) == (run.record[line].kind == MADE_BLANK));
    }
    SF_CHECK_INT(out.sum.records, records);
    SF_CHECK_INT(out.sum.errors, errors);
    SF_CHECK_INT(out.sum.answered, records - errors);
    SF_CHECK_INT(out.sum.output_tokens, tokens);
    SF_CHECK_INT(out.sum.sampled_tokens, tokens);
    SF_CHECK_INT(shared.counts.samples, tokens);
    SF_CHECK_INT(out.sum.replayed_tokens, 0);
    struct sf_json *manifest = read_json(run.manifest);
    SF_CHECK_INT(int_of(manifest, "totals", "output_tokens"), tokens);
    SF_CHECK_INT(int_of(manifest, "totals", "errors"), errors);
    SF_CHECK(int_of(manifest, "finished", NULL) >= int_of(manifest, "started", NULL));
    sf_json_free(manifest);
    struct kept kept = made_run_kept(&run);
    SF_CHECK_INT(kept.lines, records);
    SF_CHECK_INT(kept.tokens, tokens);
    made_run_close(&run);
    made_job_close(&job);
}

/* ---- told to stop ---------------------------------------------------------------------------- */
static int lines_of(const char *path)
{
    int lines = 0;
    FILE *file = fopen(path, "r");
    for (int c = file != NULL ? fgetc(file) : EOF; c != EOF; c = fgetc(file)) lines += c == '\n';
    if (file != NULL) fclose(file);
    return lines;
}

static void check_manifest(const struct made_run *run, int finished, int64_t resumes)
{
    struct sf_json *manifest = read_json(run->manifest);
    SF_CHECK_INT(int_of(manifest, "finished", NULL) > 0, finished);
    SF_CHECK_INT(sf_json_member(manifest, "digests") != NULL, finished);
    SF_CHECK_INT(int_of(manifest, "resumes", NULL), resumes);
    SF_CHECK(sf_json_member(manifest, "totals") != NULL);
    sf_json_free(manifest);
}

static void drained(void)
{
    struct made_run run;
    struct made_job job;
    struct shared shared;
    if (!open_all(&run, &job, LINES, 0)) return;
    make_plain(&run);
    struct attempt attempt = {.job = &job, .seed = 3, .files = {.resume = 1}};
    struct outcome whole = made_run_try(&run, &attempt, &shared);  /* nothing is there: afresh */
    SF_CHECK_INT(whole.exit_code, 0);
    check_manifest(&run, 1, 0);
    made_run_keep_answers(&run);
    made_run_clear(&run);
    attempt.files.resume = 0;
    attempt.end = DRAIN_RANK;
    attempt.steps = 60;
    struct outcome out = made_run_try(&run, &attempt, &shared);
    SF_CHECK_INT(out.status, SF_OK);
    SF_CHECK_INT(out.exit_code, 75);
    SF_CHECK(out.sum.answered > 0 && out.sum.answered < LINES);     /* how many: threads decide */
    check_manifest(&run, 0, 0);
    struct kept kept = made_run_kept(&run);
    SF_CHECK_INT(kept.lines, out.sum.answered);
    SF_CHECK_INT(kept.tokens, out.sum.sampled_tokens);
    int64_t half = kept.tokens - out.sum.output_tokens;
    SF_CHECK(half >= 0);        /* 0: it came just as nothing was begun; the threads decide */
    attempt.files.resume = 1;
    attempt.end = LET_BE;
    out = made_run_try(&run, &attempt, &shared);
    SF_CHECK_INT(out.exit_code, 0);
    SF_CHECK_INT(out.sum.answered, LINES);
    SF_CHECK_INT(out.sum.answered_before, kept.lines);
    SF_CHECK_INT(out.sum.records, LINES);
    SF_CHECK_INT(out.sum.replayed_tokens, half - kept.restarts);
    SF_CHECK_INT(out.sum.sampled_tokens,
                 whole.sum.sampled_tokens - kept.tokens + kept.restarts);
    SF_CHECK_INT(out.sum.output_tokens, whole.sum.output_tokens);
    SF_CHECK((out.sum.replay_seconds > 0) == (half > kept.restarts));
    SF_CHECK(out.sum.replay_seconds <= out.sum.seconds);
    check_manifest(&run, 1, 1);
    SF_CHECK_INT(lines_of(run.metrics), 3);     /* the names, and one for each run */
    made_run_check_answers(&run);
    out = made_run_try(&run, &attempt, &shared);        /* all is done: nothing is sent */
    SF_CHECK_INT(out.exit_code, 0);
    SF_CHECK_INT(shared.counts.steps, 0);
    SF_CHECK_INT(out.sum.answered, LINES);
    check_manifest(&run, 1, 2);
    made_run_check_answers(&run);
    unlink(run.output);                         /* taken away: a fresh start knows nothing of it */
    attempt.files.resume = 0;
    out = made_run_try(&run, &attempt, &shared);
    SF_CHECK_INT(out.sum.sampled_tokens, whole.sum.sampled_tokens);
    check_manifest(&run, 1, 0);
    SF_CHECK_INT(lines_of(run.metrics), 2);
    made_run_check_answers(&run);
    made_run_close(&run);
    made_job_close(&job);
}

/* ---- errors ---------------------------------------------------------------------------------- */
/* A record that one run has no pages for.  Kept, tried again in vain, and then with more. */
static void retried(void)
{
    struct made_run run;
    struct made_job job, larger;
    struct shared shared;
    if (!open_all(&run, &job, 5, 12)) return;   /* three pages in each of four lanes */
    if (made_job_open(&larger, (struct made_shape){1, 1, 1}, config, 16) != SF_OK) return;
    make_plain(&run);
    for (int32_t line = 1; line <= 5; line++) {
        run.record[line].prompt_tokens = 10;
        run.record[line].answer_max = line == 2 ? 54 : 20;
        run.record[line].ignore_eos = 1;
    }
    made_run_write_input(&run);
    struct attempt attempt = {.job = &larger, .seed = 5};
    struct outcome out = made_run_try(&run, &attempt, &shared);
    SF_CHECK_INT(out.exit_code, 0);
    made_run_keep_answers(&run);
    made_run_clear(&run);
    attempt.job = &job;
    for (int round = 0; round < 3; round++) {
        attempt.files.resume = round > 0;
        attempt.files.retry_errors = round > 1;
        out = made_run_try(&run, &attempt, &shared);
        SF_CHECK_INT(out.status, SF_OK);
        SF_CHECK_INT(out.exit_code, 3);
        SF_CHECK_INT(out.sum.answered, 4);
        SF_CHECK_INT(out.sum.errors, 1);
        SF_CHECK_INT(out.sum.errors_before, round == 1);
        SF_CHECK_INT(shared.counts.samples, round == 0 ? 80 : 0);
        SF_CHECK_INT(lines_of(run.output), 5);
    }
    attempt.job = &larger;
    out = made_run_try(&run, &attempt, &shared);
    SF_CHECK_INT(out.exit_code, 0);
    SF_CHECK_INT(out.sum.answered_before, 4);
    SF_CHECK_INT(shared.counts.samples, 54);
    made_run_check_answers(&run);
    made_run_close(&run);
    made_job_close(&job);
    made_job_close(&larger);
}

/* A prompt that is only scored: its one token is no part of any total. */
static void no_answer(void)
{
    struct made_run run;
    struct made_job job;
    struct shared shared;
    if (!open_all(&run, &job, 1, 0)) return;
    FILE *file = fopen(run.input, "w");
    if (file == NULL) abort();
    fputs("{\"custom_id\": \"r1\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": [4, 5, 6], "
          "\"max_tokens\": 0, \"echo\": true, \"logprobs\": 1, \"return_token_ids\": true}}\n",
          file);
    fclose(file);
    struct attempt attempt = {.job = &job, .seed = 5};
    struct outcome out = made_run_try(&run, &attempt, &shared);
    SF_CHECK_INT(out.exit_code, 0);
    SF_CHECK_INT(out.sum.answered, 1);
    SF_CHECK_INT(out.sum.prompt_tokens, 3);
    SF_CHECK_INT(out.sum.output_tokens, 0);
    SF_CHECK_INT(made_run_kept(&run).tokens, 0);
    made_run_keep_answers(&run);
    const char *text = run.answer[1] != NULL ? run.answer[1] : "";
    SF_CHECK(strstr(text, "\"token_ids\":[]") != NULL);
    SF_CHECK(strstr(text, "\"completion_tokens\":0") != NULL);
    SF_CHECK(strstr(text, "\"token_logprobs\":[null,-") != NULL);
    made_run_close(&run);
    made_job_close(&job);
}

/* ---- refused --------------------------------------------------------------------------------- */
static sf_status check(const struct made_run *run, const char *input, const char *output,
                       int resume)
{
    struct sf_run_files files = {.input = input != NULL ? input : run->input,
                                 .output = output != NULL ? output : run->output,
                                 .resume = (uint8_t)resume};
    int64_t records = -1;
    sf_status status = sf_run_check(&files, &records);
    if (status == SF_OK) SF_CHECK_INT(records, LINES);
    return status;
}

static void checked(void)
{
    struct made_run run;
    struct made_job job;
    char path[5000], deep[128];
    struct stat info;
    if (!open_all(&run, &job, LINES, 0)) return;
    make_plain(&run);
    SF_CHECK_OK(check(&run, NULL, NULL, 0));
    SF_CHECK_OK(check(&run, NULL, NULL, 1));
    SF_CHECK(stat(run.output, &info) != 0);     /* nothing was left behind */
    snprintf(deep, sizeof deep, "%s/none/out.jsonl", run.folder);
    SF_CHECK_FAILS(check(&run, NULL, deep, 0), SF_IO);
    SF_CHECK_FAILS(check(&run, deep, NULL, 0), SF_IO);
    memset(path, 'a', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    SF_CHECK_FAILS(check(&run, NULL, path, 0), SF_INVALID);
    FILE *file = fopen(run.output, "w");
    if (file != NULL) fclose(file);
    SF_CHECK_FAILS(check(&run, NULL, NULL, 0), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), "--resume") != NULL);
    SF_CHECK_OK(check(&run, NULL, NULL, 1));
    unlink(run.output);
    file = fopen(run.shadow, "w");              /* where the folder should be */
    if (file != NULL) fclose(file);
    SF_CHECK_FAILS(check(&run, NULL, NULL, 0), SF_INVALID);
    unlink(run.shadow);
    unlink(run.input);                          /* it went away after the check */
    struct attempt attempt = {.job = &job, .seed = 5};
    struct outcome out = made_run_try(&run, &attempt, NULL);
    SF_CHECK_INT(out.status, SF_IO);
    SF_CHECK(strstr(out.words, "in.jsonl") != NULL);
    SF_CHECK_STR(out.fault, "");                /* and the workers were told to stop */
    SF_CHECK(stat(run.output, &info) != 0 && stat(run.shadow, &info) != 0);
    made_run_write_input(&run);
    made_run_close(&run);
    made_job_close(&job);
}

static void same_job(void)
{
    static const char sha256[] =
        "00000000000000000000000000000000000000000000000000000000000000ab";
    static const char other[] =
        "00000000000000000000000000000000000000000000000000000000000000ac";
    struct made_run run;
    struct made_job job, wider, shorter;
    if (!open_all(&run, &job, 5, 0)) return;
    if (made_job_open(&wider, (struct made_shape){1, 2, 2}, config, 0) != SF_OK ||
        made_job_open(&shorter, (struct made_shape){1, 1, 1},
                      "scheduler: {max_num_seqs: 6, max_num_batched_tokens: 24, "
                      "max_model_len: 48}\n", 0) != SF_OK)
        return;
    struct sf_run_files files = {.input = run.input, .output = run.output, .resume = 1};
    SF_CHECK_OK(sf_run_check_same(&files, &job.config, sha256));       /* there is nothing yet */
    struct attempt attempt = {.job = &job, .seed = 5};
    SF_CHECK_INT(made_run_try(&run, &attempt, NULL).status, SF_OK);
    SF_CHECK_OK(sf_run_check_same(&files, &job.config, sha256));
    SF_CHECK_OK(sf_run_check_same(&files, &wider.config, sha256));
    SF_CHECK_FAILS(sf_run_check_same(&files, &shorter.config, sha256), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), "scheduler.max_model_len: 64") != NULL);
    SF_CHECK_FAILS(sf_run_check_same(&files, &job.config, other), SF_INVALID);
    files.force = 1;
    SF_CHECK_OK(sf_run_check_same(&files, &shorter.config, other));
    made_run_close(&run);
    made_job_close(&job);
    made_job_close(&wider);
    made_job_close(&shorter);
}

/* ---- workers that lie ------------------------------------------------------------------------ */
static int32_t truths;                  /* results before the lie */

static void lose_score(struct sf_wire_result *result)
{
    if (result->scores > 0 && truths-- <= 0) result->scores--;
}

static void lie_in_score(struct sf_wire_result *result)
{
    if (result->scores > 0 && truths-- <= 0) result->score[result->scores - 1].token ^= 1;
}

static void lie_in_first_score(struct sf_wire_result *result)
{
    if (result->scores > 0 && truths-- <= 0) result->score[0].token ^= 1;
}

static void skip_score(struct sf_wire_result *result)
{
    if (result->scores > 0 && truths-- <= 0) result->score[0].pos++;
}

static void invent_token(struct sf_wire_result *result)
{
    if (result->samples > 0 && truths-- <= 0) result->sample[0].token = MADE_VOCAB;
}

static void liars(void)
{
    static void (*const lies[])(struct sf_wire_result *) = {lose_score, lie_in_score,
                                                            lie_in_first_score, skip_score,
                                                            invent_token};
    struct made_run run;
    struct made_job job;
    if (!open_all(&run, &job, LINES, 0)) return;
    for (int32_t line = 1; line <= LINES; line++) {
        run.record[line].logprobs = line % 3;
        run.record[line].prompt_logprobs = line % 2;
    }
    made_run_write_input(&run);
    struct attempt attempt = {.job = &job, .seed = 3};
    struct outcome out = made_run_try(&run, &attempt, NULL);
    SF_CHECK_INT(out.status, SF_OK);
    made_run_keep_answers(&run);
    made_run_clear(&run);
    attempt.files.resume = 1;
    for (int32_t i = 0; i < 15; i++) {
        attempt.tamper = lies[i % 5];
        truths = i / 5 * 4;
        out = made_run_try(&run, &attempt, NULL);
        if (out.status != SF_INTERNAL)
            sf_test_fail(__FILE__, __LINE__, "lie %d: %s %s", i, sf_status_name(out.status),
                         out.words);
    }
    attempt.tamper = NULL;
    out = made_run_try(&run, &attempt, NULL);
    SF_CHECK_INT(out.status, SF_OK);
    made_run_check_answers(&run);
    made_run_close(&run);
    made_job_close(&job);
}

static const struct sf_test tests[] = {
    {"undisturbed", undisturbed},
    {"drained", drained},
    {"retried", retried},
    {"no answer", no_answer},
    {"checked", checked},
    {"same job", same_job},
    {"liars", liars},
    {"disturbed", run_disturbed},
    {NULL, NULL}};
SF_TEST_MAIN("run", tests)
