/* tests/unit/plan/profile.c: a profile as a file.
 *
 * Shown: what is written is read back as it was, rows, notes and what the run has settled, and
 * gives the same text again; a configuration that names the file gets its heads; a choice that the
 * entry states must be the profile's; heads that a person adds or takes out count; each mistake is
 * refused with its place. */
#include <stdlib.h>
#include <unistd.h>

#include "coordinator/calibrate.h"
#include "coordinator/config.h"
#include "tests/check.h"

static char path[64];

static void write_file(const char *text)
{
    FILE *file = fopen(path, "w");
    SF_CHECK(file != NULL && fputs(text, file) >= 0);
    SF_CHECK(file != NULL && fclose(file) == 0);
}

static struct sf_stack_entry *open_entry(struct sf_stack *stack)
{
    struct sf_stack_entry *entry = NULL;
    *stack = (struct sf_stack){ 0 };
    SF_CHECK_OK(sf_stack_add(stack, "razor_attention", &entry));
    return entry;
}

static void set(struct sf_stack_entry *entry, const char *key, const char *text)
{
    SF_CHECK_OK(sf_opt_set(sf_opt_find(entry->method->opts, key), entry->cfg, text));
}

static const char *get(const struct sf_stack_entry *entry, const char *key)
{
    static char text[4][256];
    static int turn;
    char *out = text[turn++ % 4];
    sf_opt_get(sf_opt_find(entry->method->opts, key), entry->cfg, out, sizeof text[0]);
    return out;
}

static void make_rows(struct sf_profile *profile)
{
    *profile = (struct sf_profile){ 0 };
    for (int32_t i = 0; i < 6; i++) {
        struct sf_profile_row *row;
        SF_CHECK_OK(sf_profile_add(profile, i / 2, i % 2, 2, 2, &row));
        for (int v = 0; v < 4; v++) row->value[v] = 0.123456789 * (i + 1) / (v + 1);
    }
    sf_profile_note(profile, "model", "some: model \"x\"");
    sf_profile_note_int(profile, "tokens", 8189);
}

static void there_and_back(void)
{
    struct sf_stack stack, other;
    struct sf_stack_entry *entry = open_entry(&stack), *read = open_entry(&other);
    struct sf_profile profile, back;
    char *text, *again;
    make_rows(&profile);
    sf_profile_round(&profile, 2);
    SF_CHECK_NEAR(profile.row[0].value[0], 0.12346, 0);
    set(entry, "retrieval_heads", "[[0, 1], [2, 0]]");
    set(entry, "model_sha256", "abc");
    set(entry, "calibration_block_tokens", "77");
    set(entry, "induction_head_ratio", "0.25");
    SF_MUST(sf_profile_text(entry, &profile, &text));
    write_file(text);
    SF_MUST(sf_profile_load(path, read, &back));
    SF_CHECK_INT(back.rows, profile.rows);
    for (int32_t i = 0; i < back.rows; i++) {
        SF_CHECK_INT(back.row[i].layer, i / 2);
        SF_CHECK_INT(back.row[i].head, i % 2);
        SF_CHECK_INT(back.row[i].q_heads, 2);
        for (int v = 0; v < 4; v++)
            SF_CHECK_NEAR(back.row[i].value[v], profile.row[i].value[v], 0);
    }
    SF_CHECK_STR(get(read, "retrieval_heads"), "[[0, 1], [2, 0]]");
    SF_CHECK_STR(get(read, "model_sha256"), "abc");
    SF_CHECK_STR(get(read, "calibration_block_tokens"), "77");
    SF_CHECK_STR(get(read, "induction_head_ratio"), "0.14");    /* the choice is not the run's */
    set(read, "induction_head_ratio", "0.25");
    SF_MUST(sf_profile_text(read, &back, &again));
    SF_CHECK_STR(again, text);
    free(text);
    free(again);
    sf_profile_free(&profile);
    sf_profile_free(&back);
    sf_stack_free(&stack);
    sf_stack_free(&other);
}

