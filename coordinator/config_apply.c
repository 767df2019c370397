/* coordinator/config_apply.c: from a tree of strings to checked values.  Every refusal carries the
 * position of the key or value, and the nearest name where one was misspelt. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "coordinator/config_tree.h"
#include "kvshard/methods.h"

enum { NAMES_MAX = 128 };

static sf_status check_version(const struct sf_node *root);
static sf_status apply_section(const struct sf_section *, const struct sf_node_item *,
                               struct sf_config *);
static sf_status apply_value(const struct sf_opt *row, const char *prefix, const struct sf_node *,
                             void *cfg);
static sf_status apply_own(const struct sf_opt *row, const char *prefix, const struct sf_node *,
                           struct sf_stack_entry *entry);
static sf_status apply_methods(const struct sf_node *, struct sf_config *);
static sf_status apply_entry(const struct sf_node *, int32_t index, struct sf_config *);
static sf_status list_text(const struct sf_node *list, const char *what, char *out, size_t bytes);
static sf_status pairs_text(const struct sf_node *list, const char *what, char *out, size_t bytes);
static sf_status ranges_text(const struct sf_node *list, const char *what, char *out, size_t bytes);
static sf_status unknown_key(const struct sf_node_item *, const struct sf_section *);
static sf_status cross_check(const struct sf_node *root, const struct sf_config *);

sf_status sf_tree_apply(const struct sf_node *root, struct sf_config *cfg)
{
    sf_opt_defaults(sf_config_top, cfg);
    for (const struct sf_section *s = sf_config_sections; s->name != NULL; s++)
        sf_opt_defaults(s->table, cfg);

    SF_TRY(check_version(root));
    for (size_t i = 0; i < root->items; i++) {
        const struct sf_node_item *item = &root->item[i];
        const struct sf_section *section = sf_config_sections;
        while (section->name != NULL && strcmp(section->name, item->key) != 0) section++;
        const struct sf_opt *row = sf_opt_find(sf_config_top, item->key);
        if (section->name != NULL) SF_TRY(apply_section(section, item, cfg));
        else if (row != NULL) SF_TRY(apply_value(row, "", item->value, cfg));
        else if (strcmp(item->key, "schema_version") != 0) return unknown_key(item, NULL);
    }
    return cross_check(root, cfg);
}

static sf_status check_version(const struct sf_node *root)
{
    const struct sf_node *version = sf_tree_find(root, "schema_version");
    if (version == NULL)
        return sf_tree_fail(SF_INVALID, &root->at,
                            "schema_version is missing; write 'schema_version: 1'");
    if (version->kind != SF_NODE_TEXT || strcmp(version->text, "1") != 0)
        return sf_tree_fail(SF_INVALID, &version->at, "schema_version is '%s'; this build reads 1",
                            version->kind == SF_NODE_TEXT ? version->text : "not a number");
    return SF_OK;
}

static sf_status apply_section(const struct sf_section *section, const struct sf_node_item *item,
                               struct sf_config *cfg)
{
    const struct sf_node *map = item->value;
    if (sf_tree_is_empty(map)) return SF_OK;
    if (map->kind != SF_NODE_MAP)
        return sf_tree_fail(SF_INVALID, &map->at, "%s is a section: it holds keys, not %s",
                            section->name, map->kind == SF_NODE_TEXT ? "one value" : "a list");
    char prefix[64];
    snprintf(prefix, sizeof prefix, "%s.", section->name);
    for (size_t i = 0; i < map->items; i++) {
        const struct sf_node_item *key = &map->item[i];
        const struct sf_opt *row = sf_opt_find(section->table, key->key);
        if (row != NULL) SF_TRY(apply_value(row, prefix, key->value, cfg));
        else if (strcmp(section->name, "kv_cache") == 0 && strcmp(key->key, "methods") == 0)
            SF_TRY(apply_methods(key->value, cfg));
        else return unknown_key(key, section);
    }
    return SF_OK;
}

/* prefix: "kv_cache." or "". */
static sf_status apply_value(const struct sf_opt *row, const char *prefix,
                             const struct sf_node *node, void *cfg)
{
    char name[160], list[SF_OPT_VALUE_BYTES];
    const char *text = node->text;
    snprintf(name, sizeof name, "%s%s", prefix, row->key);
    if (node->kind == SF_NODE_LIST && row->type == SF_OPT_INTS) {
        SF_TRY(list_text(node, name, list, sizeof list));
        text = list;
    } else if (node->kind == SF_NODE_LIST && row->type == SF_OPT_RANGES) {
        SF_TRY(ranges_text(node, name, list, sizeof list));
        text = list;
    } else if (node->kind == SF_NODE_LIST && row->type == SF_OPT_PAIRS) {
        SF_TRY(pairs_text(node, name, list, sizeof list));
        text = list;
    } else if (node->kind != SF_NODE_TEXT) {
        return sf_tree_fail(SF_INVALID, &node->at, "%s takes one value, not a %s", name,
                            node->kind == SF_NODE_MAP ? "mapping" : "list");
    } else if (sf_tree_is_empty(node)) {
        return sf_tree_fail(SF_INVALID, &node->at, "%s has no value", name);
    }
    sf_status status = sf_opt_set(row, cfg, text);
    if (status != SF_OK)
        return sf_tree_fail(status, &node->at, "%s%s", prefix, sf_error_text());
    return SF_OK;
}

