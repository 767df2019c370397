/* tests/kernels/staged.c: every entry of kernels.h, its arrays carried to the device and back. */
#include "tests/kernels/staged.h"
#include <stdlib.h>
#include <string.h>
#include "kernels/backend.h"
#if defined(SHEAF_EMULATED)
#include "tests/emulation/emulation.h"
#endif

static struct sf_kernels table;

struct staged { struct sf_device *inner; int reversed; };

static struct sf_device *inner_of(struct sf_device *device)
{
    const struct staged *staged = device->impl;
#if defined(SHEAF_EMULATED)
    emu_set_reversed(staged->reversed);
#endif
    return staged->inner;
}

/* An array of the caller and its twin on the device; `host` NULL: no twin either. */
struct twin {
    struct sf_device *inner;
    void *host, *device;
    size_t bytes;
};

static struct twin carry(struct sf_device *device, const void *host, size_t bytes)
{
    struct twin twin = { inner_of(device), (void *)(uintptr_t)host, NULL, bytes };
    if (!host) return twin;
    if (twin.inner->k->alloc(twin.inner, bytes, "a twin", &twin.device) != SF_OK) abort();
    twin.inner->k->upload(twin.inner, twin.device, host, bytes);
    return twin;
}

/* The twin's end; `back`: what the device made of it comes back first. */
static void drop(struct twin *twin, int back)
{
    if (!twin->host) return;
    if (back) twin->inner->k->download(twin->inner, twin->host, twin->device, twin->bytes);
    twin->inner->k->free(twin->inner, twin->device);
}

/* Bytes of `rows` rows of `cols` elements, the last one without what follows it. */
static size_t extent(size_t rows, size_t stride, size_t cols, size_t element)
{
    return rows == 0 ? 0 : ((rows - 1) * stride + cols) * element;
}

/* ---- memory --------------------------------------------------------------------------------- */

static sf_status host_alloc(struct sf_device *device, size_t bytes, const char *what, void **out)
{
    (void)device;
    (void)what;
    *out = calloc(1, bytes + 1);
    return *out ? SF_OK : SF_NO_MEMORY;
}

static void host_free(struct sf_device *device, void *block)
{
    (void)device;
    free(block);
}

static void host_copy(struct sf_device *device, void *target, const void *source, size_t bytes)
{
    (void)device;
    memcpy(target, source, bytes);
}

static void staged_sync(struct sf_device *device) { inner_of(device)->k->sync(inner_of(device)); }

/* ---- rows ----------------------------------------------------------------------------------- */

static void rmsnorm(struct sf_device *device, int32_t rows, int32_t dim, const float *x,
                    size_t x_stride, const float *weight, float eps, void *out, size_t out_stride,
                    enum sf_dtype out_dtype)
{
    size_t n = (size_t)rows, c = (size_t)dim;
    struct twin a = carry(device, x, extent(n, x_stride, c, 4)), b = carry(device, weight, c * 4);
    struct twin o = carry(device, out, extent(n, out_stride, c, sf_dtype_bytes(out_dtype)));
    inner_of(device)->k->rmsnorm(inner_of(device), rows, dim, a.device, x_stride, b.device, eps,
                                 o.device, out_stride, out_dtype);
    drop(&o, 1);
    drop(&a, 0);
    drop(&b, 0);
}

static void rope_table(struct sf_device *device, int32_t rows, const int32_t *pos,
                       const float *inv_freq, int32_t half, float *table_out)
{
    struct twin f = carry(device, inv_freq, (size_t)half * 4);
    struct twin t = carry(device, table_out, (size_t)rows * 2 * (size_t)half * 4);
    inner_of(device)->k->rope_table(inner_of(device), rows, pos, f.device, half, t.device);
    drop(&t, 1);
    drop(&f, 0);
}

