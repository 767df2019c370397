/* model/split.c: the known pre-tokenizers, as regular expressions for PCRE2, and the scanners that
 * find the same pieces (scan.c), which is what text is cut with.
 *
 * A pre-tokenizer is a sequence of expressions; each cuts the pieces of the one before it into its
 * matches and what lies between them.  An expression sees one piece as its whole subject, so a
 * look-ahead stops at the piece's end: with "smollm" the white space before a digit ends a piece.
 *
 * Work is bounded: all expressions run in linear time but for `\s*[\r\n]+`, which steps back
 * through a run of white space once; PCRE2's limits end anything worse. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/split.h"

#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "model/scan.h"

enum { STEPS_MAX = 2, MATCH_LIMIT = 50 * 1000 * 1000, HEAP_LIMIT_KIB = 64 * 1024 };

#define GPT2_WORDS                                                                                 \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3_WORDS(numbers)                                                                      \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers                          \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const struct known {
    const char *name, *step[STEPS_MAX];
    uint8_t adds_bos, whole_pieces;
    struct sf_scan_rules rules;
} known[] = {
    { "smollm", { "\\p{N}", GPT2_WORDS }, 0, 0, { SF_SCAN_GPT2, 1, 1 } },
    { "starcoder", { "\\p{N}", GPT2_WORDS }, 0, 0, { SF_SCAN_GPT2, 1, 1 } },
    { "gpt-2", { GPT2_WORDS, NULL }, 0, 0, { SF_SCAN_GPT2, 0, 0 } },
    { "llama-bpe", { LLAMA3_WORDS("\\p{N}{1,3}"), NULL }, 1, 1, { SF_SCAN_LLAMA3, 3, 0 } },
    /* Its training text was NFC-normalised; text is taken here as it comes, so that it comes back
     * unchanged.  Text that is in NFC already, nearly all text, gives the same ids either way. */
    { "qwen2", { LLAMA3_WORDS("\\p{N}"), NULL }, 0, 0, { SF_SCAN_LLAMA3, 1, 0 } },
};

struct sf_split {
    const struct known *known;
    pcre2_code *code[STEPS_MAX];
    int steps;
    pcre2_match_context *limits;
};
struct run {
    const struct sf_split *split;
    pcre2_match_data *match;            /* NULL: pieces are scanned for */
    sf_status (*piece)(void *context, const char *at, size_t bytes);
    void *context;
};