/* An option of an entry's method; errors that only a model shows will say where it stands. */
static sf_status apply_own(const struct sf_opt *row, const char *prefix,
                           const struct sf_node *node, struct sf_stack_entry *entry)
{
    char place[512];
    SF_TRY(apply_value(row, prefix, node, entry->cfg));
    if (node->at.origin != SF_FROM_FILE) snprintf(place, sizeof place, "%s", node->at.name);
    else
        snprintf(place, sizeof place, "%s:%d:%d", node->at.name, node->at.line, node->at.column);
    return sf_stack_place(entry, row, place);
}

/* "[1, 2, 3]" of a list of single values. */
static sf_status list_text(const struct sf_node *list, const char *what, char *out, size_t bytes)
{
    size_t used = (size_t)snprintf(out, bytes, "[");
    for (size_t i = 0; i < list->items; i++) {
        const struct sf_node *value = list->item[i].value;
        if (value->kind != SF_NODE_TEXT || strchr(value->text, ',') != NULL)
            return sf_tree_fail(SF_INVALID, &value->at, "%s is a list of single values", what);
        used += (size_t)snprintf(out + used, bytes - used, "%s%s", i == 0 ? "" : ", ", value->text);
        if (used + 1 >= bytes)
            return sf_tree_fail(SF_INVALID, &value->at, "%s is too long a list", what);
    }
    snprintf(out + used, bytes - used, "]");
    return SF_OK;
}

/* "[[1, 2], [3, 4]]" of a list of lists. */
static sf_status pairs_text(const struct sf_node *list, const char *what, char *out, size_t bytes)
{
    size_t used = (size_t)snprintf(out, bytes, "[");
    for (size_t i = 0; i < list->items; i++) {
        const struct sf_node *pair = list->item[i].value;
        char text[64];
        if (pair->kind != SF_NODE_LIST || pair->items != 2)
            return sf_tree_fail(SF_INVALID, &pair->at, "%s is a list of pairs such as [0, 2]",
                                what);
        SF_TRY(list_text(pair, what, text, sizeof text));
        if (used + strlen(text) + 4 >= bytes)
            return sf_tree_fail(SF_INVALID, &pair->at, "%s is too long a list", what);
        used += (size_t)snprintf(out + used, bytes - used, "%s%s", i == 0 ? "" : ", ", text);
    }
    snprintf(out + used, bytes - used, "]");
    return SF_OK;
}

/* "[0-3, [4, 5], 8]" of a list of single values and lists. */
static sf_status ranges_text(const struct sf_node *list, const char *what, char *out, size_t bytes)
{
    size_t used = (size_t)snprintf(out, bytes, "[");
    for (size_t i = 0; i < list->items; i++) {
        const struct sf_node *one = list->item[i].value;
        char text[SF_OPT_TEXT_MAX];
        if (one->kind == SF_NODE_LIST) SF_TRY(list_text(one, what, text, sizeof text));
        else if (one->kind == SF_NODE_TEXT) snprintf(text, sizeof text, "%s", one->text);
        else
            return sf_tree_fail(SF_INVALID, &one->at, "%s is a list of ranges such as 0-3 or"
                                " [0, 1, 2, 3]", what);
        if (used + strlen(text) + 4 >= bytes)
            return sf_tree_fail(SF_INVALID, &one->at, "%s is too long a list", what);
        used += (size_t)snprintf(out + used, bytes - used, "%s%s", i == 0 ? "" : ", ", text);
    }
    snprintf(out + used, bytes - used, "]");
    return SF_OK;
}

