/* tests/emulation/tensor.cpp: products of the tensor cores, from the registers of a warp.
 *
 * The 16 products of an element and what was there are added exactly enough (in f64) and cut to
 * f32, since the hardware cuts too: who rests on rounding to nearest sees a bias. */
#include <cmath>
#include "tests/emulation/internal.h"

namespace emu {

static float cut(double sum)
{
    float value = (float)sum;
    return std::fabs((double)value) > std::fabs(sum) ? std::nextafterf(value, 0) : value;
}

void mma_run(float (*widen)(uint16_t), const mma_lane *lanes)
{
    float a[16][16], b[8][16];          /* b by columns */
    for (int t = 0; t < 32; t++) {
        int r = t / 4, q = t % 4;
        for (int w = 0; w < 4; w++)
            for (int h = 0; h < 2; h++)
                a[r + w % 2 * 8][2 * q + w / 2 * 8 + h] =
                    widen((uint16_t)(lanes[t].a[w] >> (16 * h)));
        for (int w = 0; w < 2; w++)
            for (int h = 0; h < 2; h++)
                b[r][2 * q + w * 8 + h] = widen((uint16_t)(lanes[t].b[w] >> (16 * h)));
    }
    for (int t = 0; t < 32; t++)
        for (int i = 0; i < 4; i++) {
            const float *x = a[t / 4 + i / 2 * 8], *y = b[t % 4 * 2 + i % 2];
            double sum = (double)lanes[t].d[i];
            for (int k = 0; k < 16; k++) sum += (double)x[k] * (double)y[k];
            lanes[t].d[i] = cut(sum);
        }
}

}
