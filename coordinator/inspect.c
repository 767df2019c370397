/* coordinator/inspect.c: `sheaf inspect`: what is in a model file, from its header alone, or in a
 * Hugging Face directory, from its config.json alone. */
#include <stdio.h>
#include <string.h>
#include "coordinator/commands.h"
#include "model/tokenizer.h"
#include "model/weights.h"

static const char help[] =
    "usage: sheaf inspect MODEL\n"
    "\n"
    "Shows the architecture, sizes, tokenizer and tensors of a GGUF file, or what the config.json\n"
    "of a Hugging Face directory says.  Reads no weights.\n";

/* "9" where all layers agree, else "9-12". */
static void print_range(const char *name, const struct sf_model_desc *desc, size_t offset)
{
    int32_t least = INT32_MAX, most = INT32_MIN, value;
    for (int32_t i = 0; i < desc->layers; i++) {
        memcpy(&value, (const char *)&desc->layer[i] + offset, sizeof value);
        if (value < least) least = value;
        if (value > most) most = value;
    }
    printf("%-18s %d", name, least);
    if (least != most) printf("-%d", most);
    printf("\n");
}

static void print_model(const struct sf_model *model)
{
    const struct sf_model_desc *desc = sf_model_desc(model);
    printf("%-18s %s\n", "file", sf_model_path(model));
    printf("%-18s %lld bytes%s, %s\n", "size", (long long)sf_model_file_bytes(model),
           sf_model_has_weights(model) ? "" : " of weights by config.json", desc->file_type);
    if (desc->name[0] != '\0') printf("%-18s %s\n", "name", desc->name);
    printf("%-18s %s\n", "architecture", desc->arch_name);
    printf("%-18s %d\n", "layers", desc->layers);
    printf("%-18s %d\n", "d_model", desc->d_model);
    print_range("query heads", desc, offsetof(struct sf_layer_desc, q_heads));
    print_range("KV heads", desc, offsetof(struct sf_layer_desc, kv_heads));
    print_range("key dimension", desc, offsetof(struct sf_layer_desc, k_dim));
    print_range("value dimension", desc, offsetof(struct sf_layer_desc, v_dim));
    print_range("sliding window", desc, offsetof(struct sf_layer_desc, window));
    printf("%-18s %d\n", "FFN width", desc->ffn);
    printf("%-18s %d%s\n", "vocabulary", desc->vocab,
           desc->tied ? ", output head tied to the embedding" : "");
    printf("%-18s %d tokens\n", "context", desc->context);
    printf("%-18s %d of a head\n", "rotated", desc->rope_dim);
    printf("%-18s bos %d, eos", "special tokens", desc->bos);
    for (int32_t i = 0; i < desc->eos_count; i++) printf(" %d", desc->eos[i]);
    printf("%s\n", desc->eos_count == 0 ? " none" : "");
}

/* A tokenizer that we do not know is worth a line here, not an error. */
static void print_tokenizer(const struct sf_model *model)
{
    static const char *const chat[] = { [SF_CHAT_NONE] = "no chat template that is known",
                                        [SF_CHAT_CHATML] = "chat template ChatML" };
    struct sf_tokenizer *tokenizer = NULL;
    if (sf_tokenizer_create(model, &tokenizer) != SF_OK) {
        printf("%-18s %s\n", "tokenizer", sf_error_text());
    } else if (tokenizer == NULL) {
        printf("%-18s none: token ids only\n", "tokenizer");
    } else {
        printf("%-18s %s, %d tokens, %s\n", "tokenizer", sf_tokenizer_kind(tokenizer),
               sf_tokenizer_vocab(tokenizer), chat[sf_tokenizer_chat(tokenizer)]);
        sf_tokenizer_destroy(tokenizer);
    }
}

static void print_tensors(const struct sf_model *model)
{
    int64_t bytes = 0, elements = 0;
    int32_t tensors = sf_model_tensors(model);
    printf("\n%-36s %-8s %-20s %14s\n", "tensor", "type", "shape", "bytes");
    for (int32_t i = 0; i < tensors; i++) {
        int64_t dims[4];
        int32_t n_dims;
        const struct sf_weight *w = sf_model_tensor(model, i, dims, &n_dims);
        char shape[96] = "";
        int64_t count = 1;
        for (int32_t d = 0; d < n_dims; d++) {
            size_t used = strlen(shape);
            snprintf(shape + used, sizeof shape - used, "%s%lld", d == 0 ? "" : " x ",
                     (long long)dims[d]);
            count *= dims[d];
        }
        printf("%-36s %-8s %-20s %14lld\n", w->name, w->type_name, shape, (long long)w->bytes);
        bytes += w->bytes;
        elements += count;
    }
    printf("%d tensors, %lld elements, %lld bytes (%.1f bits each)\n", tensors, (long long)elements,
           (long long)bytes, elements > 0 ? 8.0 * (double)bytes / (double)elements : 0.0);
}

int sf_cmd_inspect(int argc, char **argv)
{
    const char *path;
    int exit_code;
    if (!sf_read_operand(argc, argv, help, "MODEL", &path, &exit_code)) return exit_code;
    struct sf_model *model;
    sf_status status = sf_model_open_header(path, &model);
    if (status != SF_OK) return sf_command_failed(status);
    print_model(model);
    if (sf_model_has_weights(model)) {
        print_tokenizer(model);
        print_tensors(model);
    } else {
        printf("%-18s not read: those of a GGUF file are\n", "tokenizer, tensors");
    }
    sf_model_close(model);
    return 0;
}
