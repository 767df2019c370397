/* model/trace.c: a recorded trace as a model without weights and rows that stay in the map. */
#include "model/trace.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rows of all heads of a layer have fewer than 2^31 elements. */
enum { LAYERS_MAX = 1024, HEADS_MAX = 4096, DIM_MAX = 8192, ROWS_MAX = 1 << 24,
       NAME_BYTES = 64, SHOWN_BYTES = 96 };

/* ---- metadata -------------------------------------------------------------------------------- */

/* A whole number of lo to hi; fallback -1: it has to be there. */
static sf_status read_count(const struct sf_st_file *file, const char *key, int32_t lo, int32_t hi,
                            int32_t fallback, int32_t *out)
{
    const char *text = sf_st_meta(file, key);
    char shown[SHOWN_BYTES], *end;
    if (text == NULL && fallback >= 0) {
        *out = fallback;
        return SF_OK;
    }
    if (text == NULL)
        return SF_FAIL(SF_FORMAT, "%s: metadata '%s' is missing", sf_st_path(file), key);
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value < lo || value > hi) {
        sf_st_show_name(text, shown, sizeof shown);
        return SF_FAIL(SF_FORMAT, "%s: metadata '%s' is '%s'; allowed: %d to %d", sf_st_path(file),
                       key, shown, lo, hi);
    }
    *out = (int32_t)value;
    return SF_OK;
}

/* A finite number, not negative. */
static sf_status read_real(const struct sf_st_file *file, const char *key, const char *text,
                           double *out)
{
    char shown[SHOWN_BYTES], *end;
    double value = strtod(text, &end);
    if (text[0] == '\0' || text[strspn(text, "0123456789.eE+-")] != '\0' || *end != '\0' ||
        !isfinite(value) || value < 0) {
        sf_st_show_name(text, shown, sizeof shown);
        return SF_FAIL(SF_FORMAT, "%s: metadata '%s' is '%s'; allowed: a number that is not "
                       "negative", sf_st_path(file), key, shown);
    }
    *out = value;
    return SF_OK;
}

/* All elements of a head turn, pair (i, i + k_dim / 2) by theta^(-2 i / k_dim) a position. */
static sf_status make_rope(struct sf_trace *trace)
{
    const struct sf_st_file *file = trace->file;
    const char *text = sf_st_meta(file, "rope_theta");
    double theta;
    if (text == NULL)
        return SF_FAIL(SF_FORMAT, "%s: metadata 'rope_theta' is missing; \"0\" means no RoPE",
                       sf_st_path(file));
    SF_TRY(read_real(file, "rope_theta", text, &theta));
    if (theta == 0 && text[strcspn(text, "123456789")] == '\0') return SF_OK;
    if (theta < 1 || theta > 1e30)
        return SF_FAIL(SF_FORMAT, "%s: metadata 'rope_theta' is '%.40s'; allowed: 1 to 1e30, or 0"
                       " for no RoPE", sf_st_path(file), text);
    int32_t dim = trace->desc.layer[0].k_dim;
    for (int32_t l = 0; l < trace->desc.layers; l++)
        if (trace->desc.layer[l].k_dim != dim)
            return SF_FAIL(SF_UNSUPPORTED, "%s: layers.%d.q has heads of %d elements, those of "
                           "layer 0 have %d; with RoPE all are alike", sf_st_path(file), l,
                           trace->desc.layer[l].k_dim, dim);
    if (dim % 2 != 0)
        return SF_FAIL(SF_FORMAT, "%s: RoPE turns pairs, and heads have %d elements; rope_theta "
                       "\"0\" means no RoPE", sf_st_path(file), dim);
    trace->desc.rope_dim = dim;
    trace->desc.rope_theta = theta;
    return SF_OK;
}

static sf_status read_metadata(struct sf_trace *trace)
{
    const struct sf_st_file *file = trace->file;
    const char *scale = sf_st_meta(file, "softmax_scale");
    SF_TRY(read_count(file, "prompt_tokens", 1, trace->rows, -1, &trace->prompt));
    SF_TRY(read_count(file, "chunk_tokens", 0, INT32_MAX, 0, &trace->chunk));
    if (trace->chunk == 0 || trace->chunk > trace->prompt) trace->chunk = trace->prompt;
    if (scale != NULL) {
        double value;
        SF_TRY(read_real(file, "softmax_scale", scale, &value));
        trace->scale = (float)value;
        if (!(trace->scale > 0) || !isfinite(trace->scale))
            return SF_FAIL(SF_FORMAT, "%s: a softmax_scale of %g is nothing in f32",
                           sf_st_path(file), value);
    }
    return make_rope(trace);
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* SF_FORMAT unless the tensor is there with this type and number of dimensions. */
static sf_status want(const struct sf_st_file *file, const char *name, enum sf_st_type type,
                      int32_t n_dims, const struct sf_st_tensor **out)
{
    const struct sf_st_tensor *found = sf_st_find(file, name);
    if (found == NULL)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' is missing", sf_st_path(file), name);
    if (found->type != type)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' is in %s; it must be in %s", sf_st_path(file),
                       name, sf_st_type_name(found->type), sf_st_type_name(type));
    if (found->n_dims != n_dims)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has %d dimensions; it must have %d",
                       sf_st_path(file), name, found->n_dims, n_dims);
    *out = found;
    return SF_OK;
}

