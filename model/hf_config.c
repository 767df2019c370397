/* model/hf_config.c: the config.json of a Hugging Face directory -> the description of a model.
 *
 * Not for weights or tokenizers: what is described here can be planned and looked at.
 *
 *   architectures[0]     what sets it apart from a llama                     arch_name
 *   LlamaForCausalLM     biases where attention_bias and mlp_bias say so     llama
 *   MistralForCausalLM   all layers have the window sliding_window, or none  mistral
 *   Qwen2ForCausalLM     biases on q, k and v; windows on the layers of      qwen2
 *                        layer_types (or from max_window_layers on) if
 *                        use_sliding_window
 *
 * Keys come in two generations, and both are read:
 *
 *   older          "torch_dtype", "rope_theta", "rope_scaling": {"type" or "rope_type", ...}
 *   transformers 5 "dtype", "rope_parameters": {"rope_theta", "rope_type", ...}
 *
 * A key that is null counts as absent.  A key that would change the numbers and is not built is
 * refused, never ignored. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/files.h"
#include "model/json_keys.h"
#include "model/model_impl.h"

enum { CONFIG_BYTES_MAX = 1 << 20, LANES_MAX = 1 << 20 };
static const double ELEMENTS_MAX = 0x1p48, KV_ROW_MAX = 0x1p30, KV_MAX = 0x1p50;

enum windows { WINDOW_NEVER, WINDOW_EVERYWHERE, WINDOW_ASKED };
static const struct hf_arch {
    const char *name, *model_type;      /* the latter is our arch_name too */
    enum windows windows;
    uint8_t bias_qkv;                   /* always there */
    uint8_t bias_keys;                  /* attention_bias and mlp_bias have a say */
} archs[] = {
    { "LlamaForCausalLM", "llama", WINDOW_NEVER, 0, 1 },
    { "MistralForCausalLM", "mistral", WINDOW_EVERYWHERE, 0, 0 },
    { "Qwen2ForCausalLM", "qwen2", WINDOW_ASKED, 1, 0 },
};

struct reader {
    struct sf_model *model;
    struct sf_keys keys;
    const char *path;                   /* keys.path */
    const struct hf_arch *arch;
};

static sf_status find_arch(struct reader *r);
static sf_status refuse_foreign(const struct reader *r);
static sf_status read_widths(const struct reader *r);
static sf_status read_heads(const struct reader *r);
static sf_status read_windows(const struct reader *r);
static sf_status read_rope(const struct reader *r);
static sf_status read_ends(const struct reader *r);
static sf_status read_type(const struct reader *r);
static sf_status add_up(const struct reader *r);
static void read_name(struct sf_model *model);

static sf_status describe(struct reader *r)
{
    SF_TRY(find_arch(r));
    SF_TRY(refuse_foreign(r));
    SF_TRY(read_widths(r));
    SF_TRY(read_heads(r));
    SF_TRY(read_windows(r));
    SF_TRY(read_rope(r));
    SF_TRY(read_ends(r));
    SF_TRY(read_type(r));
    return add_up(r);
}

sf_status sf_hf_describe(struct sf_model *model)
{
    struct sf_json *root = NULL;
    char *path = NULL;
    read_name(model);
    SF_TRY(sf_file_name(model->file->path, "/config.json", &path));
    sf_status status = sf_keys_open(path, CONFIG_BYTES_MAX, &root);
    if (status == SF_OK) {
        struct reader r = { .model = model, .keys = { path, root, "" }, .path = path };
        status = describe(&r);
    }
    sf_json_free(root);
    free(path);
    return status;
}

/* ---- what it is ---------------------------------------------------------------------------- */

static sf_status unknown_arch(const struct reader *r, const char *name)
{
    char known[160] = "", quoted[SF_SHOWN_MAX];
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i == 0 ? "" : ", ", archs[i].name);
    }
    return SF_FAIL(SF_UNSUPPORTED, "%s: architecture '%s' is not built (%s are)", r->path,
                   sf_keys_shown(name, quoted), known);
}

