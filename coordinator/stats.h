/* coordinator/stats.h: small statistics: lengths given as ranges, series of samples and what is
 * said about them.  Pure. */
#ifndef SHEAF_COORDINATOR_STATS_H
#define SHEAF_COORDINATOR_STATS_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

struct sf_range { int32_t lo, hi; };    /* inclusive */
/* "128" or "16:2000", 1 <= lo <= hi <= most.  SF_INVALID with words. */
sf_status sf_range_parse(const char *text, int32_t most, struct sf_range *out);
/* Uniform, by u of [0, 1). */
int32_t   sf_range_draw(struct sf_range, double u);
/* "1,8,32": at most `places` numbers of 1 to `most`, in the order in which they stand.  SF_INVALID
 * with words; number_out[places] is scratch then. */
sf_status sf_numbers_parse(const char *text, int32_t most, int32_t places, int32_t *number_out,
                           int32_t *count_out);

struct sf_series { double *value; size_t count, capacity; };    /* starts zeroed */
sf_status sf_series_add(struct sf_series *, double);
void      sf_series_free(struct sf_series *);
/* NaN where there are no samples. */
struct sf_spread { double mean, p50, p90, p99; };
struct sf_spread sf_series_spread(struct sf_series *);  /* sorts it */
/* The value below which a share of the sorted ones lies, between two of them in proportion: at
 * place share x (count - 1). */
double    sf_percentile(const double *sorted, size_t count, double share);

SF_C_END
#endif
