/* Links of ranks as threads.  The common cases; planted mistakes, each in a process of its own,
 * that the emulation must report by their kind; and what a link does when a rank does not come,
 * falls silent or the library fails: it ends in time with the group, the rank and the host by
 * name, and closes without waiting again. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "comm/backend.h"
#include "comm/link_impl.h"
#include "tests/check.h"
#include "tests/emulation/emulation.h"
#include "tests/unit/link/cases.h"

enum { RANKS_MAX = 4, COUNT = 500 };    /* floats */
enum { TIMEOUT = 900, BEAT = 30, SLACK = 2500, DRAIN = 600 };          /* ms */

struct world;
struct thread { pthread_t id; struct world *world; struct sf_ranked ranked; };
struct world {
    int32_t ranks, variant;
    void (*run)(struct world *, struct sf_ranked *);
    const struct sf_case *one;
    struct thread thread[RANKS_MAX];
    struct sf_comm *comms[RANKS_MAX];
    _Atomic int over;
    sf_status status[RANKS_MAX];
    char words[RANKS_MAX][512];
    int64_t took_ms[RANKS_MAX];
};

static void *run_rank(void *arg)
{
    struct thread *self = arg;
    self->world->run(self->world, &self->ranked);
    return NULL;
}

static void world_start(struct world *world, int64_t timeout_ms)
{
    struct sf_comm_options options = { .timeout_ms = timeout_ms, .beat_ms = BEAT };
    SF_MUST(sf_comm_loopback_world(world->ranks, 0, &options, world->comms));
    for (int32_t r = 0; r < world->ranks; r++) {
        struct thread *thread = &world->thread[r];
        thread->world = world;
        thread->ranked = (struct sf_ranked){ .world = world->comms[r], .rank = r,
                                             .size = world->ranks };
        SF_CHECK_INT(pthread_create(&thread->id, NULL, run_rank, thread), 0);
    }
}

static void world_join(struct world *world)
{
    for (int32_t r = 0; r < world->ranks; r++) pthread_join(world->thread[r].id, NULL);
    for (int32_t r = 0; r < world->ranks; r++) {
        const struct sf_ranked *ranked = &world->thread[r].ranked;
        if (ranked->failures > 0) sf_test_fail(__FILE__, __LINE__, "%s", ranked->words);
        sf_comm_destroy(world->comms[r]);
    }
}

static void world_run(struct world *world, int64_t timeout_ms)
{
    world_start(world, timeout_ms);
    world_join(world);
}

static void run_case(struct world *world, struct sf_ranked *t)
{
    sf_case_run(world->one, t);
}

static void test_cases(void)
{
    for (const struct sf_case *one = sf_cases_nccl; one->name != NULL; one++)
        for (int32_t ranks = 2; ranks <= RANKS_MAX; ranks++) {
            struct world world = { .ranks = ranks, .run = run_case, .one = one };
            if (ranks < RANKS_MAX && strcmp(one->name, "sums") != 0) continue;
            world_run(&world, 60000);
        }
}

/* ---- planted mistakes ------------------------------------------------------------------------ */
struct planted { struct sf_ranked *t; struct linked l; struct sf_link *link; };

static void plant_count(struct planted *p)
{
    (void)sf_link_sum(p->link, p->l.x, p->t->rank == 0 ? 12 : 16);
}
static void plant_kind(struct planted *p)
{
    if (p->t->rank == 0) (void)sf_link_sum(p->link, p->l.x, 12);
    else (void)sf_link_all_gather(p->link, p->l.x, 48, p->l.x + 100);
}
static void plant_order(struct planted *p)
{
    for (int i = 0; i < 2; i++) {
        if (p->t->rank == 0) (void)sf_link_send(p->link, 1, p->l.x, i == 0 ? 40 : 80);
        else (void)sf_link_recv(p->link, 0, p->l.x, i == 0 ? 80 : 40);
    }
}
static void plant_freed(struct planted *p)
{
    void *gone;
    if (p->l.device->k->alloc(p->l.device, 400, "gone", &gone) != SF_OK) return;
    p->l.device->k->free(p->l.device, gone);
    (void)sf_link_sum(p->link, gone, 100);
}
static void plant_long(struct planted *p)
{
    (void)sf_link_sum(p->link, p->l.x + COUNT - 50, 51);
}
static void plant_host(struct planted *p)
{
    static float host[RANKS_MAX][100];
    (void)sf_link_sum(p->link, host[p->t->rank], 100);
}
static void plant_host_target(struct planted *p)
{
    static float host[RANKS_MAX][100];
    if (p->t->rank == 0) (void)sf_link_send(p->link, 1, p->l.x, 400);
    else (void)sf_link_recv(p->link, 0, host[1], 400);
}
/* The host frees, without settle and without being asked meanwhile, what a sum still needs while
 * the other rank does not come. */
