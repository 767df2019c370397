/* kvshard/encode.h: what is known of a layer group while it is being encoded, and of those that are
 * factored beside the layers (beside.h).  Internal to the store. */
#ifndef SHEAF_KVSHARD_ENCODE_H
#define SHEAF_KVSHARD_ENCODE_H
#include "kernels/small.h"
#include "kvshard/beside.h"
#include "kvshard/group.h"
SF_C_BEGIN

struct sf_span;
struct sf_view;
struct sf_factor_lane;

/* What factors are made in: X, both bases and factors, and what the factorisation takes. */
struct sf_encode_shape {
    const struct sf_lowrank_size *size;
    int32_t n, lanes;                   /* slots; lanes of the group here */
    size_t scratch_bytes;               /* of the factorisation itself, of keys or values */
    int apart;                          /* X of keys and values at once; else one after the other */
};
struct sf_encode_room {
    float *x[2];                        /* keys, values: [n][columns]; if not apart, the same */
    float *a[2], *b[2];                 /* [n][width of the basis], [rows][columns] */
    void *scratch;
};
/* Places it; a heap without base counts. */
void sf_encode_place(struct sf_heap *, const struct sf_encode_shape *,
                     struct sf_encode_room *room_out);
/* All that, of any group; pure.  hosted: the host cannot touch the device's memory, and what makes
 * a basis of several ranks is host memory, taken for that (encode.c) and not counted here. */
enum { SF_ENCODE_APART = 1, SF_ENCODE_HOSTED = 2 };
sf_status sf_encode_bytes(const struct sf_lowrank_ask *, int flags,
                          size_t (*factor_bytes)(const struct sf_factor_job *),
                          size_t *bytes_out);

struct sf_encoding {                    /* of one span; lies in the memory of its hook */
    struct sf_store *store;
    const struct sf_span *span;
    const struct sf_group_edit *edit;
    struct sf_view *view;               /* [span->lanes] */
    int32_t number;                     /* of the group */
    struct sf_seq_group *group;
    struct sf_segment *segment;         /* to be */
    struct sf_lowrank_size size;
    int32_t rows, kinds;                /* of the factors; 1: keys alone, 2: and values */
    struct sf_encode_room room;         /* device */
    void *host; size_t host_bytes;      /* scratch of sf_factor_ranks; NULL: the room's */
    struct sf_factor_lane *among;       /* [lanes] of all ranks'; NULL: our own basis */
    struct sf_beside_job job;
};
/* What is under way beside the layers is waited for and carried out, in its order.  Called before
 * the next hook sees anything, and at the end of a step. */
sf_status sf_encodings_finish(struct sf_store *);
/* It is not carried out: its sequences are about to go. */
void      sf_encodings_drop(struct sf_store *);
/* The hook is over whose memory they lie in: it is kept, and the next one has another. */
void      sf_encodings_keep(struct sf_store *);
/* Whether `layer` comes no later than a layer whose lanes are being encoded. */
int       sf_encodings_cover(const struct sf_store *, int32_t layer);

SF_C_END
#endif
