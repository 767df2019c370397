/* tests/gpu/nccl.c [DEVICE]: NCCL itself on one GPU, in communicators of one rank, by the calls
 * that links make (comm/link_plugin.h): what is summed, gathered and sent to oneself in a group is
 * what was given, in the order of the stream; several communicators live on one stream; one with
 * work under way can be given up; and the link of a world of one rank is of kind nccl.  DEVICE is
 * `cuda` (as at the start), or `cuda-emulated`, where the same program runs without a GPU.
 *
 * Skips, with the reason, where there is no such device or no libnccl. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "comm/link.h"
#include "comm/link_plugin.h"
#include "tests/check.h"

enum { COUNT = 1 << 18, DEADLINE_S = 60, TURNS = 200 };

static const char *name = "cuda";
static struct sf_device *device;
static const struct sf_link_plugin *plugin;
static char why[512];                   /* there is nothing to test */
static float *x, *y;                    /* device, [COUNT] each */
static float out[COUNT], in[COUNT];

static sf_status pause(void *arg, const char *what, int64_t round)
{
    int64_t *began = arg;
    if (round == 0) *began = sf_now_ns();
    if (sf_seconds_since(*began) < DEADLINE_S) return SF_OK;
    return SF_FAIL(SF_TIMEOUT, "%s took more than %d s", what, DEADLINE_S);
}

static sf_status fail(void *arg, const char *what, const char *words)
{
    (void)arg;
    return SF_FAIL(SF_LOST, "%s: %s", what, words);
}

static sf_status open_one(int64_t *began, void **link_out)
{
    struct sf_link_seat seat = { .device = device, .rank = 0, .size = 1,
                                 .host = { pause, fail, began } };
    SF_TRY(plugin->id(seat.id));
    return plugin->open(&seat, link_out);
}

static void put(float *at, int32_t seed)
{
    for (int32_t i = 0; i < COUNT; i++) out[i] = (float)((i * 7 + seed * 131) % 9973) / 8.0f;
    device->k->upload(device, at, out, sizeof out);
}

static size_t wrong(const float *at, float factor)
{
    size_t count = 0;
    device->k->download(device, in, at, sizeof in);
    for (int32_t i = 0; i < COUNT; i++) count += in[i] != factor * out[i];
    return count;
}

static void test_calls(void)
{
    int64_t began, asked = sf_now_ns();
    void *link;
    if (why[0] != '\0') SF_SKIP(why);
    SF_MUST(open_one(&began, &link));
    printf("  figure: %s: a communicator opened in %.1f ms\n", name,
           sf_seconds_since(asked) * 1e3);
    put(x, 1);
    /* each call's data is the result of the kernel queued before it */
    device->k->add_bias(device, 1, COUNT, x, x, COUNT);
    SF_CHECK_OK(plugin->sum(link, x, COUNT));
    device->k->add_bias(device, 1, COUNT, x, x, COUNT);
    SF_CHECK_OK(plugin->all_gather(link, x, sizeof out, y));
    device->k->add_bias(device, 1, COUNT, y, y, COUNT);
    SF_CHECK_OK(plugin->settle(link));
    SF_CHECK_INT(wrong(x, 4), 0);
    SF_CHECK_INT(wrong(y, 8), 0);
    put(x, 2);
    SF_CHECK_OK(plugin->group(link, 1));
    SF_CHECK_OK(plugin->send(link, 0, x, sizeof out / 2));
    SF_CHECK_OK(plugin->recv(link, 0, y, sizeof out / 2));
    SF_CHECK_OK(plugin->send(link, 0, x + COUNT / 2, sizeof out / 2));
    SF_CHECK_OK(plugin->recv(link, 0, y + COUNT / 2, sizeof out / 2));
    SF_CHECK_OK(plugin->group(link, 0));
    SF_CHECK_OK(plugin->settle(link));
    SF_CHECK_INT(wrong(y, 1), 0);
    plugin->close(link, 0);
}

