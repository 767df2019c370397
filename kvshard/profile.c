/* kvshard/profile.c: rows of a profile. */
#include "kvshard/profile.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/utf8.h"

sf_status sf_profile_add(struct sf_profile *profile, int32_t layer, int32_t head, int32_t columns,
                         int32_t q_heads, struct sf_profile_row **row_out)
{
    void *rows = profile->row;
    SF_ASSERT(columns >= 1 && q_heads >= 1);
    SF_TRY(sf_grow(&rows, &profile->capacity, (size_t)profile->rows + 1, sizeof *profile->row));
    profile->row = rows;
    double *value = calloc((size_t)columns * (size_t)q_heads, sizeof *value);
    if (value == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a profile");
    profile->row[profile->rows] = (struct sf_profile_row){ layer, head, q_heads, value };
    *row_out = &profile->row[profile->rows++];
    return SF_OK;
}

/* As much as there is room for, whole characters. */
static void copy_text(char out[SF_PROFILE_TEXT], const char *text)
{
    size_t bytes = strlen(text), kept = 0;
    for (size_t n; kept < bytes; kept += n) {
        n = sf_utf8_char_bytes(text + kept, bytes - kept);
        if (n == 0 || kept + n >= SF_PROFILE_TEXT) break;
    }
    memcpy(out, text, kept);
    out[kept] = '\0';
}

void sf_profile_note(struct sf_profile *profile, const char *key, const char *text)
{
    if (profile->notes == SF_PROFILE_NOTES) return;
    int32_t n = profile->notes++;
    copy_text(profile->note[n].key, key);
    copy_text(profile->note[n].text, text);
}

void sf_profile_note_int(struct sf_profile *profile, const char *key, int64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)value);
    sf_profile_note(profile, key, text);
}

void sf_profile_round(struct sf_profile *profile, int32_t columns)
{
    const double unit = pow(10, SF_PROFILE_DIGITS);
    for (int32_t i = 0; i < profile->rows; i++)
        for (int32_t j = 0; j < columns * profile->row[i].q_heads; j++)
            profile->row[i].value[j] = round(profile->row[i].value[j] * unit) / unit;
}

void sf_profile_free(struct sf_profile *profile)
{
    for (int32_t i = 0; i < profile->rows; i++) free(profile->row[i].value);
    free(profile->row);
    *profile = (struct sf_profile){ 0 };
}
