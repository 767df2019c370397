/* tests/unit/plan/roof.c: the roof of a bench.
 *
 * Shown: what ranks have to do of a run of SmolLM2-135M, against its dimensions by hand, adds up to
 * the same whatever the layout; the roof is the dearest rank's, by bytes or by operations,
 * whichever takes longer; without rates, or of another number of ranks, there is none. */
#include <math.h>
#include <string.h>

#include "coordinator/bench_impl.h"
#include "tests/check.h"

static const int64_t MIB = 1 << 20;
enum { RANKS = 6, LAYERS = 30, D = 576, KV = 192, FFN = 1536, VOCAB = 49152, INPUT = 100,
       OUTPUT = 51, PROMPTS = 32, SEQS = 16 };
static const double row_flops =
    2.0 * LAYERS * (D * (D + 2.0 * KV) + (double)D * D + 3.0 * D * FFN);
static const double head_flops = 2.0 * D * VOCAB, slot_flops = 2.0 * LAYERS * 2 * D;

struct made { struct sf_config cfg; struct sf_model *model; struct sf_cluster cluster;
              struct sf_launch_plan plan; };

static void make(struct made *m, int32_t tensor, int32_t pipeline)
{
    char text[256];
    int bytes = snprintf(text, sizeof text, "schema_version: 1\nparallel: {tensor_parallel_size:"
                         " %d, pipeline_parallel_size: %d}\n", tensor, pipeline);
    memset(m, 0, sizeof *m);
    SF_MUST(sf_config_parse("job.yaml", text, (size_t)bytes, NULL, &m->cfg));
    SF_MUST(sf_model_open(sf_test_model(), &m->model));
    SF_MUST(sf_cluster_make(1, tensor * pipeline, 8, 4096 * MIB, &m->cluster));
    SF_MUST(sf_launch_plan_make(&m->cfg, m->model, &m->cluster, &m->plan));
}

static void drop(struct made *m)
{
    sf_launch_plan_free(&m->plan);
    sf_cluster_free(&m->cluster);
    sf_model_close(m->model);
    sf_config_free(&m->cfg);
}

static struct bench_run run_of(const struct sf_launch_plan *plan, struct bench_need *need)
{
    struct bench_run run = { .seqs_max = SEQS, .prompts = PROMPTS, .ranks = plan->ranks,
                             .input_tokens = PROMPTS * INPUT, .output_tokens = PROMPTS * OUTPUT,
                             .need = need };
    run.kv.bytes_exact = 4000;
    run.kv.bytes_stored = 1000;
    return run;
}

static void work_adds_up(void)
{
    static const int32_t layouts[][2] = { { 1, 1 }, { 3, 1 }, { 1, 2 }, { 3, 2 } };
    if (sf_test_model() == NULL) SF_SKIP("no model");
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        struct made m;
        struct bench_need need[RANKS];
        double prompt = 0, round = 0, bytes = 0, context = (INPUT + OUTPUT / 2.0) / 4;
        make(&m, layouts[i][0], layouts[i][1]);
        struct bench_run run = run_of(&m.plan, need);
        bench_need_make(&m.plan, sf_model_desc(m.model), &run, need);
        for (int32_t r = 0; r < m.plan.ranks; r++) {
            const struct sf_plan_rank *rank = &m.plan.rank[r];
            prompt += need[r].prompt_flops;
            round += need[r].round_flops;
            bytes += need[r].round_bytes;
            bytes -= m.plan.pipeline * (double)rank->weight_bytes;
            SF_CHECK_NEAR(need[r].prompt_bytes / (double)rank->weight_bytes,
                          ceil(PROMPTS * INPUT / (double)m.plan.rows_max), 1e-6);
        }
        double rows = PROMPTS * INPUT;
        SF_CHECK_NEAR(prompt / (rows * (row_flops + slot_flops * INPUT / 2) +
                                PROMPTS * head_flops), 1, 1e-9);
        SF_CHECK_NEAR(round / (SEQS * (row_flops + head_flops + slot_flops * context)), 1, 1e-9);
        /* 30 layers, 3 heads, keys and values of 64 in bf16, 8 bytes of a slot */
        SF_CHECK_NEAR(bytes / (SEQS * context * LAYERS * 3 * (128 * 2 + 8)), 1, 1e-9);
        drop(&m);
    }
}

static void the_dearest_rank_decides(void)
{
    double read[2] = { 10, 20 }, flop[2] = { 100, 100 };
    struct bench_need need[2] = { { 100, 3000, 50, 100 }, { 300, 1000, 160, 100 } };
    struct bench_rates rates = { read, flop, 2 };
    struct bench_run run = { .seqs_max = 4, .prompts = 8, .input_tokens = 120, .output_tokens = 88,
                             .ranks = 2, .need = need };
    struct bench_roof roof = bench_roof_of(&rates, &run);
    SF_CHECK_NEAR(roof.prefill, 120 / 30.0, 1e-9);      /* 3000 operations of rank 0 */
    SF_CHECK_NEAR(roof.decode, 4 / 8.0, 1e-9);          /* 160 bytes of rank 1 */
    SF_CHECK_NEAR(roof.output, 88 / (30 + 20 * 8.0), 1e-9);
    run.output_tokens = 8;
    roof = bench_roof_of(&rates, &run);
    SF_CHECK(isnan(roof.decode));
    SF_CHECK_NEAR(roof.output, 8 / 30.0, 1e-9);
    SF_CHECK_NEAR(bench_rate_sum(read, 2), 30, 1e-9);
}

static void no_rates_no_roof(void)
{
    double read[2] = { 10, 0 }, flop[2] = { 100, 100 };
    struct bench_need need[2] = { { 1, 1, 1, 1 }, { 1, 1, 1, 1 } };
    struct bench_rates rates = { read, flop, 2 };
    struct bench_run run = { .seqs_max = 1, .prompts = 2, .input_tokens = 2, .output_tokens = 4,
                             .ranks = 2, .need = need };
    SF_CHECK(isnan(bench_roof_of(NULL, &run).output));
    SF_CHECK(isnan(bench_roof_of(&rates, &run).output));
    SF_CHECK(isnan(bench_rate_sum(read, 2)));
    read[1] = 10;
    SF_CHECK(isfinite(bench_roof_of(&rates, &run).output));
    run.ranks = 1;
    SF_CHECK(isnan(bench_roof_of(&rates, &run).output));
}

static const struct sf_test tests[] = {
    { "work_adds_up", work_adds_up },
    { "the_dearest_rank_decides", the_dearest_rank_decides },
    { "no_rates_no_roof", no_rates_no_roof },
    { NULL, NULL }
};
SF_TEST_MAIN("roof", tests)
