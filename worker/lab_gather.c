/* worker/lab_gather.c: the parts of all ranks come together on rank 0.
 *
 *   rank r                              rank 0
 *   DONE: its status and receipt   ->   from all, in order of rank
 *                                  <-   ORDER: a layer
 *   PART: outputs and lanes        ->   unpacked into the result; layer by layer, rank by rank
 *                                  <-   ORDER: no layer, and how it has ended
 *
 * Rank 0 asks for each part, so nobody waits with a message that is not wanted yet; and who waits,
 * does so as long as the other side shows signs of life, however long its share takes. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "worker/lab_impl.h"

enum { TAG_DONE = 1, TAG_ORDER, TAG_PART };
enum { FOREVER = 2 };                   /* of sf_comm_take: while there are signs of life */

struct done { int32_t status, reserved; struct sf_receipt receipt; };
struct order { int32_t layer, status; };        /* layer -1: the end */

/* ---- parts ----------------------------------------------------------------------------------- */

/* Of one layer of one rank:  out f32 [rows][q heads][v_dim] | of each lane that is no copy:
 * slots i32 | pos | bias | k | v | tier.  With `at` NULL nothing is written. */
static size_t put(unsigned char *at, size_t used, const void *bytes, size_t count)
{
    if (at != NULL && count > 0) memcpy(at + used, bytes, count);
    return used + count;
}

static size_t pack_part(const struct sf_lab *lab, int32_t layer, unsigned char *at)
{
    const struct sf_share *share = lab->spec.share;
    const struct sf_layer_desc *desc = &lab->desc->layer[layer];
    size_t row = (size_t)sf_share_q_heads(share, layer) * (size_t)desc->v_dim;
    size_t used = put(at, 0, lab->out[layer],
                      (size_t)lab->spec.trace->rows * row * sizeof(float));
    for (int32_t j = share->kv_ptr[layer]; j < share->kv_ptr[layer + 1]; j++) {
        const struct sf_trace_lane *lane = &lab->lane[j];
        size_t slots = (size_t)lane->slots;
        if (share->kv[j].replica > 0) continue;
        used = put(at, used, &lane->slots, sizeof lane->slots);
        used = put(at, used, lane->pos, slots * sizeof *lane->pos);
        used = put(at, used, lane->bias, slots * sizeof *lane->bias);
        used = put(at, used, lane->k, slots * (size_t)desc->k_dim * sizeof *lane->k);
        used = put(at, used, lane->v, slots * (size_t)desc->v_dim * sizeof *lane->v);
        used = put(at, used, lane->tier, slots);
    }
    return used;
}

struct reader { const unsigned char *at; size_t left; int32_t rank; };

static sf_status get(struct reader *reader, void *bytes, size_t count)
{
    if (count > reader->left)
        return SF_FAIL(SF_FORMAT, "rank %d sent a part that is too short", reader->rank);
    if (count > 0) memcpy(bytes, reader->at, count);
    reader->at += count;
    reader->left -= count;
    return SF_OK;
}

static sf_status get_lane(struct reader *reader, int32_t rows, const struct sf_layer_desc *desc,
                          struct sf_trace_lane *lane)
{
    int32_t slots;
    SF_TRY(get(reader, &slots, sizeof slots));
    if (slots < 0 || slots > rows)
        return SF_FAIL(SF_FORMAT, "rank %d sent a lane of %d slots for %d rows", reader->rank,
                       slots, rows);
    SF_TRY(sf_trace_lane_create(slots, desc, lane));
    size_t n = (size_t)slots;
    SF_TRY(get(reader, lane->pos, n * sizeof *lane->pos));
    SF_TRY(get(reader, lane->bias, n * sizeof *lane->bias));
    SF_TRY(get(reader, lane->k, n * (size_t)desc->k_dim * sizeof *lane->k));
    SF_TRY(get(reader, lane->v, n * (size_t)desc->v_dim * sizeof *lane->v));
    return get(reader, lane->tier, n);
}

