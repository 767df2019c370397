/* kernels/cuda/cache.cu: slots in raw pages (kernels/layout.h).
 *
 * The host turns lists of slots into (page, slot in the page), so kernels look nothing up.  One
 * block moves one slot; values are contiguous, elements of a key lie 16 slots apart, as decode
 * reads them.  kv_move first gathers all sources of a piece of the list into the scratch and then
 * writes the targets, since a target may be an earlier source and threads have no order; no two
 * targets of a list are the same slot.  Bound by memory (docs/performance.md). */
#include <string.h>
#include "kernels/cuda/block.h"
#include "kernels/cuda/entries.h"

enum { THREADS = 128 };

struct place { int32_t page, slot; };
struct append_item { int32_t page, slot, row, head, pos; float bias; };

/* Element e of a slot, keys first and then values, counted in elements from the page's start. */
static __device__ __forceinline__ size_t element_at(const struct sf_layout &layout, int32_t slot,
                                                    size_t e)
{
    size_t k_dim = (size_t)layout.k_dim, v_dim = (size_t)layout.v_dim;
    if (e < k_dim) return sf_key_at(layout, slot, e);
    return (size_t)layout.page_slots * k_dim + (size_t)slot * v_dim + (e - k_dim);
}

/* ---- kv_clear, kv_drop ---------------------------------------------------------------------- */

/* One block a mark.  bias -inf, pos -1, if the page has them; of a whole page keys and values are 0
 * too. */
static __global__ void mark_slots(struct sf_layout layout, sf_global<unsigned char> base,
                                  sf_global<const int64_t> marks)
{
    sf_global<const int64_t> mark = marks + (size_t)blockIdx.x * 2;
    sf_global<uint32_t> page = sf_as<uint32_t>(base + (ptrdiff_t)(int64_t)mark[0]);
    int32_t slot = sf_as<const int32_t>(mark)[2];
    size_t bias = sf_bias_word(layout), slots = (size_t)layout.page_slots;
    size_t first = slot < 0 ? 0 : bias + (size_t)slot, step = slot < 0 ? 1 : slots;
    size_t end = slot >= 0 ? first + 2 * slots : layout.k_dim > 0 ? bias + 2 * slots : bias;
    for (size_t i = first + threadIdx.x * step; i < end; i += THREADS * step)
        page[i] = i < bias ? 0u : i < bias + slots ? 0xff800000u : 0xffffffffu;
}

void sf_cuda_marks_send(struct sf_cuda *cuda)
{
    struct sf_cuda_marks *marks = &cuda->marks;
    size_t n = (size_t)marks->n;
    if (n == 0) return;
    marks->n = 0;                       /* first: taking a block comes here */
    struct sf_cuda_block block = sf_cuda_stage(cuda, n * sizeof *marks->mark);
    memcpy(block.host, marks->mark, n * sizeof *marks->mark);
    sf_cuda_send(cuda, &block);
    SF_LAUNCH(mark_slots, sf_blocks(n, 1), THREADS, 0, cuda->stream, marks->layout, marks->base,
              (const int64_t *)(const void *)block.device);
}

static void mark_later(struct sf_cuda *cuda, const struct sf_layout *layout, unsigned char *page,
                       int32_t slot)
{
    struct sf_cuda_marks *marks = &cuda->marks;
    const struct sf_layout *has = &marks->layout;
    if (marks->n == SF_CUDA_MARKS || has->dtype != layout->dtype || has->k_dim != layout->k_dim ||
        has->v_dim != layout->v_dim || has->page_slots != layout->page_slots)
        sf_cuda_marks_send(cuda);
    if (marks->n == 0) {
        marks->layout = *layout;
        marks->base = page;
    }
    marks->mark[marks->n++] = { page - marks->base, slot, 0 };
}

static void kv_clear(struct sf_device *device, const struct sf_layout *layout, unsigned char *page)
{
    mark_later(sf_cuda_of(device), layout, page, -1);
}

