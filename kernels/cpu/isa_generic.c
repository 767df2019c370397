/* kernels/cpu/isa_generic.c: the kernels for any processor: the compiler's 16-byte vectors, no
 * fused multiply-add. */
#include "kernels/cpu/simd.inc"

#include "kernels/cpu/attend.inc"
#include "kernels/cpu/basis.inc"
#include "kernels/cpu/columns.inc"
#include "kernels/cpu/int8.inc"
#include "kernels/cpu/rows.inc"

const struct sf_cpu_isa sf_cpu_isa_generic = {
    "cpu-generic", attend_split, attend_logits, attend_merge, attend_finish, basis_rebuild,
    basis_turn, columns_split, columns_live, rmsnorm_row, rope_row, swiglu_row, add_row, argmax_row,
    scale_row, widen_row, narrow_row, quantise_row, int8_dot
};
