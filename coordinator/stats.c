/* coordinator/stats.c: ranges, series, percentiles (stats.h). */
#include "coordinator/stats.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"

/* ---- numbers in a text ----------------------------------------------------------------------- */
/* Digits of a number from 1 to most; *end_out: what follows. */
static int read_number(const char *text, int32_t most, int32_t *out, const char **end_out)
{
    int64_t number = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9'; c++) {
        number = 10 * number + (*c - '0');
        if (number > most) return 0;
    }
    *out = (int32_t)number;
    *end_out = c;
    return number >= 1;
}

sf_status sf_range_parse(const char *text, int32_t most, struct sf_range *out)
{
    struct sf_range range = {0, 0};
    const char *end;
    int good = read_number(text, most, &range.lo, &end);
    range.hi = range.lo;
    if (good && *end == ':') good = read_number(end + 1, most, &range.hi, &end);
    if (!good || *end != '\0' || range.hi < range.lo)
        return SF_FAIL(SF_INVALID, "'%.40s' is no length; allowed: N or LO:HI, of 1 to %d", text,
                       most);
    *out = range;
    return SF_OK;
}

int32_t sf_range_draw(struct sf_range range, double u)
{
    SF_ASSERT(u >= 0 && u < 1 && range.lo <= range.hi);
    return range.lo + (int32_t)(u * ((double)range.hi - range.lo + 1));
}

sf_status sf_numbers_parse(const char *text, int32_t most, int32_t places, int32_t *number_out,
                           int32_t *count_out)
{
    int32_t count = 0;
    for (const char *rest = text;; rest++) {
        if (count == places || !read_number(rest, most, &number_out[count], &rest)) break;
        count++;
        if (*rest == '\0') {
            *count_out = count;
            return SF_OK;
        }
        if (*rest != ',') break;
    }
    return SF_FAIL(SF_INVALID, "'%.40s' is no list; allowed: up to %d numbers of 1 to %d, such as "
                   "1,8,32", text, places, most);
}

/* ---- series ---------------------------------------------------------------------------------- */
sf_status sf_series_add(struct sf_series *series, double value)
{
    void *values = series->value;
    SF_TRY(sf_grow(&values, &series->capacity, series->count + 1, sizeof *series->value));
    series->value = values;
    series->value[series->count++] = value;
    return SF_OK;
}

void sf_series_free(struct sf_series *series)
{
    free(series->value);
    *series = (struct sf_series){0};
}

static int by_value(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

double sf_percentile(const double *sorted, size_t count, double share)
{
    if (count == 0) return NAN;
    double place = share * (double)(count - 1);
    size_t below = (size_t)place;
    if (below + 1 >= count) return sorted[count - 1];
    return sorted[below] + (place - (double)below) * (sorted[below + 1] - sorted[below]);
}

struct sf_spread sf_series_spread(struct sf_series *series)
{
    double sum = 0;
    if (series->count > 1) qsort(series->value, series->count, sizeof *series->value, by_value);
    for (size_t i = 0; i < series->count; i++) sum += series->value[i];
    return (struct sf_spread){
        .mean = series->count > 0 ? sum / (double)series->count : NAN,
        .p50 = sf_percentile(series->value, series->count, 0.50),
        .p90 = sf_percentile(series->value, series->count, 0.90),
        .p99 = sf_percentile(series->value, series->count, 0.99)};
}
