/* kernels/cpu/cpu.c: opens the CPU backend: chooses the instruction set, makes the scratch of
 * attention and products, and gives out host memory.  Everything runs at once, so sync has nothing
 * to wait for. */
#include <pthread.h>
#include <string.h>
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/tile.h"

/* One table per instruction set, alike but for the name; filled once per process. */
enum { TABLES = SF_ISA_AVX512_BF16 + 1 };
static struct sf_kernels tables[TABLES];
static struct sf_cpu_isa avx512_vnni, avx512_bf16;      /* filled with them */
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

/* Blocks from LARGE bytes on are mapped by themselves, on huge pages where there are any.  A header
 * in front of every block tells how it was made:
 *
 *   byte 0              64
 *        | size of map  | the block ...       size 0: from sf_alloc */
enum { HEADER = 64, LARGE = 4 << 20 };

static sf_status block_alloc(struct sf_device *device, size_t bytes, const char *what, void **out)
{
    (void)device;
    size_t map_bytes = bytes >= LARGE ? bytes + HEADER : 0;
    unsigned char *base;
    if (map_bytes > 0) SF_TRY(sf_map(map_bytes, 0, what, (void **)&base));
    else SF_TRY(sf_alloc(bytes + HEADER, what, (void **)&base));
    memcpy(base, &map_bytes, sizeof map_bytes);
    *out = base + HEADER;
    return SF_OK;
}

static void block_free(struct sf_device *device, void *block)
{
    (void)device;
    if (!block) return;
    unsigned char *base = (unsigned char *)block - HEADER;
    size_t map_bytes;
    memcpy(&map_bytes, base, sizeof map_bytes);
    if (map_bytes > 0) sf_unmap(base, map_bytes);
    else sf_free(base);
}

static void copy(struct sf_device *device, void *target, const void *source, size_t bytes)
{
    (void)device;
    if (bytes > 0) memcpy(target, source, bytes);
}

static void sync_nothing(struct sf_device *device) { (void)device; }

static const struct sf_cpu_isa *kernels_of(enum sf_isa isa)
{
#if defined(__x86_64__)
    if (isa == SF_ISA_AVX512_BF16) return &avx512_bf16;
    if (isa == SF_ISA_AVX512_VNNI) return &avx512_vnni;
    if (isa == SF_ISA_AVX512) return &sf_cpu_isa_avx512;
    if (isa == SF_ISA_AVX2) return &sf_cpu_isa_avx2;
#endif
    (void)isa;
    return &sf_cpu_isa_generic;
}

#if defined(__x86_64__)
/* The table for AVX-512 with what `more` has of its own. */
static struct sf_cpu_isa avx512_with(const struct sf_cpu_isa *more)
{
    struct sf_cpu_isa isa = sf_cpu_isa_avx512;
    isa.name = more->name;
    isa.split = more->split;
    isa.logits = more->logits;
    isa.columns = more->columns;
    return isa;
}
#endif

static void tables_fill(void)
{
#if defined(__x86_64__)
    avx512_vnni = avx512_with(&sf_cpu_isa_avx512_vnni);
    avx512_bf16 = avx512_with(&sf_cpu_isa_avx512_bf16);
#endif
    for (int isa = SF_ISA_GENERIC; isa < TABLES; isa++) {
        struct sf_kernels *k = &tables[isa];
        k->name = kernels_of(isa)->name;
        k->alloc = block_alloc;
        k->free = block_free;
        k->upload = copy;
        k->download = copy;
        k->sync = sync_nothing;
        sf_cpu_rows_fill(k);
        sf_cpu_mat_fill(k, (enum sf_isa)isa);
        sf_cpu_cache_fill(k);
        k->attend = sf_cpu_attend;
        k->columns = sf_cpu_columns;
        k->pick = sf_cpu_pick;
        k->kv_rebuild = sf_cpu_kv_rebuild;
        k->copy_columns = sf_cpu_copy_columns;
        k->factor_bytes = sf_cpu_factor_bytes;
        k->factor = sf_cpu_factor;
        k->product = sf_cpu_product;
        k->cholesky = sf_cpu_cholesky;
    }
}

static void cpu_close(struct sf_device *device)
{
    struct sf_cpu *cpu = sf_cpu_of(device);
    sf_cpu_attention_destroy(cpu->attention);
    sf_products_destroy(cpu->products);
    sf_cpu_weights_close(device);
    sf_free(cpu);
}

static sf_status cpu_open(const struct sf_device_spec *spec, struct sf_device *device)
{
    pthread_once(&tables_once, tables_fill);
    device->isa = sf_isa_detect();
    if (spec->isa_max != SF_ISA_AUTO && spec->isa_max < device->isa) device->isa = spec->isa_max;
    device->k = &tables[device->isa];
    device->host_memory = 1;
    struct sf_cpu *cpu;
    SF_TRY(sf_alloc(sizeof *cpu, "cpu device", (void **)&cpu));
    device->impl = cpu;
    cpu->isa = kernels_of(device->isa);
    cpu->int8_dot = cpu->isa->int8_dot;
#if defined(__x86_64__)
    if (sf_isa_int8(device->isa) == SF_INT8_VNNI) cpu->int8_dot = sf_int8_dot_vnni;
#endif
    sf_status status = sf_cpu_attention_create(spec->threads, &cpu->attention);
    if (status == SF_OK)
        status = sf_products_create(spec->threads, &cpu->products);
    if (status != SF_OK) cpu_close(device);
    return status;
}

static int64_t cpu_scratch_bytes(const struct sf_device_spec *spec)
{
    return sf_cpu_attention_bytes(spec->threads) + sf_products_bytes(spec->threads);
}

const struct sf_backend sf_backend_cpu = {
    "cpu", cpu_open, cpu_close, cpu_scratch_bytes, sf_products_describe, NULL
};
