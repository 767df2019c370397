/* The made-up run: files, workers in a thread, disturbances (made_run.h). */
#include "tests/unit/coordinator/made_run.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/rng.h"
#include "coordinator/output.h"
#include "coordinator/resume.h"
#include "tests/check.h"

enum { RING = 4096, CHECKPOINT_S = 20 };

/* ---- the input ------------------------------------------------------------------------------- */
static uint64_t draw(uint64_t seed, int32_t line, uint64_t what, uint64_t below)
{
    return sf_rng_u64(seed, (uint64_t)line + 77, what) % below;
}

static void make_record(struct made_record *r, uint64_t seed, int32_t line)
{
    uint64_t kind = draw(seed, line, 0, 20);
    *r = (struct made_record){.kind = kind == 0   ? MADE_BLANK
                                      : kind == 1 ? MADE_BROKEN
                                      : kind == 2 ? MADE_WRONG
                                                  : MADE_PROMPT,
                              .logprobs = -1, .prompt_logprobs = -1};
    r->prompt_tokens = 1 + (int32_t)draw(seed, line, 1, 40);
    r->answer_max = MADE_LENGTH - r->prompt_tokens;
    if (draw(seed, line, 14, 2) == 0)
        r->answer_max = 1 + (int32_t)draw(seed, line, 2, (uint64_t)r->answer_max);
    int32_t alike = draw(seed, line, 3, 2) == 0 ? 33 : 0;
    for (int32_t i = 0; i < r->prompt_tokens; i++)
        r->prompt[i] = (int32_t)draw(seed, i < alike ? -1 : line, 100 + (uint64_t)i, MADE_VOCAB);
    r->choices = draw(seed, line, 4, 3) == 0 ? 1 + (int32_t)draw(seed, line, 5, MADE_CHOICES) : 1;
    if (draw(seed, line, 6, 3) == 0) r->logprobs = (int32_t)draw(seed, line, 7, 4);
    if (draw(seed, line, 8, 6) == 0) r->prompt_logprobs = (int32_t)draw(seed, line, 9, 3);
    r->ignore_eos = draw(seed, line, 10, 5) == 0;
    r->stop = draw(seed, line, 11, 6) == 0;
    r->echo = draw(seed, line, 12, 6) == 0;
    r->looks_back = draw(seed, line, 13, 5) == 0;
}

static void write_record(FILE *file, const struct made_record *r, int32_t line)
{
    if (r->kind == MADE_BLANK || r->kind == MADE_BROKEN) {
        fputs(r->kind == MADE_BLANK ? " \t\n" : "{\"custom_id\": \n", file);
        return;
    }
    fprintf(file, "{\"custom_id\": \"r%d\", \"method\": \"POST\", \"url\": \"/v1/completions\", "
            "\"body\": {\"prompt\": [", line);
    for (int32_t i = 0; i < r->prompt_tokens; i++)
        fprintf(file, "%s%d", i > 0 ? ", " : "", r->prompt[i]);
    fprintf(file, "], \"max_tokens\": %d, \"n\": %d, \"return_token_ids\": true",
            r->kind == MADE_WRONG ? -1 : r->answer_max, r->choices);
    if (r->ignore_eos) fputs(", \"ignore_eos\": true", file);
    if (r->stop) fputs(", \"stop\": [\"ab\", \"q\"]", file);
    if (r->echo) fputs(", \"echo\": true", file);
    if (r->looks_back) fputs(", \"repetition_penalty\": 1.5", file);
    if (r->logprobs >= 0) fprintf(file, ", \"logprobs\": %d", r->logprobs);
    if (r->prompt_logprobs >= 0) fprintf(file, ", \"prompt_logprobs\": %d", r->prompt_logprobs);
    fputs("}}\n", file);
}

void made_run_write_input(const struct made_run *run)
{
    FILE *file = fopen(run->input, "w");
    if (file == NULL) abort();
    for (int32_t line = 1; line <= run->lines; line++)
        write_record(file, &run->record[line], line);
    if (fclose(file) != 0) abort();
}

