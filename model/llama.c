/* model/llama.c: architecture "llama" (Llama 1 to 3, SmolLM, SmolLM2, Mistral): keys -> the
 * description, tensors -> roles.
 *
 *   token_embd [vocab][D], output_norm [D], output [vocab][D] (absent: tied), rope_freqs [rope / 2]
 *   blk.N.  attn_norm [D]    attn_q [Hq k][D]   attn_k [Hkv k][D]   attn_v [Hkv v][D]
 *           attn_output [D][Hq v]
 *           ffn_norm [D]     ffn_gate [F][D]    ffn_up [F][D]       ffn_down [D][F]
 *   and .bias beside .weight for q, k, v, o, and for the three of the FFN together.
 *
 * A key that would change the numbers and is not built is refused, never ignored. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/model_impl.h"

enum { KEY_MAX = 96 };

struct reader {
    struct sf_model *model;
    char key[KEY_MAX];                  /* "llama." and the last key asked for */
};

static sf_status refuse_foreign(struct reader *r);
static sf_status read_widths(struct reader *r);
static sf_status read_layers(struct reader *r);
static sf_status read_rope(struct reader *r, int64_t k_dim);
static sf_status read_ends(struct reader *r);
static sf_status claim_all(struct sf_model *model);
static void read_names(struct sf_model *model);

sf_status sf_llama_describe(struct sf_model *model)
{
    struct reader r = { .model = model };
    model->desc.arch = SF_ARCH_LLAMA;
    snprintf(model->desc.arch_name, sizeof model->desc.arch_name, "llama");
    read_names(model);
    SF_TRY(refuse_foreign(&r));
    SF_TRY(read_widths(&r));
    SF_TRY(read_layers(&r));
    SF_TRY(read_rope(&r, model->layer[0].k_dim));
    SF_TRY(read_ends(&r));
    return claim_all(model);
}

/* ---- keys ---------------------------------------------------------------------------------- */

static const char *llama_key(struct reader *r, const char *name)
{
    snprintf(r->key, sizeof r->key, "llama.%s", name);
    return r->key;
}

static sf_status key_int(struct reader *r, const char *name, int required, double min, double max,
                         int32_t index, int64_t *value)
{
    return sf_file_int(r->model->file,
                       &(struct sf_meta_want){ llama_key(r, name), (uint8_t)required, min, max,
                                               index }, value);
}

static sf_status key_float(struct reader *r, const char *name, int required, double min,
                           double max, double *value)
{
    return sf_file_float(r->model->file,
                         &(struct sf_meta_want){ llama_key(r, name), (uint8_t)required, min, max,
                                                 0 }, value);
}

/* Values in [1, max] that must be there. */
static sf_status key_count(struct reader *r, const char *name, double max, int32_t *out)
{
    int64_t value = 0;
    SF_TRY(key_int(r, name, 1, 1, max, 0, &value));
    *out = (int32_t)value;
    return SF_OK;
}

static sf_status refuse_foreign(struct reader *r)
{
    struct sf_file *file = r->model->file;
    static const struct { const char *name, *words; } counts[] = {
        { "expert_count", "a mixture of experts" },
        { "attention.sliding_window_pattern", "layers with and without a sliding window" },
    };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        int64_t value = 0;
        const struct sf_meta *meta = sf_file_meta(file, llama_key(r, counts[i].name));
        if (meta != NULL && meta->type == SF_META_ARRAY) value = (int64_t)meta->count;
        else SF_TRY(key_int(r, counts[i].name, 0, 0, INT32_MAX, 0, &value));
        if (value > 0)
            return SF_FAIL(SF_UNSUPPORTED, "%s: key '%s' is set (%" PRId64 "): %s is not "
                           "built", file->path, r->key, value, counts[i].words);
    }
    static const char *const scales[] = { "embedding_scale", "residual_scale", "logit_scale",
                                          "attn_logit_softcapping", "final_logit_softcapping",
                                          "attention.clamp_kqv", "attention.max_alibi_bias" };
    for (size_t i = 0; i < sizeof scales / sizeof scales[0]; i++) {
        double value = 0;
        SF_TRY(key_float(r, scales[i], 0, -1e30, 1e30, &value));
        if (value != 0)
            return SF_FAIL(SF_UNSUPPORTED, "%s: key '%s' is %g: not built for llama", file->path,
                           r->key, value);
    }
    static const char *const tensors[] = { "rope_factors_long.weight",
                                           "rope_factors_short.weight" };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        if (sf_file_tensor(file, tensors[i]) != NULL)
            return SF_FAIL(SF_UNSUPPORTED, "%s: tensor '%s': longrope scaling is not built",
                           file->path, tensors[i]);
    return SF_OK;
}

