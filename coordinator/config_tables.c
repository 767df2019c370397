/* coordinator/config_tables.c: every key of a configuration, with its default, range and meaning.
 * Parsing, messages, the resolved text and docs/config.md all come from these rows. */
#include "coordinator/config_tree.h"

/* Names in the order of the enums that they fill. */
static const char *const dtypes[] = { "f32", "f16", "bf16", NULL };         /* enum sf_dtype */
static const char *const computes[] = { "auto", "f32", "bf16", "int8", NULL };
static const char *const isas[] = { "auto", "generic", "avx2", "avx512", "avx512_vnni",
                                    "avx512_bf16", NULL };                  /* enum sf_isa */
static const char *const placements[] = { "balanced", "identity", NULL };   /* enum sf_placement */
static const char *const devices[] = { "auto", "cpu", "cuda", "cuda-emulated", NULL };
static const char *const kv_dtypes[] = { "auto", "f32", "f16", "bf16", "int8", NULL };
static const char *const signals[] = { "drain", NULL };
static const char *const converters[] = { "kv_heads", "x_ecomla", "sub_moe", NULL };
static const char *const classes[] = { "all", "retrieval", "other", NULL }; /* sf_head_class */

#define AT(field) offsetof(struct sf_config, field)
enum { BUILT = 1, TO_COME = 0, AUTO = 1, NO_AUTO = 0 };

const struct sf_opt sf_config_top[] = {
    { "device", SF_OPT_ENUM, AT(device), "auto", 0, 0, NO_AUTO, BUILT, devices, NULL, "",
      "where ranks compute: a GPU each (or shared, by their numbers on the node), the CPU, or the"
      " slow emulation of a GPU that the tests use; auto takes GPUs where all ranks have one" },
    { 0 }
};

static const struct sf_opt model[] = {
    { "path", SF_OPT_STRING, AT(model.path), "", 0, 0, NO_AUTO, BUILT, NULL, NULL, "",
      "model file (GGUF); `plan` and `inspect` also take a Hugging Face directory, of which they"
      " read config.json; a relative path is looked for in the current folder, beside the"
      " configuration and in the three folders above it" },
    { "dtype", SF_OPT_ENUM, AT(model.dtype), "bf16", 0, 0, NO_AUTO, BUILT, dtypes, NULL, "",
      "weights and activations; where the CPU cannot multiply it, it is a storage type and the"
      " work is f32" },
    { "compute", SF_OPT_ENUM, AT(model.compute), "auto", 0, 0, NO_AUTO, BUILT, computes, NULL, "",
      "type of the products; auto: model.dtype or f32; int8 (on the CPU): weights in 8 bits with a"
      " scale for each output channel, activations in 8 bits with one for each token" },
    { "isa", SF_OPT_ENUM, AT(model.isa), "auto", 0, 0, NO_AUTO, BUILT, isas, NULL, "",
      "the most that the CPU's kernels take of its instruction sets, each of which has those before"
      " it; auto: all, AMX with them, which none of the names includes; one that a rank's processor"
      " lacks is refused" },
    { 0 }
};

static const struct sf_opt parallel[] = {
    { "tensor_parallel_size", SF_OPT_INT32, AT(parallel.tensor), "1", 1, 4096, NO_AUTO, BUILT, NULL,
      NULL, "ranks", "ranks that share each layer" },
    { "pipeline_parallel_size", SF_OPT_INT32, AT(parallel.pipeline), "1", 1, 4096, NO_AUTO, BUILT,
      NULL, NULL, "stages", "stages that the layers are cut into" },
    { "data_parallel_size", SF_OPT_INT32, AT(parallel.data), "1", 1, 4096, AUTO, BUILT, NULL, NULL,
      "groups", "copies of the model; tensor x pipeline x data must equal the ranks launched, auto"
      " takes what is left over" },
    { "expert_parallel_size", SF_OPT_INT32, AT(parallel.expert), "1", 1, 4096, NO_AUTO, TO_COME,
      NULL, NULL, "ranks", "ranks that share the experts of a layer" },
    { "pipeline_layers", SF_OPT_INTS, AT(parallel.layers), "auto", 1, 100000, AUTO, BUILT, NULL,
      NULL, "layers", "layers of each stage; auto levels the stages' weights, output head"
      " included" },
    { "head_placement", SF_OPT_ENUM, AT(parallel.placement), "balanced", 0, 0, NO_AUTO, BUILT,
      placements, NULL, "", "which tensor rank holds which heads: stored bytes leveled over the"
      " layers, or contiguous blocks" },
    { "threads_per_rank", SF_OPT_INT32, AT(parallel.threads), "auto", 1, 1024, AUTO, BUILT, NULL,
      NULL, "threads",
      "auto: cores of the node / ranks on it, at most OMP_NUM_THREADS if that is set; cores"
      " that fewer leave idle factor layer groups (xkv) beside the layers" },
    { "allow_cross_node_tensor_parallel", SF_OPT_BOOL, AT(parallel.cross_node), "false", 0, 0,
      NO_AUTO, BUILT, NULL, NULL, "", "let the ranks of one tensor group sit on several nodes" },
    { 0 }
};

