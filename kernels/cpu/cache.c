/* kernels/cpu/cache.c: slots in raw pages.
 *
 * Elements of a key lie one block row (16 slots) apart, so a slot's key is a scatter of k_dim / 2
 * words of 4 bytes (bf16) or k_dim elements; converted in one go before. */
#include <math.h>
#include <string.h>
#include "kernels/cpu/cpu.h"

enum {
    CHUNK = 256,                        /* key elements converted at a time */
    APPEND_ROWS = 64                    /* rows of one lane that are one piece of work */
};

/* Where the parts of one slot lie. */
struct place {
    unsigned char *key, *value;         /* first key element */
    float *bias, *k_scale, *v_scale;    /* scales: int8 */
    int32_t *pos;
};

static struct place place_of(const struct sf_layout *layout, const unsigned char *pool,
                             size_t page_bytes, const int32_t *pages, int32_t slot)
{
    unsigned char *page = (unsigned char *)pool +
                          (size_t)pages[slot / layout->page_slots] * page_bytes;
    int32_t s = slot % layout->page_slots;
    size_t width = sf_dtype_bytes(layout->dtype);
    return (struct place){
        page + sf_layout_k_index(layout, s, 0) * width,
        page + sf_layout_v_offset(layout) + (size_t)s * (size_t)layout->v_dim * width,
        (float *)(void *)(page + sf_layout_bias_offset(layout)) + s,
        (float *)(void *)(page + sf_layout_k_scale_offset(layout)) + s,
        (float *)(void *)(page + sf_layout_v_scale_offset(layout)) + s,
        (int32_t *)(void *)(page + sf_layout_pos_offset(layout)) + s
    };
}

/* Words of a key: pairs of bf16 elements, or elements. */
static int32_t key_words(const struct sf_layout *layout)
{
    return layout->dtype == SF_BF16 ? layout->k_dim / 2 : layout->k_dim;
}

static size_t key_word_bytes(const struct sf_layout *layout)
{
    return layout->dtype == SF_INT8 ? 1 : layout->dtype == SF_F16 ? 2 : 4;
}

static void key_scatter(const void *words, size_t word_bytes, int32_t count, unsigned char *key)
{
    if (word_bytes == 4)
        for (int32_t i = 0; i < count; i++)
            memcpy(key + (size_t)i * SF_BLOCK_SLOTS * 4, (const uint32_t *)words + i, 4);
    else if (word_bytes == 1)
        for (int32_t i = 0; i < count; i++)
            key[(size_t)i * SF_BLOCK_SLOTS] = ((const unsigned char *)words)[i];
    else
        for (int32_t i = 0; i < count; i++)
            memcpy(key + (size_t)i * SF_BLOCK_SLOTS * 2, (const uint16_t *)words + i, 2);
}

static void key_gather(const unsigned char *key, size_t word_bytes, int32_t count, void *words)
{
    if (word_bytes == 4)
        for (int32_t i = 0; i < count; i++)
            memcpy((uint32_t *)words + i, key + (size_t)i * SF_BLOCK_SLOTS * 4, 4);
    else if (word_bytes == 1)
        for (int32_t i = 0; i < count; i++)
            ((unsigned char *)words)[i] = key[(size_t)i * SF_BLOCK_SLOTS];
    else
        for (int32_t i = 0; i < count; i++)
            memcpy((uint16_t *)words + i, key + (size_t)i * SF_BLOCK_SLOTS * 2, 2);
}

/* To elements of a slot: in f16 what is out of its range becomes its greatest number. */
static void narrow(const struct sf_cpu_isa *isa, enum sf_dtype dtype, const float *source,
                   void *target, int32_t count)
{
    float in_range[CHUNK];
    for (int32_t e = 0; dtype == SF_F16 && e < count; e += CHUNK) {
        int32_t n = count - e < CHUNK ? count - e : CHUNK;
        for (int32_t i = 0; i < n; i++) {
            float value = source[e + i];
            value = value > SF_F16_MAX ? SF_F16_MAX : value;
            in_range[i] = value < -SF_F16_MAX ? -SF_F16_MAX : value;
        }
        isa->from_f32(dtype, in_range, (uint16_t *)target + e, (size_t)n);
    }
    if (dtype != SF_F16) isa->from_f32(dtype, source, target, (size_t)count);
}

/* ---- int8 (layout.h) ---- */
/* The greatest magnitude of a vector, at most 2^127, or NaN.  Magnitudes order as their bits do,
 * and those of a NaN are above all others. */
