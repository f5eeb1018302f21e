// Vectors with AVX-512: activations, bfloat16 pairs, transposes, prefetches and stores past the caches.
//
// Included by simd.h alone, and in place of what it has for every machine; the kernels named NAME_avx512.h and
// NAME_amx.h are made of the rest. Vectors hold sixteen floats or words, or 32 bfloat16 numbers in 16 pairs, which is
// how the bfloat16 dot product takes them. Memory may have any alignment where nothing else is said.
#pragma once
#include <immintrin.h>

#include "memory.h"

namespace vl2 {

inline void store_fast(bf16* to, Floats value) {
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &halves, sizeof halves);
}

// The lowest byte of each lane. GCC takes the general conversion apart, word by word.
inline Bytes lowest_bytes(Ints words) { return (Bytes)_mm512_cvtepi32_epi8((__m512i)words); }

// In the order of the portable loop: upper half to lower half, down to one lane.
inline float sum(Floats value) { return _mm512_reduce_add_ps((__m512)value); }

inline Floats load(const int8_t* from) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}

// 2^x for x up to 127; relative error below 3e-7. Below -126 it is what 2^-126 is.
inline __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
    const __m512 integer = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                 rest = _mm512_sub_ps(x, integer);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);  // ln(2)^k / k!
    for (const float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(p, integer);
}

// 2^x for x up to 127, of one below -126 what 2^-126 is, for smaller numbers take a hundred times as long; relative
// error below 3e-6. A third cheaper: for what is rounded to bfloat16 next. By the polynomial of the least relative
// error from 0 to 1.
inline __m512 fast_power_of_two(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
    const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // above the whole number below
    __m512 p = _mm512_set1_ps(1.353416778e-2f);
    for (const float factor : {5.201146379e-2f, 2.414427549e-1f, 6.930038333e-1f, 1.000002623f})
        p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(factor));
    return _mm512_scalef_ps(p, x);
}

// 1 / (1 + e^-x); relative error below 4e-6, and below 3e-7 from -1 on. Below -60 it is what it is there: nothing tells
// it from zero. By an estimate made better in one Newton step, for a division takes as long as all the rest.
inline Floats logistic(Floats x) {
    const __m512 power = _mm512_min_ps(_mm512_mul_ps((__m512)x, _mm512_set1_ps(-1.44269504f)), _mm512_set1_ps(86.0f));
    const __m512 sum = _mm512_add_ps(power_of_two(power), _mm512_set1_ps(1.0f)), estimate = _mm512_rcp14_ps(sum);
    return (Floats)_mm512_mul_ps(estimate, _mm512_fnmadd_ps(sum, estimate, _mm512_set1_ps(2.0f)));
}

// SiLU with a relative error below 7e-5: for what is rounded to bfloat16 next.
inline Floats fast_silu(Floats x) {
    // Where the power is infinite, what is divided by it is zero.
    const __m512 power = _mm512_mul_ps((__m512)x, _mm512_set1_ps(-1.44269504f));
    return (Floats)_mm512_mul_ps((__m512)x,
                                 _mm512_rcp14_ps(_mm512_add_ps(fast_power_of_two(power), _mm512_set1_ps(1.0f))));
}

// The tanh GELU with a relative error below 7e-5: for what is rounded to bfloat16 next.
inline Floats fast_gelu_tanh(Floats x) {
    // The factors are those of the portable GELU times -log2(e). Where the power is infinite, what is divided by it is
    // zero.
    const __m512 power = (__m512)(x * (-2.3022082f - 0.10294324f * x * x));
    return (Floats)_mm512_mul_ps((__m512)x,
                                 _mm512_rcp14_ps(_mm512_add_ps(fast_power_of_two(power), _mm512_set1_ps(1.0f))));
}