/* By "architectures"; where that is absent, by "model_type".  Where both are there they agree. */
static sf_status find_arch(struct reader *r)
{
    const struct sf_json *list = sf_keys_member(&r->keys, "architectures");
    const char *type = NULL, *name = NULL;
    char quoted[SF_SHOWN_MAX];
    SF_TRY(sf_keys_text(&r->keys, "model_type", &type));
    if (list != NULL && sf_json_type(list) != SF_JSON_ARRAY)
        return sf_keys_wrong(&r->keys, "architectures", list, "an array");
    if (list != NULL && sf_json_count(list) > 0) {
        name = sf_json_text(sf_json_item(list, 0), NULL);
        if (name == NULL || sf_json_count(list) != 1)
            return SF_FAIL(SF_FORMAT, "%s: key 'architectures' is not an array of one string",
                           r->path);
    }
    if (name == NULL && type == NULL) return sf_keys_missing(&r->keys, "architectures");
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++)
        if (name != NULL ? strcmp(name, archs[i].name) == 0
                         : strcmp(type, archs[i].model_type) == 0)
            r->arch = &archs[i];
    if (r->arch == NULL) return unknown_arch(r, name != NULL ? name : type);
    if (type != NULL && strcmp(type, r->arch->model_type) != 0)
        return SF_FAIL(SF_FORMAT, "%s: key 'model_type' is '%s', but %s is '%s'", r->path,
                       sf_keys_shown(type, quoted), r->arch->name, r->arch->model_type);
    struct sf_model_desc *desc = &r->model->desc;
    desc->arch = SF_ARCH_LLAMA;
    snprintf(desc->arch_name, sizeof desc->arch_name, "%s", r->arch->model_type);
    return SF_OK;
}

/* Absent, or set to what means the same. */
static int is_neutral(const struct sf_json *value, double neutral)
{
    double number;
    if (value == NULL || sf_json_type(value) == SF_JSON_FALSE) return 1;
    if (sf_json_get_real(value, &number)) return number == neutral;
    return (sf_json_type(value) == SF_JSON_ARRAY || sf_json_type(value) == SF_JSON_OBJECT)
           && sf_json_count(value) == 0;
}

static sf_status refuse_foreign(const struct reader *r)
{
    static const struct { const char *key, *words; double neutral; } foreign[] = {
        { "quantization_config", "quantised checkpoints", 0 },
        { "quantization", "quantised checkpoints", 0 },
        { "compression_config", "quantised checkpoints", 0 },
        { "dual_chunk_attention_config", "attention in two kinds of chunks", 0 },
        { "auto_map", "model code of the directory's own", 0 },
        { "num_local_experts", "a mixture of experts", 0 },
        { "num_experts", "a mixture of experts", 0 },
        { "n_routed_experts", "a mixture of experts", 0 },
        { "kv_lora_rank", "latent attention", 0 },
        { "use_qk_norm", "norms of queries and keys", 0 },
        { "num_kv_shared_layers", "a cache shared by layers", 0 },
        { "no_rope_layers", "layers without RoPE", 0 },
        { "use_bidirectional_attention", "attention to later tokens", 0 },
        { "is_encoder_decoder", "an encoder", 0 },
        { "add_cross_attention", "attention to an encoder", 0 },
        { "pruned_heads", "pruned heads", 0 },
        { "attn_logit_softcapping", "capped logits", 0 },
        { "final_logit_softcapping", "capped logits", 0 },
        { "clip_qkv", "clipped queries, keys and values", 0 },
        { "attention_multiplier", "another softmax scale", 0 },
        { "query_pre_attn_scalar", "another softmax scale", 0 },
        { "embedding_multiplier", "scaled embeddings", 1 },
        { "residual_multiplier", "scaled residuals", 1 },
        { "logits_scaling", "scaled logits", 1 },
        { "logit_scale", "scaled logits", 1 },
        { "partial_rotary_factor", "partly rotated heads", 1 },
    };
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (!is_neutral(sf_keys_member(&r->keys, foreign[i].key), foreign[i].neutral))
            return SF_FAIL(SF_UNSUPPORTED, "%s: key '%s' is set: %s: not built for %s", r->path,
                           foreign[i].key, foreign[i].words, r->arch->name);
    uint8_t causal = 1;
    SF_TRY(sf_keys_flag(&r->keys, "is_causal", &causal));
    if (!causal)
        return SF_FAIL(SF_UNSUPPORTED, "%s: key 'is_causal' is false: attention to later tokens:"
                       " not built for %s", r->path, r->arch->name);
    const char *act = "silu";
    char quoted[SF_SHOWN_MAX];
    SF_TRY(sf_keys_text(&r->keys, "hidden_act", &act));
    if (strcmp(act, "silu") != 0)
        return SF_FAIL(SF_UNSUPPORTED, "%s: key 'hidden_act' is '%s'; silu is built", r->path,
                       sf_keys_shown(act, quoted));
    return SF_OK;
}

