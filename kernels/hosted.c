/* kernels/hosted.c: low-rank factors of a backend whose memory is not the host's, where it leaves
 * them to the host: x is downloaded, the CPU backend's factors are taken on the device's host
 * threads, a and b are uploaded.  The scratch is host memory, taken for the call; of the device's
 * own it needs none.  Who makes factors in steps of its own (kvshard/factor_ranks.c) brings x, a
 * and b over itself and takes the steps on sf_device_hosting. */
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"

static void sync_nothing(struct sf_device *device) { (void)device; }

static const struct sf_kernels host_table = {
    .name = "host", .sync = sync_nothing, .copy_columns = sf_cpu_copy_columns,
    .factor_bytes = sf_cpu_factor_bytes, .factor = sf_cpu_factor, .product = sf_cpu_product,
    .cholesky = sf_cpu_cholesky
};

struct sf_device sf_device_hosting(const struct sf_device *device)
{
    if (device->host_memory) return *device;
    return (struct sf_device){ .k = &host_table, .threads = device->threads,
                               .crew = device->crew, .host_memory = 1 };
}

/* x, a, b and the scratch one after the other, each aligned to 64 bytes. */
struct room { size_t a_at, b_at, scratch_at, bytes; };

static size_t whole(size_t bytes) { return (bytes + 63) / 64 * 64; }

static struct room room_of(const struct sf_factor_job *job)
{
    size_t rows = (size_t)job->rows, cols = (size_t)job->cols, rank = (size_t)job->rank;
    struct room room;
    room.a_at = whole(((rows - 1) * job->x_stride + cols) * sizeof(float));
    room.b_at = room.a_at + whole(rows * rank * sizeof(float));
    room.scratch_at = room.b_at + whole(rank * cols * sizeof(float));
    room.bytes = room.scratch_at + sf_cpu_factor_bytes(job);
    return room;
}

static void rows_upload(struct sf_device *device, float *to, size_t stride, const float *from,
                        int32_t rows, size_t cols)
{
    for (int32_t r = 0; stride != cols && r < rows; r++)
        device->k->upload(device, to + (size_t)r * stride, from + (size_t)r * cols,
                          cols * sizeof *to);
    if (stride == cols) device->k->upload(device, to, from, (size_t)rows * cols * sizeof *to);
}

sf_status sf_hosted_factor(struct sf_device *device, const struct sf_factor_job *job)
{
    struct room room = room_of(job);
    struct sf_factor_job host = *job;
    unsigned char *block;
    SF_TRY(sf_alloc(room.bytes + 64, "low-rank factors", (void **)&block));
    unsigned char *base = (unsigned char *)whole((uintptr_t)block);
    float *x = (float *)(void *)base;
    device->k->download(device, x, job->x,
                        ((size_t)(job->rows - 1) * job->x_stride + (size_t)job->cols) * sizeof *x);
    host.x = x;
    host.a = (float *)(void *)(base + room.a_at);
    host.b = (float *)(void *)(base + room.b_at);
    host.a_stride = (size_t)job->rank;
    host.b_stride = (size_t)job->cols;
    host.scratch = base + room.scratch_at;
    sf_status status = sf_cpu_factor(device, &host);
    if (status == SF_OK) {
        rows_upload(device, job->a, job->a_stride, host.a, job->rows, (size_t)job->rank);
        rows_upload(device, job->b, job->b_stride, host.b, job->rank, (size_t)job->cols);
    }
    sf_free(block);
    return status;
}
