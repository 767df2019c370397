/* base/opt.c: one option from text into its field and back.
 *
 * A value is parsed into a union first and copied into the config only when all of it is right, so
 * a refused text leaves the field as it was.  Numbers are decimal and whole words: no hexadecimal,
 * no blanks, no "1e6" for an integer, no infinities. */
#include "base/opt.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUOTED_BYTES = 80, ALLOWED_BYTES = 512 };

union value {
    int32_t int32;
    int64_t int64;
    double real;
    uint8_t boolean;
    char text[SF_OPT_TEXT_MAX];
    struct sf_opt_ints ints;
    struct sf_opt_pairs pairs;
    struct sf_opt_ranges ranges;
};

/* A text built from pieces; what does not fit is dropped. */
struct words { char *text; size_t bytes, used; };

static int parse_value(const struct sf_opt *row, const char *text, union value *value);
static int parse_int(const char *text, const char **end_out, int64_t *value_out);
static int parse_real(const char *text, double *value_out);
static int parse_bytes(const char *text, int64_t *bytes_out);
static int parse_ints(const struct sf_opt *row, const char *text, struct sf_opt_ints *ints);
static int parse_pairs(const struct sf_opt *row, const char *text, struct sf_opt_pairs *pairs);
static int parse_ranges(const struct sf_opt *row, const char *text, struct sf_opt_ranges *ranges);
static int in_range(const struct sf_opt *row, double value);
static size_t field_bytes(enum sf_opt_type type);
static void describe(const struct sf_opt *row, char *text, size_t bytes);
static const char *quoted(const char *text, char out[QUOTED_BYTES]);
static void add(struct words *words, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void add_ranges(struct words *words, const struct sf_opt *row,
                       const struct sf_opt_ranges *ranges);
static void add_real(struct words *words, double value);
static void add_bytes(struct words *words, int64_t bytes);

sf_status sf_opt_set(const struct sf_opt *row, void *cfg, const char *text)
{
    union value value, fallback;
    char shown[QUOTED_BYTES], allowed[ALLOWED_BYTES];
    if (!parse_value(row, text, &value)) {
        describe(row, allowed, sizeof allowed);
        return SF_FAIL(SF_INVALID, "%s is '%s'; allowed: %s", row->key, quoted(text, shown),
                       allowed);
    }
    if (!row->built) {
        int parsed = parse_value(row, row->fallback, &fallback);
        SF_ASSERT(parsed);
        if (memcmp(&value, &fallback, sizeof value) != 0)
            return SF_FAIL(SF_UNSUPPORTED, "%s is '%s', which is not built yet; allowed: '%s'",
                           row->key, quoted(text, shown), row->fallback);
    }
    memcpy((char *)cfg + row->offset, &value, field_bytes(row->type));
    return SF_OK;
}

void sf_opt_defaults(const struct sf_opt *table, void *cfg)
{
    for (const struct sf_opt *row = table; row->key != NULL; row++) {
        union value value;
        SF_ASSERT(row->fallback != NULL);
        int parsed = parse_value(row, row->fallback, &value);
        SF_ASSERT(parsed);
        memcpy((char *)cfg + row->offset, &value, field_bytes(row->type));
    }
}

/* Fills all of `value`, so that equal values have equal bytes. */
static int parse_value(const struct sf_opt *row, const char *text, union value *value)
{
    int64_t whole;
    const char *end;
    memset(value, 0, sizeof *value);
    int is_auto = row->allow_auto && strcmp(text, "auto") == 0;
    switch (row->type) {
    case SF_OPT_INT32:
        whole = SF_OPT_AUTO;
        if (!is_auto && (!parse_int(text, &end, &whole) || *end != '\0'
                         || whole != (int32_t)whole || !in_range(row, (double)whole)))
            return 0;
        value->int32 = (int32_t)whole;
        return 1;
    case SF_OPT_INT64:
        value->int64 = SF_OPT_AUTO;
        return is_auto || (parse_int(text, &end, &value->int64) && *end == '\0'
                           && in_range(row, (double)value->int64));
    case SF_OPT_BYTES:
        value->int64 = SF_OPT_AUTO;
        return is_auto || (parse_bytes(text, &value->int64)
                           && in_range(row, (double)value->int64));
    case SF_OPT_FLOAT:
        return parse_real(text, &value->real) && in_range(row, value->real);
    case SF_OPT_BOOL:
        value->boolean = strcmp(text, "true") == 0;
        return value->boolean || strcmp(text, "false") == 0;
    case SF_OPT_ENUM:
        for (int32_t i = 0; row->choices[i] != NULL; i++)
            if (strcmp(text, row->choices[i]) == 0) {
                value->int32 = i;
                return 1;
            }
        return 0;
    case SF_OPT_STRING:
        if (strlen(text) >= sizeof value->text) return 0;
        memcpy(value->text, text, strlen(text));
        return 1;
    case SF_OPT_INTS:
        value->ints.count = SF_OPT_AUTO;
        return is_auto || parse_ints(row, text, &value->ints);
    case SF_OPT_PAIRS:
        value->pairs.count = SF_OPT_AUTO;
        return is_auto || parse_pairs(row, text, &value->pairs);
    case SF_OPT_RANGES:
        value->ranges.count = SF_OPT_AUTO;
        return is_auto || parse_ranges(row, text, &value->ranges);
    }
    SF_ASSERT(!"known option type");
    return 0;
}

static int in_range(const struct sf_opt *row, double value)
{
    return (row->min == 0 && row->max == 0) || (value >= row->min && value <= row->max);
}

static size_t field_bytes(enum sf_opt_type type)
{
    switch (type) {
    case SF_OPT_INT32:
    case SF_OPT_ENUM: return sizeof(int32_t);
    case SF_OPT_INT64:
    case SF_OPT_BYTES: return sizeof(int64_t);
    case SF_OPT_FLOAT: return sizeof(double);
    case SF_OPT_BOOL: return sizeof(uint8_t);
    case SF_OPT_STRING: return SF_OPT_TEXT_MAX;
    case SF_OPT_INTS: return sizeof(struct sf_opt_ints);
    case SF_OPT_PAIRS: return sizeof(struct sf_opt_pairs);
    case SF_OPT_RANGES: return sizeof(struct sf_opt_ranges);
    }
    SF_ASSERT(!"known option type");
    return 0;
}

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Optional sign and digits; `*end_out` is what follows them. */
static int parse_int(const char *text, const char **end_out, int64_t *value_out)
{
    const char *digits = text + (*text == '-' || *text == '+');
    if (!is_digit(*digits)) return 0;
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0) return 0;
    *end_out = end;
    *value_out = value;
    return 1;
}

