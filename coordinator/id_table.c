/* coordinator/id_table.c: linear probing; there is always a free place, where a search ends. */
#include "coordinator/id_table.h"

#include <stdlib.h>

sf_status sf_id_table_make(struct sf_id_table *table, int64_t ids_max)
{
    SF_ASSERT(ids_max >= 0);
    size_t places = (size_t)ids_max + (size_t)ids_max / 3 + 2;
    struct sf_id_place *place =
        places > PTRDIFF_MAX / sizeof *place ? NULL : malloc(places * sizeof *place);
    if (place == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory to know %lld records apart", (long long)ids_max);
    for (size_t i = 0; i < places; i++) place[i] = (struct sf_id_place){.at = -1};
    *table = (struct sf_id_table){.place = place, .places = places};
    return SF_OK;
}

void sf_id_table_free(struct sf_id_table *table)
{
    free(table->place);
    *table = (struct sf_id_table){0};
}

/* From place `i` on: the first that is free or has this hash. */
static struct sf_id_place *probe(const struct sf_id_table *table, uint64_t hash, size_t i)
{
    for (i %= table->places; table->place[i].at >= 0 && table->place[i].hash != hash;)
        i = (i + 1) % table->places;
    return &table->place[i];
}

struct sf_id_place *sf_id_table_next(const struct sf_id_table *table, uint64_t hash,
                                     const struct sf_id_place *after)
{
    size_t first = after == NULL ? (size_t)(hash % table->places)
                                 : (size_t)(after - table->place) + 1;
    struct sf_id_place *place = probe(table, hash, first);
    return place->at >= 0 ? place : NULL;
}

int sf_id_table_add(struct sf_id_table *table, uint64_t hash, int64_t at)
{
    SF_ASSERT(at >= 0);
    if (4 * (table->used + 1) > 3 * table->places) return 0;
    struct sf_id_place *place = probe(table, hash, (size_t)(hash % table->places));
    while (place->at >= 0) place = probe(table, hash, (size_t)(place - table->place) + 1);
    *place = (struct sf_id_place){.hash = hash, .at = at};
    table->used++;
    return 1;
}
