/* coordinator/config_text.c: a configuration written out: the resolved text that is saved with a
 * run and sent to the workers, and the page docs/config.md. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "coordinator/config_tree.h"
#include "kvshard/methods.h"

/* Longest text form of an option: a list of SF_OPT_INTS_MAX numbers. */

static void write_table(FILE *, const struct sf_opt *table, const void *cfg, int indent);
static void write_methods(FILE *, const struct sf_stack *);
static void write_doc_table(FILE *, const struct sf_opt *table);
static void write_doc_row(FILE *, const struct sf_opt *row);

/* Ends a memory stream; *text_out is malloc'd. */
static sf_status finish(FILE *stream, char **text, char **text_out)
{
    int failed = ferror(stream);
    if (fclose(stream) != 0 || failed) {
        free(*text);
        return SF_FAIL(SF_NO_MEMORY, "no memory for the text of the configuration");
    }
    *text_out = *text;
    return SF_OK;
}

sf_status sf_config_text(const struct sf_config *cfg, char **text_out)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the text of the configuration");
    fprintf(out, "schema_version: 1\n");
    write_table(out, sf_config_top, cfg, 0);
    for (const struct sf_section *s = sf_config_sections; s->name != NULL; s++) {
        fprintf(out, "%s:\n", s->name);
        write_table(out, s->table, cfg, 2);
        if (strcmp(s->name, "kv_cache") == 0) write_methods(out, &cfg->kv.stack);
    }
    return finish(out, &text, text_out);
}

static void write_table(FILE *out, const struct sf_opt *table, const void *cfg, int indent)
{
    for (const struct sf_opt *row = table; row != NULL && row->key != NULL; row++) {
        char value[SF_OPT_VALUE_BYTES];
        sf_opt_get(row, cfg, value, sizeof value);
        fprintf(out, "%*s%s: ", indent, "", row->key);
        if (row->type == SF_OPT_INTS || row->type == SF_OPT_PAIRS || row->type == SF_OPT_RANGES)
            fprintf(out, "%s", value);
        else sf_config_write_text(out, value);
        fputc('\n', out);
    }
}

static void write_methods(FILE *out, const struct sf_stack *stack)
{
    if (stack->entries == 0) {
        fprintf(out, "  methods: []\n");
        return;
    }
    fprintf(out, "  methods:\n");
    for (int32_t i = 0; i < stack->entries; i++) {
        const struct sf_stack_entry *entry = &stack->entry[i];
        fprintf(out, "    - name: %s\n", entry->method->name);
        if (entry->layers_text[0] != '\0')
            fprintf(out, "      layers: \"%s\"\n", entry->layers_text);
        if (entry->on != SF_HEAD_ANY) write_table(out, sf_config_entry, entry, 6);
        write_table(out, entry->method->opts, entry->cfg, 6);
    }
}

/* As it stands where YAML cannot take it for anything else, in double quotes otherwise.  Inside
 * quotes, characters that a YAML reader refuses or folds are written by number. */
void sf_config_write_text(FILE *out, const char *text)
{
    const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./+-";
    if (text[0] != '\0' && text[0] != '-' && text[strspn(text, plain)] == '\0') {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0';) {
        if (*c < 0x80) {
            if (*c == '"' || *c == '\\') fputc('\\', out);
            fputc(*c++, out);
            continue;
        }
        /* Valid UTF-8, as every text of a tree is. */
        int more = *c >= 0xf0 ? 3 : *c >= 0xe0 ? 2 : 1;
        uint32_t code = *c++ & (0x3fu >> more);
        for (int i = 0; i < more; i++) code = code << 6 | (*c++ & 0x3fu);
        fprintf(out, "\\U%08X", code);
    }
    fputc('"', out);
}