static void rope(struct sf_device *device, int32_t rows, int32_t heads, int32_t head_dim,
                 int32_t rope_dim, const float *turns, float *x, size_t x_stride)
{
    size_t n = (size_t)rows;
    struct twin t = carry(device, turns, n * (size_t)(rope_dim / 2) * 2 * 4);
    struct twin a = carry(device, x, extent(n, x_stride, (size_t)heads * (size_t)head_dim, 4));
    inner_of(device)->k->rope(inner_of(device), rows, heads, head_dim, rope_dim, t.device,
                              a.device, x_stride);
    drop(&a, 1);
    drop(&t, 0);
}

static void swiglu(struct sf_device *device, int32_t rows, int32_t cols, const float *gate,
                   size_t gate_stride, const float *up, size_t up_stride, void *out,
                   size_t out_stride, enum sf_dtype out_dtype)
{
    size_t n = (size_t)rows, c = (size_t)cols;
    struct twin g = carry(device, gate, extent(n, gate_stride, c, 4));
    struct twin u = carry(device, up, extent(n, up_stride, c, 4));
    struct twin o = carry(device, out, extent(n, out_stride, c, sf_dtype_bytes(out_dtype)));
    inner_of(device)->k->swiglu(inner_of(device), rows, cols, g.device, gate_stride, u.device,
                                up_stride, o.device, out_stride, out_dtype);
    drop(&o, 1);
    drop(&g, 0);
    drop(&u, 0);
}

static void add_bias(struct sf_device *device, int32_t rows, int32_t cols, const float *bias,
                     float *x, size_t x_stride)
{
    struct twin b = carry(device, bias, (size_t)cols * 4);
    struct twin a = carry(device, x, extent((size_t)rows, x_stride, (size_t)cols, 4));
    inner_of(device)->k->add_bias(inner_of(device), rows, cols, b.device, a.device, x_stride);
    drop(&a, 1);
    drop(&b, 0);
}

static void add_leaves(struct sf_device *device, int32_t rows, int32_t cols, const float *leaf,
                       int32_t leaves, size_t leaf_stride, size_t row_stride, int onto, float *x,
                       size_t x_stride)
{
    size_t n = (size_t)rows, c = (size_t)cols, more = leaves > 0 ? (size_t)leaves - 1 : 0;
    struct twin l = carry(device, leaf, more * leaf_stride * 4 + extent(n, row_stride, c, 4));
    struct twin a = carry(device, x, extent(n, x_stride, c, 4));
    int same = leaf == x;               /* one block for the host, so one for the device */
    inner_of(device)->k->add_leaves(inner_of(device), rows, cols, l.device, leaves, leaf_stride,
                                    row_stride, onto, same ? l.device : a.device, x_stride);
    drop(&a, !same);
    drop(&l, same);
}

static void copy_rows(struct sf_device *device, int32_t rows, int32_t cols, const int32_t *from,
                      const float *x, size_t x_stride, float *out, size_t out_stride)
{
    size_t last = (size_t)rows;
    for (int32_t r = 0; from && r < rows; r++)
        if ((size_t)from[r] + 1 > last) last = (size_t)from[r] + 1;
    struct twin a = carry(device, x, extent(last, x_stride, (size_t)cols, 4));
    struct twin o = carry(device, out, extent((size_t)rows, out_stride, (size_t)cols, 4));
    inner_of(device)->k->copy_rows(inner_of(device), rows, cols, from, a.device, x_stride,
                                   o.device, out_stride);
    drop(&o, 1);
    drop(&a, 0);
}

static void argmax(struct sf_device *device, int32_t rows, int32_t cols, const float *x,
                   size_t x_stride, float *value_out, int32_t *index_out)
{
    struct twin a = carry(device, x, extent((size_t)rows, x_stride, (size_t)cols, 4));
    inner_of(device)->k->argmax(inner_of(device), rows, cols, a.device, x_stride, value_out,
                                index_out);
    inner_of(device)->k->sync(inner_of(device));
    drop(&a, 0);
}