static int parse_real(const char *text, double *value_out)
{
    if (*text == '\0' || text[strspn(text, "0123456789+-.eE")] != '\0') return 0;
    char *end;
    double value = strtod(text, &end);
    if (*end != '\0' || !isfinite(value)) return 0;
    *value_out = value;
    return 1;
}

/* "[a, b]" or "a,b"; blanks around numbers are free; "" and "[]" are no numbers at all. */
static int parse_ints(const struct sf_opt *row, const char *text, struct sf_opt_ints *ints)
{
    const char *at = text + strspn(text, " ");
    int bracket = *at == '[';
    at += bracket;
    at += strspn(at, " ");
    ints->count = 0;
    while (*at != '\0' && *at != ']') {
        int64_t value;
        if (ints->count == SF_OPT_INTS_MAX || !parse_int(at, &at, &value)) return 0;
        if (value != (int32_t)value || !in_range(row, (double)value)) return 0;
        ints->value[ints->count++] = (int32_t)value;
        at += strspn(at, " ");
        if (*at == ',') {
            at += 1 + strspn(at + 1, " ");
            if (*at == '\0' || *at == ']') return 0;
        } else if (*at != '\0' && *at != ']') {
            return 0;
        }
    }
    if (bracket != (*at == ']')) return 0;
    at += bracket;
    return at[strspn(at, " ")] == '\0';
}

