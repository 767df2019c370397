/* coordinator/plan_traffic.c: bytes between ranks (plan_traffic.h).
 *
 *   rank 0 --step--> every other rank of a group         rank 0 <--report-- each of them
 *   stage s, tensor rank t --rows--> stage s + 1, t      last stage, t = 0 --tokens--> stage 0
 *   tensor group: leaves and sums, best logits           last stage, t = 0 --result--> rank 0
 *
 * Control messages are of variable length: their size is that of made-up ones of middling numbers,
 * packed as a run packs them. */
#include "coordinator/plan_traffic.h"

#include "base/json.h"
#include "coordinator/sched.h"
#include "comm/comm.h"
#include "proto/wire.h"

/* ---- sums ------------------------------------------------------------------------------------ */
/* A sum of `leaves` leaves over p ranks: each leaf goes to the p - 1 owners of other columns, then
 * each rank reads the columns that it did not add up itself. */
static int64_t sum_bytes(int64_t leaves, int64_t ranks, int64_t cols)
{
    if (ranks == 1) return 0;
    return (leaves * cols * (ranks - 1) / ranks + (ranks - 1) * cols) * (int64_t)sizeof(float);
}

int64_t sf_plan_layer_sums(const struct sf_launch_plan *plan, const struct sf_model_desc *desc,
                           int32_t layer)
{
    const int64_t p = plan->tensor;
    const struct sf_share *share = &plan->rank[0].share;        /* its chunks: of every layer */
    return sum_bytes(plan->fixed ? desc->layer[layer].q_heads : p, p, desc->d_model)
           + sum_bytes(plan->fixed ? share->chunks : p, p, desc->d_model);
}

/* The best logit of each slice of the head, with its token, gathered on rank 0 and told to all. */
static int64_t best_bytes(int64_t ranks)
{
    return (ranks - 1) * (1 + ranks) * (int64_t)(sizeof(float) + sizeof(int32_t));
}

/* ---- sizes of control messages --------------------------------------------------------------- */
enum { ITEMS = 32, ROWS = 128, TOKENS = 4 * ROWS };     /* of the made-up messages, at most */
struct control {                        /* bytes */
    int64_t token, item;                /* a prompt's token id; an answer's row */
    int64_t step;                       /* with the item of one piece of a prompt, no token */
    int64_t sequence;                   /* one more such item, opening, closing */
    int64_t sample, result, report;     /* a sample; a result without samples; a receipt's */
};

static uint64_t made_name(int32_t number)
{
    return UINT64_C(1000) << SF_SEQ_SLOT_BITS | (uint64_t)number;
}

/* rows 0: items that feed a sample. */
static sf_status pack_step(const struct sf_launch_plan *plan, int32_t vocab, int32_t items,
                           int32_t rows, int32_t opens, int64_t *bytes_out)
{
    struct sf_wire_item item[ITEMS];
    int32_t token[TOKENS];
    uint64_t close = made_name(0);
    int32_t length = plan->tokens_max;
    struct sf_wire_open open = {.seq = made_name(ITEMS), .prompt = (length + 1) / 2,
                                .tokens_max = length, .reused_first = -1,
                                .sampling = {.top_p = 1, .repetition = 1}};
    SF_ASSERT(items <= ITEMS && items * rows <= TOKENS);
    for (int32_t i = 0; i < items * rows; i++)
        token[i] = (int32_t)((int64_t)vocab * i / (items * rows));
    for (int32_t i = 0; i < items; i++)
        item[i] = (struct sf_wire_item){.seq = made_name(i), .pos = length / 2,
                                        .rows = rows > 0 ? rows : 1, .next = -1,
                                        .token_first = rows > 0 ? i * rows : -1,
                                        .logits = SF_LOGITS_SAMPLE};
    const struct sf_wire_step step = {.id = 1000, .batch = plan->micro_batches - 1,
                                      .close = &close, .closes = opens, .open = &open,
                                      .opens = opens, .item = item, .items = items,
                                      .token = token, .tokens = items * rows};
    struct sf_buffer packed = {0};
    SF_TRY(sf_wire_pack_step(&step, &packed));
    *bytes_out = (int64_t)packed.count;
    sf_buffer_free(&packed);
    return SF_OK;
}

