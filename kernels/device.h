/* kernels/device.h: opening a backend.  One device belongs to one rank and is used by one thread at
 * a time; several devices may live in one process (ranks as threads). */
#ifndef SHEAF_KERNELS_DEVICE_H
#define SHEAF_KERNELS_DEVICE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "kernels/kernels.h"
SF_C_BEGIN

/* Each has what those before it have. */
enum sf_isa {
    SF_ISA_AUTO, SF_ISA_GENERIC, SF_ISA_AVX2, SF_ISA_AVX512, SF_ISA_AVX512_VNNI, SF_ISA_AVX512_BF16
};

struct sf_device_spec {
    const char *name;                   /* "cpu", "ref", "cuda", "cuda-emulated" */
    int32_t local_rank;                 /* this rank's number on its node: picks its GPU */
    int32_t threads;                    /* of this rank, >= 1 */
    enum sf_isa isa_max;                /* tests pin a lower one; AUTO: the best that is there */
    int32_t rows_max;                   /* most rows of any product, for scratch */
};
struct sf_device {
    const struct sf_kernels *k;
    int32_t threads;
    /* Of these threads (base/crew.h); NULL if there is one.  It has one caller at a time, and hence
     * so have the device and what sf_device_hosting makes of it. */
    struct sf_crew *crew;
    enum sf_isa isa;
    /* 1: the host may read and write the device's memory, and work is done on return */
    int host_memory;
    /* Set by who lets this device wait for others' (comm/link_nccl.c), else NULL: called again and
     * again, round from 0 on, while an entry waits for the device. */
    void (*waiting)(void *arg, int64_t round);
    void *waiting_arg;
    void *impl;                         /* the backend's own */
};

/* What a rank finds of GPUs; count >= 1. */
enum { SF_DEVICE_ID_MAX = 32 };
struct sf_device_facts {
    int32_t count;                      /* that this process sees */
    int64_t memory_free;                /* bytes of the one that the rank gets */
    char id[SF_DEVICE_ID_MAX];          /* of that one, on its node */
};

sf_status sf_device_open(const struct sf_device_spec *, struct sf_device **device_out);
void      sf_device_close(struct sf_device *);
/* What the shared object of the device's backend has under this name; NULL if it has no such thing
 * or is no shared object. */
const void *sf_device_symbol(const struct sf_device *, const char *name);

/* On which the host factors what is this device's: itself where the host can touch its memory, else
 * its threads with the CPU's sync, copy_columns, factor_bytes, factor, product and cholesky, and no
 * other entry.  Nothing to close. */
struct sf_device sf_device_hosting(const struct sf_device *);

/* Without opening anything: "cuda" or "cuda-emulated".  SF_UNSUPPORTED with the reason where there
 * is no plugin, no driver or no GPU. */
sf_status sf_device_probe(const char *name, int32_t local_rank, struct sf_device_facts *out);
/* Whether this machine seems to have a driver at all: cheap, loads nothing. */
int       sf_device_driver(void);
/* What a plan needs of a backend, on whatever machine: of its table, and host_memory. */
struct sf_outline {
    int64_t (*mat_bytes)(const struct sf_mat_shape *);
    size_t (*factor_bytes)(const struct sf_factor_job *);
    int host_memory;
    int low_rank;                       /* attention takes parts with factors */
    /* Most elements of a value, and of a key of a part with factors; 0: any */
    int32_t v_dim_max, group_k_dim_max;
};
sf_status sf_device_outline(const char *name, struct sf_outline *out);

/* Best instruction set of this machine, or of those that it is limited to. */
enum sf_isa sf_isa_detect(void);
/* Keeps the kernels and oneDNN to this instruction set (AUTO: to none), in the whole process and
 * from now on: before a device is opened, and by the same one for all.  LAPACK, which layer groups
 * are factored with, takes what OpenBLAS finds (OPENBLAS_CORETYPE sets that).  SF_UNSUPPORTED if
 * the processor lacks it, SF_INVALID if another limit holds. */
sf_status sf_isa_limit(enum sf_isa);
const char *sf_isa_name(enum sf_isa);
int sf_isa_amx(void);                   /* whether there is AMX for bf16, and it may be taken */
/* Whether products in `dtype` run natively on `isa`; if not, it is a storage type and the work is
 * f32 in panels. */
int sf_isa_multiplies(enum sf_isa, enum sf_dtype dtype);
/* How products of 8-bit codes run on `isa`; all have the same bits. */
enum sf_int8_how { SF_INT8_PLAIN, SF_INT8_AVX2, SF_INT8_AVX512, SF_INT8_VNNI };
enum sf_int8_how sf_isa_int8(enum sf_isa);
const char *sf_int8_name(enum sf_int8_how);     /* "avx512_vnni" */
/* Bytes of scratch that a device of these rows and threads takes at most; pure. */
int64_t sf_device_scratch_bytes(const struct sf_device_spec *);
/* Bytes of the device's memory that libraries take beside what they are given, an allowance, with
 * so many links (comm/link.h); pure.  0 on the CPU, and under emulation, which has none. */
int64_t sf_device_library_bytes(const char *name, int32_t links);
/* Versions of the libraries below, for `doctor`. */
void sf_device_describe(char *text_out, size_t bytes);
/* GPUs that this process sees, with memory and compute capability; or why there are none. */
void sf_device_describe_gpus(char *text_out, size_t bytes);

SF_C_END
#endif
