/* coordinator/plan_traffic.h: what the ranks of a layout will say to each other, in bytes, and what
 * of it leaves a node.
 *
 *   a run's bytes = prompt tokens x PROMPT_TOKEN + (answer tokens - sequences) x ANSWER_TOKEN
 *                   + steps x STEP + sequences x SEQUENCE + seconds x SECOND
 *
 * (the totals of a manifest have these counts).  Payload of messages: MPI's headers, frames of the
 * network, what is said at launch (some tens of KiB) and what a record asks for beside its tokens
 * (log probabilities, biases, blocks of shared prompts) come on top. */
#ifndef SHEAF_COORDINATOR_PLAN_TRAFFIC_H
#define SHEAF_COORDINATOR_PLAN_TRAFFIC_H
#include <stdint.h>
#include <stdio.h>
#include "coordinator/plan.h"
SF_C_BEGIN

struct sf_plan_flow {                   /* bytes by what they are */
    int64_t stages;                     /* rows from a stage to the next: d_model x f32 each */
    int64_t sums;                       /* of tensor groups: leaves, sums, best logits */
    int64_t control;                    /* steps, samples, receipts, signs of life */
};
enum sf_plan_per { SF_PER_PROMPT_TOKEN, SF_PER_ANSWER_TOKEN, SF_PER_STEP, SF_PER_SEQUENCE,
                   SF_PER_SECOND, SF_PERS };
struct sf_plan_traffic {
    /* Payload of one token fed: in sums, between stages; between nodes with its control, halfway
     * between a prompt's token and an answer's. */
    int64_t tp, pp, cross_node;
    /* Summed over the ranks of a data-parallel group, the mean of the groups; cross_node: what of
     * it goes from one node to another. */
    struct { struct sf_plan_flow all, cross_node; } per[SF_PERS];
};
sf_status sf_plan_comm(const struct sf_launch_plan *, const struct sf_config *,
                       const struct sf_model_desc *, struct sf_plan_traffic *out);
/* Of one token in the sums of one layer (attention's and the feed-forward's). */
int64_t   sf_plan_layer_sums(const struct sf_launch_plan *, const struct sf_model_desc *,
                             int32_t layer);
/* `comm` of interface.md section 7 and, beside the keys there,
 *   tp_bytes_per_layer   [layers] sf_plan_layer_sums
 *   bytes_per            prompt_token, answer_token, step, sequence, second: each has stages, sums,
 *                        control and cross_node, which has the same three of what leaves a node */
struct sf_json;
struct sf_json *sf_plan_comm_json(const struct sf_launch_plan *, const struct sf_config *,
                                  const struct sf_model_desc *, sf_status *status);
sf_status sf_plan_comm_text(const struct sf_launch_plan *, const struct sf_config *,
                            const struct sf_model_desc *, FILE *out);

SF_C_END
#endif
