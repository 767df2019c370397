/* What a plan says of GPUs on a machine without one: where the choice of the device is ours, the
 * CPU is taken for products that GPUs do not have, and the plan says so; where it is not, they are
 * refused.  What is set aside for the libraries of a GPU is counted, rank by rank.  Heads that its
 * attention does not take are refused, with and without layer groups. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/devices.h"
#include "coordinator/plan_impl.h"
#include "kernels/device.h"
#include "tests/check.h"
#include "tests/unit/model/hf_dir.h"

static const int64_t MIB = 1 << 20;

struct made { struct sf_config cfg; struct sf_model *model; struct sf_cluster cluster;
              struct sf_launch_plan plan; };

/* A plan for `ranks` that see a GPU each, where they are to look for one. */
static sf_status make_of(const char *model, struct made *m, int32_t ranks, const char *config)
{
    memset(m, 0, sizeof *m);
    SF_TRY(sf_config_parse("job.yaml", config, strlen(config), NULL, &m->cfg));
    SF_TRY(sf_model_open_header(model, &m->model));
    SF_TRY(sf_cluster_make(1, ranks, 8, 16384 * MIB, &m->cluster));
    m->cluster.gpus = sf_devices_asked(&m->cfg, &m->cluster) != SF_DEVICE_CPU;
    return sf_launch_plan_make(&m->cfg, m->model, &m->cluster, &m->plan);
}

static sf_status make(struct made *m, int32_t ranks, const char *config)
{
    return make_of(sf_test_model(), m, ranks, config);
}

static void drop(struct made *m)
{
    sf_launch_plan_free(&m->plan);
    sf_cluster_free(&m->cluster);
    sf_model_close(m->model);
    sf_config_free(&m->cfg);
}

#define V "schema_version: 1\n"

static void takes_the_cpu(void)
{
    static const struct { const char *config, *device, *why; } cases[] = {
        { V "device: auto\nmodel: {dtype: bf16, compute: f32}\n", "cpu", "model.compute" },
        { V "device: auto\nmodel: {dtype: f32, compute: f32}\n", "cuda", "" },
        { V "device: auto\nmodel: {dtype: bf16, compute: auto}\n", "cuda", "" },
        { V "device: cuda\nmodel: {dtype: bf16, compute: auto}\n", "cuda", "" }
    };
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct made m;
        SF_MUST(make(&m, 1, cases[i].config));
        SF_CHECK_STR(m.plan.device, cases[i].device);
        SF_CHECK(strstr(m.plan.device_why, cases[i].why) != NULL);
        SF_CHECK((m.plan.device_why[0] != '\0') == (cases[i].why[0] != '\0'));
        drop(&m);
    }
    struct made m;
    SF_CHECK_FAILS(make(&m, 1, V "device: cuda\nmodel: {dtype: bf16, compute: f32}\n"),
                   SF_UNSUPPORTED);
    drop(&m);
}

/* A context, and a communicator for each group of more than one rank that the rank is in. */
static void counts_libraries(void)
{
    static const struct { const char *layout; int32_t ranks, links; } cases[] = {
        { "parallel: {tensor_parallel_size: 1}\n", 1, 0 },
        { "parallel: {tensor_parallel_size: 2}\n", 2, 1 },
        { "parallel: {pipeline_parallel_size: 2}\n", 2, 1 },
        { "parallel: {tensor_parallel_size: 2, pipeline_parallel_size: 3}\n", 6, 2 }
    };
    static const char *const devices[] = { "cpu", "cuda-emulated", "cuda" };
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t bare = 0;
        for (int d = 0; d < 3; d++) {
            struct made m;
            char text[256], *said;
            snprintf(text, sizeof text, V "device: %s\n%s", devices[d], cases[i].layout);
            SF_MUST(make(&m, cases[i].ranks, text));
            int64_t libraries = sf_device_library_bytes(devices[d], cases[i].links);
            SF_CHECK((libraries > 0) == (d == 2));
            for (int32_t r = 0; r < m.plan.ranks; r++)
                SF_CHECK_INT(m.plan.rank[r].library_bytes, libraries);
            if (d == 1) bare = m.plan.rank[0].workspace_bytes;
            if (d == 2) SF_CHECK_INT(m.plan.rank[0].workspace_bytes - bare, libraries);
            SF_MUST(sf_launch_plan_text(&m.plan, &m.cfg, m.model, &said));
            SF_CHECK((strstr(said, "set aside for CUDA") != NULL) == (d == 2));
            free(said);
            drop(&m);
        }
    }
}

static void refuses_heads(void)
{
    static const char one[] = "method xkv: layer 0 has keys of 330 elements; of layer groups"
        " attention on the device cuda takes up to 329; use device: cpu";
    static const char all[] = "layer 0 has values of 1026 elements; attention on the device cuda"
        " takes up to 1024; use device: cpu";
    static const struct { const char *config; int32_t dim; const char *why; } cases[] = {
        { V "device: cuda\nkv_cache: {methods: [{name: xkv}]}\n", 328, NULL },
        { V "device: cuda\nkv_cache: {methods: [{name: xkv}]}\n", 330, one },
        { V "device: cpu\nkv_cache: {methods: [{name: xkv}]}\n", 330, NULL },
        { V "device: cuda\n", 1024, NULL },
        { V "device: cuda\n", 1026, all },
        { V "device: cpu\n", 1026, NULL }
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct made m;
        char dim[32], *text;
        snprintf(dim, sizeof dim, "\"head_dim\": %d,", cases[i].dim);
        text = hf_edit(hf_llama_405b_new, "\"head_dim\": 128,", dim);
        sf_status status = make_of(hf_dir(text, strlen(text)), &m, 1, cases[i].config);
        SF_CHECK_INT(status, cases[i].why == NULL ? SF_OK : SF_UNSUPPORTED);
        if (status != SF_OK) SF_CHECK_STR(sf_error_text(), cases[i].why);
        free(text);
        drop(&m);
    }
    hf_dir_close();
}

static const struct sf_test tests[] = {
    { "takes the CPU", takes_the_cpu }, { "counts libraries", counts_libraries },
    { "refuses heads", refuses_heads }, { NULL, NULL }
};
SF_TEST_MAIN("devices", tests)
