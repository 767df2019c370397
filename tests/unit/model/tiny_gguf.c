/* tests/unit/model/tiny_gguf.c: the writer behind tiny_gguf.h. */
#include "tests/unit/model/tiny_gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct buffer { unsigned char *at; size_t count, capacity; };
struct tensor { char name[64]; uint64_t dims[2]; int n_dims; uint32_t type; uint64_t offset;
                int interleave; };
struct writer {
    const struct tiny_spec *spec;
    struct buffer head, data;
    uint64_t keys, tensors;
    struct tensor tensor[256];
};

static void put(struct buffer *b, const void *bytes, size_t count)
{
    while (b->count + count > b->capacity) {
        b->capacity = b->capacity == 0 ? 4096 : 2 * b->capacity;
        b->at = realloc(b->at, b->capacity);
        if (b->at == NULL) abort();
    }
    if (count > 0) memcpy(b->at + b->count, bytes, count);
    b->count += count;
}

static void put_u32(struct buffer *b, uint32_t value) { put(b, &value, 4); }
static void put_u64(struct buffer *b, uint64_t value) { put(b, &value, 8); }
static void put_f32(struct buffer *b, float value) { put(b, &value, 4); }
static void put_text(struct buffer *b, const char *text)
{
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static const struct tiny_key *override_of(const struct writer *w, const char *key)
{
    for (const struct tiny_key *k = w->spec->keys; k != NULL && k->key != NULL; k++)
        if (strcmp(k->key, key) == 0) return k;
    return NULL;
}

static void put_key(struct writer *w, const struct tiny_key *k)
{
    if (k->type == TINY_LEFT_OUT) return;
    w->keys++;
    put_text(&w->head, k->key);
    put_u32(&w->head, k->type == TINY_U32_ARRAY ? 9 : k->type);
    switch (k->type) {
    case TINY_F32: put_f32(&w->head, (float)k->number); break;
    case TINY_BOOL: put(&w->head, &(unsigned char){ k->number != 0 }, 1); break;
    case TINY_STRING: put_text(&w->head, k->text); break;
    case TINY_U64: put_u64(&w->head, (uint64_t)k->number); break;
    case TINY_U32_ARRAY:
        put_u32(&w->head, TINY_U32);
        put_u64(&w->head, k->count);
        put(&w->head, k->array, 4 * (size_t)k->count);
        break;
    default: put_u32(&w->head, (uint32_t)k->number); break;
    }
}

static void usual_key(struct writer *w, struct tiny_key key)
{
    if (override_of(w, key.key) == NULL) put_key(w, &key);
}

/* The character that stands for a byte in a byte-level vocabulary. */
static size_t spell(int byte, char out[3])
{
    int itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    int point = byte;
    if (!itself) point = byte <= 32 ? 256 + byte : byte <= 160 ? 256 + 33 + byte - 127 : 256 + 67;
    if (point < 128) {
        out[0] = (char)point;
        return 1;
    }
    out[0] = (char)(0xc0 | point >> 6);
    out[1] = (char)(0x80 | (point & 63));
    return 2;
}

/* Tokens: <|im_start|>, <|im_end|>, "<user>" (user-defined), "ab", "abc", " a", then bytes from 'a'
 * on, wrapping around, until the wanted number is reached. */
static void put_vocabulary(struct writer *w)
{
    static const char *const first[] = { "<|im_start|>", "<|im_end|>", "<user>", "ab", "abc",
                                         "\xc4\xa0" "a" };
    static const char *const merges[] = { "a b", "ab c", "\xc4\xa0 a" };
    struct buffer *b = &w->head;
    int tokens = w->spec->tokens;
    put_text(b, "tokenizer.ggml.tokens");
    put_u32(b, 9);
    put_u32(b, 8);
    put_u64(b, (uint64_t)tokens);
    for (int i = 0; i < tokens; i++) {
        char text[3] = "";
        /* The space comes early, so that small vocabularies can hold the merge with it. */
        if (i < 6) put_text(b, first[i]);
        else {
            int byte = i == 6 ? ' ' : ('a' + i - 7) % 256;
            if (i > 6 && byte == ' ') byte = ('a' + tokens - 7) % 256;
            size_t length = spell(byte, text);
            put_u64(b, length);
            put(b, text, length);
        }
    }
    put_text(b, "tokenizer.ggml.token_type");
    put_u32(b, 9);
    put_u32(b, 5);
    put_u64(b, (uint64_t)tokens);
    for (int i = 0; i < tokens; i++) put_u32(b, i < 2 ? 3 : i == 2 ? 4 : 1);
    put_text(b, "tokenizer.ggml.merges");
    put_u32(b, 9);
    put_u32(b, 8);
    put_u64(b, 3);
    for (int i = 0; i < 3; i++) put_text(b, merges[i]);
    w->keys += 3;
}

static void put_keys(struct writer *w)
{
    const struct tiny_spec *s = w->spec;
    usual_key(w, (struct tiny_key){ "general.architecture", TINY_STRING, 0, "llama", NULL, 0 });
    usual_key(w, (struct tiny_key){ "general.name", TINY_STRING, 0, "tiny", NULL, 0 });
    if (s->alignment != 0)
        usual_key(w, (struct tiny_key){ "general.alignment", TINY_U32, s->alignment, NULL, NULL,
                                        0 });
    const struct { const char *key; double number; uint32_t type; } numbers[] = {
        { "llama.block_count", s->layers, TINY_U32 },
        { "llama.context_length", 512, TINY_U32 },
        { "llama.embedding_length", s->d_model, TINY_U32 },
        { "llama.feed_forward_length", s->ffn, TINY_U32 },
        { "llama.attention.head_count", s->q_heads, TINY_U32 },
        { "llama.attention.key_length", s->k_dim, TINY_U32 },
        { "llama.attention.value_length", s->v_dim, TINY_U32 },
        { "llama.attention.layer_norm_rms_epsilon", 1e-5, TINY_F32 },
        { "llama.rope.freq_base", 10000, TINY_F32 },
        { "tokenizer.ggml.bos_token_id", 0, TINY_U32 },
        { "tokenizer.ggml.eos_token_id", 1, TINY_U32 },
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        usual_key(w, (struct tiny_key){ numbers[i].key, numbers[i].type, numbers[i].number, NULL,
                                        NULL, 0 });
    if (s->kv_heads_of_layer != NULL)
        usual_key(w, (struct tiny_key){ "llama.attention.head_count_kv", TINY_U32_ARRAY, 0, NULL,
                                        (const uint32_t *)s->kv_heads_of_layer,
                                        (uint32_t)s->layers });
    else
        usual_key(w, (struct tiny_key){ "llama.attention.head_count_kv", TINY_U32, s->kv_heads,
                                        NULL, NULL, 0 });
    if (s->tokens > 0) {
        usual_key(w, (struct tiny_key){ "tokenizer.ggml.model", TINY_STRING, 0, "gpt2", NULL, 0 });
        usual_key(w, (struct tiny_key){ "tokenizer.ggml.pre", TINY_STRING, 0, "smollm", NULL, 0 });
        put_vocabulary(w);
    }
    for (const struct tiny_key *k = s->keys; k != NULL && k->key != NULL; k++) put_key(w, k);
}

float tiny_value(const char *tensor, int32_t row, int32_t col)
{
    uint32_t salt = 0;
    for (const char *c = tensor; *c != 0; c++) salt = salt * 31u + (unsigned char)*c;
    return (float)(salt % 64u) + (float)row + (float)col / 256.0f;
}

static void add_tensor(struct writer *w, const char *name, int64_t rows, int64_t cols,
                       int interleave)
{
    const struct tiny_spec *s = w->spec;
    if (s->drop_tensor != NULL && strcmp(name, s->drop_tensor) == 0) return;
    int vector = rows == 0;
    struct tensor *t = &w->tensor[w->tensors];
    if (w->tensors >= sizeof w->tensor / sizeof w->tensor[0]) abort();
    snprintf(t->name, sizeof t->name, "%s", name);
    t->type = vector ? 0 : s->matrix_type;
    t->n_dims = vector ? 1 : 2;
    t->dims[0] = (uint64_t)cols;
    t->dims[1] = (uint64_t)rows;
    t->interleave = interleave;
    if (s->retype_tensor != NULL && strcmp(name, s->retype_tensor) == 0) t->type = s->retype_to;
    if (s->narrow_tensor != NULL && strcmp(name, s->narrow_tensor) == 0) t->dims[0] -= 32;
    w->tensors++;
    if (s->repeat_tensor != NULL && strcmp(name, s->repeat_tensor) == 0)
        w->tensor[w->tensors++] = *t;
}

static void add_tensors(struct writer *w)
{
    const struct tiny_spec *s = w->spec;
    add_tensor(w, "token_embd.weight", s->vocab, s->d_model, 0);
    add_tensor(w, "output_norm.weight", 0, s->d_model, 0);
    if (s->untied) add_tensor(w, "output.weight", s->vocab, s->d_model, 0);
    if (s->rope_freqs != NULL) add_tensor(w, "rope_freqs.weight", 0, s->k_dim / 2, 0);
    for (int32_t l = 0; l < s->layers; l++) {
        int32_t kv = s->kv_heads_of_layer != NULL ? s->kv_heads_of_layer[l] : s->kv_heads;
        const struct { const char *name; int64_t rows, cols; int interleave, bias; } all[] = {
            { "attn_norm", 0, s->d_model, 0, 0 },
            { "attn_q", (int64_t)s->q_heads * s->k_dim, s->d_model, 1, 1 },
            { "attn_k", (int64_t)kv * s->k_dim, s->d_model, 1, 1 },
            { "attn_v", (int64_t)kv * s->v_dim, s->d_model, 0, 1 },
            { "attn_output", s->d_model, (int64_t)s->q_heads * s->v_dim, 0, 1 },
            { "ffn_norm", 0, s->d_model, 0, 0 },
            { "ffn_gate", s->ffn, s->d_model, 0, 1 },
            { "ffn_up", s->ffn, s->d_model, 0, 1 },
            { "ffn_down", s->d_model, s->ffn, 0, 1 },
        };
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, all[i].name);
            add_tensor(w, name, all[i].rows, all[i].cols, all[i].interleave);
            if (!s->biases || !all[i].bias) continue;
            snprintf(name, sizeof name, "blk.%d.%s.bias", l, all[i].name);
            add_tensor(w, name, 0, all[i].rows, all[i].interleave);
        }
    }
}