static sf_status read_widths(struct reader *r)
{
    struct sf_model_desc *desc = &r->model->desc;
    SF_TRY(key_count(r, "block_count", SF_LAYERS_MAX, &desc->layers));
    SF_TRY(key_count(r, "embedding_length", SF_WIDTH_MAX, &desc->d_model));
    SF_TRY(key_count(r, "context_length", INT32_MAX, &desc->context));
    SF_TRY(key_count(r, "feed_forward_length", SF_WIDTH_MAX, &desc->ffn));
    const struct sf_meta *ffn = sf_file_meta(r->model->file,
                                             llama_key(r, "feed_forward_length"));
    for (int32_t i = 1; ffn->type == SF_META_ARRAY && i < desc->layers; i++) {
        int64_t value = 0;
        SF_TRY(key_int(r, "feed_forward_length", 1, 1, SF_WIDTH_MAX, i, &value));
        if (value != desc->ffn)
            return SF_FAIL(SF_UNSUPPORTED, "%s: FFN width %d in layer 0 and %" PRId64 " in layer "
                           "%d: one width is built", r->model->file->path, desc->ffn, value, i);
    }
    double eps = 0;
    SF_TRY(key_float(r, "attention.layer_norm_rms_epsilon", 1, 1e-12, 1, &eps));
    desc->norm_eps = (float)eps;
    return SF_OK;
}

static sf_status read_layers(struct reader *r)
{
    struct sf_model *model = r->model;
    struct sf_model_desc *desc = &model->desc;
    model->layer = calloc((size_t)desc->layers, sizeof *model->layer);
    if (model->layer == NULL)
        return SF_FAIL(SF_NO_MEMORY, "%s: no memory for %d layers", model->file->path,
                       desc->layers);
    desc->layer = model->layer;
    int64_t window = 0, k_dim = 0, v_dim = 0;
    SF_TRY(key_int(r, "attention.sliding_window", 0, 0, INT32_MAX, 0, &window));
    SF_TRY(key_int(r, "attention.key_length", 0, 1, SF_HEAD_DIM_MAX, 0, &k_dim));
    SF_TRY(key_int(r, "attention.value_length", 0, 1, SF_HEAD_DIM_MAX, 0, &v_dim));
    for (int32_t i = 0; i < desc->layers; i++) {
        int64_t q_heads = 0;
        SF_TRY(key_int(r, "attention.head_count", 1, 1, SF_HEADS_MAX, i, &q_heads));
        int64_t kv_heads = q_heads;
        SF_TRY(key_int(r, "attention.head_count_kv", 0, 1, SF_HEADS_MAX, i, &kv_heads));
        if (q_heads % kv_heads != 0)
            return SF_FAIL(SF_FORMAT, "%s: layer %d has %" PRId64 " query heads on %" PRId64
                           " KV heads, no whole number each", model->file->path, i, q_heads,
                           kv_heads);
        if (k_dim == 0) {
            if (desc->d_model % q_heads != 0)
                return SF_FAIL(SF_FORMAT, "%s: width %d over %" PRId64 " heads is no whole head "
                               "size, and there is no key_length", model->file->path,
                               desc->d_model, q_heads);
            k_dim = desc->d_model / q_heads;
        }
        if (v_dim == 0) v_dim = k_dim;
        if (k_dim % 2 != 0 || k_dim > SF_HEAD_DIM_MAX)
            return SF_FAIL(SF_UNSUPPORTED, "%s: key heads of %" PRId64 " elements (even, at most "
                           "%d)", model->file->path, k_dim, SF_HEAD_DIM_MAX);
        model->layer[i] = (struct sf_layer_desc){ (int32_t)q_heads, (int32_t)kv_heads,
                                                  (int32_t)k_dim, (int32_t)v_dim,
                                                  (int32_t)window };
    }
    double scale = 0;
    SF_TRY(key_float(r, "attention.scale", 0, 0, 1e6, &scale));
    desc->attn_scale = scale != 0 ? (float)scale : 1.0f / sqrtf((float)k_dim);
    return SF_OK;
}