/* [rows][heads][dim] in bounds, and finite.  *rows: 0 before the first tensor. */
static sf_status want_rows(const struct sf_st_file *file, int32_t layer, const char *which,
                           int32_t *rows, const struct sf_st_tensor **out)
{
    char name[NAME_BYTES];
    const struct sf_st_tensor *t;
    snprintf(name, sizeof name, "layers.%d.%s", layer, which);
    SF_TRY(want(file, name, SF_ST_F32, 3, &t));
    if (t->dims[0] < 1 || t->dims[0] > ROWS_MAX || t->dims[1] < 1 || t->dims[1] > HEADS_MAX ||
        t->dims[2] < 1 || t->dims[2] > DIM_MAX)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' is [%lld, %lld, %lld]; allowed: 1 to %d rows, 1 "
                       "to %d heads of 1 to %d elements", sf_st_path(file), name,
                       (long long)t->dims[0], (long long)t->dims[1], (long long)t->dims[2],
                       ROWS_MAX, HEADS_MAX, DIM_MAX);
    if (*rows == 0) *rows = (int32_t)t->dims[0];
    if (t->dims[0] != *rows)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has %lld rows, but 'layers.0.q' has %d",
                       sf_st_path(file), name, (long long)t->dims[0], *rows);
    const unsigned char *at = t->data;
    for (int64_t i = 0; i < t->elements; i++) {
        float value;
        memcpy(&value, at + i * (int64_t)sizeof value, sizeof value);
        if (!isfinite(value))
            return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has a value that is not finite in row %lld",
                           sf_st_path(file), name, (long long)(i / (t->dims[1] * t->dims[2])));
    }
    *out = t;
    return SF_OK;
}

static sf_status read_layer(struct sf_trace *trace, int32_t l, struct sf_layer_desc *desc,
                            struct sf_trace_layer *layer)
{
    const struct sf_st_tensor *q, *k, *v;
    const char *path = sf_st_path(trace->file);
    SF_TRY(want_rows(trace->file, l, "q", &trace->rows, &q));
    SF_TRY(want_rows(trace->file, l, "k", &trace->rows, &k));
    SF_TRY(want_rows(trace->file, l, "v", &trace->rows, &v));
    if (k->dims[2] != q->dims[2])
        return SF_FAIL(SF_FORMAT, "%s: keys of 'layers.%d.k' have %lld elements, queries have %lld",
                       path, l, (long long)k->dims[2], (long long)q->dims[2]);
    if (v->dims[1] != k->dims[1])
        return SF_FAIL(SF_UNSUPPORTED, "%s: 'layers.%d.k' has %lld heads and 'layers.%d.v' has "
                       "%lld; this version wants as many", path, l, (long long)k->dims[1], l,
                       (long long)v->dims[1]);
    if (q->dims[1] % k->dims[1] != 0)
        return SF_FAIL(SF_FORMAT, "%s: the %lld heads of 'layers.%d.q' are no multiple of the %lld "
                       "of 'layers.%d.k'", path, (long long)q->dims[1], l, (long long)k->dims[1],
                       l);
    *desc = (struct sf_layer_desc){ .q_heads = (int32_t)q->dims[1],
                                    .kv_heads = (int32_t)k->dims[1],
                                    .k_dim = (int32_t)k->dims[2], .v_dim = (int32_t)v->dims[2] };
    *layer = (struct sf_trace_layer){ q->data, k->data, v->data };
    return SF_OK;
}

static int32_t count_layers(const struct sf_st_file *file)
{
    char name[NAME_BYTES];
    int32_t layers = 0;
    for (; layers <= LAYERS_MAX; layers++) {
        snprintf(name, sizeof name, "layers.%d.q", layers);
        if (sf_st_find(file, name) == NULL) break;
    }
    return layers;
}

