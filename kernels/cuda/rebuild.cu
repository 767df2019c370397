/* kernels/cuda/rebuild.cu: slots that are rows of a basis, read one by one: what methods and tests
 * look at, where attention (basis.cu) never makes whole slots.  And copy_columns, which puts the
 * matrix together that a basis is made of. */
#include <string.h>
#include "kernels/backend.h"
#include "kernels/cuda/entries.h"
#include "kernels/cuda/lanes.h"

enum { THREADS = 128 };

struct rebuilt {
    struct sf_layout layout, factors, values;
    sf_global<const unsigned char> pool;
    size_t page_bytes;
    /* places: [slots][4] page, slot there, the same of values for rank_v 0 */
    sf_global<const int32_t> places, factor_pages;
    int32_t rank_k, rank_v, rope_dim;
    sf_global<const float> turns;
};

/* One block a slot; a thread has elements. */
static __global__ void rebuild_slots(struct rebuilt r, sf_global<float> k, sf_global<float> v)
{
    SF_SHARED_DYNAMIC(float, key);      /* [k_dim] */
    size_t i = blockIdx.x, k_dim = (size_t)r.factors.k_dim, v_dim = (size_t)r.values.v_dim;
    int32_t slot = r.places[4 * i + 1], half = r.rope_dim / 2;
    sf_global<const unsigned char> page = r.pool + (size_t)(int32_t)r.places[4 * i] * r.page_bytes;
    sf_global<const unsigned char> plain =
        r.pool + (size_t)(int32_t)r.places[4 * i + 2] * r.page_bytes;
    size_t a_v = (size_t)r.layout.page_slots * (size_t)r.layout.k_dim +
                 (size_t)slot * (size_t)r.layout.v_dim;
    size_t b_v = (size_t)r.factors.page_slots * k_dim;
    for (size_t e = threadIdx.x; e < (k ? k_dim : 0) + (v ? v_dim : 0); e += THREADS) {
        bool values = !k || e >= k_dim;
        size_t own = values && k ? e - k_dim : e;
        float sum = 0;
        for (int32_t n = 0; n < (values ? r.rank_v : r.rank_k); n++) {
            int32_t number = r.factor_pages[n / r.factors.page_slots];
            int32_t row = n % r.factors.page_slots;
            sf_global<const unsigned char> b = r.pool + (size_t)number * r.page_bytes;
            size_t a_at = values ? a_v + (size_t)n : sf_key_at(r.layout, slot, (size_t)n);
            size_t b_at = values ? b_v + (size_t)row * v_dim + own : sf_key_at(r.factors, row, own);
            sum = fmaf(sf_get(r.layout.dtype, page, a_at), sf_get(r.factors.dtype, b, b_at), sum);
        }
        if (values && r.rank_v == 0)
            sum = sf_get(r.values.dtype, plain,
                         (size_t)(int32_t)r.places[4 * i + 3] * v_dim + own);
        if (values) v[i * v_dim + own] = sum;
        else key[own] = sum;
    }
    if (!k) return;
    __syncthreads();
    size_t word = (size_t)r.layout.page_slots + sf_bias_word(r.layout) + (size_t)slot;
    int32_t pos = r.rope_dim > 0 ? sf_as<const int32_t>(page)[word] : 0;
    sf_global<const float> turn = r.turns + (size_t)pos * (size_t)r.rope_dim;
    for (int32_t e = (int32_t)threadIdx.x; e < r.factors.k_dim; e += THREADS) {
        float value = key[e];
        if (e < r.rope_dim) {
            float cos = turn[e % half], sin = turn[half + e % half];
            value = e < half ? value * cos - key[e + half] * sin
                             : value * cos + key[e - half] * sin;
        }
        k[i * k_dim + (size_t)e] = value;
    }
}

static void kv_rebuild(struct sf_device *device, const struct sf_lane_part *part,
                       const unsigned char *pool, size_t page_bytes,
                       const struct sf_slot_list *list, float *k, float *v)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    const struct sf_lane_factors *factors = part->factors;
    int32_t most = factors->rank_k > factors->rank_v ? factors->rank_k : factors->rank_v;
    size_t pages = (size_t)((most + factors->layout->page_slots - 1) / factors->layout->page_slots);
    size_t word = sizeof(int32_t), fits = SF_CUDA_HALF_BYTES / word / 8;
    struct sf_layout values = factors->rank_v > 0 ? *factors->layout : *factors->value_layout;
    SF_ASSERT(pages <= fits);
    if (!k && !v) return;
    for (int32_t first = 0, n; first < list->n; first += n) {
        n = (size_t)(list->n - first) < fits ? list->n - first : (int32_t)fits;
        struct sf_cuda_block block = sf_cuda_stage(cuda, (4 * (size_t)n + pages) * word);
        int32_t *places = (int32_t *)(void *)block.host;
        for (int32_t i = 0; i < n; i++) {
            int32_t slot = list->slot[first + i];
            places[4 * i] = list->pages[slot / part->layout->page_slots];
            places[4 * i + 1] = slot % part->layout->page_slots;
            places[4 * i + 2] = places[4 * i];
            if (factors->rank_v == 0)
                places[4 * i + 2] = factors->value_pages[slot / values.page_slots];
            places[4 * i + 3] = slot % values.page_slots;
        }
        memcpy(places + 4 * (size_t)n, factors->pages, pages * word);
        sf_cuda_send(cuda, &block);
        const int32_t *sent = (const int32_t *)(const void *)block.device;
        struct rebuilt r = { *part->layout, *factors->layout, values, pool, page_bytes, sent,
                             sent + 4 * (size_t)n, factors->rank_k, factors->rank_v,
                             factors->rope_dim, factors->turns };
        SF_LAUNCH(rebuild_slots, (unsigned)n, THREADS,
                  (size_t)factors->layout->k_dim * sizeof(float), cuda->stream, r,
                  k ? k + (size_t)first * (size_t)factors->layout->k_dim : NULL,
                  v ? v + (size_t)first * (size_t)values.v_dim : NULL);
    }
}

/* ---- copy_columns --------------------------------------------------------------------------- */

static __global__ void columns_copy(int32_t rows, int32_t x_cols, int32_t cols,
                                    sf_global<const float> x, size_t x_stride, sf_global<float> y,
                                    size_t y_stride)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, width = (size_t)cols;
    if (i >= (size_t)rows * width) return;
    size_t row = i / width, c = i % width;
    y[row * y_stride + c] = c < (size_t)x_cols ? (float)x[row * x_stride + c] : 0.0f;
}

static void copy_columns(struct sf_device *device, int32_t rows, int32_t x_cols, int32_t cols,
                         const float *x, size_t x_stride, float *y, size_t y_stride)
{
    size_t count = (size_t)rows * (size_t)cols;
    if (count == 0) return;
    SF_LAUNCH(columns_copy, sf_blocks(count, THREADS), THREADS, 0, sf_cuda_of(device)->stream,
              rows, x_cols, cols, x, x_stride, y, y_stride);
}

void sf_cuda_rebuild_fill(struct sf_kernels *k)
{
    k->kv_rebuild = kv_rebuild;
    k->copy_columns = copy_columns;
}