static void put_rows(struct sf_device *device, int32_t rows, int32_t cols, const int32_t *at,
                     const float *x, size_t x_stride, float *y, size_t y_stride)
{
    int32_t last = 0;
    for (int32_t r = 0; r < rows; r++) last = at[r] + 1 > last ? at[r] + 1 : last;
    struct twin b = carry(device, y, extent((size_t)last, y_stride, (size_t)cols, 4));
    inner_of(device)->k->put_rows(inner_of(device), rows, cols, at, x, x_stride, b.device,
                                  y_stride);
    drop(&b, 1);
}

static void fetch(struct sf_device *device, void *host_dst, const void *source, size_t bytes)
{
    struct sf_device *inner = inner_of(device);
    struct twin a = carry(device, source, bytes);
    void *pinned;
    if (inner->k->host_alloc(inner, bytes, "what is fetched", &pinned) != SF_OK) abort();
    inner->k->fetch(inner, pinned, a.device, bytes);
    inner->k->sync(inner);
    memcpy(host_dst, pinned, bytes);
    inner->k->host_free(inner, pinned);
    drop(&a, 0);
}

static void choose(struct sf_device *device, const struct sf_choose_job *job)
{
    struct sf_choose_job inner = *job;
    size_t rows = (size_t)job->rows, last = 0, tops = rows * SF_CHOICE_TOPS_MAX;
    for (size_t r = 0; r < rows; r++)
        if ((size_t)job->row[r].row + 1 > last) last = (size_t)job->row[r].row + 1;
    struct twin l = carry(device, job->logits, extent(last, job->stride, (size_t)job->vocab, 4));
    struct twin c = carry(device, job->choice, rows * sizeof *job->choice);
    struct twin t = carry(device, job->top, tops * sizeof *job->top);
    inner.logits = l.device;
    inner.choice = c.device;
    inner.top = t.device;
    inner_of(device)->k->choose(inner_of(device), &inner);
    drop(&t, 1);
    drop(&c, 1);
    drop(&l, 1);
}

/* ---- products ------------------------------------------------------------------------------- */

/* Of the table's matrices only this wrapper knows the shape that gives the size of x. */
struct staged_mat { struct sf_mat_shape shape; struct sf_mat *mat; };

static const struct staged_mat *mat_of(const struct sf_mat *mat)
{
    return (const struct staged_mat *)(const void *)mat;
}

static sf_status mat_create(struct sf_device *device, const struct sf_mat_shape *shape,
                            struct sf_mat **out)
{
    struct sf_mat *mat;
    SF_TRY(inner_of(device)->k->mat_create(inner_of(device), shape, &mat));
    struct staged_mat *staged = malloc(sizeof *staged);
    if (!staged) abort();
    *staged = (struct staged_mat){ *shape, mat };
    *out = (struct sf_mat *)(void *)staged;
    return SF_OK;
}

static void mat_destroy(struct sf_device *device, struct sf_mat *mat)
{
    if (mat) inner_of(device)->k->mat_destroy(inner_of(device), mat_of(mat)->mat);
    free(mat);
}

static sf_status mat_pack(struct sf_device *device, struct sf_mat *mat, int32_t panel,
                          int32_t slice, const float *tile)
{
    return inner_of(device)->k->mat_pack(inner_of(device), mat_of(mat)->mat, panel, slice, tile);
}

/* Rows that a call may read and write: `fixed` reaches up to whole blocks. */
static size_t rows_reached(const struct staged_mat *staged, int32_t rows)
{
    size_t n = (size_t)rows;
    return staged->shape.fixed ? (n + SF_FIXED_ROWS - 1) / SF_FIXED_ROWS * SF_FIXED_ROWS : n;
}

static struct twin carry_x(struct sf_device *device, const struct staged_mat *staged, int32_t rows,
                           const void *x, size_t x_stride)
{
    size_t k = (size_t)staged->shape.k_slice * (size_t)staged->shape.slices;
    return carry(device, x, extent(rows_reached(staged, rows), x_stride, k,
                                   sf_dtype_bytes(staged->shape.dtype)));
}