/* ---- kv_cache.methods ------------------------------------------------------------------------ */
static sf_status apply_methods(const struct sf_node *list, struct sf_config *cfg)
{
    if (sf_tree_is_empty(list)) return SF_OK;
    if (list->kind != SF_NODE_LIST)
        return sf_tree_fail(SF_INVALID, &list->at,
                            "kv_cache.methods is a list of entries such as {name: window}");
    for (size_t i = 0; i < list->items; i++)
        SF_TRY(apply_entry(list->item[i].value, (int32_t)i, cfg));
    return SF_OK;
}

static sf_status unknown_method(const struct sf_node *name)
{
    for (const char *const *m = sf_methods_to_come; *m != NULL; m++)
        if (strcmp(*m, name->text) == 0)
            return sf_tree_fail(SF_UNSUPPORTED, &name->at, "method '%s' is not built yet", *m);
    const char *near = sf_method_nearest(name->text);
    if (near == NULL)
        return sf_tree_fail(SF_INVALID, &name->at,
                            "unknown method '%s'; `sheaf methods` lists them", name->text);
    return sf_tree_fail(SF_INVALID, &name->at, "unknown method '%s'; did you mean '%s'?",
                        name->text, near);
}

static sf_status unknown_option(const struct sf_node_item *item, const struct sf_method *method)
{
    const char *names[NAMES_MAX];
    size_t count = 0;
    names[count++] = "name";
    names[count++] = "on";
    names[count++] = "layers";
    for (const struct sf_opt *row = method->opts;
         row != NULL && row->key != NULL && count < NAMES_MAX; row++)
        names[count++] = row->key;
    const char *near = sf_nearest_name(item->key, names, count);
    if (near == NULL)
        return sf_tree_fail(SF_INVALID, &item->at,
                            "unknown option '%s' of method '%s'; `sheaf methods %s` lists them",
                            item->key, method->name, method->name);
    return sf_tree_fail(SF_INVALID, &item->at,
                        "unknown option '%s' of method '%s'; did you mean '%s'?", item->key,
                        method->name, near);
}

/* layers: "0-11,20", or a list of numbers. Only the form is looked at; the model decides later. */
static sf_status apply_layers(const struct sf_node *node, const char *prefix,
                              struct sf_stack_entry *entry)
{
    char text[sizeof entry->layers_text + 2], name[96];
    snprintf(name, sizeof name, "%slayers", prefix);
    if (node->kind == SF_NODE_LIST) {
        SF_TRY(list_text(node, name, text, sizeof text));
        size_t bytes = strlen(text) - 2;
        memmove(text, text + 1, bytes);         /* without its brackets */
        text[bytes] = '\0';
    } else if (node->kind == SF_NODE_TEXT && strlen(node->text) < sizeof entry->layers_text) {
        snprintf(text, sizeof text, "%s", node->text);
    } else {
        return sf_tree_fail(SF_INVALID, &node->at, "%s is a text such as \"0-11,20\"", name);
    }
    if (text[strspn(text, "0123456789-, ")] != '\0' || text[0] == '\0'
        || strlen(text) >= sizeof entry->layers_text)
        return sf_tree_fail(SF_INVALID, &node->at, "%s is '%s'; allowed: layers such as"
                            " \"0-11,20\"", name, text);
    memcpy(entry->layers_text, text, strlen(text) + 1);
    return SF_OK;
}

/* The same option under two names: two spellings in one place are a mistake, but an override under
 * either spelling counts.  Whether `key` of this entry is overruled by a later one. */
static sf_status overruled(const struct sf_node *map, size_t key, const struct sf_opt *table,
                           int *overruled_out)
{
    *overruled_out = 0;
    const struct sf_node_item *mine = &map->item[key];
    const struct sf_opt *row = sf_opt_find(table, mine->key);
    for (size_t i = 0; i < map->items; i++) {
        const struct sf_node_item *other = &map->item[i];
        if (i == key || sf_opt_find(table, other->key) != row) continue;
        if (other->at.origin == SF_FROM_FILE && mine->at.origin == SF_FROM_FILE) {
            if (i > key) other = mine, mine = &map->item[i];
            return sf_tree_fail(SF_INVALID, &mine->at, "'%s' and '%s' are the same option",
                                mine->key, other->key);
        }
        if (other->at.origin > mine->at.origin
            || (other->at.origin == mine->at.origin && i > key)) *overruled_out = 1;
    }
    return SF_OK;
}

/* {svd: {method: exact}} is what the row svd.method is for; an inner key that is not there is named
 * as a whole. */