static sf_status pack_result(const struct sf_launch_plan *plan, int32_t vocab, int32_t samples,
                             int64_t *bytes_out)
{
    struct sf_wire_sample sample[ITEMS];
    for (int32_t i = 0; i < samples; i++)
        sample[i] = (struct sf_wire_sample){made_name(i), (int32_t)((int64_t)vocab * i / samples)};
    const struct sf_wire_result result = {.step = 1000, .batch = plan->micro_batches - 1,
                                          .sample = sample, .samples = samples};
    struct sf_buffer packed = {0};
    SF_TRY(sf_wire_pack_result(&result, &packed));
    *bytes_out = (int64_t)packed.count;
    sf_buffer_free(&packed);
    return SF_OK;
}

static sf_status pack_report(const struct sf_launch_plan *plan, int64_t *bytes_out)
{
    const struct sf_plan_rank *last = &plan->rank[plan->tensor * plan->pipeline - 1];
    int64_t bytes = last->kv_bytes_per_token * (plan->tokens_max / 2);
    char none[] = "";
    struct sf_wire_receipt receipt = {.seq = made_name(0), .bytes_exact = bytes,
                                      .bytes_stored = bytes, .bytes_peak = bytes};
    const struct sf_wire_report report = {.rank = last->rank, .text = none, .step = 1000,
                                          .pages_free = last->pages, .pages = last->pages,
                                          .kv_bytes_stored = bytes, .kv_bytes_exact = bytes,
                                          .receipt = &receipt, .receipts = 1};
    struct sf_buffer packed = {0};
    SF_TRY(sf_wire_pack_report(&report, &packed));
    *bytes_out = (int64_t)packed.count;
    sf_buffer_free(&packed);
    return SF_OK;
}

/* What grows with a count is the slope between two sizes; the rest is what remains. */
static sf_status measure_control(const struct sf_launch_plan *plan, int32_t vocab,
                                 struct control *out)
{
    int64_t few, many, one, two;
    struct control c;
    SF_TRY(pack_step(plan, vocab, 1, TOKENS / 2, 0, &few));
    SF_TRY(pack_step(plan, vocab, 1, TOKENS, 0, &many));
    c.token = (many - few + TOKENS / 4) / (TOKENS / 2);
    SF_TRY(pack_step(plan, vocab, 1, 1, 0, &one));
    c.step = one - c.token;
    SF_TRY(pack_step(plan, vocab, ITEMS / 2, 0, 0, &few));
    SF_TRY(pack_step(plan, vocab, ITEMS, 0, 0, &many));
    c.item = (many - few) / (ITEMS / 2);
    SF_TRY(pack_step(plan, vocab, 1, 2 * ROWS, 0, &one));
    SF_TRY(pack_step(plan, vocab, 2, ROWS, 1, &two));
    c.sequence = two - one;
    SF_TRY(pack_result(plan, vocab, ITEMS / 2, &few));
    SF_TRY(pack_result(plan, vocab, ITEMS, &many));
    c.sample = (many - few) / (ITEMS / 2);
    c.result = many - c.sample * ITEMS;
    SF_TRY(pack_report(plan, &c.report));
    *out = c;
    return SF_OK;
}

/* ---- who tells whom -------------------------------------------------------------------------- */
struct tally { const struct sf_launch_plan *plan; struct sf_plan_traffic *sum; };

static void tell(const struct tally *t, int32_t from, int32_t to, enum sf_plan_per per,
                 int64_t bytes)
{
    if (from == to) return;
    t->sum->per[per].all.control += bytes;
    if (t->plan->rank[from].node != t->plan->rank[to].node)
        t->sum->per[per].cross_node.control += bytes;
}

/* Bytes of a tensor group's sums; every pair of ranks has the same share of them. */
static void add_up(const struct tally *t, int32_t first, enum sf_plan_per per, int64_t bytes)
{
    int64_t across = 0, ranks = t->plan->tensor;
    const struct sf_plan_rank *rank = &t->plan->rank[first];
    for (int32_t a = 0; a < ranks; a++)
        for (int32_t b = 0; b < ranks; b++) across += rank[a].node != rank[b].node;
    t->sum->per[per].all.sums += bytes;
    if (across > 0) t->sum->per[per].cross_node.sums += bytes * across / (ranks * (ranks - 1));
}