static void matmul(struct sf_device *device, const struct sf_mat *mat, int32_t rows, const void *x,
                   size_t x_stride, float *y, size_t y_stride)
{
    const struct staged_mat *staged = mat_of(mat);
    struct twin a = carry_x(device, staged, rows, x, x_stride);
    struct twin o = carry(device, y, extent(rows_reached(staged, rows), y_stride,
                                            (size_t)staged->shape.cols, 4));
    inner_of(device)->k->matmul(inner_of(device), staged->mat, rows, a.device, x_stride, o.device,
                                y_stride);
    drop(&o, 1);
    drop(&a, 0);
}

static void matmul_leaves(struct sf_device *device, const struct sf_mat *mat, int32_t rows,
                          const void *x, size_t x_stride, float *leaves, size_t leaf_stride,
                          size_t row_stride)
{
    const struct staged_mat *staged = mat_of(mat);
    struct twin a = carry_x(device, staged, rows, x, x_stride);
    size_t last = extent(rows_reached(staged, rows), row_stride, (size_t)staged->shape.cols, 4);
    struct twin o = carry(device, leaves,
                          ((size_t)staged->shape.slices - 1) * leaf_stride * 4 + last);
    inner_of(device)->k->matmul_leaves(inner_of(device), staged->mat, rows, a.device, x_stride,
                                       o.device, leaf_stride, row_stride);
    drop(&o, 1);
    drop(&a, 0);
}

/* ---- cache ---------------------------------------------------------------------------------- */

/* Pages 0 .. the greatest of `pages`, so far at least `pages_least`. */
static int32_t pages_reach(const int32_t *pages, int32_t count, int32_t pages_least)
{
    for (int32_t i = 0; i < count; i++)
        if (pages[i] >= pages_least) pages_least = pages[i] + 1;
    return pages_least;
}

static int32_t slots_reach(const struct sf_layout *layout, const int32_t *pages, int32_t slots,
                           int32_t pages_least)
{
    return pages_reach(pages, (slots + layout->page_slots - 1) / layout->page_slots, pages_least);
}

static int32_t list_reach(const struct sf_layout *layout, const struct sf_slot_list *list)
{
    int32_t reach = 0;
    for (int32_t i = 0; i < list->n; i++)
        reach = pages_reach(list->pages + list->slot[i] / layout->page_slots, 1, reach);
    return reach;
}

/* The pool up to there, with pages that lie page_bytes apart. */
static struct twin carry_pool(struct sf_device *device, const struct sf_layout *layout,
                              const unsigned char *pool, size_t page_bytes, int32_t reach)
{
    return carry(device, pool,
                 extent((size_t)reach, page_bytes, sf_layout_page_bytes(layout), 1));
}

static void kv_clear(struct sf_device *device, const struct sf_layout *layout, unsigned char *page)
{
    struct twin p = carry(device, page, sf_layout_page_bytes(layout));
    inner_of(device)->k->kv_clear(inner_of(device), layout, p.device);
    drop(&p, 1);
}

static void kv_append(struct sf_device *device, const struct sf_append_job *job)
{
    struct sf_append_job inner = *job;
    int32_t reach = 0;
    size_t k_bytes = 0, v_bytes = 0;
    for (int32_t i = 0; i < job->lanes; i++) {
        const struct sf_append_lane *lane = &job->lane[i];
        size_t rows = (size_t)(lane->row_first + lane->rows), head = (size_t)lane->head;
        if (lane->rows == 0) continue;
        reach = slots_reach(&job->layout, lane->pages, lane->slot_first + lane->rows, reach);
        size_t k = extent(rows, job->k_stride, (head + 1) * (size_t)job->layout.k_dim, 4);
        size_t v = extent(rows, job->v_stride, (head + 1) * (size_t)job->layout.v_dim, 4);
        if (k > k_bytes) k_bytes = k;
        if (v > v_bytes) v_bytes = v;
    }
    struct twin k = carry(device, job->k, k_bytes), v = carry(device, job->v, v_bytes);
    struct twin pool = carry_pool(device, &job->layout, job->pool, job->page_bytes, reach);
    inner.k = k.device;
    inner.v = v.device;
    inner.pool = pool.device;
    inner_of(device)->k->kv_append(inner_of(device), &inner);
    drop(&pool, 1);
    drop(&k, 0);
    drop(&v, 0);
}

