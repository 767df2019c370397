/* tests/unit/coordinator/answer_json.c: the body of an answer, member by member.
 *
 * Records and scores are made by hand over a tiny tokenizer with one token for each byte; what
 * comes out is compared as the text of its JSON: chat and completions with and without log
 * probabilities, with echoes of texts and of ids, characters cut by tokens, tokens that look
 * alike, a model without a tokenizer, three choices, scoring without an answer.  Every number
 * reads back as the f32 that it was. */
#include "coordinator/answer_json.h"

#include <stdlib.h>

#include "base/rng.h"
#include "coordinator/logprobs_json.h"
#include "kvshard/methods.h"
#include "model/weights.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

/* Ids of the tiny vocabulary; of its 300 tokens 263 and up have no bytes. */
enum { START = 0, END = 1, AB = 3, ABC = 4, SPACE_A = 5, SPACE = 6, BYTE_A = 7, OTHER_A = 198,
       NOTHING = 299, TOPS = 3, PLACES = 8 };
#define BYTE(b) (7 + ((b) - 'a' + 256) % 256)

static struct sf_tokenizer *tokenizer;
static struct sf_stack stack;

static const struct sf_tokenizer *the_tokenizer(void)
{
    if (tokenizer != NULL) return tokenizer;
    struct tiny_spec spec = tiny_default();
    struct tiny_file file = tiny_make(&spec);
    struct sf_model *model = NULL;
    if (sf_model_open(tiny_path(file.bytes, file.count), &model) != SF_OK ||
        sf_tokenizer_create(model, &tokenizer) != SF_OK) abort();
    sf_model_close(model);
    tiny_free(&file);
    tiny_close();
    return tokenizer;
}

/* ---- an answer by hand ---- */
struct made {
    struct sf_record request;
    int32_t prompt[PLACES], token[3][PLACES];
    struct sf_scores scores[3], prompt_scores;
    struct sf_choice_out choice[3];
    struct sf_answer_out answer;
    struct sf_body_facts facts;
};

/* Prompt ids up to -1. */
static void make(struct made *m, int chat, const int32_t *prompt)
{
    *m = (struct made){.request = {.chat = (uint8_t)chat, .choices = 1, .logprobs = -1,
                                   .prompt_logprobs = -1},
                       .facts = {.id = "cmpl-1", .model = "tiny", .stack = &stack,
                                 .tokenizer = the_tokenizer()}};
    while (prompt[m->request.prompt.count] >= 0) {
        m->prompt[m->request.prompt.count] = prompt[m->request.prompt.count];
        m->request.prompt.count++;
    }
    m->request.prompt.id = m->prompt;
    m->prompt_scores.tops = TOPS;
    for (int i = 0; i < 3; i++) m->scores[i].tops = TOPS;
    m->answer = (struct sf_answer_out){.request = &m->request, .choice = m->choice,
                                       .choices = 1, .prompt_scores = &m->prompt_scores};
}

/* Answer i: ids up to -1. */
static void answer_with(struct made *m, int i, const char *text, const int32_t *token, int stopped)
{
    int32_t tokens = 0;
    for (; token[tokens] >= 0; tokens++) m->token[i][tokens] = token[tokens];
    m->choice[i] = (struct sf_choice_out){.text = text, .text_bytes = strlen(text),
                                          .token = m->token[i], .tokens = tokens,
                                          .stopped = stopped, .scores = &m->scores[i]};
}

/* The next score of a list, with likeliest tokens -0.25, -0.5, ... */
static void add_score(struct sf_scores *s, int32_t token, float logprob, int32_t rank,
                      int32_t tops, const int32_t *top_token)
{
    struct sf_wire_top top[PLACES];
    for (int32_t t = 0; t < tops; t++)
        top[t] = (struct sf_wire_top){top_token[t], -0.25f * (float)(t + 1)};
    const struct sf_wire_score score = {.pos = s->count, .token = token, .logprob = logprob,
                                        .rank = rank, .tops = tops, .top = top};
    SF_CHECK_OK(sf_scores_put(s, s->count, &score));
}
#define IDS(...) ((const int32_t[]){__VA_ARGS__, -1})