/* `share`: of the rank that sent it. */
static sf_status unpack_part(const struct sf_lab *lab, const struct sf_share *share, int32_t layer,
                             struct reader *reader, struct sf_trace_result *result)
{
    const struct sf_layer_desc *desc = &lab->desc->layer[layer];
    int32_t rows = lab->spec.trace->rows, first_lane = 0;
    size_t dim = (size_t)desc->v_dim;
    for (int32_t r = 0; r < rows; r++) {
        float *row = result->out[layer] + (size_t)r * (size_t)desc->q_heads * dim;
        for (int32_t j = share->kv_ptr[layer]; j < share->kv_ptr[layer + 1]; j++)
            SF_TRY(get(reader, row + (size_t)share->kv[j].q_first * dim,
                       (size_t)share->kv[j].q_count * dim * sizeof *row));
    }
    for (int32_t l = 0; l < layer; l++) first_lane += lab->desc->layer[l].kv_heads;
    for (int32_t j = share->kv_ptr[layer]; j < share->kv_ptr[layer + 1]; j++)
        if (share->kv[j].replica == 0)
            SF_TRY(get_lane(reader, rows, desc, &result->lane[first_lane + share->kv[j].kv_head]));
    if (reader->left > 0)
        return SF_FAIL(SF_FORMAT, "rank %d sent a part that is %zu bytes too long", reader->rank,
                       reader->left);
    return SF_OK;
}

static sf_status make_part(const struct sf_lab *lab, int32_t layer, struct sf_buffer *part)
{
    SF_TRY(sf_buffer_reserve(part, pack_part(lab, layer, NULL)));
    part->count = pack_part(lab, layer, part->bytes);
    return SF_OK;
}

/* ---- other ranks ----------------------------------------------------------------------------- */

static sf_status obey(struct sf_lab *lab, sf_status mine)
{
    struct sf_comm *world = lab->spec.world;
    struct done done = { .status = (int32_t)mine, .receipt = lab->receipt };
    struct sf_buffer taken = { 0 }, part = { 0 };
    struct order order = { 0 };
    sf_status status = sf_comm_post(world, 0, TAG_DONE, &done, sizeof done);
    while (status == SF_OK) {
        status = sf_comm_take(world, 0, TAG_ORDER, FOREVER, &taken, NULL);
        if (status != SF_OK) break;
        SF_ASSERT(taken.count == sizeof order);
        memcpy(&order, taken.bytes, sizeof order);
        if (order.layer < 0) break;
        SF_ASSERT(order.layer < lab->desc->layers);
        status = make_part(lab, order.layer, &part);
        if (status != SF_OK) part.count = 0;            /* rank 0 finds it too short */
        struct sf_request *request;
        sf_status sent = sf_comm_isend(world, 0, TAG_PART, part.bytes, part.count, &request);
        if (sent == SF_OK) sent = sf_comm_wait(world, request);
        if (status == SF_OK) status = sent;
    }
    sf_buffer_free(&part);
    sf_buffer_free(&taken);
    if (status == SF_OK && order.status != SF_OK)
        status = SF_FAIL(SF_STOPPED, "another rank could not finish");
    return status;
}

/* ---- rank 0 ---------------------------------------------------------------------------------- */

static void add_receipt(const struct sf_receipt *receipt, struct sf_trace_counts *counts)
{
    counts->bytes_exact += receipt->bytes_exact;
    counts->bytes_stored += receipt->bytes_stored;
    counts->slots_evicted += receipt->slots_evicted;
    counts->slots_merged += receipt->slots_merged;
}

