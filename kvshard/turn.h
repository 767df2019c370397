/* kvshard/turn.h: keys before RoPE, and rotations of positions (turn.c).  Internal to the store. */
#ifndef SHEAF_KVSHARD_TURN_H
#define SHEAF_KVSHARD_TURN_H
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

struct sf_store;

/* Keys on the device, [n][k_dim of the layout], from their positions to 0 (back) or from there on.
 * Takes scratch. */
sf_status sf_turn(struct sf_store *, int32_t layer, float *k, const int32_t *pos, int32_t n,
                  int back);
/* Rotations to positions 0 .. n - 1: table [n][2][rope_dim / 2] on the device.  Takes scratch. */
sf_status sf_turn_table(struct sf_store *, int32_t n, int32_t rope_dim, float *table);

SF_C_END
#endif
