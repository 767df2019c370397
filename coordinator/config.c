/* coordinator/config.c: a configuration from a file or from memory, and the only place that sees
 * YAML.
 *
 *   bytes -> tree (here) -> SHEAF_A__B, --set, ${env:} laid over it -> values (config_apply.c)
 *
 * Of YAML we take mappings, sequences and scalars; scalars stay plain strings, whatever they look
 * like.  Anchors, aliases, tags and several documents are refused: nothing in a job file needs
 * them, and they are how small files become large. */
#include "coordinator/config.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>
#include "base/memory.h"
#include "coordinator/config_tree.h"

struct reader { yaml_parser_t parser; const struct sf_where *from; };
/* Names of overrides live as long as the tree whose positions point to them. */
struct labels { char **name; size_t count, capacity; };
/* From a file: the environment has a say, and the files that it names are looked for; bare: all
 * but profiles. */
enum origin { FROM_MEMORY, FROM_FILE, FROM_FILE_BARE };

static sf_status read_file(const char *path, char **text_out, size_t *bytes_out);
static sf_status apply_profiles(const struct sf_node *root, struct sf_config *cfg);
static sf_status apply_environment(struct sf_node *root, struct labels *);
static sf_status apply_sets(struct sf_node *root, const struct sf_config_sets *, struct labels *);
static sf_status find_model(const struct sf_node *root, struct sf_config *cfg);
static sf_status interpret(const char *name, const char *text, size_t bytes,
                           const struct sf_config_sets *, enum origin, struct sf_config *out);
static sf_status read_root(struct reader *, struct sf_node **root_out);
static sf_status read_value(struct reader *, const yaml_event_t *, int depth,
                            struct sf_node **out);
static sf_status read_map(struct reader *, int depth, struct sf_node *map);
static sf_status read_list(struct reader *, int depth, struct sf_node *list);

static sf_status load(const char *path, const struct sf_config_sets *sets, enum origin origin,
                      struct sf_config *out)
{
    char *text = NULL;
    size_t bytes = 0;
    SF_TRY(read_file(path, &text, &bytes));
    sf_status status = interpret(path, text, bytes, sets, origin, out);
    free(text);
    return status;
}

sf_status sf_config_load(const char *path, const struct sf_config_sets *sets,
                         struct sf_config *out)
{
    return load(path, sets, FROM_FILE, out);
}

sf_status sf_config_load_bare(const char *path, const struct sf_config_sets *sets,
                              struct sf_config *out)
{
    return load(path, sets, FROM_FILE_BARE, out);
}

sf_status sf_config_parse(const char *name, const char *text, size_t bytes,
                          const struct sf_config_sets *sets, struct sf_config *out)
{
    return interpret(name, text, bytes, sets, FROM_MEMORY, out);
}

void sf_config_free(struct sf_config *cfg)
{
    sf_stack_free(&cfg->kv.stack);
}

static sf_status interpret(const char *name, const char *text, size_t bytes,
                           const struct sf_config_sets *sets, enum origin origin,
                           struct sf_config *out)
{
    struct sf_where from = { .origin = SF_FROM_FILE, .name = name, .line = 1, .column = 1 };
    struct labels labels = { 0 };
    struct sf_node *root = NULL;
    struct sf_config *cfg = calloc(1, sizeof *cfg);   /* large; written to *out only when right */
    sf_status status = cfg != NULL ? SF_OK : SF_FAIL(SF_NO_MEMORY, "no memory");

    if (status == SF_OK) status = sf_tree_read(&from, text, bytes, &root);
    if (status == SF_OK && sf_tree_is_empty(root)) {
        sf_tree_free(root);
        root = NULL;
        status = sf_tree_node(SF_NODE_MAP, &from, &root);
    }
    if (status == SF_OK && root->kind != SF_NODE_MAP)
        status = sf_tree_fail(SF_INVALID, &root->at, "a configuration is a mapping of sections");
    if (status == SF_OK && origin != FROM_MEMORY) status = apply_environment(root, &labels);
    if (status == SF_OK) status = apply_sets(root, sets, &labels);
    if (status == SF_OK && origin != FROM_MEMORY) status = sf_tree_expand(root);
    if (status == SF_OK) {
        snprintf(cfg->file, sizeof cfg->file, "%s", name);
        status = sf_tree_apply(root, cfg);
    }
    if (status == SF_OK && origin == FROM_FILE) status = apply_profiles(root, cfg);
    if (status == SF_OK && origin != FROM_MEMORY) status = find_model(root, cfg);