/* In `text` an apostrophe stands for a quotation mark. */
static void check_text(const struct sf_json *value, const char *text)
{
    char *got = NULL, want[2048];
    size_t bytes = 0;
    snprintf(want, sizeof want, "%s", text);
    for (char *c = want; *c != '\0'; c++)
        if (*c == '\'') *c = '"';
    if (value == NULL) {
        sf_test_fail(__FILE__, __LINE__, "nothing, expected %s", want);
        return;
    }
    SF_CHECK_OK(sf_json_dump(value, 0, &got, &bytes));
    SF_CHECK_STR(got, want);
    free(got);
}

/* The body; its choices are compared here.  To be freed. */
static struct sf_json *check_choices(struct made *m, const char *choices)
{
    struct sf_json *body = NULL;
    SF_CHECK_OK(sf_answer_body(&m->answer, &m->facts, &body));
    if (body != NULL) check_text(sf_json_member(body, "choices"), choices);
    return body;
}

static void drop(struct made *m, struct sf_json *body)
{
    sf_json_free(body);
    sf_scores_free(&m->prompt_scores);
    for (int i = 0; i < 3; i++) sf_scores_free(&m->scores[i]);
}

/* ---- tests ---- */
static void bodies(void)
{
    struct made m;
    struct sf_stack_entry *entry;
    static const int32_t at[] = {70, 91};
    SF_MUST(sf_stack_add(&stack, "window", &entry));
    for (int i = 0; i < 4; i++) {
        char keys[256] = "";
        int chat = i & 1, ids = i >> 1;
        make(&m, chat, IDS(ABC, AB));
        m.request.return_token_ids = (uint8_t)ids;
        m.answer.receipt = (struct sf_wire_receipt){0, 100, 50, 128, 3, 2, 1, 0};
        m.answer.tightened = at;
        m.answer.tightenings = chat ? 2 : 0;
        answer_with(&m, 0, " a\"\n", IDS(SPACE_A, BYTE('"'), BYTE('\n'), END), 1);
        struct sf_json *body = check_choices(&m,
            i == 0 ? "[{'index':0,'text':' a\\'\\n','logprobs':null,'finish_reason':"
                     "'stop'}]"
            : i == 1 ? "[{'index':0,'message':{'role':'assistant','content':' a\\'\\n'},"
                       "'logprobs':null,'finish_reason':'stop'}]"
            : i == 2 ? "[{'index':0,'text':' a\\'\\n','logprobs':null,'finish_reason':"
                       "'stop','token_ids':[5,200,176,1]}]"
                     : "[{'index':0,'message':{'role':'assistant','content':' a\\'\\n'},"
                       "'logprobs':null,'finish_reason':'stop','token_ids':[5,200,176,1]}]");
        const struct sf_json *value;
        for (const char *key = sf_json_next(body, NULL, &value); key != NULL;
             key = sf_json_next(body, key, &value))
            snprintf(keys + strlen(keys), sizeof keys - strlen(keys), "%s ", key);
        SF_CHECK_STR(keys, ids ? "id object created model prompt_token_ids choices usage sheaf "
                               : "id object created model choices usage sheaf ");
        check_text(sf_json_member(body, "id"), "'cmpl-1'");
        check_text(sf_json_member(body, "object"), chat ? "'chat.completion'"
                                                        : "'text_completion'");
        check_text(sf_json_member(body, "model"), "'tiny'");
        if (ids) check_text(sf_json_member(body, "prompt_token_ids"), "[4,3]");
        check_text(sf_json_member(body, "usage"),
                   "{'prompt_tokens':2,'completion_tokens':4,'total_tokens':6}");
        check_text(sf_json_member(body, "sheaf"),
                   chat ? "{'methods':['window'],'kv_bytes_exact':100,'kv_bytes_stored':50,"
                          "'kv_bytes_peak':128,'slots_evicted':3,'slots_merged':2,"
                          "'slots_requantised':1,'tightened_at':[70,91]}"
                        : "{'methods':['window'],'kv_bytes_exact':100,'kv_bytes_stored':50,"
                          "'kv_bytes_peak':128,'slots_evicted':3,'slots_merged':2,"
                          "'slots_requantised':1}");
        drop(&m, body);
    }
    sf_stack_free(&stack);
    stack = (struct sf_stack){0};
}

