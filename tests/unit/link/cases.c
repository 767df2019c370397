/* The common cases of links: sums against sums on the host, bit for bit in the order of the ranks
 * and the same over both kinds; gathering; pipelines and rings; many links at once whose work is
 * queued on one stream in turns; and that a call only queues. */
#include "tests/unit/link/cases.h"

#include <stdlib.h>
#include <string.h>

#include "tests/emulation/emulation.h"

enum { RANKS_MAX = 8 };

sf_status sf_linked_open(struct sf_ranked *t, size_t count, struct linked *out)
{
    struct sf_device_spec spec = { .name = "cuda-emulated", .threads = 1, .rows_max = 1 };
    void *block = NULL;
    *out = (struct linked){ .t = t, .count = count };
    emu_set_gpu(t->rank);
    SF_TRY(sf_device_open(&spec, &out->device));
    sf_status status = out->device->k->alloc(out->device, count * sizeof(float), "numbers", &block);
    out->x = block;
    if (status != SF_OK) sf_device_close(out->device);
    return status;
}

void sf_linked_close(struct linked *l)
{
    l->device->k->free(l->device, l->x);
    sf_device_close(l->device);
}

static uint32_t mix(uint32_t x)
{
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

void sf_linked_numbers(float *x, size_t count, uint32_t seed, int32_t rank)
{
    static const float sizes[] = { 1e-3f, 1.0f, 37.0f, 1e4f };
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = mix(seed * 7919u + (uint32_t)rank * 104729u + (uint32_t)i);
        x[i] = ((float)(bits >> 8) / 8388608.0f - 1.0f) * sizes[bits % 4];
    }
}

static struct sf_link_spec spec_of(const struct linked *l)
{
    return (struct sf_link_spec){ .device = l->device, .bytes_max = l->count * sizeof(float) };
}

static void put(struct linked *l, float *at, const float *from, size_t count)
{
    l->device->k->upload(l->device, at, from, count * sizeof *at);
}

static void get(struct linked *l, float *to, const float *at, size_t count)
{
    l->device->k->download(l->device, to, at, count * sizeof *at);
}

/* ---- sums ------------------------------------------------------------------------------------ */
static void sum_once(struct linked *l, struct sf_link *link, size_t count, uint32_t seed)
{
    struct sf_ranked *t = l->t;
    float *mine = malloc((count + 1) * 4), *found = malloc((count + 1) * 4);
    float *sum = calloc(count + 1, 4);
    for (int32_t r = 0; r < t->size; r++) {
        sf_linked_numbers(mine, count, seed, r);
        for (size_t i = 0; i < count; i++) sum[i] = r == 0 ? mine[i] : sum[i] + mine[i];
    }
    sf_linked_numbers(mine, count, seed, t->rank);
    put(l, l->x, mine, count);
    R_STATUS(t, sf_link_sum(link, l->x, count), SF_OK);
    R_STATUS(t, sf_link_settle(link), SF_OK);
    get(l, found, l->x, count);
    R_INT(t, memcmp(found, sum, count * sizeof *sum), 0);
    free(mine);
    free(sum);
    free(found);
}

static void case_sums(struct sf_ranked *t)
{
    enum { COUNT = 70000 };
    struct linked l;
    R_MUST(t, sf_linked_open(t, COUNT, &l));
    for (int staged = 0; staged < 2; staged++) {
        struct sf_link_spec spec = spec_of(&l);
        struct sf_link *link;
        spec.staged = staged;
        R_MUST(t, sf_link_open(t->world, &spec, &link));
        R_CHECK(t, strcmp(sf_link_kind(link), staged ? "staged" : "nccl") == 0);
        for (uint32_t seed = 0; seed < 8 && t->failures == 0; seed++)
            sum_once(&l, link, mix(seed + 17) % (seed < 5 ? 600 : COUNT), seed);
        sum_once(&l, link, 0, 90);
        sum_once(&l, link, 1, 91);
        sum_once(&l, link, COUNT, 92);
        R_CHECK(t, sf_link_bytes_sent(link) >= COUNT * 4);
        sf_link_close(link);
    }
    sf_linked_close(&l);
}

