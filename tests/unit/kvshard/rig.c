/* tests/unit/kvshard/rig.c: a rank with made-up numbers, and lanes as plain arrays beside it. */
#include "tests/unit/kvshard/rig.h"

#include <stdlib.h>

#include "base/opt.h"
#include "base/rng.h"
#include "comm/comm.h"

struct rig_spec rig_usual(void)
{
    return (struct rig_spec){ .device = "ref", .dtype = SF_F32, .page_slots = 16, .layers = 2,
                              .lanes = 2, .group = 2, .k_dim = 8, .v_dim = 6, .pages = 256,
                              .tokens_max = 256 };
}

float rig_frequency(int32_t i) { return 0.7f / (float)(i + 1); }

int32_t rig_head(const struct rig_spec *spec, int32_t lane)
{
    for (int32_t l = 0; l < spec->lanes; l++)
        if (spec->heads[l] != 0) return spec->heads[lane];
    return lane;
}

static int32_t source_of(const struct rig_spec *spec, int32_t number, int32_t pos)
{
    return spec->source ? spec->source(number, pos) : number;
}

float rig_value(enum rig_what what, int32_t number, int32_t layer, int32_t head, int32_t pos,
                int32_t element)
{
    uint64_t stream = (((uint64_t)number * 64 + (uint64_t)layer) * 64 + (uint64_t)head) * 4 +
                      (uint64_t)what;
    uint64_t index = (uint64_t)pos * 1024 + (uint64_t)element;
    return (float)(2.0 * sf_rng_uniform(7, stream, index) - 1.0);
}

/* ---- opening -------------------------------------------------------------------------------- */
static sf_status add_method(struct sf_stack *stack, const struct sf_method *method,
                            const struct rig_option *option, const char *layers)
{
    struct sf_stack_entry *entry;
    SF_TRY(sf_stack_add_method(stack, method, &entry));
    if (layers) snprintf(entry->layers_text, sizeof entry->layers_text, "%s", layers);
    for (int i = 0; i < RIG_OPTIONS && option[i].key; i++)
        SF_TRY(sf_opt_set(sf_opt_find(method->opts, option[i].key), entry->cfg, option[i].text));
    return SF_OK;
}

static sf_status open_stack(struct rig *rig)
{
    const struct rig_spec *spec = &rig->spec;
    struct sf_layer_desc layer[RIG_LAYERS];
    struct sf_model_desc desc = { .layers = spec->layers, .layer = layer,
                                  .rope_dim = spec->rope_dim };
    int32_t heads = 0;
    for (int32_t l = 0; l < spec->lanes; l++)
        if (rig_head(spec, l) >= heads) heads = rig_head(spec, l) + 1;
    for (int32_t l = 0; l < spec->layers; l++)
        layer[l] = (struct sf_layer_desc){ heads * spec->group, heads, spec->k_dim, spec->v_dim,
                                           spec->window };
    SF_TRY(sf_setup_make(&desc, spec->tensor ? sf_comm_size(spec->tensor) : 1, spec->page_slots,
                         spec->tokens_max, &rig->setup));
    SF_ASSERT(spec->rope_dim / 2 <= RIG_FREQUENCIES);
    for (int32_t i = 0; i < spec->rope_dim / 2; i++) rig->inv_freq[i] = rig_frequency(i);
    rig->model = (struct sf_model_desc){ .rope_dim = spec->rope_dim,
                                         .rope_inv_freq = rig->inv_freq };
    rig->setup.model = &rig->model;     /* desc ends here */
    if (spec->method == NULL) return SF_OK;
    SF_TRY(add_method(&rig->stack, spec->method, spec->option, spec->layers_text));
    if (spec->also)
        SF_TRY(add_method(&rig->stack, spec->also, spec->also_option, spec->also_layers));
    return sf_stack_check(&rig->stack, &rig->setup);
}

