/* coordinator/config_tree.h: a configuration file as a tree of plain strings that know where they
 * stand, between YAML and struct sf_config.  Inside of config*.c only.
 *
 *   kv_cache:              MAP  { "kv_cache": MAP { "memory": TEXT "64MiB" 2:11,
 *     memory: 64MiB               "methods": LIST [ MAP { "name": TEXT "window" 3:20 } ] } }
 *     methods: [{name: window}]
 *
 * --set and SHEAF_A__B are laid over the tree before anyone interprets it, and their nodes carry
 * their own name instead of a line, so every later message points at the right place. */
#ifndef SHEAF_COORDINATOR_CONFIG_TREE_H
#define SHEAF_COORDINATOR_CONFIG_TREE_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "base/status.h"
#include "coordinator/config.h"
SF_C_BEGIN

enum { SF_TREE_BYTES_MAX = 1 << 20, SF_TREE_DEPTH_MAX = 16, SF_TREE_ITEMS_MAX = 1 << 14 };
enum sf_node_kind { SF_NODE_TEXT, SF_NODE_MAP, SF_NODE_LIST };
enum sf_node_origin { SF_FROM_FILE, SF_FROM_ENV, SF_FROM_SET };    /* the later wins */

struct sf_where {
    enum sf_node_origin origin;
    const char *name;                   /* file, variable or "--set a=b"; not owned */
    int32_t line, column;               /* from 1; of a file only */
};
struct sf_node {
    enum sf_node_kind kind;
    struct sf_where at;
    char *text;                         /* TEXT; owned */
    uint8_t plain;                      /* TEXT without quotes: an empty one means "nothing" */
    struct sf_node_item *item;          /* MAP and LIST; owned */
    size_t items, capacity;
};
struct sf_node_item { char *key; struct sf_where at; struct sf_node *value; }; /* LIST: key NULL */

/* config.c, over libyaml.  Nodes from a file get their own line and column, all others stand at
 * `from` as a whole; from->name outlives the tree.  An empty text is an empty TEXT node. */
sf_status sf_tree_read(const struct sf_where *from, const char *text, size_t bytes,
                       struct sf_node **root_out);
sf_status sf_tree_read_file(const char *path, struct sf_node **root_out); /* path outlives it */

/* Takes `value` in every case; key is NULL in a LIST. */
sf_status sf_tree_add(struct sf_node *parent, const char *key, const struct sf_where *at,
                      struct sf_node *value);
sf_status sf_tree_node(enum sf_node_kind, const struct sf_where *at, struct sf_node **out);
/* Refuses what is not one printable line of UTF-8, or longer than an option can be. */
sf_status sf_tree_text(const char *text, size_t bytes, const struct sf_where *at,
                       struct sf_node **out);
void sf_tree_free(struct sf_node *);
/* The value of `key` in a MAP (NULL map: NULL), or NULL. */
struct sf_node *sf_tree_find(const struct sf_node *map, const char *key);
/* A value left empty ("methods:"). */
int sf_tree_is_empty(const struct sf_node *);

/* Lays one value over the tree, making what is missing on the way: "kv_cache.methods.0.name". */
sf_status sf_tree_override(struct sf_node *root, const char *path, const char *value,
                           const struct sf_where *at);
/* ${env:NAME} in every value. */
sf_status sf_tree_expand(struct sf_node *root);

/* "job.yaml:7:3: error: ..." or "--set a.b=c: error: ..." */
sf_status sf_tree_fail(sf_status code, const struct sf_where *at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- config_apply.c ---- */
/* The tree's values into a config that holds the defaults. */
sf_status sf_tree_apply(const struct sf_node *root, struct sf_config *cfg);
/* What a profile says of the method's options, but for those that the entry itself (`map`) gives;
 * where both say how heads were chosen they must agree.  Its other keys are notes of whoever made
 * it.  map NULL: only what a calibration has found, and how it was run. */
sf_status sf_tree_profile(const struct sf_node *profile, const struct sf_node *map,
                          struct sf_stack_entry *);

/* ---- config_text.c ---- */
/* A text as YAML takes it back, in quotes where it has to be. */
void sf_config_write_text(FILE *, const char *text);

/* ---- config_tables.c: the sections of the file, in its order, closed by a NULL name ---- */
struct sf_section { const char *name; const struct sf_opt *table; const char *help; };
extern const struct sf_section sf_config_sections[];   /* offsets count from struct sf_config */
extern const struct sf_opt sf_config_top[];            /* `device`; schema_version is by hand */
extern const struct sf_opt sf_config_entry[];          /* fields of struct sf_stack_entry */
/* Methods of interface.md that are not in this build; closed by NULL. */
extern const char *const sf_methods_to_come[];

SF_C_END
#endif