static void test_many(void)
{
    enum { LINKS = 3 };
    int64_t began[LINKS];
    void *link[LINKS];
    if (why[0] != '\0') SF_SKIP(why);
    for (int i = 0; i < LINKS; i++) SF_MUST(open_one(&began[i], &link[i]));
    put(x, 3);
    for (int turn = 0; turn < 9; turn++) {
        SF_CHECK_OK(plugin->sum(link[turn % LINKS], x, COUNT));
        if (turn % 3 == 2) device->k->add_bias(device, 1, COUNT, x, x, COUNT);
    }
    SF_CHECK_OK(plugin->settle(link[0]));
    SF_CHECK_INT(wrong(x, 8), 0);
    int64_t start = sf_now_ns();
    for (int turn = 0; turn < TURNS; turn++) SF_CHECK_OK(plugin->sum(link[0], x, 2048));
    double queued = sf_seconds_since(start);
    SF_CHECK_OK(plugin->settle(link[0]));
    printf("  figure: %s: a sum of 8 KiB over one rank: %.1f us queued, %.1f us done\n", name,
           queued * 1e6 / TURNS, sf_seconds_since(start) * 1e6 / TURNS);
    plugin->close(link[1], 0);
    SF_CHECK_OK(plugin->sum(link[2], x, COUNT));
    plugin->close(link[2], 1);          /* given up, perhaps with its sum under way */
    SF_CHECK_OK(plugin->sum(link[0], x, COUNT));
    SF_CHECK_OK(plugin->settle(link[0]));
    SF_CHECK_INT(wrong(x, 8), 0);
    plugin->close(link[0], 0);
}

/* The program's half too: offers, id, signs of life. */
static void test_link(void)
{
    struct sf_comm_options options = { .timeout_ms = DEADLINE_S * 1000 };
    struct sf_link_spec spec = { .device = device, .bytes_max = sizeof out };
    struct sf_comm *world;
    struct sf_link *link;
    if (why[0] != '\0') SF_SKIP(why);
    SF_MUST(sf_comm_loopback_world(1, 0, &options, &world));
    SF_MUST(sf_link_open(world, &spec, &link));
    SF_CHECK_STR(sf_link_kind(link), "nccl");
    put(x, 4);
    SF_CHECK_OK(sf_link_sum(link, x, COUNT));
    SF_CHECK_OK(sf_link_all_gather(link, x, sizeof out, y));
    SF_CHECK_OK(sf_link_settle(link));
    SF_CHECK_INT(wrong(x, 1), 0);
    SF_CHECK_INT(wrong(y, 1), 0);
    sf_link_close(link);
    sf_comm_destroy(world);
}

static const struct sf_test tests[] = {
    { "calls", test_calls }, { "many communicators", test_many }, { "a link", test_link },
    { NULL, NULL }
};

static void set_up(void)
{
    struct sf_device_spec spec = { .name = name, .threads = 1, .rows_max = 1 };
    char gpu[SF_LINK_GPU_MAX];
    void *block = NULL, *second = NULL;
    if (sf_device_open(&spec, &device) != SF_OK) {
        snprintf(why, sizeof why, "%s", sf_error_text());
        return;
    }
    plugin = sf_device_symbol(device, "sf_link_plugin");
    if (plugin == NULL) snprintf(why, sizeof why, "the backend was built without NCCL");
    else if (plugin->probe(device, gpu) != SF_OK) snprintf(why, sizeof why, "%s", sf_error_text());
    else printf("  figure: %s: GPU %s\n", name, gpu);
    if (device->k->alloc(device, sizeof out, "x", &block) != SF_OK ||
        device->k->alloc(device, sizeof out, "y", &second) != SF_OK)
        snprintf(why, sizeof why, "%s", sf_error_text());
    x = block;
    y = second;
}

int main(int argc, char **argv)
{
    if (argc > 1) name = argv[1];
    set_up();
    int code = sf_test_main("gpu_nccl", tests, 1, argv);
    if (device != NULL) {
        if (x != NULL) device->k->free(device, x);
        if (y != NULL) device->k->free(device, y);
        sf_device_close(device);
    }
    return code;
}
