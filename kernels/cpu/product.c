/* kernels/cpu/product.c: oneDNN matmul primitives, made once per shape and run by one thread each.
 *
 * oneDNN asks OpenMP for the number of threads both when a primitive is made (its blocking may
 * depend on it) and, for some of its implementations, when it runs.  So whoever calls it says
 * omp_set_num_threads(1), a setting of the calling thread alone: threads are ours (base/crew.h).
 *
 * oneDNN keeps what it has made in a cache of the whole process, with locks into which
 * ThreadSanitizer does not see; ranks may be threads, so making and freeing take one lock of ours.
 *
 * A shape's primitive is found by hashing; every thread has its own memory objects of it, so that a
 * run only sets four pointers.  No format used here has padding (rows, cols and k are whole
 * blocks), hence setting a pointer never writes to the memory behind it. */
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dnnl.h>
#include "base/memory.h"
#include "kernels/cpu/product.h"

enum { MEM_X, MEM_WEIGHTS, MEM_Y, MEM_PAD, MEMS };

struct sf_product {
    struct sf_product_shape shape;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    const char *implementation;         /* oneDNN's name of it */
    dnnl_memory_t *memory;              /* [threads][MEMS] */
    int32_t threads;
};

struct sf_products {
    dnnl_engine_t engine;
    int32_t threads;
    dnnl_stream_t *stream;              /* [threads] */
    unsigned char *scratch;             /* [threads][THREAD_BYTES] */
    unsigned char *pad;                 /* [threads][pad_bytes]: oneDNN's own scratch */
    size_t pad_bytes;
    struct sf_product **table;          /* open addressing, capacity a power of two */
    size_t capacity, count;
};

enum { THREAD_BYTES = SF_WIDE_BYTES + SF_X_BYTES + SF_Y_BYTES, PAD_BYTES_FIRST = 64 << 10 };

static sf_status worded(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success) return SF_OK;
    if (status == dnnl_out_of_memory) return SF_FAIL(SF_NO_MEMORY, "no memory for oneDNN's %s",
            what);
    if (status == dnnl_unimplemented)
        return SF_FAIL(SF_UNSUPPORTED, "oneDNN has no %s like that here", what);
    return SF_FAIL(SF_INTERNAL, "oneDNN's %s failed with status %d", what, (int)status);
}

void sf_product_run(struct sf_products *products, const struct sf_product *product, int32_t thread,
                    const void *x, const void *weights, float *y)
{
    SF_ASSERT(thread >= 0 && thread < product->threads);
    dnnl_memory_t *memory = product->memory + (size_t)thread * MEMS;
    void *pad = products->pad + (size_t)thread * products->pad_bytes;
    dnnl_status_t status = dnnl_memory_set_data_handle(memory[MEM_X], (void *)x);
    if (status == dnnl_success)
        status = dnnl_memory_set_data_handle(memory[MEM_WEIGHTS], (void *)weights);
    if (status == dnnl_success) status = dnnl_memory_set_data_handle(memory[MEM_Y], y);
    if (status == dnnl_success) status = dnnl_memory_set_data_handle(memory[MEM_PAD], pad);
    const dnnl_exec_arg_t args[MEMS] = {
        { DNNL_ARG_SRC, memory[MEM_X] }, { DNNL_ARG_WEIGHTS, memory[MEM_WEIGHTS] },
        { DNNL_ARG_DST, memory[MEM_Y] }, { DNNL_ARG_SCRATCHPAD, memory[MEM_PAD] }
    };
    omp_set_num_threads(1);
    if (status == dnnl_success)
        status = dnnl_primitive_execute(product->primitive, products->stream[thread], MEMS, args);
    SF_ASSERT(status == dnnl_success);
}

void sf_product_plain(int turned, int32_t rows, int32_t cols, int32_t k, const float *x,
                      size_t x_stride, const float *y, size_t y_stride, float *out,
                      size_t out_stride)
{
    omp_set_num_threads(1);
    dnnl_status_t status = dnnl_sgemm(turned ? 'T' : 'N', 'N', rows, cols, k, 1, x,
                                      (dnnl_dim_t)x_stride, y, (dnnl_dim_t)y_stride, 0, out,
                                      (dnnl_dim_t)out_stride);
    SF_ASSERT(status == dnnl_success);
}

