/* kvshard/copies.c: a KV head that several tensor ranks hold, each with some of its query heads.
 *
 * Its statistics fold all query heads of the group, so the copies exchange, before every second
 * pass of the backend, the queries of the rows that count and the sums that attention has left:
 *
 *   rank 4  q 0 1 | lse 0 1  ->  \
 *   rank 5  q 2 3 | lse 2 3  ->   >  every copy: rows x (q 0 1 2 3 4 | lse 0 1 2 3 4)
 *   rank 6  q 4   | lse 4    ->  /
 *
 * and each folds them in the order of one rank that has them all.  So every fold can be had, and
 * where queries and keys are equal over layouts, masses are too, to the last bit.  It costs a
 * message of rows x query heads x (k_dim + 1) floats a layer and round, and every copy the second
 * pass of the whole group; sums of each rank's own heads would cost less and depend on the layout.
 *
 * Keys of the copies are equal up to the rounding of the products that made them.  So that no such
 * rounding makes two copies decide differently, at an event copy 0 sends its masses to the others,
 * and with them which slots it has: a lane that differs from its copy ends the job in words. */
#include "kvshard/copies.h"

#include <string.h>

#include "base/memory.h"
#include "model/share.h"

enum { TAG_ROWS = 32, TAG_MASS };

/* ---- who has what ---------------------------------------------------------------------------- */
static int32_t rank_of(const struct sf_store *store, const struct sf_store_lane *lane, int32_t copy)
{
    int32_t size = sf_comm_size(store->tensor), mine = sf_comm_rank(store->tensor);
    return (mine - lane->replica + copy + size) % size;
}

static int32_t group_of(const struct sf_store *store, int32_t layer)
{
    const struct sf_layer *of = &store->setup.layer[store->layer_first + layer];
    return of->q_heads / of->groups;
}

static int32_t heads_of(const struct sf_store *store, int32_t layer, int32_t copy)
{
    return sf_share_copy_q_heads(group_of(store, layer),
                                 store->layer[layer].spec.lane[0].replicas, copy);
}

int sf_copies_serve(const struct sf_store *store, int32_t layer)
{
    const struct sf_layer_state *state = &store->layer[layer];
    if (state->spec.lanes == 0 || state->spec.lane[0].replicas <= 1) return 0;
    SF_ASSERT(state->spec.lanes == 1);  /* model/share.h: then a rank has one KV head */
    if (state->method[0] < 0) return 0;
    const struct sf_plan *plan = &store->method[state->method[0]].entry->plan;
    return sf_is_watched(plan, 0) || sf_is_watched(plan, 1);
}

sf_status sf_copies_create(struct sf_store *store)
{
    struct sf_copies *copies = &store->copies;
    size_t group = 0, width = 0, rows = (size_t)store->rows_max;
    void *block;
    for (int32_t l = 0; l < store->layers; l++) {
        if (!sf_copies_serve(store, l)) continue;
        if (!store->tensor)
            return SF_FAIL(SF_INTERNAL, "layer %d has copies on other ranks, and no way to them",
                           store->layer_first + l);
        size_t heads = (size_t)group_of(store, l);
        size_t floats = heads * (size_t)(store->layer[l].layout.k_dim + 1);
        if (heads > group) group = heads;
        if (floats > width) width = floats;
    }
    if (width == 0) return SF_OK;
    SF_TRY(store->device->k->alloc(store->device, rows * width * sizeof(float),
                                   "queries of all copies", &block));
    copies->q = block;
    SF_TRY(store->device->k->alloc(store->device, rows * group * sizeof(float),
                                   "sums of attention of all copies", &block));
    copies->lse = block;
    SF_TRY(sf_alloc(rows * width * sizeof(float), "queries for the copies", &block));
    copies->sent = block;
    SF_TRY(sf_alloc(rows * width * sizeof(float), "queries of a copy", &block));
    copies->came = block;
    SF_TRY(sf_alloc(rows * width * sizeof(float), "queries of all copies", &block));
    copies->all = block;
    SF_TRY(sf_alloc(rows * sizeof *copies->row_pos, "positions of rows", &block));
    copies->row_pos = block;
    SF_TRY(sf_alloc(rows * sizeof *copies->row, "rows of the copies", &block));
    copies->row = block;
    return SF_OK;
}

void sf_copies_destroy(struct sf_store *store)
{
    struct sf_copies *copies = &store->copies;
    if (copies->lse) store->device->k->free(store->device, copies->lse);
    if (copies->q) store->device->k->free(store->device, copies->q);
    sf_free(copies->row);
    sf_free(copies->row_pos);
    sf_free(copies->all);
    sf_free(copies->came);
    sf_free(copies->sent);
}