static void kv_move(struct sf_device *device, const struct sf_layout *layout, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *from,
                    const struct sf_slot_list *to)
{
    int32_t a = list_reach(layout, from), b = list_reach(layout, to);
    struct twin p = carry_pool(device, layout, pool, page_bytes, a > b ? a : b);
    inner_of(device)->k->kv_move(inner_of(device), layout, p.device, page_bytes, from, to);
    drop(&p, 1);
}

static void kv_drop(struct sf_device *device, const struct sf_layout *layout, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *list)
{
    struct twin p = carry_pool(device, layout, pool, page_bytes, list_reach(layout, list));
    inner_of(device)->k->kv_drop(inner_of(device), layout, p.device, page_bytes, list);
    drop(&p, 1);
}

static void kv_read(struct sf_device *device, const struct sf_layout *layout,
                    const unsigned char *pool, size_t page_bytes, const struct sf_slot_list *list,
                    float *k, float *v, float *bias_host, int32_t *pos_host)
{
    size_t n = (size_t)list->n;
    struct twin p = carry_pool(device, layout, pool, page_bytes, list_reach(layout, list));
    struct twin keys = carry(device, k, n * (size_t)layout->k_dim * 4);
    struct twin values = carry(device, v, n * (size_t)layout->v_dim * 4);
    inner_of(device)->k->kv_read(inner_of(device), layout, p.device, page_bytes, list, keys.device,
                                 values.device, bias_host, pos_host);
    drop(&keys, 1);
    drop(&values, 1);
    drop(&p, 0);
}

/* ---- attention ------------------------------------------------------------------------------ */

/* What the lanes of a job reach: pages and the bytes up to the end of the last, rows, and the query
 * head behind the last. */
struct reach { int32_t pages, rows, heads; size_t bytes; };

/* Of a part's factors, and of values that lie as they are. */
static size_t factors_reach(const struct sf_lane_part *part, size_t page_bytes)
{
    const struct sf_lane_factors *factors = part->factors;
    if (!factors) return 0;
    int32_t rows = factors->rank_k > factors->rank_v ? factors->rank_k : factors->rank_v;
    int32_t pages = slots_reach(factors->layout, factors->pages, rows, 0);
    size_t bytes = extent((size_t)pages, page_bytes, sf_layout_page_bytes(factors->layout), 1);
    if (factors->rank_v > 0) return bytes;
    pages = slots_reach(factors->value_layout, factors->value_pages, part->slots, 0);
    size_t more = extent((size_t)pages, page_bytes, sf_layout_page_bytes(factors->value_layout), 1);
    return bytes > more ? bytes : more;
}

/* The turns up to the last position of a part. */
static struct twin carry_turns(struct sf_device *device, const struct sf_lane_part *part,
                               const unsigned char *pool, size_t page_bytes)
{
    const struct sf_layout *layout = part->layout;
    int32_t positions = 1;
    for (int32_t s = 0; s < part->slots; s++) {
        const unsigned char *page = pool + (size_t)part->pages[s / layout->page_slots] * page_bytes;
        const int32_t *pos = (const int32_t *)(const void *)(page + sf_layout_pos_offset(layout));
        if (pos[s % layout->page_slots] >= positions) positions = pos[s % layout->page_slots] + 1;
    }
    return carry(device, part->factors->rope_dim > 0 ? part->factors->turns : NULL,
                 (size_t)positions * (size_t)part->factors->rope_dim * 4);
}

