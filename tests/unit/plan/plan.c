/* tests/unit/plan/plan.c: the launch plan.
 *
 * Shown: stage cuts are the best there are (against trying all of them); in every layout each
 * layer, query head, chunk and vocabulary row is computed exactly once and each KV head is held;
 * impossible layouts are refused by the name of the key; a plan that does not fit says what would,
 * and that does; heads that a method makes dear are spread over the ranks, and the text says how
 * level; the JSON form has all keys of interface.md, with numbers that agree. */
#include <stdlib.h>
#include "base/crew.h"
#include "base/json.h"
#include "base/rng.h"
#include "coordinator/plan_impl.h"
#include "coordinator/plan_traffic.h"
#include "tests/check.h"

static const int64_t MIB = 1 << 20;

/* ---- cuts ------------------------------------------------------------------------------------ */
/* The dearest stage of the best of all cuts, by trying them. */
static double best_of_all(const double *cost, int32_t layers, double head, int32_t stages)
{
    double best = INFINITY, sum = 0;
    if (stages == 1) {
        for (int32_t i = 0; i < layers; i++) sum += cost[i];
        return sum + head;
    }
    for (int32_t count = 1; count <= layers - stages + 1; count++) {
        sum += cost[count - 1];
        double rest = best_of_all(cost + count, layers - count, head, stages - 1);
        double most = rest > sum ? rest : sum;
        if (most < best) best = most;
    }
    return best;
}

static void cuts_are_best(void)
{
    for (uint64_t round = 0; round < 300; round++) {
        double cost[11], head = (double)(sf_rng_u64(3, round, 99) % 30), most = 0;
        int32_t layers = 1 + (int32_t)(sf_rng_u64(3, round, 0) % 11), count[11], sum = 0, at = 0;
        int32_t stages = 1 + (int32_t)(sf_rng_u64(3, round, 1) % (uint64_t)layers);
        for (int32_t i = 0; i < layers; i++)
            cost[i] = 1 + (double)(sf_rng_u64(3, round, (uint64_t)(i + 2)) % 9);
        SF_MUST(sf_cut_stages(cost, layers, head, stages, count));
        for (int32_t s = 0; s < stages; s++) {
            double mine = s == stages - 1 ? head : 0;
            SF_CHECK(count[s] >= 1);
            sum += count[s];
            for (int32_t i = 0; i < count[s] && at < layers; i++) mine += cost[at++];
            if (mine > most) most = mine;
        }
        SF_CHECK_INT(sum, layers);
        SF_CHECK_NEAR(most, best_of_all(cost, layers, head, stages), 1e-6);
    }
}

/* SmolLM2-135M: 30 equal layers and a head worth 8 of them. */
static void cuts_count_the_head(void)
{
    double cost[30];
    int32_t count[4];
    for (int i = 0; i < 30; i++) cost[i] = 1;
    SF_MUST(sf_cut_stages(cost, 30, 8, 2, count));
    SF_CHECK_INT(count[0], 19);
    SF_CHECK_INT(count[1], 11);
    SF_MUST(sf_cut_stages(cost, 30, 8, 4, count));
    SF_CHECK(count[0] <= 10 && count[1] <= 10 && count[2] <= 10 && count[3] <= 2);
    SF_CHECK(count[0] >= 9 && count[1] >= 9 && count[2] >= 9 && count[3] >= 1);
    SF_CHECK_INT(count[0] + count[1] + count[2] + count[3], 30);
}

/* ---- layouts of the real model --------------------------------------------------------------- */
struct made { struct sf_config cfg; struct sf_model *model; struct sf_cluster cluster;
              struct sf_launch_plan plan; };

/* A plan of `layout` (tensor, pipeline, data) for `extra`, more configuration. */
static sf_status make(struct made *m, int32_t tensor, int32_t pipeline, int32_t data, int32_t nodes,
                      int64_t memory, const char *extra)
{
    char text[1024];
    int bytes = snprintf(text, sizeof text, "schema_version: 1\n"
                         "parallel: {tensor_parallel_size: %d, pipeline_parallel_size: %d,"
                         " data_parallel_size: %d}\n%s", tensor, pipeline, data, extra);
    memset(m, 0, sizeof *m);
    SF_TRY(sf_config_parse("job.yaml", text, (size_t)bytes, NULL, &m->cfg));
    sf_status status = sf_model_open(sf_test_model(), &m->model);
    if (status == SF_OK)
        status = sf_cluster_make(nodes, tensor * pipeline * data / nodes, 8, memory, &m->cluster);
    if (status == SF_OK) status = sf_launch_plan_make(&m->cfg, m->model, &m->cluster, &m->plan);
    return status;
}

static void drop(struct made *m)
{
    sf_launch_plan_free(&m->plan);
    sf_cluster_free(&m->cluster);
    sf_model_close(m->model);
    sf_config_free(&m->cfg);
}

