/* base/opt.h: option tables.  One table per component, and everything comes from it: parsing,
 * range errors, `sheaf methods` help, docs/config.md and the record of effective values.
 *
 * A table ends with a row whose key is NULL.  A row describes one field of the component's config
 * struct: `offset` bytes into it lies a C value of the row's type.
 *
 *   type            C type of the field          text form
 *   SF_OPT_INT32    int32_t                      "4"
 *   SF_OPT_INT64    int64_t                      "-1"
 *   SF_OPT_FLOAT    double                       "0.5" "1e-5"
 *   SF_OPT_BOOL     uint8_t                      true | false
 *   SF_OPT_BYTES    int64_t                      "4096" "64KiB" "1.5GiB"
 *   SF_OPT_ENUM     int32_t, index in `choices`  one of the names in `choices`
 *   SF_OPT_STRING   char [SF_OPT_TEXT_MAX]       any text that fits
 *   SF_OPT_INTS     struct sf_opt_ints           "[14, 16]" or "14,16"
 *   SF_OPT_PAIRS    struct sf_opt_pairs          "[[0, 2], [3, 1]]"
 *   SF_OPT_RANGES   struct sf_opt_ranges         "[0-3, 4-5, 8]": ascending, no number twice;
 *                                                "[[0, 1, 2, 3], [4, 5], [8]]" is the same
 *
 * Where `allow_auto` is set the text "auto" is taken too and stored as SF_OPT_AUTO (integers and
 * bytes), or as SF_OPT_AUTO in the count of a list. */
#ifndef SHEAF_BASE_OPT_H
#define SHEAF_BASE_OPT_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_OPT_AUTO = -1, SF_OPT_TEXT_MAX = 1024, SF_OPT_INTS_MAX = 512,
       SF_OPT_PAIRS_MAX = 2048, SF_OPT_RANGES_MAX = 512 };
enum sf_opt_type { SF_OPT_INT32, SF_OPT_INT64, SF_OPT_FLOAT, SF_OPT_BOOL, SF_OPT_BYTES, SF_OPT_ENUM,
                   SF_OPT_STRING, SF_OPT_INTS, SF_OPT_PAIRS, SF_OPT_RANGES };

struct sf_opt_ints { int32_t count, value[SF_OPT_INTS_MAX]; };
struct sf_opt_pairs { int32_t count, value[SF_OPT_PAIRS_MAX][2]; };
struct sf_opt_ranges { int32_t count; struct { int32_t first, last; } value[SF_OPT_RANGES_MAX]; };
/* Room for the text form of any value. */
enum { SF_OPT_VALUE_BYTES = SF_OPT_PAIRS_MAX * 28 + 4 };

struct sf_opt {
    const char *key;
    enum sf_opt_type type;
    size_t offset;
    const char *fallback;             /* default, in text form */
    double min, max;                  /* of numbers and bytes, inclusive; both 0: any */
    uint8_t allow_auto;
    uint8_t built;                    /* 0: accepted at its default only (not built yet) */
    const char *const *choices;       /* SF_OPT_ENUM: names, closed by NULL */
    const char *aliases;              /* other spellings, separated by blanks; NULL = none */
    const char *unit, *help;
};

/* The row of `key` (its name or an alias), or NULL. */
const struct sf_opt *sf_opt_find(const struct sf_opt *table, const char *key);
/* The name in the table that is nearest to `key` by edit distance, or NULL if none is near. */
const char *sf_opt_nearest(const struct sf_opt *table, const char *key);
/* Writes every default into `cfg`; asserts that the table's own defaults are valid. */
void sf_opt_defaults(const struct sf_opt *table, void *cfg);
/* Parses `text` into the field of `cfg`.  SF_INVALID, worded with the value and what is allowed
 * (no file position: the caller knows it); SF_UNSUPPORTED for a row that is not built yet. */
sf_status sf_opt_set(const struct sf_opt *row, void *cfg, const char *text);
/* The field's value in text form, such that sf_opt_set takes it back.  Writes at most `bytes`. */
void sf_opt_get(const struct sf_opt *row, const void *cfg, char *text_out, size_t bytes);

/* Nearest of `count` names to `word`, or NULL; used for every "did you mean". */
const char *sf_nearest_name(const char *word, const char *const *names, size_t count);
/* "64KiB", "1.5GiB", "4096" -> bytes.  SF_INVALID with words. */
sf_status sf_parse_bytes(const char *text, int64_t *bytes_out);

SF_C_END
#endif
