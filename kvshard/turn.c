/* kvshard/turn.c: keys that leave their position and come to another one.
 *
 * A key is stored after RoPE, k = R(pos) x.  It is turned back by its own position and on by the
 * new one, each by the very table that the model turned it with, so x comes back to the rounding of
 * two products; one turn by the difference would meet other roundings of the angles, which at
 * position 30,000 are a thousandth.  A merged slot stands at one position, and so is turned back by
 * that. */
#include "kvshard/store_impl.h"
#include "model/desc.h"
#include "model/rope.h"

/* table [n][2][rope_dim / 2] on the device.  Takes scratch. */
static sf_status make_table(struct sf_store *store, const int32_t *pos, int32_t n, int32_t rope_dim,
                            float *table)
{
    const struct sf_kernels *kernels = store->device->k;
    const struct sf_model_desc *model = store->setup.model;
    size_t floats = (size_t)rope_dim;
    float *host;
    if (model->rope_theta <= 0) {
        const float *inv_freq = model->rope_inv_freq;
        size_t half = floats / 2;
        float *there;
        SF_ASSERT(inv_freq);
        if (!store->device->host_memory) {
            SF_TRY(sf_scratch_items(&store->dev, half, sizeof *there, &there));
            kernels->upload(store->device, there, inv_freq, half * sizeof *there);
            inv_freq = there;
        }
        kernels->rope_table(store->device, n, pos, inv_freq, rope_dim / 2, table);
        return SF_OK;
    }
    SF_TRY(sf_scratch_items(&store->host, (size_t)n, floats * sizeof *host, &host));
    for (int32_t i = 0; i < n; i++) sf_rope_turns(model, pos[i], host + (size_t)i * floats);
    kernels->upload(store->device, table, host, (size_t)n * floats * sizeof *host);
    return SF_OK;
}

sf_status sf_turn_table(struct sf_store *store, int32_t n, int32_t rope_dim, float *table)
{
    int32_t *pos;
    SF_TRY(sf_scratch_items(&store->host, (size_t)n, sizeof *pos, &pos));
    for (int32_t i = 0; i < n; i++) pos[i] = i;
    return make_table(store, pos, n, rope_dim, table);
}

sf_status sf_turn(struct sf_store *store, int32_t layer, float *k, const int32_t *pos, int32_t n,
                  int back)
{
    const struct sf_kernels *kernels = store->device->k;
    const struct sf_layer *of = &store->setup.layer[store->layer_first + layer];
    size_t stride = (size_t)store->layer[layer].layout.k_dim;
    struct sf_scratch_mark host = sf_scratch_mark(&store->host), dev = sf_scratch_mark(&store->dev);
    int32_t *signed_pos;
    float *table;
    if (n == 0 || of->rope_dim == 0) return SF_OK;
    SF_ASSERT(store->setup.model && of->rope_dim <= of->k_dim);
    SF_TRY(sf_scratch_items(&store->host, (size_t)n, sizeof *signed_pos, &signed_pos));
    SF_TRY(sf_scratch_items(&store->dev, (size_t)n, (size_t)of->rope_dim * sizeof *table, &table));
    for (int32_t i = 0; i < n; i++) signed_pos[i] = back ? -pos[i] : pos[i];
    SF_TRY(make_table(store, signed_pos, n, of->rope_dim, table));
    kernels->rope(store->device, n, of->k_per_group, of->k_dim, of->rope_dim, table, k, stride);
    sf_scratch_back(&store->host, host);
    sf_scratch_back(&store->dev, dev);
    return SF_OK;
}