void made_run_open(struct made_run *run, int32_t lines, uint64_t seed)
{
    *run = (struct made_run){.lines = lines};
    /* In memory where there is such a folder: syncing is most of what these tests do. */
    snprintf(run->folder, sizeof run->folder, "%s/sheaf-run-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(run->folder) == NULL) abort();
    snprintf(run->input, sizeof run->input, "%s/in.jsonl", run->folder);
    snprintf(run->output, sizeof run->output, "%s/out.jsonl", run->folder);
    snprintf(run->shadow, sizeof run->shadow, "%s.run", run->output);
    snprintf(run->journal, sizeof run->journal, "%s/journal", run->shadow);
    snprintf(run->manifest, sizeof run->manifest, "%s/manifest.json", run->shadow);
    snprintf(run->metrics, sizeof run->metrics, "%s/metrics.csv", run->shadow);
    for (int32_t line = 1; line <= lines; line++)
        make_record(&run->record[line], seed, line);
    made_run_write_input(run);
}

void made_run_clear(const struct made_run *run)
{
    unlink(run->output);
    unlink(run->journal);
    unlink(run->manifest);
    unlink(run->metrics);
    rmdir(run->shadow);                 /* which has nothing else in it */
}

void made_run_close(struct made_run *run)
{
    for (int32_t line = 1; line <= run->lines; line++) free(run->answer[line]);
    made_run_clear(run);
    unlink(run->input);
    SF_CHECK_INT(rmdir(run->folder), 0);
}

/* ---- what is kept ---------------------------------------------------------------------------- */
static int is_whole(const struct made_record *r, const struct sf_resume_part *part)
{
    return r->stop || part->tokens >= r->answer_max ||
           (!r->ignore_eos && part->token[part->tokens - 1] == MADE_EOS);
}

struct kept made_run_kept(const struct made_run *run)
{
    struct sf_resume *resume;
    struct kept kept = {0};
    if (sf_resume_read(run->output, run->journal, &resume) != SF_OK) return kept;
    struct sf_resume_counts counts = sf_resume_counts(resume);
    kept.lines = counts.answered + counts.errors;
    kept.bytes = counts.output_bytes;
    kept.tokens = counts.sum[SF_SUM_OUTPUT_TOKENS] + counts.part_tokens;
    for (int32_t line = 1; line <= run->lines; line++)
        for (int32_t c = 0; c < MADE_CHOICES; c++) {
            const struct sf_resume_part *part = sf_resume_part_of(resume, line, c);
            if (part != NULL && is_whole(&run->record[line], part)) kept.restarts++;
        }
    sf_resume_free(resume);
    return kept;
}

/* ---- the workers' thread --------------------------------------------------------------------- */
struct side {
    const struct made_run *run;
    const struct attempt *attempt;
    struct workers *workers;
    struct sf_ring *to, *from;
    struct shared *shared;
    struct kept before;
    int waited;
};

/* Until the journal has the tokens of all that was said.  What is said meanwhile means nothing; it
 * keeps the run from waiting for more. */
static void wait_for_checkpoint(struct side *side)
{
    int64_t start = sf_now_ns();
    workers_send(side->workers, side->from, 1);
    while (sf_seconds_since(start) < CHECKPOINT_S) {
        int64_t samples = side->shared->counts.samples;
        int64_t gained = made_run_kept(side->run).tokens - side->before.tokens;
        if (gained + side->before.restarts >= samples) {
            side->shared->samples_saved = samples;
            side->shared->checkpoints = 1;
            return;
        }
        workers_report(side->workers, &(struct sf_wire_report){.rank = 0});
        workers_send(side->workers, side->from, 1);
        sf_sleep_us(200);
    }
}

static void fill_disk(const struct made_run *run, int64_t more)
{
    struct rlimit limit;
    struct stat info = {.st_size = 0};
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0) abort();
    (void)stat(run->output, &info);
    limit.rlim_cur = (rlim_t)(info.st_size + more);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) abort();
}

static void empty_disk(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0) abort();
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) abort();
}