/* ---- gathering ------------------------------------------------------------------------------- */
static void case_gather(struct sf_ranked *t)
{
    enum { COUNT = 5000 };
    struct linked l;
    struct sf_link *link;
    float *mine = malloc(COUNT * 4), *all = malloc(COUNT * 4 * RANKS_MAX);
    size_t part = COUNT, whole = COUNT * (size_t)t->size;
    R_MUST(t, sf_linked_open(t, whole + part, &l));
    struct sf_link_spec spec = spec_of(&l);
    R_MUST(t, sf_link_open(t->world, &spec, &link));
    sf_linked_numbers(mine, part, 3, t->rank);
    put(&l, l.x + whole, mine, part);
    R_STATUS(t, sf_link_all_gather(link, l.x + whole, part * 4, l.x), SF_OK);
    /* in place: a rank's part lies where it belongs */
    R_STATUS(t, sf_link_all_gather(link, l.x + (size_t)t->rank * part, part * 4, l.x), SF_OK);
    R_STATUS(t, sf_link_settle(link), SF_OK);
    get(&l, all, l.x, whole);
    for (int32_t r = 0; r < t->size; r++) {
        sf_linked_numbers(mine, part, 3, r);
        R_INT(t, memcmp(all + (size_t)r * part, mine, part * 4), 0);
    }
    sf_link_close(link);
    sf_linked_close(&l);
    free(mine);
    free(all);
}

/* ---- pipelines ------------------------------------------------------------------------------- */
/* Rank 0 sends, the next ones pass on what they have added to, the last one gives it back to rank
 * 0: eight micro-batches are under way before the host waits for the first. */
static void case_pipeline(struct sf_ranked *t)
{
    enum { COUNT = 3001, BATCHES = 8 };
    struct linked l;
    struct sf_link *link;
    float *host = malloc(COUNT * 4), *found = malloc(COUNT * 4);
    int32_t last = t->size - 1;
    R_MUST(t, sf_linked_open(t, COUNT * BATCHES, &l));
    struct sf_link_spec spec = spec_of(&l);
    R_MUST(t, sf_link_open(t->world, &spec, &link));
    for (int32_t b = 0; b < BATCHES; b++) {
        float *x = l.x + (size_t)b * COUNT;
        sf_linked_numbers(host, COUNT, (uint32_t)b, 0);
        if (t->rank == 0) put(&l, x, host, COUNT);
        else R_STATUS(t, sf_link_recv(link, t->rank - 1, x, COUNT * 4), SF_OK);
        if (t->rank > 0)                /* x = x + itself */
            l.device->k->add_bias(l.device, 1, COUNT, x, x, COUNT);
        if (t->rank < last) R_STATUS(t, sf_link_send(link, t->rank + 1, x, COUNT * 4), SF_OK);
    }
    for (int32_t b = 0; b < BATCHES; b++) {
        float *x = l.x + (size_t)b * COUNT;
        if (t->rank == last) R_STATUS(t, sf_link_send(link, 0, x, COUNT * 4), SF_OK);
        if (t->rank == 0) R_STATUS(t, sf_link_recv(link, last, x, COUNT * 4), SF_OK);
    }
    R_STATUS(t, sf_link_settle(link), SF_OK);
    for (int32_t b = 0; b < BATCHES && t->rank == 0; b++) {
        size_t wrong = 0;
        sf_linked_numbers(host, COUNT, (uint32_t)b, 0);
        get(&l, found, l.x + (size_t)b * COUNT, COUNT);
        for (size_t i = 0; i < COUNT; i++) wrong += found[i] != host[i] * (float)(1 << last);
        R_INT(t, wrong, 0);
    }
    sf_link_close(link);
    sf_linked_close(&l);
    free(host);
    free(found);
}

/* A ring of long messages, longer than any buffer between two ranks: rank 0 receives last. */
static void case_ring(struct sf_ranked *t)
{
    enum { COUNT = 100000 };
    struct linked l;
    struct sf_link *link;
    float *host = malloc(COUNT * 4), *found = malloc(COUNT * 4);
    int32_t next = (t->rank + 1) % t->size, before = (t->rank + t->size - 1) % t->size;
    R_MUST(t, sf_linked_open(t, 2 * COUNT, &l));
    struct sf_link_spec spec = spec_of(&l);
    R_MUST(t, sf_link_open(t->world, &spec, &link));
    for (uint32_t turn = 0; turn < 2; turn++) {
        sf_linked_numbers(host, COUNT, 40 + turn, t->rank);
        put(&l, l.x, host, COUNT);
        if (t->rank == 0) R_STATUS(t, sf_link_send(link, next, l.x, COUNT * 4), SF_OK);
        R_STATUS(t, sf_link_recv(link, before, l.x + COUNT, COUNT * 4), SF_OK);
        if (t->rank != 0) R_STATUS(t, sf_link_send(link, next, l.x, COUNT * 4), SF_OK);
        R_STATUS(t, sf_link_settle(link), SF_OK);
        get(&l, found, l.x + COUNT, COUNT);
        sf_linked_numbers(host, COUNT, 40 + turn, before);
        R_INT(t, memcmp(found, host, COUNT * 4), 0);
    }
    sf_link_close(link);
    sf_linked_close(&l);
    free(host);
    free(found);
}