/* ---- sizes --------------------------------------------------------------------------------- */

static sf_status read_biases(const struct reader *r)
{
    struct sf_model_desc *desc = &r->model->desc;
    uint8_t attention = 0, ffn = 0;
    SF_TRY(sf_keys_flag(&r->keys, "attention_bias", &attention));
    SF_TRY(sf_keys_flag(&r->keys, "mlp_bias", &ffn));
    if (!r->arch->bias_keys && (attention || ffn))
        return SF_FAIL(SF_UNSUPPORTED, "%s: key '%s' is true, which %s does not know", r->path,
                       attention ? "attention_bias" : "mlp_bias", r->arch->name);
    desc->bias_q = desc->bias_k = desc->bias_v = attention || r->arch->bias_qkv;
    desc->bias_o = attention;
    desc->bias_ffn = ffn;
    return SF_OK;
}

static sf_status read_widths(const struct reader *r)
{
    struct sf_model_desc *desc = &r->model->desc;
    double eps = 0;
    SF_TRY(sf_keys_count(&r->keys, "num_hidden_layers", SF_LAYERS_MAX, &desc->layers));
    SF_TRY(sf_keys_count(&r->keys, "hidden_size", SF_WIDTH_MAX, &desc->d_model));
    SF_TRY(sf_keys_count(&r->keys, "intermediate_size", SF_WIDTH_MAX, &desc->ffn));
    SF_TRY(sf_keys_count(&r->keys, "vocab_size", SF_VOCAB_MAX, &desc->vocab));
    SF_TRY(sf_keys_count(&r->keys, "max_position_embeddings", INT32_MAX, &desc->context));
    SF_TRY(sf_keys_real(&r->keys, &(struct sf_want){ "rms_norm_eps", 1, 1e-12, 1 }, &eps));
    desc->norm_eps = (float)eps;
    SF_TRY(sf_keys_flag(&r->keys, "tie_word_embeddings", &desc->tied));
    return read_biases(r);
}

static sf_status read_heads(const struct reader *r)
{
    struct sf_model *model = r->model;
    struct sf_model_desc *desc = &model->desc;
    int32_t q_heads;
    SF_TRY(sf_keys_count(&r->keys, "num_attention_heads", SF_HEADS_MAX, &q_heads));
    int64_t kv_heads = q_heads, dim = desc->d_model / q_heads;
    SF_TRY(sf_keys_int(&r->keys, &(struct sf_want){ "num_key_value_heads", 0, 1, SF_HEADS_MAX },
                       &kv_heads));
    if (q_heads % kv_heads != 0)
        return SF_FAIL(SF_FORMAT, "%s: num_attention_heads %d over num_key_value_heads %" PRId64
                       " is no whole number", r->path, q_heads, kv_heads);
    if (sf_keys_member(&r->keys, "head_dim") == NULL && desc->d_model % q_heads != 0)
        return SF_FAIL(SF_FORMAT, "%s: hidden_size %d over num_attention_heads %d is no whole"
                       " head size, and there is no head_dim", r->path, desc->d_model, q_heads);
    SF_TRY(sf_keys_int(&r->keys, &(struct sf_want){ "head_dim", 0, 1, SF_HEAD_DIM_MAX }, &dim));
    if (dim % 2 != 0 || dim > SF_HEAD_DIM_MAX)
        return SF_FAIL(SF_UNSUPPORTED, "%s: heads of %" PRId64 " elements (even, at most %d)",
                       r->path, dim, SF_HEAD_DIM_MAX);
    model->layer = calloc((size_t)desc->layers, sizeof *model->layer);
    if (model->layer == NULL)
        return SF_FAIL(SF_NO_MEMORY, "%s: no memory for %d layers", r->path, desc->layers);
    desc->layer = model->layer;
    for (int32_t i = 0; i < desc->layers; i++)
        model->layer[i] = (struct sf_layer_desc){ q_heads, (int32_t)kv_heads, (int32_t)dim,
                                                  (int32_t)dim, 0 };
    desc->attn_scale = 1.0f / sqrtf((float)dim);
    return SF_OK;
}

