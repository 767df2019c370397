/* model/desc.h: what a model is, as numbers.  Read from a weight file's header, never changed. */
#ifndef SHEAF_MODEL_DESC_H
#define SHEAF_MODEL_DESC_H
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_NAME_MAX = 128, SF_EOS_MAX = 8 };
enum sf_arch { SF_ARCH_LLAMA };

struct sf_layer_desc {
    int32_t q_heads, kv_heads, k_dim, v_dim;
    int32_t window;                     /* sliding window in tokens; 0 = full attention */
};
struct sf_model_desc {
    enum sf_arch arch;
    char arch_name[32], name[SF_NAME_MAX], file_type[32];
    int32_t layers, d_model, ffn, vocab, context;
    const struct sf_layer_desc *layer;  /* [layers] */
    float norm_eps, attn_scale;         /* attn_scale: k_dim^-0.5 unless the model says otherwise */
    int32_t rope_dim;                   /* rotated elements of a head, half-split pairs */
    /* [rope_dim / 2] scaling (llama3, linear) already applied */
    const float *rope_inv_freq;
    double rope_theta;                  /* of a trace, whose angles are f64 (trace.h); else 0 */
    uint8_t tied;                       /* output head is the embedding */
    uint8_t bias_q, bias_k, bias_v, bias_o, bias_ffn;
    int32_t bos, eos[SF_EOS_MAX], eos_count; /* -1: none; any of eos ends an answer */
};

SF_C_END
#endif