/* One character and the blanks behind it. */
static int skip(const char **at, char c)
{
    if (**at != c) return 0;
    *at += 1 + strspn(*at + 1, " ");
    return 1;
}

static int parse_number(const struct sf_opt *row, const char **at, int32_t *out)
{
    int64_t value;
    if (!parse_int(*at, at, &value) || value != (int32_t)value) return 0;
    *at += strspn(*at, " ");
    *out = (int32_t)value;
    return in_range(row, (double)value);
}

/* "[[a, b], [c, d]]"; "[]" is no pair at all. */
static int parse_pairs(const struct sf_opt *row, const char *text, struct sf_opt_pairs *pairs)
{
    const char *at = text + strspn(text, " ");
    pairs->count = 0;
    if (!skip(&at, '[')) return 0;
    while (*at != ']') {
        if (pairs->count == SF_OPT_PAIRS_MAX || (pairs->count > 0 && !skip(&at, ','))) return 0;
        int32_t *pair = pairs->value[pairs->count++];
        if (!skip(&at, '[') || !parse_number(row, &at, &pair[0]) || !skip(&at, ',') ||
            !parse_number(row, &at, &pair[1]) || !skip(&at, ']'))
            return 0;
    }
    skip(&at, ']');
    return *at == '\0';
}

/* "a-b", "a" or "[a, a + 1, ..., b]". */
static int parse_range(const struct sf_opt *row, const char **at, int32_t *first, int32_t *last)
{
    int32_t next;
    if (!skip(at, '[')) {
        if (!parse_number(row, at, first)) return 0;
        *last = *first;
        return !skip(at, '-') || parse_number(row, at, last);
    }
    if (!parse_number(row, at, first)) return 0;
    for (*last = *first; skip(at, ','); *last = next)
        if (!parse_number(row, at, &next) || next != *last + 1) return 0;
    return skip(at, ']');
}

/* "[a-b, c, d-e]" with 0 <= a <= b < c < d ..., or with lists "[[a, b], [c], [d, e]]"; "[]" is no
 * range at all. */
static int parse_ranges(const struct sf_opt *row, const char *text, struct sf_opt_ranges *ranges)
{
    const char *at = text + strspn(text, " ");
    int32_t before = -1, first, last;
    ranges->count = 0;
    if (!skip(&at, '[')) return 0;
    while (*at != ']') {
        if (ranges->count == SF_OPT_RANGES_MAX || (ranges->count > 0 && !skip(&at, ','))) return 0;
        if (!parse_range(row, &at, &first, &last)) return 0;
        if (first <= before || last < first) return 0;
        ranges->value[ranges->count].first = first;
        ranges->value[ranges->count++].last = before = last;
    }
    skip(&at, ']');
    return *at == '\0';
}

static const struct { const char *name; int shift; } byte_units[] = {
    { "", 0 }, { "B", 0 }, { "KiB", 10 }, { "MiB", 20 }, { "GiB", 30 }, { "TiB", 40 }
};
enum { BYTE_UNITS = sizeof byte_units / sizeof *byte_units };

/* Digits, perhaps a point and more digits, perhaps a blank, and a unit.  A fraction needs a unit
 * above B and is cut to whole bytes; the whole part is exact, the fraction is under one unit. */
static int parse_bytes(const char *text, int64_t *bytes_out)
{
    const char *at;
    int64_t whole;
    double fraction = 0;
    if (!is_digit(*text) || !parse_int(text, &at, &whole)) return 0;
    int has_fraction = *at == '.';
    if (has_fraction) {
        size_t digits = strspn(at + 1, "0123456789");
        char *end;
        if (digits == 0) return 0;
        fraction = strtod(at, &end);
        /* strtod may have taken an exponent ("1.5e3"), which no byte count has. */
        if (end != at + 1 + digits) return 0;
        at = end;
    }
    at += *at == ' ' && at[1] != '\0';
    int unit = 0;
    while (unit < BYTE_UNITS && strcmp(at, byte_units[unit].name) != 0) unit++;
    if (unit == BYTE_UNITS) return 0;
    int shift = byte_units[unit].shift;
    if (has_fraction && shift == 0) return 0;
    if (whole > (INT64_MAX >> shift) - has_fraction) return 0;
    *bytes_out = whole * ((int64_t)1 << shift) + (int64_t)ldexp(fraction, shift);
    return 1;
}

