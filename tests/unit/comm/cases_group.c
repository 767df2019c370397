/* Groups: facts, splits that keep their messages apart, broadcast, allgather and barrier of many
 * sizes, and shared windows: zeroed, seen by all after a barrier, absent where a group spans nodes.
 * Under the thread sanitizer the window case also shows that its barrier orders plain memory. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/unit/comm/cases.h"

static void case_facts(struct sf_ranked *t)
{
    R_INT(t, sf_comm_rank(t->world), t->rank);
    R_INT(t, sf_comm_size(t->world), t->size);
    R_INT(t, sf_comm_node(t->world, 0), 0);
    for (int32_t r = 0; r < t->size; r++) {
        R_CHECK(t, sf_comm_host(t->world, r)[0] != '\0');
        if (r > 0) {
            int32_t step = sf_comm_node(t->world, r) - sf_comm_node(t->world, r - 1);
            R_CHECK(t, step == 0 || step == 1);
        }
    }
    int64_t before = sf_comm_bytes_sent(t->world);
    int32_t number = t->rank;
    R_MUST(t, sf_comm_post(t->world, (t->rank + 1) % t->size, 1, &number, sizeof number));
    R_INT(t, sf_comm_bytes_sent(t->world) - before, sizeof number);
    R_MUST(t, sf_comm_recv(t->world, (t->rank + t->size - 1) % t->size, 1, &number, sizeof number));
    R_INT(t, number, (t->rank + t->size - 1) % t->size);
}

static void case_bcast(struct sf_ranked *t)
{
    static const size_t lengths[] = { 0, 1, 1000, 65536, 300001 };
    unsigned char *data = malloc(300001);
    R_CHECK(t, data != NULL);
    if (data == NULL) return;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        for (int32_t root = 0; root < t->size; root++) {
            memset(data, 0, lengths[i]);
            if (t->rank == root) sf_fill(data, lengths[i], (uint32_t)(root + 9));
            R_MUST(t, sf_comm_bcast(t->world, root, data, lengths[i]));
            R_CHECK(t, sf_is_filled(data, lengths[i], (uint32_t)(root + 9)));
        }
    free(data);
}

static void case_allgather(struct sf_ranked *t)
{
    static const size_t lengths[] = { 0, 12, 5000, 65536 };
    unsigned char *mine = malloc(65536), *all = malloc(65536 * (size_t)t->size);
    R_CHECK(t, mine != NULL && all != NULL);
    if (mine == NULL || all == NULL) return;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        sf_fill(mine, lengths[i], (uint32_t)(t->rank + 3));
        R_MUST(t, sf_comm_allgather(t->world, mine, lengths[i], all));
        for (int32_t r = 0; r < t->size; r++)
            R_CHECK(t, sf_is_filled(all + (size_t)r * lengths[i], lengths[i], (uint32_t)(r + 3)));
    }
    free(mine);
    free(all);
}

/* Nobody leaves before the last has come (one monotonic clock: all ranks are on this machine). */
static void case_barrier(struct sf_ranked *t)
{
    struct times { int64_t came, left; } mine, all[64];
    for (int32_t late = 0; late < t->size; late++) {
        if (t->rank == late) sf_sleep_us(5000);
        mine.came = sf_now_ns();
        R_MUST(t, sf_comm_barrier(t->world));
        mine.left = sf_now_ns();
        R_MUST(t, sf_comm_allgather(t->world, &mine, sizeof mine, all));
        for (int32_t r = 0; r < t->size; r++) R_CHECK(t, mine.left >= all[r].came);
    }
}

/* Halves by parity, numbered backwards, and the halves of those: each knows its members, and the
 * same message on world and group is received from the one on which it was sent. */
static void case_split(struct sf_ranked *t)
{
    struct sf_comm *group, *inner;
    int32_t parity = t->rank % 2, members = (t->size + 1 - parity) / 2;
    R_MUST(t, sf_comm_split(t->world, parity, -t->rank, "parity", &group));
    int32_t rank = sf_comm_rank(group), size = sf_comm_size(group), all[64];
    R_INT(t, size, members);
    R_INT(t, rank, members - 1 - t->rank / 2);
    R_MUST(t, sf_comm_allgather(group, &t->rank, sizeof t->rank, all));
    for (int32_t r = 0; r < size; r++) {
        R_INT(t, all[r], 2 * (members - 1 - r) + parity);
        R_INT(t, sf_comm_node(group, r), sf_comm_node(t->world, all[r]));
    }
    int32_t on_world = 1000 + t->rank, on_group = 2000 + t->rank, got = 0;
    int32_t next = (rank + 1) % size, before = (rank + size - 1) % size;
    R_MUST(t, sf_comm_post(t->world, all[next], 5, &on_world, sizeof on_world));
    R_MUST(t, sf_comm_post(group, next, 5, &on_group, sizeof on_group));
    R_MUST(t, sf_comm_recv(group, before, 5, &got, sizeof got));
    R_INT(t, got, 2000 + all[before]);
    R_MUST(t, sf_comm_recv(t->world, all[before], 5, &got, sizeof got));
    R_INT(t, got, 1000 + all[before]);

    R_MUST(t, sf_comm_split(group, rank == 0, 0, "inner", &inner));
    R_INT(t, sf_comm_size(inner), rank == 0 ? 1 : size - 1);
    R_INT(t, sf_comm_rank(inner), rank == 0 ? 0 : size - 1 - rank);    /* ties by world rank */
    R_MUST(t, sf_comm_barrier(inner));
    sf_comm_destroy(inner);
    sf_comm_destroy(group);
}