/* Query heads, KV heads and chunks of one layer over the ranks of its tensor group. */
static void check_layer(const struct sf_launch_plan *plan, const struct sf_model_desc *desc,
                        int32_t first_rank, int32_t local)
{
    int32_t layer = plan->rank[first_rank].share.layer_first + local;
    int32_t q_seen[64] = { 0 }, kv_seen[64] = { 0 }, chunk_seen[512] = { 0 };
    for (int32_t t = 0; t < plan->tensor; t++) {
        const struct sf_share *share = &plan->rank[first_rank + t].share;
        SF_CHECK(share->kv_ptr[local + 1] > share->kv_ptr[local]);
        for (int32_t j = share->kv_ptr[local]; j < share->kv_ptr[local + 1]; j++) {
            const struct sf_kv_share *kv = &share->kv[j];
            kv_seen[kv->kv_head]++;
            int32_t per_group = desc->layer[layer].q_heads / desc->layer[layer].kv_heads;
            for (int32_t q = kv->q_first; q < kv->q_first + kv->q_count; q++) {
                q_seen[q]++;
                SF_CHECK_INT(q / per_group, kv->kv_head);
            }
        }
        for (int32_t j = share->chunk_ptr[local]; j < share->chunk_ptr[local + 1]; j++)
            chunk_seen[share->chunk[j]]++;
    }
    for (int32_t q = 0; q < desc->layer[layer].q_heads; q++) SF_CHECK_INT(q_seen[q], 1);
    for (int32_t h = 0; h < desc->layer[layer].kv_heads; h++) SF_CHECK(kv_seen[h] >= 1);
    for (int32_t c = 0; c < plan->rank[first_rank].share.chunks; c++)
        SF_CHECK_INT(chunk_seen[c], 1);
}

static void check_layout(int32_t tensor, int32_t pipeline, int32_t data, int fixed)
{
    struct made m;
    SF_MUST(make(&m, tensor, pipeline, data, 1, 4096 * MIB,
                 fixed ? "run: {deterministic: true}\n" : ""));
    const struct sf_launch_plan *plan = &m.plan;
    const struct sf_model_desc *desc = sf_model_desc(m.model);
    SF_CHECK_INT(plan->ranks, tensor * pipeline * data);
    SF_CHECK(plan->fits);
    SF_CHECK(plan->micro_batches == pipeline || (pipeline > 1 &&
                                                 plan->micro_batches == 2 * pipeline));
    for (int32_t group = 0; group < data * pipeline; group++) {
        int32_t first = group * tensor, vocab = 0;
        for (int32_t t = 0; t < tensor; t++) {
            const struct sf_plan_rank *rank = &plan->rank[first + t];
            SF_CHECK_INT(rank->rank, rank->tp_rank + tensor * (rank->stage
                                                               + pipeline * rank->dp_rank));
            SF_CHECK_INT(rank->stage, group % pipeline);
            SF_CHECK_INT(rank->share.layer_first, plan->rank[first].share.layer_first);
            if (rank->share.last_stage) SF_CHECK_INT(rank->share.vocab_first, vocab);
            vocab += rank->share.vocab_count;
            SF_CHECK(rank->weight_bytes > 0 && rank->pages > 0 && rank->max_kv_tokens > 0);
            SF_CHECK_INT(rank->pool_bytes, rank->pages * rank->page_bytes);
        }
        int last = group % pipeline == pipeline - 1;
        SF_CHECK_INT(vocab, last ? desc->vocab : 0);
        SF_CHECK_INT(plan->rank[first].share.layer_first + plan->rank[first].share.layer_count,
                     last ? desc->layers : plan->rank[first + tensor].share.layer_first);
        for (int32_t i = 0; i < plan->rank[first].share.layer_count; i++)
            check_layer(plan, desc, first, i);
    }
    SF_CHECK_INT(plan->rank[0].share.layer_first, 0);
    drop(&m);
}

static void layouts(void)
{
    static const int32_t table[][3] = { { 1, 1, 1 }, { 2, 1, 1 }, { 3, 1, 1 }, { 1, 2, 1 },
                                        { 1, 4, 1 }, { 2, 2, 1 }, { 3, 2, 1 }, { 2, 1, 2 },
                                        { 2, 2, 2 }, { 4, 1, 1 }, { 9, 1, 1 }, { 1, 30, 1 } };
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        for (int fixed = 0; fixed < 2; fixed++)
            check_layout(table[i][0], table[i][1], table[i][2], fixed);
}

/* The longer the sequences, the less the head weighs; few of them are not split further. */
static void cuts_count_the_cache(void)
{
    static const struct { const char *scheduler; int32_t first, batches; } table[] = {
        {"scheduler: {max_model_len: 4, max_num_seqs: 64}\n", 19, 4},
        {"scheduler: {max_model_len: 512, max_num_seqs: 64}\n", 18, 4},
        {"scheduler: {max_model_len: 4096, max_num_seqs: 64}\n", 16, 4},
        {"scheduler: {max_model_len: 8192, max_num_seqs: 64}\n", 16, 4},
        {"scheduler: {max_model_len: 512, max_num_seqs: 16}\n", 19, 4},
        {"scheduler: {max_model_len: 512, max_num_seqs: 15}\n", 19, 2}};
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct made m;
        SF_MUST(make(&m, 1, 2, 1, 1, 4096 * MIB, table[i].scheduler));
        SF_CHECK_INT(m.plan.rank[0].share.layer_count, table[i].first);
        SF_CHECK_INT(m.plan.micro_batches, table[i].batches);
        drop(&m);
    }
}

/* Both halves of a 2 x 2 layout hold about half; heads alternate, so a tensor group is level. */
static void halves_are_level(void)
{
    struct made m;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 2, 2, 1, 1, 4096 * MIB, "scheduler: {max_model_len: 256}\n"));
    double least = INFINITY, most = 0, kv_least = INFINITY, kv_most = 0;
    for (int32_t r = 0; r < 4; r++) {
        double weights = (double)m.plan.rank[r].weight_bytes;
        double kv = (double)m.plan.rank[r].kv_bytes_per_token
                    / m.plan.rank[r].share.layer_count;
        least = fmin(least, weights);
        most = fmax(most, weights);
        kv_least = fmin(kv_least, kv);
        kv_most = fmax(kv_most, kv);
    }
    SF_CHECK(most / least < 1.12);
    SF_CHECK(kv_most / kv_least < 1.2);         /* 3 KV heads over 2 ranks: 1.5 each on average */
    drop(&m);
}