/* GGUF row (or bias element) `index` of a head of k_dim -> the row a training framework has there:
 * new row 2i is old row i, new row 2i + 1 is old row i + k_dim / 2. */
static int32_t trained_row(const struct tiny_spec *s, const struct tensor *t, int32_t index)
{
    if (!t->interleave) return index;
    int32_t i = index % s->k_dim;
    return index - i + (i % 2 == 0 ? i / 2 : i / 2 + s->k_dim / 2);
}

static void put_row(struct writer *w, const struct tensor *t, int32_t row)
{
    static const struct { uint32_t type; int bytes, halves; } blocks[] = {
        { 2, 18, 1 }, { 3, 20, 2 }, { 6, 22, 1 }, { 7, 24, 2 }, { 8, 34, 1 } };
    const struct tiny_spec *s = w->spec;
    int freqs = strcmp(t->name, "rope_freqs.weight") == 0;
    if (t->type == 0) {
        for (int32_t c = 0; c < (int32_t)t->dims[0]; c++) {
            int32_t r = t->n_dims == 1 ? 0 : trained_row(s, t, row);
            int32_t col = t->n_dims == 1 ? trained_row(s, t, c) : c;
            put_f32(&w->data, freqs ? s->rope_freqs[c] : tiny_value(t->name, r, col));
        }
        return;
    }
    for (size_t b = 0; b < sizeof blocks / sizeof blocks[0]; b++) {
        if (blocks[b].type != t->type) continue;
        for (uint64_t at = 0; at < t->dims[0]; at += 32)
            for (int i = 0; i < blocks[b].bytes; i++) {
                /* Halves 0x2c66 are 0.069; the rest is any pattern. */
                unsigned char byte = (unsigned char)(37 * (i + row) + 11 * (int)at + row);
                if (i < 2 * blocks[b].halves) byte = i % 2 == 0 ? 0x66 : 0x2c;
                put(&w->data, &byte, 1);
            }
        return;
    }
    for (uint64_t c = 0; c < t->dims[0]; c++) put(&w->data, "\0\0", 2);  /* F16, BF16 and unknown */
}