static sf_status open_store(struct rig *rig)
{
    const struct rig_spec *spec = &rig->spec;
    struct sf_store_lane lane[RIG_LANES];
    struct sf_store_layer layer[RIG_LAYERS];
    for (int32_t l = 0; l < spec->lanes; l++)
        lane[l] = (struct sf_store_lane){ rig_head(spec, l), l * spec->group, spec->group,
                                          spec->replica[l], spec->replica[l] + 1 };
    for (int32_t l = 0; l < spec->layers; l++)
        layer[l] = (struct sf_store_layer){ spec->k_dim, spec->v_dim, spec->window, spec->scale,
                                            lane, spec->lanes };
    struct sf_layout layout = { spec->dtype, spec->page_slots, spec->k_dim, spec->v_dim };
    struct sf_store_spec store = {
        .device = rig->device, .stack = &rig->stack, .setup = &rig->setup, .tensor = spec->tensor,
        .layers = spec->layers,
        .layer = layer, .dtype = spec->dtype, .page_slots = spec->page_slots,
        .pool_bytes = spec->pages * (int64_t)sf_layout_page_bytes(&layout), .seqs_max = RIG_SEQS,
        .rows_max = RIG_ROWS, .threads_beside = spec->threads_beside, .tap = spec->tap };
    return sf_store_create(&store, &rig->store);
}

sf_status rig_open(const struct rig_spec *spec, struct rig *rig)
{
    *rig = (struct rig){ .spec = *spec };
    if (rig->spec.scale == 0.0f) rig->spec.scale = (float)(1.0 / sqrt(spec->k_dim));
    /* Without products of bf16, which round queries and weights: outputs are held to f32 sums. */
    struct sf_device_spec device = { .name = spec->device, .threads = 1, .rows_max = 64,
                                     .isa_max = SF_ISA_AVX512 };
    size_t q_heads = (size_t)(spec->lanes * spec->group);
    rig->q = calloc(RIG_ROWS * q_heads * (size_t)spec->k_dim, sizeof(float));
    rig->k = calloc(RIG_ROWS * (size_t)(spec->lanes * spec->k_dim), sizeof(float));
    rig->v = calloc(RIG_ROWS * (size_t)(spec->lanes * spec->v_dim), sizeof(float));
    for (int32_t l = 0; l < spec->layers; l++)
        rig->out[l] = calloc(RIG_ROWS * q_heads * (size_t)spec->v_dim, sizeof(float));
    sf_status status = sf_device_open(&device, &rig->device);
    if (status == SF_OK) status = open_stack(rig);
    if (status == SF_OK) status = open_store(rig);
    if (status != SF_OK) rig_close(rig);
    return status;
}

void rig_close(struct rig *rig)
{
    sf_store_destroy(rig->store);
    sf_stack_free(&rig->stack);
    sf_setup_free(&rig->setup);
    if (rig->device) sf_device_close(rig->device);
    free(rig->q);
    free(rig->k);
    free(rig->v);
    for (int l = 0; l < RIG_LAYERS; l++) free(rig->out[l]);
    *rig = (struct rig){ .store = NULL };
}

/* ---- running -------------------------------------------------------------------------------- */
static void fill_row(struct rig *rig, int32_t row, int32_t number, int32_t layer, int32_t pos)
{
    const struct rig_spec *spec = &rig->spec;
    float *q = rig->q + (size_t)row * (size_t)(spec->lanes * spec->group * spec->k_dim);
    float *k = rig->k + (size_t)row * (size_t)(spec->lanes * spec->k_dim);
    float *v = rig->v + (size_t)row * (size_t)(spec->lanes * spec->v_dim);
    number = source_of(spec, number, pos);
    for (int32_t h = 0; h < spec->lanes * spec->group; h++)
        for (int32_t e = 0; e < spec->k_dim; e++)
            *q++ = rig_value(RIG_Q, number, layer, h, pos, e);
    for (int32_t l = 0; l < spec->lanes; l++) {
        int32_t head = rig_head(spec, l);
        for (int32_t e = 0; e < spec->k_dim; e++)
            *k++ = rig_value(RIG_K, number, layer, head, pos, e);
        for (int32_t e = 0; e < spec->v_dim; e++)
            *v++ = rig_value(RIG_V, number, layer, head, pos, e);
    }
}

