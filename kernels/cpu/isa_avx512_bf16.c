/* kernels/cpu/isa_avx512_bf16.c: the kernels for AVX-512 with BF16 that are not those for AVX-512:
 * attention over keys and values of bf16. */
#include "kernels/cpu/simd.inc"

#include "kernels/cpu/attend_bf16.inc"

const struct sf_cpu_isa sf_cpu_isa_avx512_bf16 = {
    .name = "cpu-avx512_bf16", .split = attend_split_bf16, .logits = attend_logits_bf16,
    .columns = columns_split_bf16
};