struct sf_product_scratch sf_products_scratch(struct sf_products *products, int32_t thread)
{
    unsigned char *base = products->scratch + (size_t)thread * THREAD_BYTES;
    return (struct sf_product_scratch){ (float *)(void *)base,
                                        (float *)(void *)(base + SF_WIDE_BYTES),
                                        (float *)(void *)(base + SF_WIDE_BYTES + SF_X_BYTES) };
}

/* ---- making one --------------------------------------------------------------------------------
 * */

static dnnl_format_tag_t strip_tag(enum sf_dtype dtype, int32_t strip)
{
    int paired = dtype == SF_BF16;
    switch (strip) {
    case 16: return paired ? dnnl_BA16a16b2a : dnnl_BA16a16b;
    case 32: return paired ? dnnl_BA16a32b2a : dnnl_BA16a32b;
    case 48: return paired ? dnnl_BA16a48b2a : dnnl_BA16a48b;
    case 64: return paired ? dnnl_BA16a64b2a : dnnl_BA16a64b;
    default: return dnnl_ab;
    }
}

static dnnl_status_t describe_product(const struct sf_product_shape *shape, dnnl_engine_t engine,
                                      dnnl_primitive_desc_t *desc_out)
{
    dnnl_data_type_t type = shape->dtype == SF_BF16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_dims_t x_dims = { shape->rows, shape->k }, w_dims = { shape->k, shape->cols };
    const dnnl_dims_t y_dims = { shape->rows, shape->cols };
    dnnl_memory_desc_t x, w, y;
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_attr_t attr;
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&x, 2, x_dims, type, dnnl_ab);
    if (status == dnnl_success)
        status = dnnl_memory_desc_init_by_tag(&w, 2, w_dims, type,
                                              strip_tag(shape->dtype, shape->strip));
    if (status == dnnl_success)
        status = dnnl_memory_desc_init_by_tag(&y, 2, y_dims, dnnl_f32, dnnl_ab);
    if (status == dnnl_success) status = dnnl_matmul_desc_init(&matmul, &x, &w, NULL, &y);
    if (status == dnnl_success) status = dnnl_primitive_attr_create(&attr);
    if (status != dnnl_success) return status;
    status = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (status == dnnl_success)
        status = dnnl_primitive_desc_create(desc_out, &matmul, attr, engine, NULL);
    dnnl_primitive_attr_destroy(attr);
    return status;
}

static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;

/* Under `making`. */
static void product_free(struct sf_product *product)
{
    if (!product) return;
    for (int32_t i = 0; product->memory && i < product->threads * MEMS; i++)
        if (product->memory[i]) dnnl_memory_destroy(product->memory[i]);
    sf_free(product->memory);
    if (product->primitive) dnnl_primitive_destroy(product->primitive);
    if (product->desc) dnnl_primitive_desc_destroy(product->desc);
    sf_free(product);
}

static sf_status memories_create(struct sf_products *products, struct sf_product *product)
{
    static const dnnl_query_t queries[MEMS] = { dnnl_query_src_md, dnnl_query_weights_md,
                                                dnnl_query_dst_md, dnnl_query_scratchpad_md };
    for (int32_t i = 0; i < product->threads * MEMS; i++) {
        const dnnl_memory_desc_t *desc =
            dnnl_primitive_desc_query_md(product->desc, queries[i % MEMS], 0);
        SF_TRY(worded(dnnl_memory_create(&product->memory[i], desc, products->engine,
                                         DNNL_MEMORY_NONE), "memory object"));
    }
    return SF_OK;
}

/* Makes oneDNN's scratch hold what this product asks for. */
static sf_status pad_grow(struct sf_products *products, const struct sf_product *product)
{
    size_t needed = dnnl_memory_desc_get_size(
        dnnl_primitive_desc_query_md(product->desc, dnnl_query_scratchpad_md, 0));
    needed = (needed + 4095) / 4096 * 4096;
    if (needed <= products->pad_bytes) return SF_OK;
    unsigned char *pad;
    SF_TRY(sf_alloc((size_t)products->threads * needed, "scratch of products", (void **)&pad));
    sf_free(products->pad);
    products->pad = pad;
    products->pad_bytes = needed;
    return SF_OK;
}