/* ---- refusals -------------------------------------------------------------------------------- */
static void check_refused(int32_t tensor, int32_t pipeline, int32_t data, int32_t nodes,
                          const char *extra, const char *part)
{
    struct made m;
    sf_status status = make(&m, tensor, pipeline, data, nodes, 4096 * MIB, extra);
    SF_CHECK_INT(status, SF_INVALID);
    if (strstr(sf_error_text(), part) == NULL)
        sf_test_fail(__FILE__, __LINE__, "words are \"%s\", without \"%s\"", sf_error_text(), part);
    drop(&m);
}

static void impossible_layouts(void)
{
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    check_refused(10, 1, 1, 1, "", "parallel.tensor_parallel_size is 10, but layer 0 has 9 query");
    check_refused(1, 31, 1, 1, "", "parallel.pipeline_parallel_size is 31, but the model has 30");
    check_refused(2, 1, 1, 2, "", "parallel.allow_cross_node_tensor_parallel: true");
    check_refused(1, 1, 1, 1, "scheduler: {max_model_len: 8193}\n", "context is 8192");

    struct made m;
    SF_MUST(make(&m, 2, 1, 1, 1, 4096 * MIB, ""));
    struct sf_launch_plan other;
    m.cfg.parallel.pipeline = 2;
    m.cfg.parallel.layers = (struct sf_opt_ints){ .count = 2, .value = { 10, 21 } };
    m.cfg.parallel.tensor = 1;
    SF_CHECK_FAILS(sf_launch_plan_make(&m.cfg, m.model, &m.cluster, &other), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), "parallel.pipeline_layers sum to 31") != NULL);
    m.cfg.parallel.layers.value[1] = 20;
    SF_MUST(sf_launch_plan_make(&m.cfg, m.model, &m.cluster, &other));
    SF_CHECK_INT(other.rank[1].share.layer_first, 10);
    sf_launch_plan_free(&other);
    m.cfg.parallel.data = 3;
    SF_CHECK_FAILS(sf_launch_plan_make(&m.cfg, m.model, &m.cluster, &other), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), "2 ranks, but") != NULL);
    m.cfg.parallel.pipeline = 1;                /* auto takes the ranks that are left over */
    m.cfg.parallel.layers.count = SF_OPT_AUTO;
    m.cfg.parallel.data = SF_OPT_AUTO;
    SF_MUST(sf_launch_plan_make(&m.cfg, m.model, &m.cluster, &other));
    SF_CHECK_INT(other.data, 2);
    SF_CHECK_INT(other.seqs_max, 128);
    sf_launch_plan_free(&other);
    drop(&m);
}

/* Groups that are listed are never cut: stages end between them where they can, whatever that
 * costs, and else the layout is refused. */
static void keeps_listed_groups_whole(void)
{
    struct made m;
    char text[512];
    size_t used = (size_t)snprintf(text, sizeof text, "kv_cache: {methods: [{name: xkv,"
                                   " layer_groups: [[0");
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 1, 2, 1, 2, 4096 * MIB, "kv_cache: {methods: [{name: xkv, layer_groups: [[11,"
                 " 12, 13, 14], [15, 16, 17, 18, 19, 20, 21]], pp_imbalance_tolerance: 0}]}\n"));
    int32_t second = m.plan.rank[1].share.layer_first;
    SF_CHECK(second == 15 || second >= 22);
    drop(&m);
    for (int l = 1; l < 30; l++)
        used += (size_t)snprintf(text + used, sizeof text - used, ", %d", l);
    snprintf(text + used, sizeof text - used, "]]}]}\n");
    check_refused(1, 2, 1, 2, text, "change parallel.pipeline_layers");
}

/* Of 8 cores a rank, those that its threads leave, within OMP_NUM_THREADS, factor layer groups; the
 * room that takes is in the plan, whatever the threads but for the crew that more than one are.
 * Nothing of it without groups. */
static void idle_cores_factor(void)
{
    static const struct { int32_t threads, omp, beside; const char *method; } cases[] = {
        {3, 0, 5, "xkv"}, {8, 0, 0, "xkv"}, {20, 0, 0, "xkv"}, {3, 4, 1, "xkv"}, {3, 2, 0, "xkv"},
        {6, 0, 2, "xkv"}, {7, 0, 0, "xkv"}, /* one would take longer than seven */
        {3, 0, 0, "ems"}};
    int64_t room = 0;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct made m;
        struct sf_launch_plan plan;
        char text[256];
        snprintf(text, sizeof text, "kv_cache: {methods: [{name: %s}]}\n", cases[i].method);
        SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, text));
        SF_CHECK_INT(m.plan.threads_beside, 0);         /* auto takes all cores */
        SF_CHECK_INT(m.plan.rank[0].cache.beside, 0);
        m.cfg.parallel.threads = cases[i].threads;
        m.cluster.threads_max = cases[i].omp;
        SF_MUST(sf_launch_plan_make(&m.cfg, m.model, &m.cluster, &plan));
        SF_CHECK_INT(plan.threads, cases[i].threads);
        SF_CHECK_INT(plan.threads_beside, cases[i].beside);
        const struct sf_cache_bytes *cache = &plan.rank[0].cache;
        SF_CHECK((cache->beside > 0) == (cases[i].beside > 0));
        int64_t crew = cases[i].beside > 1 ? (sf_crew_bytes(cases[i].beside) + 63) / 64 * 64 : 0;
        if (i == 0) room = cache->beside - crew;
        if (cache->beside > 0) SF_CHECK_INT(cache->beside - crew, room);
        sf_launch_plan_free(&plan);
        drop(&m);
    }
}

