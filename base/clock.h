/* base/clock.h: monotonic time and deadlines. */
#ifndef SHEAF_BASE_CLOCK_H
#define SHEAF_BASE_CLOCK_H
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

int64_t sf_now_ns(void);                 /* CLOCK_MONOTONIC */
double  sf_seconds_since(int64_t then_ns);
void    sf_sleep_us(int64_t us);

SF_C_END
#endif