/* ---- docs/config.md -------------------------------------------------------------------------- */
static const char doc_head[] =
    "# The configuration file\n\n"
    "<!-- Written from the option tables by `test_config --write`; edit those, not this page. -->\n"
    "\n"
    "A job is described by one YAML file. Values are plain strings to YAML: `no` and `1e6` mean\n"
    "nothing special. Anchors, aliases, tags and several documents are refused.\n"
    "\n"
    "What counts, first to last: `--set section.key=value` on the command line (items of a list\n"
    "by number: `--set kv_cache.methods.0.recent_tokens=512`; a whole list in brackets:\n"
    "`--set 'parallel.pipeline_layers=[14, 16]'`), the environment (`SHEAF_SECTION__KEY=value`,\n"
    "and `SHEAF_DEVICE`; other variables without two underscores are left alone), the file, the\n"
    "default. `${env:NAME}` inside a value is replaced; a variable that is not set is an error.\n"
    "\n"
    "A mistake is one line, `FILE:LINE:COLUMN: error: ...`, and exit code 2, before any weight is\n"
    "loaded. A key marked *not built yet* is taken at its default and refused otherwise.\n"
    "\n"
    "Sizes are bytes with an optional unit: `4096`, `64KiB`, `1.5GiB`.\n"
    "\n"
    "## Outside of all sections\n\n"
    "| key | values | default | meaning |\n|---|---|---|---|\n"
    "| `schema_version` | 1 | | required; the version of this page |\n";

sf_status sf_config_markdown(char **text_out)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for docs/config.md");
    fputs(doc_head, out);
    for (const struct sf_opt *row = sf_config_top; row->key != NULL; row++) write_doc_row(out, row);
    for (const struct sf_section *s = sf_config_sections; s->name != NULL; s++) {
        fprintf(out, "\n## `%s`: %s\n\n", s->name, s->help);
        write_doc_table(out, s->table);
        if (strcmp(s->name, "kv_cache") == 0)
            fprintf(out, "| `methods` | list of entries | none | a stack of methods, applied in"
                         " this order; empty is the exact cache |\n");
    }
    fprintf(out, "\n## An entry of `kv_cache.methods`\n\n"
                 "| key | values | default | meaning |\n|---|---|---|---|\n"
                 "| `name` | see below | | the method; required |\n"
                 "| `layers` | such as `\"0-11,20\"`, or a list | all | layers that the method acts"
                 " on |\n");
    for (const struct sf_opt *row = sf_config_entry; row->key != NULL; row++)
        write_doc_row(out, row);
    for (const struct sf_method *const *m = sf_methods; *m != NULL; m++) {
        fprintf(out, "\n### `%s`\n\n%s\n", (*m)->name, (*m)->paper != NULL ? (*m)->paper : "");
        if ((*m)->opts == NULL || (*m)->opts[0].key == NULL) {
            fprintf(out, "\nNo options.\n");
            continue;
        }
        fputc('\n', out);
        write_doc_table(out, (*m)->opts);
    }
    return finish(out, &text, text_out);
}

static void write_doc_table(FILE *out, const struct sf_opt *table)
{
    fprintf(out, "| key | values | default | meaning |\n|---|---|---|---|\n");
    for (const struct sf_opt *row = table; row->key != NULL; row++) write_doc_row(out, row);
}

static void write_doc_row(FILE *out, const struct sf_opt *row)
{
    fprintf(out, "| `%s` | ", row->key);
    int ranged = row->min != 0 || row->max != 0;
    switch (row->type) {
    case SF_OPT_INT32:
    case SF_OPT_INT64:
        if (ranged) fprintf(out, "%.0f to %.0f", row->min, row->max);
        else fprintf(out, "integer");
        break;
    case SF_OPT_FLOAT:
        if (ranged) fprintf(out, "%g to %g", row->min, row->max);
        else fprintf(out, "number");
        break;
    case SF_OPT_BOOL: fprintf(out, "true, false"); break;
    case SF_OPT_BYTES: fprintf(out, "size"); break;
    case SF_OPT_ENUM:
        for (int32_t i = 0; row->choices[i] != NULL; i++)
            fprintf(out, "%s%s", i == 0 ? "" : ", ", row->choices[i]);
        break;
    case SF_OPT_STRING: fprintf(out, "text"); break;
    case SF_OPT_INTS: fprintf(out, "list of integers"); break;
    case SF_OPT_PAIRS: fprintf(out, "list of pairs"); break;
    case SF_OPT_RANGES: fprintf(out, "list of ranges"); break;
    }
    if (row->allow_auto) fprintf(out, ", auto");
    fprintf(out, " | %s%s%s", row->fallback[0] != '\0' ? "`" : "", row->fallback,
            row->fallback[0] != '\0' ? "`" : "");
    if (row->unit != NULL && row->unit[0] != '\0' && row->type != SF_OPT_BYTES)
        fprintf(out, " %s", row->unit);
    fprintf(out, " | %s%s", row->help, row->built ? "" : "; *not built yet*");
    if (row->aliases != NULL) fprintf(out, "; also spelt %s", row->aliases);
    fprintf(out, " |\n");
}
