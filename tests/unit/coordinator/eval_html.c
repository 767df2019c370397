/* tests/unit/coordinator/eval_html.c: the page of an evaluation, and gnuplot as a child.
 *
 * Objects by hand.  Names made to break out of HTML, SVG and gnuplot's language (tags, quotes,
 * references, new lines, commands) come out as text and do nothing; every run is named; ids are
 * unique; nothing is fetched and no script stands in it; members that are missing, null or of a
 * wrong type leave gaps and no harm.  gnuplot: an error's words, the deadline, none on the PATH. */
#include "coordinator/eval_html.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "coordinator/gnuplot.h"
#include "tests/check.h"

static char *page_of(const char *json)
{
    struct sf_json *measured = NULL;
    char *page = NULL;
    size_t bytes;
    SF_CHECK_OK(sf_json_parse(json, strlen(json), 1 << 20, &measured));
    SF_CHECK_OK(sf_eval_html(measured, &page, &bytes));
    sf_json_free(measured);
    if (page == NULL) return NULL;
    SF_CHECK_INT(strlen(page), bytes);
    return page;
}

static int count(const char *text, const char *part)
{
    int found = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at += strlen(part)) found++;
    return found;
}

/* Every id="..." and id='...' of the page once. */
static void check_ids(const char *page)
{
    int ids = 0;
    for (const char *at = page; (at = strstr(at, " id=")) != NULL; at++) {
        char whole[128];
        size_t bytes = strcspn(at + 5, "'\">");
        if (bytes + 6 >= sizeof whole) {
            sf_test_fail(__FILE__, __LINE__, "an id of %zu bytes", bytes);
            continue;
        }
        memcpy(whole, at + 5, bytes);
        whole[bytes] = '\0';
        for (const char *other = at; (other = strstr(other + 1, " id=")) != NULL;)
            if (strncmp(other + 5, whole, bytes) == 0 && strchr("'\"", other[5 + bytes]) != NULL)
                sf_test_fail(__FILE__, __LINE__, "id %s stands twice", whole);
        ids++;
    }
    SF_CHECK(ids > 10);
}

#define RUN(methods, stack, fraction)                                                              \
    "{\"methods\": [" methods "], \"stack\": \"" stack "\", \"config_file\": \"c.yaml\", "         \
    "\"kv_fraction\": " fraction ", \"kv_fraction_end\": 0.2, \"perplexity\": 21.5, "              \
    "\"perplexity_ci\": [20, 23], \"kl_mean\": 0.1, \"kl_mean_ci\": [0.05, 0.2], "                 \
    "\"top1_agreement\": 0.9, \"top1_agreement_ci\": [0.8, 0.95], \"log_ppl_diff\": 0.125, "       \
    "\"log_ppl_diff_ci\": [0.1, 0.2], \"needle_recall\": null}"
#define EXACT "{\"methods\": [], \"stack\": \"exact\", \"kv_fraction\": 1, \"perplexity\": 18.25}"

static void figures(void)
{
    if (sf_gnuplot_find() != SF_OK) SF_SKIP("no gnuplot");
    char *page = page_of("{\"model\": \"m.gguf\", \"version\": \"0.9.9 (git abc)\", \"machine\": "
                         "{\"processor\": \"a fine one\", \"cores\": 2}, \"exact\": " EXACT ", "
                         "\"runs\": [" RUN("\"window\"", "window", "0.25") ", "
                         RUN("\"window\"", "window#2", "0.5") ", "
                         RUN("\"ems\", \"xkv\"", "ems+xkv", "0.125") "]}");
    if (page == NULL) return;
    static const char *const expected[] = {
        "m.gguf", "0.9.9 (git abc)", "a fine one", ">window</th>", ">window#2</th>",
        "18.250<small>&ndash;</small>",
        ">ems+xkv</th>", "21.500<small>20.000 to 23.000</small>", "+0.1250<small>", "0.2500",
        "<title>ems + xkv</title>", "<title>window</title>", "<title>exact</title>"};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        if (strstr(page, expected[i]) == NULL)
            sf_test_fail(__FILE__, __LINE__, "the page has no '%s'", expected[i]);
        else CU_PASS("found");
    SF_CHECK_INT(count(page, "<svg"), 3);
    SF_CHECK_INT(count(page, "</svg>"), 3);
    SF_CHECK_INT(count(page, "<title>window</title>"), 3);      /* one curve of two runs */
    check_ids(page);
    static const char *const absent[] = {"<?xml", "src=", "@import", "url(", "<link", "<script"};
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++)
        SF_CHECK_INT(count(page, absent[i]), 0);
    SF_CHECK_INT(count(page, "href='#"), count(page, "href="));
    SF_CHECK_INT(count(page, "://"), 2 * 3);                    /* the two name spaces of an SVG */
    free(page);
}

#define HOSTILE "</text><script>alert(1)</script>' \\\" & `touch bt` $(touch d) %s\\n'; " \
                "system('touch sy') #\\u0007"
static void hostile(void)
{
    if (sf_gnuplot_find() != SF_OK) SF_SKIP("no gnuplot");
    char folder[] = "/tmp/sheaf-page-XXXXXX";
    SF_CHECK(mkdtemp(folder) != NULL);
    SF_CHECK_INT(chdir(folder), 0);
    char *page = page_of("{\"model\": \"" HOSTILE "\", \"version\": \"" HOSTILE "\", \"text\": [\""
                         HOSTILE "\"], \"machine\": {\"" HOSTILE "\": \"" HOSTILE "\"}, "
                         "\"config\": {\"" HOSTILE "\": \"<b>" HOSTILE "\"}, \"exact\": " EXACT ", "
                         "\"runs\": [" RUN("\"" HOSTILE "\"", HOSTILE, "0.25") "]}");
    SF_CHECK_INT(rmdir(folder), 0);             /* fails if a command has made something in there */
    SF_CHECK_INT(chdir("/"), 0);
    if (page == NULL) return;
    SF_CHECK_INT(count(page, "<script"), 0);
    SF_CHECK_INT(count(page, "<b>"), 0);
    SF_CHECK(count(page, "&lt;script&gt;alert(1)&lt;/script&gt;&#39; &quot; &amp; `touch") >= 8);
    SF_CHECK_INT(count(page, "\a"), 0);
    SF_CHECK_INT(count(page, "<svg"), 3);
    check_ids(page);
    free(page);
}

