// Vectors of floats with AVX2: the sum of one in registers, where the portable loop goes through memory.
//
// Included by simd.h alone. The order of the additions, and so every bit, is that of the portable loop.
#pragma once
#include <immintrin.h>

namespace vl2 {

inline float sum(Floats value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

}  // namespace vl2
