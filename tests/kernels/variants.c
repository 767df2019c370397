/* tests/kernels/variants.c: devices under test, random numbers and comparisons. */
#include "tests/kernels/variants.h"
#include <math.h>
#include <stdlib.h>
#include "base/rng.h"
#include "tests/check.h"
#include "tests/kernels/staged.h"

enum { THREADS_MAX = 3 };

/* Threads share work alike on all instruction sets: the thread sanitizer has the best of them. */
#if defined(__SANITIZE_THREAD__)
enum { BEST_ALONE = 1 };
#else
enum { BEST_ALONE = 0 };
#endif

/* A device that does not open is an error of the whole program. */
static struct sf_device *device_open(const struct sf_device_spec *spec)
{
    struct sf_device *device;
    if (sf_device_open(spec, &device) == SF_OK) return device;
    fprintf(stderr, "%s, %s: %s\n", spec->name, sf_isa_name(spec->isa_max), sf_error_text());
    exit(2);
}

#if defined(SHEAF_EMULATED)

/* CUDA under emulation: the threads of a block from the first to the last, and the other way. */
int variants_open(struct variant *variants, struct sf_device **ref_out)
{
    struct sf_device_spec spec = { .name = "ref", .threads = 1, .rows_max = VARIANT_ROWS_MAX };
    *ref_out = device_open(&spec);
    for (int reversed = 0; reversed < 2; reversed++) {
        struct variant *variant = &variants[reversed];
        if (staged_open("cuda-emulated", reversed, &variant->device) != SF_OK) {
            fprintf(stderr, "cuda-emulated: %s\n", sf_error_text());
            exit(2);
        }
        snprintf(variant->text, sizeof variant->text, "%s%s", variant->device->k->name,
                 reversed ? ", lanes reversed" : "");
    }
    return 2;
}

#elif defined(SHEAF_GPU)

int variants_open(struct variant *variants, struct sf_device **ref_out)
{
    struct sf_device_spec spec = { .name = "ref", .threads = 1, .rows_max = VARIANT_ROWS_MAX };
    if (staged_open("cuda", 0, &variants[0].device) != SF_OK) {
        printf("  skipped: %s\n%s: 0 passed, 0 failed, 1 skipped\n", sf_error_text(), SHEAF_GPU);
        exit(0);
    }
    *ref_out = device_open(&spec);
    snprintf(variants[0].text, sizeof variants[0].text, "%s", variants[0].device->k->name);
    return 1;
}

#else

int variants_open(struct variant *variants, struct sf_device **ref_out)
{
    struct sf_device_spec spec = { .name = "ref", .threads = 1, .rows_max = VARIANT_ROWS_MAX };
    int count = 0;
    *ref_out = device_open(&spec);
    spec.name = "cpu";
    int best = (int)sf_isa_detect();
    for (int isa = BEST_ALONE ? best : SF_ISA_GENERIC; isa <= best; isa++)
        for (spec.threads = 1; spec.threads <= THREADS_MAX; spec.threads++) {
            struct variant *variant = &variants[count++];
            spec.isa_max = (enum sf_isa)isa;
            variant->device = device_open(&spec);
            snprintf(variant->text, sizeof variant->text, "%s x %d", variant->device->k->name,
                     spec.threads);
        }
    return count;
}

#endif

void variants_close(struct variant *variants, int count, struct sf_device *ref)
{
    for (int i = 0; i < count; i++) {
        if (VARIANTS_STAGED) staged_close(variants[i].device);
        else sf_device_close(variants[i].device);
    }
    sf_device_close(ref);
}

int variants_spare(int number, int of)
{
    const char *level = getenv("SHEAF_TEST_LEVEL");
    if (!(VARIANTS_EMULATED || BEST_ALONE) || (level && strcmp(level, "long") == 0)) return 0;
    return number % of != 0;
}

void random_fill(float *out, size_t count, float amplitude, uint64_t stream)
{
    for (size_t i = 0; i < count; i++)
        out[i] = amplitude * (float)(2 * sf_rng_uniform(17, stream, i) - 1);
}

void queries_fill(float *out, size_t count, float amplitude, uint64_t stream)
{
    random_fill(out, count, amplitude, stream);
    for (size_t i = 0; i < count; i++) out[i] = sf_bf16_to_f32(sf_f32_to_bf16(out[i]));
}

float scale_exact(int32_t k_dim) { return exp2f(-roundf(log2f((float)k_dim) / 2)); }

double weights_rounding(const struct sf_device *device)
{
    return device->isa == SF_ISA_AVX512_BF16 ? 1.0 / 256 : 0;
}

int32_t random_below(int32_t below, uint64_t stream, uint64_t index)
{
    return (int32_t)(sf_rng_uniform(23, stream, index) * below);
}

double clock_seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median_of(double *taken, int count)
{
    qsort(taken, (size_t)count, sizeof *taken, by_size);
    return taken[count / 2];
}

void compare(const char *variant, const char *what, const float *actual, const float *expected,
             size_t rows, size_t cols, double bound)
{
    for (size_t i = 0; i < rows * cols; i++) {
        double a = (double)actual[i], e = (double)expected[i];
        if (a == e || (isnan(a) && isnan(e)) || fabs(a - e) <= bound) continue;
        sf_test_fail(__FILE__, __LINE__, "%s, %s: row %zu of %zu, column %zu of %zu is %.9g, "
                     "expected %.9g within %.3g", variant, what, i / cols, rows, i % cols, cols, a,
                     e, bound);
        return;
    }
    CU_PASS("compare");
}

void compare_bits(const char *variant, const char *what, const void *actual, const void *expected,
                  size_t bytes)
{
    const unsigned char *a = actual, *e = expected;
    for (size_t i = 0; i < bytes; i++)
        if (a[i] != e[i]) {
            sf_test_fail(__FILE__, __LINE__, "%s, %s: byte %zu of %zu is %02x, expected %02x",
                         variant, what, i, bytes, a[i], e[i]);
            return;
        }
    CU_PASS("compare_bits");
}
