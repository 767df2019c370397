/* kernels/ref/ref.c: the reference backend: the meaning of every entry of kernels.h in plain loops,
 * accumulated in f64 and rounded once.  Not fast, single-threaded, no scratch. */
#include <pthread.h>
#include <string.h>
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/ref/ref.h"

static struct sf_kernels table;
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static sf_status block_alloc(struct sf_device *device, size_t bytes, const char *what, void **out)
{
    (void)device;
    return sf_alloc(bytes, what, out);
}

static void block_free(struct sf_device *device, void *block)
{
    (void)device;
    sf_free(block);
}

static void copy(struct sf_device *device, void *target, const void *source, size_t bytes)
{
    (void)device;
    if (bytes > 0) memcpy(target, source, bytes);
}

static void sync_nothing(struct sf_device *device) { (void)device; }

static void table_fill(void)
{
    table.name = "ref";
    table.alloc = block_alloc;
    table.free = block_free;
    table.upload = copy;
    table.download = copy;
    table.sync = sync_nothing;
    sf_ref_rows_fill(&table);
    sf_ref_mat_fill(&table);
    sf_ref_cache_fill(&table);
    table.attend = sf_ref_attend;
    table.columns = sf_ref_columns;
    table.pick = sf_ref_pick;
    table.choose = sf_ref_choose;
    table.kv_rebuild = sf_ref_kv_rebuild;
    table.copy_columns = sf_ref_copy_columns;
    sf_ref_factor_fill(&table);
}

static sf_status ref_open(const struct sf_device_spec *spec, struct sf_device *device)
{
    (void)spec;
    pthread_once(&table_once, table_fill);
    device->k = &table;
    device->isa = SF_ISA_GENERIC;
    device->host_memory = 1;
    device->impl = NULL;
    return SF_OK;
}

static void ref_close(struct sf_device *device) { (void)device; }

const struct sf_backend sf_backend_ref = { "ref", ref_open, ref_close, NULL, NULL, NULL };