#define CHAT(content, entries, reason)                                                             \
    "[{'index':0,'message':{'role':'assistant','content':'" content "'},'logprobs':"               \
    "{'content':[" entries "],'refusal':null},'finish_reason':'" reason "'}]"

static void chat(void)
{
    struct made m;
    make(&m, 1, IDS(ABC));
    m.request.logprobs = 2;
    answer_with(&m, 0, " a", IDS(SPACE_A, END), 1);
    add_score(&m.scores[0], SPACE_A, -0.25f, 1, 3, IDS(SPACE_A, AB, ABC));  /* one too many */
    add_score(&m.scores[0], END, -7.5f, 9, 1, IDS(BYTE_A));                 /* one too few */
    drop(&m, check_choices(&m, CHAT(" a",
        "{'token':' a','logprob':-0.25,'bytes':[32,97],'top_logprobs':["
        "{'token':' a','logprob':-0.25,'bytes':[32,97]},"
        "{'token':'ab','logprob':-0.5,'bytes':[97,98]}]},"
        "{'token':'<|im_end|>','logprob':-7.5,'bytes':[60,124,105,109,95,101,110,100,124,"
        "62],'top_logprobs':[{'token':'a','logprob':-0.25,'bytes':[97]}]}", "stop")));

    /* A character of three tokens, a NUL, and a token without bytes; likeliest not asked for. */
    make(&m, 1, IDS(ABC));
    m.request.logprobs = 0;
    answer_with(&m, 0, "\xe2\x80\x9c", IDS(BYTE(0xe2), BYTE(0x80), BYTE(0x9c)), 0);
    for (int i = 0; i < 3; i++) add_score(&m.scores[0], m.token[0][i], -1, 1, 1, IDS(AB));
    drop(&m, check_choices(&m, CHAT("\xe2\x80\x9c",
        "{'token':'bytes:\\\\xe2','logprob':-1.0,'bytes':[226],'top_logprobs':[]},"
        "{'token':'bytes:\\\\x80','logprob':-1.0,'bytes':[128],'top_logprobs':[]},"
        "{'token':'bytes:\\\\x9c','logprob':-1.0,'bytes':[156],'top_logprobs':[]}",
        "length")));
    make(&m, 1, IDS(ABC));
    m.request.logprobs = 0;
    answer_with(&m, 0, "", IDS(NOTHING, BYTE(0)), 0);
    for (int i = 0; i < 2; i++) add_score(&m.scores[0], m.token[0][i], -1, 1, 0, IDS(AB));
    drop(&m, check_choices(&m, CHAT("",
        "{'token':'token_id:299','logprob':-1.0,'bytes':null,'top_logprobs':[]},"
        "{'token':'bytes:\\\\x00','logprob':-1.0,'bytes':[0],'top_logprobs':[]}",
        "length")));
}

#define TEXT(text, tokens, logprobs, tops, offsets, rest)                                          \
    "[{'index':0,'text':'" text "','logprobs':{'tokens':[" tokens "],"                             \
    "'token_logprobs':[" logprobs "],'top_logprobs':[" tops "],'text_offset':[" offsets "]},"      \
    "'finish_reason':" rest "}]"

