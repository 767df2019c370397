/* coordinator/config_profile.c: a profile as a file that a person reads and edits.
 *
 *   # what it is
 *   method: NAME
 *   tokens: 8189                  notes
 *   induction_head_ratio: 0.14    options of the method that calibrate has to do with
 *   retrieval_heads:              lists of heads, one a line, with their scores
 *     - [3, 1]   # induction 0.41, echo 0.00
 *   scores:                       one KV head a line; a list has a number for each query head
 *     - {layer: 0, head: 0, induction: [0.02, 0.41], echo: [0.00, 0.00]} */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/calibrate.h"
#include "coordinator/config_tree.h"
#include "kvshard/methods.h"

static int32_t columns_of(const struct sf_calib_ops *calib)
{
    int32_t n = 0;
    while (calib->columns[n] != NULL) n++;
    return n;
}

/* ---- writing --------------------------------------------------------------------------------- */
static const struct sf_profile_row *row_of(const struct sf_profile *profile, int32_t layer,
                                           int32_t head)
{
    for (int32_t i = 0; i < profile->rows; i++)
        if (profile->row[i].layer == layer && profile->row[i].head == head)
            return &profile->row[i];
    return NULL;
}

static double greatest(const struct sf_profile_row *row, int32_t column)
{
    const double *value = row->value + column * row->q_heads;
    double most = value[0];
    for (int32_t h = 1; h < row->q_heads; h++) most = value[h] > most ? value[h] : most;
    return most;
}

static void write_pairs(FILE *out, const struct sf_opt_pairs *pairs,
                        const struct sf_calib_ops *calib, const struct sf_profile *profile)
{
    if (pairs->count <= 0) fprintf(out, " []");
    fputc('\n', out);
    for (int32_t i = 0; i < pairs->count; i++) {
        const int32_t *pair = pairs->value[i];
        const struct sf_profile_row *row = row_of(profile, pair[0], pair[1]);
        fprintf(out, "  - [%d, %d]", pair[0], pair[1]);
        for (int32_t c = 0; row != NULL && calib->columns[c] != NULL; c++)
            fprintf(out, "%s%s %.*f", c == 0 ? "     # " : ", ", calib->columns[c],
                    SF_PROFILE_DIGITS, greatest(row, c));
        fputc('\n', out);
    }
}

static void write_options(FILE *out, const struct sf_stack_entry *entry,
                          const struct sf_profile *profile, int lists)
{
    for (const struct sf_opt *row = entry->method->opts; row->key != NULL; row++) {
        char value[SF_OPT_TEXT_MAX];
        if (sf_calib_kind_of(entry->method, row->key) == SF_CALIB_NONE
            || (row->type == SF_OPT_PAIRS) != lists) continue;
        fprintf(out, "%s:", row->key);
        if (lists) {
            const void *pairs = (const char *)entry->cfg + row->offset;
            write_pairs(out, pairs, entry->method->calib, profile);
        } else {
            sf_opt_get(row, entry->cfg, value, sizeof value);
            fputc(' ', out);
            sf_config_write_text(out, value);
            fputc('\n', out);
        }
    }
}

static void write_rows(FILE *out, const struct sf_calib_ops *calib,
                       const struct sf_profile *profile)
{
    fprintf(out, "scores:%s\n", profile->rows == 0 ? " []" : "");
    for (int32_t i = 0; i < profile->rows; i++) {
        const struct sf_profile_row *row = &profile->row[i];
        fprintf(out, "  - {layer: %d, head: %d", row->layer, row->head);
        for (int32_t c = 0; calib->columns[c] != NULL; c++) {
            fprintf(out, ", %s: [", calib->columns[c]);
            for (int32_t h = 0; h < row->q_heads; h++)
                fprintf(out, "%s%.*f", h == 0 ? "" : ", ", SF_PROFILE_DIGITS,
                        row->value[c * row->q_heads + h]);
            fputc(']', out);
        }
        fprintf(out, "}\n");
    }
}