static struct reach lanes_reach(const struct sf_layout *layout, size_t page_bytes,
                                const struct sf_lane_job *lane, int32_t lanes)
{
    struct reach reach = { 0, 0, 0, 0 };
    for (int32_t i = 0; i < lanes; i++) {
        int32_t rows = lane[i].row_first + lane[i].rows, heads = lane[i].q_first + lane[i].q_heads;
        for (int32_t p = -1; p < lane[i].parts; p++) {
            struct sf_lane_part part = sf_lane_part_of(layout, &lane[i], p);
            int32_t pages = slots_reach(part.layout, part.pages, part.slots, 0);
            size_t bytes = extent((size_t)pages, page_bytes, sf_layout_page_bytes(part.layout), 1);
            if (pages > reach.pages) reach.pages = pages;
            if (bytes > reach.bytes) reach.bytes = bytes;
            bytes = factors_reach(&part, page_bytes);
            if (bytes > reach.bytes) reach.bytes = bytes;
        }
        if (lane[i].rows > 0 && rows > reach.rows) reach.rows = rows;
        if (lane[i].rows > 0 && heads > reach.heads) reach.heads = heads;
    }
    return reach;
}

/* The lanes of a job, parts with factors or picks with the turns and picks of the twin: here all
 * such lanes have one part of the same slots, turns and picks; factors may be of their own. */
struct carried {
    struct sf_lane_job *lane;
    struct sf_lane_part *part;          /* [lanes] */
    struct sf_lane_factors *factors;    /* [lanes] */
    struct twin turns, pick;
};

static int has_arrays(const struct sf_lane_job *lane)
{
    return lane->parts > 0 && (lane->part[0].factors || lane->part[0].pick);
}

static void part_carry(struct carried *out, int32_t i)
{
    struct sf_lane_part *part = &out->part[i];
    *part = out->lane[i].part[0];
    part->pick = out->pick.device;
    out->lane[i].part = part;
    if (!part->factors) return;
    out->factors[i] = *part->factors;
    out->factors[i].turns = out->turns.device;
    part->factors = &out->factors[i];
}

static void lanes_carry(struct sf_device *device, const struct sf_attend_job *job,
                        struct carried *out)
{
    const struct sf_lane_part *first = NULL;
    size_t lanes = (size_t)job->lanes;
    out->lane = malloc(lanes * sizeof *out->lane + 1);
    out->part = malloc(lanes * sizeof *out->part + 1);
    out->factors = malloc(lanes * sizeof *out->factors + 1);
    if (!out->lane || !out->part || !out->factors) abort();
    if (lanes > 0) memcpy(out->lane, job->lane, lanes * sizeof *out->lane);
    out->turns = out->pick = (struct twin){ 0 };
    for (int32_t i = 0; i < job->lanes; i++) {
        if (!has_arrays(&out->lane[i])) continue;
        const struct sf_lane_part *part = &out->lane[i].part[0];
        if (!first) {
            out->pick = carry(device, part->pick, (size_t)part->picks * 4);
            if (part->factors) out->turns = carry_turns(device, part, job->pool, job->page_bytes);
            first = part;
        }
        if (out->lane[i].parts != 1 || part->pages != first->pages || part->pick != first->pick ||
            !part->factors != !first->factors)
            abort();
        part_carry(out, i);
    }
}

static void attend(struct sf_device *device, const struct sf_attend_job *job)
{
    struct sf_attend_job inner = *job;
    struct reach reach = lanes_reach(&job->layout, job->page_bytes, job->lane, job->lanes);
    size_t rows = (size_t)reach.rows, heads = (size_t)reach.heads;
    size_t last = heads == 0 ? 0
                : (heads - 1) * job->out_head_stride + (size_t)job->layout.v_dim;
    struct twin pool = carry(device, job->pool, reach.bytes);
    struct twin q = carry(device, job->q,
                          extent(rows, job->q_stride, heads * (size_t)job->layout.k_dim, 4));
    struct twin out = carry(device, job->out,
                            extent(rows, job->out_stride, last, sf_dtype_bytes(job->out_dtype)));
    struct twin lse = carry(device, job->lse, extent(rows, job->lse_stride, heads, 4));
    struct carried lanes;
    lanes_carry(device, job, &lanes);
    inner.lane = lanes.lane;
    inner.pool = pool.device;
    inner.q = q.device;
    inner.out = out.device;
    inner.lse = lse.device;
    inner_of(device)->k->attend(inner_of(device), &inner);
    free(lanes.lane), free(lanes.part), free(lanes.factors);
    drop(&lanes.turns, 0);
    drop(&lanes.pick, 0);
    drop(&out, 1);
    drop(&lse, 1);
    drop(&q, 0);
    drop(&pool, 0);
}