/* What each token of one group costs, whichever it is. */
static void add_rows(const struct tally *t, const struct sf_model_desc *desc, int32_t group_first,
                     enum sf_plan_per per)
{
    const struct sf_launch_plan *plan = t->plan;
    const int64_t p = plan->tensor, row = (int64_t)desc->d_model * (int64_t)sizeof(float);
    for (int32_t s = 0; s < plan->pipeline; s++) {
        int32_t first = group_first + s * plan->tensor;
        const struct sf_share *share = &plan->rank[first].share;
        for (int32_t i = 0; i < share->layer_count; i++)
            add_up(t, first, per, sf_plan_layer_sums(plan, desc, share->layer_first + i));
        if (s == 0) continue;
        /* A row enters a stage in column blocks, which its tensor ranks put together. */
        add_up(t, first, per, sum_bytes(p, p, desc->d_model));
        t->sum->per[per].all.stages += row;
        for (int32_t r = first; r < first + plan->tensor; r++)
            if (plan->rank[r].node != plan->rank[r - plan->tensor].node)
                t->sum->per[per].cross_node.stages += row / p;
    }
}

static void add_control(const struct tally *t, const struct control *c, int32_t group_first,
                        int64_t life_bytes)
{
    const struct sf_launch_plan *plan = t->plan;
    int32_t ranks = plan->tensor * plan->pipeline, last = group_first + ranks - plan->tensor;
    for (int32_t r = group_first; r < group_first + ranks; r++) {
        tell(t, 0, r, SF_PER_PROMPT_TOKEN, c->token);
        tell(t, 0, r, SF_PER_ANSWER_TOKEN, c->item);
        tell(t, 0, r, SF_PER_STEP, c->step);
        tell(t, 0, r, SF_PER_SEQUENCE, c->sequence);
        tell(t, r, 0, SF_PER_SEQUENCE, c->report);
        tell(t, 0, r, SF_PER_SECOND, life_bytes);
        tell(t, r, 0, SF_PER_SECOND, life_bytes);
    }
    /* The first sample comes with the prompt's last token, the others with the answer's. */
    const enum sf_plan_per with[] = {SF_PER_ANSWER_TOKEN, SF_PER_SEQUENCE};
    for (int i = 0; i < 2; i++) {
        tell(t, last, 0, with[i], c->sample);
        for (int32_t r = 0; r < plan->tensor; r++)
            tell(t, last, group_first + r, with[i], c->sample);
        add_up(t, last, with[i], best_bytes(plan->tensor));
    }
    tell(t, last, 0, SF_PER_STEP, c->result);
    for (int32_t r = 0; r < plan->tensor; r++)
        tell(t, last, group_first + r, SF_PER_STEP, c->result);
}

static void divide(struct sf_plan_flow *flow, int64_t by)
{
    flow->stages = (flow->stages + by / 2) / by;
    flow->sums = (flow->sums + by / 2) / by;
    flow->control = (flow->control + by / 2) / by;
}

sf_status sf_plan_comm(const struct sf_launch_plan *plan, const struct sf_config *cfg,
                       const struct sf_model_desc *desc, struct sf_plan_traffic *out)
{
    struct sf_plan_traffic sum = {0};
    struct control control;
    const struct tally tally = {plan, &sum};
    int64_t life = sf_comm_life_bytes(1000, (int64_t)(cfg->run.rank_timeout_s * 1000.0));
    SF_TRY(measure_control(plan, desc->vocab, &control));
    for (int32_t g = 0; g < plan->data; g++) {
        int32_t first = g * plan->tensor * plan->pipeline;
        add_rows(&tally, desc, first, SF_PER_PROMPT_TOKEN);
        add_rows(&tally, desc, first, SF_PER_ANSWER_TOKEN);
        add_control(&tally, &control, first, life);
    }
    /* Work is of one group or the other; signs of life are of all at once. */
    for (int i = 0; i < SF_PERS; i++) {
        if (i == SF_PER_SECOND) continue;
        divide(&sum.per[i].all, plan->data);
        divide(&sum.per[i].cross_node, plan->data);
    }
    const struct sf_plan_flow *prompt = &sum.per[SF_PER_PROMPT_TOKEN].all;
    const struct sf_plan_flow *across = &sum.per[SF_PER_PROMPT_TOKEN].cross_node;
    sum.tp = prompt->sums;
    sum.pp = prompt->stages;
    sum.cross_node = across->stages + across->sums
                     + (across->control + sum.per[SF_PER_ANSWER_TOKEN].cross_node.control + 1) / 2;
    *out = sum;
    return SF_OK;
}