static void plant_unsettled(struct planted *p)
{
    void *block;
    if (p->l.device->k->alloc(p->l.device, 400, "block", &block) != SF_OK) return;
    emu_set_patience_ms(300);
    while (p->t->rank == 1) (void)sf_comm_beat(p->t->world, "away", 1), sf_sleep_us(1000);
    (void)sf_link_sum(p->link, block, 10);
    p->l.device->waiting = NULL;
    p->l.device->k->free(p->l.device, block);
}
static void plant_leak(struct planted *p)
{
    p->link = NULL;
}
static void plant_nothing(struct planted *p)
{
    (void)sf_link_sum(p->link, p->l.x, 12);
}

static const struct {
    const char *kind;
    void (*plant)(struct planted *);
    const char *text;
} plants[] = {
    { "mismatch", plant_count, "ranks sum different counts" },
    { "mismatch", plant_kind, "a sum meets a gather" },
    { "mismatch", plant_order, "messages in another order" },
    { "use after free", plant_freed, "a freed buffer" },
    { "out of bounds", plant_long, "past the end of a buffer" },
    { "host memory", plant_host, "a host buffer is summed" },
    { "host memory", plant_host_target, "a host buffer receives" },
    { "stuck", plant_unsettled, "a free without settle" },
    { "leak", plant_leak, "a link that is not closed" },
    { "", plant_nothing, "nothing planted" }
};

static void run_plant(struct world *world, struct sf_ranked *t)
{
    struct planted p = { .t = t };
    R_MUST(t, sf_linked_open(t, COUNT, &p.l));
    struct sf_link_spec spec = { .device = p.l.device, .bytes_max = COUNT * 4 };
    R_MUST(t, sf_link_open(t->world, &spec, &p.link));
    plants[world->variant].plant(&p);
    if (p.link != NULL) R_STATUS(t, sf_link_settle(p.link), SF_OK);
    sf_link_close(p.link);
    sf_linked_close(&p.l);
}

