/* model/trace.h: recorded queries, keys and values of one sequence, and what attention made of
 * them: the two files of `sheaf lab`.
 *
 *   trace    layers.{l}.q F32 [rows, q heads, k_dim] and layers.{l}.k F32 [rows, KV heads, k_dim],
 *            both before RoPE; layers.{l}.v F32 [rows, KV heads, v_dim]; tokens I32, sentence_end
 *            U8 and turn_end U8 [rows] may be missing
 *   metadata prompt_tokens: rows that are the prompt, the others are decoded one at a time;
 *            chunk_tokens: rows of a chunk of the prompt, "0" (and none): all at once;
 *            rope_theta: "0" = no RoPE; softmax_scale: k_dim^-1/2 if it is missing
 *   result   layers.{l}.out F32 [rows, q heads, v_dim]; of each lane (layer l, KV head h) at the
 *            end lanes.{l}.{h}.pos I32, .tier U8, .bias F32 [slots], .k F32 [slots, k_dim] and
 *            .v F32 [slots, v_dim]; metadata stats: one JSON object */
#ifndef SHEAF_MODEL_TRACE_H
#define SHEAF_MODEL_TRACE_H
#include <stdint.h>
#include "base/status.h"
#include "model/desc.h"
#include "model/safetensors.h"
SF_C_BEGIN

struct sf_trace_layer { const unsigned char *q, *k, *v; };      /* f32, in the map, unaligned */
struct sf_trace {
    struct sf_st_file *file;
    struct sf_model_desc desc;          /* a model of these shapes, without weights */
    int32_t rows, prompt, chunk;        /* chunk: rows fed at once in the prompt, 1 to prompt */
    float scale;                        /* softmax_scale; 0: k_dim^-1/2 of each layer */
    const struct sf_trace_layer *layer; /* [desc.layers] */
    /* [rows], in the map, NULL if they are not there; no method of this version asks for them */
    const unsigned char *tokens, *sentence_end, *turn_end;
    const char *unread;                 /* a tensor that means nothing here; NULL: there is none */
};
/* Checked: shapes, types, metadata, and that every value is finite.  SF_FORMAT with file, tensor
 * and numbers; SF_UNSUPPORTED where shapes are past what the cache can hold. */
sf_status sf_trace_open(const char *path, struct sf_trace *out);
void      sf_trace_close(struct sf_trace *);

struct sf_trace_lane {                  /* its slots in order, decoded; keys after RoPE; owned */
    int32_t slots;
    int32_t *pos; uint8_t *tier; float *bias;
    float *k, *v;                       /* [slots][k_dim], [slots][v_dim] */
};
struct sf_trace_result {
    float **out;                        /* [layers] [rows][q heads][v_dim] */
    struct sf_trace_lane *lane;         /* of all layers, one layer after the other */
    int32_t layers, lanes;
};
struct sf_trace_counts {                /* over all ranks, copies of lanes not counted */
    int64_t bytes_exact, bytes_stored, slots_evicted, slots_merged;
};
/* Room for everything but the lanes. */
sf_status sf_trace_result_create(const struct sf_trace *, struct sf_trace_result *out);
void      sf_trace_result_free(struct sf_trace_result *);
sf_status sf_trace_lane_create(int32_t slots, const struct sf_layer_desc *,
                               struct sf_trace_lane *out);
void      sf_trace_lane_free(struct sf_trace_lane *);
sf_status sf_trace_result_write(const struct sf_trace *, const struct sf_trace_result *,
                                const char *stats, const char *path);

SF_C_END
#endif