/* The resolved retrieval_heads of a configuration with this entry, or the refusal. */
static const char *heads_of(const char *options)
{
    static char found[512];
    char name[80];
    struct sf_config config;
    snprintf(name, sizeof name, "%s.job", path);
    FILE *file = fopen(name, "w");
    SF_CHECK(file != NULL);
    if (file == NULL) return "";
    fprintf(file, "schema_version: 1\nkv_cache:\n  methods:\n    - {name: razor_attention, "
                  "profile: %s%s}\n", path, options);
    fclose(file);
    sf_status status = sf_config_load(name, NULL, &config);
    unlink(name);
    if (status == SF_OK) snprintf(found, sizeof found, "%s",
                                  get(&config.kv.stack.entry[0], "retrieval_heads"));
    else snprintf(found, sizeof found, "%s", strstr(sf_error_text(), "error: ") + 7);
    if (status == SF_OK) sf_config_free(&config);
    return found;
}

static void a_run_reads_it(void)
{
    char words[256];
    write_file("retrieval_heads:\n  - [0, 1]   # best\n  - [2, 0]\ninduction_head_ratio: 0.2\n"
               "gqa_rule: promote\ncopies: 4\nscores: [{anything: [1]}]\n");
    SF_CHECK_STR(heads_of(""), "[[0, 1], [2, 0]]");
    SF_CHECK_STR(heads_of(", induction_head_ratio: 0.20, gqa_rule: promote"), "[[0, 1], [2, 0]]");
    SF_CHECK_STR(heads_of(", calibration_block_tokens: 9"), "[[0, 1], [2, 0]]");
    SF_CHECK_STR(heads_of(", retrieval_heads: [[1, 1]]"), "[[1, 1]]");
    snprintf(words, sizeof words, "induction_head_ratio is 0.14, but %s was made with 0.2; `sheaf"
             " calibrate --from` chooses anew", path);
    SF_CHECK_STR(heads_of(", induction_head_ratio: 0.14"), words);
    snprintf(words, sizeof words, "gqa_rule is group_max, but %s was made with promote; `sheaf"
             " calibrate --from` chooses anew", path);
    SF_CHECK_STR(heads_of(", gqa_rule: group_max"), words);
}

#define ROW "{layer: 0, head: 0, induction: [0.5], echo: [0.1]}"
static void mistakes(void)
{
    static const struct { const char *text, *words; } table[] = {
        { "- 1\n", "1:1: error: a profile is a mapping such as {retrieval_heads: [[0, 2]]}" },
        { "retrieval_heads: []\n",
          "1:1: error: it holds no scores to choose from; calibrate without --from" },
        { "scores: []\n",
          "1:9: error: it holds no scores to choose from; calibrate without --from" },
        { "method: ems\nscores: [" ROW "]\n",
          "1:9: error: this is a profile of ems, not of razor_attention" },
        { "scores: [3]\n", "1:10: error: a line of scores is a mapping such as"
          " {layer: 0, head: 0, induction: [0.25]}" },
        { "scores: [{head: 0}]\n", "1:10: error: a line of scores needs layer: N" },
        { "scores: [{layer: 0, head: -1}]\n", "1:27: error: a line of scores needs head: N" },
        { "scores: [{layer: 0, head: 0}]\n", "1:10: error: a line of scores has induction: [...]"
          " with a number for each query head" },
        { "scores: [{layer: 0, head: 0, induction: [1], echo: [1, 2]}]\n", "1:52: error: a line of"
          " scores has echo: [...] with a number for each query head" },
        { "scores: [{layer: 0, head: 0, induction: [x], echo: [1]}]\n",
          "1:42: error: a score is a number such as 0.25" },
        { "scores: [{layer: 0, head: 0, induction: [nan], echo: [1]}]\n",
          "1:42: error: a score is a number such as 0.25" },
        { "scores: [" ROW ", " ROW "]\n", "1:62: error: scores ascend by layer and head" },
        { "calibration_seed: x\nscores: [" ROW "]\n",
          "1:19: error: calibration_seed is 'x'; allowed: an integer" },
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct sf_stack stack;
        struct sf_stack_entry *entry = open_entry(&stack);
        struct sf_profile profile;
        char words[400];
        write_file(table[i].text);
        snprintf(words, sizeof words, "%s:%s", path, table[i].words);
        SF_CHECK_FAILS(sf_profile_load(path, entry, &profile), SF_INVALID);
        SF_CHECK_STR(sf_error_text(), words);
        sf_stack_free(&stack);
    }
    unlink(path);
}

static const struct sf_test tests[] = {
    { "there and back", there_and_back },
    { "a run reads it", a_run_reads_it },
    { "mistakes", mistakes },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    snprintf(path, sizeof path, "/tmp/sheaf-test-profile-%ld", (long)getpid());
    int failed = sf_test_main("profile", tests, argc, argv);
    unlink(path);
    return failed;
}