sf_status sf_parse_bytes(const char *text, int64_t *bytes_out)
{
    char shown[QUOTED_BYTES];
    if (parse_bytes(text, bytes_out)) return SF_OK;
    return SF_FAIL(SF_INVALID, "size is '%s'; allowed: bytes, such as 4096, 64KiB or 1.5GiB",
                   quoted(text, shown));
}

void sf_opt_get(const struct sf_opt *row, const void *cfg, char *text_out, size_t bytes)
{
    SF_ASSERT(bytes > 0);
    struct words words = { .text = text_out, .bytes = bytes };
    union value value;
    memcpy(&value, (const char *)cfg + row->offset, field_bytes(row->type));
    text_out[0] = '\0';
    switch (row->type) {
    case SF_OPT_INT32:
        if (row->allow_auto && value.int32 == SF_OPT_AUTO) add(&words, "auto");
        else add(&words, "%d", value.int32);
        return;
    case SF_OPT_INT64:
        if (row->allow_auto && value.int64 == SF_OPT_AUTO) add(&words, "auto");
        else add(&words, "%lld", (long long)value.int64);
        return;
    case SF_OPT_BYTES:
        if (row->allow_auto && value.int64 == SF_OPT_AUTO) add(&words, "auto");
        else add_bytes(&words, value.int64);
        return;
    case SF_OPT_FLOAT: add_real(&words, value.real); return;
    case SF_OPT_BOOL: add(&words, "%s", value.boolean ? "true" : "false"); return;
    case SF_OPT_ENUM:
        SF_ASSERT(value.int32 >= 0);
        add(&words, "%s", row->choices[value.int32]);
        return;
    case SF_OPT_STRING: add(&words, "%s", value.text); return;
    case SF_OPT_INTS:
        if (row->allow_auto && value.ints.count == SF_OPT_AUTO) {
            add(&words, "auto");
            return;
        }
        SF_ASSERT(value.ints.count >= 0 && value.ints.count <= SF_OPT_INTS_MAX);
        add(&words, "[");
        for (int32_t i = 0; i < value.ints.count; i++)
            add(&words, "%s%d", i == 0 ? "" : ", ", value.ints.value[i]);
        add(&words, "]");
        return;
    case SF_OPT_PAIRS:
        if (row->allow_auto && value.pairs.count == SF_OPT_AUTO) {
            add(&words, "auto");
            return;
        }
        SF_ASSERT(value.pairs.count >= 0 && value.pairs.count <= SF_OPT_PAIRS_MAX);
        add(&words, "[");
        for (int32_t i = 0; i < value.pairs.count; i++)
            add(&words, "%s[%d, %d]", i == 0 ? "" : ", ", value.pairs.value[i][0],
                value.pairs.value[i][1]);
        add(&words, "]");
        return;
    case SF_OPT_RANGES: add_ranges(&words, row, &value.ranges); return;
    }
    SF_ASSERT(!"known option type");
}

static void add_ranges(struct words *words, const struct sf_opt *row,
                       const struct sf_opt_ranges *ranges)
{
    if (row->allow_auto && ranges->count == SF_OPT_AUTO) {
        add(words, "auto");
        return;
    }
    SF_ASSERT(ranges->count >= 0 && ranges->count <= SF_OPT_RANGES_MAX);
    add(words, "[");
    for (int32_t i = 0; i < ranges->count; i++) {
        int32_t first = ranges->value[i].first, last = ranges->value[i].last;
        add(words, last > first ? "%s%d-%d" : "%s%d", i == 0 ? "" : ", ", first, last);
    }
    add(words, "]");
}

