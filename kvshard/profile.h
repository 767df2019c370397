/* kvshard/profile.h: what calibration has learnt of a model, as numbers: filled by a method's
 * write(), rounded, chosen from by its choose(), and kept as a file that a person reads.
 *
 *   row: one KV head                columns: the method's (sf_calib_ops.columns)
 *     layer 3, head 1   [q head 0][q head 1][q head 2] | [q head 0][q head 1][q head 2] */
#ifndef SHEAF_KVSHARD_PROFILE_H
#define SHEAF_KVSHARD_PROFILE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_PROFILE_NOTES = 8, SF_PROFILE_TEXT = 96,
       SF_PROFILE_DIGITS = 5 };         /* decimals that a number is written with */

struct sf_profile_row {
    int32_t layer, head, q_heads;       /* head: KV head of the model */
    double *value;                      /* [columns][q_heads]; owned */
};
struct sf_profile {                     /* starts zeroed */
    struct sf_profile_row *row;         /* ascending by layer, then head */
    int32_t rows;
    size_t capacity;
    struct { char key[SF_PROFILE_TEXT], text[SF_PROFILE_TEXT]; } note[SF_PROFILE_NOTES];
    int32_t notes;                      /* for whoever reads it */
};

/* A row more, its values zero; *row_out is valid until the next one. */
sf_status sf_profile_add(struct sf_profile *, int32_t layer, int32_t head, int32_t columns,
                         int32_t q_heads, struct sf_profile_row **row_out);
/* Texts are cut where they are too long; notes too many are left out. */
void      sf_profile_note(struct sf_profile *, const char *key, const char *text);
void      sf_profile_note_int(struct sf_profile *, const char *key, int64_t value);
/* All values to what their text says: SF_PROFILE_DIGITS decimals. */
void      sf_profile_round(struct sf_profile *, int32_t columns);
void      sf_profile_free(struct sf_profile *);

SF_C_END
#endif
