/* kvshard/factor_ranks.c: x ~ a b, of which every tensor rank p has some columns x_p, and wants a
 * and its columns b_p.
 *
 *   RANDOM        y = sum_p x_p omega_p;  q = orthonormal y;  power_iterations times
 *                 z_p = x_p^T q, orthonormal over all ranks, y = sum_p x_p z_p, orthonormal;
 *                 c_p = q^T x_p;  a = sqrt(rows) q, b_p = c_p / sqrt(rows)
 *   oversampling  c comes to rank 0 and is cut there: c ~ a' b;  a = q a'
 *   EXACT, GRAM   x comes to rank 0 and is factored there
 *
 * omega's row of a column goes by the column's number among all of them, so y is what one rank
 * with all columns has, but for the order of the sum.  A copy's rows of omega and z are zero.
 *
 * Each rank has a block of the rows of y: it adds up what the others have for them, in their order,
 * and hands the rows out when they are orthonormal.  y and z are then alike: rows on all ranks,
 *
 *     w = sum_p y_p^T y_p at rank 0, t from w, t to all, y_p = y_p t
 *
 * t is r^-1 with w + shift = r^T r (shifted Cholesky QR, kernels/cpu/factor.c), or, where there is
 * no such r, v s^-1/2 of w = v s v^T without its smallest s: columns that add nothing become zero.
 * So whatever could differ from machine to machine is worked out by one rank, and a is made of the
 * same bits everywhere.  Sums go by rank: a rerun of one layout gives the same bits.
 *
 * All of it is the host's work, on the host's memory.  Where that is not the device's, x comes down
 * first, and a and b go up at last. */
#include "kvshard/factor_ranks.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "comm/reduce.h"

enum { TAG_BLOCK = 40, TAG_GRAM, TAG_LANES, TAG_COLUMNS, TAG_B };
enum { PASSES_MAX = 8 };

static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }
static size_t area(int32_t a, int32_t b) { return (size_t)a * (size_t)b; }

/* ---- room ----------------------------------------------------------------------------------- */
struct stand { int32_t status, lanes; };        /* of a rank, before it begins */
struct verdict { int32_t status, near; };       /* of rank 0 */
struct top { float value; int32_t number; };    /* of a row of c: its greatest entry, its column */
struct room {
    const struct sf_factor_ranks *f;
    const struct sf_factor_job *job;
    const struct sf_kernels *k;
    int32_t ranks, me, cols_all, q;             /* q: columns of y */
    struct stand *stand;                        /* [ranks] */
    struct sf_request **request;                /* [ranks] */
    struct sf_factor_lane *lane;                /* [lanes_all] of another rank */
    float *y, *z, *c;                           /* [rows][q], [own columns][q], [q][own columns] */
    float *in, *other;                          /* a block of y; as large as that and as z */
    float *gram, *turn;                         /* [q][q] */
    float *gram_a, *gram_b;                     /* rank 0: [q][q] */
    struct top *top, *tops;                     /* [q], [ranks][q] */
    float *all_a;                               /* of what rank 0 factors, on all ranks */
    float *all, *part, *all_b;                  /* rank 0: of all columns; part: of one rank's */
    void *scratch;                              /* rank 0 */
};

struct heap { unsigned char *base; size_t used; };
static void *take(struct heap *heap, size_t bytes)
{
    void *block = heap->base ? heap->base + heap->used : NULL;
    heap->used += (bytes + 63) / 64 * 64;
    return block;
}
static float *floats(struct heap *heap, size_t count) { return take(heap, count * sizeof(float)); }

/* What rank 0 factors: x itself, or c. */
static struct sf_factor_job whole_job(const struct room *room)
{
    int random = room->job->how == SF_FACTOR_RANDOM;
    return (struct sf_factor_job){
        .rows = random ? room->q : room->job->rows, .cols = room->cols_all,
        .rank = room->job->rank, .how = random ? SF_FACTOR_EXACT : room->job->how,
        .x = room->all, .x_stride = (size_t)room->cols_all, .a = room->all_a, .b = room->all_b,
        .a_stride = (size_t)room->job->rank, .b_stride = (size_t)room->cols_all,
        .scratch = room->scratch };
}

