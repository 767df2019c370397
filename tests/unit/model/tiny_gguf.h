/* tests/unit/model/tiny_gguf.h: GGUF files made in memory, small, of any shape, right or wrong.
 *
 * What is written follows the description of the format and shares no code with the reader, so
 * that a mistake in one shows up against the other. */
#ifndef SHEAF_TESTS_TINY_GGUF_H
#define SHEAF_TESTS_TINY_GGUF_H
#include <stddef.h>
#include <stdint.h>

enum { TINY_U32 = 4, TINY_F32 = 6, TINY_BOOL = 7, TINY_STRING = 8, TINY_U64 = 10,
       TINY_LEFT_OUT = 99, TINY_U32_ARRAY = 100 };
/* A key that is added, or takes the place of the usual one of that name. */
struct tiny_key { const char *key; uint32_t type; double number; const char *text;
                  const uint32_t *array; uint32_t count; };

struct tiny_spec {
    uint32_t version, alignment;        /* 0: 3; no key (32) */
    uint32_t matrix_type;               /* ggml type: 0 F32, 8 Q8_0, 3 Q4_1, ... */
    int32_t layers, d_model, ffn, q_heads, kv_heads, k_dim, v_dim, vocab;
    const int32_t *kv_heads_of_layer;   /* NULL: kv_heads everywhere */
    int biases, untied;
    const float *rope_freqs;            /* [k_dim / 2] or NULL */
    int tokens;                         /* entries of the vocabulary; 0: no tokenizer */
    const struct tiny_key *keys;        /* closed by key NULL; may be NULL */
    const char *drop_tensor, *repeat_tensor, *retype_tensor, *narrow_tensor;
    uint32_t retype_to;
};
struct tiny_file { unsigned char *bytes; size_t count, head_bytes; };  /* head: all but the data */

struct tiny_spec tiny_default(void);
struct tiny_file tiny_make(const struct tiny_spec *);
void tiny_free(struct tiny_file *);
/* A path under which these bytes can be opened; holds until the next call or tiny_close. */
const char *tiny_path(const unsigned char *bytes, size_t count);
void tiny_close(void);

/* The value that the file holds, for F32 matrices and all vectors, at (row, col) as a training
 * framework numbers them (half-split q and k rows): distinct for distinct arguments nearby. */
float tiny_value(const char *tensor, int32_t row, int32_t col);

#endif
