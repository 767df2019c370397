/* tests/gpu/kernel_bench.c: what the kernels of one device reach, each by itself.
 *
 *     kernel_bench [--device NAME] [--only TEXT] [--small] [--json FILE]
 *
 * NAME is a backend (cuda; cpu to try the program), --only keeps the groups that
 * begin with TEXT, --small takes sizes that a CPU bears.  Shapes are those of an 8B model: 32 query
 * heads over 8 lanes a sequence, k_dim 128, width 4,096, FFN 14,336, 128,256 words.
 *
 * A figure is the median of REPEATS turns; a turn queues calls until they take about TURN_SECONDS
 * and waits once.  So what the host does for a call is seen where it takes longer than the device.
 * Bytes and operations are those that the job must read, write and do, whatever the kernel does:
 * GB/s and TFLOP/s are what is reached of them.  They stand beside the device's own rates, measured
 * first: a copy (bytes read and written) and a product of 4,096 x 4,096 x 4,096 in bf16.
 *
 * CUDA's attention has two paths (kernels/cuda/attend_tensor.cu), of which runs take one; both are
 * measured, one after the other, that of asynchronous copies as ", by copies". */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/dtype.h"
#include "kernels/device.h"

enum {
    REPEATS = 9, GROUPS = 8, HEAD = 128, PAGE = 64, WIDTH = 4096, FFN = 14336, WORDS = 128256,
    ROWS_MAX = 4096, LANES_MAX = 256 * GROUPS
};
static const double TURN_SECONDS = 8e-3;

static struct {
    struct sf_device *device;
    const struct sf_kernels *k;
    int *async_copy;                    /* CUDA's switch (kernels/cuda/plugin.h); NULL: none */
    const char *only;
    FILE *json;
    int small, figures;
    double copy, product;               /* bytes and operations a second, of the device */
    struct sf_layout layout;
    size_t page_bytes, floats;
    int32_t pool_pages;
    unsigned char *pool;
    float *x, *y, *mass;                /* [floats] random; [floats]; [pool_pages][PAGE] */
} b;

static void must(sf_status status)
{
    if (status == SF_OK) return;
    fprintf(stderr, "kernel_bench: %s\n", sf_error_text());
    exit(status == SF_UNSUPPORTED ? 2 : 1);
}

static void *take(size_t bytes, const char *what)
{
    void *block;
    must(b.k->alloc(b.device, bytes, what, &block));
    return block;
}

static void *host_take(size_t bytes)
{
    void *block = calloc(1, bytes);
    if (block) return block;
    fprintf(stderr, "kernel_bench: no memory\n");
    exit(1);
}

static uint32_t random_bits(void)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static float random_float(void) { return (float)random_bits() / 2147483648.0f - 1; }

static int32_t sized(int32_t full, int32_t small) { return b.small ? small : full; }

/* ---- measuring ------------------------------------------------------------------------------ */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int by_size(const void *one, const void *other)
{
    double x = *(const double *)one, y = *(const double *)other;
    return (x > y) - (x < y);
}

typedef void call(const void *job);

static double turn(call *run, const void *job, int calls)
{
    double begin = seconds();
    for (int i = 0; i < calls; i++) run(job);
    b.k->sync(b.device);
    return (seconds() - begin) / calls;
}

/* Median seconds of a call. */
static double measure(call *run, const void *job)
{
    double taken[REPEATS], one;
    turn(run, job, 1);
    one = turn(run, job, 2);
    int calls = one > 0 ? (int)(TURN_SECONDS / one) : 1;
    if (calls < 1) calls = 1;
    if (calls > 1000) calls = 1000;
    for (int i = 0; i < REPEATS; i++) taken[i] = turn(run, job, calls);
    qsort(taken, REPEATS, sizeof *taken, by_size);
    return taken[REPEATS / 2];
}

static int wanted(const char *group)
{
    return !b.only || strncmp(group, b.only, strlen(b.only)) == 0;
}