// x / (1 + e^-logit), of which the same is true.
inline Floats fast_gate(Floats x, Floats logit) {
    const __m512 power = _mm512_mul_ps((__m512)logit, _mm512_set1_ps(-1.44269504f));
    return (Floats)_mm512_mul_ps((__m512)x,
                                 _mm512_rcp14_ps(_mm512_add_ps(fast_power_of_two(power), _mm512_set1_ps(1.0f))));
}

// The product of two bf16 vectors; `n` is a multiple of 16. In two sums, for one alone would wait for itself at each
// step.
inline float dot(const bf16* a, const bf16* b, int64_t n) {
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
}

// A pair of bfloat16 numbers in every lane.
inline __m512bh broadcast_pair(const bf16* from) {
    int32_t pair;
    std::memcpy(&pair, from, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

// Round two vectors to bfloat16 pairs: an element of the first, one of the second, and so on.
inline __m512i interleave_bf16(__m512 first, __m512 second) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// The first `count` of 32 elements, zeros behind them.
inline __m512i load_part(const bf16* from, int64_t count) {
    if (count >= 32) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi16(count <= 0 ? 0 : static_cast<__mmask32>((1u << count) - 1), from);
}

// Word n of vector m becomes word m of vector n.
inline void transpose(__m512i (&rows)[16]) {
    __m512i other[16];
    for (int i = 0; i < 16; i += 2) {
        other[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        other[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(other[i], other[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(other[i], other[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(other[i + 1], other[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(other[i + 1], other[i + 3]);
    }
    for (int i = 0; i < 16; i += 8) {
        for (int j = 0; j < 4; j++) {
            other[i + j] = _mm512_shuffle_i32x4(rows[i + j], rows[i + 4 + j], 0x88);
            other[i + 4 + j] = _mm512_shuffle_i32x4(rows[i + j], rows[i + 4 + j], 0xdd);
        }
    }
    for (int j = 0; j < 8; j++) {
        rows[j] = _mm512_shuffle_i32x4(other[j], other[8 + j], 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(other[j], other[8 + j], 0xdd);
    }
}

// Store past the caches, to memory that will not be read before much else is: its line is not read first, and nothing
// useful leaves the caches for it. Such a store needs a whole line; elsewhere it is a plain one.
inline void store_nontemporal(void* to, __m512i value) {
    if (reinterpret_cast<uintptr_t>(to) % LINE_BYTES) _mm512_storeu_si512(to, value);
    else _mm512_stream_si512(static_cast<__m512i*>(to), value);
}

// Some lines at each of so many steps, in turn from several places of one byte range: for what is read beside tile
// products. Tiles come from the second cache, and wait in the same sixteen fill buffers as a prefetched line. But a
// processor foresees streams and fetches the next line of each by itself, without such a buffer: of several streams it
// is there when it is prefetched, of one it is still on its way. Reading 64 experts beside products takes 24 to 26 ms
// with one stream, 19 with two, 18 with four or eight, 20 to 22 with 32.
class StreamPrefetch {
   public:
    StreamPrefetch() = default;
    StreamPrefetch(const uint8_t* from, int64_t lines, int64_t steps)
        : StreamPrefetch(from, STREAMS, lines / STREAMS * 64, lines, steps) {}
    // In so many streams, whose beginnings lie `apart` bytes from one another.
    StreamPrefetch(const uint8_t* from, int64_t streams, int64_t apart, int64_t lines, int64_t steps)
        : next_(from), streams_(streams), apart_(apart), left_(lines), a_step_((lines + steps - 1) / steps) {}

    void step() {
        for (int64_t i = 0; i < a_step_ && left_ > 0; i++, left_--) {
            _mm_prefetch(reinterpret_cast<const char*>(next_ + stream_ * apart_), _MM_HINT_T1);
            if (++stream_ < streams_) continue;
            stream_ = 0;
            next_ += 64;
        }
    }

   private:
    static constexpr int64_t STREAMS = 4;

    const uint8_t* next_ = nullptr;
    int64_t streams_ = 0, apart_ = 0, left_ = 0, a_step_ = 0, stream_ = 0;
};

}  // namespace vl2