/* Where their room is what does not fit, factors are made at once. */
static void room_beside_gives_way(void)
{
    struct made m;
    struct sf_launch_plan plan;
    int32_t with = 0, without = 0;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, "kv_cache: {methods: [{name: xkv}]}\n"));
    m.cfg.parallel.threads = 3;
    for (int64_t mib = 100; mib <= 4096; mib += mib / 16) {
        m.cluster.memory_per_rank = mib * MIB;
        SF_MUST(sf_launch_plan_make(&m.cfg, m.model, &m.cluster, &plan));
        SF_CHECK(plan.fits || plan.threads_beside == 0);
        SF_CHECK((plan.rank[0].cache.beside > 0) == (plan.threads_beside > 0));
        without += plan.fits && plan.threads_beside == 0;
        with += plan.fits && plan.threads_beside > 0;
        sf_launch_plan_free(&plan);
    }
    SF_CHECK(without > 0 && with > 0);
    drop(&m);
}

static void crosses_nodes_when_allowed(void)
{
    struct made m;
    struct sf_plan_traffic near, far;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 2, 1, 1, 1, 4096 * MIB, ""));
    SF_MUST(sf_plan_comm(&m.plan, &m.cfg, sf_model_desc(m.model), &near));
    SF_CHECK_INT(near.cross_node, 0);
    /* 30 layers x 2 sums x (1 leaf half to the other rank, twice, and 2 half results) x 576 f32 */
    SF_CHECK_INT(near.tp, 30 * 2 * 2 * 576 * 4);
    m.cfg.parallel.cross_node = 1;
    m.cluster.place[1].node = 1;
    m.cluster.nodes = 2;
    struct sf_launch_plan plan;
    SF_MUST(sf_launch_plan_make(&m.cfg, m.model, &m.cluster, &plan));
    SF_MUST(sf_plan_comm(&plan, &m.cfg, sf_model_desc(m.model), &far));
    SF_CHECK(far.cross_node >= near.tp);
    SF_CHECK_INT(far.per[SF_PER_PROMPT_TOKEN].cross_node.sums, near.tp);
    sf_launch_plan_free(&plan);
    drop(&m);
}

/* compute: f32 keeps a processor that multiplies bf16 from doing so; bf16 is refused without it. */
static void chooses_the_arithmetic(void)
{
    struct made m;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    int native = sf_isa_multiplies(sf_isa_detect(), SF_BF16);
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, "model: {dtype: bf16, compute: f32}\n"));
    SF_CHECK_INT(m.plan.isa_max, native ? SF_ISA_AVX512_VNNI : SF_ISA_AUTO);
    drop(&m);
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, "model: {dtype: bf16}\n"));
    SF_CHECK_INT(m.plan.isa_max, SF_ISA_AUTO);
    drop(&m);
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, "model: {dtype: f32}\nkv_cache: {dtype: bf16}\n"));
    SF_CHECK_INT(m.plan.isa_max, native ? SF_ISA_AVX512_VNNI : SF_ISA_AUTO);
    drop(&m);
    SF_CHECK_INT(make(&m, 1, 1, 1, 1, 4096 * MIB, "model: {dtype: bf16, compute: bf16}\n"),
                 native ? SF_OK : SF_UNSUPPORTED);
    drop(&m);
    SF_CHECK_INT(make(&m, 1, 1, 1, 1, 4096 * MIB, "model: {dtype: f32, compute: bf16}\n"),
                 SF_UNSUPPORTED);
    drop(&m);
}

/* int8: a byte a weight and 4 a column of a matrix, norms in f32; never by auto, not on GPUs. */
static void plans_int8(void)
{
    const int64_t d = 576, qkv = 960, gate_up = 3072, half = 1536, vocab = 49152;
    struct made m;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, "model: {dtype: bf16, compute: int8}\n"));
    SF_CHECK_INT(m.plan.rank[0].weight_bytes,
                 30 * (qkv * (d + 4) + d * (d + 4) + gate_up * (d + 4) + d * (half + 4) + 2 * 4 * d)
                     + vocab * (d + 4) + 4 * d);
    SF_CHECK_STR(sf_launch_plan_compute(&m.plan), "int8");
    drop(&m);
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, "model: {dtype: f16, compute: auto}\n"));
    SF_CHECK_INT(m.plan.int8, 0);
    SF_CHECK_STR(sf_launch_plan_compute(&m.plan), "f32");
    drop(&m);
    SF_CHECK_INT(make(&m, 1, 1, 1, 1, 4096 * MIB,
                      "device: cuda\nmodel: {dtype: bf16, compute: int8}\n"), SF_UNSUPPORTED);
    SF_CHECK_STR(sf_error_text(), "model.compute is int8, which is the CPU's, and device is cuda;"
                  " set device: cpu or model.compute: auto");
    drop(&m);
}

/* ---- fitting --------------------------------------------------------------------------------- */
static int64_t number_after(const char *text, const char *mark)
{
    const char *at = strstr(text, mark);
    return at != NULL ? strtoll(at + strlen(mark), NULL, 10) : -1;
}

