/* proto/columns.c: the tables of columns.h at work, and protobuf-c without malloc.
 *
 * Packing fills a buffer from both ends of one block; what protobuf will need is not known before
 * the columns are there, but bounded by their size:
 *
 *   buffer   | packed message ....      | column | column | ... |
 *            0                          room                    room + columns
 *
 * Unpacking takes protobuf's arrays, and then the records, from a box. */
#include "proto/columns.h"

#include <string.h>

/* A step holds at most some thousands of rows and a token takes up to five bytes, so these bounds
 * are far off in a sane run; they keep what a broken message can make us allocate finite. */
enum { MESSAGE_BYTES_MAX = 32 << 20, COUNT_MAX = 4 << 20 };
/* Tags and lengths of up to 64 columns, up to 32 plain members, and words. */
enum { HEAD_BYTES = 64 * 8 + 32 * 16 + SF_WIRE_TEXT_MAX };

sf_status sf_columns_count_check(const char *what, int64_t count)
{
    if (count < 0 || count > COUNT_MAX)
        return SF_FAIL(SF_FORMAT, "message holds %lld %s; 0 to %d are allowed", (long long)count,
                       what, COUNT_MAX);
    return SF_OK;
}

/* ---- access by offset ------------------------------------------------------------------------ */
/* Pointers are read and written as bytes, which is right for a pointer of any type. */
static unsigned char *pointer_at(const void *base, size_t at)
{
    unsigned char *pointer;
    memcpy(&pointer, (const unsigned char *)base + at, sizeof pointer);
    return pointer;
}

static void set_pointer(void *base, size_t at, void *pointer)
{
    memcpy((unsigned char *)base + at, &pointer, sizeof pointer);
}

static size_t length_of(const ProtobufCMessage *message, const struct sf_column *column)
{
    size_t length;
    memcpy(&length, (const unsigned char *)message + column->count_at, sizeof length);
    return length;
}

static size_t array_item_bytes(const struct sf_column *column)
{
    return column->bytes == 1 ? 4 : column->bytes;
}

static size_t column_bytes(const struct sf_column *column, size_t count)
{
    return (count * array_item_bytes(column) + 7) / 8 * 8;
}

/* Where a list is held: once in the plain struct, or in each record of its owner. */
struct holders { unsigned char *first; size_t bytes; int32_t count; };

static int32_t count_in(const struct sf_list *list, const unsigned char *holder)
{
    int32_t count;
    memcpy(&count, holder + list->count_at, sizeof count);
    return count;
}

static struct holders holders_of(const struct sf_lists *lists, const struct sf_list *list,
                                 const void *plain)
{
    unsigned char *self = (unsigned char *)plain;   /* packing only reads what it finds there */
    if (list->owner < 0) return (struct holders){self, 0, 1};
    const struct sf_list *owner = &lists->list[list->owner];
    SF_ASSERT(owner < list && owner->owner < 0);
    return (struct holders){pointer_at(self, owner->list_at), owner->record_bytes,
                            count_in(owner, self)};
}

/* ---- packing --------------------------------------------------------------------------------- */
static sf_status count_all(const struct sf_list *list, const struct holders *holders,
                           size_t *count_out)
{
    int64_t count = 0;
    for (int32_t h = 0; h < holders->count; h++)
        count += count_in(list, holders->first + (size_t)h * holders->bytes);
    SF_TRY(sf_columns_count_check(list->what, count));
    *count_out = (size_t)count;
    return SF_OK;
}

static void gather(const struct sf_column *column, size_t record_bytes,
                   const unsigned char *record, size_t count, unsigned char *array)
{
    const unsigned char *member = record + column->member_at;
    switch (column->bytes) {
    case 8:
        for (size_t i = 0; i < count; i++) memcpy(array + i * 8, member + i * record_bytes, 8);
        break;
    case 4:
        for (size_t i = 0; i < count; i++) memcpy(array + i * 4, member + i * record_bytes, 4);
        break;
    default:
        for (size_t i = 0; i < count; i++) {
            uint32_t wide = member[i * record_bytes];
            memcpy(array + i * 4, &wide, 4);
        }
    }
}