static sf_status compile(struct sf_split *split)
{
    split->limits = pcre2_match_context_create(NULL);
    if (split->limits == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a pre-tokenizer");
    pcre2_set_match_limit(split->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(split->limits, HEAP_LIMIT_KIB);
    for (int i = 0; i < STEPS_MAX && split->known->step[i] != NULL; i++) {
        int error;
        PCRE2_SIZE offset;
        split->code[i] = pcre2_compile((PCRE2_SPTR)split->known->step[i], PCRE2_ZERO_TERMINATED,
                                       PCRE2_UTF | PCRE2_UCP, &error, &offset, NULL);
        if (split->code[i] == NULL)
            return SF_FAIL(SF_INTERNAL, "pre-tokenizer '%s': PCRE2 error %d at %zu of its "
                           "expression", split->known->name, error, (size_t)offset);
        split->steps = i + 1;
        /* Where code may not be generated at run time the interpreter does the same. */
        (void)pcre2_jit_compile(split->code[i], PCRE2_JIT_COMPLETE);
    }
    return SF_OK;
}

sf_status sf_split_create(const char *name, size_t name_bytes, struct sf_split **split_out)
{
    const struct known *found = NULL;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strlen(known[i].name) == name_bytes && memcmp(known[i].name, name, name_bytes) == 0)
            found = &known[i];
    if (found == NULL) {
        char shown[33] = "";
        for (size_t i = 0; i < name_bytes && i < sizeof shown - 1; i++)
            shown[i] = name[i] > 0x20 && name[i] < 0x7f ? name[i] : '?';
        return SF_FAIL(SF_UNSUPPORTED, "pre-tokenizer '%s' is not built (smollm, starcoder, gpt-2, "
                       "llama-bpe, qwen2 are)", shown);
    }
    struct sf_split *split = calloc(1, sizeof *split);
    if (split == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a pre-tokenizer");
    split->known = found;
    sf_status status = compile(split);
    if (status == SF_OK) status = sf_scan_prepare();
    if (status != SF_OK) {
        sf_split_destroy(split);
        return status;
    }
    *split_out = split;
    return SF_OK;
}

void sf_split_destroy(struct sf_split *split)
{
    if (split == NULL) return;
    for (int i = 0; i < STEPS_MAX; i++) pcre2_code_free(split->code[i]);
    pcre2_match_context_free(split->limits);
    free(split);
}

const char *sf_split_name(const struct sf_split *split) { return split->known->name; }
int sf_split_adds_bos(const struct sf_split *split) { return split->known->adds_bos; }
int sf_split_whole_pieces(const struct sf_split *split) { return split->known->whole_pieces; }

/* The next match of step `step` in well-formed text at or after `from`; 0 if there is none. */
static sf_status next_match(const struct run *run, int step, const char *text, size_t bytes,
                            size_t from, size_t *first_out, size_t *end_out, int *found_out)
{
    const struct sf_split *split = run->split;
    int rc = pcre2_match(split->code[step], (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK,
                         run->match, split->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)               /* the interpreter keeps it on the heap */
        rc = pcre2_match(split->code[step], (PCRE2_SPTR)text, bytes, from,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, run->match, split->limits);
    *found_out = 0;
    if (rc == PCRE2_ERROR_NOMATCH) return SF_OK;
    if (rc == PCRE2_ERROR_NOMEMORY) return SF_FAIL(SF_NO_MEMORY, "no memory to split text");
    if (rc < 0)
        return SF_FAIL(SF_INVALID, "text of %zu bytes cannot be split into words within the "
                       "limits (PCRE2 error %d)", bytes, rc);
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(run->match);
    *first_out = at[0];
    *end_out = at[1];
    *found_out = at[1] > at[0];         /* no expression here matches nothing */
    return SF_OK;
}

/* Cuts well-formed text by steps `step` and later. */
static sf_status cut(const struct run *run, int step, const char *text, size_t bytes)
{
    if (bytes == 0) return SF_OK;
    if (step == run->split->steps) return run->piece(run->context, text, bytes);
    for (size_t from = 0; from < bytes;) {
        size_t first = 0, end = 0;
        int found;
        SF_TRY(next_match(run, step, text, bytes, from, &first, &end, &found));
        if (!found) return cut(run, step + 1, text + from, bytes - from);
        SF_TRY(cut(run, step + 1, text + from, first - from));
        SF_TRY(cut(run, step + 1, text + first, end - first));
        from = end;
    }
    return SF_OK;
}

static sf_status scan_all(const struct run *run, const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        size_t taken = sf_scan_piece(&run->split->known->rules, text + at, bytes - at);
        SF_ASSERT(taken > 0 && taken <= bytes - at);
        SF_TRY(run->piece(run->context, text + at, taken));
        at += taken;
    }
    return SF_OK;
}

static sf_status cut_run(const struct run *run, const char *text, size_t bytes)
{
    return run->match == NULL ? scan_all(run, text, bytes) : cut(run, 0, text, bytes);
}

/* The end of the ASCII characters from `at` on, a word at a time. */
static size_t ascii_end(const char *text, size_t bytes, size_t at)
{
    uint64_t word;
    for (; bytes - at >= sizeof word; at += sizeof word) {
        memcpy(&word, text + at, sizeof word);
        if ((word & 0x8080808080808080u) != 0) break;
    }
    while (at < bytes && (unsigned char)text[at] < 0x80) at++;
    return at;
}

static sf_status cut_valid_runs(const struct run *run, const char *text, size_t bytes)
{
    size_t valid_first = 0, at = 0;
    while (at < bytes) {
        at = ascii_end(text, bytes, at);
        if (at == bytes) break;
        size_t taken = sf_utf8_char_bytes(text + at, bytes - at);
        if (taken > 0) {
            at += taken;
            continue;
        }
        SF_TRY(cut_run(run, text + valid_first, at - valid_first));
        SF_TRY(run->piece(run->context, text + at, 1));
        valid_first = ++at;
    }
    return cut_run(run, text + valid_first, bytes - valid_first);
}

sf_status sf_split_text(const struct sf_split *split, const char *text, size_t bytes,
                        sf_status (*piece)(void *context, const char *at, size_t bytes),
                        void *context)
{
    struct run run = { split, NULL, piece, context };
    return cut_valid_runs(&run, text, bytes);
}

sf_status sf_split_text_defined(const struct sf_split *split, const char *text, size_t bytes,
                                sf_status (*piece)(void *context, const char *at, size_t bytes),
                                void *context)
{
    struct run run = { split, pcre2_match_data_create(1, NULL), piece, context };
    if (run.match == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory to split text");
    sf_status status = cut_valid_runs(&run, text, bytes);
    pcre2_match_data_free(run.match);
    return status;
}
