/* tests/unit/kvshard/idle.c: a method that left a sequence alone says why, and only then.
 *
 * For window, razor_attention, ems, xkv and a stack of two, over prompts and answers of many
 * lengths around their budgets: the store's receipt says which entries changed a lane; of each
 * that did not, sf_account_idle gives the reason that belongs to it, and of each that did, it
 * finds none. */
#include <stdlib.h>

#include "kvshard/methods.h"
#include "tests/unit/kvshard/rig.h"

static const char kept[] = "its events came, and it kept every slot";

/* One sequence through the store; what it was changed by, and its tokens. */
static sf_status feed(struct rig *rig, int32_t prompt, int32_t answer, uint32_t *changed_out)
{
    struct sf_seq *seq;
    struct sf_receipt receipt;
    SF_TRY(sf_seq_open(rig->store, 1, prompt, prompt + answer, &seq));
    sf_status status = SF_OK;
    for (int32_t at = 0; status == SF_OK && at < prompt + answer;) {
        int32_t rows = at < prompt ? prompt - at : 1;
        status = rig_feed(rig, seq, 1, at, rows);
        at += rows;
    }
    sf_seq_close(rig->store, seq, &receipt);
    *changed_out = receipt.changed;
    return status;
}

static int changes, idles;

static void agree(const struct rig_spec *spec)
{
    static const int32_t prompts[] = { 1, 5, 24, 29, 30, 31, 32, 33, 36, 40, 60 };
    static const int32_t answers[] = { 0, 1, 3, 6, 8, 30 };
    struct rig rig;
    SF_MUST(rig_open(spec, &rig));
    for (size_t p = 0; p < sizeof prompts / sizeof *prompts; p++)
        for (size_t a = 0; a < sizeof answers / sizeof *answers; a++) {
            uint32_t changed = 0;
            char words[SF_IDLE_WORDS];
            int32_t tokens = prompts[p] + answers[a];
            SF_CHECK_OK(feed(&rig, prompts[p], answers[a], &changed));
            for (int32_t m = 0; m < rig.stack.entries; m++) {
                int did = changed >> m & 1;
                SF_CHECK_OK(sf_account_idle(&rig.setup, &rig.stack, m, prompts[p], tokens, words));
                if (did != (strcmp(words, kept) == 0))
                    sf_test_fail(__FILE__, __LINE__, "%s, prompt %d, %d tokens: %s, and it says"
                                 " '%s'", rig.stack.entry[m].method->name, prompts[p], tokens,
                                 did ? "changed" : "not changed", words);
                else SF_CHECK(words[0] != '\0');
                changes += did;
                idles += !did;
            }
        }
    rig_close(&rig);
}

static const struct rig_option window_options[] = { { "num_sink_tokens", "2" },
                                                    { "recent_tokens", "30" } };
static const struct rig_option razor_options[] = { { "retrieval_heads", "[[0, 0]]" },
                                                   { "min_window_tokens", "20" },
                                                   { "num_sink_tokens", "4" },
                                                   { "min_dropped_tokens", "8" } };
static const struct rig_option ems_options[] = { { "budget_tokens", "30" },
                                                 { "recent_tokens", "8" },
                                                 { "num_sink_tokens", "2" } };

static const struct rig_option xkv_options[] = { { "group_size", "2" },
                                                 { "rank_k", "5" }, { "rank_v", "7" },
                                                 { "min_prompt_tokens", "31" } };

static struct rig_spec spec_of(const char *method, const struct rig_option *option, size_t bytes)
{
    struct rig_spec spec = rig_usual();
    spec.method = sf_method_find(method);
    memcpy(spec.option, option, bytes);
    return spec;
}

static void every_method(void)
{
    struct rig_spec window = spec_of("window", window_options, sizeof window_options);
    struct rig_spec razor = spec_of("razor_attention", razor_options, sizeof razor_options);
    struct rig_spec ems = spec_of("ems", ems_options, sizeof ems_options), stack = razor;
    struct rig_spec xkv = spec_of("xkv", xkv_options, sizeof xkv_options);
    changes = idles = 0;
    agree(&window);
    agree(&razor);
    agree(&ems);
    agree(&xkv);
    xkv.option[4] = (struct rig_option){ "refactor_every", "20" };
    agree(&xkv);
    razor.option[4] = (struct rig_option){ "decode_update", "freeze" };
    agree(&razor);
    stack.layers_text = "0";
    stack.also = window.method;
    memcpy(stack.also_option, window_options, sizeof window_options);
    stack.also_layers = "1";
    agree(&stack);
    SF_CHECK(changes > 50 && idles > 50);
}

static void say(const struct rig_spec *spec, int32_t m, int32_t prompt, int32_t tokens,
                const char *expected)
{
    struct rig rig;
    char words[SF_IDLE_WORDS];
    SF_MUST(rig_open(spec, &rig));
    SF_CHECK_OK(sf_account_idle(&rig.setup, &rig.stack, m, prompt, tokens, words));
    SF_CHECK_STR(words, expected);
    rig_close(&rig);
}

static void in_words(void)
{
    struct rig_spec window = spec_of("window", window_options, sizeof window_options);
    struct rig_spec razor = spec_of("razor_attention", razor_options, sizeof razor_options);
    struct rig_spec ems = spec_of("ems", ems_options, sizeof ems_options);
    struct rig_spec xkv = spec_of("xkv", xkv_options, sizeof xkv_options);
    say(&window, 0, 10, 32, "fewer tokens than the 33 with which a lane is full");
    say(&window, 0, 10, 33, kept);
    say(&ems, 0, 30, 37, "fewer tokens than the 38 with which a lane is full");
    say(&ems, 0, 31, 31, kept);
    say(&xkv, 0, 30, 90, "prompts shorter than min_prompt_tokens");
    say(&xkv, 0, 31, 31, kept);
    xkv.option[4] = (struct rig_option){ "refactor_every", "20" };
    say(&xkv, 0, 30, 49, "prompts shorter than min_prompt_tokens, answers than refactor_every");
    say(&xkv, 0, 30, 50, kept);
    xkv.option[3].text = "auto";
    say(&xkv, 0, 3, 22, "prompts so short that a basis and its factors would take more, and answers"
        " shorter than refactor_every");
    xkv.option[4].text = "0";
    say(&xkv, 0, 3, 90, "prompts so short that a basis and its factors would take more");
    say(&razor, 0, 10, 31, "fewer tokens than sinks, window and min_dropped_tokens together");
    razor.option[4] = (struct rig_option){ "decode_update", "freeze" };
    say(&razor, 0, 10, 60, "prompts shorter than sinks, window and min_dropped_tokens together");
    razor.option[0].text = "[[0, 0], [0, 1], [1, 0], [1, 1]]";
    say(&razor, 0, 60, 60, "it leaves every KV head of its layers exact, or to others");
}

static const struct sf_test tests[] = {
    { "a reason where it changed nothing, and only there", every_method },
    { "in words", in_words },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_idle", tests)
