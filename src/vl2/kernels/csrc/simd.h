// Vectors of floats, and the two 16-bit formats. GCC and Clang lower these vectors to what the machine has, so everything
// but the products is written once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace vl2 {

// Vectors twice as wide as a register go through memory at every step, so with AVX2 alone they are half as wide.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int LANES = 8;
#else
constexpr int LANES = 16;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

using bf16 = uint16_t;  // the upper half of a float

template <class To, class From>
inline To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To out;
    std::memcpy(&out, &value, sizeof out);
    return out;
}

inline float to_float(bf16 value) { return bits<float>(static_cast<uint32_t>(value) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
inline bf16 to_bf16(float value) {
    const uint32_t word = bits<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<bf16>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

inline float from_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
    // Shifted, the exponent is 112 too small; the product puts that right and makes subnormals whole.
    return bits<float>(bits<uint32_t>(bits<float>(rest << 13) * bits<float>(0x77800000u)) | sign);
}

inline float rounded(float value) { return to_float(to_bf16(value)); }

inline Floats splat(float value) { return Floats{} + value; }

inline Floats load(const float* from) {
    Floats out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

inline Floats load(const bf16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return bits<Floats>(__builtin_convertvector(halves, Words) << 16);
}

// Only finite values come here: activations.
inline void store(bf16* to, Floats value) {
    const Words words = bits<Words>(value);
    const Halves halves = __builtin_convertvector((words + 0x7fff + (words >> 16 & 1)) >> 16, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// Numbers too small to be normal may become zeros.
inline void store_near(bf16* to, Floats value) {
#if defined(__AVX512BF16__)
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &halves, sizeof halves);
#else
    store(to, value);
#endif
}

inline Floats rounded(Floats value) {
    const Words words = bits<Words>(value);
    return bits<Floats>((words + 0x7fff + (words >> 16 & 1)) & 0xffff0000u);
}

// Always in this order, so that a result never depends on what was computed beside it.
inline float sum(Floats value) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    float lanes[LANES];
    store(lanes, value);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
#endif
}

// e^x by splitting off the power of two; relative error below 2e-7. Below -87 it is 0.
inline Floats exponential(Floats x) {
    const Words tiny = bits<Words>(x < splat(-87.0f));
    x = x > splat(88.0f) ? splat(88.0f) : x;
    x = x < splat(-87.0f) ? splat(-87.0f) : x;
    const Floats shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    const Floats power = shifted - 12582912.0f;
    const Floats rest = x - power * 0.693359375f + power * 2.12194440e-4f;
    Floats p = splat(1.9875691500e-4f);
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    const Ints exponent = __builtin_convertvector(power, Ints);
    return bits<Floats>((bits<Words>(p) + (bits<Words>(exponent) << 23)) & ~tiny);
}

#if defined(__AVX512F__)
// 2^x for x up to 127; relative error below 3e-7. Below -126 it is what 2^-126 is.
inline __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), rest = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);  // ln(2)^k / k!
    for (const float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(p, whole);
}

// 2^x for x up to 127, of one below -126 what 2^-126 is, for smaller numbers take a hundred times as long; relative error below
// 3e-6. A third cheaper: for what is rounded to bfloat16 next. By the polynomial of the least relative error from 0 to 1.
inline __m512 near_power_of_two(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
    const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // above the whole number below
    __m512 p = _mm512_set1_ps(1.353416778e-2f);
    for (const float factor : {5.201146379e-2f, 2.414427549e-1f, 6.930038333e-1f, 1.000002623f})
        p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(p, x);
}
#endif

// 1 / (1 + e^-x); relative error below 4e-6, and below 3e-7 from -1 on. Below -60 it is what it is there: nothing tells it
// from zero. With AVX-512 by an estimate made better, for a division takes as long as all the rest.
inline Floats logistic(Floats x) {
#if defined(__AVX512F__)
    const __m512 power = _mm512_min_ps(_mm512_mul_ps((__m512)x, _mm512_set1_ps(-1.44269504f)), _mm512_set1_ps(86.0f));
    const __m512 sum = _mm512_add_ps(power_of_two(power), _mm512_set1_ps(1.0f)), near = _mm512_rcp14_ps(sum);
    return (Floats)_mm512_mul_ps(near, _mm512_fnmadd_ps(sum, near, _mm512_set1_ps(2.0f)));
#else
    return 1.0f / (1.0f + exponential(-x));
#endif
}

inline Floats silu(Floats x) { return x * logistic(x); }

// The same, with AVX-512 with a relative error below 7e-5: for what is rounded to bfloat16 next.
inline Floats near_silu(Floats x) {
#if defined(__AVX512F__)
    // Where the power is infinite, what is divided by it is zero.
    const __m512 power = _mm512_mul_ps((__m512)x, _mm512_set1_ps(-1.44269504f));
    return (Floats)_mm512_mul_ps((__m512)x, _mm512_rcp14_ps(_mm512_add_ps(near_power_of_two(power), _mm512_set1_ps(1.0f))));
#else
    return silu(x);
#endif
}

// GELU by its tanh, with AVX-512 with a relative error below 7e-5: for what is rounded to bfloat16 next.
inline Floats near_gelu(Floats x) {
#if defined(__AVX512F__)
    // The factors are those below times -log2(e). Where the power is infinite, what is divided by it is zero.
    const __m512 power = (__m512)(x * (-2.3022082f - 0.10294324f * x * x));
    return (Floats)_mm512_mul_ps((__m512)x, _mm512_rcp14_ps(_mm512_add_ps(near_power_of_two(power), _mm512_set1_ps(1.0f))));
#else
    return x * logistic(1.5957691216f * (x + 0.044715f * x * x * x));
#endif
}

// The product of two bf16 vectors; `n` is a multiple of 16.
inline float dot(const bf16* a, const bf16* b, int64_t n) {
#if defined(__AVX512BF16__)
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        even = _mm512_dpbf16_ps(even, (__m512bh)_mm512_loadu_si512(a + i), (__m512bh)_mm512_loadu_si512(b + i));
        odd = _mm512_dpbf16_ps(odd, (__m512bh)_mm512_loadu_si512(a + i + 32), (__m512bh)_mm512_loadu_si512(b + i + 32));
    }
    for (; i < n; i += 16) {
        const __m512i left = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)(a + i)));
        const __m512i right = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)(b + i)));
        even = _mm512_dpbf16_ps(even, (__m512bh)left, (__m512bh)right);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
#else
    Floats total = {};
    for (int64_t i = 0; i < n; i += LANES) total += load(a + i) * load(b + i);
    return sum(total);
#endif
}

}  // namespace vl2