/* The factor of linear scaling, 1 if there is none.  A factor without a type is linear. */
static sf_status read_rope_factor(struct reader *r, double *factor_out)
{
    struct sf_text type = { "linear", 6 };
    SF_TRY(sf_file_text(r->model->file,
                        &(struct sf_meta_want){ llama_key(r, "rope.scaling.type"), 0, 0, 0, 0 },
                        &type));
    double factor = 1, attn_factor = 1;
    SF_TRY(key_float(r, "rope.scale_linear", 0, 0, 1e6, &factor));
    SF_TRY(key_float(r, "rope.scaling.factor", 0, 0, 1e6, &factor));
    SF_TRY(key_float(r, "rope.scaling.attn_factor", 0, 0, 1e6, &attn_factor));
    int linear = type.bytes == 6 && memcmp(type.at, "linear", 6) == 0;
    int none = type.bytes == 4 && memcmp(type.at, "none", 4) == 0;
    if (!linear && !none)
        return SF_FAIL(SF_UNSUPPORTED, "%s: the RoPE scaling of key 'llama.rope.scaling.type' is "
                       "not built (none, linear and llama3 divisors are)", r->model->file->path);
    if (attn_factor != 1 && attn_factor != 0)
        return SF_FAIL(SF_UNSUPPORTED, "%s: key '%s' is %g: scaled RoPE amplitudes are not built",
                       r->model->file->path, r->key, attn_factor);
    *factor_out = linear && factor != 0 ? factor : 1;
    return SF_OK;
}

sf_status sf_rope_make(struct sf_model *model, int32_t rope_dim, double theta, double factor)
{
    int32_t half = rope_dim / 2;
    model->inv_freq = calloc((size_t)half, sizeof(float));
    if (model->inv_freq == NULL)
        return SF_FAIL(SF_NO_MEMORY, "%s: no memory for RoPE", model->file->path);
    model->desc.rope_dim = rope_dim;
    model->desc.rope_inv_freq = model->inv_freq;
    for (int32_t i = 0; i < half; i++)
        model->inv_freq[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)rope_dim) /
                             (float)factor;
    return SF_OK;
}

sf_status sf_rope_check(const struct sf_model *model)
{
    for (int32_t i = 0; i < model->desc.rope_dim / 2; i++)
        if (!isfinite(model->inv_freq[i]))
            return SF_FAIL(SF_FORMAT, "%s: RoPE frequency %d is not finite", model->file->path, i);
    return SF_OK;
}