static void kv_drop(struct sf_device *device, const struct sf_layout *layout, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *list)
{
    SF_ASSERT(layout->k_dim > 0);
    for (int32_t i = 0; i < list->n; i++) {
        size_t page = (size_t)list->pages[list->slot[i] / layout->page_slots];
        mark_later(sf_cuda_of(device), layout, pool + page * page_bytes,
                   list->slot[i] % layout->page_slots);
    }
}

/* ---- kv_append ------------------------------------------------------------------------------ */

static __global__ void append_slots(struct sf_layout layout, sf_global<unsigned char> pool,
                                    size_t page_bytes, sf_global<const float> k, size_t k_stride,
                                    sf_global<const float> v, size_t v_stride,
                                    sf_global<const int32_t> items)
{
    sf_global<const int32_t> item = items + (size_t)blockIdx.x * 6;
    int32_t slot = item[1];
    size_t row = (size_t)(int32_t)item[2], head = (size_t)(int32_t)item[3];
    size_t k_dim = (size_t)layout.k_dim, v_dim = (size_t)layout.v_dim;
    sf_global<unsigned char> page = pool + (size_t)(int32_t)item[0] * page_bytes;
    sf_global<const float> from_k = k + (row * k_stride + head * k_dim);
    sf_global<const float> from_v = v + (row * v_stride + head * v_dim);
    for (size_t e = threadIdx.x; e < k_dim + v_dim; e += THREADS)
        sf_put(layout.dtype, page, element_at(layout, slot, e),
               sf_in_range(layout.dtype, e < k_dim ? (float)from_k[e] : (float)from_v[e - k_dim]));
    if (threadIdx.x < 2 && k_dim > 0) {
        size_t at = sf_bias_word(layout) + (size_t)slot;
        if (threadIdx.x == 1) at += (size_t)layout.page_slots;
        sf_as<int32_t>(page)[at] = item[threadIdx.x == 0 ? 5 : 4];
    }
}

/* The same in int8 (layout.h), vector by vector.  Magnitudes order as their bits do, and those of a
 * NaN are above all others. */