struct tiny_spec tiny_default(void)
{
    return (struct tiny_spec){ .layers = 2, .d_model = 64, .ffn = 96, .q_heads = 4, .kv_heads = 2,
                               .k_dim = 16, .v_dim = 16, .vocab = 300, .tokens = 263 };
}

struct tiny_file tiny_make(const struct tiny_spec *spec)
{
    struct writer *w = calloc(1, sizeof *w);
    if (w == NULL) abort();
    w->spec = spec;
    size_t alignment = spec->alignment != 0 ? spec->alignment : 32;
    put_u32(&w->head, 0x46554747u);
    put_u32(&w->head, spec->version != 0 ? spec->version : 3);
    put_u64(&w->head, 0);
    put_u64(&w->head, 0);
    put_keys(w);
    add_tensors(w);
    memcpy(w->head.at + 8, &w->tensors, 8);
    memcpy(w->head.at + 16, &w->keys, 8);
    for (uint64_t i = 0; i < w->tensors; i++) {
        struct tensor *t = &w->tensor[i];
        while (w->data.count % alignment != 0) put(&w->data, "", 1);
        put_text(&w->head, t->name);
        put_u32(&w->head, (uint32_t)t->n_dims);
        for (int d = 0; d < t->n_dims; d++) put_u64(&w->head, t->dims[d]);
        put_u32(&w->head, t->type);
        put_u64(&w->head, w->data.count);
        for (int32_t r = 0; r < (t->n_dims == 1 ? 1 : (int32_t)t->dims[1]); r++) put_row(w, t, r);
    }
    struct tiny_file file = { .head_bytes = w->head.count };
    while (w->head.count % alignment != 0) put(&w->head, "", 1);
    put(&w->head, w->data.at, w->data.count);
    file.bytes = w->head.at;
    file.count = w->head.count;
    free(w->data.at);
    free(w);
    return file;
}

void tiny_free(struct tiny_file *file)
{
    free(file->bytes);
    *file = (struct tiny_file){ 0 };
}

static int open_fd = -1;

const char *tiny_path(const unsigned char *bytes, size_t count)
{
    static char path[64];
    tiny_close();
    open_fd = memfd_create("tiny", MFD_CLOEXEC);
    if (open_fd < 0) abort();
    for (size_t done = 0; done < count;) {
        ssize_t n = write(open_fd, bytes + done, count - done);
        if (n <= 0) abort();
        done += (size_t)n;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", open_fd);
    return path;
}

void tiny_close(void)
{
    if (open_fd >= 0) close(open_fd);
    open_fd = -1;
}