/* One column for all holders, at `array`. */
static void fill_column(const struct sf_list *list, const struct holders *holders,
                        const struct sf_column *column, size_t count, unsigned char *array,
                        ProtobufCMessage *message)
{
    size_t done = 0;
    for (int32_t h = 0; h < holders->count; h++) {
        const unsigned char *holder = holders->first + (size_t)h * holders->bytes;
        size_t part = (size_t)count_in(list, holder);
        if (part == 0) continue;
        gather(column, list->record_bytes, pointer_at(holder, list->list_at), part,
               array + done * array_item_bytes(column));
        done += part;
    }
    SF_ASSERT(done == count);
    memcpy((unsigned char *)message + column->count_at, &count, sizeof count);
    set_pointer(message, column->array_at, array);
}

/* A value takes at most 5/4 of its place in a column: 10 bytes of 8, or 5 of 4, since negative
 * numbers are checked away or travel as sint32. */
static size_t room_for(size_t columns)
{
    return (columns + columns / 4 + HEAD_BYTES + 7) / 8 * 8;
}

sf_status sf_columns_pack(const struct sf_lists *lists, const void *plain,
                          ProtobufCMessage *message, struct sf_buffer *out)
{
    size_t columns = 0, count;
    for (int32_t i = 0; i < lists->lists; i++) {
        const struct sf_list *list = &lists->list[i];
        struct holders holders = holders_of(lists, list, plain);
        SF_TRY(count_all(list, &holders, &count));
        for (int32_t c = 0; c < list->columns; c++)
            columns += column_bytes(&list->column[c], count);
    }
    size_t room = room_for(columns);
    SF_TRY(sf_buffer_reserve(out, room + columns));
    unsigned char *at = out->bytes + room;
    for (int32_t i = 0; i < lists->lists; i++) {
        const struct sf_list *list = &lists->list[i];
        struct holders holders = holders_of(lists, list, plain);
        SF_TRY(count_all(list, &holders, &count));
        for (int32_t c = 0; c < list->columns; c++) {
            fill_column(list, &holders, &list->column[c], count, at, message);
            at += column_bytes(&list->column[c], count);
        }
    }
    SF_ASSERT(at == out->bytes + room + columns);
    size_t bytes = protobuf_c_message_get_packed_size(message);
    if (bytes > MESSAGE_BYTES_MAX)
        return SF_FAIL(SF_FORMAT, "message of %zu bytes; at most %d fit", bytes,
                       MESSAGE_BYTES_MAX);
    SF_ASSERT(bytes <= room);
    size_t written = protobuf_c_message_pack(message, out->bytes);
    SF_ASSERT(written == bytes);
    out->count = bytes;
    return SF_OK;
}

/* ---- unpacking ------------------------------------------------------------------------------- */
struct lender { struct sf_box *box; int empty; };

static void *lend(void *arg, size_t bytes)
{
    struct lender *lender = arg;
    void *piece = sf_box_take(lender->box, bytes);
    if (piece == NULL) lender->empty = 1;
    return piece;
}

static void take_back(void *arg, void *piece)
{
    (void)arg, (void)piece;             /* the box takes all back at once */
}

sf_status sf_columns_parse(const struct sf_lists *lists, const void *bytes, size_t count,
                           struct sf_box *box, ProtobufCMessage **message_out)
{
    static const unsigned char nothing[1];
    if (count > MESSAGE_BYTES_MAX)
        return SF_FAIL(SF_FORMAT, "message of %zu bytes; at most %d are allowed", count,
                       MESSAGE_BYTES_MAX);
    sf_box_reset(box);
    struct lender lender = {.box = box};
    ProtobufCAllocator allocator = {.alloc = lend, .free = take_back, .allocator_data = &lender};
    ProtobufCMessage *message = protobuf_c_message_unpack(lists->descriptor, &allocator, count,
                                                          count > 0 ? bytes : nothing);
    if (lender.empty)
        return SF_FAIL(SF_NO_MEMORY, "no memory to unpack a message of %zu bytes", count);
    if (message == NULL)
        return SF_FAIL(SF_FORMAT, "%zu bytes that are no %s message", count,
                       lists->descriptor->short_name);
    if (message->n_unknown_fields > 0)
        return SF_FAIL(SF_FORMAT, "%s message with unknown fields: ranks of different versions?",
                       lists->descriptor->short_name);
    *message_out = message;
    return SF_OK;
}