static void plant_in_child(int32_t variant, char *text, size_t bytes)
{
    int ends[2], status = 0;
    size_t used = 0;
    SF_CHECK_INT(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = { 0, 0 };
        struct world world = { .ranks = 2, .run = run_plant, .variant = variant };
        setrlimit(RLIMIT_CORE, &none);
        dup2(ends[1], 2);
        dup2(ends[1], 1);
        close(ends[0]);
        world_run(&world, 10000);
        exit(0);
    }
    close(ends[1]);
    for (ssize_t n; used < bytes - 1 && (n = read(ends[0], text + used, bytes - 1 - used)) > 0; )
        used += (size_t)n;
    text[used] = 0;
    close(ends[0]);
    waitpid(child, &status, 0);
    SF_CHECK((used == 0) == (WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

static void test_plants(void)
{
    for (int32_t i = 0; i < (int32_t)(sizeof plants / sizeof plants[0]); i++) {
        char text[1024], expected[64];
        plant_in_child(i, text, sizeof text);
        snprintf(expected, sizeof expected, "cuda-emulated: %s", plants[i].kind);
        if (plants[i].kind[0] ? strstr(text, expected) == NULL : text[0] != '\0')
            sf_test_fail(__FILE__, __LINE__, "%s: expected '%s', found '%s'", plants[i].text,
                         plants[i].kind, text);
        else
            CU_PASS("as expected");
    }
}

/* ---- calls only queue ------------------------------------------------------------------------ */
/* With the other rank away, calls return and what was queued has not happened; settle brings it. */
static void run_queued(struct world *world, struct sf_ranked *t)
{
    struct linked l;
    struct sf_link *link;
    float host[COUNT], found[COUNT];
    R_MUST(t, sf_linked_open(t, COUNT, &l));
    struct sf_link_spec spec = { .device = l.device, .bytes_max = COUNT * 4 };
    R_MUST(t, sf_link_open(t->world, &spec, &link));
    for (int i = 0; i < COUNT; i++) host[i] = (float)(i + t->rank);
    l.device->k->upload(l.device, l.x, host, sizeof host);
    if (t->rank == 1)
        while (!atomic_load(&world->over)) sf_comm_beat(t->world, "away", 1), sf_sleep_us(1000);
    int64_t began = sf_now_ns(), launches = emu_launches();
    for (int turn = 0; turn < 3; turn++) {
        R_STATUS(t, sf_link_sum(link, l.x, COUNT), SF_OK);
        l.device->k->add_bias(l.device, 1, COUNT, l.x, l.x, COUNT);
    }
    if (t->rank == 0) {
        R_CHECK(t, (sf_now_ns() - began) / 1000000 < 1000);
        R_INT(t, emu_launches() - launches, 0);
        atomic_store(&world->over, 1);
    }
    R_STATUS(t, sf_link_settle(link), SF_OK);
    l.device->k->download(l.device, found, l.x, sizeof found);
    for (int i = 0; i < COUNT; i += 37) R_INT(t, found[i], 4 * 4 * (4 * i + 2));
    l.device->k->add_bias(l.device, 1, COUNT, l.x, l.x, COUNT);    /* settle left no error behind */
    l.device->k->sync(l.device);
    sf_link_close(link);
    sf_linked_close(&l);
}

static void test_queued(void)
{
    struct world world = { .ranks = 2, .run = run_queued };
    emu_set_idle_ms(-1);
    world_run(&world, 20000);
    emu_set_idle_ms(20);
}

/* A stage sends and then waits for a message of the host, as stages do: the device goes on. */
static void run_unattended(struct world *world, struct sf_ranked *t)
{
    struct linked l;
    struct sf_link *link;
    int32_t word = 7;
    (void)world;
    R_MUST(t, sf_linked_open(t, COUNT, &l));
    struct sf_link_spec spec = { .device = l.device, .bytes_max = COUNT * 4 };
    R_MUST(t, sf_link_open(t->world, &spec, &link));
    if (t->rank == 0) {
        R_STATUS(t, sf_link_send(link, 1, l.x, COUNT * 4), SF_OK);
        R_STATUS(t, sf_comm_recv(t->world, 1, 5, &word, sizeof word), SF_OK);
    } else {
        R_STATUS(t, sf_link_recv(link, 0, l.x, COUNT * 4), SF_OK);
        R_STATUS(t, sf_link_settle(link), SF_OK);
        R_STATUS(t, sf_comm_post(t->world, 0, 5, &word, sizeof word), SF_OK);
    }
    sf_link_close(link);
    sf_linked_close(&l);
}

static void test_unattended(void)
{
    struct world world = { .ranks = 2, .run = run_unattended };
    world_run(&world, 20000);
}

/* ---- what goes wrong ------------------------------------------------------------------------- */
enum { AWAY, AWAY_0, SILENT, DOWNLOAD, FREE, FAILS, FAILS_IN_OPEN };

/* The victim does not come to a sum: it lives (AWAY), is rank 0 of all and lives (AWAY_0), says
 * nothing any more (SILENT); the other reads before it settles (DOWNLOAD), or frees (FREE); or the
 * library fails on some rank. */
static void run_wrong(struct world *world, struct sf_ranked *t)
{
    struct linked l;
    struct sf_link *link = NULL;
    void *block = NULL;
    int32_t victim = world->variant == AWAY_0 ? 0 : 1;
    R_MUST(t, sf_linked_open(t, COUNT, &l));
    struct sf_link_spec spec = { .device = l.device, .bytes_max = COUNT * 4 };
    struct sf_comm *tensor;
    R_MUST(t, sf_comm_split(t->world, 0, t->rank, "tensor", &tensor));
    if (world->variant == FAILS_IN_OPEN) {
        sf_comm_set_timeout(t->world, TIMEOUT);
        if (t->rank == victim) emu_nccl_fail(6);
    }
    int64_t began = sf_now_ns();
    sf_status status = sf_link_open(tensor, &spec, &link);
    if (status == SF_OK) {
        if (world->variant == FAILS) {          /* all are connected */
            R_STATUS(t, sf_link_sum(link, l.x, COUNT), SF_OK);
            R_STATUS(t, sf_link_settle(link), SF_OK);
        }
        if (world->variant != FAILS_IN_OPEN) R_STATUS(t, sf_comm_barrier(t->world), SF_OK);
        sf_comm_set_timeout(t->world, TIMEOUT);
        began = sf_now_ns();
        if (world->variant == FREE) R_MUST(t, l.device->k->alloc(l.device, 400, "block", &block));
        if (world->variant == FAILS && t->rank == victim) emu_nccl_fail(6);
        if (t->rank != victim || world->variant == FAILS) {
            float host[COUNT];
            status = sf_link_sum(link, l.x, COUNT);
            if (world->variant == DOWNLOAD)
                l.device->k->download(l.device, host, l.x, sizeof host);
            if (world->variant == FREE) l.device->k->free(l.device, block);
            if (status == SF_OK) status = sf_link_settle(link);
        } else {
            while (!atomic_load(&world->over))
                if (world->variant == SILENT) sf_sleep_us(2000);
                else if (sf_comm_beat(t->world, "away", 3) == SF_OK) sf_sleep_us(1000);
        }
    }
    world->status[t->rank] = status;
    snprintf(world->words[t->rank], sizeof world->words[0], "%s",
             status == SF_OK ? "" : sf_error_text());
    if (status != SF_OK && link != NULL)
        R_STATUS(t, sf_link_sum(link, l.x, 1), status);
    atomic_store(&world->over, 1);
    if (status != SF_OK) sf_link_close(link);
    world->took_ms[t->rank] = (sf_now_ns() - began) / 1000000;
    if (status == SF_OK) {              /* the victim: the others are gone */
        int64_t close_began = sf_now_ns();
        sf_link_close(link);
        R_CHECK(t, (sf_now_ns() - close_began) / 1000000 < TIMEOUT + SLACK);
        l.device->k->free(l.device, block);
    }
    sf_comm_destroy(tensor);
    sf_linked_close(&l);
}

static void check_words(const struct world *world, int32_t rank, const char *part)
{
    if (strstr(world->words[rank], part) == NULL)
        sf_test_fail(__FILE__, __LINE__, "variant %d, rank %d: \"%s\" is not in \"%s\"",
                     world->variant, rank, part, world->words[rank]);
}

/* Whichever rank asked first has found the failure of the library. */
static void check_failed(const struct world *world)
{
    int32_t found = world->status[0] == SF_LOST ? 0 : 1;
    char words[80];
    snprintf(words, sizeof words, "rank %d (host ", found);
    SF_CHECK_INT(world->status[found], SF_LOST);
    check_words(world, found, words);
    check_words(world, found, "group 'tensor': remote process exited");
    check_words(world, found, world->variant == FAILS ? "nccl settle" : "nccl open");
    SF_CHECK(world->took_ms[found] < SLACK);
}

static void check_away(const struct world *world)
{
    int32_t victim = world->variant == AWAY_0 ? 0 : 1, other = 1 - victim;
    char words[80];
    SF_CHECK_INT(world->status[other], SF_TIMEOUT);
    SF_CHECK_INT(world->status[victim], SF_OK);
    SF_CHECK(world->took_ms[other] > TIMEOUT / 2 && world->took_ms[other] < TIMEOUT + SLACK);
    if (world->variant == SILENT) {
        check_words(world, other, "rank 1 (host ");
        check_words(world, other, "has shown no sign of life for ");
        return;
    }
    snprintf(words, sizeof words, "rank %d (host ", other);
    check_words(world, other, words);
    check_words(world, other, ") waited ");
    check_words(world, other, world->variant >= DOWNLOAD ? "in vain (nccl wait, group 'tensor')"
                                                         : "in vain (nccl settle, group 'tensor')");
}

static void test_failing(void)
{
    for (int32_t variant = FAILS; variant <= FAILS_IN_OPEN; variant++) {
        struct world world = { .ranks = 2, .run = run_wrong, .variant = variant };
        world_run(&world, 60000);
        check_failed(&world);
    }
}

static void test_away(void)
{
    static struct world worlds[FREE + 1];
    for (int32_t variant = AWAY; variant <= FREE; variant++) {
        worlds[variant].ranks = 2;
        worlds[variant].run = run_wrong;
        worlds[variant].variant = variant;
        world_start(&worlds[variant], 60000);
    }
    for (int32_t variant = AWAY; variant <= FREE; variant++) {
        world_join(&worlds[variant]);
        check_away(&worlds[variant]);
    }
}

/* Two links of one device that have worked, on a communicator that does not wait for long. */
static void two_links(struct sf_ranked *t, struct linked *l, struct sf_link *link[2])
{
    R_MUST(t, sf_linked_open(t, COUNT, l));
    struct sf_link_spec spec = { .device = l->device, .bytes_max = COUNT * 4 };
    for (int i = 0; i < 2; i++) R_MUST(t, sf_link_open(t->world, &spec, &link[i]));
    for (int i = 0; i < 2; i++) R_STATUS(t, sf_link_sum(link[i], l->x, COUNT), SF_OK);
    R_STATUS(t, sf_link_settle(link[0]), SF_OK);
    R_STATUS(t, sf_comm_barrier(t->world), SF_OK);
    sf_comm_set_timeout(t->world, TIMEOUT);
}

/* Two links; rank 1 fails for a reason of its own, with a sum of rank 0 under way.  It says so by
 * giving one link up: then both are lost, closing takes no time, and its words are what they were.
 * Rank 0's wait on the first link ends with the second one, too. */
static void run_local(struct world *world, struct sf_ranked *t)
{
    struct linked l;
    struct sf_link *link[2] = { NULL, NULL };
    two_links(t, &l, link);
    if (link[1] == NULL) return;        /* told already */
    if (t->rank == 0) {
        R_STATUS(t, sf_link_sum(link[1], l.x, COUNT), SF_OK);
        R_STATUS(t, sf_link_settle(link[0]), SF_TIMEOUT);
        R_STATUS(t, sf_link_sum(link[1], l.x, COUNT), SF_TIMEOUT);
    } else {
        R_STATUS(t, SF_FAIL(SF_NO_MEMORY, "no memory for a test"), SF_NO_MEMORY);
        sf_link_give_up(link[1]);
        R_CHECK(t, strcmp(sf_error_text(), "no memory for a test") == 0);
    }
    int64_t began = sf_now_ns();
    for (int i = 0; i < 2; i++) sf_link_close(link[i]);
    R_CHECK(t, (sf_now_ns() - began) / 1000000 < TIMEOUT / 2);
    R_CHECK(t, t->rank == 0 || strcmp(sf_error_text(), "no memory for a test") == 0);
    while (t->rank == 1 && !atomic_load(&world->over))
        (void)sf_comm_beat(t->world, "failed", 1), sf_sleep_us(1000);
    atomic_store(&world->over, 1);
    sf_linked_close(&l);
}

static void test_local(void)
{
    struct world world = { .ranks = 2, .run = run_local };
    world_run(&world, 60000);
}

/* Two links; rank 0 closes the first with a sum of the second under way, for which rank 1 does not
 * come.  The wait is in vain, and both are lost before the first has gone. */
static void run_closing(struct world *world, struct sf_ranked *t)
{
    struct linked l;
    struct sf_link *link[2] = { NULL, NULL };
    two_links(t, &l, link);
    if (link[1] == NULL) return;        /* told already */
    if (t->rank == 0) {
        R_STATUS(t, sf_link_sum(link[1], l.x, COUNT), SF_OK);
        sf_link_close(link[0]);
        R_STATUS(t, sf_link_sum(link[1], l.x, COUNT), SF_TIMEOUT);
        atomic_store(&world->over, 1);
    } else {
        while (!atomic_load(&world->over))
            (void)sf_comm_beat(t->world, "away", 1), sf_sleep_us(1000);
        sf_link_give_up(link[0]);
        sf_link_close(link[0]);
    }
    sf_link_close(link[1]);
    sf_linked_close(&l);
}

static void test_closing(void)
{
    struct world world = { .ranks = 2, .run = run_closing };
    world_run(&world, 60000);
}

/* Links that were given up a while ago, longer than a drain may last: a wait that begins now has
 * its own time. */
static void run_drained(struct world *world, struct sf_ranked *t)
{
    struct linked l;
    struct sf_link *link[2] = { NULL, NULL };
    (void)world;
    two_links(t, &l, link);
    if (link[1] == NULL) return;        /* told already */
    sf_link_give_up(link[0]);
    sf_sleep_us(3 * DRAIN * 1000);
    for (int wait = 0; wait < 2; wait++) {
        int64_t began = sf_now_ns();
        for (int64_t round = 0; (sf_now_ns() - began) / 1000000 < DRAIN * 2 / 3; round++)
            l.device->waiting(l.device->waiting_arg, round);
    }
    for (int i = 0; i < 2; i++) sf_link_close(link[i]);
    sf_linked_close(&l);
}

static void test_drained(void)
{
    struct world world = { .ranks = 2, .run = run_drained };
    sf_link_nccl_set_drain(DRAIN);
    world_run(&world, 60000);
    sf_link_nccl_set_drain(10000);
}

/* A rank that waits for its device for longer than the deadline is alive: the others are told,
 * though it has no link of kind nccl.  What it did last stays its last word. */
static void run_busy(struct world *world, struct sf_ranked *t)
{
    struct sf_device device = { 0 };
    struct sf_buffer taken = { 0 };
    (void)world;
    sf_comm_set_timeout(t->world, TIMEOUT);
    sf_link_show_life(t->world, &device);
    R_CHECK(t, device.waiting != NULL);
    R_STATUS(t, sf_comm_beat(t->world, "layer", 7), SF_OK);
    int64_t began = sf_now_ns();
    for (int64_t round = 0; t->rank == 1 && (sf_now_ns() - began) / 1000000 < 3 * TIMEOUT; round++)
        device.waiting(device.waiting_arg, round);
    R_CHECK(t, strcmp(t->world->world->note, "layer") == 0 && t->world->world->number == 7);
    if (t->rank == 1) R_STATUS(t, sf_comm_post(t->world, 0, 5, &began, sizeof began), SF_OK);
    else R_STATUS(t, sf_comm_take(t->world, 1, 5, 2, &taken, NULL), SF_OK);
    sf_buffer_free(&taken);
}

static void test_busy(void)
{
    struct world world = { .ranks = 2, .run = run_busy };
    world_run(&world, 60000);
}

static const struct sf_test tests[] = {
    { "planted mistakes", test_plants }, { "cases", test_cases }, { "calls queue", test_queued },
    { "unattended", test_unattended }, { "failing", test_failing },
    { "away", test_away }, { "a failure elsewhere", test_local },
    { "closing in vain", test_closing }, { "drained", test_drained }, { "busy", test_busy },
    { NULL, NULL }
};
SF_TEST_MAIN("link", tests)