/* One line of the table and one of the JSON. */
static void report(const char *group, const char *text, double time, double bytes, double flops)
{
    double rate = bytes / time, speed = flops / time;
    printf("%-10s %-54s %9.1f us %8.1f GB/s %5.1f %% %8.2f TFLOP/s %5.1f %%\n", group, text,
           1e6 * time, 1e-9 * rate, 100 * rate / b.copy, 1e-12 * speed, 100 * speed / b.product);
    fflush(stdout);
    b.figures++;
    if (!b.json) return;
    fprintf(b.json, "{\"group\": \"%s\", \"case\": \"%s\", \"us\": %.3f, \"bytes\": %.0f, "
            "\"flops\": %.0f, \"gb_s\": %.2f, \"of_copy\": %.4f, \"tflop_s\": %.3f, "
            "\"of_product\": %.4f}\n", group, text, 1e6 * time, bytes, flops, 1e-9 * rate,
            rate / b.copy, 1e-12 * speed, speed / b.product);
}

/* ---- the device's own rates ----------------------------------------------------------------- */

/* The copy of CUDA's runtime, which the backend has loaded; NULL: memory is the host's. */
typedef int cuda_copy(void *to, const void *from, size_t bytes, int kind);
static cuda_copy *device_copy;
enum { DEVICE_TO_DEVICE = 3 };

static void copy_run(const void *job)
{
    size_t half = *(const size_t *)job;
    if (device_copy) device_copy(b.pool + half, b.pool, half, DEVICE_TO_DEVICE);
    else memcpy(b.pool + half, b.pool, half);
}

/* The best of REPEATS.  The runtime's copies are on a stream of their own. */
static void copy_rate(void)
{
    static const char *const names[] = { "libcudart.so.13", "libcudart.so.12" };
    size_t half = (size_t)b.pool_pages / 2 * b.page_bytes;
    int (*wait)(void) = NULL;
    for (size_t i = 0; !wait && i < 2; i++) {
        void *runtime = dlopen(names[i], RTLD_NOLOAD | RTLD_NOW);
        if (!runtime) continue;
        *(void **)&device_copy = dlsym(runtime, "cudaMemcpy");
        *(void **)&wait = dlsym(runtime, "cudaDeviceSynchronize");
    }
    if (!wait && strncmp(b.k->name, "cuda", 4) == 0) {
        fprintf(stderr, "kernel_bench: %s has no runtime of CUDA to copy with\n", b.k->name);
        exit(2);
    }
    b.k->sync(b.device);
    for (int i = 0; i < REPEATS; i++) {
        double begin = seconds();
        for (int n = 0; n < 4; n++) copy_run(&half);
        if (wait) wait();
        b.copy = fmax(b.copy, 8 * (double)half / (seconds() - begin));
    }
}

/* ---- products ------------------------------------------------------------------------------- */

struct product { struct sf_mat *mat; int32_t rows, k, cols; };

static struct product product_make(int32_t rows, int32_t k, int32_t cols, int fixed)
{
    struct sf_mat_shape shape = { cols, 1024, k, 1, SF_BF16, (uint8_t)fixed, rows, 0 };
    struct product product = { NULL, rows, k, cols };
    float *tile = host_take(1024 * (size_t)k * sizeof *tile);
    for (size_t i = 0; i < 1024 * (size_t)k; i++) tile[i] = random_float();
    must(b.k->mat_create(b.device, &shape, &product.mat));
    for (int32_t panel = 0; panel * 1024 < cols; panel++)
        must(b.k->mat_pack(b.device, product.mat, panel, 0, tile));
    free(tile);
    return product;
}

/* x is whatever the halves of random floats are in bf16: nobody looks at the sums. */
static void product_run(const void *job)
{
    const struct product *p = job;
    b.k->matmul(b.device, p->mat, p->rows, b.x, (size_t)p->k, b.y, (size_t)p->cols);
}

static void product_rate(void)
{
    int32_t n = sized(4096, 256);
    struct product p = product_make(n, n, n, 0);
    b.product = 2.0 * n * n * n / measure(product_run, &p);
    b.k->mat_destroy(b.device, p.mat);
}