static sf_status apply_inner(const struct sf_node_item *outer, const struct sf_method *method,
                             const char *prefix, struct sf_stack_entry *entry)
{
    for (size_t i = 0; i < outer->value->items; i++) {
        char key[128];
        struct sf_node_item inner = outer->value->item[i];
        snprintf(key, sizeof key, "%s.%s", outer->key, inner.key);
        const struct sf_opt *own = sf_opt_find(method->opts, key);
        inner.key = key;
        if (own == NULL) return unknown_option(&inner, method);
        SF_TRY(apply_own(own, prefix, inner.value, entry));
    }
    return SF_OK;
}

/* Whether the table has rows `key`.something. */
static int has_inner(const struct sf_opt *table, const char *key)
{
    size_t length = strlen(key);
    for (const struct sf_opt *row = table; row->key != NULL; row++)
        if (strncmp(row->key, key, length) == 0 && row->key[length] == '.') return 1;
    return 0;
}

static sf_status apply_entry(const struct sf_node *map, int32_t index, struct sf_config *cfg)
{
    if (map->kind != SF_NODE_MAP)
        return sf_tree_fail(SF_INVALID, &map->at,
                            "an entry of kv_cache.methods is a mapping such as {name: window}");
    const struct sf_node *name = sf_tree_find(map, "name");
    if (name == NULL || name->kind != SF_NODE_TEXT)
        return sf_tree_fail(SF_INVALID, name != NULL ? &name->at : &map->at,
                            "kv_cache.methods.%d has no name", index);
    const struct sf_method *method = sf_method_find(name->text);
    if (method == NULL) return unknown_method(name);
    if (method->policy == NULL)
        return sf_tree_fail(SF_INVALID, &name->at,
                            "method '%s' converts a model; it stands in convert.method",
                            name->text);

    struct sf_stack_entry *entry;
    sf_status added = sf_stack_add(&cfg->kv.stack, name->text, &entry);
    if (added != SF_OK) return sf_tree_fail(added, &name->at, "%s", sf_error_text());

    static const struct sf_opt none[] = { { 0 } };
    const struct sf_opt *table = method->opts != NULL ? method->opts : none;
    char prefix[64];
    snprintf(prefix, sizeof prefix, "kv_cache.methods.%d.", index);
    for (size_t i = 0; i < map->items; i++) {
        const struct sf_node_item *item = &map->item[i];
        const struct sf_opt *own = sf_opt_find(table, item->key);
        const struct sf_opt *common = sf_opt_find(sf_config_entry, item->key);
        int skip = 0;
        if (strcmp(item->key, "name") == 0) continue;
        if (strcmp(item->key, "layers") == 0) {
            SF_TRY(apply_layers(item->value, prefix, entry));
        } else if (own != NULL) {
            SF_TRY(overruled(map, i, table, &skip));
            if (!skip) SF_TRY(apply_own(own, prefix, item->value, entry));
        } else if (common != NULL) {
            SF_TRY(apply_value(common, prefix, item->value, entry));
        } else if (item->value->kind == SF_NODE_MAP && has_inner(table, item->key)) {
            SF_TRY(apply_inner(item, method, prefix, entry));
        } else {
            return unknown_option(item, method);
        }
    }
    return SF_OK;
}

