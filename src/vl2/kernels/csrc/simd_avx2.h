// Vectors of floats with AVX2: the sum of one, and int8 codes as floats, in registers, where the portable loops go through
// memory.
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

inline Floats load(const int8_t* from) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}

}  // namespace vl2