static sf_status product_fill(struct sf_products *products, struct sf_product *product)
{
    SF_TRY(worded(describe_product(&product->shape, products->engine, &product->desc), "product"));
    SF_TRY(worded(dnnl_primitive_create(&product->primitive, product->desc), "primitive"));
    SF_TRY(worded(dnnl_primitive_desc_query(product->desc, dnnl_query_impl_info_str, 0,
                                            &product->implementation), "name"));
    SF_TRY(sf_alloc((size_t)product->threads * MEMS * sizeof *product->memory, "memory objects",
                    (void **)&product->memory));
    SF_TRY(memories_create(products, product));
    return pad_grow(products, product);
}

static sf_status product_create(struct sf_products *products, const struct sf_product_shape *shape,
                                struct sf_product **out)
{
    struct sf_product *product;
    SF_TRY(sf_alloc(sizeof *product, "product", (void **)&product));
    product->shape = *shape;
    product->threads = products->threads;
    omp_set_num_threads(1);
    pthread_mutex_lock(&making);
    sf_status status = product_fill(products, product);
    if (status != SF_OK) product_free(product);
    else *out = product;
    pthread_mutex_unlock(&making);
    return status;
}

/* ---- the cache ---------------------------------------------------------------------------------
 * */

static int same_shape(const struct sf_product_shape *a, const struct sf_product_shape *b)
{
    return a->rows == b->rows && a->cols == b->cols && a->k == b->k && a->strip == b->strip &&
           a->dtype == b->dtype;
}

