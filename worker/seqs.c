/* worker/seqs.c: the open sequences of a worker by number: open addressing with linear probing,
 * at most half full, so that a look-up is a few steps and nothing is allocated while running. */
#include <stdlib.h>
#include <string.h>

#include "worker/state.h"

static int32_t home_of(const struct sf_seq_table *table, uint64_t id)
{
    return (int32_t)((id * 0x9e3779b97f4a7c15u) >> 32) & (table->places - 1);
}

sf_status sf_seq_table_create(struct sf_seq_table *table, int32_t seqs_max)
{
    int32_t places = 16;
    while (places < 2 * seqs_max) places *= 2;
    *table = (struct sf_seq_table){.places = places, .used_max = seqs_max};
    table->place = calloc((size_t)places, sizeof *table->place);
    if (table->place == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for a table of %d sequences", seqs_max);
    return SF_OK;
}

void sf_seq_table_destroy(struct sf_seq_table *table)
{
    for (int32_t i = 0; i < table->places; i++)
        if (table->place[i].cache != NULL) sf_choice_close(&table->place[i].choice);
    free(table->place);
    memset(table, 0, sizeof *table);
}

struct sf_worker_seq *sf_seq_table_find(const struct sf_seq_table *table, uint64_t id)
{
    for (int32_t i = home_of(table, id);; i = (i + 1) & (table->places - 1)) {
        struct sf_worker_seq *place = &table->place[i];
        if (place->cache == NULL) return NULL;
        if (place->id == id) return place;
    }
}

sf_status sf_seq_table_add(struct sf_seq_table *table, uint64_t id, struct sf_worker_seq **out)
{
    if (table->used == table->used_max)
        return SF_FAIL(SF_INTERNAL, "sequence %llu enters, but %d are open already",
                       (unsigned long long)id, table->used);
    if (sf_seq_table_find(table, id) != NULL)
        return SF_FAIL(SF_INTERNAL, "sequence %llu enters twice", (unsigned long long)id);
    int32_t i = home_of(table, id);
    while (table->place[i].cache != NULL) i = (i + 1) & (table->places - 1);
    table->place[i] = (struct sf_worker_seq){.id = id, .next_token = -1};
    table->used++;
    *out = &table->place[i];
    return SF_OK;
}

/* Later entries of the same run move up, so that no look-up meets a gap before its entry. */
void sf_seq_table_remove(struct sf_seq_table *table, struct sf_worker_seq *seq)
{
    int32_t mask = table->places - 1, gap = (int32_t)(seq - table->place);
    SF_ASSERT(gap >= 0 && gap < table->places && table->used > 0);
    sf_choice_close(&seq->choice);
    for (int32_t i = (gap + 1) & mask; table->place[i].cache != NULL; i = (i + 1) & mask) {
        int32_t home = home_of(table, table->place[i].id);
        if (((i - home) & mask) < ((i - gap) & mask)) continue;
        table->place[gap] = table->place[i];
        gap = i;
    }
    memset(&table->place[gap], 0, sizeof table->place[gap]);
    table->used--;
}