/* The window of the layers that have one; 0: no layer has. */
static sf_status window_size(const struct reader *r, int64_t *window_out)
{
    const struct sf_want want = { "sliding_window", 0, 1, INT32_MAX };
    uint8_t asked = 0;
    SF_TRY(sf_keys_flag(&r->keys, "use_sliding_window", &asked));
    if (r->arch->windows == WINDOW_ASKED && !asked) return SF_OK;
    if (r->arch->windows == WINDOW_NEVER && (asked || sf_keys_member(&r->keys, want.key) != NULL))
        return SF_FAIL(SF_UNSUPPORTED, "%s: a sliding window is set, which %s does not know",
                       r->path, r->arch->name);
    /* Here null is a value: no window.  Implementations differ in what absence means. */
    if (r->arch->windows == WINDOW_EVERYWHERE && sf_json_member(r->keys.at, want.key) == NULL)
        return sf_keys_missing(&r->keys, want.key);
    SF_TRY(sf_keys_int(&r->keys, &want, window_out));
    if (*window_out == 0 && asked)
        return SF_FAIL(SF_FORMAT, "%s: key 'use_sliding_window' is true, but there is no"
                       " sliding_window", r->path);
    return SF_OK;
}

static sf_status read_windows(const struct reader *r)
{
    struct sf_model *model = r->model;
    const int32_t layers = model->desc.layers;
    const struct sf_json *types = sf_keys_member(&r->keys, "layer_types");
    int64_t window = 0, first = r->arch->windows == WINDOW_ASKED ? 28 : 0;
    SF_TRY(window_size(r, &window));
    if (r->arch->windows == WINDOW_ASKED)
        SF_TRY(sf_keys_int(&r->keys, &(struct sf_want){ "max_window_layers", 0, 0, INT32_MAX },
                           &first));
    if (types != NULL && sf_json_type(types) != SF_JSON_ARRAY)
        return sf_keys_wrong(&r->keys, "layer_types", types, "an array");
    if (types != NULL && sf_json_count(types) != (size_t)layers)
        return SF_FAIL(SF_FORMAT, "%s: key 'layer_types' has %zu items for %d layers", r->path,
                       sf_json_count(types), layers);
    for (int32_t i = 0; i < layers; i++) {
        const char *type = types == NULL ? "" : sf_json_text(sf_json_item(types, (size_t)i), NULL);
        if (type == NULL || (types != NULL && strcmp(type, "sliding_attention") != 0 &&
                             strcmp(type, "full_attention") != 0))
            return SF_FAIL(SF_UNSUPPORTED, "%s: key 'layer_types': layer %d has neither"
                           " full_attention nor sliding_attention", r->path, i);
        int slides = types == NULL ? window > 0 && i >= first : type[0] == 's';
        int free_choice = r->arch->windows == WINDOW_ASKED || types == NULL;
        if ((slides && window == 0) || (!free_choice && slides != (window > 0)))
            return SF_FAIL(SF_FORMAT, "%s: key 'layer_types' makes layer %d %s, against"
                           " sliding_window", r->path, i, type);
        model->layer[i].window = slides ? (int32_t)window : 0;
    }
    return SF_OK;
}

/* ---- RoPE ---------------------------------------------------------------------------------- */

/* Wavelengths beyond original / low are stretched by `factor`, those under original / high stay,
 * and between the two the frequency goes over linearly in original / wavelength:
 *
 *   w = 2 pi / f,  s = (original / w - low) / (high - low) cut to [0, 1],
 *   f' = (1 - s) f / factor + s f */
static sf_status stretch_llama3(struct sf_model *model, const struct sf_keys *rope, double factor)
{
    double low = 0, high = 0;
    int64_t original = 0;
    SF_TRY(sf_keys_real(rope, &(struct sf_want){ "low_freq_factor", 1, 1e-3, 1e6 }, &low));
    SF_TRY(sf_keys_real(rope, &(struct sf_want){ "high_freq_factor", 1, 1e-3, 1e6 }, &high));
    SF_TRY(sf_keys_int(rope, &(struct sf_want){ "original_max_position_embeddings", 1, 1,
                                                INT32_MAX }, &original));
    if (high <= low)
        return SF_FAIL(SF_FORMAT, "%s: key '%shigh_freq_factor' is %g, not above low_freq_factor"
                       " %g", rope->path, rope->inside, high, low);
    for (int32_t i = 0; i < model->desc.rope_dim / 2; i++) {
        double turns = (double)original * (double)model->inv_freq[i] / (2 * acos(-1.0));
        double s = fmin(fmax((turns - low) / (high - low), 0), 1);
        model->inv_freq[i] /= (float)(1 / ((1 - s) / factor + s));
    }
    return SF_OK;
}

