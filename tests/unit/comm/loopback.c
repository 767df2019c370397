/* The common cases on ranks as threads: one to eight ranks, on one node and on several.  Run under
 * the address and thread sanitizers too: nothing leaks, nothing races. */
#include <pthread.h>
#include <string.h>

#include "tests/check.h"
#include "tests/unit/comm/cases.h"

enum { RANKS_MAX = 8, TIMEOUT_MS = 60000 };

struct worlds { int32_t ranks, node_size; };
static const struct worlds worlds[] = { { 1, 0 }, { 2, 0 }, { 3, 0 }, { 3, 1 }, { 4, 2 }, { 5, 3 },
                                        { 8, 0 } };

struct thread { pthread_t id; const struct sf_case *one; struct sf_ranked ranked; };

static void *run_rank(void *arg)
{
    struct thread *self = arg;
    sf_case_run(self->one, &self->ranked);
    return NULL;
}

static void run_case(const struct sf_case *one, const struct worlds *shape)
{
    struct sf_comm_options options = { .timeout_ms = TIMEOUT_MS };
    struct sf_comm *comms[RANKS_MAX];
    struct thread thread[RANKS_MAX];
    SF_MUST(sf_comm_loopback_world(shape->ranks, shape->node_size, &options, comms));
    for (int32_t r = 0; r < shape->ranks; r++) {
        thread[r] = (struct thread){ .one = one, .ranked = { .world = comms[r], .rank = r,
                                                             .size = shape->ranks } };
        SF_CHECK_INT(pthread_create(&thread[r].id, NULL, run_rank, &thread[r]), 0);
    }
    for (int32_t r = 0; r < shape->ranks; r++) pthread_join(thread[r].id, NULL);
    for (int32_t r = 0; r < shape->ranks; r++) {
        const struct sf_ranked *ranked = &thread[r].ranked;
        if (ranked->failures > 0)
            sf_test_fail(__FILE__, __LINE__, "%s, %d ranks, %d a node: %s", one->name,
                         shape->ranks, shape->node_size, ranked->words);
        sf_comm_destroy(comms[r]);
    }
}

static void run_cases(const struct sf_case *table)
{
    for (const struct sf_case *one = table; one->name != NULL; one++)
        for (size_t w = 0; w < sizeof worlds / sizeof worlds[0]; w++)
            if (worlds[w].ranks >= one->ranks_min) run_case(one, &worlds[w]);
}

static void test_messages(void) { run_cases(sf_cases_message); }
static void test_groups(void) { run_cases(sf_cases_group); }
static void test_reduce(void) { run_cases(sf_cases_reduce); }
static void test_link(void) { run_cases(sf_cases_link); }

static const struct sf_test tests[] = {
    { "messages", test_messages },
    { "groups", test_groups },
    { "reduce", test_reduce },
    { "link", test_link },
    { NULL, NULL }
};
SF_TEST_MAIN("comm_loopback", tests)
