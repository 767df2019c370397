/* What both drivers and all cases share: the list of cases, words of a failure, test bytes. */
#include "tests/unit/comm/cases.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const struct sf_case *sf_case_at(int32_t index)
{
    const struct sf_case *const tables[] = { sf_cases_message, sf_cases_group, sf_cases_reduce,
                                              sf_cases_link };
    for (size_t t = 0; t < sizeof tables / sizeof tables[0]; t++)
        for (const struct sf_case *one = tables[t]; one->name != NULL; one++)
            if (index-- == 0) return one;
    return NULL;
}

/* All ranks come out of a case together, so that its messages cannot meet those of the next. */
void sf_case_run(const struct sf_case *one, struct sf_ranked *t)
{
    if (t->size < one->ranks_min) return;
    one->run(t);
    if (t->failures == 0) R_STATUS(t, sf_comm_barrier(t->world), SF_OK);
}

void sf_ranked_fail(struct sf_ranked *t, const char *file, int line, const char *format, ...)
{
    if (t->failures++ > 0) return;
    const char *name = strrchr(file, '/');
    int length = snprintf(t->words, sizeof t->words, "rank %d of %d: %s:%d: ", t->rank, t->size,
                          name != NULL ? name + 1 : file, line);
    va_list args;
    va_start(args, format);
    vsnprintf(t->words + length, sizeof t->words - (size_t)length, format, args);
    va_end(args);
}

static unsigned char byte_at(uint32_t seed, size_t place)
{
    uint32_t x = (seed * 2654435761u) ^ ((uint32_t)place * 2246822519u);
    return (unsigned char)((x ^ (x >> 15)) >> 8);
}

void sf_fill(void *data, size_t bytes, uint32_t seed)
{
    for (size_t i = 0; i < bytes; i++) ((unsigned char *)data)[i] = byte_at(seed, i);
}

int sf_is_filled(const void *data, size_t bytes, uint32_t seed)
{
    for (size_t i = 0; i < bytes; i++)
        if (((const unsigned char *)data)[i] != byte_at(seed, i)) return 0;
    return 1;
}

int sf_cases_print(struct sf_comm *world, const struct sf_case *(*at)(int32_t))
{
    int32_t passed = 0, failed = 0, skipped = 0, size = sf_comm_size(world);
    struct sf_ranked all[64];
    for (int32_t i = 0; at(i) != NULL && failed == 0; i++) {
        const struct sf_case *one = at(i);
        struct sf_ranked mine = { .world = world, .rank = sf_comm_rank(world), .size = size };
        if (size < one->ranks_min) {
            skipped++;
            continue;
        }
        sf_case_run(one, &mine);
        sf_status status = sf_comm_allgather(world, &mine, sizeof mine, all);
        if (status != SF_OK) {
            printf("  FAILED %s: %s; then %s\n", one->name, mine.words, sf_error_text());
            return 1;
        }
        int32_t before = failed;
        for (int32_t r = 0; r < size; r++) {
            failed += all[r].failures > 0;
            if (all[r].failures > 0 && mine.rank == 0)
                printf("  FAILED %s: %s\n", one->name, all[r].words);
        }
        passed += failed == before;
    }
    if (sf_comm_rank(world) == 0)
        printf("cases: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed > 0;
}
