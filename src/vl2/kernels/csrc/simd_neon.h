// Vectors of four floats with NEON: sums in registers, narrowing, and dot products of bfloat16 numbers.
//
// Included by simd.h alone, and in place of what it has for every machine.
#pragma once
#include <arm_neon.h>

namespace vl2 {

inline Floats load(const bf16* from) { return bit_cast<Floats>(vshll_n_u16(vld1_u16(from), 16)); }

// In the order of the portable loop.
inline float sum(Floats value) {
    const float32x2_t half = vadd_f32(vget_low_f32((float32x4_t)value), vget_high_f32((float32x4_t)value));
    return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
}

// The lowest byte of each lane.
inline Bytes lowest_bytes(Ints words) {
    const int16x4_t halves = vmovn_s32((int32x4_t)words);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(halves, halves));
    return bit_cast<Bytes>(vget_lane_s32(vreinterpret_s32_s8(bytes), 0));
}

#if defined(VL2_NEON_BF16)

// Rounds to nearest, ties to even, as `store` does, in one instruction.
inline void store_fast(bf16* to, Floats value) {
    const bfloat16x4_t halves = vcvt_bf16_f32((float32x4_t)value);
    std::memcpy(to, &halves, sizeof halves);
}

inline bfloat16x8_t load_eight(const bf16* from) { return vreinterpretq_bf16_u16(vld1q_u16(from)); }

// The product of two bf16 vectors; `n` is a multiple of 16. In four sums, for one alone would wait for itself at each
// step.
inline float dot(const bf16* a, const bf16* b, int64_t n) {
    float32x4_t acc[4] = {};
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 4; j++) acc[j] = vbfdotq_f32(acc[j], load_eight(a + i + 8 * j), load_eight(b + i + 8 * j));
    if (i < n)
        for (int j = 0; j < 2; j++) acc[j] = vbfdotq_f32(acc[j], load_eight(a + i + 8 * j), load_eight(b + i + 8 * j));
    return sum((Floats)vaddq_f32(vaddq_f32(acc[0], acc[1]), vaddq_f32(acc[2], acc[3])));
}

#else

inline void store_fast(bf16* to, Floats value) { store(to, value); }

// The product of two bf16 vectors; `n` is a multiple of 16. In four sums, for one alone would wait for itself at each
// step.
inline float dot(const bf16* a, const bf16* b, int64_t n) {
    Floats acc[4] = {};
    for (int64_t i = 0; i < n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) acc[j] += load(a + i + j * LANES) * load(b + i + j * LANES);
    return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

#endif

}  // namespace vl2
