/* coordinator/bench_roof.c: what the machine would allow a run of `sheaf bench` at best.
 *
 *   of each rank, measured (worker/roof.c)    B bytes read, F operations, a second
 *   of each rank, by the plan                 W bytes of weights, of which a stage reads all in
 *                                             every step; K bytes of caches; f operations a row
 *
 *   prompts    max over ranks of  max(rows f / F, steps W / B)
 *   a round    max over ranks of  max(batch f / F, (micro-batches W + K) / B)
 *
 * A round is one token for each sequence that runs.  What ranks tell each other, edits, and all
 * that is neither a product nor attention cost nothing here: that is why it is a roof.  Attention
 * counts at the rate of the products; with model.compute int8 it cannot reach that, so the roof is
 * rather too high. */
#include <math.h>
#include <stdlib.h>

#include "coordinator/bench_impl.h"

/* ---- what has to be done --------------------------------------------------------------------- */
static double mat_flops(const struct sf_launch_plan *plan, const struct sf_model_desc *desc,
                        const struct sf_share *share, enum sf_mat_kind kind, int32_t local)
{
    struct sf_mat_shape shape;
    sf_share_mat(desc, share, kind, local, plan->dtype, 0, SF_FIXED_ROWS, &shape);
    return 2.0 * shape.cols * shape.k_slice * shape.slices;
}

struct row {                            /* operations for one row on one rank */
    double layers, head;
    double slot;                        /* attention, for each slot of context */
};

static struct row row_of(const struct sf_launch_plan *plan, const struct sf_model_desc *desc,
                         const struct sf_share *share)
{
    struct row row = {0};
    for (int32_t i = 0; i < share->layer_count; i++) {
        const struct sf_layer *layer = &plan->setup.layer[share->layer_first + i];
        for (int kind = SF_MAT_QKV; kind <= SF_MAT_DOWN; kind++)
            row.layers += mat_flops(plan, desc, share, (enum sf_mat_kind)kind, i);
        row.slot += 2.0 * sf_share_q_heads(share, i) * (layer->k_dim + layer->v_dim);
    }
    if (share->last_stage) row.head = mat_flops(plan, desc, share, SF_MAT_HEAD, 0);
    return row;
}

void bench_need_make(const struct sf_launch_plan *plan, const struct sf_model_desc *desc,
                     const struct bench_run *run, struct bench_need *need_out)
{
    double groups = plan->data, prompts = run->prompts / groups;
    double input = (double)run->input_tokens / groups;
    double mean_input = (double)run->input_tokens / run->prompts;
    double mean_output = (double)run->output_tokens / run->prompts;
    double batch = (run->prompts < run->seqs_max ? run->prompts : run->seqs_max) / groups;
    double stored = run->kv.bytes_exact > 0
                        ? (double)run->kv.bytes_stored / (double)run->kv.bytes_exact : 1;
    double context = (mean_input + mean_output / 2) * stored;
    for (int32_t r = 0; r < plan->ranks; r++) {
        const struct sf_plan_rank *rank = &plan->rank[r];
        struct row row = row_of(plan, desc, &rank->share);
        double weights = (double)rank->weight_bytes, steps = ceil(input / plan->rows_max);
        need_out[r] = (struct bench_need){
            .prompt_bytes = steps * weights,
            .prompt_flops = input * (row.layers + row.slot * mean_input / 2) + prompts * row.head,
            .round_bytes = plan->pipeline * weights +
                           batch * context * (double)rank->kv_bytes_per_token,
            .round_flops = batch * (row.layers + row.head + row.slot * context)};
    }
}

/* ---- how fast it could be -------------------------------------------------------------------- */
static double greater(double a, double b) { return a > b ? a : b; }

struct bench_roof bench_roof_of(const struct bench_rates *rates, const struct bench_run *run)
{
    struct bench_roof roof = {NAN, NAN, NAN};
    double prompts = 0, round = 0;
    if (rates == NULL || rates->ranks != run->ranks || run->need == NULL) return roof;
    for (int32_t r = 0; r < run->ranks; r++) {
        const struct bench_need *need = &run->need[r];
        double read = rates->read[r], flop = rates->flop[r];
        if (!(read > 0) || !(flop > 0)) return roof;
        prompts = greater(prompts, greater(need->prompt_bytes / read, need->prompt_flops / flop));
        round = greater(round, greater(need->round_bytes / read, need->round_flops / flop));
    }
    double batch = run->prompts < run->seqs_max ? run->prompts : run->seqs_max;
    double rounds = (double)(run->output_tokens - run->prompts) / batch;
    roof.prefill = (double)run->input_tokens / prompts;
    if (rounds > 0) roof.decode = batch / round;
    roof.output = (double)run->output_tokens / (prompts + rounds * round);
    return roof;
}

double bench_rate_sum(const double *rate, int32_t ranks)
{
    double sum = 0;
    for (int32_t r = 0; r < ranks; r++) {
        if (!(rate[r] > 0)) return NAN;
        sum += rate[r];
    }
    return sum;
}
