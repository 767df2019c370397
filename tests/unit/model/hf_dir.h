/* tests/unit/model/hf_dir.h: Hugging Face directories made on the spot: a config.json and nothing
 * else. */
#ifndef SHEAF_TESTS_HF_DIR_H
#define SHEAF_TESTS_HF_DIR_H
#include <stddef.h>

/* A directory whose config.json holds these bytes; stays until the next call or hf_dir_close. */
const char *hf_dir(const char *text, size_t bytes);
void hf_dir_close(void);
/* `text` with its one place of `find` replaced, malloc'd; asserts that there is one. */
char *hf_edit(const char *text, const char *find, const char *replace);

/* A llama of 126 layers, 128 query and 8 KV heads, in the older and in the newer spelling. */
extern const char hf_llama_405b[], hf_llama_405b_new[];

#endif
