/* Links of ranks as processes, for mpirun; tests/mpi/link.sh starts it and reads what it prints.
 *
 *   cases            all common cases; rank 0 prints each failure and one last line of counts
 *   count            the ranks sum different counts: the emulation ends the job
 *   stop TIMEOUT_MS  sums without end; each rank first prints "rank R is process P", so that one
 *                    can be stopped; then the words of the failure, and the job ends with code 3
 *   mute TIMEOUT_MS  the same, but rank 1 lives and sums no more */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/link/cases.h"

enum { COUNT = 1000 };

static const struct sf_case *case_at(int32_t index)
{
    return sf_cases_nccl[index].name != NULL ? &sf_cases_nccl[index] : NULL;
}

static sf_status run_sums(struct sf_comm *world, const char *what)
{
    struct sf_ranked t = { .world = world, .rank = sf_comm_rank(world) };
    struct linked l;
    struct sf_link *link;
    SF_TRY(sf_linked_open(&t, COUNT, &l));
    struct sf_link_spec spec = { .device = l.device, .bytes_max = COUNT * sizeof(float) };
    SF_TRY(sf_link_open(world, &spec, &link));
    size_t count = strcmp(what, "count") == 0 && t.rank == 0 ? COUNT - 1 : COUNT;
    int mute = strcmp(what, "mute") == 0 && t.rank == 1;
    printf("rank %d is process %d\n", t.rank, (int)getpid());
    fflush(stdout);
    sf_status status = SF_OK;
    for (int i = 0; status == SF_OK; i++) {
        status = sf_comm_beat(world, "turn", 7);
        if (status == SF_OK && !(mute && i > 20)) status = sf_link_sum(link, l.x, count);
        if (status == SF_OK) status = sf_link_settle(link);
        sf_sleep_us(1000);
    }
    return status;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    struct sf_comm_options options = { .timeout_ms = argc > 2 ? atoi(argv[2]) : 20000 };
    struct sf_comm *world;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (options.timeout_ms <= 0 || sf_comm_mpi_world(&options, &world) != SF_OK) {
        printf("no world: %s\n", sf_error_text());
        return 2;
    }
    if (strcmp(what, "cases") == 0) {
        int code = sf_cases_print(world, case_at);
        sf_comm_destroy(world);
        return code;
    }
    sf_status status = run_sums(world, what);
    printf("rank %d: %s: %s\n", sf_comm_rank(world), sf_status_name(status), sf_error_text());
    fflush(stdout);
    sf_comm_abort(world, 3);
    return 3;
}