static void products(void)
{
    static const struct { const char *text; int32_t k, cols; int fixed; } shapes[] = {
        { "qkv", WIDTH, 6144, 0 }, { "output", WIDTH, WIDTH, 0 },
        { "gate and up", WIDTH, 2 * FFN, 0 }, { "down", FFN, WIDTH, 0 },
        { "head", WIDTH, WORDS, 0 }, { "gate and up, fixed", WIDTH, 2 * FFN, 1 }
    };
    static const int32_t rows[] = { 1, 64, 256, 2048 };
    char text[64];
    if (!wanted("matmul")) return;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int32_t k = shapes[s].k / sized(1, 16), cols = shapes[s].cols / sized(1, 16);
        struct product p = product_make(2048, k, cols, shapes[s].fixed);
        for (size_t r = 0; r < 4; r++) {
            p.rows = rows[r] / (r > 0 ? sized(1, 16) : 1);
            if ((size_t)(p.rows + 48) * (size_t)cols > b.floats) continue;
            snprintf(text, sizeof text, "%s, %d x %d x %d", shapes[s].text, p.rows, k, cols);
            report("matmul", text, measure(product_run, &p),
                   2.0 * k * ((double)cols + p.rows) + 4.0 * p.rows * cols,
                   2.0 * p.rows * k * cols);
        }
        b.k->mat_destroy(b.device, p.mat);
    }
}

/* ---- attention ------------------------------------------------------------------------------ */

/* Lanes of `batch` sequences over the pool; where they are more than it holds, pages serve several
 * lanes, far enough apart that no cache holds them from one to the next. */
struct lanes {
    struct sf_lane_job lane[LANES_MAX];
    int32_t *pages, lanes, shared;
    double slots, pairs;                /* of all lanes; slots that rows see, over rows and heads */
};

/* Slots of a ragged sequence lie within a half of `slots` around it. */
static void lanes_make(struct lanes *l, int32_t batch, int32_t rows, int32_t slots, int32_t group,
                       int ragged)
{
    int32_t at = 0, most = (slots + slots / 2 + PAGE - 1) / PAGE + 1;
    memset(l, 0, sizeof *l);
    l->pages = host_take((size_t)batch * GROUPS * (size_t)most * sizeof *l->pages);
    for (int32_t i = 0; i < batch; i++) {
        int32_t n = ragged ? slots / 2 + (int32_t)(random_bits() % (uint32_t)slots) + 1 : slots;
        for (int32_t g = 0; g < GROUPS; g++) {
            l->lane[l->lanes++] = (struct sf_lane_job){
                .pages = l->pages + at, .slots = n, .row_first = i * rows, .rows = rows,
                .q_first = g * group, .q_heads = group };
            for (int32_t p = 0; p < (n + PAGE - 1) / PAGE; p++, at++)
                l->pages[at] = (int32_t)((int64_t)at * 7919 % b.pool_pages);
            l->slots += n;
            l->pairs += group * ((double)n * rows - 0.5 * rows * (rows - 1));
        }
    }
    l->shared = at > b.pool_pages;
}

static void attend_run(const void *job) { b.k->attend(b.device, job); }
static void columns_run(const void *job) { b.k->columns(b.device, job); }

static struct sf_attend_job attend_job(const struct lanes *l, int32_t heads, size_t q_floats)
{
    return (struct sf_attend_job){
        .layout = b.layout, .pool = b.pool, .page_bytes = b.page_bytes, .q = b.x,
        .q_stride = (size_t)heads * HEAD, .out = b.y, .out_stride = (size_t)heads * HEAD,
        .out_head_stride = HEAD, .out_dtype = SF_BF16, .scale = 0.088388348f, .lane = l->lane,
        .lanes = l->lanes, .lse = b.y + q_floats, .lse_stride = (size_t)heads
    };
}

/* Bytes of keys, values and biases, of queries, outputs and lse. */
static double attend_bytes(const struct lanes *l, double rows, int32_t heads)
{
    return l->slots * (2 * HEAD * 2 + 4) + rows * heads * (HEAD * 6 + 4);
}