static void columns(struct sf_device *device, const struct sf_columns_job *job)
{
    struct sf_columns_job inner = *job;
    struct reach reach = lanes_reach(&job->layout, job->page_bytes, job->lane, job->lanes);
    size_t rows = (size_t)reach.rows, heads = (size_t)reach.heads;
    struct twin pool = carry(device, job->pool, reach.bytes);
    struct twin q = carry(device, job->q,
                          extent(rows, job->q_stride, heads * (size_t)job->layout.k_dim, 4));
    struct twin lse = carry(device, job->lse, extent(rows, job->lse_stride, heads, 4));
    int32_t mass_slots = job->mass_slots ? job->mass_slots : job->layout.page_slots;
    struct twin mass = carry(device, job->mass, (size_t)reach.pages * (size_t)mass_slots * 4);
    inner.pool = pool.device;
    inner.q = q.device;
    inner.lse = lse.device;
    inner.mass = mass.device;
    inner_of(device)->k->columns(inner_of(device), &inner);
    drop(&mass, 1);
    drop(&lse, 0);
    drop(&q, 0);
    drop(&pool, 0);
}

/* ---- low rank ------------------------------------------------------------------------------- */

static void kv_rebuild(struct sf_device *device, const struct sf_lane_part *part,
                       const unsigned char *pool, size_t page_bytes,
                       const struct sf_slot_list *list, float *k, float *v)
{
    const struct sf_lane_factors *factors = part->factors;
    struct sf_lane_factors inner = *factors;
    struct sf_lane_part inner_part = *part;
    size_t n = (size_t)list->n, reach = factors_reach(part, page_bytes);
    size_t own = extent((size_t)list_reach(part->layout, list), page_bytes,
                        sf_layout_page_bytes(part->layout), 1);
    struct twin p = carry(device, pool, own > reach ? own : reach);
    struct twin turns = carry_turns(device, part, pool, page_bytes);
    struct twin keys = carry(device, k, n * (size_t)factors->layout->k_dim * 4);
    struct twin values = carry(device, v, n * (size_t)sf_lane_factors_v_dim(factors) * 4);
    inner.turns = turns.device;
    inner_part.factors = &inner;
    inner_of(device)->k->kv_rebuild(inner_of(device), &inner_part, p.device, page_bytes, list,
                                    keys.device, values.device);
    drop(&keys, 1);
    drop(&values, 1);
    drop(&turns, 0);
    drop(&p, 0);
}

static void copy_columns(struct sf_device *device, int32_t rows, int32_t x_cols, int32_t cols,
                         const float *x, size_t x_stride, float *y, size_t y_stride)
{
    struct twin a = carry(device, x, extent((size_t)rows, x_stride, (size_t)x_cols, 4));
    struct twin o = carry(device, y, extent((size_t)rows, y_stride, (size_t)cols, 4));
    inner_of(device)->k->copy_columns(inner_of(device), rows, x_cols, cols, a.device, x_stride,
                                      o.device, y_stride);
    drop(&o, 1);
    drop(&a, 0);
}

static sf_status factor(struct sf_device *device, const struct sf_factor_job *job)
{
    struct sf_factor_job inner = *job;
    size_t rows = (size_t)job->rows, cols = (size_t)job->cols, rank = (size_t)job->rank;
    struct twin x = carry(device, job->x, extent(rows, job->x_stride, cols, 4));
    struct twin a = carry(device, job->a, extent(rows, job->a_stride, rank, 4));
    struct twin b = carry(device, job->b, extent(rank, job->b_stride, cols, 4));
    struct twin scratch = carry(device, job->scratch,
                                inner_of(device)->k->factor_bytes(job));
    inner.x = x.device;
    inner.a = a.device;
    inner.b = b.device;
    inner.scratch = scratch.device;
    sf_status status = inner_of(device)->k->factor(inner_of(device), &inner);
    drop(&a, 1);
    drop(&b, 1);
    drop(&x, 0);
    drop(&scratch, 0);
    return status;
}