/* What the row takes, for people: "an integer from 0 to 1024 (slots), or auto". */
static void describe(const struct sf_opt *row, char *text, size_t bytes)
{
    struct words words = { .text = text, .bytes = bytes };
    int ranged = row->min != 0 || row->max != 0;
    switch (row->type) {
    case SF_OPT_INT32:
    case SF_OPT_INT64: add(&words, "an integer"); break;
    case SF_OPT_FLOAT: add(&words, "a number"); break;
    case SF_OPT_BOOL: add(&words, "true or false"); return;
    case SF_OPT_BYTES: add(&words, "bytes, such as 4096, 64KiB or 1.5GiB,"); break;
    case SF_OPT_ENUM:
        for (int i = 0; row->choices[i] != NULL; i++)
            add(&words, "%s%s", i == 0 ? "" : ", ", row->choices[i]);
        return;
    case SF_OPT_STRING: add(&words, "at most %d bytes of text", SF_OPT_TEXT_MAX - 1); return;
    case SF_OPT_INTS:
        add(&words, "a list like [14, 16] of at most %d integers%s", SF_OPT_INTS_MAX,
            ranged ? ", each" : "");
        break;
    case SF_OPT_PAIRS:
        add(&words, "a list like [[0, 2], [3, 1]] of at most %d pairs%s", SF_OPT_PAIRS_MAX,
            ranged ? ", each number" : "");
        break;
    case SF_OPT_RANGES:
        add(&words, "a list like [0-3, 4-5, 8] of at most %d ranges, ascending and without a number"
            " twice%s", SF_OPT_RANGES_MAX, ranged ? ", each number" : "");
        break;
    }
    if (ranged && row->type == SF_OPT_BYTES) {
        add(&words, " from ");
        add_bytes(&words, (int64_t)row->min);
        add(&words, " to ");
        /* 2^63 and above do not fit the type; such a table means "no limit". */
        add_bytes(&words, row->max < 0x1p63 ? (int64_t)row->max : INT64_MAX);
    } else if (ranged) {
        add(&words, " from ");
        add_real(&words, row->min);
        add(&words, " to ");
        add_real(&words, row->max);
    } else if (row->type == SF_OPT_BYTES) {
        add(&words, " from 0");
    }
    if (row->unit != NULL && row->unit[0] != '\0' && row->type != SF_OPT_BYTES)
        add(&words, " (%s)", row->unit);
    if (row->allow_auto) add(&words, ", or auto");
}

/* The text as it may stand in a message: one line, printable, cut where it is long. */
static const char *quoted(const char *text, char out[QUOTED_BYTES])
{
    size_t used = 0;
    for (; text[used] != '\0' && used < QUOTED_BYTES - 4; used++) {
        unsigned char c = (unsigned char)text[used];
        out[used] = (char)(c < 0x20 || c >= 0x7f ? '?' : c);
    }
    snprintf(out + used, QUOTED_BYTES - used, "%s", text[used] != '\0' ? "..." : "");
    return out;
}

static void add(struct words *words, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int count = vsnprintf(words->text + words->used, words->bytes - words->used, format, args);
    va_end(args);
    SF_ASSERT(count >= 0);
    size_t room = words->bytes - words->used - 1;
    words->used += (size_t)count < room ? (size_t)count : room;
}

/* The fewest digits that read back as the same number; whole numbers without an exponent. */
static void add_real(struct words *words, double value)
{
    char text[40];
    if (value == floor(value) && fabs(value) < 1e15) {
        snprintf(text, sizeof text, "%.0f", value);
    } else {
        for (int digits = 1; digits <= 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, value);
            if (strtod(text, NULL) == value) break;
        }
    }
    add(words, "%s", text);
}

/* In the largest unit that divides it, so that nothing is lost. */
static void add_bytes(struct words *words, int64_t bytes)
{
    int unit = BYTE_UNITS - 1;
    while (unit > 0 && (bytes == 0 || bytes % ((int64_t)1 << byte_units[unit].shift) != 0)) unit--;
    if (byte_units[unit].shift == 0) unit = 0;
    add(words, "%lld%s", (long long)(bytes >> byte_units[unit].shift), byte_units[unit].name);
}