/* w = v s v^T. */
static struct sf_factor_job gram_job(const struct room *room)
{
    return (struct sf_factor_job){
        .rows = room->q, .cols = room->q, .rank = room->q, .how = SF_FACTOR_EXACT,
        .x = room->gram, .x_stride = (size_t)room->q, .a = room->gram_a, .b = room->gram_b,
        .a_stride = (size_t)room->q, .b_stride = (size_t)room->q, .scratch = room->scratch };
}

static void random_take(struct heap *heap, struct room *room)
{
    const struct sf_factor_job *job = room->job;
    int32_t narrow = least(job->rows, room->cols_all), block = job->rows / room->ranks + 1;
    int32_t q = least(job->rank, narrow);
    q += least(job->oversample, narrow - q);
    room->q = q;
    room->y = floats(heap, area(job->rows, q));
    room->z = floats(heap, area(job->cols, q));
    room->c = floats(heap, area(q, job->cols));
    room->in = floats(heap, area(most(block, q), q));
    room->other = floats(heap, area(most(block, job->cols), q));
    room->gram = floats(heap, area(q, q));
    room->turn = floats(heap, area(q, q));
    room->gram_a = room->me == 0 ? floats(heap, area(q, q)) : NULL;
    room->gram_b = room->me == 0 ? floats(heap, area(q, q)) : NULL;
    room->top = take(heap, (size_t)q * sizeof *room->top);
    room->tops = take(heap, area(room->ranks, q) * sizeof *room->tops);
}

/* What rank 0 alone has, and all_a: what it factors, and the room for that. */
static void whole_take(struct heap *heap, size_t (*factor_bytes)(const struct sf_factor_job *),
                       struct room *room)
{
    const struct sf_factor_job *job = room->job;
    int random = job->how == SF_FACTOR_RANDOM, whole_too = !random || job->oversample > 0;
    struct sf_factor_job whole = whole_job(room), small = gram_job(room);
    size_t bytes = 0;
    if (whole_too) room->all_a = floats(heap, area(whole.rows, job->rank));
    if (room->me != 0) return;
    if (whole_too) {
        room->all = floats(heap, area(whole.rows, whole.cols));
        room->part = floats(heap, area(most(whole.rows, job->rank), whole.cols));
        room->all_b = floats(heap, area(job->rank, whole.cols));
        bytes = factor_bytes(&whole);
    }
    if (random && factor_bytes(&small) > bytes) bytes = factor_bytes(&small);
    room->scratch = take(heap, bytes);
}

static void room_take(struct heap *heap, const struct sf_factor_ranks *f,
                      struct sf_factor_place place,
                      size_t (*factor_bytes)(const struct sf_factor_job *), struct room *room)
{
    *room = (struct room){ .f = f, .job = &f->job, .k = f->device ? f->device->k : NULL,
                           .ranks = place.ranks, .me = place.rank,
                           .cols_all = f->lanes_all * f->dim };
    room->stand = take(heap, (size_t)place.ranks * sizeof *room->stand);
    room->request = take(heap, (size_t)place.ranks * sizeof(void *));
    room->lane = take(heap, (size_t)f->lanes_all * sizeof *room->lane);
    if (f->job.how == SF_FACTOR_RANDOM) random_take(heap, room);
    whole_take(heap, factor_bytes, room);
}

/* Of a, whose rows the device may have wider than its rank. */
static size_t a_floats(const struct sf_factor_job *job)
{
    return area(job->rows - 1, 1) * job->a_stride + (size_t)job->rank;
}