static __device__ __forceinline__ int32_t most_bits(sf_global<const float> x, size_t n,
                                                    sf_shared<int32_t> part)
{
    int32_t most = 0;
    for (size_t e = threadIdx.x; e < n; e += THREADS) {
        float value = x[e];
        int32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    for (int lanes = SF_WARP / 2; lanes > 0; lanes /= 2) {
        int32_t other = __shfl_xor_sync(SF_FULL_MASK, most, lanes);
        most = other > most ? other : most;
    }
    if (threadIdx.x % SF_WARP == 0) part[threadIdx.x / SF_WARP] = most;
    __syncthreads();
    for (unsigned w = 0; w < THREADS / SF_WARP; w++) most = part[w] > most ? part[w] : most;
    __syncthreads();
    return most;
}

/* Adding 1.5 * 2^23 pushes the fraction out of the mantissa, rounded to nearest even, and leaves
 * the code in the low byte. */
static __device__ __forceinline__ int8_t code_of(float x, float inverse)
{
    float inside = x < -0x1p127f ? -0x1p127f : x > 0x1p127f ? 0x1p127f : x;
    float shifted = inside * inverse + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (int8_t)(bits & 0xff);
}

static __global__ void append_int8(struct sf_layout layout, sf_global<unsigned char> pool,
                                   size_t page_bytes, sf_global<const float> k, size_t k_stride,
                                   sf_global<const float> v, size_t v_stride,
                                   sf_global<const int32_t> items)
{
    SF_SHARED(int32_t, part, THREADS / SF_WARP);
    sf_global<const int32_t> item = items + (size_t)blockIdx.x * 6;
    int32_t slot = item[1];
    size_t row = (size_t)(int32_t)item[2], head = (size_t)(int32_t)item[3];
    size_t k_dim = (size_t)layout.k_dim, v_dim = (size_t)layout.v_dim;
    sf_global<unsigned char> page = pool + (size_t)(int32_t)item[0] * page_bytes;
    for (int values = 0; values < 2; values++) {
        size_t n = values ? v_dim : k_dim, at = sf_scale_word(layout) + (size_t)slot;
        if (n == 0) continue;
        sf_global<const float> from = values ? v + (row * v_stride + head * v_dim)
                                             : k + (row * k_stride + head * k_dim);
        int32_t bits = most_bits(from, n, part);
        float most;
        if (bits > 0x7f000000 && bits <= 0x7f800000) bits = 0x7f000000;
        memcpy(&most, &bits, sizeof most);
        bool none = !(most >= 0x1p-100f);
        float inverse = none ? 0 : 127 / most;
        for (size_t e = threadIdx.x; e < n; e += THREADS)
            sf_as<int8_t>(page)[element_at(layout, slot, values ? k_dim + e : e)] =
                none ? (int8_t)0 : code_of(from[e], inverse);
        if (threadIdx.x > 0) continue;
        float scale = none ? 0 : most / 127;
        int32_t word = 0x7fc00000;      /* NaN */
        if (bits <= 0x7f800000) memcpy(&word, &scale, sizeof word);
        sf_as<int32_t>(page)[values && k_dim > 0 ? at + (size_t)layout.page_slots : at] = word;
    }
    if (threadIdx.x < 2 && k_dim > 0) {
        size_t at = sf_bias_word(layout) + (size_t)slot;
        if (threadIdx.x == 1) at += (size_t)layout.page_slots;
        sf_as<int32_t>(page)[at] = item[threadIdx.x == 0 ? 5 : 4];
    }
}

static void append_launch(struct sf_device *device, const struct sf_append_job *job,
                          const struct sf_cuda_block *block, size_t items)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    if (items == 0) return;
    sf_cuda_send(cuda, block);
    const int32_t *item = (const int32_t *)(const void *)block->device;
    if (job->layout.dtype == SF_INT8)
        SF_LAUNCH(append_int8, sf_blocks(items, 1), THREADS, 0, cuda->stream, job->layout,
                  job->pool, job->page_bytes, job->k, job->k_stride, job->v, job->v_stride, item);
    else
        SF_LAUNCH(append_slots, sf_blocks(items, 1), THREADS, 0, cuda->stream, job->layout,
                  job->pool, job->page_bytes, job->k, job->k_stride, job->v, job->v_stride, item);
}

static void kv_append(struct sf_device *device, const struct sf_append_job *job)
{
    const size_t most = SF_CUDA_HALF_BYTES / sizeof(struct append_item);
    struct sf_cuda *cuda = sf_cuda_of(device);
    size_t total = 0, used = 0;
    for (int32_t i = 0; i < job->lanes; i++) total += (size_t)job->lane[i].rows;
    struct sf_cuda_block block = { NULL, NULL, 0 };
    for (int32_t i = 0; i < job->lanes; i++) {
        const struct sf_append_lane *lane = &job->lane[i];
        for (int32_t r = 0; r < lane->rows; r++) {
            if (used == 0)
                block = sf_cuda_stage(cuda, (total < most ? total : most) *
                                            sizeof(struct append_item));
            int32_t slot = lane->slot_first + r, row = lane->row_first + r;
            struct append_item *item = (struct append_item *)(void *)block.host + used++;
            item->page = lane->pages[slot / job->layout.page_slots];
            item->slot = slot % job->layout.page_slots;
            item->row = row;
            item->head = lane->head;
            item->pos = job->layout.k_dim > 0 ? job->pos[row] : -1;
            item->bias = job->layout.k_dim > 0 && job->bias ? job->bias[row] : 0;
            if (used < most && used < total) continue;
            append_launch(device, job, &block, used);
            total -= used;
            used = 0;
        }
    }
}

/* ---- kv_move, kv_read ----------------------------------------------------------------------- */

/* Slots first .. first + n - 1 of a list as places. */
static void places_fill(const struct sf_layout *layout, const struct sf_slot_list *list,
                        int32_t first, int32_t n, struct place *places)
{
    for (int32_t i = 0; i < n; i++) {
        int32_t slot = list->slot[first + i];
        places[i].page = list->pages[slot / layout->page_slots];
        places[i].slot = slot % layout->page_slots;
    }
}

