/* model/safetensors_write.c: writing safetensors files, whole or not at all. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "model/safetensors.h"

enum { HEADER_ALIGN = 8, ELEMENT_MOST = 8 };

static int64_t tensor_bytes(const struct sf_st_tensor *tensor)
{
    int64_t bytes = sf_st_type_bytes(tensor->type);
    for (int32_t i = 0; i < tensor->n_dims; i++) {
        SF_ASSERT(tensor->dims[i] >= 0);
        SF_ASSERT(!__builtin_mul_overflow(bytes, tensor->dims[i], &bytes));
    }
    return bytes;
}

static struct sf_json *numbers(const int64_t *number, int32_t count)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    for (int32_t i = 0; i < count && list != NULL; i++) {
        if (sf_json_append(list, sf_json_new_int(number[i])) == SF_OK) continue;
        sf_json_free(list);
        list = NULL;
    }
    return list;
}

static sf_status add_tensor(struct sf_json *header, const struct sf_st_tensor *tensor,
                            int64_t *offset)
{
    char shown[96];
    int64_t place[2] = { *offset, *offset + tensor_bytes(tensor) };
    sf_st_show_name(tensor->name, shown, sizeof shown);
    if (sf_json_member(header, tensor->name) != NULL)
        return SF_FAIL(SF_INVALID, "tensor '%s' is to be written twice", shown);
    sf_status status = SF_OK;
    struct sf_json *entry = sf_json_new(SF_JSON_OBJECT);
    if (entry == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for tensor '%s'", shown);
    sf_json_put(&status, entry, "dtype", sf_json_new_words(sf_st_type_name(tensor->type)));
    sf_json_put(&status, entry, "shape", numbers(tensor->dims, tensor->n_dims));
    sf_json_put(&status, entry, "data_offsets", numbers(place, 2));
    sf_json_put(&status, header, tensor->name, entry);
    *offset = place[1];
    return status;
}

static sf_status make_header(const struct sf_st_content *content, struct sf_json *header)
{
    sf_status status = SF_OK;
    int64_t offset = 0;
    struct sf_json *metadata = sf_json_new(SF_JSON_OBJECT);
    if (metadata == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for metadata");
    for (int32_t i = 0; i < content->metas; i++)
        sf_json_put(&status, metadata, content->meta[i].key,
                    sf_json_new_words(content->meta[i].text));
    sf_json_put(&status, header, "__metadata__", metadata);
    for (int32_t width = ELEMENT_MOST; width > 0; width /= 2)
        for (int32_t i = 0; i < content->tensors && status == SF_OK; i++)
            if (sf_st_type_bytes(content->tensor[i].type) == width)
                status = add_tensor(header, &content->tensor[i], &offset);
    return status;
}

/* Length and text, with blanks at its end; malloc'd. */
static sf_status make_head(const struct sf_st_content *content, char **head_out, size_t *bytes_out)
{
    char *text = NULL;
    size_t bytes = 0;
    struct sf_json *header = sf_json_new(SF_JSON_OBJECT);
    if (header == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a header");
    sf_status status = make_header(content, header);
    if (status == SF_OK) status = sf_json_dump(header, 0, &text, &bytes);
    sf_json_free(header);
    SF_TRY(status);
    uint64_t padded = (bytes + HEADER_ALIGN - 1) / HEADER_ALIGN * HEADER_ALIGN;
    char *head = malloc(sizeof padded + padded);
    if (head != NULL) {
        memcpy(head, &padded, sizeof padded);
        memset(head + sizeof padded, ' ', padded);
        memcpy(head + sizeof padded, text, bytes);
    }
    free(text);
    if (head == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a header of %zu bytes", bytes);
    *head_out = head;
    *bytes_out = sizeof padded + padded;
    return SF_OK;
}

static sf_status write_all(int file, const char *path, const struct sf_st_content *content)
{
    char *head;
    size_t bytes;
    SF_TRY(make_head(content, &head, &bytes));
    sf_status status = sf_file_write(file, path, head, bytes);
    free(head);
    for (int32_t width = ELEMENT_MOST; width > 0; width /= 2)
        for (int32_t i = 0; i < content->tensors && status == SF_OK; i++)
            if (sf_st_type_bytes(content->tensor[i].type) == width)
                status = sf_file_write(file, path, content->tensor[i].data,
                                       (size_t)tensor_bytes(&content->tensor[i]));
    return status == SF_OK ? sf_file_sync(file, path) : status;
}

sf_status sf_st_write(const char *path, const struct sf_st_content *content)
{
    char *fresh;
    int file;
    SF_TRY(sf_file_begin(path, &fresh, &file));
    return sf_file_end(path, fresh, file, write_all(file, fresh, content));
}