static void completions(void)
{
    struct made m;
    make(&m, 0, IDS(ABC));
    m.request.logprobs = 2;
    answer_with(&m, 0, "abc a", IDS(ABC, SPACE_A, END), 1);
    add_score(&m.scores[0], ABC, -0.5f, 2, 3, IDS(AB, ABC, SPACE));
    add_score(&m.scores[0], SPACE_A, -3, 7, 3, IDS(AB, ABC, SPACE));    /* none of the likeliest */
    add_score(&m.scores[0], END, -0.25f, 1, 2, IDS(END, AB));
    drop(&m, check_choices(&m, TEXT("abc a", "'abc',' a','<|im_end|>'", "-0.5,-3.0,-0.25",
        "{'ab':-0.25,'abc':-0.5},{'ab':-0.25,'abc':-0.5,' a':-3.0},"
        "{'<|im_end|>':-0.25,'ab':-0.5}", "0,3,5", "'stop'")));

    make(&m, 0, IDS(ABC));
    m.request.logprobs = 0;
    answer_with(&m, 0, "ab", IDS(AB), 0);
    add_score(&m.scores[0], AB, -2, 4, 3, IDS(ABC, SPACE, SPACE_A));
    drop(&m, check_choices(&m, TEXT("ab", "'ab'", "-2.0", "{'ab':-2.0}", "0", "'length'")));

    /* Two tokens with the text "a", among the likeliest and as the token itself. */
    make(&m, 0, IDS(ABC));
    m.request.logprobs = 2;
    answer_with(&m, 0, "aa", IDS(OTHER_A, BYTE_A), 0);
    add_score(&m.scores[0], OTHER_A, -0.5f, 2, 2, IDS(BYTE_A, OTHER_A));
    add_score(&m.scores[0], BYTE_A, -4, 9, 2, IDS(OTHER_A, NOTHING));
    drop(&m, check_choices(&m, TEXT("aa", "'a','a'", "-0.5,-4.0",
        "{'a':-0.25,'token_id:198':-0.5},{'a':-0.25,'token_id:299':-0.5,"
        "'token_id:7':-4.0}", "0,1", "'length'")));
}

/* Offsets count characters: \u00e9 has two tokens, a stop string cuts the rest off. */
static void offsets(void)
{
    struct made m;
    make(&m, 0, IDS(ABC));
    m.request.logprobs = 0;
    answer_with(&m, 0, "\xc3\xa9 a", IDS(BYTE(0xc3), BYTE(0xa9), SPACE_A, AB, ABC), 1);
    for (int i = 0; i < 5; i++) add_score(&m.scores[0], m.token[0][i], -1, 1, 0, IDS(AB));
    drop(&m, check_choices(&m, TEXT("\xc3\xa9 a",
        "'bytes:\\\\xc3','bytes:\\\\xa9',' a','ab','abc'", "-1.0,-1.0,-1.0,-1.0,-1.0",
        "{'bytes:\\\\xc3':-1.0},{'bytes:\\\\xa9':-1.0},{' a':-1.0},{'ab':-1.0},"
        "{'abc':-1.0}", "0,0,1,3,3", "'stop'")));

    /* A character that is never finished: the next token comes after its U+FFFD. */
    make(&m, 0, IDS(ABC));
    m.request.logprobs = 0;
    answer_with(&m, 0, "\xef\xbf\xbd" "ab", IDS(BYTE(0xe2), AB), 0);
    for (int i = 0; i < 2; i++) add_score(&m.scores[0], m.token[0][i], -1, 1, 0, IDS(AB));
    drop(&m, check_choices(&m, TEXT("\xef\xbf\xbd" "ab", "'bytes:\\\\xe2','ab'", "-1.0,-1.0",
        "{'bytes:\\\\xe2':-1.0},{'ab':-1.0}", "0,0", "'length'")));
}