/* ---- many links ------------------------------------------------------------------------------ */
/* As a job of tensor 2 x pipeline: tensor, pipeline and world links of one device, opened and used
 * in turns; the sums of one feed the other. */
static void case_many(struct sf_ranked *t)
{
    enum { COUNT = 640, TURNS = 12 };
    struct linked l;
    struct sf_comm *tensor, *pipe;
    struct sf_link *links[3];
    float host[COUNT];
    R_MUST(t, sf_linked_open(t, COUNT, &l));
    R_MUST(t, sf_comm_split(t->world, t->rank / 2, t->rank, "tensor", &tensor));
    R_MUST(t, sf_comm_split(t->world, t->rank % 2, t->rank, "pipeline", &pipe));
    struct sf_link_spec spec = spec_of(&l);
    R_MUST(t, sf_link_open(tensor, &spec, &links[0]));
    R_MUST(t, sf_link_open(pipe, &spec, &links[1]));
    R_MUST(t, sf_link_open(t->world, &spec, &links[2]));
    for (int i = 0; i < COUNT; i++) host[i] = (float)(t->rank + 1);
    put(&l, l.x, host, COUNT);
    double value[RANKS_MAX], sum[RANKS_MAX];
    for (int32_t r = 0; r < t->size; r++) value[r] = r + 1;
    for (int32_t turn = 0; turn < TURNS; turn++) {
        R_STATUS(t, sf_link_sum(links[turn % 3], l.x, COUNT), SF_OK);
        memset(sum, 0, sizeof sum);
        for (int32_t r = 0; r < t->size; r++)
            for (int32_t s = 0; s < t->size; s++)
                if (turn % 3 == 2 || (turn % 3 == 0 ? r / 2 == s / 2 : r % 2 == s % 2))
                    sum[r] += value[s];
        memcpy(value, sum, sizeof value);
    }
    R_STATUS(t, sf_link_settle(links[0]), SF_OK);
    get(&l, host, l.x, COUNT);
    for (int i = 0; i < COUNT; i += 91) R_INT(t, host[i], value[t->rank]);
    for (int i = 0; i < 3; i++) sf_link_close(links[i]);
    sf_comm_destroy(pipe);
    sf_comm_destroy(tensor);
    sf_linked_close(&l);
}

/* Links come and go; closing one leaves the others alone. */
static void case_turnover(struct sf_ranked *t)
{
    struct linked l;
    struct sf_link *kept, *link;
    R_MUST(t, sf_linked_open(t, 100, &l));
    struct sf_link_spec spec = spec_of(&l);
    R_MUST(t, sf_link_open(t->world, &spec, &kept));
    for (uint32_t turn = 0; turn < 10; turn++) {
        R_MUST(t, sf_link_open(t->world, &spec, &link));
        sum_once(&l, link, 77, turn);
        R_STATUS(t, sf_link_sum(link, l.x, 50), SF_OK);     /* closed with work under way */
        sf_link_close(link);
        sum_once(&l, kept, 100, turn);
    }
    sf_link_close(kept);
    sf_linked_close(&l);
}

/* Ranks of one GPU cannot have NCCL, and say so to each other. */
static void case_shared_gpu(struct sf_ranked *t)
{
    struct linked l;
    struct sf_link *link;
    R_MUST(t, sf_linked_open(t, 100, &l));
    struct sf_link_spec spec = spec_of(&l);
    emu_set_gpu(t->rank == 0 ? 1 : t->rank);
    R_MUST(t, sf_link_open(t->world, &spec, &link));
    emu_set_gpu(t->rank);
    R_CHECK(t, strcmp(sf_link_kind(link), "staged") == 0);
    sum_once(&l, link, 100, 5);
    sf_link_close(link);
    sf_linked_close(&l);
}

const struct sf_case sf_cases_nccl[] = {
    { "sums", 2, case_sums }, { "gather", 2, case_gather }, { "pipeline", 2, case_pipeline },
    { "ring", 2, case_ring }, { "many links", 2, case_many }, { "turnover", 2, case_turnover },
    { "shared gpu", 2, case_shared_gpu }, { NULL, 0, NULL }
};