/* Places that one piece of a list may have, if each takes `bytes` of scratch. */
static int32_t piece_of(int32_t left, size_t bytes)
{
    size_t most = SF_CUDA_HALF_BYTES / (2 * sizeof(struct place));
    size_t fits = bytes > 0 ? SF_CUDA_SCRATCH_BYTES / bytes : most;
    if (fits < most) most = fits;
    return (size_t)left < most ? left : (int32_t)most;
}

/* A slot in the scratch: its elements, filled up to a word, then its scales, bias and pos. */
static size_t record_bytes(const struct sf_layout *layout)
{
    size_t n = (size_t)(layout->k_dim + layout->v_dim), words = 2;
    if (layout->dtype == SF_INT8) words += (size_t)(layout->k_dim > 0) + (layout->v_dim > 0);
    return (n * sf_dtype_bytes(layout->dtype) + 3) / 4 * 4 + words * 4;
}

/* E: an integer as wide as an element.  gather: from the pages to the scratch, else back. */
template <class E> __global__ void move_slots(struct sf_layout layout,
                                              sf_global<unsigned char> pool, size_t page_bytes,
                                              sf_global<const int32_t> places,
                                              sf_global<unsigned char> records,
                                              size_t bytes_of_record, int gather)
{
    sf_global<const int32_t> place = places + (size_t)blockIdx.x * 2;
    int32_t slot = place[1];
    sf_global<unsigned char> page = pool + (size_t)(int32_t)place[0] * page_bytes;
    sf_global<unsigned char> record = records + (size_t)blockIdx.x * bytes_of_record;
    sf_global<E> in_page = sf_as<E>(page), in_record = sf_as<E>(record);
    size_t n = (size_t)(layout.k_dim + layout.v_dim), slots = (size_t)layout.page_slots;
    for (size_t e = threadIdx.x; e < n; e += THREADS) {
        size_t at = element_at(layout, slot, e);
        if (gather) in_record[e] = in_page[at];
        else in_page[at] = in_record[e];
    }
    size_t first = sf_scale_word(layout), words = (sf_bias_word(layout) - first) / slots + 2;
    if (threadIdx.x < words) {
        size_t word = first + (size_t)slot + threadIdx.x * slots;
        size_t last = (n * sizeof(E) + 3) / 4 + threadIdx.x;
        if (gather) sf_as<uint32_t>(record)[last] = sf_as<uint32_t>(page)[word];
        else sf_as<uint32_t>(page)[word] = sf_as<uint32_t>(record)[last];
    }
}

static void move_launch(struct sf_cuda *cuda, const struct sf_layout *layout, unsigned char *pool,
                        size_t page_bytes, int32_t n, const int32_t *places, int gather)
{
    if (layout->dtype == SF_F32)
        SF_LAUNCH(move_slots<uint32_t>, (unsigned)n, THREADS, 0, cuda->stream, *layout, pool,
                  page_bytes, places, cuda->scratch, record_bytes(layout), gather);
    else if (layout->dtype == SF_INT8)
        SF_LAUNCH(move_slots<uint8_t>, (unsigned)n, THREADS, 0, cuda->stream, *layout, pool,
                  page_bytes, places, cuda->scratch, record_bytes(layout), gather);
    else
        SF_LAUNCH(move_slots<uint16_t>, (unsigned)n, THREADS, 0, cuda->stream, *layout, pool,
                  page_bytes, places, cuda->scratch, record_bytes(layout), gather);
}