/* A line for each path of the device's. */
static void attend_report(const char *group, const char *text, const struct sf_attend_job *job,
                          double bytes, double flops)
{
    int compiled = b.async_copy ? *b.async_copy : 0;
    for (int path = 0; path < (b.async_copy ? 2 : 1); path++) {
        char whole[96];
        if (b.async_copy) *b.async_copy = path;
        snprintf(whole, sizeof whole, "%s%s", text, path ? ", by copies" : "");
        report(group, whole, measure(attend_run, job), bytes, flops);
    }
    if (b.async_copy) *b.async_copy = compiled;
}

static void decode_case(struct lanes *l, int32_t batch, int32_t slots, int32_t group, int ragged,
                        enum sf_dtype dtype)
{
    int32_t heads = GROUPS * group;
    char text[64];
    b.layout.dtype = dtype;
    lanes_make(l, batch, 1, slots, group, ragged);
    struct sf_attend_job job = attend_job(l, heads, (size_t)batch * (size_t)heads * HEAD);
    snprintf(text, sizeof text, "%d x 8 lanes, %d %s slots, %d heads%s", batch, slots,
             sf_dtype_name(dtype), group, ragged ? ", ragged" : "");
    if (wanted("decode"))
        attend_report("decode", text, &job, attend_bytes(l, batch, heads), 4.0 * HEAD * l->pairs);
    struct sf_columns_job sums = {
        .layout = b.layout, .pool = b.pool, .page_bytes = b.page_bytes, .q = b.x,
        .q_stride = job.q_stride, .scale = job.scale, .lane = l->lane, .lanes = l->lanes,
        .lse = job.lse, .lse_stride = job.lse_stride, .fold = SF_ROWS_SUM,
        .head_fold = SF_HEADS_MEAN, .decay = 1, .mass = b.mass, .mass_slots = PAGE
    };
    if (wanted("columns") && !l->shared) {
        attend_run(&job);
        report("columns", text, measure(columns_run, &sums),
               l->slots * (HEAD * 2 + 12) + (double)batch * heads * (HEAD * 4 + 4),
               2.0 * HEAD * l->pairs);
    }
    free(l->pages);
    b.layout.dtype = SF_BF16;
}

static void decode(struct lanes *l)
{
    static const int32_t slots[] = { 1024, 4096, 16384 };
    for (int batch = 64; batch <= 256; batch *= 4)
        for (int s = 0; s < 3; s++)
            for (int group = 4; group <= 8; group *= 2)
                for (int ragged = 0; ragged < 2; ragged++)
                    decode_case(l, batch / sized(1, 32), slots[s] / sized(1, 16), group, ragged,
                                SF_BF16);
    decode_case(l, sized(64, 2), sized(4096, 256), 4, 0, SF_F16);
    decode_case(l, 1, sized(16384, 1024), 4, 0, SF_BF16);
}

/* The last `rows` rows of one prompt against its slots. */
static void prefill(struct lanes *l)
{
    if (!wanted("prefill")) return;
    for (int rows = sized(512, 32); rows <= sized(2048, 64); rows *= 2)
        for (int group = 4; group <= 8; group *= 2) {
            int32_t heads = GROUPS * group, slots = sized(4096, 256);
            char text[64];
            lanes_make(l, 1, rows, slots, group, 0);
            struct sf_attend_job job = attend_job(l, heads, (size_t)(rows * heads) * HEAD);
            snprintf(text, sizeof text, "%d rows, 8 lanes of %d bf16 slots, %d heads", rows, slots,
                     group);
            attend_report("prefill", text, &job, attend_bytes(l, rows, heads),
                          4.0 * HEAD * l->pairs);
            free(l->pages);
        }
}

/* ---- rows ----------------------------------------------------------------------------------- */

struct rows { int32_t rows, cols; const int32_t *pos; };

static void rmsnorm_run(const void *job)
{
    const struct rows *r = job;
    size_t width = (size_t)r->cols;
    b.k->rmsnorm(b.device, r->rows, r->cols, b.x, width, b.x, 1e-5f, b.y, width, SF_BF16);
}