/* Divided further by the llama3 divisors of the file. */
static sf_status read_rope(struct reader *r, int64_t k_dim)
{
    struct sf_model *model = r->model;
    struct sf_model_desc *desc = &model->desc;
    const char *path = model->file->path;
    int64_t rope_dim = k_dim;
    double theta = 10000, factor = 1;
    SF_TRY(key_int(r, "rope.dimension_count", 0, 2, (double)k_dim, 0, &rope_dim));
    if (rope_dim % 2 != 0)
        return SF_FAIL(SF_FORMAT, "%s: key '%s' is %" PRId64 ", not even", path, r->key, rope_dim);
    SF_TRY(key_float(r, "rope.freq_base", 0, 1, 1e30, &theta));
    SF_TRY(read_rope_factor(r, &factor));
    SF_TRY(sf_rope_make(model, (int32_t)rope_dim, theta, factor));

    int32_t half = desc->rope_dim / 2;
    struct sf_tensor *divisors = sf_file_tensor(model->file, "rope_freqs.weight");
    if (divisors == NULL) return sf_rope_check(model);
    divisors->claimed = 1;
    if (divisors->rows != 1 || divisors->cols != half)
        return SF_FAIL(SF_FORMAT, "%s: tensor 'rope_freqs.weight' is [%d][%d], expected [%d]", path,
                       divisors->rows, divisors->cols, half);
    const struct sf_weight *view = &model->view[divisors - model->file->tensor];
    for (int32_t i = 0; i < half; i++) {
        float divisor;
        sf_weight_read(view, 0, i, 1, &divisor);
        if (!(divisor > 0 && divisor < 1e9f))
            return SF_FAIL(SF_FORMAT, "%s: rope_freqs.weight[%d] is %g", path, i, (double)divisor);
        model->inv_freq[i] /= divisor;
    }
    return sf_rope_check(model);
}

/* Tokens that begin and end a text.  2^32 - 1 stands for none. */
static sf_status read_ends(struct reader *r)
{
    struct sf_model_desc *desc = &r->model->desc;
    struct sf_file *file = r->model->file;
    const struct sf_tensor *embed = sf_file_tensor(file, "token_embd.weight");
    if (embed == NULL) return SF_FAIL(SF_FORMAT, "%s: tensor 'token_embd.weight' is missing",
                                      file->path);
    if (embed->rows > SF_VOCAB_MAX)
        return SF_FAIL(SF_UNSUPPORTED, "%s: token_embd.weight has %d rows, at most %d are built",
                       file->path, embed->rows, SF_VOCAB_MAX);
    desc->vocab = embed->rows;
    int64_t vocab = desc->vocab;
    SF_TRY(key_int(r, "vocab_size", 0, 1, INT32_MAX, 0, &vocab));
    if (vocab != desc->vocab)
        return SF_FAIL(SF_FORMAT, "%s: token_embd.weight has %d rows, key '%s' says %" PRId64,
                       file->path, desc->vocab, r->key, vocab);
    static const char *const keys[] = { "tokenizer.ggml.bos_token_id",
                                        "tokenizer.ggml.eos_token_id",
                                        "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.eom_token_id" };
    desc->bos = -1;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        int64_t id = -1;
        SF_TRY(sf_file_int(file, &(struct sf_meta_want){ keys[i], 0, -1, UINT32_MAX, 0 }, &id));
        if (id == -1 || id == UINT32_MAX) continue;
        if (id >= desc->vocab)
            return SF_FAIL(SF_FORMAT, "%s: key '%s' is %" PRId64 " of %d tokens", file->path,
                           keys[i], id, desc->vocab);
        if (i == 0) {
            desc->bos = (int32_t)id;
            continue;
        }
        int known = 0;
        for (int32_t e = 0; e < desc->eos_count; e++) known |= desc->eos[e] == id;
        if (!known) desc->eos[desc->eos_count++] = (int32_t)id;
    }
    return SF_OK;
}

/* Names are shown to people, so anything but printable ASCII turns into a question mark. */
static void read_names(struct sf_model *model)
{
    struct sf_model_desc *desc = &model->desc;
    const struct sf_meta *name = sf_file_meta(model->file, "general.name");
    size_t bytes = name != NULL && name->type == SF_META_STRING ? (size_t)name->count : 0;
    if (bytes > sizeof desc->name - 1) bytes = sizeof desc->name - 1;
    for (size_t i = 0; i < bytes; i++)
        desc->name[i] = name->data[i] >= 0x20 && name->data[i] < 0x7f ? (char)name->data[i] : '?';

    static const char *const types[] = { [0] = "F32", [1] = "F16", [2] = "Q4_0", [3] = "Q4_1",
                                         [7] = "Q8_0", [8] = "Q5_0", [9] = "Q5_1", [32] = "BF16" };
    const struct sf_meta *type = sf_file_meta(model->file, "general.file_type");
    uint32_t number = type != NULL && type->type == SF_META_U32 ? sf_load_u32(type->data) : 1000;
    const char *words = number < sizeof types / sizeof types[0] ? types[number] : NULL;
    snprintf(desc->file_type, sizeof desc->file_type, "%s", words != NULL ? words : "unknown");
}