/* ---- picks ---------------------------------------------------------------------------------- */

static void pick(struct sf_device *device, const struct sf_pick_job *job)
{
    size_t lanes = (size_t)job->lanes, rows = 0, heads = 0;
    struct sf_pick_job inner = *job;
    struct sf_pick_lane *lane = malloc(lanes * sizeof *lane + 1);
    struct twin *out = malloc(lanes * sizeof *out + 1);
    int32_t reach = 0;
    if (!lane || !out) abort();
    for (size_t i = 0; i < lanes; i++) {
        const struct sf_pick_lane *from = &job->lane[i];
        size_t end = (size_t)(from->row_first + from->rows);
        size_t last = (size_t)(from->q_first + from->q_heads);
        reach = slots_reach(&job->layout, from->pages, from->landmarks, reach);
        rows = end > rows ? end : rows;
        heads = last > heads ? last : heads;
        out[i] = carry(device, from->slot_out, (size_t)(from->chunks * job->chunk_slots) * 4);
        lane[i] = *from;
        lane[i].slot_out = out[i].device;
    }
    struct twin q = carry(device, job->q,
                          extent(rows, job->q_stride, heads * (size_t)job->layout.k_dim, 4));
    struct twin pool = carry_pool(device, &job->layout, job->pool, job->page_bytes, reach);
    inner.lane = lane;
    inner.q = q.device;
    inner.pool = pool.device;
    inner_of(device)->k->pick(inner_of(device), &inner);
    for (size_t i = 0; i < lanes; i++) drop(&out[i], 1);
    drop(&q, 0);
    drop(&pool, 0);
    free(lane);
    free(out);
}

/* ---- opening -------------------------------------------------------------------------------- */

static void table_fill(const struct sf_kernels *inner)
{
    table = (struct sf_kernels){
        .name = inner->name, .alloc = host_alloc, .free = host_free, .upload = host_copy,
        .download = host_copy, .sync = staged_sync, .rmsnorm = rmsnorm, .rope_table = rope_table,
        .rope = rope, .swiglu = swiglu, .add_bias = add_bias,
        .add_leaves = add_leaves, .copy_rows = copy_rows, .argmax = argmax, .fetch = fetch,
        .put_rows = put_rows,
        .mat_bytes = inner->mat_bytes, .mat_create = mat_create, .mat_destroy = mat_destroy,
        .mat_pack = mat_pack, .matmul = matmul, .matmul_leaves = matmul_leaves,
        .kv_clear = kv_clear, .kv_append = kv_append, .kv_move = kv_move, .kv_drop = kv_drop,
        .kv_read = kv_read, .attend = attend, .columns = columns,
        .kv_rebuild = kv_rebuild, .copy_columns = copy_columns,
        .factor_bytes = inner->factor_bytes, .factor = factor, .choose = choose, .pick = pick
    };
}

sf_status staged_open(const char *name, int reversed, struct sf_device **device_out)
{
    struct sf_device_spec spec = { .name = name, .threads = 1, .rows_max = 1 };
    struct sf_device *inner;
    SF_TRY(sf_device_open(&spec, &inner));
    struct sf_device *device = malloc(sizeof *device);
    struct staged *staged = malloc(sizeof *staged);
    if (!device || !staged) abort();
    table_fill(inner->k);
    *staged = (struct staged){ inner, reversed };
    *device = (struct sf_device){ .k = &table, .threads = 1, .isa = inner->isa, .impl = staged };
    *device_out = device;
    return SF_OK;
}

void *staged_symbol(struct sf_device *device, const char *name)
{
    return (void *)(uintptr_t)sf_device_symbol(inner_of(device), name);
}

void staged_close(struct sf_device *device)
{
    sf_device_close(inner_of(device));
    free(device->impl);
    free(device);
}
