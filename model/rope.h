/* model/rope.h: rotation angles as a trace says them.  A model's own come from k->rope_table,
 * products in f32 as checkpoints were trained; at position 5,000 those are off by some 1e-4. */
#ifndef SHEAF_MODEL_ROPE_H
#define SHEAF_MODEL_ROPE_H
#include "model/desc.h"
SF_C_BEGIN

/* table_out [2][rope_dim / 2]: cos and sin of pos * rope_theta^(-2 i / rope_dim), for rope_theta
 * above 0; pos may be negative: turned back. */
void sf_rope_turns(const struct sf_model_desc *, int32_t pos, float *table_out);

SF_C_END
#endif
