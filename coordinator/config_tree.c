/* coordinator/config_tree.c: the tree of a configuration file: nodes, positions, overrides and
 * ${env:NAME}.  Knows nothing of YAML and nothing of what keys mean. */
#include "coordinator/config_tree.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"
#include "base/utf8.h"

static sf_status check_text(const struct sf_where *at, const char *text, size_t bytes);
static sf_status step_into(struct sf_node *node, const char *key, int next_is_index,
                           const struct sf_where *at, struct sf_node_item **item_out);
static sf_status make_value(const char *value, const struct sf_where *at, struct sf_node **out);
static sf_status expand_text(struct sf_node *node);

sf_status sf_tree_fail(sf_status code, const struct sf_where *at, const char *format, ...)
{
    char words[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    if (at->origin == SF_FROM_FILE)
        return SF_FAIL(code, "%s:%d:%d: error: %s", at->name, at->line, at->column, words);
    return SF_FAIL(code, "%s: error: %s", at->name, words);
}

/* ---- nodes ----------------------------------------------------------------------------------- */
sf_status sf_tree_node(enum sf_node_kind kind, const struct sf_where *at, struct sf_node **out)
{
    struct sf_node *node = calloc(1, sizeof *node);
    if (node == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the configuration");
    node->kind = kind;
    node->at = *at;
    *out = node;
    return SF_OK;
}

sf_status sf_tree_text(const char *text, size_t bytes, const struct sf_where *at,
                       struct sf_node **out)
{
    SF_TRY(check_text(at, text, bytes));
    struct sf_node *node = NULL;
    SF_TRY(sf_tree_node(SF_NODE_TEXT, at, &node));
    node->text = malloc(bytes + 1);
    if (node->text == NULL) {
        sf_tree_free(node);
        return SF_FAIL(SF_NO_MEMORY, "no memory for the configuration");
    }
    memcpy(node->text, text, bytes);
    node->text[bytes] = '\0';
    *out = node;
    return SF_OK;
}

static sf_status check_text(const struct sf_where *at, const char *text, size_t bytes)
{
    if (bytes >= SF_OPT_TEXT_MAX)
        return sf_tree_fail(SF_INVALID, at, "a text of %zu bytes; at most %d are taken", bytes,
                            SF_OPT_TEXT_MAX - 1);
    int control = 0;
    for (size_t i = 0; i < bytes; i++)
        control |= (unsigned char)text[i] < 0x20 || text[i] == 0x7f;
    if (control || !sf_utf8_valid(text, bytes))
        return sf_tree_fail(SF_INVALID, at, "keys and values are one printable line of UTF-8");
    return SF_OK;
}

sf_status sf_tree_add(struct sf_node *parent, const char *key, const struct sf_where *at,
                      struct sf_node *value)
{
    SF_ASSERT((parent->kind == SF_NODE_MAP) == (key != NULL) && parent->kind != SF_NODE_TEXT);
    sf_status status = SF_OK;
    char *copy = NULL;
    if (parent->items == SF_TREE_ITEMS_MAX)
        status = sf_tree_fail(SF_INVALID, at, "more than %d entries here", SF_TREE_ITEMS_MAX);
    if (status == SF_OK && key != NULL) {
        status = check_text(at, key, strlen(key));
        if (status == SF_OK && (copy = strdup(key)) == NULL)
            status = SF_FAIL(SF_NO_MEMORY, "no memory for the configuration");
    }
    if (status == SF_OK) {
        void *items = parent->item;
        status = sf_grow(&items, &parent->capacity, parent->items + 1, sizeof *parent->item);
        parent->item = items;
    }
    if (status != SF_OK) {
        free(copy);
        sf_tree_free(value);
        return status;
    }
    parent->item[parent->items++] = (struct sf_node_item){ .key = copy, .at = *at, .value = value };
    return SF_OK;
}

void sf_tree_free(struct sf_node *node)
{
    if (node == NULL) return;
    for (size_t i = 0; i < node->items; i++) {
        free(node->item[i].key);
        sf_tree_free(node->item[i].value);
    }
    free(node->item);
    free(node->text);
    free(node);
}

struct sf_node *sf_tree_find(const struct sf_node *map, const char *key)
{
    if (map == NULL || map->kind != SF_NODE_MAP) return NULL;
    for (size_t i = 0; i < map->items; i++)
        if (strcmp(map->item[i].key, key) == 0) return map->item[i].value;
    return NULL;
}

int sf_tree_is_empty(const struct sf_node *node)
{
    return node->kind == SF_NODE_TEXT && node->plain && node->text[0] == '\0';
}

/* ---- overrides ------------------------------------------------------------------------------- */
static int is_index(const char *text)
{
    return *text != '\0' && strlen(text) <= 4 && text[strspn(text, "0123456789")] == '\0';
}

sf_status sf_tree_override(struct sf_node *root, const char *path, const char *value,
                           const struct sf_where *at)
{
    char copy[SF_OPT_TEXT_MAX];
    if (strlen(path) >= sizeof copy)
        return sf_tree_fail(SF_INVALID, at, "the name of the key is too long");
    snprintf(copy, sizeof copy, "%s", path);

    char *part[SF_TREE_DEPTH_MAX];
    int parts = 0;
    for (char *rest = copy, *dot; rest != NULL; rest = dot) {
        dot = strchr(rest, '.');
        if (dot != NULL) *dot++ = '\0';
        if (parts == SF_TREE_DEPTH_MAX || *rest == '\0')
            return sf_tree_fail(SF_INVALID, at, "'%s' is not a key such as kv_cache.memory", path);
        part[parts++] = rest;
    }

    struct sf_node *node = root;
    struct sf_node_item *item = NULL;
    for (int i = 0; i < parts; i++) {
        SF_TRY(step_into(node, part[i], i + 1 < parts && is_index(part[i + 1]), at, &item));
        node = item->value;
    }
    struct sf_node *fresh = NULL;
    SF_TRY(make_value(value, at, &fresh));
    sf_tree_free(item->value);
    item->value = fresh;
    item->at = *at;
    return SF_OK;
}

/* The item `key` of a MAP or LIST, made if it is missing.  What is still empty becomes a container
 * first: a LIST if a number follows. */
static sf_status step_into(struct sf_node *node, const char *key, int next_is_index,
                           const struct sf_where *at, struct sf_node_item **item_out)
{
    size_t index = node->items;
    if (node->kind == SF_NODE_TEXT)
        return sf_tree_fail(SF_INVALID, at, "there is no '%s' inside the single value '%s'", key,
                            node->text);
    if (node->kind == SF_NODE_LIST) {
        if (!is_index(key) || (size_t)atoi(key) > node->items)
            return sf_tree_fail(SF_INVALID, at, "'%s' is no item of a list of %zu, counted from 0",
                                key, node->items);
        index = (size_t)atoi(key);
    } else {
        for (size_t i = 0; i < node->items; i++)
            if (strcmp(node->item[i].key, key) == 0) index = i;
    }
    enum sf_node_kind kind = next_is_index ? SF_NODE_LIST : SF_NODE_MAP;
    struct sf_node *fresh = NULL;
    if (index == node->items) {
        SF_TRY(sf_tree_node(kind, at, &fresh));
        SF_TRY(sf_tree_add(node, node->kind == SF_NODE_LIST ? NULL : key, at, fresh));
    } else if (sf_tree_is_empty(node->item[index].value)) {
        SF_TRY(sf_tree_node(kind, at, &fresh));
        sf_tree_free(node->item[index].value);
        node->item[index].value = fresh;
    }
    *item_out = &node->item[index];
    return SF_OK;
}

/* A text as it stands, or YAML where it is a list or a mapping: "[14, 16]", "[{name: window}]". */
static sf_status make_value(const char *value, const struct sf_where *at, struct sf_node **out)
{
    if (*value == '[' || *value == '{') return sf_tree_read(at, value, strlen(value), out);
    return sf_tree_text(value, strlen(value), at, out);
}

/* ---- ${env:NAME} ----------------------------------------------------------------------------- */
sf_status sf_tree_expand(struct sf_node *node)
{
    for (size_t i = 0; i < node->items; i++) SF_TRY(sf_tree_expand(node->item[i].value));
    if (node->kind == SF_NODE_TEXT && strstr(node->text, "${env:") != NULL)
        SF_TRY(expand_text(node));
    return SF_OK;
}

static sf_status expand_text(struct sf_node *node)
{
    char out[2 * SF_OPT_TEXT_MAX], name[128];
    size_t used = 0;
    const char *rest = node->text;
    for (const char *mark; (mark = strstr(rest, "${env:")) != NULL;) {
        const char *start = mark + strlen("${env:"), *end = strchr(start, '}');
        size_t bytes = end != NULL ? (size_t)(end - start) : 0;
        if (bytes == 0 || bytes >= sizeof name)
            return sf_tree_fail(SF_INVALID, &node->at, "'%s' is not of the form ${env:NAME}", mark);
        memcpy(name, start, bytes);
        name[bytes] = '\0';
        const char *value = getenv(name);
        if (value == NULL)
            return sf_tree_fail(SF_INVALID, &node->at, "the environment has no variable '%s'",
                                name);
        size_t before = (size_t)(mark - rest), after = strlen(value);
        if (used + before + after >= SF_OPT_TEXT_MAX)
            return sf_tree_fail(SF_INVALID, &node->at, "too long once ${env:%s} is put in", name);
        memcpy(out + used, rest, before);
        memcpy(out + used + before, value, after);
        used += before + after;
        rest = end + 1;
    }
    size_t tail = strlen(rest);                 /* both parts are below SF_OPT_TEXT_MAX */
    memcpy(out + used, rest, tail);
    struct sf_node *fresh = NULL;
    SF_TRY(sf_tree_text(out, used + tail, &node->at, &fresh));
    free(node->text);
    node->text = fresh->text;
    node->plain = 0;
    fresh->text = NULL;
    sf_tree_free(fresh);
    return SF_OK;
}