/* ---- tensors ------------------------------------------------------------------------------- */

enum width { ONE, D_MODEL, FFN, Q_K, KV_K, KV_V, Q_V };

static const struct layer_tensor {
    enum sf_role role;
    const char *name;
    enum width rows, cols;
    uint8_t optional, turned;
} layer_tensors[] = {
    { SF_W_ATTN_NORM, "attn_norm.weight", ONE, D_MODEL, 0, 0 },
    { SF_W_Q, "attn_q.weight", Q_K, D_MODEL, 0, 1 },
    { SF_W_K, "attn_k.weight", KV_K, D_MODEL, 0, 1 },
    { SF_W_V, "attn_v.weight", KV_V, D_MODEL, 0, 0 },
    { SF_W_O, "attn_output.weight", D_MODEL, Q_V, 0, 0 },
    { SF_W_Q_BIAS, "attn_q.bias", ONE, Q_K, 1, 1 },
    { SF_W_K_BIAS, "attn_k.bias", ONE, KV_K, 1, 1 },
    { SF_W_V_BIAS, "attn_v.bias", ONE, KV_V, 1, 0 },
    { SF_W_O_BIAS, "attn_output.bias", ONE, D_MODEL, 1, 0 },
    { SF_W_FFN_NORM, "ffn_norm.weight", ONE, D_MODEL, 0, 0 },
    { SF_W_GATE, "ffn_gate.weight", FFN, D_MODEL, 0, 0 },
    { SF_W_UP, "ffn_up.weight", FFN, D_MODEL, 0, 0 },
    { SF_W_DOWN, "ffn_down.weight", D_MODEL, FFN, 0, 0 },
    { SF_W_GATE_BIAS, "ffn_gate.bias", ONE, FFN, 1, 0 },
    { SF_W_UP_BIAS, "ffn_up.bias", ONE, FFN, 1, 0 },
    { SF_W_DOWN_BIAS, "ffn_down.bias", ONE, D_MODEL, 1, 0 },
};

static int64_t width_of(const struct sf_model_desc *desc, int32_t layer, enum width width)
{
    const struct sf_layer_desc *l = &desc->layer[layer];
    switch (width) {
    case ONE: return 1;
    case D_MODEL: return desc->d_model;
    case FFN: return desc->ffn;
    case Q_K: return (int64_t)l->q_heads * l->k_dim;
    case KV_K: return (int64_t)l->kv_heads * l->k_dim;
    case KV_V: return (int64_t)l->kv_heads * l->v_dim;
    case Q_V: return (int64_t)l->q_heads * l->v_dim;
    }
    return 0;
}

static int has_bias(const struct sf_model_desc *desc, enum sf_role role)
{
    switch (role) {
    case SF_W_Q_BIAS: return desc->bias_q;
    case SF_W_K_BIAS: return desc->bias_k;
    case SF_W_V_BIAS: return desc->bias_v;
    case SF_W_O_BIAS: return desc->bias_o;
    case SF_W_GATE_BIAS:
    case SF_W_UP_BIAS:
    case SF_W_DOWN_BIAS: return desc->bias_ffn;
    default: return 1;
    }
}

int64_t sf_llama_elements(const struct sf_model_desc *desc, enum sf_role role, int32_t layer)
{
    if (role == SF_W_OUT_NORM) return desc->d_model;
    if (role == SF_W_EMBED || role == SF_W_OUT) return (int64_t)desc->vocab * desc->d_model;
    for (size_t i = 0; i < sizeof layer_tensors / sizeof layer_tensors[0]; i++)
        if (layer_tensors[i].role == role && has_bias(desc, role))
            return width_of(desc, layer, layer_tensors[i].rows) *
                   width_of(desc, layer, layer_tensors[i].cols);
    return 0;
}

