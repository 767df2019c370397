/* coordinator/manifest.c: two configurations are compared as trees of resolved values: both are
 * written out by sf_config_text, the earlier one after it was parsed, so that a key which its sheaf
 * did not know yet counts as its default. */
#include "coordinator/manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include "base/json.h"
#include "coordinator/config_tree.h"

enum { MANIFEST_BYTES_MAX = 64 << 20, KEY_BYTES = 256 };

#define GO_ON "; --force goes on all the same"

/* ---- the file ---- */

static sf_status read_text(const char *path, char **text_out, size_t *bytes_out)
{
    struct stat info;
    char *text = NULL;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    sf_status status = SF_OK;
    if (file < 0 || fstat(file, &info) != 0)
        status = SF_FAIL(SF_IO, "%s: could not be opened: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode) || info.st_size > MANIFEST_BYTES_MAX)
        status = SF_FAIL(SF_FORMAT, "%s: is not the manifest of a run", path);
    else if ((text = malloc((size_t)info.st_size + 1)) == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for %s", path);
    else
        status = sf_file_read(file, path, 0, (size_t)info.st_size, text);
    if (file >= 0) close(file);
    if (status != SF_OK) {
        free(text);
        return status;
    }
    *text_out = text;
    *bytes_out = (size_t)info.st_size;
    return SF_OK;
}

static sf_status read_members(const char *path, const struct sf_json *root,
                              struct sf_manifest *out)
{
    size_t bytes = 0, digest_bytes = 0;
    const char *config = sf_json_text(sf_json_member(root, "config"), &bytes);
    const char *digest = sf_json_text(sf_json_member(root, "model_sha256"), &digest_bytes);
    const struct sf_json *finished = sf_json_member(root, "finished");
    if (config == NULL || strlen(config) != bytes || digest == NULL ||
        digest_bytes != sizeof out->model_sha256 - 1 || finished == NULL)
        return SF_FAIL(SF_FORMAT, "%s: is not the manifest of a run", path);
    snprintf(out->model_sha256, sizeof out->model_sha256, "%s", digest);
    out->finished = sf_json_type(finished) != SF_JSON_NULL;
    (void)sf_json_get_int(sf_json_member(root, "started"), &out->started);
    (void)sf_json_get_int(sf_json_member(root, "resumes"), &out->resumes);
    out->config = strdup(config);
    return out->config != NULL ? SF_OK : SF_FAIL(SF_NO_MEMORY, "no memory for %s", path);
}

sf_status sf_manifest_read(const char *path, struct sf_manifest *manifest_out)
{
    struct sf_manifest manifest = {.config = NULL};
    struct sf_json *root = NULL;
    char *text, words[512];
    size_t bytes;
    SF_TRY(read_text(path, &text, &bytes));
    sf_status status = sf_json_parse(text, bytes, MANIFEST_BYTES_MAX, &root);
    free(text);
    if (status == SF_FORMAT) {
        snprintf(words, sizeof words, "%s", sf_error_text());
        return SF_FAIL(SF_FORMAT, "%s: is not the manifest of a run: %s", path, words);
    }
    if (status == SF_OK) status = read_members(path, root, &manifest);
    sf_json_free(root);
    if (status == SF_OK) *manifest_out = manifest;
    return status;
}

void sf_manifest_free(struct sf_manifest *manifest)
{
    free(manifest->config);
    manifest->config = NULL;
}

/* ---- the same job? ---- */

/* May the value behind this key be another one?  A folder's name stands for all in it; so does a
 * name that ends in an underscore. */
static int may_differ(const char *key)
{
    static const char *const free_keys[] = {
        "model.path", "parallel.", "device", "kv_cache.memory", "run.checkpoint_",
        "run.rank_timeout_s", "run.on_signal", NULL};
    for (const char *const *name = free_keys; *name != NULL; name++) {
        size_t bytes = strlen(*name);
        char last = (*name)[bytes - 1];
        if (strncmp(key, *name, bytes) == 0 && (last == '.' || last == '_' || key[bytes] == '\0'))
            return 1;
    }
    /* What a profile says stands in the entry; where the file lies does not matter. */
    size_t bytes = strlen(key), ending = strlen(".profile");
    return bytes > ending && strcmp(key + bytes - ending, ".profile") == 0;
}

/* An entry of the stack goes by its method's name. */
static const char *words_of(const struct sf_node *node)
{
    const struct sf_node *name = sf_tree_find(node, "name");
    if (node == NULL) return "nothing";
    if (node->kind == SF_NODE_TEXT) return node->text[0] != '\0' ? node->text : "''";
    if (name != NULL && name->kind == SF_NODE_TEXT) return name->text;
    return node->kind == SF_NODE_LIST ? "a list" : "a mapping";
}

static sf_status differ(const char *key, const struct sf_node *was, const struct sf_node *is)
{
    return SF_FAIL(SF_INVALID, "the earlier run had %.200s: %.150s and this one has %.150s" GO_ON,
                   key, words_of(was), words_of(is));
}

static sf_status compare(const char *key, const struct sf_node *was, const struct sf_node *is);

/* The value of `key` in a MAP, or the item of this number. */
static const struct sf_node *value_at(const struct sf_node *node, const char *key, size_t number)
{
    if (node->kind == SF_NODE_MAP) return sf_tree_find(node, key);
    return number < node->items ? node->item[number].value : NULL;
}

/* Items of `a`, in order, beside those of `b`; was_is: a is the earlier one.  Called both ways, the
 * second time only for what a alone has. */
static sf_status compare_items(const char *key, const struct sf_node *a, const struct sf_node *b,
                               int was_is)
{
    for (size_t i = 0; i < a->items; i++) {
        char inner[KEY_BYTES], number[24];
        const char *name = a->item[i].key;
        snprintf(number, sizeof number, "%zu", i);
        snprintf(inner, sizeof inner, "%.200s%s%.50s", key, key[0] != '\0' ? "." : "",
                 name != NULL ? name : number);
        const struct sf_node *mine = a->item[i].value, *other = value_at(b, name, i);
        if (may_differ(inner)) continue;
        if (was_is) SF_TRY(compare(inner, mine, other));
        else if (other == NULL) return differ(inner, NULL, mine);
    }
    return SF_OK;
}

static sf_status compare(const char *key, const struct sf_node *was, const struct sf_node *is)
{
    if (is == NULL || was->kind != is->kind) return differ(key, was, is);
    if (was->kind == SF_NODE_TEXT)
        return strcmp(was->text, is->text) == 0 ? SF_OK : differ(key, was, is);
    SF_TRY(compare_items(key, was, is, 1));
    return compare_items(key, is, was, 0);
}

static sf_status tree_of(const char *name, const struct sf_config *config,
                         struct sf_node **tree_out)
{
    struct sf_where at = {.origin = SF_FROM_FILE, .name = name, .line = 1, .column = 1};
    char *text;
    SF_TRY(sf_config_text(config, &text));
    sf_status status = sf_tree_read(&at, text, strlen(text), tree_out);
    free(text);
    return status;
}

static sf_status compare_configs(const struct sf_config *was, const struct sf_config *is)
{
    struct sf_node *old = NULL, *fresh = NULL;
    sf_status status = tree_of("the earlier configuration", was, &old);
    if (status == SF_OK) status = tree_of("the configuration", is, &fresh);
    if (status == SF_OK) status = compare("", old, fresh);
    sf_tree_free(old);
    sf_tree_free(fresh);
    return status;
}

sf_status sf_manifest_same_job(const struct sf_manifest *manifest, const struct sf_config *now,
                               const char *model_sha256)
{
    if (strcmp(manifest->model_sha256, model_sha256) != 0)
        return SF_FAIL(SF_INVALID, "the earlier run had a model with SHA-256 %.64s and this one has"
                       " %.64s" GO_ON, manifest->model_sha256, model_sha256);
    struct sf_config *was = calloc(1, sizeof *was);
    if (was == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the earlier configuration");
    sf_status status = sf_config_parse("manifest.json", manifest->config,
                                       strlen(manifest->config), NULL, was);
    if (status == SF_OK) {
        status = compare_configs(was, now);
        sf_config_free(was);
    } else if (status != SF_NO_MEMORY) {
        char words[512];
        snprintf(words, sizeof words, "%s", sf_error_text());
        status = SF_FAIL(SF_INVALID, "the earlier run's configuration cannot be read (%s)" GO_ON,
                         words);
    }
    free(was);
    return status;
}