/* x, a and b in host memory. */
static void copies_take(struct heap *heap, struct sf_factor_job *job)
{
    job->x = floats(heap, area(job->rows, job->cols));
    job->a = floats(heap, a_floats(job));
    job->b = floats(heap, area(job->rank, job->cols));
}

size_t sf_factor_ranks_bytes(const struct sf_factor_ranks *f, struct sf_factor_place place,
                             size_t (*factor_bytes)(const struct sf_factor_job *))
{
    struct heap heap = { 0 };
    struct room room;
    if (f->device && !f->device->host_memory) {
        struct sf_factor_job copies = f->job;
        copies_take(&heap, &copies);
        factor_bytes = sf_device_hosting(f->device).k->factor_bytes;
    }
    room_take(&heap, f, place, factor_bytes, &room);
    return heap.used;
}

/* ---- messages ------------------------------------------------------------------------------- */
static sf_status send(const struct room *room, int32_t to, int32_t tag, const void *data,
                      size_t bytes)
{
    struct sf_request *request;
    SF_TRY(sf_comm_isend(room->f->ranks, to, tag, data, bytes, &request));
    return sf_comm_wait(room->f->ranks, request);
}

static float *block_of(const struct room *room, int32_t rank, int32_t *rows_out)
{
    int32_t first;
    sf_reduce_block(room->job->rows, room->ranks, rank, &first, rows_out);
    return room->y + area(first, room->q);
}

static sf_status receive_blocks(const struct room *room)
{
    int32_t rows;
    float *mine = block_of(room, room->me, &rows);
    size_t count = area(rows, room->q);
    for (int32_t r = 0; r < room->ranks; r++) {
        const float *from = mine;
        if (r != room->me) {
            SF_TRY(sf_comm_recv(room->f->ranks, r, TAG_BLOCK, room->in, count * sizeof *from));
            from = room->in;
        }
        if (r == 0) memcpy(room->other, from, count * sizeof *from);
        for (size_t i = 0; r > 0 && i < count; i++) room->other[i] += from[i];
    }
    memcpy(mine, room->other, count * sizeof *mine);
    return SF_OK;
}

/* Every rank's block of y becomes the sum over the ranks. */
static sf_status sum_blocks(const struct room *room)
{
    sf_status status = SF_OK;
    int32_t sent = 0, rows;
    for (int32_t r = 0; r < room->ranks && status == SF_OK; r++) {
        if (r == room->me) continue;
        const float *block = block_of(room, r, &rows);
        status = sf_comm_isend(room->f->ranks, r, TAG_BLOCK, block,
                               area(rows, room->q) * sizeof *block, &room->request[sent]);
        sent += status == SF_OK;
    }
    if (status == SF_OK) status = receive_blocks(room);
    for (int32_t i = 0; i < sent; i++) {
        sf_status ended = sf_comm_wait(room->f->ranks, room->request[i]);
        if (status == SF_OK) status = ended;
    }
    return status;
}

/* Every rank has all blocks. */
static sf_status share_blocks(const struct room *room)
{
    for (int32_t r = 0; r < room->ranks; r++) {
        int32_t rows;
        float *block = block_of(room, r, &rows);
        SF_TRY(sf_comm_bcast(room->f->ranks, r, block, area(rows, room->q) * sizeof *block));
    }
    return SF_OK;
}

/* What rank 0 came to, on every rank: if it is SF_INVALID, all of them leave their slots as they
 * are; none goes on by itself. */
static sf_status all_as_first(const struct room *room, int32_t first, const char *what)
{
    if (room->me == 0 || first == SF_OK) return (sf_status)first;
    if (first == SF_INVALID)
        return SF_FAIL(SF_INVALID, "tensor rank 0: keys or values are too large for %s", what);
    return SF_FAIL(SF_STOPPED, "tensor rank 0 could not find %s", what);
}