sf_status rig_run(struct rig *rig, const struct rig_item *item, int32_t items)
{
    const struct rig_spec *spec = &rig->spec;
    struct sf_kv_item kv[RIG_SEQS];
    for (int32_t layer = 0; layer < spec->layers; layer++) {
        int32_t rows = 0;
        for (int32_t i = 0; i < items; i++) {
            kv[i] = (struct sf_kv_item){ item[i].seq, rows, item[i].rows, item[i].pos_first };
            for (int32_t r = 0; r < item[i].rows; r++, rows++)
                fill_row(rig, rows, item[i].number, layer, item[i].pos_first + r);
        }
        struct sf_kv_step step = {
            .item = kv, .items = items, .q = rig->q, .k = rig->k, .v = rig->v,
            .q_stride = (size_t)(spec->lanes * spec->group * spec->k_dim),
            .k_stride = (size_t)(spec->lanes * spec->k_dim),
            .v_stride = (size_t)(spec->lanes * spec->v_dim), .out = rig->out[layer],
            .out_stride = (size_t)(spec->lanes * spec->group * spec->v_dim),
            .out_head_stride = (size_t)spec->v_dim, .out_dtype = SF_F32 };
        SF_TRY(sf_store_layer(rig->store, layer, &step));
        if (spec->after_layer) spec->after_layer(rig, layer);
    }
    return sf_store_settle(rig->store);
}

sf_status rig_feed(struct rig *rig, struct sf_seq *seq, int32_t number, int32_t pos_first,
                   int32_t rows)
{
    struct rig_item item = { seq, number, pos_first, rows };
    return rig_run(rig, &item, 1);
}

const float *rig_out(const struct rig *rig, int32_t layer, int32_t row, int32_t q_head)
{
    const struct rig_spec *spec = &rig->spec;
    return rig->out[layer] +
           ((size_t)row * (size_t)(spec->lanes * spec->group) + (size_t)q_head) *
               (size_t)spec->v_dim;
}

/* ---- what should be there ------------------------------------------------------------------- */
void ref_open(struct ref_lane *ref, const struct rig_spec *spec, int32_t room)
{
    *ref = (struct ref_lane){ .k_dim = spec->k_dim, .v_dim = spec->v_dim, .room = room };
    ref->pos = calloc((size_t)room, sizeof *ref->pos);
    ref->bias = calloc((size_t)room, sizeof *ref->bias);
    ref->k = calloc((size_t)(room * spec->k_dim), sizeof *ref->k);
    ref->v = calloc((size_t)(room * spec->v_dim), sizeof *ref->v);
}

void ref_close(struct ref_lane *ref)
{
    free(ref->pos);
    free(ref->bias);
    free(ref->k);
    free(ref->v);
}

/* A key or a value becomes what a page makes of it (kernels/layout.h). */
static void store_row(enum sf_dtype dtype, float *row, int32_t n)
{
    float most = 0;
    for (int32_t e = 0; e < n; e++) most = fmaxf(most, fabsf(row[e]));
    float inverse = 127 / most, scale = most / 127;
    for (int32_t e = 0; e < n; e++) {
        if (dtype == SF_BF16) row[e] = sf_bf16_to_f32(sf_f32_to_bf16(row[e]));
        if (dtype == SF_F16) row[e] = sf_f16_to_f32(sf_f32_to_f16(row[e]));
        if (dtype == SF_INT8) row[e] = most > 0 ? scale * (nearbyintf(row[e] * inverse) + 0.0f) : 0;
    }
}