    if (status == SF_OK) *out = *cfg;
    else if (cfg != NULL) sf_config_free(cfg);
    free(cfg);
    sf_tree_free(root);
    for (size_t i = 0; i < labels.count; i++) free(labels.name[i]);
    free(labels.name);
    return status;
}

static sf_status read_file(const char *path, char **text_out, size_t *bytes_out)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return SF_FAIL(SF_IO, "%s: error: cannot open: %s", path, strerror(errno));
    char *text = malloc(SF_TREE_BYTES_MAX + 1);
    size_t bytes = text != NULL ? fread(text, 1, SF_TREE_BYTES_MAX + 1, file) : 0;
    int failed = ferror(file), code = errno;
    fclose(file);
    if (text == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %s", path);
    if (failed) {
        free(text);
        return SF_FAIL(SF_IO, "%s: error: cannot read: %s", path, strerror(code));
    }
    *text_out = text;
    *bytes_out = bytes;                 /* one byte too many is refused by sf_tree_read */
    return SF_OK;
}

/* ---- overrides ------------------------------------------------------------------------------- */
static sf_status add_label(struct labels *labels, const char *text, const char **label_out)
{
    void *names = labels->name;
    SF_TRY(sf_grow(&names, &labels->capacity, labels->count + 1, sizeof *labels->name));
    labels->name = names;
    char *copy = strdup(text);
    if (copy == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the configuration");
    labels->name[labels->count++] = copy;
    *label_out = copy;
    return SF_OK;
}

/* A long text, cut for a message. */
static void cut_for_message(char *out, size_t bytes, const char *prefix, const char *text)
{
    snprintf(out, bytes, "%s%s", prefix, text);
    for (char *c = out; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    if (strlen(prefix) + strlen(text) >= bytes) memcpy(out + bytes - 4, "...", 4);
}

static sf_status apply_sets(struct sf_node *root, const struct sf_config_sets *sets,
                            struct labels *labels)
{
    for (int32_t i = 0; sets != NULL && i < sets->sets; i++) {
        char label[160], path[SF_OPT_TEXT_MAX];
        struct sf_where at = { .origin = SF_FROM_SET };
        cut_for_message(label, sizeof label, "--set ", sets->set[i]);
        SF_TRY(add_label(labels, label, &at.name));
        const char *equals = strchr(sets->set[i], '=');
        size_t bytes = equals != NULL ? (size_t)(equals - sets->set[i]) : 0;
        if (bytes == 0 || bytes >= sizeof path)
            return sf_tree_fail(SF_INVALID, &at, "must be key=value, such as kv_cache.memory=1GiB");
        memcpy(path, sets->set[i], bytes);
        path[bytes] = '\0';
        SF_TRY(sf_tree_override(root, path, equals + 1, &at));
    }
    return SF_OK;
}

/* SHEAF_RUN__RANK_TIMEOUT_S -> "run.rank_timeout_s"; 0 if the variable does not speak to us: no
 * section ("__") and not the one key without a section. */
static int env_path(const char *name, size_t bytes, char *path, size_t path_bytes)
{
    const char prefix[] = "SHEAF_";
    size_t skip = sizeof prefix - 1, used = 0;
    if (bytes <= skip || strncmp(name, prefix, skip) != 0) return 0;
    int parts = 1;
    for (size_t i = skip; i < bytes && used + 1 < path_bytes; i++) {
        if (i + 1 < bytes && name[i] == '_' && name[i + 1] == '_') {
            path[used++] = '.';
            parts++;
            i++;
        } else {
            path[used++] = (char)tolower((unsigned char)name[i]);
        }
    }
    path[used] = '\0';
    return parts > 1 || strcmp(path, sf_config_top[0].key) == 0;
}

static int by_version(const void *a, const void *b)
{
    return strverscmp(*(char *const *)a, *(char *const *)b);
}

/* In the order of their names, numbers by value, so that METHODS__0__NAME makes the entry that
 * METHODS__1__NAME comes after. */
static sf_status apply_environment(struct sf_node *root, struct labels *labels)
{
    size_t count = 0;
    while (environ[count] != NULL) count++;
    char **sorted = calloc(count + 1, sizeof *sorted);
    if (sorted == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the environment");
    memcpy(sorted, environ, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_version);

    sf_status status = SF_OK;
    for (size_t i = 0; i < count && status == SF_OK; i++) {
        char path[SF_OPT_TEXT_MAX], name[160];
        const char *equals = strchr(sorted[i], '=');
        if (equals == NULL) continue;
        size_t bytes = (size_t)(equals - sorted[i]);
        if (!env_path(sorted[i], bytes, path, sizeof path)) continue;
        struct sf_where at = { .origin = SF_FROM_ENV };
        snprintf(name, sizeof name, "%.*s", (int)bytes, sorted[i]);
        status = add_label(labels, name, &at.name);
        if (status == SF_OK) status = sf_tree_override(root, path, equals + 1, &at);
    }
    free(sorted);
    return status;
}

/* ---- files that it names --------------------------------------------------------------------- */
/* A relative path is tried as it stands, then beside the configuration, then in the three folders
 * above that: a shipped example works from any directory.  path has SF_OPT_TEXT_MAX bytes. */
static sf_status find_file(const struct sf_node *node, const char *key, const char *config,
                           char *path)
{
    enum { PARENTS = 3 };
    char tried[600];
    if (path[0] == '\0' || access(path, F_OK) == 0) return SF_OK;

    size_t used = (size_t)snprintf(tried, sizeof tried, "%s", path);
    char *folder = path[0] != '/' ? realpath(config, NULL) : NULL;
    for (int up = 0; folder != NULL && up <= PARENTS; up++) {
        char *slash = strrchr(folder, '/'), candidate[SF_OPT_TEXT_MAX];
        if (slash == NULL) break;
        *slash = '\0';
        int bytes = snprintf(candidate, sizeof candidate, "%s/%s", folder, path);
        if (bytes >= (int)sizeof candidate) continue;
        if (access(candidate, F_OK) == 0) {
            memcpy(path, candidate, (size_t)bytes + 1);
            free(folder);
            return SF_OK;
        }
        if (used < sizeof tried)
            used += (size_t)snprintf(tried + used, sizeof tried - used, ", %s", candidate);
    }
    free(folder);
    SF_ASSERT(node != NULL);
    return sf_tree_fail(SF_IO, &node->at, "%s: no such file; tried %s", key, tried);
}

static sf_status find_model(const struct sf_node *root, struct sf_config *cfg)
{
    return find_file(sf_tree_find(sf_tree_find(root, "model"), "path"), "model.path", cfg->file,
                     cfg->model.path);
}

/* The profile that an entry names. */
static sf_status apply_profile(const struct sf_node *map, const char *config, char *path,
                               struct sf_stack_entry *entry)
{
    struct sf_node *profile = NULL;
    if (path[0] == '\0') return SF_OK;
    SF_TRY(find_file(map, "profile", config, path));
    SF_TRY(sf_tree_read_file(path, &profile));
    sf_status status = sf_tree_profile(profile, map, entry);
    sf_tree_free(profile);
    return status;
}

/* Afterwards all that profiles say stands in the entries: the resolved text needs no other file. */
static sf_status apply_profiles(const struct sf_node *root, struct sf_config *cfg)
{
    const struct sf_node *list = sf_tree_find(sf_tree_find(root, "kv_cache"), "methods");
    for (int32_t i = 0; i < cfg->kv.stack.entries; i++) {
        struct sf_stack_entry *entry = &cfg->kv.stack.entry[i];
        if (entry->method->opts == NULL) continue;
        const struct sf_opt *row = sf_opt_find(entry->method->opts, "profile");
        if (row != NULL)
            SF_TRY(apply_profile(list->item[i].value, cfg->file, (char *)entry->cfg + row->offset,
                                 entry));
    }
    return SF_OK;
}

/* ---- YAML ------------------------------------------------------------------------------------ */
static struct sf_where at_mark(const struct reader *reader, yaml_mark_t mark)
{
    struct sf_where at = *reader->from;
    if (at.origin == SF_FROM_FILE) {
        at.line = (int32_t)mark.line + 1;
        at.column = (int32_t)mark.column + 1;
    }
    return at;
}

sf_status sf_tree_read(const struct sf_where *from, const char *text, size_t bytes,
                       struct sf_node **root_out)
{
    struct reader reader = { .from = from };
    if (bytes > SF_TREE_BYTES_MAX)
        return sf_tree_fail(SF_INVALID, from, "larger than %d bytes; this is no configuration",
                            SF_TREE_BYTES_MAX);
    if (!yaml_parser_initialize(&reader.parser)) return SF_FAIL(SF_NO_MEMORY, "no memory for YAML");
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, bytes);
    sf_status status = read_root(&reader, root_out);
    yaml_parser_delete(&reader.parser);
    return status;
}

sf_status sf_tree_read_file(const char *path, struct sf_node **root_out)
{
    struct sf_where from = { .origin = SF_FROM_FILE, .name = path, .line = 1, .column = 1 };
    struct stat info;
    char *text;
    size_t bytes;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return SF_FAIL(SF_IO, "%s: error: is no regular file", path);
    SF_TRY(read_file(path, &text, &bytes));
    sf_status status = sf_tree_read(&from, text, bytes, root_out);
    free(text);
    return status;
}

static sf_status next_event(struct reader *reader, yaml_event_t *event_out)
{
    const yaml_parser_t *parser = &reader->parser;
    if (yaml_parser_parse(&reader->parser, event_out)) return SF_OK;
    if (parser->error == YAML_MEMORY_ERROR) return SF_FAIL(SF_NO_MEMORY, "no memory for YAML");
    int marked = parser->error != YAML_READER_ERROR;
    struct sf_where at = at_mark(reader, marked ? parser->problem_mark : parser->mark);
    const char *problem = parser->problem != NULL ? parser->problem : "not readable";
    if (!marked || parser->context == NULL)
        return sf_tree_fail(SF_INVALID, &at, "not YAML: %s", problem);
    return sf_tree_fail(SF_INVALID, &at, "not YAML: %s, %s", parser->context, problem);
}

/* Stream start, at most one document, stream end. */
static sf_status read_root(struct reader *reader, struct sf_node **root_out)
{
    struct sf_node *root = NULL;
    sf_status status = SF_OK;
    int done = 0, documents = 0;
    while (status == SF_OK && !done) {
        yaml_event_t event;
        status = next_event(reader, &event);
        if (status != SF_OK) break;
        struct sf_where at = at_mark(reader, event.start_mark);
        done = event.type == YAML_STREAM_END_EVENT;
        if (event.type == YAML_DOCUMENT_START_EVENT && documents++ > 0)
            status = sf_tree_fail(SF_INVALID, &at, "a second document; one file holds one");
        if (status == SF_OK && (event.type == YAML_SCALAR_EVENT || event.type == YAML_ALIAS_EVENT
                                || event.type == YAML_SEQUENCE_START_EVENT
                                || event.type == YAML_MAPPING_START_EVENT))
            status = read_value(reader, &event, 0, &root);
        yaml_event_delete(&event);
    }
    if (status == SF_OK && root == NULL) {
        status = sf_tree_text("", 0, reader->from, &root);
        if (status == SF_OK) root->plain = 1;
    }
    if (status == SF_OK) *root_out = root;
    else sf_tree_free(root);
    return status;
}

static sf_status refuse_extras(const struct sf_where *at, const yaml_char_t *anchor,
                               const yaml_char_t *tag)
{
    if (anchor != NULL) return sf_tree_fail(SF_INVALID, at, "anchors (&name) are not taken");
    if (tag != NULL) return sf_tree_fail(SF_INVALID, at, "tags (!name) are not taken");
    return SF_OK;
}

static sf_status read_value(struct reader *reader, const yaml_event_t *event, int depth,
                            struct sf_node **out)
{
    struct sf_where at = at_mark(reader, event->start_mark);
    struct sf_node *node = NULL;
    sf_status status = SF_OK;
    if (depth == SF_TREE_DEPTH_MAX)
        return sf_tree_fail(SF_INVALID, &at, "nested deeper than %d", SF_TREE_DEPTH_MAX);
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        SF_TRY(refuse_extras(&at, event->data.scalar.anchor, event->data.scalar.tag));
        SF_TRY(sf_tree_text((const char *)event->data.scalar.value, event->data.scalar.length, &at,
                            &node));
        node->plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
        break;
    case YAML_SEQUENCE_START_EVENT:
        SF_TRY(refuse_extras(&at, event->data.sequence_start.anchor,
                             event->data.sequence_start.tag));
        SF_TRY(sf_tree_node(SF_NODE_LIST, &at, &node));
        status = read_list(reader, depth, node);
        break;
    case YAML_MAPPING_START_EVENT:
        SF_TRY(refuse_extras(&at, event->data.mapping_start.anchor, event->data.mapping_start.tag));
        SF_TRY(sf_tree_node(SF_NODE_MAP, &at, &node));
        status = read_map(reader, depth, node);
        break;
    default:
        return sf_tree_fail(SF_INVALID, &at, "aliases (*name) are not taken");
    }
    if (status == SF_OK) *out = node;
    else sf_tree_free(node);
    return status;
}

static sf_status read_list(struct reader *reader, int depth, struct sf_node *list)
{
    for (;;) {
        yaml_event_t event;
        SF_TRY(next_event(reader, &event));
        int done = event.type == YAML_SEQUENCE_END_EVENT;
        struct sf_where at = at_mark(reader, event.start_mark);
        struct sf_node *value = NULL;
        sf_status status = done ? SF_OK : read_value(reader, &event, depth + 1, &value);
        yaml_event_delete(&event);
        if (done || status != SF_OK) return status;
        SF_TRY(sf_tree_add(list, NULL, &at, value));
    }
}

/* The key of a mapping; `key` is freed by the caller. */
static sf_status read_key(struct reader *reader, const yaml_event_t *event,
                          const struct sf_node *map, char **key_out)
{
    struct sf_where at = at_mark(reader, event->start_mark);
    struct sf_node *text = NULL;
    if (event->type != YAML_SCALAR_EVENT)
        return sf_tree_fail(SF_INVALID, &at, "a key must be a plain word");
    SF_TRY(read_value(reader, event, 0, &text));
    for (size_t i = 0; i < map->items; i++) {
        if (strcmp(map->item[i].key, text->text) != 0) continue;
        sf_status status = sf_tree_fail(SF_INVALID, &at, "key '%s' is given twice; first in line"
                                        " %d", text->text, map->item[i].at.line);
        sf_tree_free(text);
        return status;
    }
    *key_out = text->text;
    text->text = NULL;
    sf_tree_free(text);
    return SF_OK;
}

static sf_status read_map(struct reader *reader, int depth, struct sf_node *map)
{
    for (;;) {
        yaml_event_t event;
        SF_TRY(next_event(reader, &event));
        if (event.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&event);
            return SF_OK;
        }
        struct sf_where at = at_mark(reader, event.start_mark);
        struct sf_node *value = NULL;
        char *key = NULL;
        sf_status status = read_key(reader, &event, map, &key);
        yaml_event_delete(&event);
        if (status == SF_OK) status = next_event(reader, &event);
        if (status == SF_OK) {
            status = read_value(reader, &event, depth + 1, &value);
            yaml_event_delete(&event);
        }
        if (status == SF_OK) status = sf_tree_add(map, key, &at, value);
        free(key);
        if (status != SF_OK) return status;
    }
}