/* Too little memory: not refused, does not fit, and each way out that is offered works. */
static void says_what_would_fit(void)
{
    struct made m;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 1, 1, 1, 1, 360 * MIB, ""));
    SF_CHECK_INT(m.plan.fits, 0);
    SF_CHECK(m.plan.reason[0] != '\0');
    int64_t memory = number_after(m.plan.reason, "would fit: ");
    int64_t length = number_after(m.plan.reason, "max_model_len of ");
    int64_t stages = number_after(m.plan.reason, "pipeline_parallel_size ");
    SF_CHECK(memory > 360);
    SF_CHECK(length > 0 && length < 8192);
    SF_CHECK(stages > 1);
    drop(&m);
    char extra[128];
    SF_MUST(make(&m, 1, 1, 1, 1, memory * MIB, ""));
    SF_CHECK_INT(m.plan.fits, 1);
    drop(&m);
    snprintf(extra, sizeof extra, "scheduler: {max_model_len: %lld}\n", (long long)length);
    SF_MUST(make(&m, 1, 1, 1, 1, 360 * MIB, extra));
    SF_CHECK_INT(m.plan.fits, 1);
    SF_CHECK_STR(m.plan.reason, "");
    drop(&m);
    snprintf(extra, sizeof extra, "scheduler: {max_model_len: %lld}\n", (long long)length + 16);
    SF_MUST(make(&m, 1, 1, 1, 1, 360 * MIB, extra));
    SF_CHECK_INT(m.plan.fits, 0);               /* it is the longest but for its last page */
    drop(&m);
    SF_MUST(make(&m, 1, (int32_t)stages, 1, 1, 360 * MIB, ""));
    SF_CHECK_INT(m.plan.fits, 1);
    drop(&m);

    /* A pool that is given and too small. */
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, "kv_cache: {memory: 8MiB}\n"));
    SF_CHECK_INT(m.plan.fits, 0);
    SF_CHECK_INT(m.plan.populate, 1);
    memory = number_after(m.plan.reason, "kv_cache.memory of ");
    drop(&m);
    snprintf(extra, sizeof extra, "kv_cache: {memory: %lldMiB}\n", (long long)memory);
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, extra));
    SF_CHECK_INT(m.plan.fits, 1);
    SF_CHECK(m.plan.rank[0].pool_bytes <= memory * MIB);
    SF_CHECK(m.plan.rank[0].max_kv_tokens >= 8192);
    drop(&m);
}

/* The automatic pool, with what the cache takes beside it, leaves 40 % of what is left, and takes
 * no more than the job can use. */
static void sizes_the_pool(void)
{
    struct made m;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, ""));
    const struct sf_plan_rank *rank = &m.plan.rank[0];
    double left = (double)(4096 * MIB - rank->weight_bytes - rank->workspace_bytes);
    int64_t beside = sf_cache_bytes_sum(&rank->cache);
    SF_CHECK_NEAR((double)(rank->pool_bytes + beside) / left, 0.599, 0.001);
    SF_CHECK(beside > 0 && rank->cache.masses == 0 && rank->cache.scratch == 0);
    SF_CHECK_INT(m.plan.populate, 0);
    /* 30 layers x 3 heads x (64 + 64) x 2 bytes + 8 of pos and bias */
    SF_CHECK_INT(rank->kv_bytes_per_token, 30 * 3 * (128 * 2 + 8));
    drop(&m);
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB,
                 "scheduler: {max_num_seqs: 2, max_model_len: 160}\n"));
    SF_CHECK_INT(m.plan.rank[0].max_kv_tokens, 320);
    struct sf_plan_costs costs;
    SF_MUST(sf_plan_costs_make(&m.plan, &m.cfg.kv.stack, &costs));
    SF_CHECK_INT(costs.length[costs.lengths - 1], 160);
    SF_CHECK_INT(sf_plan_capacity(&m.plan, &costs, costs.lengths - 1), 2);
    sf_plan_costs_free(&costs);
    drop(&m);
    /* What a method has noted of slots is part of it: 16 bytes a slot and its own 4, and more. */
    SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, "kv_cache: {methods: [{name: ems}]}\n"));
    rank = &m.plan.rank[0];
    beside = sf_cache_bytes_sum(&rank->cache);
    SF_CHECK((rank->pages + 1) * m.plan.page_slots * 20 <=
             rank->cache.mirrors + rank->cache.masses);
    left = (double)(4096 * MIB - rank->weight_bytes - rank->workspace_bytes);
    SF_CHECK((double)(rank->pool_bytes + beside) <= 0.6 * left);
    SF_CHECK((double)(rank->pool_bytes + beside) > 0.58 * left);
    drop(&m);
}

/* ---- JSON ------------------------------------------------------------------------------------ */
static const struct sf_json *member(const struct sf_json *json, const char *key)
{
    const struct sf_json *value = sf_json_member(json, key);
    if (value == NULL) sf_test_fail(__FILE__, __LINE__, "member '%s' is missing", key);
    else CU_PASS("member");
    return value;
}

static int64_t number(const struct sf_json *json, const char *key)
{
    int64_t value = -1;
    SF_CHECK(sf_json_get_int(member(json, key), &value));
    return value;
}

/* Two nodes, a stage on each, two tensor ranks in each stage: rows cross once, as they are; sums do
 * not; of what rank 0 tells the three others two thirds cross; of each sample the coordinator gets
 * one, and each rank of stage 0. */
