/* kernels/cpu/isa_avx512_vnni.c: the kernels for AVX-512 with VNNI that are not those for AVX-512:
 * attention over slots in int8. */
#include "kernels/cpu/simd.inc"

#include "kernels/cpu/attend_int8.inc"

const struct sf_cpu_isa sf_cpu_isa_avx512_vnni = {
    .name = "cpu-avx512_vnni", .split = attend_split_int8, .logits = attend_logits_int8,
    .columns = columns_split_int8
};