/* 1: nothing comes from the workers any more. */
static int disturb(struct side *side)
{
    char words[] = "made to fail";
    switch (side->attempt->end) {
    case CLOSE_RING: sf_ring_close(side->from); return 1;
    case KILL: kill(getpid(), SIGKILL); return 1;
    case FULL_DISK: fill_disk(side->run, side->attempt->disk_bytes); return 0;
    case FAIL_RANK:
    case DRAIN_RANK: break;
    case LET_BE: return 0;
    }
    int fail = side->attempt->end == FAIL_RANK;
    struct sf_wire_report report = {.rank = side->attempt->job->plan.ranks - 1,
                                    .status = fail ? SF_NO_PAGES : SF_OK,
                                    .signal = fail ? SF_WIRE_NO_SIGNAL : SF_WIRE_DRAIN,
                                    .text = words};
    workers_send(side->workers, side->from, 1);
    workers_report(side->workers, &report);
    workers_send(side->workers, side->from, 1);
    return fail;
}

static void *work(void *arg)
{
    struct side *side = arg;
    const struct attempt *attempt = side->attempt;
    int disturbed = 0;
    while (!workers_are_stopped(side->workers) && workers_fault(side->workers)[0] == '\0') {
        int64_t wait_ms = workers_have_mail(side->workers) ? 0 : 1000;
        if (workers_take(side->workers, side->to, wait_ms) < 0) break;
        int64_t steps = side->shared->counts.steps;
        if (attempt->checkpoint > 0 && steps >= attempt->checkpoint && !side->waited) {
            side->waited = 1;
            wait_for_checkpoint(side);
        }
        if (attempt->end != LET_BE && steps >= attempt->steps && !disturbed) {
            disturbed = 1;
            if (disturb(side)) return NULL;
        }
        workers_send(side->workers, side->from, 0);
    }
    sf_ring_close(side->from);
    return NULL;
}

/* ---- attempts -------------------------------------------------------------------------------- */
static sf_status run_here(struct side *side, struct sf_run_spec *spec, struct outcome *out)
{
    pthread_t thread;
    SF_TRY(sf_ring_create(RING, &side->to));
    SF_TRY(sf_ring_create(RING, &side->from));
    spec->to_workers = side->to;
    spec->from_workers = side->from;
    side->workers = workers_make(side->attempt->job, side->attempt->seed, &side->shared->counts);
    workers_tamper(side->workers, side->attempt->tamper);
    if (pthread_create(&thread, NULL, work, side) != 0) abort();
    sf_status status = sf_run(spec, &out->sum, &out->exit_code);
    if (status != SF_OK) snprintf(out->words, sizeof out->words, "%s", sf_error_text());
    sf_ring_close(side->to);
    pthread_join(thread, NULL);
    snprintf(out->fault, sizeof out->fault, "%s", workers_fault(side->workers));
    workers_free(side->workers);
    return status;
}

static void try_here(struct side *side, struct outcome *out)
{
    static const char sha256[] =
        "00000000000000000000000000000000000000000000000000000000000000ab";
    const struct made_job *job = side->attempt->job;
    struct sf_run_spec spec = {.config = &job->config, .plan = &job->plan, .model = job->model,
                               .cluster = &job->cluster, .tokenizer = job->tokenizer,
                               .model_sha256 = sha256, .files = side->attempt->files,
                               .records = side->run->lines};
    spec.files.input = side->run->input;
    spec.files.output = side->run->output;
    out->status = run_here(side, &spec, out);
    if (side->to != NULL) made_ring_empty(side->to);
    if (side->from != NULL) made_ring_empty(side->from);
    sf_ring_destroy(side->to);
    sf_ring_destroy(side->from);
}

/* Memory that a killed child shares with us. */
struct region { struct shared shared; struct outcome outcome; };