static void check_traffic_json(const struct sf_json *comm)
{
    const struct sf_json *per = member(comm, "bytes_per"), *layers;
    static const char *const units[] = { "prompt_token", "answer_token" };
    for (int i = 0; i < 2; i++) {
        const struct sf_json *unit = member(per, units[i]), *cross = member(unit, "cross_node");
        SF_CHECK_INT(number(unit, "stages"), 576 * 4);
        SF_CHECK_INT(number(cross, "stages"), 576 * 4);
        SF_CHECK_INT(number(cross, "sums"), 0);
        SF_CHECK(number(unit, "control") > number(cross, "control"));
        SF_CHECK(number(cross, "control") > 0 && number(cross, "control") < 60);
    }
    const struct sf_json *prompt = member(per, "prompt_token"), *step = member(per, "step");
    SF_CHECK_INT(number(prompt, "control") * 2,
                 number(member(prompt, "cross_node"), "control") * 3);
    SF_CHECK_INT(number(step, "stages"), 0);
    SF_CHECK(number(member(step, "cross_node"), "control") > 0);
    SF_CHECK(number(member(member(per, "sequence"), "cross_node"), "control") > 0);
    SF_CHECK(number(member(member(per, "second"), "cross_node"), "control") > 0);
    layers = member(comm, "tp_bytes_per_layer");
    int64_t sum = 0;
    for (size_t l = 0; l < sf_json_count(layers); l++) {
        int64_t bytes = 0;
        SF_CHECK(sf_json_get_int(sf_json_item(layers, l), &bytes));
        sum += bytes;
    }
    /* and where a row enters stage 1: a leaf of each rank half to the other, two half results */
    SF_CHECK_INT(sum + 2 * 576 * 4, number(comm, "tp_bytes_per_token"));
}

static void check_rank_json(const struct sf_json *json, const struct sf_plan_rank *rank)
{
    static const char *const keys[] = { "node", "stage", "tp_rank", "dp_rank", "workspace_bytes" };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) SF_CHECK(number(json, keys[i]) >= 0);
    SF_CHECK_INT(number(json, "rank"), rank->rank);
    SF_CHECK_INT(number(json, "weight_bytes"), rank->weight_bytes);
    SF_CHECK_INT(number(json, "max_kv_tokens"), rank->max_kv_tokens);
    const struct sf_json *beside = member(json, "kv_beside_bytes");
    static const char *const parts[] = { "tables", "mirrors", "masses", "step", "copies",
                                         "sequences", "scratch" };
    int64_t sum = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) sum += number(beside, parts[i]);
    SF_CHECK_INT(number(beside, "total"), sum);
    SF_CHECK_INT(sum, sf_cache_bytes_sum(&rank->cache));
    SF_CHECK_INT(sf_json_count(member(json, "layers")), 2);
    SF_CHECK_INT(sf_json_count(member(json, "kv_heads")), rank->share.layer_count);
    const struct sf_json *at = member(json, "kv_bytes_at_len");
    SF_CHECK_INT(sf_json_count(at), 3);         /* 1024, 2048, 3000 */
    int64_t lo = -1, hi = -2;
    SF_CHECK(sf_json_get_int(sf_json_item(member(at, "3000"), 0), &lo));
    SF_CHECK(sf_json_get_int(sf_json_item(member(at, "3000"), 1), &hi));
    SF_CHECK_INT(lo, hi);
    SF_CHECK_INT(hi, 3000 * number(json, "kv_bytes_per_token"));    /* exact cache, no copies */
    SF_CHECK(number(member(json, "kv_peak_bytes_at_len"), "2048") >= 2048
             * number(json, "kv_bytes_per_token"));
}

static void json_form(void)
{
    struct made m;
    char *text = NULL;
    struct sf_json *root = NULL;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 2, 2, 1, 2, 4096 * MIB, "scheduler: {max_model_len: 3000}\n"));
    SF_MUST(sf_launch_plan_json(&m.plan, &m.cfg, m.model, &text));
    SF_MUST(sf_json_parse(text, strlen(text), 1 << 20, &root));
    SF_CHECK_INT(sf_json_type(member(root, "fits")), SF_JSON_TRUE);
    SF_CHECK_INT(sf_json_type(member(root, "reason")), SF_JSON_NULL);
    const struct sf_json *ranks = member(root, "ranks"), *comm = member(root, "comm");
    SF_CHECK_INT(sf_json_count(ranks), 4);
    for (int32_t r = 0; r < 4; r++)
        check_rank_json(sf_json_item(ranks, (size_t)r), &m.plan.rank[r]);
    SF_CHECK_INT(sf_json_type(member(root, "groups")), SF_JSON_ARRAY);
    SF_CHECK(number(comm, "tp_bytes_per_token") > 0);
    SF_CHECK_INT(number(comm, "pp_bytes_per_token"), 576 * 4);
    SF_CHECK(number(comm, "cross_node_bytes_per_token") >= 576 * 4);
    SF_CHECK_INT(sf_json_count(member(comm, "per_method")), 0);
    check_traffic_json(comm);
    const struct sf_json *at = member(member(root, "capacity"), "max_num_seqs_at_len");
    SF_CHECK_INT(sf_json_count(at), 3);
    SF_CHECK(number(at, "1024") >= number(at, "3000"));
    double ratio = 0;
    SF_CHECK(sf_json_get_real(member(root, "kv_ratio"), &ratio));
    SF_CHECK_NEAR(ratio, 1, 0);
    SF_CHECK_INT(sf_json_type(member(root, "kv_bound")),
                 number(at, "3000") < 256 ? SF_JSON_TRUE : SF_JSON_FALSE);
    sf_json_free(root);
    free(text);
    SF_CHECK_OK(sf_launch_plan_text(&m.plan, &m.cfg, m.model, &text));
    SF_CHECK(strstr(text, "fits       yes") != NULL);
    free(text);
    drop(&m);
}

/* A window keeps 4 + 256 slots of a lane, whatever the length. */
static void window_shrinks_the_cache(void)
{
    struct made m;
    struct sf_plan_costs costs;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 2, 1, 1, 1, 4096 * MIB,
                 "kv_cache: {methods: [{name: window, recent_tokens: 256}]}\n"));
    SF_MUST(sf_plan_costs_make(&m.plan, &m.cfg.kv.stack, &costs));
    SF_CHECK_NEAR(sf_plan_ratio(&costs), 260.0 / 8192, 0.001);
    sf_plan_costs_free(&costs);
    drop(&m);
}