/* ---- orthonormal columns, rows on all ranks ------------------------------------------------- */
/* t = v s^-1/2 without what is lost in the rounding of w. */
static sf_status turn_by_values(const struct room *room)
{
    struct sf_factor_job job = gram_job(room);
    int32_t q = room->q;
    double greatest = 0;
    SF_TRY(room->k->factor(room->f->device, &job));
    for (int32_t i = 0; i < q; i++) {           /* rows of b are sqrt(s) v^T */
        const float *row = room->gram_b + area(i, q);
        double s = 0;
        for (int32_t j = 0; j < q; j++) s += (double)row[j] * (double)row[j];
        if (i == 0) greatest = s;
        int kept = s > 0 && s >= 1e-5 * greatest;
        for (int32_t j = 0; j < q; j++)
            room->turn[area(j, q) + (size_t)i] = kept ? (float)((double)row[j] / s) : 0;
    }
    return SF_OK;
}

/* t of the sum of the ranks' w, which is in gram. */
static sf_status find_turn(const struct room *room, double shift_unit, int32_t *near_out)
{
    int32_t q = room->q;
    double trace = 0, off = 0;
    for (int32_t i = 0; i < q; i++)
        for (int32_t j = 0; j <= i; j++) {
            double w = (double)room->gram[area(i, q) + (size_t)j];
            if (!isfinite(w)) return SF_FAIL(SF_INVALID, "squares of keys or values overflow");
            if (i == j) trace += w;
            off = fmax(off, i == j && w < 1e-3 ? fabs(w) : fabs(w - (i == j)));
        }
    *near_out = off < 0.01;
    memcpy(room->turn, room->gram, area(q, q) * sizeof *room->turn);
    if (trace > 0 &&
        room->k->cholesky(room->f->device, q, (float)(shift_unit * trace), room->turn))
        return SF_OK;
    return turn_by_values(room);
}

/* y = y t, one pass; y [rows][q] here. */
static sf_status pass(const struct room *room, float *y, int32_t rows, double shift_unit,
                      int32_t *near_out)
{
    struct sf_device *device = room->f->device;
    struct verdict verdict = { SF_OK, 0 };
    size_t q = (size_t)room->q, bytes = q * q * sizeof(float);
    room->k->product(device, 1, room->q, room->q, rows, y, q, y, q, room->gram, q);
    room->k->sync(device);
    if (room->me != 0) {
        SF_TRY(send(room, 0, TAG_GRAM, room->gram, bytes));
    } else {
        for (int32_t r = 1; r < room->ranks; r++) {
            SF_TRY(sf_comm_recv(room->f->ranks, r, TAG_GRAM, room->in, bytes));
            for (size_t i = 0; i < q * q; i++) room->gram[i] += room->in[i];
        }
        verdict.status = (int32_t)find_turn(room, shift_unit, &verdict.near);
    }
    SF_TRY(sf_comm_bcast(room->f->ranks, 0, &verdict, sizeof verdict));
    SF_TRY(all_as_first(room, verdict.status, "a basis"));
    SF_TRY(sf_comm_bcast(room->f->ranks, 0, room->turn, bytes));
    memcpy(room->other, y, area(rows, room->q) * sizeof *y);
    room->k->product(device, 0, rows, room->q, room->q, room->other, q, room->turn, q, y, q);
    room->k->sync(device);
    *near_out = verdict.near;
    return SF_OK;
}

/* Between power iterations, where columns have but to stay apart, one pass is enough. */
static sf_status orthonormalise(const struct room *room, float *y, int32_t rows, int between)
{
    int32_t near = 0;
    SF_TRY(pass(room, y, rows, 8 * 0x1p-24, &near));
    for (int i = 1; !between && !near; i++) {
        if (i == PASSES_MAX) return SF_FAIL(SF_INTERNAL, "a basis cannot be made orthonormal");
        SF_TRY(pass(room, y, rows, 0, &near));
    }
    return SF_OK;
}