static void echoes(void)
{
    struct made m;
    char text[] = "\xc3\xa9 abc", lossy[] = "a\x01\x02" "ab";
    make(&m, 0, IDS(ABC, AB));                          /* without log probabilities */
    m.request.echo = 1;
    answer_with(&m, 0, "ab", IDS(AB), 0);
    drop(&m, check_choices(&m, "[{'index':0,'text':'abcabab','logprobs':null,"
                               "'finish_reason':'length'}]"));

    /* A text, before which a control token was put. */
    make(&m, 0, IDS(START, BYTE(0xc3), BYTE(0xa9), SPACE, ABC));
    m.request.echo = 1;
    m.request.echo_text = text;
    m.request.echo_text_bytes = strlen(text);
    m.request.logprobs = 1;
    for (int i = 1; i < 5; i++) add_score(&m.prompt_scores, m.prompt[i], -2, 3, 2, IDS(AB, ABC));
    answer_with(&m, 0, "ab", IDS(AB), 0);
    add_score(&m.scores[0], AB, -0.25f, 1, 2, IDS(AB, ABC));
    drop(&m, check_choices(&m, TEXT("\xc3\xa9 abcab",
        "'<|im_start|>','bytes:\\\\xc3','bytes:\\\\xa9',' ','abc','ab'",
        "null,-2.0,-2.0,-2.0,-2.0,-0.25",
        "null,{'ab':-0.25,'bytes:\\\\xc3':-2.0},{'ab':-0.25,'bytes:\\\\xa9':-2.0},"
        "{'ab':-0.25,' ':-2.0},{'ab':-0.25,'abc':-2.0},{'ab':-0.25}",
        "0,0,0,1,2,5", "'length'")));

    /* Ids: their decoding, control tokens as their text. */
    make(&m, 0, IDS(START, BYTE(0xc3), BYTE(0xa9), SPACE_A));
    m.request.echo = 1;
    m.request.logprobs = 0;
    for (int i = 1; i < 4; i++) add_score(&m.prompt_scores, m.prompt[i], -2, 3, 0, IDS(AB));
    answer_with(&m, 0, "ab", IDS(AB), 0);
    add_score(&m.scores[0], AB, -0.25f, 1, 0, IDS(AB));
    drop(&m, check_choices(&m, TEXT("<|im_start|>\xc3\xa9 aab",
        "'<|im_start|>','bytes:\\\\xc3','bytes:\\\\xa9',' a','ab'",
        "null,-2.0,-2.0,-2.0,-0.25", "null,{'bytes:\\\\xc3':-2.0},{'bytes:\\\\xa9':-2.0},"
        "{' a':-2.0},{'ab':-0.25}", "0,12,12,13,15", "'length'")));

    /* Bytes that became no token. */
    make(&m, 0, IDS(BYTE_A, AB));
    m.request.echo = 1;
    m.request.echo_text = lossy;
    m.request.echo_text_bytes = strlen(lossy);
    m.request.logprobs = 0;
    add_score(&m.prompt_scores, AB, -2, 3, 0, IDS(AB));
    answer_with(&m, 0, "ab", IDS(AB), 0);
    add_score(&m.scores[0], AB, -0.25f, 1, 0, IDS(AB));
    drop(&m, check_choices(&m, TEXT("a\\u0001\\u0002abab", "'a','ab','ab'", "null,-2.0,-0.25",
        "null,{'ab':-2.0},{'ab':-0.25}", "0,3,5", "'length'")));
}

#define PROMPT                                                                                     \
    "[null,{'5':{'logprob':-0.5,'rank':2,'decoded_token':' a'},"                                   \
    "'3':{'logprob':-0.25,'rank':1,'decoded_token':'ab'}},"                                        \
    "{'105':{'logprob':-9.0,'rank':40,'decoded_token':'bytes:\\\\xc3'},"                           \
    "'4':{'logprob':-0.25,'rank':1,'decoded_token':'abc'},"                                        \
    "'299':{'logprob':-0.5,'rank':2,'decoded_token':'token_id:299'}}]"

