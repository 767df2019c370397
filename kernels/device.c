/* kernels/device.c: finds the backend by its name and the best instruction set of this machine.
 * The backends themselves are ref/ and cpu/, and plugins for the rest (plugin.c). */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/crew.h"
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/cpu/product.h"
#include "kernels/cuda/sizes.h"

static const struct sf_backend *const backends[] = { &sf_backend_cpu, &sf_backend_ref };

/* A device as its users see it comes first, so that close finds the rest. */
struct opened {
    struct sf_device device;
    const struct sf_backend *backend;
};

static int is_plugin(const char *name)
{
    return strcmp(name, "cuda") == 0 || strcmp(name, "cuda-emulated") == 0;
}

static sf_status backend_find(const char *name, const struct sf_backend **backend_out)
{
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strcmp(backends[i]->name, name) == 0) {
            *backend_out = backends[i];
            return SF_OK;
        }
    if (is_plugin(name))
        return sf_backend_load(name, backend_out);
    return SF_FAIL(SF_UNSUPPORTED, "there is no backend '%s' in this build (cpu, ref)", name);
}

sf_status sf_device_open(const struct sf_device_spec *spec, struct sf_device **device_out)
{
    const struct sf_backend *backend;
    if (spec->threads < 1)
        return SF_FAIL(SF_INVALID, "a device needs at least 1 thread, not %d", spec->threads);
    SF_TRY(backend_find(spec->name, &backend));
    struct opened *opened;
    SF_TRY(sf_alloc(sizeof *opened, "device", (void **)&opened));
    opened->backend = backend;
    opened->device.threads = spec->threads;
    sf_status status = SF_OK;
    if (spec->threads > 1) status = sf_crew_create(spec->threads, &opened->device.crew);
    if (status == SF_OK) status = backend->open(spec, &opened->device);
    if (status != SF_OK) {
        sf_crew_destroy(opened->device.crew);
        sf_free(opened);
        return status;
    }
    *device_out = &opened->device;
    return SF_OK;
}

void sf_device_close(struct sf_device *device)
{
    if (!device) return;
    struct opened *opened = (struct opened *)device;
    opened->backend->close(device);
    sf_crew_destroy(device->crew);
    sf_free(opened);
}

const void *sf_device_symbol(const struct sf_device *device, const char *name)
{
    return sf_backend_symbol(((const struct opened *)device)->backend, name);
}

sf_status sf_device_probe(const char *name, int32_t local_rank, struct sf_device_facts *out)
{
    const struct sf_backend *backend;
    SF_TRY(sf_backend_load(name, &backend));
    return backend->probe(local_rank, out);
}

int sf_device_driver(void)
{
    return access("/dev/nvidiactl", F_OK) == 0 || access("/dev/nvidia0", F_OK) == 0 ||
           access("/dev/dxg", F_OK) == 0;
}

sf_status sf_device_outline(const char *name, struct sf_outline *out)
{
    struct sf_device_spec spec = { .name = name, .threads = 1, .rows_max = 1 };
    struct sf_device *device;
    *out = (struct sf_outline){ sf_cuda_mat_bytes, sf_cuda_factor_bytes, 0, 1,
                                SF_CUDA_V_DIM_MAX, SF_CUDA_BASIS_K_DIM_MAX };
    if (is_plugin(name)) return SF_OK;
    SF_TRY(sf_device_open(&spec, &device));
    *out = (struct sf_outline){ device->k->mat_bytes, device->k->factor_bytes,
                                device->host_memory,
                                device->k->kv_rebuild && device->k->copy_columns, 0, 0 };
    sf_device_close(device);
    return SF_OK;
}

void sf_device_describe_gpus(char *text_out, size_t bytes)
{
    const struct sf_backend *backend;
    if (!sf_device_driver())
        snprintf(text_out, bytes, "none: no NVIDIA driver");
    else if (sf_backend_load("cuda", &backend) != SF_OK)
        snprintf(text_out, bytes, "none: %s", sf_error_text());
    else
        backend->describe(text_out, bytes);
}

int64_t sf_device_scratch_bytes(const struct sf_device_spec *spec)
{
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strcmp(backends[i]->name, spec->name) == 0 && backends[i]->scratch_bytes)
            return backends[i]->scratch_bytes(spec);
    return is_plugin(spec->name) ? SF_CUDA_DEVICE_BYTES : 0;
}