/* ---- what rank 0 factors -------------------------------------------------------------------- */
/* Columns of one rank's lanes from or to those of all. */
static void columns_move(const struct room *room, int to_all, int32_t rows, int32_t lanes,
                         const struct sf_factor_lane *lane, float *all, float *part)
{
    size_t dim = (size_t)room->f->dim, stride = (size_t)lanes * dim;
    for (int32_t l = 0; l < lanes; l++) {
        if (to_all && lane[l].copy) continue;
        for (int32_t r = 0; r < rows; r++) {
            float *here = part + (size_t)r * stride + (size_t)l * dim;
            float *there = all + area(r, room->cols_all) + (size_t)lane[l].number * dim;
            memcpy(to_all ? there : here, to_all ? here : there, dim * sizeof *all);
        }
    }
}

/* On rank 0: columns of x come, factors are made. */
static sf_status gather(const struct room *room, int32_t rows, const float *x)
{
    for (int32_t r = 0; r < room->ranks; r++) {
        const struct sf_factor_lane *lane = r == 0 ? room->f->lane : room->lane;
        int32_t lanes = room->stand[r].lanes;
        float *part = r == 0 ? (float *)(uintptr_t)x : room->part;
        if (r > 0) {
            SF_TRY(sf_comm_recv(room->f->ranks, r, TAG_LANES, room->lane,
                                (size_t)lanes * sizeof *lane));
            SF_TRY(sf_comm_recv(room->f->ranks, r, TAG_COLUMNS, part,
                                area(rows, lanes * room->f->dim) * sizeof *part));
        }
        columns_move(room, 1, rows, lanes, lane, room->all, part);
    }
    return SF_OK;
}

/* x ~ a b of all ranks' columns: a into all_a on all ranks, b's own columns into the job's. */
static sf_status by_one(const struct room *room, int32_t rows, const float *x)
{
    const struct sf_factor_ranks *f = room->f;
    const struct sf_factor_job *job = room->job;
    struct sf_factor_job whole = whole_job(room);
    int32_t status = SF_OK;
    if (room->me == 0) {
        SF_TRY(gather(room, rows, x));
        SF_TRY(sf_comm_beat(f->ranks, "basis of rows", rows)); /* its last word if that is long */
        status = (int32_t)room->k->factor(f->device, &whole);
        room->k->sync(f->device);
    } else {
        SF_TRY(send(room, 0, TAG_LANES, f->lane, (size_t)f->lanes * sizeof *f->lane));
        SF_TRY(send(room, 0, TAG_COLUMNS, x, area(rows, job->cols) * sizeof *x));
    }
    SF_TRY(sf_comm_bcast(f->ranks, 0, &status, sizeof status));
    SF_TRY(all_as_first(room, status, "factors"));
    SF_TRY(sf_comm_bcast(f->ranks, 0, room->all_a, area(rows, job->rank) * sizeof(float)));
    if (room->me != 0) {
        SF_TRY(send(room, 0, TAG_LANES, f->lane, (size_t)f->lanes * sizeof *f->lane));
        return sf_comm_recv(f->ranks, 0, TAG_B, job->b, area(job->rank, job->cols) * sizeof(float));
    }
    columns_move(room, 0, job->rank, f->lanes, f->lane, room->all_b, job->b);
    for (int32_t r = 1; r < room->ranks; r++) {
        int32_t lanes = room->stand[r].lanes;
        SF_TRY(sf_comm_recv(f->ranks, r, TAG_LANES, room->lane,
                            (size_t)lanes * sizeof *room->lane));
        columns_move(room, 0, job->rank, lanes, room->lane, room->all_b, room->part);
        SF_TRY(send(room, r, TAG_B, room->part,
                    area(job->rank, lanes * f->dim) * sizeof(float)));
    }
    return SF_OK;
}

/* ---- RANDOM --------------------------------------------------------------------------------- */
/* Rows of z that are copies' count elsewhere. */
static void clear_copies(const struct room *room)
{
    size_t count = area(room->f->dim, room->q);
    for (int32_t l = 0; l < room->f->lanes; l++)
        if (room->f->lane[l].copy) memset(room->z + (size_t)l * count, 0, count * sizeof(float));
}