static void prompt_logprobs(void)
{
    for (int is_chat = 0; is_chat < 2; is_chat++) {
        struct made m;
        make(&m, is_chat, IDS(ABC, SPACE_A, BYTE(0xc3)));
        m.request.prompt_logprobs = 2;
        add_score(&m.prompt_scores, SPACE_A, -0.5f, 2, 3, IDS(AB, SPACE_A, ABC));
        add_score(&m.prompt_scores, BYTE(0xc3), -9, 40, 3, IDS(ABC, NOTHING, AB));
        answer_with(&m, 0, "ab", IDS(AB), 0);
        struct sf_json *body = check_choices(&m,
            is_chat ? "[{'index':0,'message':{'role':'assistant','content':'ab'},"
                      "'logprobs':null,'finish_reason':'length'}]"
                    : "[{'index':0,'text':'ab','logprobs':null,'finish_reason':'length',"
                      "'prompt_logprobs':" PROMPT "}]");
        if (is_chat) check_text(sf_json_member(body, "prompt_logprobs"), PROMPT);
        else SF_CHECK(sf_json_member(body, "prompt_logprobs") == NULL);
        drop(&m, body);
    }
    struct made one;                                    /* a prompt of one token has no score */
    make(&one, 0, IDS(ABC));
    one.request.prompt_logprobs = 2;
    answer_with(&one, 0, "ab", IDS(AB), 0);
    drop(&one, check_choices(&one, "[{'index':0,'text':'ab','logprobs':null,"
                             "'finish_reason':'length','prompt_logprobs':[null]}]"));
}

static void no_answer(void)
{
    for (int echo = 0; echo < 2; echo++) {
        struct made m;
        make(&m, 0, IDS(ABC, AB));
        m.request.no_answer = m.request.return_token_ids = 1;
        m.request.echo = (uint8_t)echo;
        m.request.logprobs = echo ? 1 : -1;
        m.request.prompt_logprobs = echo ? -1 : 0;
        add_score(&m.prompt_scores, AB, -0.5f, 2, 1, IDS(ABC));
        answer_with(&m, 0, " a", IDS(SPACE_A), 1);      /* was computed, and is not shown */
        m.choice[0].scores = NULL;
        struct sf_json *body = check_choices(&m, echo
            ? TEXT("abcab", "'abc','ab'", "null,-0.5", "null,{'abc':-0.25,'ab':-0.5}", "0,3",
                   "'length','token_ids':[]")
            : "[{'index':0,'text':'','logprobs':null,'finish_reason':'length',"
              "'prompt_logprobs':[null,{'3':{'logprob':-0.5,'rank':2,'decoded_token':"
              "'ab'}}],'token_ids':[]}]");
        check_text(sf_json_member(body, "usage"),
                   "{'prompt_tokens':2,'completion_tokens':0,'total_tokens':2}");
        drop(&m, body);
    }
}

static void three_choices(void)
{
    struct made m;
    make(&m, 0, IDS(ABC));
    m.request.choices = m.answer.choices = 3;
    m.request.echo = 1;
    m.request.logprobs = 0;
    answer_with(&m, 0, "ab", IDS(AB, END), 1);
    answer_with(&m, 1, " a", IDS(SPACE_A), 0);
    answer_with(&m, 2, "", IDS(END), 1);
    add_score(&m.scores[0], AB, -1, 1, 0, IDS(AB));
    add_score(&m.scores[0], END, -2, 1, 0, IDS(AB));
    add_score(&m.scores[1], SPACE_A, -3, 1, 0, IDS(AB));
    add_score(&m.scores[2], END, -4, 1, 0, IDS(AB));
    struct sf_json *body = check_choices(&m,
        "[{'index':0,'text':'abcab','logprobs':{'tokens':['abc','ab','<|im_end|>'],"
        "'token_logprobs':[null,-1.0,-2.0],'top_logprobs':[null,{'ab':-1.0},"
        "{'<|im_end|>':-2.0}],'text_offset':[0,3,5]},'finish_reason':'stop'},"
        "{'index':1,'text':'abc a','logprobs':{'tokens':['abc',' a'],"
        "'token_logprobs':[null,-3.0],'top_logprobs':[null,{' a':-3.0}],"
        "'text_offset':[0,3]},'finish_reason':'length'},"
        "{'index':2,'text':'abc','logprobs':{'tokens':['abc','<|im_end|>'],"
        "'token_logprobs':[null,-4.0],'top_logprobs':[null,{'<|im_end|>':-4.0}],"
        "'text_offset':[0,3]},'finish_reason':'stop'}]");
    check_text(sf_json_member(body, "usage"),
               "{'prompt_tokens':1,'completion_tokens':4,'total_tokens':5}");
    drop(&m, body);
}