static sf_status read_layers(struct sf_trace *trace)
{
    int32_t layers = count_layers(trace->file);
    if (layers < 1 || layers > LAYERS_MAX)
        return SF_FAIL(SF_FORMAT, "%s: %s", sf_st_path(trace->file), layers < 1
                       ? "tensor 'layers.0.q' is missing" : "more than 1024 layers");
    struct sf_layer_desc *desc = calloc((size_t)layers, sizeof *desc);
    struct sf_trace_layer *layer = calloc((size_t)layers, sizeof *layer);
    trace->desc.layer = desc;
    trace->layer = layer;
    trace->desc.layers = layers;
    if (desc == NULL || layer == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d layers", layers);
    for (int32_t l = 0; l < layers; l++) SF_TRY(read_layer(trace, l, &desc[l], &layer[l]));
    return SF_OK;
}

static sf_status read_marks(const struct sf_trace *trace, const char *name, enum sf_st_type type,
                            const unsigned char **out)
{
    const struct sf_st_tensor *t;
    if (sf_st_find(trace->file, name) == NULL) return SF_OK;
    SF_TRY(want(trace->file, name, type, 1, &t));
    if (t->dims[0] != trace->rows)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has %lld elements for %d rows",
                       sf_st_path(trace->file), name, (long long)t->dims[0], trace->rows);
    *out = t->data;
    return SF_OK;
}

/* What no layer of the trace has claimed: a layer past a gap is a mistake, the rest is unread. */
static sf_status look_for_others(struct sf_trace *trace)
{
    for (int32_t i = 0; i < sf_st_tensors(trace->file); i++) {
        const char *name = sf_st_tensor(trace->file, i)->name;
        char again[NAME_BYTES], which = 0;
        int layer = -1;
        if (sscanf(name, "layers.%9d.%c", &layer, &which) == 2 && layer >= 0 &&
            strchr("qkv", which) != NULL) {
            snprintf(again, sizeof again, "layers.%d.%c", layer, which);
            if (strcmp(again, name) == 0 && layer < trace->desc.layers) continue;
            if (strcmp(again, name) == 0)
                return SF_FAIL(SF_FORMAT, "%s: tensor 'layers.%d.q' is missing, but '%s' is there",
                               sf_st_path(trace->file), trace->desc.layers, name);
        }
        if (strcmp(name, "tokens") == 0 || strcmp(name, "sentence_end") == 0 ||
            strcmp(name, "turn_end") == 0)
            continue;
        trace->unread = name;
    }
    return SF_OK;
}

/* The rest of a model that has layers and nothing else: one token, one chunk of an FFN. */
static void fill_desc(struct sf_trace *trace)
{
    struct sf_model_desc *desc = &trace->desc;
    const struct sf_layer_desc *layer = &desc->layer[0];
    snprintf(desc->arch_name, sizeof desc->arch_name, "trace");
    snprintf(desc->name, sizeof desc->name, "trace");
    snprintf(desc->file_type, sizeof desc->file_type, "F32");
    desc->arch = SF_ARCH_LLAMA;
    desc->d_model = layer->q_heads * layer->k_dim;
    desc->ffn = desc->vocab = 1;
    desc->context = trace->rows;
    desc->attn_scale = trace->scale > 0 ? trace->scale : (float)(1 / sqrt((double)layer->k_dim));
    desc->bos = -1;
}

static sf_status read_trace(const char *path, struct sf_trace *trace)
{
    SF_TRY(sf_st_open(path, &trace->file));
    SF_TRY(read_layers(trace));
    SF_TRY(look_for_others(trace));
    SF_TRY(read_marks(trace, "tokens", SF_ST_I32, &trace->tokens));
    SF_TRY(read_marks(trace, "sentence_end", SF_ST_U8, &trace->sentence_end));
    SF_TRY(read_marks(trace, "turn_end", SF_ST_U8, &trace->turn_end));
    SF_TRY(read_metadata(trace));
    fill_desc(trace);
    return SF_OK;
}

sf_status sf_trace_open(const char *path, struct sf_trace *out)
{
    struct sf_trace trace = { 0 };
    sf_status status = read_trace(path, &trace);
    if (status == SF_OK) *out = trace;
    else sf_trace_close(&trace);
    return status;
}

void sf_trace_close(struct sf_trace *trace)
{
    free((void *)(uintptr_t)trace->desc.layer);
    free((void *)(uintptr_t)trace->layer);
    sf_st_close(trace->file);
    *trace = (struct sf_trace){ 0 };
}