static void gaps(void)
{
    static const char *const none[] = {"{}", "[]", "7", "{\"runs\": {}}", "{\"runs\": null}"};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        struct sf_json *measured = NULL;
        char *page;
        size_t bytes;
        SF_MUST(sf_json_parse(none[i], strlen(none[i]), 100, &measured));
        SF_CHECK_FAILS(sf_eval_html(measured, &page, &bytes), SF_FORMAT);
        sf_json_free(measured);
    }
    static const char *const little[] = {
        "{\"runs\": []}", "{\"runs\": [7, null, {}, []], \"exact\": 3, \"config\": []}",
        "{\"runs\": [{\"methods\": 3, \"stack\": [], \"kv_fraction\": \"x\"}], \"exact\": "
        "{\"perplexity\": 3}}",
        "{\"runs\": [{\"kv_fraction\": -1, \"perplexity\": 3}, {\"kv_fraction\": 0.5, "
        "\"perplexity\": null, \"perplexity_ci\": [1]}], \"exact\": {\"perplexity\": 3}}"};
    for (size_t i = 0; i < sizeof little / sizeof little[0]; i++) {
        char *page = page_of(little[i]);
        if (page == NULL) continue;
        SF_CHECK_INT(count(page, "<svg"), 0);
        SF_CHECK_INT(count(page, "</html>"), 1);
        SF_CHECK_INT(count(page, "nan"), 0);
        free(page);
    }
}

static void needles(void)
{
    char *page = page_of(
        "{\"exact\": {\"stack\": \"exact\", \"needle_recall\": {\"trials\": 6, \"hits\": 5, "
        "\"recall\": 0.8333, \"ci\": [0.4, 0.97], \"cells\": [{\"length\": 512, \"depth\": 0, "
        "\"trials\": 2, \"hits\": 1, \"recall\": 0.5}, {\"length\": 512, \"depth\": 50, "
        "\"trials\": 2, \"hits\": 2, \"recall\": 1}, {\"length\": 1024, \"depth\": 50, "
        "\"trials\": 2, \"hits\": 2, \"recall\": 1e9}]}}, \"runs\": []}");
    if (page == NULL) return;
    SF_CHECK_INT(count(page, "83.3&nbsp;% of 6 found (40.0 to 97.0&nbsp;%)"), 1);
    SF_CHECK_INT(count(page, "<th scope=\"col\">depth "), 2);
    SF_CHECK_INT(count(page, "0.25)\">50&nbsp;%<small>1 of 2</small>"), 1);
    SF_CHECK_INT(count(page, "<th scope=\"row\">1024</th><td>&ndash;</td>"), 1);
    SF_CHECK_INT(count(page, "class=\"heat\""), 3);
    free(page);
}

static void child(void)
{
    static const char endless[] = "while (1) { a = 1 }\n", wrong[] = "plot nonsense(1,\n",
        good[] = "set print '-'\nprint 'a<b'\n",
        flood[] = "set print '-'\nwhile (1) { print 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }\n";
    char *text = NULL;
    size_t bytes = 0;
    if (sf_gnuplot_find() != SF_OK) SF_SKIP("no gnuplot");
    SF_MUST(sf_gnuplot_run(good, sizeof good - 1, 20000, &text, &bytes));
    SF_CHECK_STR(text, "a<b\n");
    SF_CHECK_INT(bytes, 4);
    free(text);
    SF_CHECK_FAILS(sf_gnuplot_run(wrong, sizeof wrong - 1, 20000, &text, &bytes), SF_IO);
    SF_CHECK(strstr(sf_error_text(), "gnuplot: exit code ") != NULL);
    int64_t start = sf_now_ns();
    SF_CHECK_FAILS(sf_gnuplot_run(endless, sizeof endless - 1, 300, &text, &bytes), SF_TIMEOUT);
    SF_CHECK(sf_seconds_since(start) >= 0.3 && sf_seconds_since(start) < 10);
    SF_CHECK_FAILS(sf_gnuplot_run(flood, sizeof flood - 1, 60000, &text, &bytes), SF_IO);
    SF_CHECK(strstr(sf_error_text(), "more than") != NULL);
}

static void no_gnuplot(void)
{
    static const char *const paths[] = {"", "/", "/nonexistent:/etc:", ":::"};
    const char *path = getenv("PATH");
    char *old = strdup(path == NULL ? "" : path);
    if (old == NULL) abort();
    SF_CHECK_INT(chdir("/"), 0);
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        setenv("PATH", paths[i], 1);
        SF_CHECK_FAILS(sf_eval_html_check(), SF_INVALID);
        SF_CHECK(strstr(sf_error_text(), "gnuplot-nox") != NULL);
    }
    setenv("PATH", old, 1);
    free(old);
}

static const struct sf_test tests[] = {
    {"figures", figures},
    {"hostile names", hostile},
    {"gaps", gaps},
    {"needles", needles},
    {"the child", child},
    {"no gnuplot", no_gnuplot},
    {NULL, NULL}};
SF_TEST_MAIN("eval_html", tests)