static void kv_move(struct sf_device *device, const struct sf_layout *layout, unsigned char *pool,
                    size_t page_bytes, const struct sf_slot_list *from,
                    const struct sf_slot_list *to)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    SF_ASSERT(from->n == to->n && layout->k_dim > 0);
    for (int32_t first = 0, n; first < from->n; first += n) {
        n = piece_of(from->n - first, record_bytes(layout));
        size_t bytes = (size_t)n * sizeof(struct place);
        struct sf_cuda_block block = sf_cuda_stage(cuda, 2 * bytes);
        places_fill(layout, from, first, n, (struct place *)(void *)block.host);
        places_fill(layout, to, first, n, (struct place *)(void *)(block.host + bytes));
        sf_cuda_send(cuda, &block);
        move_launch(cuda, layout, pool, page_bytes, n, (const int32_t *)(void *)block.device, 1);
        move_launch(cuda, layout, pool, page_bytes, n,
                    (const int32_t *)(void *)(block.device + bytes), 0);
    }
}

/* Any of k, v, bias and pos may be NULL. */
static __global__ void read_slots(struct sf_layout layout, sf_global<const unsigned char> pool,
                                  size_t page_bytes, sf_global<const int32_t> places,
                                  sf_global<float> k, sf_global<float> v, sf_global<float> bias,
                                  sf_global<int32_t> pos)
{
    size_t i = blockIdx.x, k_dim = (size_t)layout.k_dim, v_dim = (size_t)layout.v_dim;
    int32_t slot = places[2 * i + 1];
    sf_global<const unsigned char> page = pool + (size_t)(int32_t)places[2 * i] * page_bytes;
    float k_scale = 1, v_scale = 1;
    if (layout.dtype == SF_INT8 && k && k_dim > 0)
        k_scale = sf_scale_of(layout, page, slot, false);
    if (layout.dtype == SF_INT8 && v && v_dim > 0) v_scale = sf_scale_of(layout, page, slot, true);
    for (size_t e = threadIdx.x; k && e < k_dim; e += THREADS)
        k[i * k_dim + e] = k_scale * sf_get(layout.dtype, page, sf_key_at(layout, slot, e));
    for (size_t e = threadIdx.x; v && e < v_dim; e += THREADS)
        v[i * v_dim + e] =
            v_scale * sf_get(layout.dtype, page, element_at(layout, slot, k_dim + e));
    size_t word = sf_bias_word(layout) + (size_t)slot;
    if (bias && threadIdx.x == 0) bias[i] = sf_as<const float>(page)[word];
    if (pos && threadIdx.x == 1)
        pos[i] = sf_as<const int32_t>(page)[word + (size_t)layout.page_slots];
}

static void kv_read(struct sf_device *device, const struct sf_layout *layout,
                    const unsigned char *pool, size_t page_bytes, const struct sf_slot_list *list,
                    float *k, float *v, float *bias_host, int32_t *pos_host)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    if (!k && !v && !bias_host && !pos_host) return;
    for (int32_t first = 0, n; first < list->n; first += n) {
        n = piece_of(list->n - first, 8);
        struct sf_cuda_block block = sf_cuda_stage(cuda, (size_t)n * sizeof(struct place));
        places_fill(layout, list, first, n, (struct place *)(void *)block.host);
        sf_cuda_send(cuda, &block);
        float *bias = bias_host ? (float *)(void *)cuda->scratch : NULL;
        int32_t *pos = pos_host ? (int32_t *)(void *)cuda->scratch + n : NULL;
        SF_LAUNCH(read_slots, (unsigned)n, THREADS, 0, cuda->stream, *layout, pool, page_bytes,
                  (const int32_t *)(void *)block.device,
                  k ? k + (size_t)first * (size_t)layout->k_dim : NULL,
                  v ? v + (size_t)first * (size_t)layout->v_dim : NULL, bias, pos);
        if (bias) sf_cuda_download(device, bias_host + first, bias, (size_t)n * sizeof *bias);
        if (pos) sf_cuda_download(device, pos_host + first, pos, (size_t)n * sizeof *pos);
    }
}

void sf_cuda_cache_fill(struct sf_kernels *k)
{
    k->kv_clear = kv_clear;
    k->kv_append = kv_append;
    k->kv_move = kv_move;
    k->kv_drop = kv_drop;
    k->kv_read = kv_read;
}