/* Of 1,024 tokens, a quarter of 4,096, razor_attention keeps 4 sinks and 64 newest, and one slot in
 * f32 for the rest; all heads of the first five layers keep everything, so they count as before.
 * Where long sequences make up most of what a step reads, the cut goes where the bytes are. */
#define FIRST_FIVE "model: {dtype: bf16}\nscheduler: {max_num_seqs: 512, max_model_len: 4096}\n"   \
                   "kv_cache: {methods: [{name: razor_attention, min_window_tokens: 64,"           \
                   " window_divisor: 50, retrieval_heads: [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1],"\
                   " [1, 2], [2, 0], [2, 1], [2, 2], [3, 0], [3, 1], [3, 2], [4, 0], [4, 1],"      \
                   " [4, 2]]}]}\n"
static void stages_follow_what_is_stored(void)
{
    const double weights = (9 * 128 + 3 * 128 + 3 * 1536) * 576.0 * 2, slot = 128 * 2 + 8;
    const double exact = 512 / 4 * 1024.0 * 3 * 128 * 2, kept = 68 * slot + 128 * 4 + 8;
    struct made m;
    double cost[30], head, expected[30], share = kept / (1024 * slot);
    int32_t count[2];
    char *text = NULL;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    SF_MUST(make(&m, 1, 2, 1, 1, 40960 * MIB, FIRST_FIVE));
    SF_MUST(sf_layer_costs(sf_model_desc(m.model), &m.plan, &m.plan.setup, NULL, 2, cost, &head));
    for (int32_t i = 0; i < 30; i++) SF_CHECK_NEAR(cost[i], weights + exact, 1);
    SF_MUST(sf_layer_costs(sf_model_desc(m.model), &m.plan, &m.plan.setup, &m.cfg.kv.stack, 2, cost,
                           &head));
    for (int32_t i = 0; i < 30; i++) {
        expected[i] = weights + exact * (i < 5 ? 1 : share);
        SF_CHECK_NEAR(cost[i], expected[i], 1);
    }
    SF_MUST(sf_cut_stages(expected, 30, head, 2, count));
    SF_CHECK_INT(m.plan.rank[0].share.layer_count, count[0]);
    SF_CHECK(count[0] < 8);             /* five full layers are dearer than 20 cut ones */
    SF_MUST(sf_launch_plan_text(&m.plan, &m.cfg, m.model, &text));
    SF_CHECK(strstr(text, "cut as for the exact cache (1") != NULL);
    SF_CHECK(strstr(text, "(exact cache ") != NULL);
    free(text);
    drop(&m);
}

/* ---- placement ------------------------------------------------------------------------------- */
#define RAZOR "kv_cache: {methods: [{name: razor_attention, min_window_tokens: 64," \
              " window_divisor: 50, retrieval_heads: [[0, 0], [1, 0], [1, 1], [4, 1], [9, 0]," \
              " [9, 2], [16, 0], [17, 1], [20, 0], [20, 1], [26, 1], [29, 0]]}]}\n"

/* Fullest / mean over the tensor ranks of the worst stage, from the bytes that are foretold. */
static double fullest_to_mean(const struct made *m)
{
    double worst = 0;
    for (int32_t s = 0; s < m->plan.pipeline; s++) {
        double most = 0, sum = 0;
        for (int32_t t = 0; t < m->plan.tensor; t++) {
            struct sf_cost cost = { 0 };
            const struct sf_plan_rank *rank = &m->plan.rank[s * m->plan.tensor + t];
            SF_CHECK_OK(sf_account_sequence(&m->plan.setup, &m->cfg.kv.stack, &rank->lanes,
                                            m->plan.kv_dtype, 8192, 8192, &cost));
            most = fmax(most, (double)cost.bytes_hi);
            sum += (double)cost.bytes_hi;
        }
        worst = fmax(worst, most * m->plan.tensor / sum);
    }
    return worst;
}

/* The same figures in the JSON form. */
static void check_imbalance(const struct made *m, const struct sf_plan_level *identity,
                            const struct sf_plan_level *placed)
{
    static const char *const keys[] = { "identity", "placed" };
    const struct sf_plan_level *const levels[] = { identity, placed };
    char *text = NULL;
    struct sf_json *root = NULL;
    SF_MUST(sf_launch_plan_json(&m->plan, &m->cfg, m->model, &text));
    SF_MUST(sf_json_parse(text, strlen(text), 1 << 20, &root));
    const struct sf_json *imbalance = member(root, "imbalance");
    for (int i = 0; i < 2; i++) {
        double memory = 0, layers = 0;
        SF_CHECK(sf_json_get_real(member(member(imbalance, "memory"), keys[i]), &memory));
        SF_CHECK(sf_json_get_real(member(member(imbalance, "layers"), keys[i]), &layers));
        SF_CHECK_NEAR(memory, levels[i]->memory, 0);
        SF_CHECK_NEAR(layers, levels[i]->layers, 0);
    }
    sf_json_free(root);
    free(text);
}