struct outcome made_run_try(const struct made_run *run, const struct attempt *attempt,
                            struct shared *shared_out)
{
    static struct region *region;
    if (region == NULL) {
        region = mmap(NULL, sizeof *region, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                      0);
        if (region == MAP_FAILED) abort();
    }
    *region = (struct region){.outcome = {.killed = 1}};
    struct side side = {.run = run, .attempt = attempt, .shared = &region->shared,
                        .before = made_run_kept(run)};
    if (attempt->end != KILL) {
        region->outcome.killed = 0;
        void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
        try_here(&side, &region->outcome);
        if (attempt->end == FULL_DISK) empty_disk();
        signal(SIGXFSZ, handler);
    } else {
        int how = 0;
        pid_t child = fork();
        if (child < 0) abort();
        if (child == 0) {
            struct outcome mine = {.killed = 0};
            try_here(&side, &mine);
            region->outcome = mine;
            _exit(0);
        }
        if (waitpid(child, &how, 0) != child) abort();
        SF_CHECK(WIFSIGNALED(how) ? WTERMSIG(how) == SIGKILL : WEXITSTATUS(how) == 0);
    }
    if (shared_out != NULL) *shared_out = region->shared;
    return region->outcome;
}

/* ---- the output ------------------------------------------------------------------------------ */
static char *dump(const struct sf_json *value)
{
    char *text = NULL;
    size_t bytes;
    if (value == NULL || sf_json_dump(value, 0, &text, &bytes) != SF_OK) return strdup("nothing");
    return text;
}

/* The line of the input that an output line answers, and what of the answer does not depend on
 * when, where and in how many attempts it was made. */
static int64_t read_answer(const struct sf_json *root, char **text_out)
{
    const struct sf_json *error = sf_json_member(root, "error");
    const struct sf_json *body = sf_json_member(sf_json_member(root, "response"), "body");
    int64_t line = 0, bytes = -1;
    if (body == NULL) {
        (void)sf_json_get_int(sf_json_member(error, "line"), &line);
        *text_out = dump(sf_json_member(error, "code"));
        return line;
    }
    const char *id = sf_json_text(sf_json_member(root, "custom_id"), NULL);
    char *choices = dump(sf_json_member(body, "choices"));
    char *usage = dump(sf_json_member(body, "usage"));
    (void)sf_json_get_int(sf_json_member(sf_json_member(body, "sheaf"), "kv_bytes_exact"), &bytes);
    if (asprintf(text_out, "%s %s %lld", choices, usage, (long long)bytes) < 0) abort();
    free(choices);
    free(usage);
    return id != NULL && id[0] == 'r' ? atoll(id + 1) : 0;
}

static void read_answers(const struct made_run *run, char *answer[MADE_LINES + 1])
{
    char *text = NULL;
    size_t room = 0;
    ssize_t bytes;
    FILE *file = fopen(run->output, "r");
    SF_CHECK(file != NULL);
    while (file != NULL && (bytes = getline(&text, &room, file)) > 0) {
        struct sf_json *root = NULL;
        SF_CHECK_INT(text[bytes - 1], '\n');
        SF_CHECK_OK(sf_json_parse(text, (size_t)bytes, (size_t)bytes, &root));
        char *found = NULL;
        int64_t line = root != NULL ? read_answer(root, &found) : 0;
        sf_json_free(root);
        int fits = line >= 1 && line <= run->lines && answer[line] == NULL;
        if (fits) answer[line] = found;
        else free(found);
        if (!fits) sf_test_fail(__FILE__, __LINE__, "line %lld is answered", (long long)line);
    }
    if (file != NULL) fclose(file);
    free(text);
}

void made_run_keep_answers(struct made_run *run) { read_answers(run, run->answer); }

void made_run_check_answers(const struct made_run *run)
{
    char *answer[MADE_LINES + 1] = {0};
    read_answers(run, answer);
    for (int32_t line = 1; line <= run->lines; line++) {
        SF_CHECK((answer[line] == NULL) == (run->record[line].kind == MADE_BLANK));
        SF_CHECK_STR(answer[line] != NULL ? answer[line] : "",
                     run->answer[line] != NULL ? run->answer[line] : "");
        free(answer[line]);
    }
}
