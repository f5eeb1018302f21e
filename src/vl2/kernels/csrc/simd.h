// Vectors of floats, and the two 16-bit formats: the vocabulary of every other header.
//
// In: floats, bfloat16 or half numbers in memory of any alignment. Out: vectors of LANES floats, their sums and the
// activations. GCC and Clang lower these vectors to what the machine has, so everything but the products is written
// once; what an instruction set does better is in simd_avx2.h, simd_avx512.h and simd_neon.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "instruction_set.h"

namespace vl2 {

// Sixteen floats fill one register of AVX-512, or four of SSE. Vectors wider than a register go through memory at every
// step with AVX2 and NEON, so there they are as wide as one.
#if defined(VL2_AVX2)
constexpr int LANES = 8;
#elif defined(VL2_NEON)
constexpr int LANES = 4;
#else
constexpr int LANES = 16;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

using bf16 = uint16_t;  // the upper half of a float

template <class To, class From>
inline To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To out;
    std::memcpy(&out, &value, sizeof out);
    return out;
}

inline float to_float(bf16 value) { return bit_cast<float>(static_cast<uint32_t>(value) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
inline bf16 to_bf16(float value) {
    const uint32_t word = bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<bf16>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

// IEEE half precision, in which the scales of int4 are held, as a float.
inline float from_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
    // Shifted, the exponent is 112 too small; the product puts that right and makes subnormals whole.
    return bit_cast<float>(bit_cast<uint32_t>(bit_cast<float>(rest << 13) * bit_cast<float>(0x77800000u)) | sign);
}

// Call `run` with a count from 1 to MOST as a constant: loops over it are unrolled, and their accumulators are
// registers.
template <int MOST, class Run>
inline void with_constant(int64_t count, const Run& run) {
    if constexpr (MOST > 1) {
        if (count < MOST) return with_constant<MOST - 1>(count, run);
    }
    run(std::integral_constant<int, MOST>());
}

// The float that a bfloat16 holds after rounding: the plain model rounds each result so.
inline float rounded(float value) { return to_float(to_bf16(value)); }

inline Floats splat(float value) { return Floats{} + value; }

inline Floats load(const float* from) {
    Floats out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

#if !defined(VL2_NEON)
inline Floats load(const bf16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return bit_cast<Floats>(__builtin_convertvector(halves, Words) << 16);
}
#endif

// Only finite values come here: activations.
inline void store(bf16* to, Floats value) {
    const Words words = bit_cast<Words>(value);
    const Halves halves = __builtin_convertvector((words + 0x7fff + (words >> 16 & 1)) >> 16, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

inline Floats rounded(Floats value) {
    const Words words = bit_cast<Words>(value);
    return bit_cast<Floats>((words + 0x7fff + (words >> 16 & 1)) & 0xffff0000u);
}

// e^x by splitting off the power of two; relative error below 2e-7. Below -87 it is 0.
inline Floats exponential(Floats x) {
    const Words tiny = bit_cast<Words>(x < splat(-87.0f));
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
    return bit_cast<Floats>((bit_cast<Words>(p) + (bit_cast<Words>(exponent) << 23)) & ~tiny);
}

}  // namespace vl2

#if defined(VL2_AVX2)
#include "simd_avx2.h"
#elif defined(VL2_NEON)
#include "simd_neon.h"
#elif !defined(VL2_AVX512)

namespace vl2 {

// Always in this order, so that a result never depends on what was computed beside it.
inline float sum(Floats value) {
    float lanes[LANES];
    store(lanes, value);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

}  // namespace vl2
#endif

#if defined(VL2_AVX512)
#include "simd_avx512.h"
#else

namespace vl2 {

#if !defined(VL2_AVX2)
// One code after the other: GCC takes the general conversion apart too, and goes through memory for it.
inline Floats load(const int8_t* from) {
    float values[LANES];
    for (int i = 0; i < LANES; i++) values[i] = from[i];
    return load(values);
}
#endif

// 1 / (1 + e^-x).
inline Floats logistic(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

// SiLU and the tanh GELU of what is rounded to bfloat16 next: with AVX-512 their relative error is up to 7e-5.
inline Floats fast_silu(Floats x) { return x * logistic(x); }
inline Floats fast_gelu_tanh(Floats x) { return x * logistic(1.5957691216f * (x + 0.044715f * x * x * x)); }

// x / (1 + e^-logit), of which the same is true.
inline Floats fast_gate(Floats x, Floats logit) { return x * logistic(logit); }

#if !defined(VL2_NEON)

// Store as bfloat16. With AVX-512 numbers too small to be normal become zeros; here they stay.
inline void store_fast(bf16* to, Floats value) { store(to, value); }

// The lowest byte of each lane.
inline Bytes lowest_bytes(Ints words) { return __builtin_convertvector(words, Bytes); }

// The product of two bf16 vectors; `n` is a multiple of 16.
inline float dot(const bf16* a, const bf16* b, int64_t n) {
    Floats total = {};
    for (int64_t i = 0; i < n; i += LANES) total += load(a + i) * load(b + i);
    return sum(total);
}

#endif

}  // namespace vl2
#endif

namespace vl2 {

inline Floats silu(Floats x) { return x * logistic(x); }

// Held the same in Python: what follows a product.
enum Activation : int64_t { NO_ACTIVATION = 0, GELU_TANH = 1, GELU = 2, QUICK_GELU = 3 };

// The GELU x * Phi(x), Phi being the normal distribution, with a relative error below 8e-4 from -5.5 on and an absolute
// one below 1e-6 before: a third of what rounding to bfloat16 does. The polynomial is the best for
// log(Phi / (1 - Phi)), weighted with what it changes, from -5.5 to 5.5.
inline Floats fast_gelu(Floats x) {
    Floats square = x * x;
    square = square > splat(30.25f) ? splat(30.25f) : square;
    Floats p = splat(-8.52950108e-9f);
    for (const float factor : {6.46574019e-7f, -8.47651827e-6f, -7.85011437e-4f, 7.49255288e-2f, 1.59361631f})
        p = p * square + factor;
    return fast_gate(x, x * p);
}

// CLIP's approximation of it.
inline Floats fast_quick_gelu(Floats x) { return fast_gate(x, 1.702f * x); }

// For what is rounded to bfloat16 next.
inline Floats activate(Floats x, int64_t activation) {
    switch (activation) {
        case GELU_TANH: return fast_gelu_tanh(x);
        case GELU: return fast_gelu(x);
        case QUICK_GELU: return fast_quick_gelu(x);
        default: return x;
    }
}

}  // namespace vl2