/* Waits for all, also where this rank or an earlier one has failed: none may be left behind. */
static sf_status take_receipts(struct sf_lab *lab, sf_status mine, struct sf_trace_counts *counts)
{
    struct sf_comm *world = lab->spec.world;
    struct sf_buffer taken = { 0 };
    sf_status status = mine, comm = SF_OK;
    if (mine == SF_OK) add_receipt(&lab->receipt, counts);
    for (int32_t r = 1; r < sf_comm_size(world) && comm == SF_OK; r++) {
        struct done done;
        comm = sf_comm_take(world, r, TAG_DONE, FOREVER, &taken, NULL);
        if (comm != SF_OK) break;
        SF_ASSERT(taken.count == sizeof done);
        memcpy(&done, taken.bytes, sizeof done);
        add_receipt(&done.receipt, counts);
        if (done.status != SF_OK && status == SF_OK)
            status = SF_FAIL(SF_STOPPED, "rank %d could not finish", r);
    }
    sf_buffer_free(&taken);
    return comm != SF_OK ? comm : status;
}

static sf_status take_part(struct sf_lab *lab, int32_t rank, const struct sf_share *share,
                           int32_t layer, struct sf_buffer *part, struct sf_trace_result *result)
{
    struct sf_comm *world = lab->spec.world;
    struct order order = { .layer = layer };
    if (rank == 0) {
        SF_TRY(make_part(lab, layer, part));
    } else {
        SF_TRY(sf_comm_post(world, rank, TAG_ORDER, &order, sizeof order));
        SF_TRY(sf_comm_take(world, rank, TAG_PART, FOREVER, part, NULL));
    }
    struct reader reader = { .at = part->bytes, .left = part->count, .rank = rank };
    return unpack_part(lab, share, layer, &reader, result);
}

static sf_status take_parts(struct sf_lab *lab, struct sf_trace_result *result)
{
    struct sf_buffer part = { 0 };
    int32_t ranks = sf_comm_size(lab->spec.world);
    sf_status status = SF_OK;
    for (int32_t r = 0; r < ranks && status == SF_OK; r++) {
        struct sf_share share;
        status = sf_share_make(lab->desc, &lab->spec.placing, ranks, r, 0, lab->desc->layers,
                               &share);
        if (status != SF_OK) break;
        for (int32_t l = 0; l < lab->desc->layers && status == SF_OK; l++)
            status = take_part(lab, r, &share, l, &part, result);
        sf_share_free(&share);
    }
    sf_buffer_free(&part);
    return status;
}

static sf_status command(struct sf_lab *lab, sf_status mine, struct sf_trace_result *result_out,
                         struct sf_trace_counts *counts_out)
{
    struct sf_trace_result result = { 0 };
    struct sf_trace_counts counts = { 0 };
    sf_status status = take_receipts(lab, mine, &counts);
    if (status == SF_OK) status = sf_trace_result_create(lab->spec.trace, &result);
    if (status == SF_OK) status = take_parts(lab, &result);
    struct order end = { .layer = -1, .status = (int32_t)status };
    sf_status sent = SF_OK;
    for (int32_t r = 1; r < sf_comm_size(lab->spec.world) && sent == SF_OK; r++)
        if (status != SF_LOST && status != SF_TIMEOUT)
            sent = sf_comm_post(lab->spec.world, r, TAG_ORDER, &end, sizeof end);
    if (status == SF_OK) status = sent;
    if (status != SF_OK) {
        sf_trace_result_free(&result);
        return status;
    }
    *result_out = result;
    *counts_out = counts;
    return SF_OK;
}

sf_status sf_lab_gather(struct sf_lab *lab, sf_status mine, struct sf_trace_result *result_out,
                        struct sf_trace_counts *counts_out)
{
    char words[1024];
    memcpy(words, sf_error_text(), strnlen(sf_error_text(), sizeof words - 1) + 1);
    words[sizeof words - 1] = '\0';
    sf_status status = sf_comm_rank(lab->spec.world) == 0
                           ? command(lab, mine, result_out, counts_out) : obey(lab, mine);
    /* What went wrong here is told in its own words, not in those of what followed. */
    if (mine != SF_OK && status != SF_LOST && status != SF_TIMEOUT)
        return SF_FAIL(mine, "%s", words);
    return status;
}
