/* Ranks as processes, for mpirun; tests/mpi/comm.sh starts it and reads what it prints.
 *
 *   cases [PIECE]        all common cases; rank 0 prints each failure and one last line of counts.
 *                        PIECE: longest single MPI message in bytes
 *   meet TIMEOUT_MS      barriers without end until something fails; each rank first prints "rank R
 *                        is process P", so that one can be stopped or killed; then the words of the
 *                        failure, and the job is ended with code 3
 *   mute RANK TIMEOUT_MS the same, but RANK shows signs of life and never comes
 *   abort RANK CODE      RANK ends the job with this code while the others wait for it */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "comm/backend.h"
#include "tests/unit/comm/cases.h"

/* Each rank takes part in barriers, but for the mute one, which only says that it lives. */
static int meet(struct sf_comm *world, int32_t mute)
{
    int32_t rank = sf_comm_rank(world);
    char text[32];
    for (int32_t r = 0; r < sf_comm_size(world); r++) {
        snprintf(text, sizeof text, "part %d", r);
        sf_comm_describe(world, r, text);
    }
    printf("rank %d is process %d\n", rank, (int)getpid());
    fflush(stdout);
    sf_status status = SF_OK;
    for (int64_t i = 0; status == SF_OK; i++) {
        status = sf_comm_beat(world, "turn", 7);
        if (status == SF_OK && rank != mute) status = sf_comm_barrier(world);
        sf_sleep_us(1000);
    }
    printf("rank %d: %s: %s\n", rank, sf_status_name(status), sf_error_text());
    sf_comm_abort(world, 3);
    return 3;
}

static int wait_for_end(struct sf_comm *world, int32_t rank, int code)
{
    int32_t number = 0;
    if (sf_comm_rank(world) == rank) {
        sf_sleep_us(100000);
        sf_comm_abort(world, code);
    }
    (void)sf_comm_recv(world, rank, 1, &number, sizeof number);
    printf("rank %d was not ended: %s\n", sf_comm_rank(world), sf_error_text());
    return 1;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int first = argc > 2 ? atoi(argv[2]) : 0, second = argc > 3 ? atoi(argv[3]) : 0, code = 2;
    int cases = strcmp(what, "cases") == 0, met = strcmp(what, "meet") == 0;
    struct sf_comm_options options = { .timeout_ms = met ? first : second };
    struct sf_comm *world;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (cases || strcmp(what, "abort") == 0) options.timeout_ms = 20000;
    if (cases && first > 0) sf_comm_mpi_piece((size_t)first);
    if (options.timeout_ms <= 0 || sf_comm_mpi_world(&options, &world) != SF_OK) {
        printf("no world: %s\n", sf_error_text());
        return 2;
    }
    world->world->grace_ns = (int64_t)2 * 1000 * 1000 * 1000;
    if (cases) code = sf_cases_print(world, sf_case_at);
    else if (met) code = meet(world, -1);
    else if (strcmp(what, "mute") == 0) code = meet(world, first);
    else code = wait_for_end(world, first, second);
    sf_comm_destroy(world);
    return code;
}