sf_status sf_profile_text(const struct sf_stack_entry *entry, const struct sf_profile *profile,
                          char **text_out)
{
    const struct sf_calib_ops *calib = entry->method->calib;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the text of a profile");
    fprintf(out, "# A profile of %s, by sheaf calibrate.\n#\n%s", entry->method->name,
            calib->about);
    fprintf(out, "method: %s\n", entry->method->name);
    for (int32_t i = 0; i < profile->notes; i++) {
        sf_config_write_text(out, profile->note[i].key);
        fputs(": ", out);
        sf_config_write_text(out, profile->note[i].text);
        fputc('\n', out);
    }
    write_options(out, entry, profile, 0);
    write_options(out, entry, profile, 1);
    write_rows(out, calib, profile);
    int failed = ferror(out);
    if (fclose(out) != 0 || failed) {
        free(text);
        return SF_FAIL(SF_NO_MEMORY, "no memory for the text of a profile");
    }
    *text_out = text;
    return SF_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */
static sf_status read_number(const struct sf_node *map, const char *key, int32_t *out)
{
    const struct sf_node *node = sf_tree_find(map, key);
    char *end = NULL;
    long value = node != NULL && node->kind == SF_NODE_TEXT ? strtol(node->text, &end, 10) : -1;
    if (value < 0 || value > 1000000 || end == node->text || *end != '\0')
        return sf_tree_fail(SF_INVALID, node != NULL ? &node->at : &map->at,
                            "a line of scores needs %s: N", key);
    *out = (int32_t)value;
    return SF_OK;
}

static sf_status read_score(const struct sf_node *node, double *out)
{
    char *end = NULL;
    double value = node->kind == SF_NODE_TEXT ? strtod(node->text, &end) : NAN;
    if (!isfinite(value) || end == node->text || *end != '\0')
        return sf_tree_fail(SF_INVALID, &node->at, "a score is a number such as 0.25");
    *out = value;
    return SF_OK;
}

static sf_status read_row(const struct sf_node *map, const struct sf_calib_ops *calib,
                          struct sf_profile *profile)
{
    int32_t layer = 0, head = 0, columns = columns_of(calib);
    const struct sf_node *first = sf_tree_find(map, calib->columns[0]);
    if (map->kind != SF_NODE_MAP)
        return sf_tree_fail(SF_INVALID, &map->at, "a line of scores is a mapping such as"
                            " {layer: 0, head: 0, %s: [0.25]}", calib->columns[0]);
    SF_TRY(read_number(map, "layer", &layer));
    SF_TRY(read_number(map, "head", &head));
    struct sf_profile_row *row = profile->rows > 0 ? &profile->row[profile->rows - 1] : NULL;
    if (row != NULL && (layer < row->layer || (layer == row->layer && head <= row->head)))
        return sf_tree_fail(SF_INVALID, &map->at, "scores ascend by layer and head");
    size_t heads = first != NULL && first->kind == SF_NODE_LIST ? first->items : 0;
    for (int32_t c = 0; c < columns; c++) {
        const struct sf_node *list = sf_tree_find(map, calib->columns[c]);
        if (list == NULL || list->kind != SF_NODE_LIST || list->items != heads || heads == 0)
            return sf_tree_fail(SF_INVALID, list != NULL ? &list->at : &map->at,
                                "a line of scores has %s: [...] with a number for each query head",
                                calib->columns[c]);
    }
    SF_TRY(sf_profile_add(profile, layer, head, columns, (int32_t)heads, &row));
    for (int32_t c = 0; c < columns; c++) {
        const struct sf_node *list = sf_tree_find(map, calib->columns[c]);
        for (size_t h = 0; h < heads; h++)
            SF_TRY(read_score(list->item[h].value, &row->value[(size_t)c * heads + h]));
    }
    return SF_OK;
}

/* Numbers and texts that nobody here knows stay with it. */
static void read_notes(const struct sf_node *root, const struct sf_method *method,
                       struct sf_profile *profile)
{
    for (size_t i = 0; i < root->items; i++) {
        const struct sf_node_item *item = &root->item[i];
        if (item->value->kind == SF_NODE_TEXT && strcmp(item->key, "method") != 0
            && sf_opt_find(method->opts, item->key) == NULL)
            sf_profile_note(profile, item->key, item->value->text);
    }
}

static sf_status read_tree(const struct sf_node *root, struct sf_stack_entry *entry,
                           struct sf_profile *profile)
{
    SF_TRY(sf_tree_profile(root, NULL, entry));
    const struct sf_node *name = sf_tree_find(root, "method");
    const struct sf_node *scores = sf_tree_find(root, "scores");
    if (name != NULL &&
        (name->kind != SF_NODE_TEXT || strcmp(name->text, entry->method->name) != 0))
        return sf_tree_fail(SF_INVALID, &name->at, "this is a profile of %s, not of %s",
                            name->kind == SF_NODE_TEXT ? name->text : "another method",
                            entry->method->name);
    if (scores == NULL || scores->kind != SF_NODE_LIST || scores->items == 0)
        return sf_tree_fail(SF_INVALID, scores != NULL ? &scores->at : &root->at,
                            "it holds no scores to choose from; calibrate without --from");
    for (size_t i = 0; i < scores->items; i++)
        SF_TRY(read_row(scores->item[i].value, entry->method->calib, profile));
    read_notes(root, entry->method, profile);
    return SF_OK;
}

sf_status sf_profile_load(const char *path, struct sf_stack_entry *entry,
                          struct sf_profile *profile_out)
{
    struct sf_profile profile = { 0 };
    struct sf_node *root = NULL;
    SF_TRY(sf_tree_read_file(path, &root));
    sf_status status = read_tree(root, entry, &profile);
    sf_tree_free(root);
    if (status == SF_OK) *profile_out = profile;
    else sf_profile_free(&profile);
    return status;
}