static void fill_omega(const struct room *room)
{
    size_t count = area(room->f->dim, room->q);
    for (int32_t l = 0; l < room->f->lanes; l++)
        for (size_t i = 0; i < count; i++)
            room->z[(size_t)l * count + i] = (float)sf_rng_normal(
                room->job->seed, 0, (uint64_t)room->f->lane[l].number * count + i);
    clear_copies(room);
}

/* y = sum_p x_p z_p, its block here. */
static sf_status sketch(const struct room *room)
{
    const struct sf_factor_job *job = room->job;
    size_t q = (size_t)room->q;
    room->k->product(room->f->device, 0, job->rows, room->q, job->cols, job->x, job->x_stride,
                     room->z, q, room->y, q);
    room->k->sync(room->f->device);
    return sum_blocks(room);
}

static sf_status range_find(const struct room *room)
{
    const struct sf_factor_job *job = room->job;
    struct sf_device *device = room->f->device;
    size_t q = (size_t)room->q;
    int32_t rows;
    float *mine = block_of(room, room->me, &rows);
    fill_omega(room);
    SF_TRY(sketch(room));
    for (int32_t i = 0; i < job->power_iterations; i++) {
        SF_TRY(orthonormalise(room, mine, rows, 1));
        SF_TRY(share_blocks(room));
        room->k->product(device, 1, job->cols, room->q, job->rows, job->x, job->x_stride, room->y,
                         q, room->z, q);
        room->k->sync(device);
        clear_copies(room);
        SF_TRY(orthonormalise(room, room->z, job->cols, 1));
        SF_TRY(sketch(room));
    }
    SF_TRY(orthonormalise(room, mine, rows, 0));
    SF_TRY(share_blocks(room));
    room->k->product(device, 1, room->q, job->cols, job->rows, room->y, q, job->x, job->x_stride,
                     room->c, (size_t)job->cols);
    room->k->sync(device);
    return SF_OK;
}

/* The first of the greatest entries of each row of c, over all ranks: into top.  What overflows
 * on one rank is found by all. */
static sf_status find_tops(const struct room *room)
{
    int32_t dim = room->f->dim;
    for (int32_t i = 0; i < room->q; i++) {
        struct top top = { 0, INT32_MAX };
        for (int32_t c = 0; c < room->job->cols; c++) {
            float value = room->c[area(i, room->job->cols) + (size_t)c];
            int32_t number = room->f->lane[c / dim].number * dim + c % dim;
            if (room->f->lane[c / dim].copy) continue;
            if (!isfinite(value)) value = INFINITY;
            if (fabsf(value) > fabsf(top.value) ||
                (fabsf(value) == fabsf(top.value) && number < top.number))
                top = (struct top){ value, number };
        }
        room->top[i] = top;
    }
    SF_TRY(sf_comm_allgather(room->f->ranks, room->top, (size_t)room->q * sizeof *room->top,
                             room->tops));
    for (int32_t r = 0; r < room->ranks; r++)
        for (int32_t i = 0; i < room->q; i++) {
            struct top top = room->tops[area(r, room->q) + (size_t)i];
            if (r == 0 || fabsf(top.value) > fabsf(room->top[i].value) ||
                (fabsf(top.value) == fabsf(room->top[i].value) &&
                 top.number < room->top[i].number))
                room->top[i] = top;
        }
    for (int32_t i = 0; i < room->q; i++)
        if (!isfinite(room->top[i].value))
            return SF_FAIL(SF_INVALID, "sums of keys or values overflow");
    return SF_OK;
}