static void swiglu_run(const void *job)
{
    const struct rows *r = job;
    size_t width = (size_t)r->cols;
    b.k->swiglu(b.device, r->rows, r->cols, b.x, 2 * width, b.x + width, 2 * width, b.y, width,
                SF_BF16);
}

/* In place, over and over: a turn keeps lengths. */
static void rope_run(const void *job)
{
    const struct rows *r = job;
    size_t table = (size_t)r->rows * HEAD;
    b.k->rope(b.device, r->rows, r->cols / HEAD, HEAD, HEAD, b.y, b.y + table, (size_t)r->cols);
}

static void argmax_run(const void *job)
{
    static float value[ROWS_MAX];
    static int32_t index[ROWS_MAX];
    const struct rows *r = job;
    b.k->argmax(b.device, r->rows, r->cols, b.x, (size_t)r->cols, value, index);
}

static void rope_case(const struct rows *r, const char *text)
{
    int32_t *pos = host_take((size_t)r->rows * sizeof *pos);
    for (int32_t i = 0; i < r->rows; i++) pos[i] = 1000 + i;
    b.k->rope_table(b.device, r->rows, pos, b.x, HEAD / 2, b.y);
    report("rope", text, measure(rope_run, r),
           8.0 * r->rows * r->cols + 4.0 * r->rows * HEAD, 3.0 * r->rows * r->cols);
    free(pos);
}

static void rows(void)
{
    static const int32_t counts[] = { 64, 256, 2048 };
    for (int i = 0; i < 3; i++) {
        int32_t n = counts[i] / sized(1, 16), shrink = sized(1, 16);
        struct rows norm = { n, WIDTH / shrink, NULL }, ffn = { n, FFN / shrink, NULL };
        struct rows heads = { n, 40 * HEAD, NULL }, words = { n, WORDS / shrink, NULL };
        char text[64];
        snprintf(text, sizeof text, "%d rows of %d", n, norm.cols);
        if (wanted("rmsnorm"))
            report("rmsnorm", text, measure(rmsnorm_run, &norm), 6.0 * n * norm.cols,
                   4.0 * n * norm.cols);
        snprintf(text, sizeof text, "%d rows of %d", n, ffn.cols);
        if (wanted("swiglu"))
            report("swiglu", text, measure(swiglu_run, &ffn), 10.0 * n * ffn.cols,
                   4.0 * n * ffn.cols);
        snprintf(text, sizeof text, "%d rows of 40 heads", n);
        if (wanted("rope")) rope_case(&heads, text);
        snprintf(text, sizeof text, "%d rows of %d", n, words.cols);
        if (wanted("argmax") && (size_t)n * (size_t)words.cols <= b.floats)
            report("argmax", text, measure(argmax_run, &words), 4.0 * n * words.cols,
                   1.0 * n * words.cols);
    }
}

/* ---- appending ------------------------------------------------------------------------------ */

static void append_run(const void *job) { b.k->kv_append(b.device, job); }

static void append_case(struct lanes *l, int32_t batch, int32_t each)
{
    static struct sf_append_lane lane[LANES_MAX];
    int32_t total = batch * each;
    int32_t *pos = host_take((size_t)total * sizeof *pos);
    char text[64];
    lanes_make(l, batch, each, each + 777, 4, 0);
    for (int32_t i = 0; i < l->lanes; i++)
        lane[i] = (struct sf_append_lane){ l->lane[i].pages, 777, l->lane[i].row_first, each,
                                           i % GROUPS };
    struct sf_append_job job = { b.layout, b.pool, b.page_bytes, b.x, b.x, GROUPS * HEAD,
                                 GROUPS * HEAD, pos, NULL, lane, l->lanes };
    snprintf(text, sizeof text, "%d x 8 lanes, %d rows each", batch, each);
    if (wanted("kv_append"))
        report("kv_append", text, measure(append_run, &job),
               (double)total * GROUPS * (2 * HEAD * 6 + 8), 0);
    free(l->pages);
    free(pos);
}

/* ---- the whole ------------------------------------------------------------------------------ */

