/* coordinator/config.h: the YAML file as one checked value (interface.md section 3).
 *
 * One option table (base/opt.h) per section of the file; parsing, range errors, docs/config.md and
 * the resolved text all come from the tables.  Precedence of a key: --set > SHEAF_A__B > file >
 * default. */
#ifndef SHEAF_COORDINATOR_CONFIG_H
#define SHEAF_COORDINATOR_CONFIG_H
#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "base/opt.h"
#include "base/status.h"
#include "kvshard/stack.h"
SF_C_BEGIN

struct sf_config {
    char file[1024];                    /* where it came from, for messages */
    struct {
        char path[SF_OPT_TEXT_MAX];
        int32_t dtype, compute;                        /* enum sf_dtype, enum sf_config_compute */
        int32_t isa;                                   /* enum sf_isa */
    } model;
    struct {
        int32_t tensor, pipeline, data, expert;        /* data: SF_OPT_AUTO possible */
        struct sf_opt_ints layers;                     /* count SF_OPT_AUTO: auto */
        int32_t placement;                             /* enum sf_placement */
        int32_t threads;                               /* SF_OPT_AUTO possible */
        uint8_t cross_node;
    } parallel;
    int32_t device;                                    /* enum sf_config_device */
    struct {
        int64_t memory;                                /* bytes per rank; SF_OPT_AUTO */
        int32_t block_size;                            /* SF_OPT_AUTO */
        int32_t dtype;                                 /* enum sf_config_kv_dtype */
        int64_t host_memory;
        struct sf_stack stack;
    } kv;
    struct { int32_t max_num_seqs, max_num_batched_tokens; uint8_t prefix_caching;
             int32_t max_model_len; } scheduler;       /* SF_OPT_AUTO */
    struct { char model[SF_OPT_TEXT_MAX]; } draft;
    struct { double temperature; int64_t seed; } sampling;
    struct { uint8_t deterministic; double checkpoint_interval_s, rank_timeout_s;
             uint8_t checkpoint_kv; int32_t on_signal; } run;
    struct { int32_t method; } convert;
};
enum sf_config_device { SF_DEVICE_AUTO, SF_DEVICE_CPU, SF_DEVICE_CUDA, SF_DEVICE_CUDA_EMULATED };
enum sf_config_compute { SF_COMPUTE_AUTO, SF_COMPUTE_F32, SF_COMPUTE_BF16, SF_COMPUTE_INT8 };
enum sf_config_kv_dtype { SF_KV_AUTO, SF_KV_F32, SF_KV_F16, SF_KV_BF16, SF_KV_INT8 };

struct sf_config_sets { const char *const *set; int32_t sets; }; /* "a.b=c" from --set, in order */

/* Reads and checks.  On refusal the words are complete lines such as
 * "job.yaml:7:3: error: unknown key 'max_sequences'; did you mean 'max_num_seqs'?". */
sf_status sf_config_load(const char *path, const struct sf_config_sets *, struct sf_config *out);
/* The same, but files that `profile:` names are not looked for: one may still have to be made. */
sf_status sf_config_load_bare(const char *path, const struct sf_config_sets *,
                              struct sf_config *out);
/* The same from memory, without environment: workers read the resolved text of rank 0. */
sf_status sf_config_parse(const char *name, const char *text, size_t bytes,
                          const struct sf_config_sets *, struct sf_config *out);
/* Every key with its effective value, as YAML that sf_config_parse takes back; malloc'd. */
sf_status sf_config_text(const struct sf_config *, char **text_out);
void      sf_config_free(struct sf_config *);
/* docs/config.md, generated from the tables; malloc'd. */
sf_status sf_config_markdown(char **text_out);

SF_C_END
#endif
