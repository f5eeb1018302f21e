// int4 weights dequantized to bfloat16, so that many rows of activations are multiplied by them at the speed of
// bfloat16.
//
// In: panels of sixteen rows of codes, and their scales. Out: sixteen rows of bfloat16. Included by int4.h alone, with
// the bfloat16 extension; used by prefill_moe_neon.h panel by panel and by int4.h for whole weights. A few rows are
// multiplied by the codes themselves, see matmul_quantized_neon.h.
#pragma once
#include "matmul.h"

namespace vl2 {

// Eight codes times a scale: a product of integers of 4 and 11 bits is exact, so each is rounded once.
inline void dequantize_eight(int8x8_t codes, float scale, bf16* out) {
    const int16x8_t wide = vsubl_s8(codes, vdup_n_s8(8));
    const float32x4_t low = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), scale);
    const float32x4_t high = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))), scale);
    vst1q_u16(out, vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(low), high)));
}

// A panel of sixteen rows, of `groups` groups of inputs, as rows of bfloat16.
inline void dequantize_panel(const uint8_t* codes, const uint16_t* scales, int64_t groups, bf16* out) {
    // FourCodes has eight codes of an output as 0, 4, 1, 5, 2, 6, 3, 7: where each input is among them.
    const uint8x16_t order = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
    const int64_t stride = groups * GROUP;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t row = 0; row < PANEL; row += 4)
            for (int64_t eight = 0; eight < GROUP / 8; eight++) {
                const FourCodes some(vld1q_u8(codes + g * BLOCK_BYTES + 64 * eight + 4 * row));
                const int8x16_t two[2] = {vqtbl1q_s8(some.first, order), vqtbl1q_s8(some.last, order)};
                for (int i = 0; i < 4; i++) {
                    const int8x8_t eights = i % 2 ? vget_high_s8(two[i / 2]) : vget_low_s8(two[i / 2]);
                    const float scale = from_half(scales[g * PANEL + row + i]);
                    dequantize_eight(eights, scale, out + (row + i) * stride + g * GROUP + 8 * eight);
                }
            }
}

}  // namespace vl2