/* A choice that the entry states (at item) must be the one that the profile was made by. */
static sf_status check_choice(const struct sf_opt *row, const struct sf_node_item *item,
                              const struct sf_node *made, const struct sf_stack_entry *entry)
{
    char mine[256], theirs[256];
    if (sf_calib_kind_of(entry->method, row->key) != SF_CALIB_CHOICE) return SF_OK;
    void *cfg = malloc(entry->method->cfg_bytes);
    if (cfg == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a profile");
    memcpy(cfg, entry->cfg, entry->method->cfg_bytes);
    sf_opt_get(row, cfg, mine, sizeof mine);
    sf_status status = apply_value(row, "", made, cfg);
    sf_opt_get(row, cfg, theirs, sizeof theirs);
    free(cfg);
    if (status == SF_OK && strcmp(mine, theirs) != 0)
        return sf_tree_fail(SF_INVALID, &item->at, "%s is %s, but %s was made with %s; `sheaf"
                            " calibrate --from` chooses anew", row->key, mine, made->at.name,
                            theirs);
    return status;
}

sf_status sf_tree_profile(const struct sf_node *profile, const struct sf_node *map,
                          struct sf_stack_entry *entry)
{
    if (profile->kind != SF_NODE_MAP)
        return sf_tree_fail(SF_INVALID, &profile->at, "a profile is a mapping such as"
                            " {retrieval_heads: [[0, 2]]}");
    for (size_t i = 0; i < profile->items; i++) {
        const struct sf_node_item *item = &profile->item[i];
        const struct sf_opt *row = sf_opt_find(entry->method->opts, item->key);
        int given = row == NULL || strcmp(row->key, "profile") == 0;
        if (map == NULL && !given) {
            enum sf_calib_kind kind = sf_calib_kind_of(entry->method, row->key);
            given = kind != SF_CALIB_RESULT && kind != SF_CALIB_RUN;
        }
        for (size_t k = 0; map != NULL && k < map->items && !given; k++) {
            given = sf_opt_find(entry->method->opts, map->item[k].key) == row;
            if (given) SF_TRY(check_choice(row, &map->item[k], item->value, entry));
        }
        if (!given) SF_TRY(apply_value(row, "", item->value, entry->cfg));
    }
    return SF_OK;
}

/* ---- suggestions ----------------------------------------------------------------------------- */
/* section NULL: a key outside of all sections. */
static sf_status unknown_key(const struct sf_node_item *item, const struct sf_section *section)
{
    const char *names[NAMES_MAX];
    size_t count = 0;
    const char *where = section != NULL ? section->name : "the top level";

    /* The right name in the wrong section. */
    for (const struct sf_section *s = sf_config_sections; s->name != NULL; s++) {
        const struct sf_opt *row = sf_opt_find(s->table, item->key);
        if (row != NULL)
            return sf_tree_fail(SF_INVALID, &item->at, "unknown key '%s' in %s; did you mean"
                                " '%s.%s'?", item->key, where, s->name, row->key);
    }
    if (strcmp(item->key, "methods") == 0)
        return sf_tree_fail(SF_INVALID, &item->at, "unknown key 'methods' in %s; did you mean"
                            " 'kv_cache.methods'?", where);
    if (section != NULL && sf_opt_find(sf_config_top, item->key) != NULL)
        return sf_tree_fail(SF_INVALID, &item->at, "unknown key '%s' in %s; it stands outside of"
                            " all sections", item->key, where);

    /* A misspelt name, of this section first. */
    const char *near = NULL;
    if (section != NULL) {
        for (const struct sf_opt *row = section->table; row->key != NULL; row++)
            names[count++] = row->key;
        if (strcmp(section->name, "kv_cache") == 0) names[count++] = "methods";
        near = sf_nearest_name(item->key, names, count);
    } else {
        names[count++] = "schema_version";
        for (const struct sf_opt *row = sf_config_top; row->key != NULL; row++)
            names[count++] = row->key;
        for (const struct sf_section *s = sf_config_sections; s->name != NULL; s++)
            names[count++] = s->name;
        near = sf_nearest_name(item->key, names, count);
    }
    SF_ASSERT(count < NAMES_MAX);
    if (near != NULL)
        return sf_tree_fail(SF_INVALID, &item->at, "unknown key '%s'; did you mean '%s'?",
                            item->key, near);
    for (const struct sf_section *s = sf_config_sections; s->name != NULL; s++) {
        near = sf_opt_nearest(s->table, item->key);
        if (near != NULL)
            return sf_tree_fail(SF_INVALID, &item->at, "unknown key '%s' in %s; did you mean"
                                " '%s.%s'?", item->key, where, s->name, near);
    }
    return sf_tree_fail(SF_INVALID, &item->at, "unknown key '%s' in %s", item->key, where);
}

/* ---- values that depend on each other -------------------------------------------------------- */
static sf_status cross_check(const struct sf_node *root, const struct sf_config *cfg)
{
    const struct sf_node *block = sf_tree_find(sf_tree_find(root, "kv_cache"), "block_size");
    int32_t slots = cfg->kv.block_size;
    if (slots != SF_OPT_AUTO && (slots & (slots - 1)) != 0)
        return sf_tree_fail(SF_INVALID, &block->at,
                            "kv_cache.block_size is '%d'; allowed: 16 x 2^k, such as 16, 32, 64",
                            slots);
    const struct sf_node *layers = sf_tree_find(sf_tree_find(root, "parallel"), "pipeline_layers");
    if (cfg->parallel.layers.count != SF_OPT_AUTO
        && cfg->parallel.layers.count != cfg->parallel.pipeline)
        return sf_tree_fail(SF_INVALID, &layers->at,
                            "parallel.pipeline_layers lists %d stages, but"
                            " parallel.pipeline_parallel_size is %d", cfg->parallel.layers.count,
                            cfg->parallel.pipeline);
    return SF_OK;
}