void ref_append(struct ref_lane *ref, const struct rig_spec *spec, int32_t number, int32_t layer,
                int32_t lane, int32_t pos)
{
    int32_t s = ref->slots++, head = rig_head(spec, lane);
    SF_ASSERT(s < ref->room);
    number = source_of(spec, number, pos);
    ref->pos[s] = pos;
    ref->bias[s] = 0.0f;
    for (int32_t e = 0; e < ref->k_dim; e++)
        ref->k[s * ref->k_dim + e] = rig_value(RIG_K, number, layer, head, pos, e);
    for (int32_t e = 0; e < ref->v_dim; e++)
        ref->v[s * ref->v_dim + e] = rig_value(RIG_V, number, layer, head, pos, e);
    store_row(spec->dtype, ref->k + s * ref->k_dim, ref->k_dim);
    store_row(spec->dtype, ref->v + s * ref->v_dim, ref->v_dim);
}

void ref_keep(struct ref_lane *ref, const int32_t *ids, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        size_t from = (size_t)ids[i], to = (size_t)i;
        size_t k_dim = (size_t)ref->k_dim, v_dim = (size_t)ref->v_dim;
        ref->pos[to] = ref->pos[from];
        ref->bias[to] = ref->bias[from];
        memmove(ref->k + to * k_dim, ref->k + from * k_dim, k_dim * sizeof(float));
        memmove(ref->v + to * v_dim, ref->v + from * v_dim, v_dim * sizeof(float));
    }
    ref->slots = n;
}

void ref_mix(struct ref_lane *ref, enum sf_dtype dtype, const struct sf_mix *mix)
{
    struct ref_lane old = *ref;
    size_t k_dim = (size_t)ref->k_dim, v_dim = (size_t)ref->v_dim, room = (size_t)ref->room;
    ref->pos = calloc(room, sizeof *ref->pos);
    ref->bias = calloc(room, sizeof *ref->bias);
    ref->k = calloc(room * k_dim, sizeof *ref->k);
    ref->v = calloc(room * v_dim, sizeof *ref->v);
    for (int32_t i = 0; i < mix->slots; i++) {
        float *k = ref->k + (size_t)i * k_dim, *v = ref->v + (size_t)i * v_dim;
        for (int32_t j = mix->ptr[i]; j < mix->ptr[i + 1]; j++) {
            const float *from_k = old.k + (size_t)mix->src[j] * k_dim;
            const float *from_v = old.v + (size_t)mix->src[j] * v_dim;
            for (size_t e = 0; e < k_dim; e++) {
                float term = mix->k_weight[j] * from_k[e];
                k[e] += term;
            }
            for (size_t e = 0; e < v_dim; e++) {
                float term = mix->v_weight[j] * from_v[e];
                v[e] += term;
            }
        }
        int32_t first = mix->ptr[i];
        int copied = mix->ptr[i + 1] - first == 1 && mix->k_weight[first] == 1.0f &&
                     mix->v_weight[first] == 1.0f;
        if (!copied) {                  /* bytes that are copied are not rounded anew */
            store_row(dtype, k, (int32_t)k_dim);
            store_row(dtype, v, (int32_t)v_dim);
        }
        ref->pos[i] = mix->pos[i];
        ref->bias[i] = mix->bias[i];
    }
    ref->slots = mix->slots;
    ref_close(&old);
}

void ref_attend(const struct ref_lane *ref, const float *q, double scale,
                int (*sees)(int32_t pos, const void *context), const void *context, double *out)
{
    double most = -INFINITY, sum = 0.0, logit[4096];
    for (int32_t s = 0; s < ref->slots; s++) {
        logit[s] = 0.0;
        for (int32_t e = 0; e < ref->k_dim; e++)
            logit[s] += (double)q[e] * (double)ref->k[s * ref->k_dim + e];
        logit[s] = logit[s] * scale + (double)ref->bias[s];
        if (sees && !sees(ref->pos[s], context)) logit[s] = -INFINITY;
        if (logit[s] > most) most = logit[s];
    }
    for (int32_t e = 0; e < ref->v_dim; e++) out[e] = 0.0;
    for (int32_t s = 0; s < ref->slots; s++) {
        double weight = exp(logit[s] - most);
        sum += weight;
        for (int32_t e = 0; e < ref->v_dim; e++)
            out[e] += weight * (double)ref->v[s * ref->v_dim + e];
    }
    for (int32_t e = 0; e < ref->v_dim; e++) out[e] /= sum;
}

