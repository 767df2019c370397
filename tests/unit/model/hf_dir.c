/* tests/unit/model/hf_dir.c: one temporary directory, its config.json written anew each time. */
#include "tests/unit/model/hf_dir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"

#define SIZES                                                                                      \
    "\"hidden_size\": 16384, \"intermediate_size\": 53248,\n"                                      \
    " \"num_hidden_layers\": 126, \"num_attention_heads\": 128, \"num_key_value_heads\": 8,\n"     \
    " \"vocab_size\": 128256, \"max_position_embeddings\": 131072, \"rms_norm_eps\": 1e-05,\n"     \
    " \"hidden_act\": \"silu\", \"attention_bias\": false, \"mlp_bias\": false,\n"                 \
    " \"bos_token_id\": 128000, \"eos_token_id\": [128001, 128008, 128009],\n"                     \
    " \"tie_word_embeddings\": false,\n"
#define STRETCH                                                                                    \
    "\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,\n"                      \
    "  \"original_max_position_embeddings\": 8192, \"rope_type\": \"llama3\""

const char hf_llama_405b[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", " SIZES
    " \"torch_dtype\": \"bfloat16\", \"rope_theta\": 500000.0, \"rope_scaling\": {" STRETCH "}}\n";
const char hf_llama_405b_new[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"head_dim\": 128, "
    SIZES " \"dtype\": \"bfloat16\", \"rope_parameters\": {\"rope_theta\": 500000.0, " STRETCH
    "}}\n";

static char folder[64], file[80];

const char *hf_dir(const char *text, size_t bytes)
{
    if (folder[0] == '\0') {
        snprintf(folder, sizeof folder, "/tmp/sheaf-hf-XXXXXX");
        SF_ASSERT(mkdtemp(folder) != NULL);
        snprintf(file, sizeof file, "%s/config.json", folder);
    }
    FILE *out = fopen(file, "wb");
    SF_ASSERT(out != NULL);
    SF_ASSERT(fwrite(text, 1, bytes, out) == bytes);
    SF_ASSERT(fclose(out) == 0);
    return folder;
}

void hf_dir_close(void)
{
    if (folder[0] == '\0') return;
    unlink(file);
    rmdir(folder);
    folder[0] = '\0';
}

char *hf_edit(const char *text, const char *find, const char *replace)
{
    const char *at = strstr(text, find);
    SF_ASSERT(at != NULL && strstr(at + 1, find) == NULL);
    size_t bytes = strlen(text) + strlen(replace) + 1;
    char *out = malloc(bytes);
    SF_ASSERT(out != NULL);
    snprintf(out, bytes, "%.*s%s%s", (int)(at - text), text, replace, at + strlen(find));
    return out;
}