/* The place of a shape in the table: its own, or the free one where it belongs. */
static struct sf_product **place_of(const struct sf_products *products,
                                    const struct sf_product_shape *shape)
{
    const uint64_t word[] = { (uint64_t)shape->rows << 32 | (uint32_t)shape->cols,
                              (uint64_t)shape->k << 32 | (uint32_t)shape->strip << 2 |
                                  (uint32_t)shape->dtype };
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof word / sizeof *word; i++) {
        hash = (hash ^ word[i]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    size_t at = hash & (products->capacity - 1);
    while (products->table[at] && !same_shape(&products->table[at]->shape, shape))
        at = (at + 1) & (products->capacity - 1);
    return &products->table[at];
}

static sf_status table_grow(struct sf_products *products)
{
    struct sf_product **old = products->table, **table;
    size_t old_capacity = products->capacity, capacity = old_capacity ? 2 * old_capacity : 256;
    SF_TRY(sf_alloc(capacity * sizeof *table, "table of products", (void **)&table));
    products->table = table;
    products->capacity = capacity;
    for (size_t i = 0; i < old_capacity; i++)
        if (old[i]) *place_of(products, &old[i]->shape) = old[i];
    sf_free(old);
    return SF_OK;
}

sf_status sf_products_get(struct sf_products *products, const struct sf_product_shape *shape,
                          struct sf_product **out)
{
    struct sf_product **place = place_of(products, shape);
    if (!*place) {
        struct sf_product *product;
        if (2 * (products->count + 1) > products->capacity) SF_TRY(table_grow(products));
        SF_TRY(product_create(products, shape, &product));
        place = place_of(products, shape);
        *place = product;
        products->count++;
    }
    *out = *place;
    return SF_OK;
}

sf_status sf_products_strip(struct sf_products *products, enum sf_dtype dtype, int32_t cols,
                            int32_t k, int32_t *strip_out)
{
    struct sf_product *product;
    struct sf_product_shape shape = { .rows = 48, .cols = cols, .k = k, .dtype = dtype };
    if (k % (dtype == SF_BF16 ? 32 : 16) == 0)
        for (shape.strip = 64; shape.strip > 0; shape.strip -= 16)
            if (cols % shape.strip == 0) break;
    if (shape.strip > 0) {
        sf_status status = sf_products_get(products, &shape, &product);
        if (status != SF_OK && status != SF_UNSUPPORTED) return status;
        if (status == SF_OK && !strstr(product->implementation, "ref")) {
            *strip_out = shape.strip;
            return SF_OK;
        }
    }
    shape.strip = 0;
    SF_TRY(sf_products_get(products, &shape, &product));
    if (dtype != SF_F32 && strstr(product->implementation, "ref"))
        return SF_FAIL(SF_UNSUPPORTED, "oneDNN has only '%s' for a product in %s",
                       product->implementation, sf_dtype_name(dtype));
    *strip_out = 0;
    return SF_OK;
}

/* ---- opening and closing -----------------------------------------------------------------------
 * */

sf_status sf_products_create(int32_t threads, struct sf_products **out)
{
    struct sf_products *products;
    SF_TRY(sf_alloc(sizeof *products, "products", (void **)&products));
    products->threads = threads;
    products->pad_bytes = PAD_BYTES_FIRST;
    sf_status status = worded(dnnl_engine_create(&products->engine, dnnl_cpu, 0), "engine");
    if (status == SF_OK)
        status = sf_alloc((size_t)threads * sizeof *products->stream, "streams",
                          (void **)&products->stream);
    for (int32_t t = 0; status == SF_OK && t < threads; t++)
        status = worded(dnnl_stream_create(&products->stream[t], products->engine,
                                           dnnl_stream_default_flags), "stream");
    if (status == SF_OK)
        status = sf_map((size_t)threads * THREAD_BYTES, 0, "scratch of products",
                        (void **)&products->scratch);
    if (status == SF_OK)
        status = sf_alloc((size_t)threads * products->pad_bytes, "scratch of oneDNN",
                          (void **)&products->pad);
    if (status == SF_OK) status = table_grow(products);
    if (status != SF_OK) {
        sf_products_destroy(products);
        return status;
    }
    *out = products;
    return SF_OK;
}

void sf_products_destroy(struct sf_products *products)
{
    if (!products) return;
    pthread_mutex_lock(&making);
    for (size_t i = 0; i < products->capacity; i++) product_free(products->table[i]);
    pthread_mutex_unlock(&making);
    sf_free(products->table);
    sf_free(products->pad);
    if (products->scratch) sf_unmap(products->scratch, (size_t)products->threads * THREAD_BYTES);
    for (int32_t t = 0; products->stream && t < products->threads; t++)
        if (products->stream[t]) dnnl_stream_destroy(products->stream[t]);
    sf_free(products->stream);
    if (products->engine) dnnl_engine_destroy(products->engine);
    sf_free(products);
}

int64_t sf_products_bytes(int32_t threads)
{
    return (int64_t)threads * (THREAD_BYTES + PAD_BYTES_FIRST);
}

sf_status sf_products_limit(enum sf_isa isa)
{
#if !defined(__x86_64__)                /* GENERIC is all there is, and oneDNN has other names */
    (void)isa;
    return SF_OK;
#else
    static const dnnl_cpu_isa_t names[] = {
        [SF_ISA_GENERIC] = dnnl_cpu_isa_sse41, [SF_ISA_AVX2] = dnnl_cpu_isa_avx2,
        [SF_ISA_AVX512] = dnnl_cpu_isa_avx512_core,
        [SF_ISA_AVX512_VNNI] = dnnl_cpu_isa_avx512_core_vnni,
        [SF_ISA_AVX512_BF16] = dnnl_cpu_isa_avx512_core_bf16
    };
    SF_ASSERT(isa != SF_ISA_AUTO);
    if (dnnl_set_max_cpu_isa(names[isa]) == dnnl_success) return SF_OK;
    return SF_FAIL(SF_INTERNAL, "oneDNN cannot be kept to %s any more", sf_isa_name(isa));
#endif
}

void sf_products_describe(char *text_out, size_t bytes)
{
    const dnnl_version_t *version = dnnl_version();
    snprintf(text_out, bytes, "oneDNN %d.%d.%d", version->major, version->minor, version->patch);
}