/* ---- checks --------------------------------------------------------------------------------- */
void check_row(const struct rig *rig, int32_t number, int32_t layer, int32_t lane, int32_t row,
               int32_t pos, const struct ref_lane *ref,
               int (*sees)(int32_t pos, const void *context), const void *context, double bound)
{
    const struct rig_spec *spec = &rig->spec;
    double expected[64];
    float q[64];
    for (int32_t g = 0; g < spec->group; g++) {
        int32_t head = lane * spec->group + g;
        const float *out = rig_out(rig, layer, row, head);
        for (int32_t e = 0; e < spec->k_dim; e++)
            q[e] = rig_value(RIG_Q, source_of(spec, number, pos), layer, head, pos, e);
        ref_attend(ref, q, (double)spec->scale, sees, context, expected);
        int32_t worst = 0;
        for (int32_t e = 1; e < spec->v_dim; e++)
            if (fabs((double)out[e] - expected[e]) > fabs((double)out[worst] - expected[worst]))
                worst = e;
        if (fabs((double)out[worst] - expected[worst]) <= bound) {
            CU_PASS("row");
        } else {
            sf_test_fail(__FILE__, __LINE__, "%s %s, sequence %d layer %d lane %d head %d position"
                         " %d element %d: %.9g, expected %.9g within %.3g", spec->device,
                         sf_dtype_name(spec->dtype), number, layer, lane, head, pos, worst,
                         (double)out[worst], expected[worst], bound);
        }
    }
}

void check_lane(const struct rig *rig, const struct sf_seq *seq, int32_t layer, int32_t lane,
                const struct ref_lane *ref)
{
    int32_t n = sf_seq_lane_slots(rig->store, seq, layer, lane);
    SF_CHECK_INT(n, ref->slots);
    if (n != ref->slots) return;
    struct ref_lane is;
    ref_open(&is, &rig->spec, n + 1);
    SF_CHECK_OK(sf_seq_lane_read(rig->store, seq, layer, lane, is.k, is.v, is.pos, is.bias));
    for (int32_t s = 0; s < n; s++) {
        size_t k_dim = (size_t)is.k_dim, v_dim = (size_t)is.v_dim, at = (size_t)s;
        if (is.pos[s] == ref->pos[s] && is.bias[s] == ref->bias[s] &&
            memcmp(is.k + at * k_dim, ref->k + at * k_dim, k_dim * sizeof(float)) == 0 &&
            memcmp(is.v + at * v_dim, ref->v + at * v_dim, v_dim * sizeof(float)) == 0)
            continue;
        sf_test_fail(__FILE__, __LINE__, "layer %d lane %d slot %d: position %d bias %g key %g"
                     " value %g, expected %d %g %g %g", layer, lane, s, is.pos[s],
                     (double)is.bias[s], (double)is.k[at * k_dim], (double)is.v[at * v_dim],
                     ref->pos[s], (double)ref->bias[s], (double)ref->k[at * k_dim],
                     (double)ref->v[at * v_dim]);
        break;
    }
    ref_close(&is);
}

void check_refused(const char *file, int line, sf_status status, sf_status expected,
                   const char *words)
{
    if (status == expected && strstr(sf_error_text(), words)) {
        CU_PASS("refused");
    } else {
        sf_test_fail(file, line, "gave '%s': \"%s\", expected '%s' with \"%s\"",
                     sf_status_name(status), status == SF_OK ? "" : sf_error_text(),
                     sf_status_name(expected), words);
    }
}