/* Scaling by the object's rope_type, or "type" as it was once called. */
static sf_status scale_rope(struct sf_model *model, const struct sf_keys *rope, double theta)
{
    const char *type = NULL, *old = NULL;
    char quoted[SF_SHOWN_MAX];
    double factor = 1, part = 1;
    SF_TRY(sf_keys_text(rope, "rope_type", &type));
    SF_TRY(sf_keys_text(rope, "type", &old));
    if (type != NULL && old != NULL && strcmp(type, old) != 0)
        return SF_FAIL(SF_FORMAT, "%s: keys '%srope_type' and '%stype' differ", rope->path,
                       rope->inside, rope->inside);
    if (type == NULL) type = old != NULL ? old : "default";
    int llama3 = strcmp(type, "llama3") == 0, linear = strcmp(type, "linear") == 0;
    if (!llama3 && !linear && strcmp(type, "default") != 0)
        return SF_FAIL(SF_UNSUPPORTED, "%s: RoPE scaling '%s' is not built (default, linear and"
                       " llama3 are)", rope->path, sf_keys_shown(type, quoted));
    SF_TRY(sf_keys_real(rope, &(struct sf_want){ "partial_rotary_factor", 0, 0, 1 }, &part));
    if (part != 1)
        return SF_FAIL(SF_UNSUPPORTED, "%s: key '%spartial_rotary_factor' is %g: partly rotated"
                       " heads are not built", rope->path, rope->inside, part);
    SF_TRY(sf_keys_real(rope, &(struct sf_want){ "factor", llama3 || linear, 1e-3, 1e6 }, &factor));
    if (factor != 1 && !llama3 && !linear)
        return SF_FAIL(SF_FORMAT, "%s: key '%sfactor' is %g, but RoPE scaling '%s' has none",
                       rope->path, rope->inside, factor, type);
    SF_TRY(sf_rope_make(model, model->desc.layer[0].k_dim, theta, linear ? factor : 1));
    if (llama3) SF_TRY(stretch_llama3(model, rope, factor));
    return sf_rope_check(model);
}

static sf_status read_rope(const struct reader *r)
{
    static const char *const keys[] = { "rope_parameters", "rope_scaling" };
    const struct sf_want base = { "rope_theta", 0, 1, 1e30 };
    struct sf_keys rope = { .path = r->path, .inside = "" };
    double theta = 0, inner = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const struct sf_json *value = sf_keys_member(&r->keys, keys[i]);
        if (value == NULL) continue;
        if (sf_json_type(value) != SF_JSON_OBJECT)
            return sf_keys_wrong(&r->keys, keys[i], value, "an object");
        if (rope.at != NULL)
            return SF_FAIL(SF_FORMAT, "%s: both '%s' and '%s' are set", r->path, keys[0], keys[1]);
        rope.at = value;
        rope.inside = i == 0 ? "rope_parameters." : "rope_scaling.";
    }
    /* One object for each kind of layer: several bases in one model. */
    if (sf_keys_member(&rope, "full_attention") != NULL ||
        sf_keys_member(&rope, "sliding_attention") != NULL)
        return SF_FAIL(SF_UNSUPPORTED, "%s: RoPE that differs by layer is not built", r->path);
    SF_TRY(sf_keys_real(&r->keys, &base, &theta));
    SF_TRY(sf_keys_real(&rope, &base, &inner));
    if (theta != 0 && inner != 0 && theta != inner)
        return SF_FAIL(SF_FORMAT, "%s: key 'rope_theta' is %g and in %s %g", r->path, theta,
                       rope.inside, inner);
    if (theta == 0) theta = inner != 0 ? inner : 10000;
    return scale_rope(r->model, &rope, theta);
}

/* ---- the rest ------------------------------------------------------------------------------ */

