/* tests/unit/kernels/plugin.c: a backend in a shared object that this program was not linked with
 * is found by its name, shares the program's status and memory, and keeps what kernels.h says of
 * copies: a source is the caller's again on return, a download is complete.  One that is not there
 * is refused with its name, and one that was built with other structs with the target to build. */
#include <stdlib.h>
#include "kernels/device.h"
#include "tests/check.h"

enum { BYTES = 9 << 20 };               /* more than the ring holds at once */

static const struct sf_device_spec emulated = { .name = "cuda-emulated", .threads = 1,
                                                .rows_max = 1 };

static void test_copies(void)
{
    struct sf_device *device;
    void *block;
    SF_MUST(sf_device_open(&emulated, &device));
    SF_CHECK_STR(device->k->name, "cuda-emulated");
    SF_MUST(device->k->alloc(device, BYTES, "a block", &block));
    unsigned char *out = malloc(BYTES), *in = malloc(BYTES);
    device->k->download(device, in, block, BYTES);
    size_t set = 0, wrong = 0;
    for (size_t i = 0; i < BYTES; i++) set += in[i] != 0;
    SF_CHECK_INT(set, 0);
    for (size_t i = 0; i < BYTES; i++) out[i] = (unsigned char)(i * 7 + i / 1000);
    device->k->upload(device, block, out, BYTES);
    memset(out, 0x55, BYTES);
    device->k->download(device, in, block, BYTES);
    for (size_t i = 0; i < BYTES; i++) wrong += in[i] != (unsigned char)(i * 7 + i / 1000);
    SF_CHECK_INT(wrong, 0);
    device->k->free(device, block);
    sf_device_close(device);
    free(out);
    free(in);
}

/* The words of a failure inside the shared object are the program's own. */
static void test_status(void)
{
    struct sf_device *device;
    void *block = NULL;
    SF_MUST(sf_device_open(&emulated, &device));
    SF_CHECK_FAILS(device->k->alloc(device, (size_t)1 << 50, "too much", &block), SF_NO_MEMORY);
    SF_CHECK(strstr(sf_error_text(), "too much") != NULL);
    sf_device_close(device);
}

static void test_refused(void)
{
    struct sf_device_spec spec = emulated;
    struct sf_device *device;
    spec.name = "opencl";
    SF_CHECK_FAILS(sf_device_open(&spec, &device), SF_UNSUPPORTED);
    SF_CHECK(strstr(sf_error_text(), "'opencl'") != NULL);
    spec.name = "cuda";
    sf_status status = sf_device_open(&spec, &device);
    if (status == SF_OK) {
        sf_device_close(device);
        SF_SKIP("this machine has a GPU, so 'cuda' opens");
    }
    SF_CHECK_INT(status, SF_UNSUPPORTED);
    SF_CHECK(strstr(sf_error_text(), "cuda") != NULL || strstr(sf_error_text(), "GPU") != NULL);
}

static void test_stale(void)
{
    static const char *const names[] = { "older", "fewer" };
    for (int i = 0; i < 2; i++) {
        struct sf_device_facts facts = { 0 };
        char target[64];
        snprintf(target, sizeof target, "build the target sheaf_%s again", names[i]);
        SF_CHECK_FAILS(sf_device_probe(names[i], 0, &facts), SF_UNSUPPORTED);
        SF_CHECK(strstr(sf_error_text(), target) != NULL);
        SF_CHECK_INT(facts.count, 0);
    }
}

static const struct sf_test tests[] = {
    { "copies", test_copies }, { "status", test_status }, { "refused", test_refused },
    { "stale", test_stale },
    { NULL, NULL }
};

SF_TEST_MAIN("kernels_plugin", tests)