static float int8_most(const float *x, int32_t count)
{
    int32_t most = 0;
    float value;
    for (int32_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    if (most > 0x7f800000) return NAN;
    if (most > 0x7f000000) return 0x1p127f;
    memcpy(&value, &most, sizeof value);
    return value;
}

/* To codes.  Adding 1.5 * 2^23 pushes the fraction out of the mantissa, rounded to nearest even,
 * and leaves the code in the low byte. */
static void int8_codes(const float *x, int32_t count, float most, int8_t *code_out)
{
    if (!(most >= 0x1p-100f)) {
        memset(code_out, 0, (size_t)count);
        return;
    }
    const float inverse = 127 / most;
    for (int32_t i = 0; i < count; i++) {
        float inside = x[i] < -0x1p127f ? -0x1p127f : x[i];
        inside = inside > 0x1p127f ? 0x1p127f : inside;
        float shifted = inside * inverse + 12582912.0f;
        int32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        code_out[i] = (int8_t)(bits & 0xff);
    }
}

static float int8_scale(float most)
{
    return most < 0x1p-100f ? 0 : most / 127;
}

static void key_write_int8(const struct sf_layout *layout, const float *k, struct place at)
{
    int8_t code[CHUNK];
    float most = int8_most(k, layout->k_dim);
    for (int32_t e = 0; e < layout->k_dim; e += CHUNK) {
        int32_t count = layout->k_dim - e < CHUNK ? layout->k_dim - e : CHUNK;
        int8_codes(k + e, count, most, code);
        key_scatter(code, 1, count, at.key + (size_t)e * SF_BLOCK_SLOTS);
    }
    if (layout->k_dim > 0) *at.k_scale = int8_scale(most);
}

static void value_write_int8(const struct sf_layout *layout, const float *v, struct place at)
{
    float most = int8_most(v, layout->v_dim);
    int8_codes(v, layout->v_dim, most, (int8_t *)at.value);
    if (layout->v_dim > 0) *at.v_scale = int8_scale(most);
}

/* ---- appending, moving, reading ---- */
static void key_write(const struct sf_cpu_isa *isa, const struct sf_layout *layout, const float *k,
                      unsigned char *key)
{
    float chunk[CHUNK];
    size_t word_bytes = key_word_bytes(layout);
    int32_t per_word = layout->dtype == SF_BF16 ? 2 : 1;
    for (int32_t e = 0; e < layout->k_dim; e += CHUNK) {
        int32_t count = layout->k_dim - e < CHUNK ? layout->k_dim - e : CHUNK;
        const void *words = k + e;
        if (layout->dtype != SF_F32) {
            narrow(isa, layout->dtype, k + e, chunk, count);
            words = chunk;
        }
        key_scatter(words, word_bytes, count / per_word,
                    key + (size_t)(e / per_word) * SF_BLOCK_SLOTS * word_bytes);
    }
}

static void append_rows(const struct sf_cpu_isa *isa, const struct sf_append_job *job,
                        const struct sf_append_lane *lane, int32_t first, int32_t end)
{
    const struct sf_layout *layout = &job->layout;
    for (int32_t r = first; r < end; r++) {
        size_t row = (size_t)lane->row_first + (size_t)r, head = (size_t)lane->head;
        struct place at = place_of(layout, job->pool, job->page_bytes, lane->pages,
                                   lane->slot_first + r);
        const float *k = job->k + row * job->k_stride + head * (size_t)layout->k_dim;
        const float *v = job->v + row * job->v_stride + head * (size_t)layout->v_dim;
        if (layout->dtype == SF_INT8) {
            key_write_int8(layout, k, at);
            value_write_int8(layout, v, at);
        } else {
            key_write(isa, layout, k, at.key);
            narrow(isa, layout->dtype, v, at.value, layout->v_dim);
        }
        if (layout->k_dim == 0) continue;
        *at.bias = job->bias ? job->bias[row] : 0;
        *at.pos = job->pos[row];
    }
}

/* An append: `pieces` of the longest lane, of APPEND_ROWS rows, count for every lane. */
struct append { const struct sf_cpu_isa *isa; const struct sf_append_job *job; int32_t pieces; };

static void append_pieces(void *context, int32_t begin, int32_t end, int32_t thread)
{
    const struct append *a = context;
    (void)thread;
    for (int32_t i = begin; i < end; i++) {
        const struct sf_append_lane *lane = &a->job->lane[i / a->pieces];
        int32_t first = i % a->pieces * APPEND_ROWS, left = lane->rows - first;
        append_rows(a->isa, a->job, lane, first,
                    first + (left < APPEND_ROWS ? left : APPEND_ROWS));
    }
}

static void kv_append(struct sf_device *device, const struct sf_append_job *job)
{
    struct append a = { sf_cpu_of(device)->isa, job, 0 };
    int64_t rows = 0;
    for (int32_t i = 0; i < job->lanes; i++) {
        int32_t p = (job->lane[i].rows + APPEND_ROWS - 1) / APPEND_ROWS;
        rows += job->lane[i].rows;
        a.pieces = p > a.pieces ? p : a.pieces;
    }
    SF_ASSERT(job->layout.dtype != SF_BF16 || job->layout.k_dim % 2 == 0);
    sf_cpu_share(device, rows * (job->layout.k_dim + job->layout.v_dim) * 2,
                 job->lanes * a.pieces, 8, append_pieces, &a);
}

static void kv_clear(struct sf_device *device, const struct sf_layout *layout, unsigned char *page)
{
    (void)device;
    memset(page, 0, sf_layout_bias_offset(layout));
    struct place at = place_of(layout, page, 0, (const int32_t[]){ 0 }, 0);
    for (int32_t s = 0; s < layout->page_slots && layout->k_dim > 0; s++) {
        at.bias[s] = -INFINITY;
        at.pos[s] = -1;
    }
}

static void key_move(const unsigned char *from, unsigned char *to, size_t word_bytes, int32_t count)
{
    size_t step = SF_BLOCK_SLOTS * word_bytes;
    for (int32_t i = 0; i < count; i++) {
        if (word_bytes == 4) memcpy(to + (size_t)i * step, from + (size_t)i * step, 4);
        else if (word_bytes == 1) to[(size_t)i * step] = from[(size_t)i * step];
        else memcpy(to + (size_t)i * step, from + (size_t)i * step, 2);
    }
}

static void kv_move(struct sf_device *device, const struct sf_layout *layout, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *from,
                    const struct sf_slot_list *to)
{
    (void)device;
    SF_ASSERT(from->n == to->n && layout->k_dim > 0);
    int32_t words = key_words(layout);
    size_t word_bytes = key_word_bytes(layout);
    size_t value_bytes = (size_t)layout->v_dim * sf_dtype_bytes(layout->dtype);
    for (int32_t i = 0; i < from->n; i++) {
        struct place a = place_of(layout, pool, page_bytes, from->pages, from->slot[i]);
        struct place b = place_of(layout, pool, page_bytes, to->pages, to->slot[i]);
        if (a.key == b.key) continue;
        key_move(a.key, b.key, word_bytes, words);
        memcpy(b.value, a.value, value_bytes);
        if (layout->dtype == SF_INT8) {
            *b.k_scale = *a.k_scale;
            if (layout->v_dim > 0) *b.v_scale = *a.v_scale;
        }
        *b.bias = *a.bias;
        *b.pos = *a.pos;
    }
}

static void kv_drop(struct sf_device *device, const struct sf_layout *layout, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *list)
{
    (void)device;
    SF_ASSERT(layout->k_dim > 0);
    for (int32_t i = 0; i < list->n; i++) {
        struct place at = place_of(layout, pool, page_bytes, list->pages, list->slot[i]);
        *at.bias = -INFINITY;
        *at.pos = -1;
    }
}

static void key_read(const struct sf_cpu_isa *isa, const struct sf_layout *layout,
                     const unsigned char *key, float *k)
{
    float chunk[CHUNK];
    size_t word_bytes = key_word_bytes(layout);
    int32_t per_word = layout->dtype == SF_BF16 ? 2 : 1;
    for (int32_t e = 0; e < layout->k_dim; e += CHUNK) {
        int32_t count = layout->k_dim - e < CHUNK ? layout->k_dim - e : CHUNK;
        key_gather(key + (size_t)(e / per_word) * SF_BLOCK_SLOTS * word_bytes, word_bytes,
                   count / per_word, chunk);
        isa->to_f32(layout->dtype, chunk, k + e, (size_t)count);
    }
}

/* Codes, widened, to elements. */
static void scale(float factor, float *x, int32_t count)
{
    for (int32_t i = 0; i < count; i++) x[i] *= factor;
}

struct reading {
    const struct sf_cpu_isa *isa;
    const struct sf_layout *layout;
    const unsigned char *pool;
    size_t page_bytes;
    const struct sf_slot_list *list;
    float *k, *v, *bias;
    int32_t *pos;
};

static void read_slots(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct reading *r = context;
    const struct sf_layout *layout = r->layout;
    (void)thread;
    for (int32_t i = first; i < end; i++) {
        struct place at = place_of(layout, r->pool, r->page_bytes, r->list->pages,
                                   r->list->slot[i]);
        float *to_k = r->k ? r->k + (size_t)i * (size_t)layout->k_dim : NULL;
        float *to_v = r->v ? r->v + (size_t)i * (size_t)layout->v_dim : NULL;
        if (to_k) key_read(r->isa, layout, at.key, to_k);
        if (to_v) r->isa->to_f32(layout->dtype, at.value, to_v, (size_t)layout->v_dim);
        if (to_k && layout->dtype == SF_INT8 && layout->k_dim > 0)
            scale(*at.k_scale, to_k, layout->k_dim);
        if (to_v && layout->dtype == SF_INT8 && layout->v_dim > 0)
            scale(*at.v_scale, to_v, layout->v_dim);
        if (r->bias) r->bias[i] = *at.bias;
        if (r->pos) r->pos[i] = *at.pos;
    }
}

static void kv_read(struct sf_device *device, const struct sf_layout *layout,
                    const unsigned char *pool, size_t page_bytes, const struct sf_slot_list *list,
                    float *k, float *v, float *bias_host, int32_t *pos_host)
{
    struct reading r = { sf_cpu_of(device)->isa, layout, pool, page_bytes, list, k, v, bias_host,
                         pos_host };
    sf_cpu_share(device, (int64_t)list->n * (layout->k_dim + layout->v_dim) * 2, list->n, 0,
                 read_slots, &r);
}

void sf_cpu_cache_fill(struct sf_kernels *k)
{
    k->kv_clear = kv_clear;
    k->kv_append = kv_append;
    k->kv_move = kv_move;
    k->kv_drop = kv_drop;
    k->kv_read = kv_read;
}