/* -1 stands for none, as does absence. */
static sf_status read_ends(const struct reader *r)
{
    struct sf_model_desc *desc = &r->model->desc;
    const double last = desc->vocab - 1;
    const struct sf_json *ends = sf_keys_member(&r->keys, "eos_token_id");
    int64_t bos = -1, eos = -1;
    SF_TRY(sf_keys_int(&r->keys, &(struct sf_want){ "bos_token_id", 0, -1, last }, &bos));
    desc->bos = (int32_t)bos;
    if (ends == NULL || sf_json_type(ends) != SF_JSON_ARRAY) {
        SF_TRY(sf_keys_int(&r->keys, &(struct sf_want){ "eos_token_id", 0, -1, last }, &eos));
        if (eos >= 0) desc->eos[desc->eos_count++] = (int32_t)eos;
        return SF_OK;
    }
    if (sf_json_count(ends) > SF_EOS_MAX)
        return SF_FAIL(SF_UNSUPPORTED, "%s: key 'eos_token_id' has %zu items, at most %d are"
                       " built", r->path, sf_json_count(ends), SF_EOS_MAX);
    for (size_t i = 0; i < sf_json_count(ends); i++) {
        if (!sf_json_get_int(sf_json_item(ends, i), &eos) || eos < 0 || (double)eos > last)
            return SF_FAIL(SF_FORMAT, "%s: key 'eos_token_id': item %zu is not one of the %d"
                           " tokens", r->path, i, desc->vocab);
        desc->eos[desc->eos_count++] = (int32_t)eos;
    }
    return SF_OK;
}

/* The type that the weights are stored in; f32 if nothing is said, as in transformers. */
static sf_status read_type(const struct reader *r)
{
    static const struct { const char *name, *shown; int32_t bytes; } types[] = {
        { "float32", "F32", 4 }, { "float16", "F16", 2 }, { "bfloat16", "BF16", 2 } };
    const char *name = NULL, *old = NULL;
    char quoted[SF_SHOWN_MAX];
    SF_TRY(sf_keys_text(&r->keys, "dtype", &name));
    SF_TRY(sf_keys_text(&r->keys, "torch_dtype", &old));
    if (name != NULL && old != NULL && strcmp(name, old) != 0)
        return SF_FAIL(SF_FORMAT, "%s: keys 'dtype' and 'torch_dtype' differ", r->path);
    if (name == NULL) name = old != NULL ? old : "float32";
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(name, types[i].name) != 0) continue;
        snprintf(r->model->desc.file_type, sizeof r->model->desc.file_type, "%s", types[i].shown);
        r->model->element_bytes = types[i].bytes;
        return SF_OK;
    }
    return SF_FAIL(SF_UNSUPPORTED, "%s: weights of type '%s' are not built (float32, float16 and"
                   " bfloat16 are)", r->path, sf_keys_shown(name, quoted));
}

/* No file bounds these numbers, as tensors would: what no machine holds is refused, so that sums
 * of bytes stay inside 64 bits wherever they are made. */
static sf_status add_up(const struct reader *r)
{
    struct sf_model *model = r->model;
    const struct sf_model_desc *desc = &model->desc;
    const struct sf_layer_desc *layer = &desc->layer[0];        /* sizes are alike in all */
    double lanes = (double)desc->layers * layer->kv_heads;
    double kv_row = lanes * (layer->k_dim + layer->v_dim), weights = 0;
    for (int role = 0; role < SF_ROLES; role++)
        weights += (double)sf_llama_elements(desc, (enum sf_role)role, 0) *
                   (role <= SF_W_OUT ? 1 : desc->layers);
    if (weights > ELEMENTS_MAX)
        return SF_FAIL(SF_UNSUPPORTED, "%s: %.3g weights in all, at most %.3g are planned for",
                       r->path, weights, ELEMENTS_MAX);
    if (lanes > LANES_MAX || kv_row > KV_ROW_MAX || kv_row * desc->context > KV_MAX)
        return SF_FAIL(SF_UNSUPPORTED, "%s: %.3g KV heads and a cache of %.3g elements for each of"
                       " %d tokens are more than is planned for", r->path, lanes, kv_row,
                       desc->context);
    for (int role = 0; role < SF_ROLES; role++)
        if (role != SF_W_OUT || !desc->tied)
            model->elements += sf_llama_elements(desc, (enum sf_role)role, 0) *
                               (role <= SF_W_OUT ? 1 : desc->layers);
    return SF_OK;
}

/* The directory's own name. */
static void read_name(struct sf_model *model)
{
    const char *path = model->file->path, *end = path + strlen(path);
    while (end > path && end[-1] == '/') end--;
    const char *name = end;
    while (name > path && name[-1] != '/') name--;
    size_t bytes = (size_t)(end - name);
    if (bytes > 0 && name[0] == '.') return;            /* ".", ".." and hidden ones say nothing */
    if (bytes > SF_NAME_MAX - 1) bytes = SF_NAME_MAX - 1;
    for (size_t i = 0; i < bytes; i++)
        model->desc.name[i] = name[i] >= 0x20 && name[i] < 0x7f ? name[i] : '?';
}