static void check_placed(int32_t tensor, int32_t pipeline, double level_most)
{
    struct made m, blocks;
    struct sf_plan_level identity, placed, same;
    char *text = NULL, want[64];
    SF_MUST(make(&m, tensor, pipeline, 1, 1, 4096 * MIB, RAZOR));
    SF_MUST(make(&blocks, tensor, pipeline, 1, 1, 4096 * MIB, RAZOR));
    blocks.cfg.parallel.placement = SF_PLACE_IDENTITY;
    sf_launch_plan_free(&blocks.plan);
    SF_MUST(sf_launch_plan_make(&blocks.cfg, blocks.model, &blocks.cluster, &blocks.plan));
    const struct sf_model_desc *desc = sf_model_desc(m.model);
    SF_MUST(sf_plan_level(&m.plan, desc, SF_PLACE_IDENTITY, &identity));
    SF_MUST(sf_plan_level(&m.plan, desc, SF_PLACE_BALANCED, &placed));
    SF_MUST(sf_plan_level(&blocks.plan, desc, SF_PLACE_IDENTITY, &same));
    SF_CHECK_NEAR(identity.memory, fullest_to_mean(&blocks), 1e-12);
    SF_CHECK_NEAR(placed.memory, fullest_to_mean(&m), 1e-12);
    SF_CHECK_NEAR(same.memory, identity.memory, 0);
    SF_CHECK(placed.memory < level_most && placed.memory < identity.memory);
    SF_CHECK(placed.layers >= placed.memory && placed.layers <= identity.layers + 1e-12);
    for (int32_t first = 0; first < tensor * pipeline; first += tensor)
        for (int32_t i = 0; i < m.plan.rank[first].share.layer_count; i++)
            check_layer(&m.plan, desc, first, i);
    SF_MUST(sf_launch_plan_text(&m.plan, &m.cfg, m.model, &text));
    snprintf(want, sizeof want, ": %.3f identity, %.3f as placed\n", identity.memory,
             placed.memory);
    SF_CHECK(strstr(text, want) != NULL);
    snprintf(want, sizeof want, ": %.3f identity, %.3f as placed\n", identity.layers,
             placed.layers);
    SF_CHECK(strstr(text, want) != NULL);
    free(text);
    check_imbalance(&m, &identity, &placed);
    check_imbalance(&blocks, &identity, &identity);
    drop(&blocks);
    drop(&m);
}

static void dear_heads_are_spread(void)
{
    struct made m;
    char *text = NULL;
    if (sf_test_model() == NULL) SF_SKIP("the model is not there");
    check_placed(2, 1, 1.01);
    check_placed(3, 1, 1.03);
    check_placed(2, 2, 1.15);
    /* Costs are the bytes of a lane: 8,192 slots, or sinks, window, and one for the rest. */
    SF_MUST(make(&m, 2, 1, 1, 1, 4096 * MIB, RAZOR));
    SF_CHECK_NEAR(m.plan.placing.head_cost[4 * 3 + 1], 8192 * (128 * 2 + 8), 0);
    SF_CHECK(m.plan.placing.head_cost[4 * 3] < 8192 / 40 * (128 * 2 + 8));
    drop(&m);
    /* The exact cache: nothing to say. */
    SF_MUST(make(&m, 2, 1, 1, 1, 4096 * MIB, ""));
    for (int32_t i = 0; i < m.plan.setup.lanes; i++)
        SF_CHECK_NEAR(m.plan.placing.head_cost[i], 8192 * (128 * 2 + 8), 0);
    SF_MUST(sf_launch_plan_text(&m.plan, &m.cfg, m.model, &text));
    SF_CHECK(strstr(text, "as placed") == NULL);
    free(text);
    drop(&m);
}

/* block_size auto: as small as every tier of the methods allows. */
static void blocks_hold_all_tiers(void)
{
    static const struct { const char *kv; int32_t slots; } cases[] = {
        { "kv_cache: {methods: []}", 16 },
        { "kv_cache: {methods: [{name: razor_attention, retrieval_heads: [[0, 0]]}]}", 32 },
        { "kv_cache: {dtype: f32, methods: [{name: razor_attention, retrieval_heads: []}]}", 16 },
        { "kv_cache: {methods: [{name: razor_attention, retrieval_heads: [],"
          " use_compensation_token: false}]}", 16 },
        { "kv_cache: {block_size: 64, methods: [{name: razor_attention, retrieval_heads: []}]}",
          64 },
    };
    struct made m;
    if (sf_test_model() == NULL) SF_SKIP("no model");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        SF_MUST(make(&m, 1, 1, 1, 1, 4096 * MIB, cases[i].kv));
        SF_CHECK_INT(m.plan.page_slots, cases[i].slots);
        drop(&m);
    }
    SF_CHECK_FAILS(make(&m, 1, 1, 1, 1, 4096 * MIB, "kv_cache: {block_size: 16, methods: [{name:"
                        " razor_attention, retrieval_heads: []}]}"), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), "kv_cache.block_size 16 is too small") != NULL);
    drop(&m);
}

static const struct sf_test tests[] = {
    { "cuts_are_best", cuts_are_best },
    { "cuts_count_the_head", cuts_count_the_head },
    { "cuts_count_the_cache", cuts_count_the_cache },
    { "layouts", layouts },
    { "idle_cores_factor", idle_cores_factor },
    { "room_beside_gives_way", room_beside_gives_way },
    { "halves_are_level", halves_are_level },
    { "impossible_layouts", impossible_layouts },
    { "keeps_listed_groups_whole", keeps_listed_groups_whole },
    { "crosses_nodes_when_allowed", crosses_nodes_when_allowed },
    { "chooses_the_arithmetic", chooses_the_arithmetic },
    { "plans_int8", plans_int8 },
    { "says_what_would_fit", says_what_would_fit },
    { "sizes_the_pool", sizes_the_pool },
    { "json_form", json_form },
    { "stages_follow_what_is_stored", stages_follow_what_is_stored },
    { "dear_heads_are_spread", dear_heads_are_spread },
    { "window_shrinks_the_cache", window_shrinks_the_cache },
    { "blocks_hold_all_tiers", blocks_hold_all_tiers },
    { NULL, NULL }
};
SF_TEST_MAIN("plan", tests)