/* Finds tensor `name`, checks its shape and puts it into its role. */
static sf_status claim(struct sf_model *model, enum sf_role role, int32_t layer, const char *name,
                       int64_t rows, int64_t cols, int optional, struct sf_tensor **tensor_out)
{
    struct sf_tensor *t = sf_file_tensor(model->file, name);
    *tensor_out = t;
    if (t == NULL && optional) return SF_OK;
    if (t == NULL) return SF_FAIL(SF_FORMAT, "%s: tensor '%s' is missing", model->file->path, name);
    if (t->rows != rows || t->cols != cols)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' is [%d][%d], the keys ask for [%" PRId64 "][%"
                       PRId64 "]", model->file->path, name, t->rows, t->cols, rows, cols);
    t->claimed = 1;
    *sf_model_slot(model, role, layer) = &model->view[t - model->file->tensor];
    return SF_OK;
}

static sf_status claim_layer(struct sf_model *model, int32_t layer)
{
    const struct sf_model_desc *desc = &model->desc;
    for (size_t i = 0; i < sizeof layer_tensors / sizeof layer_tensors[0]; i++) {
        const struct layer_tensor *want = &layer_tensors[i];
        char name[64];
        struct sf_tensor *t;
        snprintf(name, sizeof name, "blk.%d.%s", layer, want->name);
        SF_TRY(claim(model, want->role, layer, name, width_of(desc, layer, want->rows),
                     width_of(desc, layer, want->cols), want->optional, &t));
        if (t != NULL && want->turned && model->file->rope_interleaved) {
            t->turn_head = desc->layer[layer].k_dim;
            t->turn_dim = desc->rope_dim;
        }
    }
    return SF_OK;
}

/* A bias is in all layers or in none. */
static sf_status flag_biases(struct sf_model *model)
{
    struct sf_model_desc *desc = &model->desc;
    const struct { enum sf_role role; uint8_t *flag; } biases[] = {
        { SF_W_Q_BIAS, &desc->bias_q }, { SF_W_K_BIAS, &desc->bias_k },
        { SF_W_V_BIAS, &desc->bias_v }, { SF_W_O_BIAS, &desc->bias_o },
        { SF_W_GATE_BIAS, &desc->bias_ffn }, { SF_W_UP_BIAS, &desc->bias_ffn },
        { SF_W_DOWN_BIAS, &desc->bias_ffn },
    };
    size_t count = sizeof biases / sizeof biases[0];
    for (size_t i = 0; i < count; i++)
        *biases[i].flag |= *sf_model_slot(model, biases[i].role, 0) != NULL;
    for (int32_t layer = 0; layer < desc->layers; layer++)
        for (size_t i = 0; i < count; i++)
            if ((*sf_model_slot(model, biases[i].role, layer) != NULL) != *biases[i].flag)
                return SF_FAIL(SF_UNSUPPORTED, "%s: some layers or FFN matrices have a bias and "
                               "layer %d differs", model->file->path, layer);
    return SF_OK;
}

static sf_status claim_all(struct sf_model *model)
{
    struct sf_model_desc *desc = &model->desc;
    struct sf_tensor *t;
    model->role = calloc((size_t)(desc->layers + 1) * SF_ROLES, sizeof(struct sf_weight *));
    if (model->role == NULL)
        return SF_FAIL(SF_NO_MEMORY, "%s: no memory for %d layers", model->file->path,
                       desc->layers);
    SF_TRY(claim(model, SF_W_EMBED, -1, "token_embd.weight", desc->vocab, desc->d_model, 0, &t));
    SF_TRY(claim(model, SF_W_OUT_NORM, -1, "output_norm.weight", 1, desc->d_model, 0, &t));
    SF_TRY(claim(model, SF_W_OUT, -1, "output.weight", desc->vocab, desc->d_model, 1, &t));
    desc->tied = t == NULL;
    if (desc->tied) *sf_model_slot(model, SF_W_OUT, -1) = *sf_model_slot(model, SF_W_EMBED, -1);
    for (int32_t layer = 0; layer < desc->layers; layer++) SF_TRY(claim_layer(model, layer));
    return flag_biases(model);
}
