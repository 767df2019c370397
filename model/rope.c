/* model/rope.c: rotation angles of a trace, in f64. */
#include "model/rope.h"

#include <math.h>

void sf_rope_turns(const struct sf_model_desc *desc, int32_t pos, float *table_out)
{
    int32_t half = desc->rope_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        double angle = pos * pow(desc->rope_theta, -(double)i / half);
        table_out[i] = (float)cos(angle);
        table_out[half + i] = (float)sin(angle);
    }
}