/* ---- rows ------------------------------------------------------------------------------------ */
struct swap {
    struct sf_store *store;
    const struct sf_store_lane *lane;
    int32_t layer, rows;
};

static size_t bytes_of(const struct swap *swap, int32_t copy)
{
    size_t floats = (size_t)(swap->store->layer[swap->layer].layout.k_dim + 1);
    return (size_t)swap->rows * (size_t)heads_of(swap->store, swap->layer, copy) * floats *
           sizeof(float);
}

/* From what a copy has sent, [rows][heads][k_dim] and [rows][heads], into the rows of all. */
static void put(const struct swap *swap, int32_t copy, const float *from)
{
    struct sf_copies *copies = &swap->store->copies;
    size_t k_dim = (size_t)swap->store->layer[swap->layer].layout.k_dim;
    size_t heads = (size_t)heads_of(swap->store, swap->layer, copy);
    size_t group = (size_t)group_of(swap->store, swap->layer), rows = (size_t)swap->rows, first = 0;
    float *lse = copies->all + rows * group * k_dim;
    for (int32_t c = 0; c < copy; c++) first += (size_t)heads_of(swap->store, swap->layer, c);
    for (size_t r = 0; r < rows; r++) {
        memcpy(copies->all + (r * group + first) * k_dim, from + r * heads * k_dim,
               heads * k_dim * sizeof(float));
        memcpy(lse + r * group + first, from + rows * heads * k_dim + r * heads,
               heads * sizeof(float));
    }
}

static sf_status exchange(const struct swap *swap)
{
    struct sf_store *store = swap->store;
    struct sf_copies *copies = &store->copies;
    struct sf_request *request[UINT8_MAX + 1];
    const struct sf_store_lane *lane = swap->lane;
    int32_t sent = 0;
    sf_status status = SF_OK;
    SF_ASSERT(lane->replicas <= UINT8_MAX);
    for (int32_t c = 0; status == SF_OK && c < lane->replicas; c++) {
        if (c == lane->replica) continue;
        status = sf_comm_isend(store->tensor, rank_of(store, lane, c), TAG_ROWS, copies->sent,
                               bytes_of(swap, lane->replica), &request[sent]);
        if (status == SF_OK) sent++;
    }
    put(swap, lane->replica, copies->sent);
    for (int32_t c = 0; status == SF_OK && c < lane->replicas; c++) {
        if (c == lane->replica) continue;
        status = sf_comm_recv(store->tensor, rank_of(store, lane, c), TAG_ROWS, copies->came,
                              bytes_of(swap, c));
        if (status == SF_OK) put(swap, c, copies->came);
    }
    for (int32_t i = 0; i < sent; i++) {
        sf_status ended = sf_comm_wait(store->tensor, request[i]);
        if (status == SF_OK) status = ended;
    }
    return status;
}

/* This rank's part of a row: its queries lie side by side, from head 0 on. */
static void pack(const struct sf_store *store, int32_t layer, const struct sf_attend_job *attend,
                 const struct sf_copies_row *row, int32_t rows)
{
    const struct sf_kernels *k = store->device->k;
    const struct sf_store_lane *lane = &store->layer[layer].spec.lane[0];
    size_t heads = (size_t)lane->q_heads, k_dim = (size_t)store->layer[layer].layout.k_dim;
    float *q = store->copies.sent, *lse = q + (size_t)rows * heads * k_dim;
    for (int32_t r = 0; r < rows; r++) {
        size_t at = (size_t)row[r].row;
        k->download(store->device, q + (size_t)r * heads * k_dim,
                    attend->q + at * attend->q_stride + (size_t)lane->q_first * k_dim,
                    heads * k_dim * sizeof(float));
        k->download(store->device, lse + (size_t)r * heads,
                    attend->lse + at * attend->lse_stride + lane->q_first, heads * sizeof(float));
        store->copies.row_pos[r] = row[r].pos;
    }
    k->sync(store->device);
}

sf_status sf_copies_rows(struct sf_store *store, int32_t layer, const struct sf_attend_job *attend,
                         const struct sf_copies_row *row, int32_t rows)
{
    const struct sf_kernels *k = store->device->k;
    struct swap swap = { store, &store->layer[layer].spec.lane[0], layer, rows };
    size_t group = (size_t)group_of(store, layer);
    size_t k_dim = (size_t)store->layer[layer].layout.k_dim, floats = (size_t)rows * group * k_dim;
    SF_ASSERT(rows >= 1 && rows <= store->rows_max && store->copies.q);
    pack(store, layer, attend, row, rows);
    SF_TRY(exchange(&swap));
    k->upload(store->device, store->copies.q, store->copies.all, floats * sizeof(float));
    k->upload(store->device, store->copies.lse, store->copies.all + floats,
              (size_t)rows * group * sizeof(float));
    return SF_OK;
}