int64_t sf_device_library_bytes(const char *name, int32_t links)
{
    if (strcmp(name, "cuda") != 0) return 0;
    return SF_CUDA_CONTEXT_BYTES + links * SF_NCCL_COMM_BYTES;
}

void sf_device_describe(char *text_out, size_t bytes)
{
    SF_ASSERT(bytes > 0);
    int length = snprintf(text_out, bytes, "%s", sf_isa_name(sf_isa_detect()));
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        if (!backends[i]->describe || length < 0 || (size_t)length + 2 >= bytes) continue;
        memcpy(text_out + length, ", ", 3);
        backends[i]->describe(text_out + length + 2, bytes - (size_t)length - 2);
        length = (int)strlen(text_out);
    }
}

/* __builtin_cpu_supports asks the processor and whether the system saves the registers. */
static enum sf_isa isa_of_machine(void)
{
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c"))
        return SF_ISA_GENERIC;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return SF_ISA_AVX2;
    if (!__builtin_cpu_supports("avx512vnni")) return SF_ISA_AVX512;
    return __builtin_cpu_supports("avx512bf16") ? SF_ISA_AVX512_BF16 : SF_ISA_AVX512_VNNI;
#else
    return SF_ISA_GENERIC;
#endif
}

/* 1 + what sf_isa_limit was called with first; 0: it was not. */
static _Atomic int limit;
static pthread_mutex_t limit_turn = PTHREAD_MUTEX_INITIALIZER;

enum sf_isa sf_isa_detect(void)
{
    enum sf_isa isa = isa_of_machine();
    int held = atomic_load(&limit);
    return held > 1 && held - 1 < (int)isa ? (enum sf_isa)(held - 1) : isa;
}

/* Ranks may be threads: who comes second goes on when oneDNN has been limited, and not before. */
sf_status sf_isa_limit(enum sf_isa most)
{
    sf_status status = SF_OK;
    if (most > isa_of_machine())
        return SF_FAIL(SF_UNSUPPORTED, "model.isa is %s, but this processor has %s at most",
                       sf_isa_name(most), sf_isa_name(isa_of_machine()));
    pthread_mutex_lock(&limit_turn);
    int held = atomic_load(&limit);
    if (held == 0) {
        if (most != SF_ISA_AUTO) status = sf_products_limit(most);
        if (status == SF_OK) atomic_store(&limit, 1 + (int)most);
    } else if (held != 1 + (int)most) {
        status = SF_FAIL(SF_INVALID, "model.isa is %s, but %s holds in this process already",
                         sf_isa_name(most), sf_isa_name((enum sf_isa)(held - 1)));
    }
    pthread_mutex_unlock(&limit_turn);
    return status;
}

int sf_isa_amx(void)
{
#if defined(__x86_64__)
    return atomic_load(&limit) <= 1 && __builtin_cpu_supports("amx-bf16");
#else
    return 0;
#endif
}

const char *sf_isa_name(enum sf_isa isa)
{
    switch (isa) {
    case SF_ISA_AUTO: return "auto";
    case SF_ISA_GENERIC: return "generic";
    case SF_ISA_AVX2: return "avx2";
    case SF_ISA_AVX512: return "avx512";
    case SF_ISA_AVX512_VNNI: return "avx512_vnni";
    case SF_ISA_AVX512_BF16: return "avx512_bf16";
    }
    return "unknown";
}

int sf_isa_multiplies(enum sf_isa isa, enum sf_dtype dtype)
{
    return dtype == SF_F32 || (dtype == SF_BF16 && isa == SF_ISA_AVX512_BF16);
}

enum sf_int8_how sf_isa_int8(enum sf_isa isa)
{
    return isa >= SF_ISA_AVX512_VNNI ? SF_INT8_VNNI : isa == SF_ISA_AVX512 ? SF_INT8_AVX512
           : isa == SF_ISA_AVX2 ? SF_INT8_AVX2 : SF_INT8_PLAIN;
}

const char *sf_int8_name(enum sf_int8_how how)
{
    static const char *const names[] = { "plain loops", "avx2", "avx512", "avx512_vnni" };
    return names[how];
}