static void without_tokenizer(void)
{
    struct made m;
    make(&m, 0, IDS(11, 12));
    m.facts.tokenizer = NULL;
    m.request.echo = 1;
    m.request.logprobs = 1;
    m.request.prompt_logprobs = 0;
    add_score(&m.prompt_scores, 12, -2, 3, 1, IDS(40));
    answer_with(&m, 0, "token_id:13 ", IDS(13), 0);
    add_score(&m.scores[0], 13, -0.25f, 1, 1, IDS(13));
    drop(&m, check_choices(&m, TEXT("token_id:11 token_id:12 token_id:13 ",
        "'token_id:11','token_id:12','token_id:13'", "null,-2.0,-0.25",
        "null,{'token_id:40':-0.25,'token_id:12':-2.0},{'token_id:13':-0.25}", "0,12,24",
        "'length','prompt_logprobs':[null,{'12':{'logprob':-2.0,'rank':3,"
        "'decoded_token':'token_id:12'}}]")));

    make(&m, 1, IDS(11));
    m.facts.tokenizer = NULL;
    m.request.logprobs = 0;
    answer_with(&m, 0, "token_id:13 ", IDS(13), 0);
    add_score(&m.scores[0], 13, -0.5f, 1, 0, IDS(13));
    drop(&m, check_choices(&m, CHAT("token_id:13 ", "{'token':'token_id:13','logprob':-0.5,"
                                    "'bytes':null,'top_logprobs':[]}", "length")));
}

/* -0.1f is written -0.1, and every other f32 so that it comes back. */
static void numbers(void)
{
    static const struct { float value; const char *text; } cases[] = {
        {-0.1f, "-0.1"}, {0.0f, "0.0"}, {-16777216.0f, "-16777216.0"}, {-1.5e-7f, "-1.5e-07"},
        {-0.333333343f, "-0.33333334"}, {-9999.0f, "-9999.0"}};
    char want[128];
    for (uint64_t i = 0; i < 20000; i++) {
        struct sf_scores scores = {0};
        float value;
        uint32_t bits = 0x80000000u | (uint32_t)sf_rng_u64(4, i, 0) % 0x49000000u;
        memcpy(&value, &bits, sizeof value);
        size_t known = sizeof cases / sizeof cases[0];
        if (i < known) value = cases[i].value;
        add_score(&scores, AB, value, 1, 0, IDS(AB));
        const struct sf_scored prompt = {.token = IDS(AB), .tokens = 1, .scores = &scores};
        struct sf_json *list = sf_logprobs_prompt(NULL, &prompt);
        if (i < known) {
            snprintf(want, sizeof want, "[{'3':{'logprob':%s,'rank':1,'decoded_token':"
                     "'token_id:3'}}]", cases[i].text);
            check_text(list, want);
        }
        double number = 1;
        (void)sf_json_get_real(sf_json_member(sf_json_member(sf_json_item(list, 0), "3"),
                                              "logprob"), &number);
        if ((float)number != value)
            sf_test_fail(__FILE__, __LINE__, "%.9g came back as %.9g", (double)value, number);
        sf_json_free(list);
        sf_scores_free(&scores);
    }
    sf_tokenizer_destroy(tokenizer);
    tokenizer = NULL;
}

static const struct sf_test tests[] = {
    {"bodies", bodies},
    {"chat", chat},
    {"completions", completions},
    {"offsets", offsets},
    {"echoes", echoes},
    {"prompt log probabilities", prompt_logprobs},
    {"no answer", no_answer},
    {"three choices", three_choices},
    {"without tokenizer", without_tokenizer},
    {"numbers", numbers},
    {NULL, NULL}};
SF_TEST_MAIN("answer_json", tests)