/* Pages of random elements of size 0.25 to 1 (in bf16), biases 0 and ascending positions. */
static void pool_make(void)
{
    enum { TEMPLATE = 256 };
    b.layout = (struct sf_layout){ SF_BF16, PAGE, HEAD, HEAD };
    b.page_bytes = sf_layout_page_bytes(&b.layout);
    b.pool_pages = sized(64 * 1024, 2048);
    b.floats = (size_t)sized(256 << 20, 4 << 20);
    b.pool = take((size_t)b.pool_pages * b.page_bytes, "pages");
    b.mass = take((size_t)b.pool_pages * PAGE * sizeof *b.mass, "masses");
    b.x = take(b.floats * sizeof *b.x, "x");
    b.y = take(b.floats * sizeof *b.y, "y");
    unsigned char *pages = host_take(TEMPLATE * b.page_bytes);
    for (int p = 0; p < TEMPLATE; p++) {
        uint16_t *element = (uint16_t *)(void *)(pages + (size_t)p * b.page_bytes);
        int32_t *pos = (int32_t *)(void *)(pages + (size_t)p * b.page_bytes +
                                           sf_layout_pos_offset(&b.layout));
        for (int i = 0; i < PAGE * 2 * HEAD; i++) {
            uint32_t bits = random_bits();
            element[i] = (uint16_t)((bits & 0x8000u) | (0x3e80u + bits % 256u));
        }
        for (int i = 0; i < PAGE; i++) pos[i] = i;
    }
    for (int32_t p = 0; p < b.pool_pages; p += TEMPLATE)
        b.k->upload(b.device, b.pool + (size_t)p * b.page_bytes, pages, TEMPLATE * b.page_bytes);
    size_t part = 1 << 20;
    float *random = (float *)(void *)pages;
    for (size_t i = 0; i < part; i++) random[i] = random_float();
    for (size_t at = 0; at < b.floats; at += part)
        b.k->upload(b.device, b.x + at, random, part * sizeof *random);
    free(pages);
}

static int usage(void)
{
    fprintf(stderr, "usage: kernel_bench [--device NAME] [--only TEXT] [--small] [--json FILE]\n");
    return 2;
}

int main(int argc, char **argv)
{
    struct sf_device_spec spec = { .name = "cuda", .threads = 1, .rows_max = ROWS_MAX };
    const char *json = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0) b.small = 1;
        else if (i + 1 >= argc) return usage();
        else if (strcmp(argv[i], "--device") == 0) spec.name = argv[++i];
        else if (strcmp(argv[i], "--only") == 0) b.only = argv[++i];
        else if (strcmp(argv[i], "--json") == 0) json = argv[++i];
        else return usage();
    }
    must(sf_device_open(&spec, &b.device));
    b.k = b.device->k;
    b.async_copy = (int *)(uintptr_t)sf_device_symbol(b.device, "sf_cuda_async_copy");
    if (json && !(b.json = fopen(json, "w"))) {
        fprintf(stderr, "kernel_bench: cannot write %s\n", json);
        return 2;
    }
    struct lanes *lanes = host_take(sizeof *lanes);
    pool_make();
    product_rate();
    copy_rate();
    printf("%s: copies %.1f GB/s, multiplies %.2f TFLOP/s (4,096^3, bf16)\n", b.k->name,
           1e-9 * b.copy, 1e-12 * b.product);
    if (b.json)
        fprintf(b.json, "{\"device\": \"%s\", \"copy_gb_s\": %.2f, \"product_tflop_s\": %.3f}\n",
                b.k->name, 1e-9 * b.copy, 1e-12 * b.product);
    decode(lanes);
    prefill(lanes);
    append_case(lanes, sized(64, 4), 1);
    append_case(lanes, sized(256, 8), 1);
    append_case(lanes, 1, sized(2048, 64));
    rows();
    products();
    free(lanes);
    if (b.json) fclose(b.json);
    b.k->free(b.device, b.pool);
    b.k->free(b.device, b.mass);
    b.k->free(b.device, b.x);
    b.k->free(b.device, b.y);
    sf_device_close(b.device);
    printf("kernel_bench: %d passed, 0 failed, 0 skipped\n", b.figures);
    return b.figures == 0;
}