static sf_status columns_equal(const struct sf_list *list, const ProtobufCMessage *message,
                               size_t *count_out)
{
    size_t count = length_of(message, &list->column[0]);
    SF_TRY(sf_columns_count_check(list->what,
                                  count > COUNT_MAX ? (int64_t)COUNT_MAX + 1 : (int64_t)count));
    for (int32_t c = 1; c < list->columns; c++) {
        size_t other = length_of(message, &list->column[c]);
        if (other != count)
            return SF_FAIL(SF_FORMAT, "message with unequal columns: %zu %s, but column %d has %zu",
                           count, list->what, c, other);
    }
    *count_out = count;
    return SF_OK;
}

/* A number too large for its byte becomes the largest, which no check lets through. */
static void scatter(const struct sf_column *column, size_t record_bytes,
                    const unsigned char *array, size_t count, unsigned char *record)
{
    unsigned char *member = record + column->member_at;
    switch (column->bytes) {
    case 8:
        for (size_t i = 0; i < count; i++) memcpy(member + i * record_bytes, array + i * 8, 8);
        break;
    case 4:
        for (size_t i = 0; i < count; i++) memcpy(member + i * record_bytes, array + i * 4, 4);
        break;
    default:
        for (size_t i = 0; i < count; i++) {
            uint32_t wide;
            memcpy(&wide, array + i * 4, 4);
            member[i * record_bytes] = wide > UINT8_MAX ? UINT8_MAX : (unsigned char)wide;
        }
    }
}

/* Deals the records out to the records of their owner, which say how many each has. */
static sf_status deal(const struct sf_list *list, const struct holders *holders,
                      unsigned char *records, size_t count)
{
    size_t dealt = 0;
    for (int32_t h = 0; h < holders->count; h++) {
        unsigned char *holder = holders->first + (size_t)h * holders->bytes;
        int32_t part = count_in(list, holder);
        if (part < 0 || (size_t)part > count - dealt)
            return SF_FAIL(SF_FORMAT, "message wants %d %s for one record; %zu are left", part,
                           list->what, count - dealt);
        set_pointer(holder, list->list_at,
                    part > 0 ? records + dealt * list->record_bytes : NULL);
        dealt += (size_t)part;
    }
    if (dealt != count)
        return SF_FAIL(SF_FORMAT, "message with %zu %s, of which %zu belong to a record", count,
                       list->what, dealt);
    return SF_OK;
}

sf_status sf_columns_unpack(const struct sf_lists *lists, const ProtobufCMessage *message,
                            struct sf_box *box, void *plain)
{
    for (int32_t i = 0; i < lists->lists; i++) {
        const struct sf_list *list = &lists->list[i];
        size_t count;
        SF_TRY(columns_equal(list, message, &count));
        unsigned char *records = NULL;
        if (count > 0) {
            records = sf_box_take(box, count * list->record_bytes);
            if (records == NULL)
                return SF_FAIL(SF_NO_MEMORY, "no memory for %zu %s of a message", count,
                               list->what);
            memset(records, 0, count * list->record_bytes);
        }
        for (int32_t c = 0; c < list->columns && count > 0; c++)
            scatter(&list->column[c], list->record_bytes,
                    pointer_at(message, list->column[c].array_at), count, records);
        if (list->owner >= 0) {
            struct holders holders = holders_of(lists, list, plain);
            SF_TRY(deal(list, &holders, records, count));
        } else {
            int32_t total = (int32_t)count;
            set_pointer(plain, list->list_at, records);
            memcpy((unsigned char *)plain + list->count_at, &total, sizeof total);
        }
    }
    return SF_OK;
}