int32_t sf_copies_group(const struct sf_store *store, int32_t layer)
{
    return group_of(store, layer);
}

/* ---- masses ---------------------------------------------------------------------------------- */
struct shown { int32_t layer, head, slots, tokens; uint64_t positions; };

static uint64_t hash_of(const int32_t *pos, int32_t n)
{
    uint64_t hash = 14695981039346656037u;
    for (int32_t i = 0; i < n; i++) hash = (hash ^ (uint32_t)pos[i]) * 1099511628211u;
    return hash;
}

/* One lane: what it is, then its masses, side by side in `bytes`. */
static size_t mass_pack(const struct sf_lane *lane, int32_t tokens, unsigned char *bytes)
{
    struct shown shown = { .layer = lane->layer, .head = lane->head_global, .slots = lane->slots,
                           .tokens = tokens, .positions = hash_of(lane->pos, lane->slots) };
    size_t used = sizeof shown, mass = (size_t)lane->slots * sizeof(float);
    memcpy(bytes, &shown, sizeof shown);
    for (int w = 0; w < 2; w++) {
        if (!lane->mass[w]) continue;
        memcpy(bytes + used, lane->mass[w], mass);
        used += mass;
    }
    return used;
}

/* Copy 0's lane, which is the same; its masses become this one's. */
static sf_status mass_take(const struct sf_lane *lane, const unsigned char *mine,
                           const unsigned char *theirs)
{
    struct shown shown;
    size_t used = sizeof shown, mass = (size_t)lane->slots * sizeof(float);
    memcpy(&shown, theirs, sizeof shown);
    if (memcmp(mine, theirs, sizeof shown) != 0)
        return SF_FAIL(SF_INTERNAL, "copy %d of layer %d head %d has %d slots, copy 0 of layer %d"
                       " head %d after %d tokens %d%s", lane->replica, lane->layer,
                       lane->head_global, lane->slots, shown.layer, shown.head, shown.tokens,
                       shown.slots, shown.slots == lane->slots ? ", others" : "");
    for (int w = 0; w < 2; w++) {
        if (!lane->mass[w]) continue;
        memcpy(lane->mass[w], theirs + used, mass);
        used += mass;
    }
    return SF_OK;
}

static sf_status mass_send(struct sf_store *store, const struct sf_store_lane *lane,
                           const unsigned char *bytes, size_t count)
{
    struct sf_request *request[UINT8_MAX + 1];
    int32_t sent = 0;
    sf_status status = SF_OK;
    for (int32_t c = 1; status == SF_OK && c < lane->replicas; c++) {
        status = sf_comm_isend(store->tensor, rank_of(store, lane, c), TAG_MASS, bytes, count,
                               &request[sent]);
        if (status == SF_OK) sent++;
    }
    for (int32_t i = 0; i < sent; i++) {
        sf_status ended = sf_comm_wait(store->tensor, request[i]);
        if (status == SF_OK) status = ended;
    }
    return status;
}

sf_status sf_copies_agree(struct sf_answer *answer)
{
    struct sf_store *store = answer->store;
    size_t room = 0, used = 0;
    unsigned char *mine, *theirs;
    if (!sf_copies_serve(store, answer->layer)) return SF_OK;
    const struct sf_store_lane *lane = &store->layer[answer->layer].spec.lane[0];
    for (int32_t i = 0; i < answer->views; i++)
        room += sizeof(struct shown) + 2 * (size_t)answer->shown[i].slots * sizeof(float);
    SF_TRY(sf_scratch_items(&store->host, room, 1, &mine));
    for (int32_t i = 0; i < answer->views; i++)
        used += mass_pack(&answer->shown[i], answer->view[i].tokens, mine + used);
    if (lane->replica == 0) return mass_send(store, lane, mine, used);
    SF_TRY(sf_scratch_items(&store->host, room, 1, &theirs));
    SF_TRY(sf_comm_recv(store->tensor, rank_of(store, lane, 0), TAG_MASS, theirs, used));
    size_t at = 0;
    for (int32_t i = 0; i < answer->views; i++) {
        SF_TRY(mass_take(&answer->shown[i], mine + at, theirs + at));
        at += sizeof(struct shown);
        for (int w = 0; w < 2; w++)
            if (answer->shown[i].mass[w]) at += (size_t)answer->shown[i].slots * sizeof(float);
    }
    return SF_OK;
}
