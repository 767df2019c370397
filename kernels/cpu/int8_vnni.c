/* kernels/cpu/int8_vnni.c: products of codes for AVX-512 with VNNI.  Ice Lake has it, Skylake has
 * not, and both have the AVX-512 of isa_avx512.c. */
#include "kernels/cpu/simd.inc"

#include "kernels/cpu/int8.inc"

void sf_int8_dot_vnni(const struct sf_int8_tile *tile) { int8_dot(tile); }