static const struct sf_opt kv_cache[] = {
    { "memory", SF_OPT_BYTES, AT(kv.memory), "auto", 1, 0x1p50, AUTO, BUILT, NULL, NULL, "bytes",
      "page pool of one rank, taken at the start; auto: what the job can use, at most 60 % of"
      " what weights and buffers leave" },
    { "block_size", SF_OPT_INT32, AT(kv.block_size), "auto", 16, 4096, AUTO, BUILT, NULL, NULL,
      "slots", "slots of a raw page, 16 x 2^k; auto: 16 on CPU, or as a method needs" },
    { "dtype", SF_OPT_ENUM, AT(kv.dtype), "auto", 0, 0, NO_AUTO, BUILT, kv_dtypes, NULL, "",
      "slots of the raw tier; auto: as model.dtype; int8: one scale for each key and value" },
    { "host_memory", SF_OPT_BYTES, AT(kv.host_memory), "0", 0, 0x1p50, NO_AUTO, TO_COME, NULL,
      NULL, "bytes", "of one rank, for methods with a host tier" },
    { 0 }
};

static const struct sf_opt draft[] = {
    { "model", SF_OPT_STRING, AT(draft.model), "", 0, 0, NO_AUTO, TO_COME, NULL, NULL, "",
      "draft model, only where a method asks for one" },
    { 0 }
};

static const struct sf_opt scheduler[] = {
    { "max_num_seqs", SF_OPT_INT32, AT(scheduler.max_num_seqs), "256", 1, 65536, NO_AUTO, BUILT,
      NULL, NULL, "sequences", "most sequences that run at once, over all data-parallel groups" },
    { "max_num_batched_tokens", SF_OPT_INT32, AT(scheduler.max_num_batched_tokens), "2048", 16,
      1 << 20, NO_AUTO, BUILT, NULL, NULL, "tokens",
      "most tokens of one step of a data-parallel group" },
    { "enable_prefix_caching", SF_OPT_BOOL, AT(scheduler.prefix_caching), "true", 0, 0, NO_AUTO,
      BUILT, NULL, NULL, "", "share the cache of equal prompt beginnings" },
    { "max_model_len", SF_OPT_INT32, AT(scheduler.max_model_len), "auto", 1, 1 << 27, AUTO, BUILT,
      NULL, NULL, "tokens", "longest prompt and answer together; auto: the model's own context" },
    { 0 }
};

static const struct sf_opt sampling[] = {
    { "temperature", SF_OPT_FLOAT, AT(sampling.temperature), "0", 0, 2, NO_AUTO, BUILT, NULL,
      NULL, "", "default of a record that names none; 0 takes the most likely token" },
    { "seed", SF_OPT_INT64, AT(sampling.seed), "0", 0, 0, NO_AUTO, BUILT, NULL, NULL, "",
      "of all random numbers of the job" },
    { 0 }
};

static const struct sf_opt run[] = {
    { "deterministic", SF_OPT_BOOL, AT(run.deterministic), "false", 0, 0, NO_AUTO, BUILT, NULL,
      NULL, "", "the same tokens for every layout, batch and resume on one instruction set; on"
      " GPUs, and with xkv, for reruns of one layout" },
    { "checkpoint_interval_s", SF_OPT_FLOAT, AT(run.checkpoint_interval_s), "5", 0.1, 86400,
      NO_AUTO, BUILT, NULL, NULL, "s", "at most so much sampling is done again after a crash" },
    { "rank_timeout_s", SF_OPT_FLOAT, AT(run.rank_timeout_s), "30", 1, 86400, NO_AUTO, BUILT, NULL,
      NULL, "s", "a lost or stuck rank ends the job after this" },
    { "checkpoint_kv", SF_OPT_BOOL, AT(run.checkpoint_kv), "false", 0, 0, NO_AUTO, TO_COME, NULL,
      NULL, "", "save the caches of half-finished records when stopped early" },
    { "on_signal", SF_OPT_ENUM, AT(run.on_signal), "drain", 0, 0, NO_AUTO, BUILT, signals, NULL,
      "", "what USR1 and TERM do: stop admitting, save, exit 75" },
    { 0 }
};

static const struct sf_opt convert[] = {
    { "method", SF_OPT_ENUM, AT(convert.method), "kv_heads", 0, 0, NO_AUTO, TO_COME, converters,
      NULL, "", "offline recipe of `sheaf convert` and `sheaf calibrate`" },
    { 0 }
};

const struct sf_opt sf_config_entry[] = {
    { "on", SF_OPT_ENUM, offsetof(struct sf_stack_entry, on), "all", 0, 0, NO_AUTO, BUILT, classes,
      NULL, "", "heads that the method acts on, as a method of the stack with a head set tells"
      " them" },
    { 0 }
};

const struct sf_section sf_config_sections[] = {
    { "model", model, "the model" },
    { "parallel", parallel, "how the model is laid over the ranks" },
    { "kv_cache", kv_cache, "the cache and the methods that compress it" },
    { "draft", draft, "a second, small model" },
    { "scheduler", scheduler, "what runs at once" },
    { "sampling", sampling, "defaults that a record may override" },
    { "run", run, "the job as a whole" },
    { "convert", convert, "offline conversion; not read by `sheaf run`" },
    { 0 }
};

const char *const sf_methods_to_come[] = {
    "loopserve", "x_ecomla", "kvcrush", "gear", "mikv", "minicache", "lococo", "zipvl",
    "scissorhands", "kv_heads", "speckv", "specpc", "sigma_diffqkv",
    "sub_moe", "sentencekv", NULL
};