static sf_status by_range(const struct room *room)
{
    const struct sf_factor_job *job = room->job;
    SF_TRY(range_find(room));
    if (job->oversample > 0) {
        SF_TRY(by_one(room, room->q, room->c));
        room->k->product(room->f->device, 0, job->rows, job->rank, room->q, room->y,
                         (size_t)room->q, room->all_a, (size_t)job->rank, job->a, job->a_stride);
        return SF_OK;
    }
    SF_TRY(find_tops(room));
    float root = (float)sqrt(job->rows);
    for (int32_t i = 0; i < job->rank; i++) {
        float sign = i < room->q && room->top[i].value < 0 ? -1.0f : 1.0f;
        for (int32_t r = 0; r < job->rows; r++)
            job->a[(size_t)r * job->a_stride + (size_t)i] =
                i < room->q ? sign * root * room->y[area(r, room->q) + (size_t)i] : 0;
        for (int32_t c = 0; c < job->cols; c++)
            job->b[area(i, job->cols) + (size_t)c] =
                i < room->q ? sign / root * room->c[area(i, job->cols) + (size_t)c] : 0;
    }
    return SF_OK;
}

/* ---- all of it ------------------------------------------------------------------------------ */
/* All ranks learn how the others stand. */
static sf_status agree(const struct room *room, sf_status mine)
{
    const struct sf_factor_job *job = room->job;
    for (size_t i = 0; mine == SF_OK && i < area(job->rows, job->cols); i++)
        if (!isfinite(job->x[i])) mine = SF_FAIL(SF_INVALID, "keys or values are not finite");
    struct stand stand = { (int32_t)mine, room->f->lanes };
    SF_TRY(sf_comm_allgather(room->f->ranks, &stand, sizeof stand, room->stand));
    sf_status worst = mine;
    for (int32_t r = 0; r < room->ranks; r++) {
        int32_t status = room->stand[r].status;
        if (status != SF_OK && status != SF_INVALID && (worst == SF_OK || worst == SF_INVALID))
            worst = r == room->me ? mine : SF_FAIL(SF_STOPPED, "tensor rank %d has no factors", r);
        if (status == SF_INVALID && worst == SF_OK)
            worst = SF_FAIL(SF_INVALID, "tensor rank %d: keys or values are not finite", r);
    }
    return worst;
}

static sf_status by_host(const struct sf_factor_ranks *f, struct heap heap, sf_status mine)
{
    struct sf_factor_place place = { sf_comm_rank(f->ranks), sf_comm_size(f->ranks) };
    struct room room;
    f->device->k->sync(f->device);
    room_take(&heap, f, place, f->device->k->factor_bytes, &room);
    SF_TRY(agree(&room, mine));
    if (f->job.how == SF_FACTOR_RANDOM) return by_range(&room);
    SF_TRY(by_one(&room, f->job.rows, f->job.x));
    f->device->k->copy_columns(f->device, f->job.rows, f->job.rank, f->job.rank, room.all_a,
                               (size_t)f->job.rank, f->job.a, f->job.a_stride);
    return SF_OK;
}

sf_status sf_factor_ranks(const struct sf_factor_ranks *f, sf_status mine)
{
    const struct sf_factor_job *job = &f->job;
    struct sf_device *device = f->device, hosting = sf_device_hosting(device);
    struct heap heap = { job->scratch, 0 };
    SF_ASSERT(job->cols == f->lanes * f->dim);
    SF_ASSERT(job->x_stride == (size_t)job->cols && job->b_stride == (size_t)job->cols);
    if (device->host_memory) return by_host(f, heap, mine);
    struct sf_factor_ranks copies = *f;
    copies.device = &hosting;
    copies_take(&heap, &copies.job);
    if (mine == SF_OK)
        device->k->download(device, (float *)(uintptr_t)copies.job.x, job->x,
                            area(job->rows, job->cols) * sizeof(float));
    SF_TRY(by_host(&copies, heap, mine));
    device->k->upload(device, job->a, copies.job.a, a_floats(job) * sizeof(float));
    device->k->upload(device, job->b, copies.job.b, area(job->rank, job->cols) * sizeof(float));
    return SF_OK;
}