/* ---- windows --------------------------------------------------------------------------------- */
enum { ROUNDS = 80 };

static void use_window(struct sf_ranked *t, struct sf_comm *group, size_t bytes)
{
    struct sf_window *window = NULL;
    int32_t rank = sf_comm_rank(group), size = sf_comm_size(group);
    R_MUST(t, sf_comm_window_create(group, bytes, &window));
    R_CHECK(t, window != NULL);
    if (window == NULL) return;
    R_INT(t, window->size, size);
    R_INT(t, window->bytes, bytes);
    for (int32_t r = 0; r < size; r++)
        for (size_t i = 0; i < bytes; i++) R_CHECK(t, window->base[r][i] == 0);
    R_MUST(t, sf_comm_window_barrier(group, window));
    for (int32_t round = 0; round < ROUNDS; round++) {
        sf_fill(window->base[rank], bytes, (uint32_t)(round * 64 + rank));
        R_MUST(t, sf_comm_window_barrier(group, window));
        for (int32_t r = 0; r < size; r++)
            R_CHECK(t, sf_is_filled(window->base[r], bytes, (uint32_t)(round * 64 + r)));
        R_MUST(t, sf_comm_window_barrier(group, window));
    }
    sf_comm_window_destroy(group, window);
}

static void case_window(struct sf_ranked *t)
{
    struct sf_comm *node;
    struct sf_window *window = (struct sf_window *)t;
    int32_t nodes = sf_comm_node(t->world, t->size - 1) + 1;
    if (nodes > 1) {
        R_MUST(t, sf_comm_window_create(t->world, 100, &window));
        R_CHECK(t, window == NULL);
        sf_comm_window_destroy(t->world, window);
    }
    R_MUST(t, sf_comm_split(t->world, sf_comm_node(t->world, t->rank), 0, "node", &node));
    use_window(t, node, 1);
    use_window(t, node, 300);
    sf_comm_destroy(node);
}

/* Two windows of one group at a time, and barriers at which one rank is late and others sleep. */
static void case_windows(struct sf_ranked *t)
{
    struct sf_comm *node;
    struct sf_window *window[2];
    R_MUST(t, sf_comm_split(t->world, sf_comm_node(t->world, t->rank), 0, "node", &node));
    int32_t rank = sf_comm_rank(node), size = sf_comm_size(node);
    for (int w = 0; w < 2; w++) R_MUST(t, sf_comm_window_create(node, 64, &window[w]));
    for (int32_t round = 0; round < 2 * size; round++) {
        if (round % size == rank) sf_sleep_us(4000);
        for (int w = 0; w < 2; w++) {
            window[w]->base[rank][0] = (unsigned char)(round + w);
            R_MUST(t, sf_comm_window_barrier(node, window[w]));
        }
        for (int w = 0; w < 2; w++)
            for (int32_t r = 0; r < size; r++) R_INT(t, window[w]->base[r][0], round + w);
        R_MUST(t, sf_comm_window_barrier(node, window[0]));
    }
    for (int w = 0; w < 2; w++) sf_comm_window_destroy(node, window[w]);
    sf_comm_destroy(node);
}

/* Destroying waits for nobody: a rank that has failed must get to saying so. */
static void case_window_alone(struct sf_ranked *t)
{
    struct sf_comm *node;
    struct sf_window *window;
    R_MUST(t, sf_comm_split(t->world, sf_comm_node(t->world, t->rank), 0, "node", &node));
    int32_t rank = sf_comm_rank(node), number = 3;
    R_MUST(t, sf_comm_window_create(node, 64, &window));
    if (rank > 0) R_MUST(t, sf_comm_recv(node, 0, 1, &number, sizeof number));
    window->base[rank][0] = 1;          /* still there for those who have it */
    sf_comm_window_destroy(node, window);
    for (int32_t r = 1; r < sf_comm_size(node) && rank == 0; r++)
        R_MUST(t, sf_comm_post(node, r, 1, &number, sizeof number));
    sf_comm_destroy(node);
}

const struct sf_case sf_cases_group[] = {
    { "facts", 1, case_facts },
    { "bcast", 1, case_bcast },
    { "allgather", 1, case_allgather },
    { "barrier", 1, case_barrier },
    { "split", 1, case_split },
    { "window", 1, case_window },
    { "windows", 1, case_windows },
    { "window alone", 2, case_window_alone },
    { NULL, 0, NULL }
};