/* ---- in two forms ---------------------------------------------------------------------------- */
static const char *const keys[SF_PERS] = {"prompt_token", "answer_token", "step", "sequence",
                                          "second"};
static const char *const words[SF_PERS] = {"token of a prompt", "token of an answer", "step",
                                           "sequence", "second"};

static struct sf_json *flow_json(const struct sf_plan_flow *flow, sf_status *status)
{
    struct sf_json *json = sf_json_new(SF_JSON_OBJECT);
    sf_json_put(status, json, "stages", sf_json_new_int(flow->stages));
    sf_json_put(status, json, "sums", sf_json_new_int(flow->sums));
    sf_json_put(status, json, "control", sf_json_new_int(flow->control));
    return json;
}

struct sf_json *sf_plan_comm_json(const struct sf_launch_plan *plan, const struct sf_config *cfg,
                                  const struct sf_model_desc *desc, sf_status *status)
{
    struct sf_plan_traffic traffic;
    struct sf_json *comm = sf_json_new(SF_JSON_OBJECT), *per = sf_json_new(SF_JSON_OBJECT);
    struct sf_json *layers = sf_json_new(SF_JSON_ARRAY);
    sf_status made = sf_plan_comm(plan, cfg, desc, &traffic);
    if (made != SF_OK) traffic = (struct sf_plan_traffic){0};
    if (*status == SF_OK) *status = made;
    for (int32_t l = 0; l < desc->layers; l++) {
        int64_t bytes = sf_plan_layer_sums(plan, desc, l);
        sf_status pushed = sf_json_append(layers, sf_json_new_int(bytes));
        if (*status == SF_OK) *status = pushed;
    }
    for (int i = 0; i < SF_PERS; i++) {
        struct sf_json *one = flow_json(&traffic.per[i].all, status);
        sf_json_put(status, one, "cross_node", flow_json(&traffic.per[i].cross_node, status));
        sf_json_put(status, per, keys[i], one);
    }
    sf_json_put(status, comm, "tp_bytes_per_token", sf_json_new_int(traffic.tp));
    sf_json_put(status, comm, "pp_bytes_per_token", sf_json_new_int(traffic.pp));
    sf_json_put(status, comm, "cross_node_bytes_per_token", sf_json_new_int(traffic.cross_node));
    sf_json_put(status, comm, "per_method", sf_json_new(SF_JSON_OBJECT));
    sf_json_put(status, comm, "tp_bytes_per_layer", layers);
    sf_json_put(status, comm, "bytes_per", per);
    return comm;
}

sf_status sf_plan_comm_text(const struct sf_launch_plan *plan, const struct sf_config *cfg,
                            const struct sf_model_desc *desc, FILE *out)
{
    struct sf_plan_traffic traffic;
    SF_TRY(sf_plan_comm(plan, cfg, desc, &traffic));
    fprintf(out, "traffic    %lld bytes a token inside tensor groups, %lld between stages, %lld"
                 " between nodes\n", (long long)traffic.tp, (long long)traffic.pp,
            (long long)traffic.cross_node);
    if (plan->ranks == 1) return SF_OK;
    fprintf(out, "           sums: %lld bytes a token in layer 0; rows between stages: %d x 4"
                 " bytes\n", (long long)sf_plan_layer_sums(plan, desc, 0), desc->d_model);
    fprintf(out, "           bytes of a             stages     sums  control   between nodes:"
                 " stages     sums  control\n");
    for (int i = 0; i < SF_PERS; i++) {
        const struct sf_plan_flow *all = &traffic.per[i].all, *node = &traffic.per[i].cross_node;
        fprintf(out, "           %-18s %10lld %8lld %8lld %22lld %8lld %8lld\n", words[i],
                (long long)all->stages, (long long)all->sums, (long long)all->control,
                (long long)node->stages, (long long)node->sums, (long long)node->control);
    }
    return SF_OK;
}
