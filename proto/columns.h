/* proto/columns.h: lists of records to columns of a protobuf message and back, by tables.
 *
 * A message's file (step.c, result.c, report.c) says once, as data, which member of which record is
 * which column; both directions follow it.  What is left to that file are the plain members and
 * what values are allowed.
 *
 *   struct sf_wire_step                       Sf__Step
 *     item -> | seq pos rows .. |               n_item_seq, item_seq  -> | seq seq seq .. |
 *             | seq pos rows .. |     <-->      n_item_pos, item_pos  -> | pos pos pos .. |
 *             | seq pos rows .. |               ...
 *
 * For the files of proto/ alone. */
#ifndef SHEAF_PROTO_COLUMNS_H
#define SHEAF_PROTO_COLUMNS_H
#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "base/memory.h"
#include "base/status.h"

struct sf_column {                      /* one member of a record */
    size_t count_at, array_at;          /* in the message: its length (size_t) and its array */
    size_t member_at;                   /* in the record */
    size_t bytes;                       /* of the member: 8 or 4, as in the array; 1: u32 there */
};
/* One column; that message and record hold the same type is checked by the compiler, which does not
 * compare pointers to different ones.  BYTE: a uint8_t member.  VALUE: the record is a number. */
#define SF_COLUMN(message, field, record, member)                                                  \
    {offsetof(message, n_##field), offsetof(message, field), offsetof(record, member),             \
     sizeof ((record *)0)->member + 0 * sizeof(((message *)0)->field == &((record *)0)->member)}
#define SF_COLUMN_BYTE(message, field, record, member)                                             \
    {offsetof(message, n_##field), offsetof(message, field), offsetof(record, member),             \
     1 + 0 * sizeof(((message *)0)->field == (uint32_t *)0) +                                      \
         0 * sizeof((uint8_t *)0 == &((record *)0)->member)}
#define SF_COLUMN_VALUE(message, field, type)                                                      \
    {offsetof(message, n_##field), offsetof(message, field), 0,                                    \
     sizeof(type) + 0 * sizeof(((message *)0)->field == (type *)0)}

struct sf_list {                        /* a list of records */
    const char *what;                   /* for errors: "opened sequences" */
    const struct sf_column *column; int32_t columns;
    size_t record_bytes;
    int32_t owner;                      /* an earlier list, each of whose records holds a list like
                                           this one; -1: the plain struct itself holds it */
    size_t list_at, count_at;           /* pointer and int32_t count, in the plain struct or the
                                           owner's record, where the count is a column too */
};
#define SF_LIST(what, columns, record, owner, holder, list, count)                                 \
    {what, columns, sizeof columns / sizeof columns[0], sizeof(record), owner,                     \
     offsetof(holder, list), offsetof(holder, count)}

struct sf_lists {                       /* of one message */
    const ProtobufCMessageDescriptor *descriptor;
    const struct sf_list *list; int32_t lists;
};

enum { SF_WIRE_TEXT_MAX = 4096,         /* bytes of words in a message */
       SF_WIRE_BATCH_MAX = 1 << 16,
       SF_WIRE_TOPS_MAX = 32 };         /* as many as a device finds: SF_CHOICE_TOPS_MAX */

/* SF_FORMAT for a count that no list of a message may have. */
sf_status sf_columns_count_check(const char *what, int64_t count);
/* `message` has its plain members; gets its columns, in memory of `out`, and is packed.  The
 * plain struct has been checked. */
sf_status sf_columns_pack(const struct sf_lists *, const void *plain, ProtobufCMessage *message,
                          struct sf_buffer *out);
/* Resets the box; message, lists and words of the message are in it. */
sf_status sf_columns_parse(const struct sf_lists *, const void *bytes, size_t count,
                           struct sf_box *, ProtobufCMessage **message_out);
/* The plain struct's lists; its members and all values are left to the caller. */
sf_status sf_columns_unpack(const struct sf_lists *, const ProtobufCMessage *, struct sf_box *,
                            void *plain);

#endif
